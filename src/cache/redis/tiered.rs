//! This process's memory in front of a Redis that several processes share.

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::hub::Hub;
use super::store::RedisStore;
use crate::cache::entry::Record;
use crate::cache::fleet::Fleet;
use crate::cache::key::Key;
use crate::cache::memory::MemoryStore;
use crate::cache::store::{Reply, Store, StoreFailure, Usage};

/// A [`MemoryStore`] in front of a [`RedisStore`].
///
/// Memory holds what this process has read and written. While the invalidation channel is alive, what it holds is used
/// without asking Redis, and whatever another process purges, invalidates or overwrites is gone from it within 100 ms.
/// Once the channel is lost, which is noticed within two heartbeats of 500 ms, each response is used for
/// [5 s](Self::disconnected_ttl) more at most, and what is stored meanwhile for as long: then it is a miss unless Redis
/// answers. When the channel is back, what was there before is read from Redis once more.
///
/// ```
/// use tower_scale::cache::{CacheLayer, MemoryStore, RedisStore, TieredStore};
/// use tower_scale::redis::Redis;
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use tower::{ServiceBuilder, ServiceExt};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// // Nothing listens on port 1: the service works all the same.
/// let shared = RedisStore::new(Redis::connect("redis://127.0.0.1:1")?)?;
/// let store = TieredStore::new(MemoryStore::new(64 << 20), shared);
/// let service = ServiceBuilder::new().layer(CacheLayer::new(store)).service_fn(|_: Request<Full<Bytes>>| async {
///     let response = Response::builder().header("cache-control", "max-age=60");
///     Ok::<_, std::convert::Infallible>(response.body(Full::new(Bytes::from_static(b"hello"))).unwrap())
/// });
/// let request = Request::builder().uri("/").header("host", "example.com").body(Full::default()).unwrap();
/// assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
/// # Ok::<(), tower_scale::redis::ConfigError>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct TieredStore {
    hub: Arc<Hub>,
    memory: Arc<MemoryStore>,
}

impl TieredStore {
    /// This memory in front of that Redis.
    ///
    /// Bodies that are too large for Redis are kept in memory alone, for this process.
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "nobody else has it: it becomes a part of this one")]
    pub fn new(memory: MemoryStore, redis: RedisStore) -> Self {
        let memory = Arc::new(memory);
        let hub = Hub::tiered(redis.hub.redis.clone(), memory.clone());
        hub.set_max_object_bytes(redis.hub.max_object_bytes());
        Self { hub, memory }
    }

    /// How long a response in memory is used after the invalidation channel was lost (default: 5 s). A longer time spares
    /// the handlers while Redis is away, and lets what was purged meanwhile in other processes be served for as long.
    #[must_use]
    pub fn disconnected_ttl(self, bound: Duration) -> Self {
        self.hub.set_disconnected_ttl(bound);
        self
    }
}

impl Store for TieredStore {
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        match self.hub.peek(key) {
            Some(record) => Reply::Now(Ok(Some(record))),
            None => self.hub.get(key),
        }
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        self.hub.replace(key, record)
    }

    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
        Reply::later(self.hub.remove(key))
    }

    fn discard(&self, key: &Key, record: &Record) {
        self.memory.discard(key, record);
    }

    /// The memory. What is in Redis is for all processes.
    fn clear(&self) {
        self.memory.clear();
    }

    /// Of the memory.
    fn usage(&self) -> Option<Usage> {
        self.memory.usage()
    }

    fn max_object_bytes(&self) -> usize {
        self.memory.max_object_bytes().max(self.hub.max_object_bytes())
    }

    fn in_flight_bytes(&self) -> usize {
        self.memory.in_flight_bytes()
    }

    fn is_spent(&self, extensions: &Extensions) -> bool {
        self.hub.redis.is_spent(extensions)
    }

    fn mark_spent(&self, extensions: &mut Extensions) {
        self.hub.redis.mark_spent(extensions);
    }

    fn fleet(&self) -> Option<Arc<dyn Fleet>> {
        Some(Arc::new(self.hub.clone()))
    }
}
