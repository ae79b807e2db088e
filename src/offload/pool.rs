//! The handle to a pool, and how it is built.

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;

use super::error::BuildError;
use super::future::Offloaded;
use super::metrics::Metrics;
use super::queue::Lane;
use super::shared::{Handle, Shared};
use super::task::Home;

/// Far beyond any machine's use; a number from a slip of the pen or a wrong variable would exhaust the process.
const MAX_THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
/// Places in the queue for each thread. Work of 10 ms then waits for at most 2.6 s.
const QUEUE_PER_THREAD: usize = 256;
/// Suspended requests for each place in the queue: they hold memory, but no thread.
const SUSPENDED_PER_PLACE: usize = 4;

/// Threads for work that would block an event loop, behind a bounded queue. See the [module page](super).
///
/// Clones are handles to one pool. When the last one is gone, and all that was admitted has ended, the threads end.
#[derive(Clone)]
pub struct OffloadPool {
    owner: Arc<Owner>,
}

impl OffloadPool {
    /// A pool with the defaults of [`PoolBuilder`].
    ///
    /// # Errors
    ///
    /// [`BuildError::Thread`] where the operating system refuses a thread.
    pub fn new() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// A pool that is still to be configured.
    pub fn builder() -> PoolBuilder {
        PoolBuilder { threads: None, queue: None, in_flight: None }
    }

    /// Runs `f` on a thread of the pool.
    ///
    /// The place in the queue is taken by this call, not by the first poll of its future. `f` runs in the caller's
    /// tokio runtime, where there is one, and in its tracing span. It may block its thread.
    ///
    /// # Errors
    ///
    /// [`QueueFull`](super::OffloadError::QueueFull) and [`Closed`](super::OffloadError::Closed): `f` has not run and
    /// will not.
    ///
    /// # Deadlocks
    ///
    /// A closure that blocks its thread until another closure of the same pool has run needs a second thread for that:
    /// in a pool with one thread, or with all threads blocked like this, it waits for ever. A request that awaits a
    /// closure holds no thread meanwhile, and is safe.
    ///
    /// # Panics
    ///
    /// A panic in `f` resumes in whoever awaits the future; the thread survives it.
    ///
    /// # Cancellation
    ///
    /// Dropping the future takes a closure that waits out of the queue, at once. One that runs cannot be stopped.
    pub fn run<F, T>(&self, f: F) -> Offloaded<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.submit(Lane::Serial, Home::of_closure(), async move { f() })
    }

    /// Runs `f` on the pool's [rayon] threads, so that parallel iterators, `join` and `scope` in `f` use those.
    ///
    /// There are as many of them as other threads, they run nothing else, and they run one `f` at a time: otherwise,
    /// while it waits for its own parts, one `f` would run all of another on its stack. So this is for jobs that are
    /// worth every core; many small ones are better off in [`run`](Self::run).
    ///
    /// Runtime and span are the caller's in `f` itself, not in the parts that rayon moves to other threads. Admission,
    /// errors, panics and cancellation are those of [`run`](Self::run); the queue's bound counts both.
    ///
    /// Called on one of these threads, by another `f` or a part of it, it runs `f` there and then, before it returns,
    /// and never refuses it: as in rayon, where `install` within `install` is a plain call.
    ///
    /// # Errors
    ///
    /// [`QueueFull`](super::OffloadError::QueueFull) and [`Closed`](super::OffloadError::Closed): `f` has not run and
    /// will not.
    ///
    /// # Deadlocks
    ///
    /// An `f` that blocks until some other thread or task has had an `install` of the same pool waits for ever: that
    /// one is next only when `f` has ended.
    ///
    /// # Panics
    ///
    /// A panic in `f`, or in one of its parts, resumes in whoever awaits the future.
    ///
    /// [rayon]: https://docs.rs/rayon
    pub fn install<F, T>(&self, f: F) -> Offloaded<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.submit(Lane::Parallel, Home::of_closure(), async move { f() })
    }

    /// Closes the pool, for all its handles.
    ///
    /// What waits is refused ([`Closed`](super::OffloadError::Closed); a request gets a 503), and so is what comes
    /// later. What has begun goes on to its end, suspended requests too; then the pool's threads end;
    /// those of rayon, idle, end with the last handle. Returns at once.
    pub fn close(&self) {
        self.owner.0.close();
    }

    pub(super) fn submit<F>(&self, lane: Lane, home: Home, future: F) -> Offloaded<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Offloaded::new(self.owner.0.submit(lane, home, future), Arc::clone(&self.owner))
    }
}

impl fmt::Debug for OffloadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OffloadPool").field("shared", &self.owner.0).finish()
    }
}

/// How a pool will be.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct PoolBuilder {
    threads: Option<NonZeroUsize>,
    queue: Option<NonZeroUsize>,
    in_flight: Option<NonZeroUsize>,
}

impl PoolBuilder {
    /// How many threads run requests and closures. As many more, idle until the first
    /// [`install`](OffloadPool::install), do data-parallel work. Default: one less than
    /// [`available_parallelism`], which knows of CPU quotas, and at least one; the [module page](super) says why.
    /// At most 1024.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// How many requests and closures may wait for their first turn. Default: 256 for each thread.
    pub fn queue(mut self, queue: NonZeroUsize) -> Self {
        self.queue = Some(queue);
        self
    }

    /// How many requests and closures may have been admitted and not ended: waiting, running, and suspended, which
    /// hold memory but no thread. Default: one for each thread, and four for each place in the queue.
    pub fn in_flight(mut self, in_flight: NonZeroUsize) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// [`BuildError::TooManyThreads`] for more than 1024, before any is started; [`BuildError::Thread`] where the
    /// operating system refuses one, and those already started end.
    pub fn build(self) -> Result<OffloadPool, BuildError> {
        let threads = self.threads.unwrap_or_else(default_threads);
        if threads > MAX_THREADS {
            return Err(BuildError::TooManyThreads(threads));
        }
        let queue = self.queue.map_or(threads.get().saturating_mul(QUEUE_PER_THREAD), NonZeroUsize::get);
        let seats = self
            .in_flight
            .map_or_else(|| queue.saturating_mul(SUSPENDED_PER_PLACE).saturating_add(threads.get()), NonZeroUsize::get);
        let shared = Shared::new(threads, queue, seats).map_err(BuildError::Thread)?;
        // Closes the pool if a thread is refused.
        let pool = OffloadPool { owner: Arc::new(Owner(Arc::clone(&shared))) };
        for index in 0..threads.get() {
            shared.spawn_thread(index).map_err(BuildError::Thread)?;
        }
        Ok(pool)
    }
}

fn default_threads() -> NonZeroUsize {
    let cores = available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores - 1).unwrap_or(NonZeroUsize::MIN).min(MAX_THREADS)
}

/// Owned by handles and by futures in the hands of callers, not by the pool's threads and tasks: when it goes, nobody
/// can give or expect anything any more.
pub(super) struct Owner(Arc<Shared>);

impl Owner {
    pub(super) fn metrics(&self) -> &Metrics {
        self.0.metrics()
    }

    pub(super) fn abandon<T>(&self, handle: Handle<T>) {
        self.0.abandon(handle);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}
