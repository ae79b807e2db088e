//! The public handle.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Value};
use http::Extensions;

use super::error::{ConfigError, Kind, StoreError};
use super::link::Link;
use super::script::{Script, Work};
use super::source::Source;
use super::subscription::{Servers, Subscription};

const BUDGET: Duration = Duration::from_millis(20);
const PREFIX: &str = "ts:";

/// One handle to Redis. Clones share its connection and its breaker; build two to isolate.
///
/// Dropping the last clone closes the connection, or returns it to the application's pool.
#[derive(Clone)]
pub struct Redis {
    link: Arc<Link>,
    budget: Duration,
    prefix: Arc<str>,
    /// Where the invalidation connection may go.
    #[cfg_attr(not(feature = "cache"), allow(dead_code))]
    servers: Option<Arc<Servers>>,
}

impl Redis {
    /// A handle to the server at `url`: `redis://[user][:password@]host[:port][/db]`, `rediss://` for TLS (feature
    /// `redis-tls`), or `unix:///path`. Connects in the background when the first command is sent.
    ///
    /// # Errors
    /// The URL does not parse, asks for TLS without the feature, or asks not to verify certificates.
    pub fn connect(url: &str) -> Result<Self, ConfigError> {
        Self::new(Source::url(url)?).invalidation_urls([url])
    }

    /// A handle on an application's own pool, of which it holds one connection.
    ///
    /// # Errors
    /// The pool has room for fewer than two connections.
    pub fn from_pool(pool: deadpool_redis::Pool) -> Result<Self, ConfigError> {
        roomy(pool.status().max_size)?;
        Ok(Self::new(Source::Pool(pool)))
    }

    /// A handle on an application's own pool of cluster connections, of which it holds one.
    ///
    /// The client of a cluster may send a command again when a connection breaks: see
    /// [Deployment](crate::redis#deployment).
    ///
    /// # Errors
    /// The pool has room for fewer than two connections.
    pub fn from_cluster_pool(pool: deadpool_redis::cluster::Pool) -> Result<Self, ConfigError> {
        roomy(pool.status().max_size)?;
        Ok(Self::new(Source::Cluster(pool)))
    }

    /// A handle on an application's own pool of connections to the master that its sentinels name, of which it holds
    /// one.
    ///
    /// # Errors
    /// The pool has room for fewer than two connections.
    pub fn from_sentinel_pool(pool: deadpool_redis::sentinel::Pool) -> Result<Self, ConfigError> {
        roomy(pool.status().max_size)?;
        Ok(Self::new(Source::Sentinel(pool)))
    }

    fn new(source: Source) -> Self {
        Self { link: Arc::new(Link::new(source)), budget: BUDGET, prefix: PREFIX.into(), servers: None }
    }

    /// The time that one operation may take, waiting for a connection included. 20 ms by default.
    #[must_use]
    pub fn time_budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    #[cfg_attr(not(any(feature = "rate-limit", feature = "cache")), allow(dead_code))]
    pub(crate) fn budget(&self) -> Duration {
        self.budget
    }

    /// What all keys of the layers on this handle begin with: applications that share a server choose different ones.
    /// `ts:` by default.
    #[must_use]
    pub fn key_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Names the servers at which a cache behind this handle may listen for what other processes purge and overwrite.
    ///
    /// That takes a connection that subscribes, and a pool cannot give one: for a handle on an application's pool, a
    /// cache refuses to be built without these URLs. A handle of [`connect`](Self::connect) needs none; it uses its own.
    ///
    /// Any server will do that belongs to the same cluster, or is the master or a replica of the same group, since Redis
    /// passes on what is published. Name several: each new connection goes to the next of them, and on to the others
    /// while one does not answer. With Sentinel, name the master and its replicas, not the sentinels; of a cluster, two
    /// or three nodes. Each process holds one such connection per cache.
    ///
    /// The URLs are as for [`connect`](Self::connect), with user, password and TLS of their own: what the pool's client
    /// was given does not apply. Nothing is connected before a cache is used.
    ///
    /// # Errors
    /// There is no URL, or one does not parse, asks for TLS without the feature `redis-tls`, or asks not to verify
    /// certificates.
    pub fn invalidation_urls<I>(mut self, urls: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.servers = Some(Arc::new(Servers::new(urls)?));
        Ok(self)
    }

    /// Sends one command, once (a cluster's client may repeat it), on the connection that the layers share, within the
    /// time budget. Its keys are used as they are, without the prefix.
    ///
    /// For commands that answer at once and have one key at most, or several of one hash slot: none that block
    /// (`BLPOP`), subscribe, or change the connection's state (`MULTI`, `SELECT`), since all requests share the
    /// connection. Dropping the future does not recall a command that has been sent; the breaker counts it. Errors
    /// inside an array reply are errors of the whole.
    ///
    /// # Errors
    /// No answer in time, no server, or an answer that is an error. See [`StoreError::kind`].
    ///
    /// # Panics
    /// Outside a Tokio runtime with timers.
    pub async fn query(&self, command: &Cmd) -> Result<Value, StoreError> {
        self.link.run(Work::Command(command), self.budget).await
    }

    /// Runs `script` on keys of one hash slot, at least one, within the time budget: `EVALSHA`, and `EVAL` if the server
    /// does not know it. Not repeated otherwise, but by a cluster's client.
    #[cfg_attr(not(any(feature = "rate-limit", feature = "cache")), allow(dead_code))]
    pub(crate) async fn eval(&self, script: &Script, keys: &[&[u8]], args: &[&[u8]]) -> Result<Value, StoreError> {
        self.link.run(Work::Script(script, keys, args), self.budget).await
    }

    /// Whether [`subscribe`](Self::subscribe) knows any server.
    #[cfg_attr(not(feature = "cache"), allow(dead_code))]
    pub(crate) fn can_subscribe(&self) -> Result<(), ConfigError> {
        self.servers.as_ref().map(|_| ()).ok_or(ConfigError::NoInvalidation)
    }

    /// Subscribes to `channels` on a connection of its own, within 2 s. Outside breakers and metrics of operations.
    #[cfg_attr(not(feature = "cache"), allow(dead_code))]
    pub(crate) async fn subscribe(&self, channels: &[&[u8]]) -> Result<Subscription, StoreError> {
        match &self.servers {
            Some(servers) => servers.subscribe(channels).await,
            None => Err(StoreError::new(Kind::Unavailable, None)),
        }
    }

    /// Publishes through every master, to all at the same time, each within the time budget; the first time, and once in
    /// a while, a cluster is asked for its map before. Returns how many masters there are; fails if it fails anywhere,
    /// once all are done.
    #[cfg_attr(not(feature = "cache"), allow(dead_code))]
    pub(crate) async fn publish_everywhere(&self, channel: &[u8], message: &[u8]) -> Result<usize, StoreError> {
        let mut publish = ::redis::cmd("PUBLISH");
        publish.arg(channel).arg(message);
        self.link.everywhere(publish, self.budget).await
    }

    /// The key of `id` in the name space `kind` (`rl`, `cache`): `{prefix}{kind}:{id}`.
    ///
    /// A client that can choose a part of `id` must not choose the cluster node: an empty hash tag before an `id` with
    /// a brace makes Redis hash the whole key.
    #[cfg_attr(not(any(feature = "rate-limit", feature = "cache")), allow(dead_code))]
    pub(crate) fn key(&self, kind: &str, id: &[u8]) -> Vec<u8> {
        let guard: &[u8] = if id.contains(&b'{') { b"{}" } else { b"" };
        [self.prefix.as_bytes(), kind.as_bytes(), b":", guard, id].concat()
    }

    /// Whether an operation of this request has already timed out on this handle: then no further one is made.
    #[cfg_attr(not(any(feature = "rate-limit", feature = "cache")), allow(dead_code))]
    pub(crate) fn is_spent(&self, extensions: &Extensions) -> bool {
        extensions.get::<Spent>().is_some_and(|spent| spent.0.contains(&self.id()))
    }

    /// Notes that an operation of this request timed out on this handle.
    #[cfg_attr(not(any(feature = "rate-limit", feature = "cache")), allow(dead_code))]
    pub(crate) fn mark_spent(&self, extensions: &mut Extensions) {
        extensions.get_or_insert_default::<Spent>().0.push(self.id());
    }

    fn id(&self) -> usize {
        Arc::as_ptr(&self.link).addr()
    }
}

/// Request extension: the handles on which an operation of this request has timed out.
#[derive(Clone, Default)]
struct Spent(Vec<usize>);

/// At most half of an application's pool is held.
fn roomy(max_size: usize) -> Result<(), ConfigError> {
    if max_size < 2 { Err(ConfigError::PoolTooSmall) } else { Ok(()) }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("time_budget", &self.budget)
            .field("key_prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let redis = Redis::connect("redis://h").unwrap();
        assert_eq!(redis.key("rl", b"10.0.0.1"), b"ts:rl:10.0.0.1");
        let redis = redis.key_prefix("shop:");
        assert_eq!(redis.key("cache", b"{a}b"), b"shop:cache:{}{a}b");
        assert_ne!(redis.key("cache", b"{}{a}b"), redis.key("cache", b"{a}b"));
    }

    #[test]
    fn a_timeout_is_remembered_per_request_and_handle() {
        let (one, other) = (Redis::connect("redis://h").unwrap(), Redis::connect("redis://h").unwrap());
        let mut extensions = Extensions::new();
        assert!(!one.is_spent(&extensions));
        one.mark_spent(&mut extensions);
        assert!(one.is_spent(&extensions) && one.clone().is_spent(&extensions.clone()) && !other.is_spent(&extensions));
        other.mark_spent(&mut extensions);
        assert!(one.is_spent(&extensions) && other.is_spent(&extensions));
    }

    #[test]
    fn debug_shows_no_host() {
        assert!(!format!("{:?}", Redis::connect("redis://user:pass@host").unwrap()).contains("host"));
    }
}
