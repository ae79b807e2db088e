//! The generic cell rate algorithm (ITU-T I.371), in integers.
//!
//! A client has a debt, in units of time. Every request adds one interval to it, time pays it off, and a request that
//! would raise it above the capacity is refused and adds nothing. What is stored is the moment at which the debt will be
//! paid: the *theoretical arrival time*, TAT. `gcra.lua` mirrors [`decide`] line by line.

/// A quota in units of some clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// What one request costs. Not zero.
    pub(crate) interval: u64,
    /// The highest debt: the burst times the interval. Below `u64::MAX`, where sums saturate.
    pub(crate) capacity: u64,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Store this TAT.
    Admitted { tat: u64 },
    /// Change nothing.
    Refused,
}

/// Decides on a request of `cost` units at `now`, for a client whose debt will be paid at `tat`. Saturates.
pub(crate) fn decide(limit: Limit, tat: u64, now: u64, cost: u64) -> Decision {
    let owed = debt(limit, tat, now).saturating_add(limit.interval.saturating_mul(cost));
    if owed > limit.capacity {
        return Decision::Refused;
    }
    Decision::Admitted { tat: now.saturating_add(owed) }
}

/// What is owed at `now`: never more than the capacity, even where the clock went backwards.
pub(crate) fn debt(limit: Limit, tat: u64, now: u64) -> u64 {
    tat.saturating_sub(now).min(limit.capacity)
}

/// How many requests a client with this debt may send at once, and the time until that is one more.
pub(crate) fn standing(limit: Limit, debt: u64) -> (u64, u64) {
    let remaining = limit.capacity.saturating_sub(debt) / limit.interval;
    let more = remaining.saturating_add(1).saturating_mul(limit.interval);
    (remaining, debt.saturating_add(more).saturating_sub(limit.capacity))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;
    use governor::{Quota, RateLimiter};
    use proptest::prelude::*;

    use super::*;

    fn limit(interval: u64, burst: u64) -> Limit {
        Limit { interval, capacity: interval * burst }
    }

    #[test]
    fn a_burst_and_then_one_per_interval() {
        let limit = limit(10, 3);
        let mut tat = 0;
        let mut admitted = Vec::new();
        for tick in [100, 100, 100, 100, 109, 110, 110, 119, 120, 200, 200, 200, 200] {
            let decision = decide(limit, tat, tick, 1);
            if let Decision::Admitted { tat: next } = decision {
                tat = next;
            }
            admitted.push(decision != Decision::Refused);
        }
        assert_eq!(admitted, [true, true, true, false, false, true, false, false, true, true, true, true, false]);
    }

    #[test]
    fn standing_counts_what_could_be_sent_now() {
        for (debt, expected) in [(0, (3, 10)), (1, (2, 1)), (10, (2, 10)), (15, (1, 5)), (29, (0, 9)), (30, (0, 10))] {
            assert_eq!(standing(limit(10, 3), debt), expected, "{debt}");
        }
    }

    #[test]
    fn extremes_saturate() {
        let huge = Limit { interval: u64::MAX / 2, capacity: u64::MAX - 1 };
        assert_eq!(decide(huge, u64::MAX, 0, u64::MAX), Decision::Refused);
        assert_eq!(decide(huge, 0, u64::MAX, 1), Decision::Admitted { tat: u64::MAX });
        assert_eq!(standing(huge, u64::MAX).0, 0);
        assert_eq!(debt(limit(10, 3), u64::MAX, 0), 30);
    }

    proptest! {
        /// On a trace of whole ticks, governor and this are the same function.
        #[test]
        fn governor_is_the_oracle(
            interval in 1_u64..50,
            burst in 1_u32..20,
            trace in prop::collection::vec((0_u64..60, 1_u32..4), 1..200),
        ) {
            let quota = Quota::with_period(Duration::from_nanos(interval)).unwrap();
            let clock = FakeRelativeClock::default();
            let governor =
                RateLimiter::direct_with_clock(quota.allow_burst(NonZeroU32::new(burst).unwrap()), clock.clone());
            let limit = limit(interval, burst.into());
            let (mut now, mut tat) = (0, 0);
            for (pause, cost) in trace {
                clock.advance(Duration::from_nanos(pause));
                now += pause;
                let expected = matches!(governor.check_n(NonZeroU32::new(cost).unwrap()), Ok(Ok(_)));
                let decision = decide(limit, tat, now, cost.into());
                prop_assert_eq!(decision != Decision::Refused, expected, "at {}", now);
                if let Decision::Admitted { tat: next } = decision {
                    tat = next;
                }
                let (remaining, wait) = standing(limit, debt(limit, tat, now));
                if remaining < burst.into() {
                    prop_assert_ne!(decide(limit, tat, now + wait, remaining + 1), Decision::Refused);
                    prop_assert_eq!(decide(limit, tat, now + wait - 1, remaining + 1), Decision::Refused);
                }
            }
        }

        /// A clock of ticks makes a difference of less than one: what it admits, exact arithmetic would admit within a
        /// tick; what it refuses, exact arithmetic would have refused a tick ago.
        #[test]
        fn ticks_blur_a_decision_by_less_than_one(
            interval in 1_u64..20,
            burst in 1_u64..10,
            tick in 1_u64..50,
            trace in prop::collection::vec(0_u64..900, 1..100),
        ) {
            let (coarse, exact) = (limit(interval, burst), limit(interval * tick, burst));
            let (mut now, mut tat, mut exact_tat) = (0_u64, 0, 0_u64);
            for pause in trace {
                now += pause;
                match decide(coarse, tat, now / tick, 1) {
                    Decision::Admitted { tat: next } => {
                        prop_assert_ne!(decide(exact, exact_tat, now + tick - 1, 1), Decision::Refused);
                        (tat, exact_tat) = (next, exact_tat.max(now) + exact.interval);
                    }
                    Decision::Refused => {
                        let ago = now.saturating_sub(tick);
                        prop_assert_eq!(decide(exact, exact_tat, ago, 1), Decision::Refused);
                    }
                }
            }
        }
    }
}
