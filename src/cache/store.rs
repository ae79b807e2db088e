//! Where responses are kept.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use http::Extensions;

pub use super::entry::Record;
pub use super::key::Key;

/// A place for responses: [`MemoryStore`](super::MemoryStore), with the feature `redis`
#[cfg_attr(feature = "redis", doc = "[`RedisStore`](super::RedisStore),")]
#[cfg_attr(not(feature = "redis"), doc = "`RedisStore`,")]
/// or your own.
///
/// Every failure is a miss to the layer.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What is stored under `key`, expired or not.
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>>;

    /// Stores `record` until it expires or has to make room.
    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>>;

    /// Forgets what is stored under `key`.
    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>>;

    /// Notes that `record`, found under `key`, is of no more use.
    fn discard(&self, _key: &Key, _record: &Record) {}

    /// The longest body that it takes, in bytes.
    fn max_object_bytes(&self) -> usize;

    /// Whether an operation of this request has timed out before.
    fn is_spent(&self, _: &Extensions) -> bool {
        false
    }

    /// Notes that an operation of this request timed out.
    fn mark_spent(&self, _: &mut Extensions) {}
}

/// An answer that is there at once, or one that takes a round trip.
pub enum Reply<T> {
    /// Nothing to wait for, nothing boxed.
    Now(T),
    /// Poll this; dropping it abandons the operation.
    Later(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Reply<T> {
    pub(super) async fn wait(self) -> T {
        match self {
            Self::Now(value) => value,
            Self::Later(future) => future.await,
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Now(_)) { "Now" } else { "Later" })
    }
}

/// The store could not do it.
#[derive(Clone, Copy, Debug)]
pub struct StoreFailure {
    /// It did not answer in time: the same request should not ask it again.
    pub(super) timed_out: bool,
}
