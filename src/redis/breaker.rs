//! When to stop asking. Pure: `now` is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// So many operations in a row without an answer open the breaker.
const IN_A_ROW: u32 = 5;
/// Or half of the operations of one window, once there are this many.
const ENOUGH: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);
/// So many callers gone without a single answer open it, once there has been none for a whole budget.
const ABANDONED: u32 = 64;
/// So many open it at once: their commands may all still lie in the connection.
const ABANDONED_AT_ONCE: u32 = 1024;

/// The breaker of one server.
///
/// Replies on a connection come in order: one reply proves that everything sent before it was answered. So the
/// operations that timed out since the last reply are just those that are still in flight.
#[derive(Debug)]
pub(super) struct Breaker {
    open: bool,
    in_a_row: u32,
    window: Instant,
    answered: u32,
    failed: u32,
    /// Operations dropped in flight since the last answer.
    abandoned: u32,
    /// When the first of them was begun.
    silent: Option<Instant>,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        Self { open: false, in_a_row: 0, window: now, answered: 0, failed: 0, abandoned: 0, silent: None }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Notes whether an operation was answered at all (a refusal is an answer). True if that opened the breaker.
    pub(super) fn record(&mut self, now: Instant, answered: bool) -> bool {
        if self.open {
            // Sent before it opened. The probe decides, not a straggler.
            return false;
        }
        if now.saturating_duration_since(self.window) >= WINDOW {
            (self.window, self.answered, self.failed) = (now, 0, 0);
        }
        if answered {
            (self.in_a_row, self.abandoned, self.silent) = (0, 0, None);
            self.answered = self.answered.saturating_add(1);
            return false;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.failed = self.failed.saturating_add(1);
        let enough = self.failed.saturating_add(self.answered) >= ENOUGH;
        self.open = self.in_a_row >= IN_A_ROW || (enough && self.failed >= self.answered);
        self.open
    }

    /// Notes that nobody waits any longer for the answer to an operation begun at `begun`. True if that opened the
    /// breaker.
    ///
    /// That says little about the server: a client that leaves takes many operations along, however fast the server
    /// is. So the silence must also last, for `budget`.
    pub(super) fn abandon(&mut self, begun: Instant, now: Instant, budget: Duration) -> bool {
        if self.open {
            return false;
        }
        self.abandoned = self.abandoned.saturating_add(1);
        let silent = now.saturating_duration_since(*self.silent.get_or_insert(begun));
        self.open = (self.abandoned >= ABANDONED && silent >= budget) || self.abandoned >= ABANDONED_AT_ONCE;
        self.open
    }

    /// Opens it: the server is known to be away. True if it was closed.
    pub(super) fn trip(&mut self) -> bool {
        !std::mem::replace(&mut self.open, true)
    }

    /// The server answered a probe. True if the breaker was open.
    pub(super) fn close(&mut self, now: Instant) -> bool {
        if !self.open {
            return false;
        }
        *self = Self::new(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `+` answered, `-` not, `.` a second passes.
    fn opens(events: &str) -> Option<usize> {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now);
        events.chars().position(|event| match event {
            '.' => {
                now += WINDOW;
                false
            }
            event => breaker.record(now, event == '+'),
        })
    }

    #[test]
    fn opens_on_failures_in_a_row_and_on_their_share() {
        for (events, at) in [
            ("-----", Some(4)),
            ("----+----+----", None),
            ("+++++-----", Some(9)),
            (".-.-.-.-.-", Some(9)),
            ("-+-+-+-+-+-+-+-+-+-+-+", Some(20)),
            ("+-+-+-+-+-+-+-+-+-+-", Some(19)),
            ("++-++-++-++-++-++-++-++-++-++-++-++-++-", None),
            ("+-+-+-+-+-.+-+-+-+-+-.+-+-+-+-+-", None),
        ] {
            assert_eq!(opens(events), at, "{events}");
        }
    }

    #[test]
    fn only_a_probe_closes_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        assert!(breaker.trip() && !breaker.trip() && breaker.is_open());
        assert!(!breaker.record(now, true) && breaker.is_open());
        assert!(breaker.close(now) && !breaker.close(now) && !breaker.is_open());
        assert!((0..4).all(|_| !breaker.record(now, false)), "it starts afresh");
        assert!(breaker.record(now, false));
    }

    /// `clients` operations at a time, each abandoned after 10 ms. How many are when the breaker opens.
    fn abandoned_until_open(clients: u32, answer_after_each: bool) -> Option<u32> {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now);
        (1..=4000).find(|n| {
            let begun = now - Duration::from_millis(10);
            let opened = breaker.abandon(begun, now, Duration::from_millis(20));
            if n % clients == 0 {
                now += Duration::from_millis(10);
                if answer_after_each {
                    assert!(!breaker.record(now, true));
                }
            }
            opened
        })
    }

    #[test]
    fn opens_on_abandoned_operations() {
        for (clients, at) in [(1, 64), (10, 64), (64, 65), (512, 513), (4000, 1024)] {
            assert_eq!(abandoned_until_open(clients, false), Some(at), "{clients}");
        }
        for (clients, at) in [(1, None), (1000, None), (4000, Some(1024))] {
            assert_eq!(abandoned_until_open(clients, true), at, "{clients}, with an answer in between");
        }
    }

    proptest! {
        /// Whatever happens: four failures out of ten never open it if no five come in a row, five in a row always do.
        #[test]
        fn counts_right(events in prop::collection::vec((0u64..300, any::<bool>()), 0..200)) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(now);
            let (mut row, mut failed, mut total) = (0, 0usize, 0usize);
            for (passed, answered) in events {
                now += Duration::from_millis(passed);
                row = if answered { 0 } else { row + 1 };
                failed += usize::from(!answered);
                total += 1;
                let opened = breaker.record(now, answered);
                prop_assert_eq!(opened, breaker.is_open());
                prop_assert!(row < 5 || opened, "five in a row open it");
                prop_assert!(!opened || !answered, "an answer never opens it");
                prop_assert!(!opened || row == 5 || (failed >= 10 && total >= 20));
                if opened {
                    prop_assert!(breaker.close(now));
                    (row, failed, total) = (0, 0, 0);
                }
            }
        }
    }
}
