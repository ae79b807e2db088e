//! A response store in memcached: a pool of connections, and what `Store` asks for around it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use std::{fmt, mem};

use async_memcached::{AsciiProtocol, Client, Error, Status};
use bytes::Bytes;
use http::Extensions;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tower_scale::cache::{Key, Record, Reply, Store, StoreFailure};
use xxhash_rust::xxh3::xxh3_128;

/// What each name begins with. Give every application, and every stage of it, its own where they share a server.
const PREFIX: &str = "example:cache:";
/// memcached's limit for an item is 1 MiB (`-I`), and includes its name and up to 64 bytes of its own.
const MAX_VALUE: usize = (1 << 20) - 512;
/// What of that is left for the fields of a response and for its key.
const MAX_HEAD: usize = 32 << 10;
/// Longer ones memcached takes for a time of the Unix era.
const MAX_TTL: u64 = 30 * 24 * 60 * 60;
/// So many failures in a row, and memcached is left alone for a while: requests do without it at once.
const PATIENCE: u32 = 8;
const REST: Duration = Duration::from_secs(1);

/// Responses in memcached, shared by all processes that use it.
///
/// Purges and invalidations count in the process that is told of them: others go on using what they read. `RedisStore`
/// has purges that reach them all.
#[derive(Clone)]
pub(crate) struct MemcachedStore(Arc<Pool>);

struct Pool {
    server: String,
    deadline: Duration,
    /// One for each operation that may be under way, and so for each connection.
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Connections on which nothing is under way.
    idle: Vec<Client>,
    failures: u32,
    rests_until: Option<Instant>,
}

enum Operation {
    Get,
    Set(Bytes, u64),
    Delete,
}

/// Request extension: memcached has cost this request its deadline once.
#[derive(Clone, Copy)]
struct Spent;

impl MemcachedStore {
    /// A store on `server`: an IPv4 address or a name, with a port, or `unix:///path`. Connects when it is first used.
    ///
    /// At most `connections` at once; no operation takes longer than `deadline`, the wait for a connection included.
    pub(crate) fn new(server: impl Into<String>, connections: usize, deadline: Duration) -> Self {
        let mut server = server.into();
        if !server.contains("://") {
            server.insert_str(0, "tcp://");
        }
        Self(Arc::new(Pool { server, deadline, permits: Semaphore::new(connections), state: Mutex::default() }))
    }

    fn run(&self, key: &Key, operation: Operation) -> Reply<Result<Option<Bytes>, StoreFailure>> {
        let (pool, name) = (self.0.clone(), name(key));
        Reply::later(async move {
            // A removal is worth a try: what it leaves is used as long as it is fresh.
            if pool.rests() && !matches!(operation, Operation::Delete) {
                return Err(StoreFailure::unavailable());
            }
            match timeout(pool.deadline, pool.run(&name, &operation)).await {
                Ok(Ok(found)) => {
                    pool.worked();
                    Ok(found)
                }
                Ok(Err(error)) => Err(pool.failed(&error, StoreFailure::unavailable())),
                Err(late) => Err(pool.failed(&late, StoreFailure::timed_out())),
            }
        })
    }

    fn write(&self, key: &Key, operation: Operation) -> Reply<Result<(), StoreFailure>> {
        match self.run(key, operation) {
            Reply::Now(outcome) => Reply::Now(outcome.map(drop)),
            Reply::Later(outcome) => Reply::later(async move { outcome.await.map(drop) }),
        }
    }
}

impl Store for MemcachedStore {
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        let (found, key) = (self.run(key, Operation::Get), key.clone());
        // What is no record of this key, be it damaged or another version's, is a miss.
        Reply::later(async move { Ok(found.wait().await?.and_then(|bytes| Record::decode(&key, bytes))) })
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        let bytes = record.encode(key).filter(|bytes| bytes.len() <= MAX_VALUE);
        match (bytes, record.keep_for(SystemTime::now())) {
            (Some(bytes), Some(left)) => self.write(key, Operation::Set(bytes, ttl(left))),
            // What cannot be kept must not leave an older record in place.
            _ => self.remove(key),
        }
    }

    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
        self.write(key, Operation::Delete)
    }

    fn max_object_bytes(&self) -> usize {
        MAX_VALUE - MAX_HEAD
    }

    fn is_spent(&self, extensions: &Extensions) -> bool {
        extensions.get::<Spent>().is_some()
    }

    fn mark_spent(&self, extensions: &mut Extensions) {
        extensions.insert(Spent);
    }
}

impl Pool {
    /// Dropping the future, at any point, closes the connection in use: what answers come on it later are lost with it,
    /// and are nobody else's.
    async fn run(&self, name: &str, operation: &Operation) -> Result<Option<Bytes>, Error> {
        // Never closed.
        let _permit = self.permits.acquire().await;
        loop {
            let idle = self.state().idle.pop();
            let used = idle.is_some();
            let mut client = match idle {
                Some(client) => client,
                None => Client::new(&self.server).await?,
            };
            let outcome = perform(&mut client, name, operation).await;
            match &outcome {
                // It ended while it was idle, and so have the others: the server is a new one.
                Err(Error::Io(_) | Error::ConnectionClosed) if used => {
                    let dead = mem::take(&mut self.state().idle);
                    drop(dead);
                    continue;
                }
                Ok(_) => self.state().idle.push(client),
                Err(_) => {}
            }
            return outcome;
        }
    }

    fn rests(&self) -> bool {
        self.state().rests_until.is_some_and(|until| Instant::now() < until)
    }

    fn worked(&self) {
        let mut state = self.state();
        state.failures = 0;
        let rested = state.rests_until.take().is_some();
        drop(state);
        if rested {
            tracing::info!("memcached answers again");
        }
    }

    fn failed(&self, error: &dyn fmt::Display, failure: StoreFailure) -> StoreFailure {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        let until = (state.failures >= PATIENCE).then(|| Instant::now() + REST);
        let is_new = until.is_some() && state.rests_until.is_none();
        state.rests_until = until;
        drop(state);
        if is_new {
            tracing::warn!(%error, "memcached fails; until it works, every response is made anew");
        }
        failure
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn perform(client: &mut Client, name: &str, operation: &Operation) -> Result<Option<Bytes>, Error> {
    match operation {
        Operation::Get => Ok(client.get(name).await?.and_then(|value| value.data).map(Bytes::from)),
        Operation::Set(bytes, ttl) => client.set(name, &**bytes, i64::try_from(*ttl).ok(), None).await.map(|()| None),
        Operation::Delete => match client.delete(name).await {
            Err(Error::Protocol(Status::NotFound)) => Ok(None),
            done => done.map(|()| None),
        },
    }
}

/// A name has at most 250 bytes and no white space or control characters; a key has up to 4 KiB of any kind. Keys that
/// meet under one name are told apart by the record, which holds the whole key.
fn name(key: &Key) -> String {
    format!("{PREFIX}{:032x}", xxh3_128(key.as_bytes()))
}

/// In whole seconds, rounded up: 0 would be for ever.
fn ttl(left: Duration) -> u64 {
    left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0)).min(MAX_TTL)
}

impl fmt::Debug for MemcachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedStore").field("server", &self.0.server).finish_non_exhaustive()
    }
}
