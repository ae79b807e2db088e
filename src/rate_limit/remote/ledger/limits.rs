//! Quotas in Redis's time.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::super::super::gcra::Limit;
use super::super::super::quota::Quota;

/// No debt and no block is longer: 142 years, so that its end is below 2⁵³ µs, where Lua's numbers are exact.
pub(super) const MAX_MICROS: u64 = 1 << 52;

/// A policy's quotas as they are now, in microseconds.
pub(in super::super) struct Limits(ArcSwap<Vec<Limit>>);

impl Limits {
    pub(in super::super) fn new<'a>(quotas: impl IntoIterator<Item = &'a Quota>) -> Self {
        Self(ArcSwap::from_pointee(quotas.into_iter().map(in_micros).collect()))
    }

    pub(in super::super) fn set(&self, quotas: &[Quota]) {
        self.0.store(Arc::new(quotas.iter().map(in_micros).collect()));
    }

    /// In the policy's order.
    pub(in super::super) fn now(&self) -> Arc<Vec<Limit>> {
        self.0.load_full()
    }
}

/// The interval is rounded up: at 1000 per second and less, by less than 1 in 1000.
fn in_micros(quota: &Quota) -> Limit {
    let interval = quota.period_nanos().div_ceil(u128::from(quota.count()) * 1000);
    let interval = u64::try_from(interval).unwrap_or(u64::MAX).min(MAX_MICROS);
    Limit { interval, capacity: interval.saturating_mul(quota.burst_size()).min(MAX_MICROS) }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;

    #[test]
    fn intervals_are_whole_microseconds_rounded_up() {
        let limit = |count, nanos| {
            in_micros(&Quota::new(NonZeroU32::new(count).unwrap(), Duration::from_nanos(nanos)).unwrap())
        };
        assert_eq!(limit(100, 60_000_000_000), Limit { interval: 600_000, capacity: 60_000_000 });
        assert_eq!(limit(7, 1_000_000_000).interval, 142_858);
        assert_eq!(limit(65_536, 1_000_000_000).interval, 16);
    }

    #[test]
    fn nothing_leaves_the_range_in_which_lua_is_exact() {
        let slowest = Quota::new(NonZeroU32::MIN, Duration::from_secs((1 << 32) - 1)).unwrap();
        for burst in [1, 2, u32::MAX] {
            let limit = in_micros(&slowest.burst(burst));
            assert!(limit.interval <= limit.capacity && limit.capacity <= MAX_MICROS);
        }
    }
}
