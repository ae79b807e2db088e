//! Which request each thread is polling, so that the sampler can name one that never returns.
//!
//! Every poll passes here twice, so a thread only counts: its number is odd while it polls. That the same poll goes on
//! is for the sampler to notice. The route is handed over when it is another than that of the last poll.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::scope::Route;

/// A poll that has lasted this long is named while it still lasts.
const STUCK: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Seat {
    /// Only its thread writes it. Odd while a request is being polled.
    turn: AtomicU64,
    route: Mutex<Route>,
}

/// A thread's own side of its seat.
#[derive(Default)]
struct Sitter {
    seat: Arc<Seat>,
    /// Where the name of the seat's route stands. The seat owns the name, so no other can take its place.
    name: Cell<Option<(usize, usize)>>,
}

/// The sampler's side: what it saw when it last looked.
struct Seen {
    seat: Weak<Seat>,
    turn: u64,
    since: Instant,
    named: bool,
}

/// One seat per thread that has polled a request and still lives.
static SEATS: Mutex<Vec<Seen>> = Mutex::new(Vec::new());

thread_local! {
    static SITTER: Sitter = Sitter::new();
}

pub(super) fn take(route: &Route) {
    // A thread that is being torn down has no seat any more.
    let _ = SITTER.try_with(|sitter| sitter.take(route));
}

pub(super) fn leave() {
    let _ = SITTER.try_with(|sitter| sitter.seat.turn());
}

impl Sitter {
    fn new() -> Self {
        let sitter = Self::default();
        let seen = Seen { seat: Arc::downgrade(&sitter.seat), turn: 0, since: Instant::now(), named: false };
        SEATS.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        sitter
    }

    fn take(&self, route: &Route) {
        let name = route.as_str().map(|name| (name.as_ptr().addr(), name.len()));
        if self.name.get() != name {
            *self.seat.route.lock().unwrap_or_else(PoisonError::into_inner) = route.clone();
            self.name.set(name);
        }
        self.seat.turn();
    }
}

impl Seat {
    fn turn(&self) {
        // Not an addition in one step: nobody else writes.
        self.turn.store(self.turn.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

pub(super) fn warn_of_stuck(now: Instant) {
    for (route, age) in find_stuck(now) {
        tracing::warn!(
            route = route.as_str().unwrap_or("unknown"),
            blocked_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            "a request is holding the event loop"
        );
    }
}

fn find_stuck(now: Instant) -> Vec<(Route, Duration)> {
    let mut found = Vec::new();
    SEATS.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|seen| {
        let seat = seen.seat.upgrade();
        found.extend(seat.as_deref().and_then(|seat| seen.look(seat, now)));
        seat.is_some()
    });
    found
}

impl Seen {
    /// The request that has just been found stuck, and for how long it has been seen; each is found once.
    fn look(&mut self, seat: &Seat, now: Instant) -> Option<(Route, Duration)> {
        let turn = seat.turn.load(Ordering::Acquire);
        if turn != self.turn {
            (self.turn, self.since, self.named) = (turn, now, false);
        }
        let age = now.saturating_duration_since(self.since);
        if turn.is_multiple_of(2) || self.named || age < STUCK {
            return None;
        }
        let route = seat.route.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // If it has just ended, the route may be the next one's.
        self.named = seat.turn.load(Ordering::Acquire) == turn;
        self.named.then_some((route, age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, now: Instant) -> usize {
        find_stuck(now).iter().filter(|(route, _)| route.as_str() == Some(name)).count()
    }

    #[test]
    fn a_stuck_request_is_named_once_while_it_is_stuck() {
        let start = Instant::now();
        let names = |name, ms| found(name, start + Duration::from_millis(ms));
        take(&Route::Named("stuck here"));
        assert_eq!([0, 900, 1000, 2000].map(|ms| names("stuck here", ms)), [0, 0, 1, 0]);
        leave();
        assert_eq!([3000, 5000].map(|ms| names("stuck here", ms)), [0, 0], "nobody is there");
        for name in ["stuck again", "stuck here"] {
            take(&Route::Named(name));
            assert_eq!([5000, 6000].map(|ms| names(name, ms)), [0, 1]);
            leave();
        }
    }
}
