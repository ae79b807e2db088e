//! What a store that several processes share adds to [`Store`](super::Store): fences, leases, and purges that reach all
//! of them.
//!
//! The flow of a request speaks to this trait alone, so that coalescing, storing and purging know nothing of Redis.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::entry::Record;
use super::key::Key;
use super::purge::Purge;
use super::purges::Purges;
use super::store::StoreFailure;
use super::stripes::Stripes;

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Several processes over one store.
///
/// Everything that it learns of other processes' purges and invalidations it tells the two tables of
/// [`bearings`](Self::bearings), which the cache asks at every use.
pub trait Fleet: fmt::Debug + Send + Sync + 'static {
    /// The tables through which other processes' purges and invalidations reach this one.
    fn bearings(&self) -> Bearings;

    /// What this process's own memory holds and may use without asking.
    fn recall(&self, key: &Key) -> Option<Record>;

    /// Asks what all processes share, past this process's own memory, and learns what it takes to store there.
    fn look(&self, key: &Key) -> Later<Result<Find, StoreFailure>>;

    /// Stores `record`, unless the fence has fallen. This process's memory, if any, has it as soon as this returns, and
    /// loses it again if the fence had fallen.
    ///
    /// `Ok(true)`: all have it, or at least this process's memory, where it cannot be had by the others; the lease has
    /// ended. `Ok(false)`: nobody has it, since it is outdated, or of no use.
    fn put(&self, key: &Key, record: Record, fence: Fence) -> Later<Result<bool, StoreFailure>>;

    /// Forgets the URL's response with all variants, voids fetches of it in every process, and keeps telling them until
    /// it has succeeded.
    fn invalidate(&self, primary: &Key) -> Later<Result<(), StoreFailure>>;

    /// Tells every process of a purge; this one knows already. Kept, and told again, until it has succeeded.
    fn spread(&self, purge: &Purge, soft: bool) -> Purging;

    /// Asks for the right to fetch `key` for all processes; where another has it, waits for what becomes of that, for
    /// `patience` at most.
    fn claim(&self, key: &Key, control: Control, patience: Duration) -> Later<Claim>;

    /// Ends a lease, in the background.
    fn end(&self, key: &Key, token: u128, how: End);

    /// The longest body that all processes can share, in bytes.
    fn longest(&self) -> usize;

    /// Whether this process has a memory of its own for responses.
    fn remembers(&self) -> bool;
}

/// See [`Fleet::bearings`].
#[derive(Clone)]
pub struct Bearings {
    pub(super) purges: Arc<Purges>,
    pub(super) voided: Arc<Stripes>,
}

impl Default for Bearings {
    fn default() -> Self {
        Self { purges: Arc::new(Purges::new()), voided: Arc::new(Stripes::new()) }
    }
}

/// What a look has found.
#[derive(Debug, Default)]
pub struct Find {
    pub(super) record: Option<Record>,
    pub(super) control: Control,
}

/// What was known of a key when it was looked up: read before a request is forwarded, compared before its response is
/// stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The URL's generations, hard and soft. `None`: it has none.
    pub(super) generations: Option<(u128, u128)>,
    /// Its hard generation once something is stored, if it has none yet.
    pub(super) next: u128,
    /// The newest purge by prefix, or of everything, that this process knew of.
    pub(super) broad: u128,
    /// Identifies what was stored under the key; 0: nothing.
    pub(super) seen: u64,
    /// The key's response has been cacheable before.
    pub(super) marked: bool,
    /// It comes from a look that succeeded. Without, nothing is stored for others.
    pub(super) known: bool,
}

impl Control {
    /// What the URL's variants are stored under: all of them go with it.
    pub(super) fn generation(&self) -> u64 {
        let hard = self.generations.map_or(self.next, |(hard, _)| hard);
        u64::try_from(hard & u128::from(u64::MAX)).unwrap_or(0)
    }
}

/// What must still hold for a response to be stored.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
pub struct Fence {
    pub(super) control: Control,
    /// The lease that the response was fetched under; it ends with the storing.
    pub(super) lease: Option<u128>,
}

/// What became of a [claim](Fleet::claim).
#[derive(Debug)]
pub enum Claim {
    /// Fetch, for all.
    Granted(Lease),
    /// Something has been stored: look again.
    LookAgain,
    /// Another process has fetched it, and it is not for sharing.
    Unshared,
    /// Fetch, for this process: the others cannot be asked, or take too long.
    Alone,
}

/// The right to fetch a key for all processes. Dropped without a word, the fetch has failed, and another may try.
pub struct Lease {
    fleet: Arc<dyn Fleet>,
    key: Key,
    token: u128,
    open: bool,
    renewal: Option<AbortHandle>,
}

/// How a lease ends without a response in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The response is not for sharing, or too large: nobody waits for the next one either.
    Unshared,
    /// Another process may try.
    Failed,
}

impl Lease {
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(super) fn new(fleet: Arc<dyn Fleet>, key: Key, token: u128) -> Self {
        Self { fleet, key, token, open: true, renewal: None }
    }

    /// A task that ends with the lease.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(super) fn renewed_by(mut self, renewal: AbortHandle) -> Self {
        self.renewal = Some(renewal);
        self
    }

    pub(super) fn token(&self) -> u128 {
        self.token
    }

    pub(super) fn is_for(&self, key: &Key) -> bool {
        self.key == *key
    }

    /// The response is not for sharing.
    pub(super) fn renounce(mut self) {
        self.open = false;
        self.fleet.end(&self.key, self.token, End::Unshared);
    }

    /// It has ended with the storing.
    pub(super) fn spend(mut self) {
        self.open = false;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.iter().for_each(AbortHandle::abort);
        if self.open {
            self.fleet.end(&self.key, self.token, End::Failed);
        }
    }
}

impl fmt::Debug for Bearings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bearings").finish_non_exhaustive()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

/// A purge on its way to other processes; made by [`CacheHandle::purge`](super::CacheHandle::purge).
///
/// Resolves when the store that all processes share has it: within 100 ms after that it counts for all that are
/// connected, and at once for those that are not. A cache in one process's memory resolves at once. Dropping it recalls
/// nothing.
///
/// # Errors
/// The store did not take it yet. It is tried again until it does, as long as this process runs.
pub struct Purging(Option<Later<Result<(), StoreFailure>>>);

impl Purging {
    pub(super) fn done() -> Self {
        Self(None)
    }

    pub(super) fn later(told: impl Future<Output = Result<(), StoreFailure>> + Send + 'static) -> Self {
        Self(Some(Box::pin(told)))
    }
}

impl Future for Purging {
    type Output = Result<(), StoreFailure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().map_or(Poll::Ready(Ok(())), |told| told.as_mut().poll(cx))
    }
}

impl fmt::Debug for Purging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Purging")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_telling_is_told() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(Pin::new(&mut Purging::done()).poll(&mut cx), Poll::Ready(Ok(())));
    }
}
