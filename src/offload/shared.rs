//! What handles, tasks and threads of one pool share.

use std::fmt;
use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use async_task::{Builder, FallibleTask, Runnable};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::OffloadError;
use super::metrics::Metrics;
use super::queue::{Fetch, Lane, Queue};
use super::task::{Answer, Contained, Home};
use crate::scope;

/// One turn of an admitted future.
type Turn = Runnable<Arc<Ticket>>;

/// Under which number a task waits, if it waits.
#[derive(Default)]
pub(super) struct Ticket(AtomicU64);

/// The caller's end of a task.
pub(super) struct Handle<T> {
    pub(super) task: FallibleTask<Answer<T>, Arc<Ticket>>,
    ticket: Arc<Ticket>,
}

pub(super) struct Shared {
    queue: Mutex<Queue<Turn>>,
    /// Something to run, or to stop for.
    changed: Condvar,
    /// Seats taken: admitted and not ended.
    seated: AtomicUsize,
    seats: usize,
    parallel: ThreadPool,
    metrics: Metrics,
}

/// A place among the admitted, from admission until the work is gone.
pub(super) struct Seat(Arc<Shared>);

// === impl Shared ===

impl Shared {
    pub(super) fn new(threads: NonZeroUsize, queue: usize, seats: usize) -> io::Result<Arc<Self>> {
        let parallel = ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .thread_name(|index| format!("offload-par-{index}"))
            .start_handler(|_| scope::leave_event_loop())
            .build()
            .map_err(io::Error::other)?;
        Ok(Arc::new(Self {
            queue: Mutex::new(Queue::new(queue)),
            changed: Condvar::new(),
            seated: AtomicUsize::new(0),
            seats,
            parallel,
            metrics: Metrics::new(),
        }))
    }

    pub(super) fn spawn_thread(self: &Arc<Self>, index: usize) -> io::Result<()> {
        let shared = Arc::clone(self);
        thread::Builder::new().name(format!("offload-{index}")).spawn(move || shared.serve()).map(drop)
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Admits `future`, or says why not. Its first turn is on a thread of the pool.
    pub(super) fn submit<F>(
        self: &Arc<Self>,
        lane: Lane,
        home: Home,
        future: F,
    ) -> Result<Handle<F::Output>, OffloadError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // A job that waited for one in the queue behind it would wait for ever, and all that come later with it. As in
        // rayon, it runs the other itself; that is a part of what has been admitted, so nothing refuses it.
        let inside = lane == Lane::Parallel && self.parallel.current_thread_index().is_some();
        let seat = self.seat(if inside { usize::MAX } else { self.seats })?;
        let contained = Contained::new(future, home, seat);
        let shared = Arc::clone(self);
        let ticket = Arc::<Ticket>::default();
        let builder = Builder::new().metadata(Arc::clone(&ticket));
        let (turn, task) = builder.spawn(move |_| contained, move |turn| shared.resume(turn));
        if inside {
            turn.run();
        } else {
            self.admit(lane, turn)?;
        }
        Ok(Handle { task: task.fallible(), ticket })
    }

    fn seat(self: &Arc<Self>, seats: usize) -> Result<Seat, OffloadError> {
        let taken = self
            .seated
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |seated| (seated < seats).then_some(seated + 1));
        match taken {
            Ok(_) => Ok(Seat(Arc::clone(self))),
            Err(_) => Err(OffloadError::QueueFull),
        }
    }

    fn admit(self: &Arc<Self>, lane: Lane, turn: Turn) -> Result<(), OffloadError> {
        let mut queue = self.lock();
        if let Err(error) = queue.admit() {
            // The future's destructor is not ours to run under a lock.
            drop(queue);
            drop(turn);
            return Err(error);
        }
        let ticket = queue.ticket();
        turn.metadata().0.store(ticket, Ordering::Relaxed);
        let fetch = queue.push(lane, ticket, turn);
        self.metrics.count_threads(self.parallel.current_num_threads());
        self.metrics.queued();
        drop(queue);
        self.fetch(fetch);
        Ok(())
    }

    fn resume(self: &Arc<Self>, turn: Turn) {
        let mut queue = self.lock();
        let ticket = queue.ticket();
        turn.metadata().0.store(ticket, Ordering::Relaxed);
        let fetch = queue.resume(ticket, turn);
        drop(queue);
        self.fetch(fetch);
    }

    fn fetch(self: &Arc<Self>, fetch: Fetch) {
        match fetch {
            Fetch::Later => {}
            Fetch::WakeThread => self.changed.notify_one(),
            Fetch::DrainParallel => {
                let shared = Arc::clone(self);
                self.parallel.spawn(move || shared.drain_parallel());
            }
        }
    }

    /// Ends a task whose caller has left. Where it waits for a turn, it is dropped here and now; where it has a turn,
    /// at the end of that.
    pub(super) fn abandon<T>(&self, Handle { task, ticket }: Handle<T>) {
        // A suspended task is queued by this once more, to be dropped.
        drop(task);
        let mut queue = self.lock();
        let removed = queue.remove(ticket.0.load(Ordering::Relaxed));
        if let Some((_, true)) = removed {
            self.metrics.unqueued();
        }
        drop(queue);
        drop(removed);
    }

    pub(super) fn close(&self) {
        let mut queue = self.lock();
        let refused = queue.close();
        refused.iter().for_each(|_| self.metrics.unqueued());
        drop(queue);
        drop(refused);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue<Turn>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread of the pool does all its life.
    fn serve(&self) {
        scope::leave_event_loop();
        while let Some(turn) = self.next_turn() {
            turn.run();
        }
        self.metrics.thread_ended();
    }

    /// Waits for something to run. `None` when there is nothing, and never will be.
    fn next_turn(&self) -> Option<Turn> {
        let mut queue = self.lock();
        loop {
            if let Some((turn, first)) = queue.next() {
                if first {
                    self.metrics.unqueued();
                }
                return Some(turn);
            }
            if queue.is_closed() && self.seated.load(Ordering::Acquire) == 0 {
                return None;
            }
            queue.rests();
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.returns();
        }
    }

    /// Runs data-parallel jobs, one at a time: a job that waits for its own parts would otherwise pick up another
    /// job, and run all of that on its stack, before it went on.
    fn drain_parallel(&self) {
        loop {
            let next = self.lock().next_parallel();
            let Some(turn) = next else { return };
            self.metrics.unqueued();
            turn.run();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.lock();
        f.debug_struct("Shared")
            .field("threads", &self.parallel.current_num_threads())
            .field("idle", &queue.idle())
            .field("queued", &queue.depth())
            .field("in_flight", &self.seated.load(Ordering::Relaxed))
            .field("closed", &queue.is_closed())
            .finish_non_exhaustive()
    }
}

// === impl Seat ===

impl Seat {
    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0.seated.fetch_sub(1, Ordering::AcqRel) == 1 && self.0.lock().is_closed() {
            self.0.changed.notify_all();
        }
    }
}
