//! What time it is: nanoseconds since the limit was built.
//!
//! Reading the clock costs more than charging a client. On Linux the kernel also keeps the time of its last tick
//! (`CLOCK_MONOTONIC_COARSE`), which costs a third of that, and is behind by at most a resolution: 1 to 10 ms.
//!
//! 1. The coarse time only ever admits. A debt is never smaller at an earlier time, so what is admitted at the time of the
//!    last tick would be admitted now; and what is refused at it is asked again at the exact time. So refusals, and how
//!    long they tell clients to wait, are exact.
//! 2. A charge that begins at the time of the last tick is paid a resolution early. The time that a limit sees is within a
//!    resolution of the exact one, always, so errors do not add up: in any stretch of time a client gets at most
//!    `burst + rate × (time + resolution)`, and in the long run exactly its rate.
//! 3. The coarse time is used only where a resolution is at most a 64th of what it takes to regain a burst, for every quota
//!    of the layer: then 2. is less than a 64th of a burst. However many requests one tick brings, they are fewer than a
//!    client may send at once anyway. A quota that is set later, and is finer, ends it.
//! 4. With Redis the exact time is used: next to a round trip it costs nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::coarse::Coarse;
use super::quota::Quota;

/// A monotonic clock, read once per request.
#[derive(Clone)]
pub(crate) enum Time {
    Exact(Instant),
    Coarse(Arc<Coarse>),
    /// The application's, for tests.
    Given {
        start: Duration,
        read: Arc<dyn Fn() -> Duration + Send + Sync>,
    },
}

impl Time {
    pub(crate) fn start() -> Self {
        Self::Exact(Instant::now())
    }

    /// `read` counts from any moment: the time since 1970 is more than tables can count to.
    pub(crate) fn given(read: Arc<dyn Fn() -> Duration + Send + Sync>) -> Self {
        Self::Given { start: read(), read }
    }

    /// Exact enough for these quotas.
    pub(crate) fn start_for<'a>(quotas: impl IntoIterator<Item = &'a Quota>) -> Self {
        match Coarse::start() {
            Some(coarse) if quotas.into_iter().all(|quota| coarse.suits(quota)) => Self::Coarse(Arc::new(coarse)),
            _ => Self::start(),
        }
    }

    /// To decide by. What is refused at this time is to be asked again at [`exactly`](Self::exactly).
    pub(crate) fn now(&self) -> u64 {
        match self {
            Self::Coarse(coarse) => coarse.now(),
            Self::Exact(_) | Self::Given { .. } => self.exactly(),
        }
    }

    pub(crate) fn is_coarse(&self) -> bool {
        matches!(self, Self::Coarse(_))
    }

    pub(crate) fn exactly(&self) -> u64 {
        match self {
            Self::Exact(start) => nanos(start.elapsed()),
            Self::Coarse(coarse) => coarse.exactly(),
            Self::Given { start, read } => nanos(read().saturating_sub(*start)),
        }
    }

    /// A quota that was not known at the start.
    pub(crate) fn suit(&self, quota: &Quota) {
        if let Self::Coarse(coarse) = self {
            coarse.suit(quota);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact(_) => "exact",
            Self::Coarse(_) => "coarse",
            Self::Given { .. } => "given",
        })
    }
}

#[cfg(target_os = "linux")]
mod coarse {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

    use super::Quota;

    /// What regains a burst takes at least so many resolutions.
    const RESOLUTIONS: u128 = 64;
    const COARSEST_NANOS: u64 = 10_000_000;

    pub(crate) struct Coarse {
        start: u64,
        resolution: u64,
        /// Some quota has become too fine.
        exact: AtomicBool,
    }

    impl Coarse {
        pub(super) fn start() -> Option<Self> {
            let resolution = nanos(clock_getres(ClockId::MonotonicCoarse));
            let start = nanos(clock_gettime(ClockId::MonotonicCoarse));
            (1..=COARSEST_NANOS).contains(&resolution).then(|| Self {
                start,
                resolution,
                exact: AtomicBool::new(false),
            })
        }

        pub(super) fn suits(&self, quota: &Quota) -> bool {
            let regained = u128::from(quota.burst_size()) * quota.period_nanos() / u128::from(quota.count());
            regained >= RESOLUTIONS * u128::from(self.resolution)
        }

        pub(super) fn suit(&self, quota: &Quota) {
            if !self.suits(quota) {
                self.exact.store(true, Relaxed);
            }
        }

        pub(super) fn now(&self) -> u64 {
            if self.exact.load(Relaxed) {
                return self.exactly();
            }
            nanos(clock_gettime(ClockId::MonotonicCoarse)).saturating_sub(self.start)
        }

        pub(super) fn exactly(&self) -> u64 {
            nanos(clock_gettime(ClockId::Monotonic)).saturating_sub(self.start)
        }
    }

    fn nanos(time: Timespec) -> u64 {
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or_default())
    }
}

/// No other system has such a clock.
#[cfg(not(target_os = "linux"))]
mod coarse {
    use super::Quota;

    pub(crate) enum Coarse {}

    impl Coarse {
        pub(super) fn start() -> Option<Self> {
            None
        }

        pub(super) fn suits(&self, _: &Quota) -> bool {
            match *self {}
        }

        pub(super) fn suit(&self, _: &Quota) {
            match *self {}
        }

        pub(super) fn now(&self) -> u64 {
            match *self {}
        }

        pub(super) fn exactly(&self) -> u64 {
            match *self {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_quotas_that_take_long_to_regain_are_timed_coarsely() {
        let coarse = |quotas: &[Quota]| Time::start_for(quotas).is_coarse();
        assert!(coarse(&[Quota::per_second(1), Quota::per_second(65_536), Quota::per_minute(100).burst(20)]));
        assert!(!coarse(&[Quota::per_second(65_536).burst(60)]));
        assert!(!coarse(&[Quota::per_minute(100), Quota::per_second(1000).burst(1)]));
    }

    #[test]
    fn the_coarse_time_is_behind_by_a_resolution_at_most() {
        let time = Time::start_for([&Quota::per_minute(1)]);
        let Time::Coarse(_) = time else { panic!("{time:?}") };
        let mut behind = Vec::new();
        for _ in 0..10_000 {
            let now = time.now();
            let exactly = time.exactly();
            assert!(now <= exactly);
            behind.push(exactly - now);
        }
        // A thread may be descheduled between the two readings, but not every time.
        behind.sort_unstable();
        assert!(behind[5_000] <= 11_000_000, "{behind:?}");
    }

    #[test]
    fn a_finer_quota_ends_it() {
        let time = Time::start_for([&Quota::per_minute(1)]);
        time.suit(&Quota::per_second(10));
        let moves = |time: &Time| {
            let start = time.now();
            let read = (0..1_000).map(|_| time.now()).collect::<Vec<_>>();
            read.iter().filter(|now| **now > start).count()
        };
        assert!(moves(&time) < 1_000);
        time.suit(&Quota::per_second(1000).burst(1));
        assert_eq!(moves(&time), 1_000);
    }
}
