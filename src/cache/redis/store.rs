//! Responses in a Redis that several processes share.

use std::sync::Arc;

use http::Extensions;

use super::hub::Hub;
use crate::cache::entry::Record;
use crate::cache::fleet::Fleet;
use crate::cache::key::Key;
use crate::cache::store::{Reply, Store, StoreFailure};
use crate::redis::{ConfigError, Redis};

/// A store in Redis, shared by every process that uses the same server and prefix.
///
/// A lookup is one `MGET` of the response and its URL's generations; those of tags, and purges by prefix or of
/// everything, are known from an invalidation channel, a connection of its own. A response expires in Redis when it is of
/// no more use. Bodies of up to 1 MiB, unless [told otherwise](Self::max_object_bytes). Writes are off the requests'
/// path: at most 256, and 64 MiB, at once; beyond, a response is not stored. Whatever goes wrong is a miss.
///
/// Purges ([`CacheHandle`](crate::cache::CacheHandle)) and invalidations reach all processes, and outlast them. Of all
/// requests that find nothing of what has been cacheable before, one fetches for all processes.
///
/// ```
/// use tower_scale::cache::{CacheLayer, RedisStore};
/// use tower_scale::redis::Redis;
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use tower::{ServiceBuilder, ServiceExt};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// // Nothing listens on port 1: every lookup is a miss, and the service works.
/// let store = RedisStore::new(Redis::connect("redis://127.0.0.1:1")?)?;
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
pub struct RedisStore {
    pub(super) hub: Arc<Hub>,
}

impl RedisStore {
    /// A store on this handle, under its prefix. Does not touch the network: the first lookup does.
    ///
    /// # Errors
    /// The handle cannot subscribe: it is on an application's pool, and was not told where the invalidation connection
    /// may go.
    pub fn new(redis: Redis) -> Result<Self, ConfigError> {
        redis.can_subscribe()?;
        Ok(Self { hub: Hub::new(redis) })
    }

    /// The longest body that goes to Redis, in bytes (default: 1 MiB). All requests of a process share one connection,
    /// so a body holds up every other lookup for as long as it takes on the way.
    #[must_use]
    pub fn max_object_bytes(self, bytes: usize) -> Self {
        self.hub.set_max_object_bytes(bytes);
        self
    }
}

impl Hub {
    pub(super) fn get(self: &Arc<Self>, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        let look = Hub::look(self.clone(), key.clone());
        Reply::later(async move { Ok(look.await?.record) })
    }

    /// In place of whatever is there.
    pub(super) fn replace(self: &Arc<Self>, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        let put = Hub::put(self, key, record, None);
        Reply::later(async move { put.await.map(|_| ()) })
    }
}

impl Store for RedisStore {
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        self.hub.get(key)
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        self.hub.replace(key, record)
    }

    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
        Reply::later(self.hub.remove(key))
    }

    fn max_object_bytes(&self) -> usize {
        self.hub.max_object_bytes()
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
