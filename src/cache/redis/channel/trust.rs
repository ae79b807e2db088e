//! Whether memory may be used without asking: three numbers that every hit reads, and one task writes. Pure: moments are
//! arguments.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// So long after a heartbeat that has come back was sent, the channel counts as lost: three heartbeats.
pub(super) const SILENCE: Duration = Duration::from_millis(1500);

/// A moment by two clocks, in microseconds: stamps follow the wall's, which may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    wall: u64,
    steady: u64,
}

impl Moment {
    pub(super) fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall: micros(wall), steady: micros(START.elapsed()) }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

const LOST: u64 = u64::MAX;

/// Stamps may be ahead of the clock by so much, in microseconds: there may be more of them than it counts.
const AHEAD: u64 = 10_000;

pub(super) struct Trust {
    /// What was stamped later is right. [`LOST`]: the channel is.
    alive_since: AtomicU64,
    /// The same, of the last time that it was alive.
    since: AtomicU64,
    /// When the last heartbeat was sent that has come back, by both clocks: while it is lost, these stand still.
    wall: AtomicU64,
    steady: AtomicU64,
    /// Changes of state, one after the other.
    changing: Mutex<()>,
}

impl Trust {
    /// Lost, as of now.
    pub(super) fn new(now: Moment) -> Self {
        Self {
            alive_since: AtomicU64::new(LOST),
            since: AtomicU64::new(0),
            wall: AtomicU64::new(now.wall),
            steady: AtomicU64::new(now.steady),
            changing: Mutex::new(()),
        }
    }

    /// Whether what is stamped so may be used. `bound`: for how long while the channel is lost; `now` is asked only then.
    pub(super) fn trusts(&self, stamp: u64, bound: Duration, now: impl FnOnce() -> Moment) -> bool {
        let alive_since = self.alive_since.load(Ordering::Acquire);
        stamp > alive_since || (alive_since == LOST && self.trusts_still(stamp, bound, now()))
    }

    #[cold]
    fn trusts_still(&self, stamp: u64, bound: Duration, now: Moment) -> bool {
        let (wall, steady) = (self.wall.load(Ordering::Acquire), self.steady.load(Ordering::Acquire));
        // If it was alive and lost again meanwhile, these are later than those are.
        let since = self.since.load(Ordering::Acquire);
        // Where one clock was set, the other tells.
        let now = now.wall.max(wall.saturating_add(now.steady.saturating_sub(steady)));
        // What was stamped by a clock that was ahead may be as old as the last proof.
        let read = if stamp > now.saturating_add(AHEAD) { wall } else { stamp.max(wall) };
        stamp > since && now < read.saturating_add(micros(bound))
    }

    pub(super) fn is_alive(&self) -> bool {
        self.alive_since.load(Ordering::Acquire) != LOST
    }

    /// Finds out that the channel is lost where nobody has listened for too long, by either clock: the steady one stands
    /// still while the machine is suspended. Whether this is when it was lost.
    pub(super) fn notice(&self, now: Moment) -> bool {
        let since = |proof: &AtomicU64, now: u64| now.saturating_sub(proof.load(Ordering::Acquire));
        let silent = || since(&self.steady, now.steady).max(since(&self.wall, now.wall)) > micros(SILENCE);
        if !self.is_alive() || !silent() {
            return false;
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        silent() && self.alive_since.swap(LOST, Ordering::AcqRel) != LOST
    }

    /// A heartbeat that was sent then has come back. `false`: the channel was lost meanwhile.
    pub(super) fn prove(&self, sent: Moment) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = self.is_alive();
        if alive {
            self.set(sent);
        }
        alive
    }

    /// It is alive. `since`: a stamp of now.
    pub(super) fn rise(&self, since: u64, sent: Moment) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.since.store(since, Ordering::Release);
        self.set(sent);
        self.alive_since.store(since.min(LOST - 1), Ordering::Release);
    }

    /// It is lost, as of the last proof.
    pub(super) fn fall(&self) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.alive_since.store(LOST, Ordering::Release);
    }

    fn set(&self, sent: Moment) {
        self.steady.store(sent.steady, Ordering::Release);
        self.wall.store(sent.wall, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(5);
    const SECOND: u64 = 1_000_000;

    /// So many seconds after the beginning, by both clocks.
    fn at(seconds: u64) -> Moment {
        Moment { wall: (1000 + seconds) * SECOND, steady: seconds * SECOND }
    }

    fn trusts(trust: &Trust, stamp: Moment, now: Moment) -> bool {
        trust.trusts(stamp.wall, BOUND, || now)
    }

    #[test]
    fn before_it_was_ever_alive_everything_is_good_for_the_bound() {
        let trust = Trust::new(at(0));
        assert!(!trust.is_alive() && !trust.notice(at(9)) && !trust.prove(at(9)));
        assert!(trusts(&trust, at(7), at(11)) && !trusts(&trust, at(7), at(12)));
    }

    #[test]
    fn while_it_is_alive_what_came_after_the_subscription_is_good() {
        let trust = Trust::new(at(0));
        trust.rise(at(10).wall, at(11));
        for (stamp, good) in [(at(9), false), (at(10), false), (at(11), true), (at(99), true)] {
            assert_eq!(trust.trusts(stamp.wall, BOUND, || panic!("no clock is read")), good);
        }
        assert!(trust.is_alive() && !trust.notice(at(12)));
    }

    #[test]
    fn once_it_is_lost_the_bound_counts_from_the_last_proof_or_from_the_reading() {
        let trust = Trust::new(at(0));
        trust.rise(at(10).wall, at(11));
        assert!(trust.prove(at(20)));
        trust.fall();
        assert!(!trust.prove(at(21)), "lost is lost");
        for (stamp, now, good) in [
            (at(15), at(24), true),
            (at(15), at(25), false),
            (at(10), at(22), false),
            (at(23), at(27), true),
            (at(23), at(28), false),
        ] {
            assert_eq!(trusts(&trust, stamp, now), good, "{stamp:?} {now:?}");
        }
        trust.rise(at(30).wall, at(31));
        assert!(!trusts(&trust, at(15), at(31)) && !trusts(&trust, at(23), at(31)) && trusts(&trust, at(31), at(31)));
    }

    #[test]
    fn who_has_not_looked_for_too_long_finds_out_at_the_next_look() {
        let trust = Trust::new(at(0));
        trust.rise(at(10).wall, at(11));
        assert!(!trust.notice(at(12)) && trusts(&trust, at(11), at(60)), "a use that reads no clock");
        assert!(trust.notice(at(60)) && !trust.is_alive() && !trust.notice(at(61)), "once");
        assert!(!trusts(&trust, at(11), at(60)), "as of the last proof");
        assert!(!trust.prove(at(60)), "what came back was sent before");
    }

    /// A machine that was suspended: its steady clock stood still.
    #[test]
    fn either_clock_tells_that_nobody_has_looked_for_too_long() {
        let trust = Trust::new(at(0));
        trust.rise(at(10).wall, at(10));
        let now = Moment { wall: at(3600).wall, ..at(10) };
        assert!(trust.notice(now) && !trusts(&trust, at(11), now));
        trust.rise(at(10).wall, at(10));
        assert!(!trust.notice(Moment { wall: at(0).wall, ..at(10) }), "set back, it tells nothing");
    }

    #[test]
    fn a_stamp_of_a_clock_that_was_ahead_does_not_lengthen_the_bound() {
        let trust = Trust::new(at(0));
        trust.rise(at(10).wall, at(10));
        trust.fall();
        let ahead = Moment { wall: at(3600).wall, ..at(11) };
        assert!(trusts(&trust, ahead, at(14)) && !trusts(&trust, ahead, at(16)));
    }

    #[test]
    fn a_clock_that_is_set_does_not_lengthen_the_bound() {
        let trust = Trust::new(at(0));
        trust.rise(at(10).wall, at(10));
        trust.fall();
        let (back, forth) = (
            |now: u64| Moment { wall: at(0).wall, ..at(now) },
            |now: u64| Moment { wall: at(now + 3600).wall, ..at(now) },
        );
        assert!(trusts(&trust, at(11), back(14)) && !trusts(&trust, at(11), back(16)));
        assert!(!trusts(&trust, at(11), forth(12)), "earlier, if anything");
        assert!(trusts(&trust, forth(12), forth(16)) && !trusts(&trust, forth(12), forth(17)));
    }
}
