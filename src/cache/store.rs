//! Where responses are kept.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use http::Extensions;

use super::entry::Record;
use super::key::Key;

/// A place for responses: [`MemoryStore`](super::MemoryStore) or, with the feature `redis`,
#[cfg_attr(feature = "redis", doc = "[`RedisStore`](super::RedisStore).")]
#[cfg_attr(not(feature = "redis"), doc = "`RedisStore`.")]
///
/// Sealed for now: its methods are not public, so no other type can implement it.
pub trait Store: sealed::Backend {}

impl<T: sealed::Backend> Store for T {}

/// An answer that is there at once, or one that takes a round trip.
pub enum Step<T> {
    /// Nothing to wait for, nothing boxed.
    Ready(T),
    /// Poll this; dropping it abandons the operation.
    Pending(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Step<T> {
    pub(super) async fn wait(self) -> T {
        match self {
            Self::Ready(value) => value,
            Self::Pending(future) => future.await,
        }
    }
}

impl<T> fmt::Debug for Step<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Ready(_)) { "Ready" } else { "Pending" })
    }
}

/// The store could not do it.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// It did not answer in time: the same request should not ask it again.
    pub(super) timed_out: bool,
}

pub(super) mod sealed {
    use super::{Extensions, Key, Record, Step, Trouble, fmt};

    /// What a store does. Every failure is a miss to the layer.
    pub trait Backend: fmt::Debug + Send + Sync + 'static {
        /// What is stored under `key`, expired or not.
        fn get(&self, key: &Key) -> Step<Result<Option<Record>, Trouble>>;

        /// Stores `record` until it expires or has to make room.
        fn put(&self, key: &Key, record: Record) -> Step<Result<(), Trouble>>;

        /// Forgets what is stored under `key`.
        fn remove(&self, key: &Key) -> Step<Result<(), Trouble>>;

        /// Notes that `record`, found under `key`, has expired.
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
}
