//! Where responses are kept.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use http::Extensions;
use tokio::runtime::Handle;

pub use super::entry::Record;
use super::fleet::Fleet;
pub use super::key::Key;

/// What the copies of unfinished bodies may take where a store does not say.
const IN_FLIGHT_BYTES: usize = 64 << 20;

/// A place for responses: [`MemoryStore`](super::MemoryStore), with the feature `redis`
#[cfg_attr(feature = "redis", doc = "[`RedisStore`](super::RedisStore) and [`TieredStore`](super::TieredStore),")]
#[cfg_attr(not(feature = "redis"), doc = "`RedisStore` and `TieredStore`,")]
/// or your own, over bytes ([`Record::encode`], [`Record::decode`]) or over the records as they are.
///
/// # Contract
///
/// [`store_tests`](super::store_tests) checks most of this; run it over a store of your own.
///
/// 1. **A record comes back equal, or not at all**, and only under the key that it was put under. Keys are equal where
///    all their bytes are: a store with shorter names (a hash) must tell apart what meets under one name, as
///    [`Record::decode`] does.
/// 2. **Linearizable per key, within one process.** Once `put` or `remove` has answered `Ok`, no `get` that begins later
///    finds what was there before. `put` replaces, also where it decides not to keep the new record.
/// 3. **It may forget.** A miss is always a right answer; the layer asks the handler then.
/// 4. **It is bounded**, by its own measure. The layer hands it bodies of at most [`max_object_bytes`] and holds at most
///    [`in_flight_bytes`] of unfinished ones; it expects the store to make room by itself.
/// 5. **Whatever goes wrong is a [`StoreFailure`]**, which the layer counts and takes for a miss. A write that failed may
///    have happened, or happen later.
/// 6. **It never panics** and never blocks the thread: an answer that needs a round trip is a [`Reply::Later`]. An
///    operation begins with the call or with the first poll of its reply.
/// 7. **Dropping a reply abandons the operation**: a client has gone, or time was up. A write then may have happened, or
///    happen later; the store stays usable and holds nothing back for it.
/// 8. **Deadlines are the store's.** The layer sets none of its own: a store that may hang must answer in time, with
///    [`StoreFailure::timed_out`].
///
/// Expired records are the layer's to recognise: a store need not look at [`Record::keep_for`], but one that can expire
/// what it holds should.
///
/// [`max_object_bytes`]: Self::max_object_bytes
/// [`in_flight_bytes`]: Self::in_flight_bytes
///
/// # Example
///
/// A store over bytes; a map of them stands for the server.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
/// use std::time::SystemTime;
///
/// use bytes::Bytes;
/// use tower_scale::cache::{Key, Record, Reply, Store, StoreFailure, store_tests};
///
/// #[derive(Debug, Default)]
/// struct Remote(Arc<Mutex<HashMap<Vec<u8>, Bytes>>>);
///
/// impl Store for Remote {
///     fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
///         let (map, key) = (self.0.clone(), key.clone());
///         Reply::later(async move {
///             let map = map.lock().map_err(|_| StoreFailure::unavailable())?;
///             Ok(map.get(key.as_bytes()).cloned().and_then(|bytes| Record::decode(&key, bytes)))
///         })
///     }
///
///     fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
///         let useful = record.keep_for(SystemTime::now()).is_some();
///         // What cannot be kept must not leave an older record in place.
///         let Some(bytes) = record.encode(key).filter(|_| useful) else { return self.remove(key) };
///         let (map, name) = (self.0.clone(), key.as_bytes().to_vec());
///         Reply::later(async move {
///             map.lock().map_err(|_| StoreFailure::unavailable())?.insert(name, bytes);
///             Ok(())
///         })
///     }
///
///     fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
///         let (map, name) = (self.0.clone(), key.as_bytes().to_vec());
///         Reply::later(async move {
///             map.lock().map_err(|_| StoreFailure::unavailable())?.remove(&name);
///             Ok(())
///         })
///     }
///
///     fn max_object_bytes(&self) -> usize {
///         1 << 20
///     }
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// store_tests::run(Remote::default()).await;
/// # });
/// ```
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What is stored under `key`, expired or not.
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>>;

    /// Stores `record` under `key`, in place of what is there.
    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>>;

    /// Forgets what is stored under `key`.
    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>>;

    /// Notes that `record`, found under `key`, is of no more use: a hint, for stores that can tell whether it is still
    /// there and forget it without a round trip.
    fn discard(&self, _key: &Key, _record: &Record) {}

    /// Forgets everything: a hint. The layer itself never again uses what was stored before.
    fn clear(&self) {}

    /// How much is stored now. `None`: it cannot tell cheaply.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// The longest body that it takes, in bytes.
    fn max_object_bytes(&self) -> usize;

    /// How many bytes the layer may hold for copies of bodies that are not complete yet (default: 64 MiB); asked once,
    /// when the layer is built. A response that would need more streams past the cache.
    fn in_flight_bytes(&self) -> usize {
        IN_FLIGHT_BYTES
    }

    /// Whether an operation of the request with these extensions has timed out before: the layer then asks and writes
    /// nothing for it.
    fn is_spent(&self, _: &Extensions) -> bool {
        false
    }

    /// Notes that an operation of this request timed out.
    fn mark_spent(&self, _: &mut Extensions) {}

    /// What it shares with other processes, beyond responses. Not for implementors outside of this crate.
    #[doc(hidden)]
    fn fleet(&self) -> Option<Arc<dyn Fleet>> {
        None
    }
}

/// What a store holds, by its own measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Records, expired ones included.
    pub entries: u64,
    /// Bytes, with keys and overhead.
    pub bytes: u64,
}

/// An answer that is there at once, or one that takes a round trip.
#[must_use = "an operation may begin only when its reply is polled"]
pub enum Reply<T> {
    /// Nothing to wait for, nothing boxed.
    Now(T),
    /// Poll this; dropping it abandons the operation.
    Later(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Reply<T> {
    /// An answer that takes a round trip.
    pub fn later(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self::Later(Box::pin(future))
    }

    /// Waits for the answer. Dropping the future abandons the operation.
    pub async fn wait(self) -> T {
        match self {
            Self::Now(value) => value,
            Self::Later(future) => future.await,
        }
    }
}

/// Runs `work`, in a task of its own unless it ends at once: it goes on if the future is dropped.
pub(super) async fn finish<T: Send + 'static>(mut work: Pin<Box<dyn Future<Output = T> + Send>>) -> Option<T> {
    if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        return Some(done);
    }
    match Handle::try_current() {
        Ok(runtime) => runtime.spawn(work).await.ok(),
        Err(_) => Some(work.await),
    }
}

/// As [`finish`], but who calls does not wait for what does not end at once: the client need not either.
pub(super) async fn detach(mut work: Pin<Box<dyn Future<Output = ()> + Send>>) {
    if poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_ready())).await {
        return;
    }
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(work)),
        Err(_) => work.await,
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Now(_)) { "Now" } else { "Later" })
    }
}

/// The store could not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreFailure {
    /// It did not answer in time: the same request should not ask it again.
    pub(super) timed_out: bool,
}

impl StoreFailure {
    /// It did not answer in time. The layer asks it no more for the same request.
    #[must_use]
    pub fn timed_out() -> Self {
        Self { timed_out: true }
    }

    /// It failed at once, or answered that it cannot.
    #[must_use]
    pub fn unavailable() -> Self {
        Self { timed_out: false }
    }
}

impl fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.timed_out { "the store did not answer in time" } else { "the store failed" })
    }
}

impl std::error::Error for StoreFailure {}
