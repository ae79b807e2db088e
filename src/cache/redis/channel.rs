//! The invalidation channel: a task that listens, and that notices when it hears nothing.
//!
//! 1. One task per store, on the runtime of the request that needed it first; another takes over where that has ended, or
//!    stands still for 10 s. It holds the store weakly, and ends with it.
//! 2. It subscribes, forgets what was mirrored, reads the list of broad purges, and waits until a heartbeat has come back.
//!    Only then is the channel *alive*. What was read from Redis before is not trusted any more.
//! 3. A heartbeat is published through every master each 500 ms, and has to come back, from each, by the next (a little
//!    later where this process itself was late). Else the channel is lost, and the task begins anew. It goes to a
//!    channel that only this store hears, on the same connection: so it comes the same way as what others tell, in the
//!    same order, and all of them together cost as much as there are, not the square of it.
//! 4. What counts as the moment of loss is when the last heartbeat that came back was sent, however late it is noticed.
//!    A process that was stopped, or whose event loop stood still, finds out by the task's next turn, or before that at
//!    one of seven uses of its memory: on each thread, up to six may still use what was trusted before.
//!    Fetches under way at a loss are not joined or stored any more, nor those under way when the channel is back.
//! 5. A purge waits in a queue until Redis has taken it, subscribed or not. At a loss, and again after it, what was
//!    purged in the last 10 s, or changed by a request, is sent again: a failover forgets what it confirmed last.

mod listen;
mod round;
mod send;
mod shift;
mod trust;

use std::cell::Cell;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use self::shift::{Shift, Task};
use self::trust::{Moment, Trust};
use super::hub::Hub;
use super::metrics::ChannelMetrics;
use super::pending::Pending;
use super::wire::is_findable;
use crate::cache::key::Key;
use crate::cache::purge::{Purge, What};
use crate::cache::store::{Store, StoreFailure};
use crate::cache::stripes::Stripes;
use crate::redis::Kind;

/// One of so many uses of memory reads the clock: a look at it each time would cost a twentieth of a hit. A prime, so that
/// stores of one process that are used in turns all come to it.
const USES: u8 = 7;

/// Nobody has tried to listen yet; somebody has, in vain or not.
const UNTRIED: u8 = 0;
const TRIED: u8 = 1;
const BEGUN: u8 = 2;

pub(super) struct Channel {
    trust: Trust,
    voided: Arc<Stripes>,
    shift: Shift,
    pending: Pending,
    /// How many of them the gauge knows of.
    counted: Mutex<usize>,
    /// The gauge has it as alive.
    up: AtomicBool,
    first: AtomicU8,
    /// `first` has changed.
    begun: Notify,
    bells: Arc<Bells>,
    metrics: ChannelMetrics,
}

/// What wakes the task.
#[derive(Default)]
struct Bells {
    /// There is something to send.
    pending: Notify,
    /// The store is gone.
    gone: Notify,
}

impl Channel {
    /// `voided`: what is bumped there is not joined or stored any more where it is being fetched.
    pub(super) fn new(voided: Arc<Stripes>) -> Self {
        Self {
            voided,
            trust: Trust::new(Moment::now()),
            shift: Shift::new(),
            pending: Pending::default(),
            counted: Mutex::new(0),
            up: AtomicBool::new(false),
            first: AtomicU8::new(UNTRIED),
            begun: Notify::new(),
            bells: Arc::default(),
            metrics: ChannelMetrics::new(),
        }
    }

    /// Starts the task, unless it runs: cheap enough for every lookup that goes to Redis. Nothing outside of a runtime.
    pub(super) fn ensure(hub: &Arc<Hub>) {
        Task::start(hub);
    }

    /// Waits until it has been alive once, `patience` at most, but not if it was tried in vain already.
    pub(super) async fn begun(&self, patience: Duration) {
        if self.first.load(Ordering::Acquire) != UNTRIED {
            return;
        }
        let mut changed = std::pin::pin!(self.begun.notified());
        changed.as_mut().enable();
        if self.first.load(Ordering::Acquire) == UNTRIED && tokio::time::timeout(patience, changed).await.is_err() {
            self.tried();
        }
    }

    fn tried(&self) {
        let _ = self.first.compare_exchange(UNTRIED, TRIED, Ordering::AcqRel, Ordering::Acquire);
        self.begun.notify_waiters();
    }

    /// Whether it is: then mirrors are right.
    pub(super) fn is_alive(&self) -> bool {
        self.notice();
        self.trust.is_alive()
    }

    fn notice(&self) {
        if self.trust.notice(Moment::now()) {
            self.voided.bump_all();
        }
    }

    /// Whether what this process's memory got with this stamp may be used without asking Redis; `bound`: for how long
    /// while the channel is lost.
    pub(super) fn trusts(&self, stamp: u64, bound: Duration) -> bool {
        if is_due() {
            self.notice();
        }
        self.trust.trusts(stamp, bound, Moment::now)
    }

    /// What a response found in Redis is to be stamped with, at most, when it is asked for now: see [`Pending::floor`].
    pub(super) fn floor(&self, key: &Key) -> u64 {
        self.pending.floor(key)
    }

    /// See [`Fleet::spread`](crate::cache::fleet::Fleet::spread). The future resolves at the first attempt's end.
    pub(super) fn spread(
        hub: &Arc<Hub>,
        purge: Purge,
        soft: bool,
    ) -> impl Future<Output = Result<(), StoreFailure>> + Send + 'static + use<> {
        let now = SystemTime::now();
        let told = is_findable(&purge).then(|| {
            let floor = hub.purges.stamp(now);
            let named = purge.clone();
            let (told, merged) = hub.channel.pending.push(purge, soft, floor);
            // Whoever looks between the caller's purge and this one reads what Redis has not forgotten yet.
            apply(hub, &named, soft, now);
            if let Some(everything) = merged {
                apply(hub, &Purge::everything(), everything.soft, now);
            }
            hub.channel.changed();
            told
        });
        Self::ensure(hub);
        let hub = Arc::downgrade(hub);
        async move {
            let Some(told) = told else { return Ok(()) };
            if let Some(hub) = hub.upgrade() {
                Self::ensure(&hub);
            }
            match told.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(kind)) => Err(StoreFailure { timed_out: kind == Kind::Timeout }),
                Err(_) => Err(StoreFailure::unavailable()),
            }
        }
    }

    /// There is something new to send, or less.
    fn changed(&self) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (*counted, self.pending.len());
        *counted = now;
        drop(counted);
        self.metrics.pending.increment(as_f64(now) - as_f64(before));
        self.bells.pending.notify_one();
    }

    /// A request has changed this URL, and Redis has been told with this token.
    pub(super) fn told(&self, url: Purge, token: u128) {
        self.pending.changed(url, token, Instant::now());
    }

    /// What was purged or changed a short time ago is sent again.
    fn repeat(hub: &Hub) {
        for (url, token) in hub.channel.pending.take_changes(Instant::now()) {
            let now = SystemTime::now();
            hub.channel.pending.again(url.clone(), token, hub.purges.stamp(now));
            // What Redis has forgotten is not to be found until it is told.
            apply(hub, &url, false, now);
        }
        if let Some(everything) = hub.channel.pending.repeat(Instant::now()) {
            apply(hub, &Purge::everything(), everything.soft, SystemTime::now());
        }
        hub.channel.changed();
    }

    /// What was forwarded while nobody listened may have been purged since: nobody else gets that.
    fn rise(&self) {
        if self.first.swap(BEGUN, Ordering::AcqRel) == BEGUN {
            self.voided.bump_all();
        }
        self.begun.notify_waiters();
        if !self.up.swap(true, Ordering::AcqRel) {
            self.metrics.up.increment(1.0);
        }
    }

    fn fall(&self) {
        self.voided.bump_all();
        if self.up.swap(false, Ordering::AcqRel) {
            self.metrics.up.decrement(1.0);
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.fall();
        self.metrics.pending.decrement(as_f64(*self.counted.get_mut().unwrap_or_else(PoisonError::into_inner)));
        self.bells.gone.notify_one();
    }
}

/// Whether this use is one of those.
fn is_due() -> bool {
    thread_local! {
        static USE: Cell<u8> = const { Cell::new(0) };
    }
    let number = USE.get();
    USE.set((number + 1) % USES);
    number == 0
}

/// Makes a purge count in this process, for all that was looked up or forwarded before. What is mirrored has to know
/// of it already.
pub(super) fn apply(hub: &Hub, purge: &Purge, soft: bool, now: SystemTime) {
    hub.touched.bump_all();
    hub.purges.purge(purge, soft, now);
    if let (What::Everything, false, Some(memory)) = (&purge.0, soft, hub.memory.get()) {
        memory.clear();
    }
}

#[allow(clippy::cast_precision_loss, reason = "a bounded number")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

/// 100 ms, doubling up to 1 s, half of it random. `jitter` is any number, evenly distributed.
fn pause(attempt: u32, jitter: u64) -> Duration {
    let half = 50_000 << attempt.min(4);
    let half = half.min(500_000);
    Duration::from_micros(half + jitter % (half + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Several stores of a process may be used in turns.
    #[test]
    fn each_of_a_few_stores_reads_the_clock_in_time() {
        for stores in 1..usize::from(USES) {
            let mut due = vec![false; stores];
            for number in 0..stores * usize::from(USES) {
                due[number % stores] |= is_due();
            }
            assert!(due.iter().all(|due| *due), "{due:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_second() {
        let longest = [0, 1, 2, 3, 4, 9, u32::MAX].map(|attempt| {
            let half = pause(attempt, 0);
            let longest = pause(attempt, u64::try_from(half.as_micros()).unwrap());
            assert_eq!(longest, 2 * half);
            longest.as_millis()
        });
        assert_eq!(longest, [100, 200, 400, 800, 1000, 1000, 1000]);
    }
}
