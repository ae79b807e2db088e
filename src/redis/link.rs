//! What the clones of a handle share: the lane, the breakers, and who mends them.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{RedisError, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::breaker::Breaker;
use super::error::{Cause, Kind, StoreError, Verdict};
use super::lane::{Connection, Lane};
use super::metrics::Metrics;
use super::nodes::{self, Nodes};
use super::repair::{self, Shift};
use super::script::Work;
use super::source::Source;
use super::within::Within;

/// More operations at once are refused. At 20 ms each, this is 200 000 a second.
const MAX_IN_FLIGHT: usize = 4096;
/// A lane that leads to the wrong server is replaced, but not more often: another one may lead there too.
const MISLED_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Link {
    pub(super) source: Source,
    pub(super) metrics: Metrics,
    /// There is a lane, or a breaker has opened, or the repair was dropped.
    pub(super) changed: Notify,
    in_flight: AtomicUsize,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) lane: Option<Arc<Lane>>,
    pub(super) nodes: Nodes,
    pub(super) backoff: Backoff,
    pub(super) shift: Option<Shift>,
    pub(super) shifts: u64,
    /// Why the breaker opened.
    pub(super) cause: Option<Cause>,
}

/// One operation whose caller waits. Dropped before it is disarmed, the caller has gone.
struct Waiting<'a> {
    link: &'a Link,
    node: usize,
    begun: Instant,
    budget: Duration,
}

impl Waiting<'_> {
    fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.link.abandon(self.node, self.begun, self.budget);
    }
}

/// One operation under way.
struct Slot<'a>(&'a AtomicUsize);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    pub(super) fn new(source: Source) -> Self {
        let state = State {
            lane: None,
            nodes: Nodes::single(Instant::now()),
            backoff: Backoff::default(),
            shift: None,
            shifts: 0,
            cause: None,
        };
        Self {
            source,
            metrics: Metrics::new(),
            changed: Notify::new(),
            in_flight: AtomicUsize::new(0),
            state: Mutex::new(state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn run(self: &Arc<Self>, work: Work<'_>, budget: Duration) -> Result<Value, StoreError> {
        let result = self.attempt(work, budget).await;
        self.metrics.count(result.as_ref().err().map(StoreError::kind));
        result
    }

    async fn attempt(self: &Arc<Self>, work: Work<'_>, budget: Duration) -> Result<Value, StoreError> {
        let _slot = self.reserve()?;
        let (node, lane) = match self.admit(&work, budget) {
            Ok(admitted) => admitted,
            Err(open) => {
                // Whoever asks in a loop must not keep the repair from running.
                tokio::task::consume_budget().await;
                return Err(open);
            }
        };
        let begun = Instant::now();
        let waiting = Waiting { link: self, node, begun, budget };
        // Pinned here, it is not moved again: it holds all that the client needs.
        let exchange = pin!(async {
            let lane = match lane {
                Some(lane) => lane,
                None => self.await_lane(node, budget).await?,
            };
            let reply = work.perform(&lane.connection).await;
            Ok((lane, reply))
        });
        let outcome = Within::since(begun, budget, exchange).await;
        waiting.disarm();
        let ended = Instant::now();
        self.metrics.seconds.record(ended.saturating_duration_since(begun).as_secs_f64());
        match outcome {
            Some(Ok((_, Ok(value)))) => {
                self.note(node, None, ended, budget);
                Ok(value)
            }
            Some(Ok((lane, Err(error)))) => Err(self.judge(node, &lane, &error, ended, budget)),
            Some(Err(unconnected)) => Err(unconnected),
            None => {
                self.note(node, Some(Cause::new("timed out")), ended, budget);
                Err(StoreError::new(Kind::Timeout, None))
            }
        }
    }

    fn reserve(&self) -> Result<Slot<'_>, StoreError> {
        let slot = Slot(&self.in_flight);
        if self.in_flight.fetch_add(1, Ordering::Relaxed) < MAX_IN_FLIGHT {
            return Ok(slot);
        }
        Err(StoreError::new(Kind::Unavailable, Some(Cause::new("too many operations under way"))))
    }

    /// Whom the operation asks, and on which lane, if there is one.
    fn admit(self: &Arc<Self>, work: &Work<'_>, budget: Duration) -> Result<(usize, Option<Arc<Lane>>), StoreError> {
        let mut state = self.state();
        let node = work.node(&state.nodes);
        if state.nodes.breaker(node).is_some_and(|breaker| breaker.is_open()) {
            let cause = state.cause.clone();
            drop(state);
            repair::start(self, budget);
            return Err(StoreError::new(Kind::Open, cause));
        }
        if state.lane.as_ref().is_some_and(|lane| lane.is_orphaned()) {
            state.lane = None;
            self.metrics.replacements.increment(1);
        }
        Ok((node, state.lane.clone()))
    }

    async fn await_lane(self: &Arc<Self>, node: usize, budget: Duration) -> Result<Arc<Lane>, StoreError> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(lane) = &state.lane {
                    return Ok(Arc::clone(lane));
                }
                if state.nodes.breaker(node).is_some_and(|breaker| breaker.is_open()) {
                    return Err(StoreError::new(Kind::Unavailable, state.cause.clone()));
                }
            }
            repair::start(self, budget);
            changed.await;
        }
    }

    fn judge(
        self: &Arc<Self>,
        node: usize,
        lane: &Arc<Lane>,
        error: &RedisError,
        now: Instant,
        budget: Duration,
    ) -> StoreError {
        let verdict = Verdict::from(error);
        let cause = Cause::from(error);
        // A cluster connection mends its parts by itself; giving it up would cost the other masters' requests.
        let single = matches!(lane.connection, Connection::Single(_));
        if single && (verdict.broken || (verdict.misled && lane.since.elapsed() >= MISLED_AGAIN)) {
            self.give_up(lane);
            repair::start(self, budget);
        }
        self.note(node, (verdict.kind != Kind::Refused).then(|| cause.clone()), now, budget);
        StoreError::new(verdict.kind, Some(cause))
    }

    /// Takes a lane out of use, unless another has taken its place.
    pub(super) fn give_up(&self, lane: &Arc<Lane>) {
        lane.detach();
        let mut state = self.state();
        if state.lane.as_ref().is_some_and(|current| Arc::ptr_eq(current, lane)) {
            state.lane = None;
            self.metrics.replacements.increment(1);
        }
    }

    /// Tells the breaker of `node` how an operation went: `failure` is why there was no answer.
    fn note(self: &Arc<Self>, node: usize, failure: Option<Cause>, now: Instant, budget: Duration) {
        let mut state = self.state();
        let opened = state.nodes.breaker(node).is_some_and(|breaker| breaker.record(now, failure.is_none()));
        if !opened {
            return;
        }
        state.cause = failure;
        let cause = state.cause.clone();
        drop(state);
        self.opened(1, cause.as_ref());
        repair::start(self, budget);
    }

    /// Whoever is refused next starts the repair: here, there may be no runtime any more.
    fn abandon(&self, node: usize, begun: Instant, budget: Duration) {
        let mut state = self.state();
        let now = Instant::now();
        if state.nodes.breaker(node).is_some_and(|breaker| breaker.abandon(begun, now, budget)) {
            let cause = Some(Cause::new("no answer while callers waited"));
            state.cause.clone_from(&cause);
            drop(state);
            self.opened(1, cause.as_ref());
        }
    }

    /// There is no server to ask, and will not be for a while: opens every breaker.
    pub(super) fn trip(&self, cause: Option<Cause>) {
        let mut state = self.state();
        let tripped = state.nodes.all().map(Breaker::trip).filter(|tripped| *tripped).count();
        let cause = cause.or(state.cause.take());
        state.cause.clone_from(&cause);
        drop(state);
        if tripped > 0 {
            self.opened(tripped, cause.as_ref());
        }
    }

    /// Never under the lock: a log or a recorder may be slow.
    fn opened(&self, count: usize, cause: Option<&Cause>) {
        self.metrics.breaker_open.increment(as_f64(count));
        self.changed.notify_waiters();
        #[cfg(feature = "tracing")]
        tracing::warn!(
            cause = cause.map_or("unknown", Cause::as_str),
            "Redis does not answer: it is not asked until a probe succeeds"
        );
        let _ = cause;
    }

    /// The server answered a probe.
    pub(super) fn close(&self, node: usize) {
        let now = Instant::now();
        let mut state = self.state();
        if state.nodes.breaker(node).is_some_and(|breaker| breaker.close(now)) {
            state.backoff.end(now);
            drop(state);
            self.metrics.breaker_open.decrement(1.0);
            #[cfg(feature = "tracing")]
            tracing::info!("Redis answers again");
        }
    }

    /// Takes over the map of a cluster, a reply to `CLUSTER SLOTS`.
    pub(super) fn adopt(&self, slots: &Value) {
        let Some(map) = nodes::parse(slots) else { return };
        let mut state = self.state();
        let before = state.nodes.open_count();
        state.nodes.adopt(map, Instant::now());
        let after = state.nodes.open_count();
        drop(state);
        self.metrics.breaker_open.decrement(as_f64(before.saturating_sub(after)));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let open = self.state().nodes.open_count();
        if open > 0 {
            self.metrics.breaker_open.decrement(as_f64(open));
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a number of servers")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn link() -> Arc<Link> {
        Arc::new(Link::new(Source::url("redis://h").unwrap()))
    }

    /// A runtime that ends drops its tasks, and no other one is there to start anything on.
    #[test]
    fn callers_may_leave_without_a_runtime() {
        let link = link();
        let waiting = || Waiting { link: &link, node: 0, begun: Instant::now(), budget: Duration::ZERO };
        (0..2000).for_each(|_| waiting().disarm());
        assert_eq!(link.state().nodes.open_count(), 0, "they got their answers");
        (0..64).for_each(|_| drop(waiting()));
        assert_eq!(link.state().nodes.open_count(), 1);
    }

    #[cfg(feature = "tracing")]
    #[test]
    fn nothing_is_logged_under_the_lock() {
        let link = link();
        let (lines, locked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let writer = {
            let (link, lines, locked) = (Arc::clone(&link), Arc::clone(&lines), Arc::clone(&locked));
            move || {
                lines.fetch_add(1, Ordering::Relaxed);
                locked.fetch_or(link.state.try_lock().is_err(), Ordering::Relaxed);
                std::io::sink()
            }
        };
        tracing::subscriber::with_default(tracing_subscriber::fmt().with_writer(writer).finish(), || {
            link.trip(None);
            link.close(0);
            for _ in 0..64 {
                link.abandon(0, Instant::now(), Duration::ZERO);
            }
            link.close(0);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for _ in 0..5 {
                    link.note(0, Some(Cause::new("timed out")), Instant::now(), Duration::ZERO);
                }
            });
        });
        assert!(lines.load(Ordering::Relaxed) >= 5, "{lines:?}");
        assert!(!locked.load(Ordering::Relaxed));
    }

    /// The breakers of a map that is out of date are gone, and with them what the gauge said of them.
    #[cfg(feature = "metrics")]
    #[test]
    fn a_new_map_corrects_the_gauge() {
        use metrics_util::debugging::{DebugValue, DebuggingRecorder};

        let int = Value::Int;
        let master = Value::Array(vec![Value::BulkString(b"h".to_vec()), int(1)]);
        let map = Value::Array(vec![Value::Array(vec![int(0), int(16383), master])]);
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let link = link();
        metrics::with_local_recorder(&recorder, || {
            link.trip(None);
            assert_eq!(link.state().nodes.open_count(), 1);
            link.adopt(&map);
        });
        let recorded = snapshotter.snapshot().into_vec();
        let [(_, _, _, DebugValue::Gauge(level))] = &*recorded else { panic!("{recorded:?}") };
        assert_eq!(level.into_inner(), 0.0, "one up, one down");
    }
}
