//! The generic cell rate algorithm (ITU-T I.371), in integers.
//!
//! A client has a debt, in units of time. Every request adds its price to it, time pays it off, and a request that would
//! raise it above the capacity is refused and adds nothing. What is stored is the moment at which the debt will be paid:
//! the *theoretical arrival time*, TAT. So a debt is read with [`debt`], changed by one of the functions here, and stored
//! as `now + debt`. Redis's script mirrors them line by line.

/// A quota in units of some clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// What a request of cost 1 costs. Not zero.
    pub(crate) interval: u64,
    /// The highest debt: the burst times the interval.
    pub(crate) capacity: u64,
}

/// What is owed at `now` by a client whose debt will be paid at `tat`: never more than the capacity, even where the clock
/// went back.
pub(crate) fn debt(limit: Limit, tat: u64, now: u64) -> u64 {
    tat.saturating_sub(now).min(limit.capacity)
}

/// What a request of `cost` adds to the debt. One that costs more than the burst costs the whole burst.
pub(crate) fn price(limit: Limit, cost: u64) -> u64 {
    limit.interval.saturating_mul(cost).min(limit.capacity)
}

/// The debt after a request of `cost`, or `None` if it is refused.
pub(crate) fn charge(limit: Limit, debt: u64, cost: u64) -> Option<u64> {
    let owed = debt.saturating_add(price(limit, cost));
    (owed <= limit.capacity).then_some(owed)
}

/// The debt after a charge that cannot be refused.
pub(crate) fn penalise(limit: Limit, debt: u64, cost: u64) -> u64 {
    debt.saturating_add(price(limit, cost)).min(limit.capacity)
}

/// The debt after what a request of `cost` was charged is given back. What is paid already is not given back.
pub(crate) fn refund(limit: Limit, debt: u64, cost: u64) -> u64 {
    debt.saturating_sub(price(limit, cost))
}

/// How long until a request of `cost` would be admitted: zero if it would be now.
pub(crate) fn wait(limit: Limit, debt: u64, cost: u64) -> u64 {
    debt.saturating_add(price(limit, cost)).saturating_sub(limit.capacity)
}

/// How many requests of cost 1 a client with this debt may send at once, and how long until that is one more.
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

    /// One client's stored state.
    struct Client {
        limit: Limit,
        tat: u64,
    }

    impl Client {
        fn debt(&self, now: u64) -> u64 {
            debt(self.limit, self.tat, now)
        }

        fn charge(&mut self, now: u64, cost: u64) -> bool {
            let owed = charge(self.limit, self.debt(now), cost);
            self.tat = owed.map_or(self.tat, |owed| now + owed);
            owed.is_some()
        }

        fn refund(&mut self, now: u64, cost: u64) {
            self.tat = now + refund(self.limit, self.debt(now), cost);
        }
    }

    type Governor = RateLimiter<
        governor::state::NotKeyed,
        governor::state::InMemoryState,
        FakeRelativeClock,
        governor::middleware::NoOpMiddleware<<FakeRelativeClock as governor::clock::Clock>::Instant>,
    >;

    fn governor(interval: u64, burst: u32) -> (Governor, FakeRelativeClock) {
        let quota = Quota::with_period(Duration::from_nanos(interval)).unwrap();
        let clock = FakeRelativeClock::default();
        (RateLimiter::direct_with_clock(quota.allow_burst(NonZeroU32::new(burst).unwrap()), clock.clone()), clock)
    }

    #[test]
    fn a_burst_and_then_one_per_interval() {
        let mut client = Client { limit: limit(10, 3), tat: 0 };
        let ticks = [100, 100, 100, 100, 109, 110, 110, 119, 120, 200, 200, 200, 200];
        let admitted = ticks.map(|now| client.charge(now, 1));
        assert_eq!(admitted, [true, true, true, false, false, true, false, false, true, true, true, true, false]);
    }

    #[test]
    fn standing_counts_what_could_be_sent_now() {
        for (debt, expected) in [(0, (3, 10)), (1, (2, 1)), (10, (2, 10)), (15, (1, 5)), (29, (0, 9)), (30, (0, 10))] {
            assert_eq!(standing(limit(10, 3), debt), expected, "{debt}");
        }
    }

    #[test]
    fn what_costs_more_than_the_burst_costs_the_burst() {
        let limit = limit(10, 3);
        assert_eq!((price(limit, 3), price(limit, 4), price(limit, u64::MAX)), (30, 30, 30));
        assert_eq!((charge(limit, 0, 4), charge(limit, 1, 4), wait(limit, 1, 4)), (Some(30), None, 1));
        assert_eq!(refund(limit, penalise(limit, 0, 4), 4), 0);
    }

    #[test]
    fn nobody_owes_more_than_the_capacity_or_less_than_nothing() {
        let limit = limit(10, 3);
        assert_eq!((penalise(limit, 25, 1), penalise(limit, 30, 9)), (30, 30));
        assert_eq!((refund(limit, 5, 1), refund(limit, 25, 1), refund(limit, 0, 9)), (0, 15, 0));
        assert_eq!((debt(limit, u64::MAX, 0), debt(limit, 7, 9)), (30, 0));
    }

    #[test]
    fn extremes_saturate() {
        let huge = Limit { interval: u64::MAX / 2, capacity: u64::MAX - 1 };
        assert_eq!(charge(huge, u64::MAX, u64::MAX), None);
        assert_eq!(charge(huge, 1, u64::MAX), None);
        assert_eq!(penalise(huge, u64::MAX, u64::MAX), u64::MAX - 1);
        assert_eq!(standing(huge, u64::MAX).0, 0);
        assert_eq!(wait(huge, u64::MAX, u64::MAX), 1);
    }

    proptest! {
        /// On a trace of whole ticks, governor and this are the same function.
        #[test]
        fn governor_is_the_oracle(
            interval in 1_u64..50,
            burst in 1_u32..20,
            trace in prop::collection::vec((0_u64..60, 1_u32..25), 1..200),
        ) {
            let (governor, clock) = governor(interval, burst);
            let mut client = Client { limit: limit(interval, burst.into()), tat: 0 };
            let mut now = 0;
            for (pause, cost) in trace {
                clock.advance(Duration::from_nanos(pause));
                now += pause;
                // More than the burst is an error to governor; here it is the burst.
                let expected = matches!(governor.check_n(NonZeroU32::new(cost.min(burst)).unwrap()), Ok(Ok(())));
                prop_assert_eq!(client.charge(now, cost.into()), expected, "at {}", now);
                let debt = client.debt(now);
                let (remaining, more) = standing(client.limit, debt);
                prop_assert_eq!(charge(client.limit, debt, remaining.max(1)).is_some(), remaining > 0);
                if remaining < burst.into() {
                    let after = |ticks| charge(client.limit, client.debt(now + ticks), remaining + 1);
                    prop_assert!(after(more).is_some() && after(more - 1).is_none());
                }
                let wait = wait(client.limit, debt, cost.into());
                let after = |ticks| charge(client.limit, client.debt(now + ticks), cost.into());
                prop_assert!(after(wait).is_some() && (wait == 0 || after(wait - 1).is_none()));
            }
        }

        /// Several quotas, all or nothing: what governor says of each quota, were only that refused which any refuses.
        #[test]
        fn governor_is_the_oracle_of_several_quotas(
            quotas in prop::collection::vec((1_u64..50, 1_u32..12), 1..4),
            trace in prop::collection::vec((0_u64..60, 1_u32..5), 1..40),
        ) {
            let mut clients: Vec<_> =
                quotas.iter().map(|(interval, burst)| Client { limit: limit(*interval, (*burst).into()), tat: 0 }).collect();
            let mut history = Vec::new();
            let mut now = 0;
            for (pause, cost) in trace {
                now += pause;
                // governor cannot be asked without charging it, so each is asked anew with what was admitted so far.
                let admits = |(interval, burst): &(u64, u32)| {
                    let (governor, clock) = governor(*interval, *burst);
                    let asked = |(pause, cost): &(u64, u32)| {
                        clock.advance(Duration::from_nanos(*pause));
                        matches!(governor.check_n(NonZeroU32::new((*cost).min(*burst)).unwrap()), Ok(Ok(())))
                    };
                    let mut at = 0;
                    for (then, cost) in &history {
                        assert!(asked(&(then - at, *cost)));
                        at = *then;
                    }
                    asked(&(now - at, cost))
                };
                let expected = quotas.iter().all(admits);
                let admitted =
                    clients.iter().all(|client| charge(client.limit, client.debt(now), cost.into()).is_some());
                prop_assert_eq!(admitted, expected);
                if admitted {
                    clients.iter_mut().for_each(|client| assert!(client.charge(now, cost.into())));
                    history.push((now, cost));
                }
            }
        }

        /// With refunds: in any stretch, what was admitted and not given back is at most a burst and what time pays.
        #[test]
        fn what_counts_in_any_stretch_is_a_burst_and_the_rate(
            interval in 1_u64..20,
            burst in 1_u64..10,
            trace in prop::collection::vec((0_u64..30, 1_u64..5, any::<bool>()), 1..60),
        ) {
            let mut client = Client { limit: limit(interval, burst), tat: 0 };
            let mut counted: Vec<(u64, i64)> = Vec::new();
            let mut now = 0;
            for (pause, cost, give_back) in trace {
                now += pause;
                let paid = i64::try_from(price(client.limit, cost)).unwrap();
                if give_back {
                    let before = client.debt(now);
                    client.refund(now, cost);
                    counted.push((now, -i64::try_from(before - client.debt(now)).unwrap()));
                } else if client.charge(now, cost) {
                    counted.push((now, paid));
                }
            }
            for from in 0..counted.len() {
                let mut sum = 0;
                for (at, paid) in &counted[from..] {
                    sum += paid;
                    let bound = client.limit.capacity + (at - counted[from].0);
                    prop_assert!(sum <= i64::try_from(bound).unwrap());
                }
            }
        }

        /// A charge that is given back at once leaves no trace.
        #[test]
        fn giving_back_undoes(interval in 1_u64..50, burst in 1_u64..20, owed in any::<u64>(), cost in 1_u64..30) {
            let limit = limit(interval, burst);
            let owed = owed % (limit.capacity + 1);
            if let Some(more) = charge(limit, owed, cost) {
                prop_assert_eq!(refund(limit, more, cost), owed);
                prop_assert_eq!(penalise(limit, owed, cost), more);
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
            let mut coarse = Client { limit: limit(interval, burst), tat: 0 };
            let mut exact = Client { limit: limit(interval * tick, burst), tat: 0 };
            let mut now = 0_u64;
            for pause in trace {
                now += pause;
                if coarse.charge(now / tick, 1) {
                    prop_assert!(charge(exact.limit, exact.debt(now + tick - 1), 1).is_some());
                    exact.tat = exact.tat.max(now) + exact.limit.interval;
                } else {
                    prop_assert!(charge(exact.limit, exact.debt(now.saturating_sub(tick)), 1).is_none());
                }
            }
        }
    }
}
