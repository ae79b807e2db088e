//! A quota's own clock, whose ticks are a whole fraction of the quota's interval.

use std::time::Duration;

use super::gcra::Limit;
use super::quota::Quota;

/// Times are kept in 44 bits.
pub(crate) const TIME_BITS: u32 = 44;
pub(crate) const LAST_TICK: u64 = (1 << TIME_BITS) - 1;

/// The finest tick is 2⁻¹⁶ s, about 15 µs: 2⁴⁴ of them are 8½ years.
const MAX_TICKS_PER_SECOND: u128 = 1 << 16;
/// A debt takes at most half of the 44 bits.
const MAX_CAPACITY: u128 = 1 << (TIME_BITS - 1);

/// Counts the time since its start in ticks.
///
/// An interval is exactly 2ᵏ ticks, so no rate suffers from rounding, whatever its count and period. The power is the
/// highest with which a tick is at least 2⁻¹⁶ s and a debt fits: ticks of 15 to 31 µs, unless a full burst takes years to
/// regain. So the clock runs for at least 8½ years. After that it stands still at its last tick and everything is
/// admitted, until the process is started anew.
///
/// Requests in one tick are simultaneous. Rounding a debt's begin up and its age down would make the limiter stricter
/// than exact arithmetic by less than a tick, never more lenient, but a burst inside one tick, such as an application's
/// own test sends, would then always lose its last request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// 2^`shift` ticks per nanosecond, rounded up: fast by less than 1 ns in 292 years.
    multiplier: u64,
    shift: u32,
    ticks_per_period: u64,
    period_nanos: u64,
}

impl Clock {
    /// The clock, and the quota in its ticks.
    pub(crate) fn for_quota(quota: &Quota) -> (Self, Limit) {
        let interval = interval(quota);
        let ticks_per_period = u128::from(interval) * u128::from(quota.count());
        let (multiplier, shift) = reciprocal(ticks_per_period, quota.period_nanos());
        // At most 2⁴⁸, since a period is at most 2³² s, and below 2⁶³.
        let [ticks_per_period, period_nanos] =
            [ticks_per_period, quota.period_nanos()].map(|number| u64::try_from(number).unwrap_or(u64::MAX));
        let clock = Self { multiplier, shift, ticks_per_period, period_nanos };
        (clock, Limit { interval, capacity: interval * quota.burst_size() })
    }

    /// Whole ticks in so many nanoseconds.
    pub(crate) fn ticks(&self, nanos: u64) -> u64 {
        let ticks = (u128::from(nanos) * u128::from(self.multiplier)) >> self.shift;
        u64::try_from(ticks).unwrap_or(LAST_TICK).min(LAST_TICK)
    }

    /// The fewest ticks whose [`duration`](Self::duration) is at least this long.
    pub(crate) fn ticks_until(&self, elapsed: Duration) -> u64 {
        let Some(before) = elapsed.as_nanos().checked_sub(1) else { return 0 };
        let ticks = before.saturating_mul(self.ticks_per_period.into()) / u128::from(self.period_nanos) + 1;
        u64::try_from(ticks).unwrap_or(LAST_TICK).min(LAST_TICK)
    }

    /// At least as long as `ticks` take.
    pub(crate) fn duration(&self, ticks: u64) -> Duration {
        // Nearly always the numbers are small, and 128 bits are slow to divide.
        let nanos = match ticks.checked_mul(self.period_nanos) {
            Some(product) => product.div_ceil(self.ticks_per_period),
            None => {
                let nanos = (u128::from(ticks) * u128::from(self.period_nanos)).div_ceil(self.ticks_per_period.into());
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
        };
        Duration::from_nanos(nanos)
    }
}

/// Ticks per request. One always fits: no quota is faster than the finest tick.
fn interval(quota: &Quota) -> u64 {
    let fits = |interval: u64| {
        u128::from(interval) * u128::from(quota.burst_size()) <= MAX_CAPACITY
            && u128::from(interval) * u128::from(quota.count()) * 1_000_000_000
                <= MAX_TICKS_PER_SECOND * quota.period_nanos()
    };
    let mut interval = 1;
    while fits(interval * 2) {
        interval *= 2;
    }
    interval
}

/// `ticks / nanos`, rounded up, as a multiplier of 64 significant bits and a shift. `nanos` is below 2⁶³.
fn reciprocal(ticks: u128, nanos: u128) -> (u64, u32) {
    let mut shift = 0;
    let mut multiplier = ticks.div_ceil(nanos);
    while let Ok(fits) = u64::try_from((ticks << (shift + 1)).div_ceil(nanos)) {
        multiplier = fits.into();
        shift += 1;
    }
    (u64::try_from(multiplier).unwrap_or(u64::MAX), shift)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    const YEAR: u64 = 365 * 24 * 3600 * 1_000_000_000;

    fn any_quota() -> impl Strategy<Value = Quota> {
        (1..=u32::MAX, 1..=u32::MAX, 1_u64..1 << 61).prop_filter_map("too fast", |(count, burst, nanos)| {
            Quota::new(NonZeroU32::new(count)?, Duration::from_nanos(nanos)).ok().map(|quota| quota.burst(burst))
        })
    }

    #[test]
    fn an_interval_is_a_whole_number_of_ticks() {
        let (clock, limit) = Clock::for_quota(&Quota::per_minute(100).burst(20));
        assert_eq!(limit, Limit { interval: 1 << 15, capacity: 20 << 15 });
        assert_eq!(clock.ticks(600_000_000), 1 << 15);
        assert_eq!(clock.ticks(599_999_999), (1 << 15) - 1);
        assert_eq!(clock.duration(1 << 15), Duration::from_millis(600));
        assert_eq!(clock.duration(1), Duration::from_nanos(18_311));
    }

    #[test]
    fn the_fastest_quota_still_has_a_tick_per_request() {
        let (clock, limit) = Clock::for_quota(&Quota::per_second(65_536));
        assert_eq!(limit.interval, 1);
        assert_eq!(clock.ticks(1_000_000_000), 65_536);
    }

    proptest! {
        #[test]
        fn no_quota_wraps_within_eight_years(quota in any_quota()) {
            let (clock, limit) = Clock::for_quota(&quota);
            prop_assert!(limit.interval >= 1 && u128::from(limit.capacity) <= MAX_CAPACITY);
            prop_assert!(clock.ticks(8 * YEAR) < LAST_TICK);
        }

        #[test]
        fn ticks_are_exact_to_the_nanosecond(quota in any_quota(), nanos in 0..8 * YEAR) {
            let (clock, _) = Clock::for_quota(&quota);
            let exact = |nanos: u64| u128::from(nanos) * u128::from(clock.ticks_per_period) / u128::from(clock.period_nanos);
            let ticks = u128::from(clock.ticks(nanos));
            prop_assert!((exact(nanos)..=exact(nanos + 1)).contains(&ticks));
        }

        #[test]
        fn waiting_as_told_is_long_enough(quota in any_quota(), start in 0_u64..1 << 57, ticks in 0_u64..1 << 40) {
            let (clock, _) = Clock::for_quota(&quota);
            let wait = clock.duration(ticks);
            prop_assume!(wait < Duration::from_nanos(100 * YEAR));
            let wait = u64::try_from(wait.as_nanos()).unwrap();
            let target = clock.ticks(start) + ticks;
            prop_assert!(clock.ticks(start + wait) >= target.min(LAST_TICK));
        }

        #[test]
        fn a_time_survives_another_clock(quota in any_quota(), other in any_quota(), ticks in 0_u64..1 << 40) {
            let (from, to) = (Clock::for_quota(&quota).0, Clock::for_quota(&other).0);
            let (time, tick) = (from.duration(ticks), to.duration(1));
            prop_assume!(time < Duration::from_nanos(8 * YEAR));
            let there = to.duration(to.ticks_until(time));
            prop_assert!(time <= there && there <= time + tick);
            prop_assert_eq!(from.ticks_until(time), ticks);
        }
    }
}
