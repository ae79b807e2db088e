//! Who held the event loop: every poll of a request is timed, and a long one is blamed on its route.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::metrics;
use super::readings::{HELD, Readings};
#[cfg(feature = "tracing")]
use super::seat;
use crate::scope::{Route, Watch, on_event_loop};

/// Polls shorter than this go unnoticed, unless configured otherwise.
const THRESHOLD: Duration = Duration::from_millis(20);

/// At most this many routes are told apart; further ones are counted as `other`.
const MAX_ROUTES: usize = 256;

/// At most one line about long polls in this time.
const LOG_PERIOD: Duration = Duration::from_secs(10);

thread_local! {
    /// Whether a poll is being timed on this thread: nested ones belong to it.
    static TIMED: Cell<bool> = const { Cell::new(false) };
}

/// Times the polls of one layer's requests.
#[derive(Debug)]
pub(super) struct LongPolls {
    readings: Arc<Readings>,
    threshold: Duration,
    routes: Mutex<HashSet<Box<str>>>,
    log: LogGate,
}

impl LongPolls {
    pub(super) fn new(readings: Arc<Readings>) -> Self {
        Self { readings, threshold: THRESHOLD, routes: Mutex::default(), log: LogGate::default() }
    }

    pub(super) fn over(&self, threshold: Duration) -> Self {
        Self { threshold, ..Self::new(self.readings.clone()) }
    }

    pub(super) fn readings(&self) -> &Arc<Readings> {
        &self.readings
    }

    /// Runs one poll. If it panics, it is counted all the same and the panic passes through.
    #[inline]
    pub(super) fn time<R>(&self, route: &Route, poll: impl FnOnce() -> R) -> R {
        let _timed = (on_event_loop() && !TIMED.get()).then(|| Timed::begin(self, route));
        poll()
    }

    fn blame(&self, route: &str, took: Duration) {
        metrics::long_poll(self.label(route));
        if let Some(_unlogged) = self.log.pass() {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                route,
                blocked_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                not_logged_before = _unlogged,
                "a request held the event loop: move its work to an OffloadPool"
            );
        }
        let _ = took;
    }

    fn label<'a>(&self, route: &'a str) -> &'a str {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if routes.contains(route) {
            route
        } else if routes.len() < MAX_ROUTES {
            routes.insert(route.into());
            route
        } else {
            "other"
        }
    }
}

impl Watch for LongPolls {
    fn observe(&self, route: &Route, poll: &mut dyn FnMut()) {
        self.time(route, poll);
    }
}

/// A poll that is being timed; ends when dropped.
struct Timed<'a> {
    polls: &'a LongPolls,
    route: &'a Route,
    since: Instant,
}

impl<'a> Timed<'a> {
    fn begin(polls: &'a LongPolls, route: &'a Route) -> Self {
        TIMED.set(true);
        #[cfg(feature = "tracing")]
        seat::take(route);
        Self { polls, route, since: Instant::now() }
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let end = Instant::now();
        TIMED.set(false);
        #[cfg(feature = "tracing")]
        seat::leave();
        let took = end - self.since;
        if took >= HELD {
            self.polls.readings.held(self.since, end);
        }
        if took >= self.polls.threshold {
            self.polls.blame(self.route.as_str().unwrap_or("unknown"), took);
        }
    }
}

/// Lets one line through per [`LOG_PERIOD`].
#[derive(Debug, Default)]
struct LogGate {
    /// When the next line may pass.
    next: Mutex<Option<Instant>>,
    held_back: AtomicU64,
}

impl LogGate {
    /// `Some(number held back since the last line)` if this one may pass.
    fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_some_and(|next| now < next) {
            self.held_back.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *next = Some(now + LOG_PERIOD);
        Some(self.held_back.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "a long poll is what is tested")]
    fn hold(polls: &LongPolls, route: &'static str) {
        polls.time(&Route::Named(route), || std::thread::sleep(Duration::from_millis(3)));
    }

    fn seen(polls: &LongPolls) -> Vec<String> {
        polls.routes.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_thread_that_left_the_event_loop_is_exempt() {
        let polls = LongPolls::new(Arc::default()).over(Duration::from_millis(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                crate::scope::leave_event_loop();
                hold(&polls, "off");
            });
            scope.spawn(|| hold(&polls, "on"));
        });
        assert_eq!(seen(&polls), ["on"]);
    }

    #[test]
    fn a_request_that_moved_is_timed_there_through_its_scope() {
        let polls = Arc::new(LongPolls::new(Arc::default()).over(Duration::from_millis(2)));
        let mut extensions = http::Extensions::new();
        extensions.insert(crate::scope::NamedRoute("moved"));
        extensions.insert(crate::scope::Watcher(polls.clone()));
        let scope = crate::scope::Scope::capture(&extensions);
        // On its own thread, inside the layer's own timing, it is not counted again.
        polls.time(&Route::Named("outer"), || scope.enter(|| hold(&polls, "inner")));
        #[allow(clippy::disallowed_methods, reason = "a long poll is what is tested")]
        std::thread::spawn(move || scope.enter(|| std::thread::sleep(Duration::from_millis(3)))).join().unwrap();
        let mut seen = seen(&polls);
        seen.sort();
        assert_eq!(seen, ["moved", "outer"]);
    }

    #[test]
    fn log_lines_are_rationed() {
        let gate = LogGate::default();
        assert_eq!(gate.pass(), Some(0));
        assert_eq!((gate.pass(), gate.pass()), (None, None));
        *gate.next.lock().unwrap() = Some(Instant::now());
        assert_eq!(gate.pass(), Some(2));
    }
}
