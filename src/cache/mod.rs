//! A shared response cache inside the server.

mod body;
mod coalesce;
#[cfg(feature = "redis")]
mod codec;
mod collect;
mod conditional;
mod directives;
mod entry;
mod fill;
mod flight;
mod future;
mod key;
mod layer;
mod log;
mod lookup;
mod memory;
mod metrics;
mod policy;
#[cfg(feature = "redis")]
mod redis;
mod request;
mod service;
mod status;
mod store;
mod ttl;
mod vary;

pub use body::{BodyError, BoxError, ResponseBody};
pub use future::ResponseFuture;
pub use layer::CacheLayer;
pub use memory::MemoryStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
pub use service::Cache;
pub use store::Store;
pub use ttl::CacheTtl;
