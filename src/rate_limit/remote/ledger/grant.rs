//! What Redis answered.

use std::time::Duration;

use ::redis::Value;

use super::super::super::gcra::{self, Limit};
use super::super::super::verdict::{Decision, Standing, Verdict};

/// What one trip brought.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Grant {
    /// How many of the wanted requests are admitted, and charged.
    pub(in super::super) granted: u32,
    wanted: u32,
    cost: u32,
    /// For how many microseconds more the client is blocked.
    blocked: u64,
    /// In the policy's order.
    owed: Vec<Owed>,
}

/// What the client owes of one quota, all that was granted included.
#[derive(Debug, PartialEq, Eq)]
struct Owed {
    quota: usize,
    limit: Limit,
    debt: u64,
}

impl Grant {
    /// `quotas` are in the order of the keys. `None`: it is not an answer of our script.
    pub(super) fn read(
        answer: &Value,
        wanted: u32,
        cost: u32,
        quotas: impl Iterator<Item = (usize, Limit)>,
    ) -> Option<Self> {
        let Value::Array(items) = answer else { return None };
        let mut numbers = items.iter().map(|item| match item {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        });
        let granted = u32::try_from(numbers.next()??).ok().filter(|granted| *granted <= wanted)?;
        let blocked = numbers.next()??;
        let mut owed = Vec::with_capacity(items.len().saturating_sub(2));
        for (quota, limit) in quotas {
            let debt = numbers.next()?.filter(|debt| *debt <= limit.capacity)?;
            owed.push(Owed { quota, limit, debt });
        }
        owed.sort_unstable_by_key(|owed| owed.quota);
        numbers.next().is_none().then_some(Self { granted, wanted, cost, blocked, owed })
    }

    /// What the `nth` of the wanted requests is told, from 0; and, of a further one, what it would be told.
    pub(in super::super) fn verdict(&self, nth: u32) -> Verdict {
        // Charged after the nth, and so none of its business.
        let later = u64::from(self.granted.saturating_sub(nth).saturating_sub(1));
        let mut verdict = Verdict::new(Decision::Refused);
        let mut wait = self.blocked;
        for Owed { quota, limit, debt } in &self.owed {
            let price = gcra::price(*limit, self.cost.into());
            let debt = debt.saturating_sub(price.saturating_mul(later));
            wait = wait.max(gcra::wait(*limit, debt, self.cost.into()));
            verdict.push(self.standing(*quota, *limit, debt));
        }
        if nth < self.granted || (nth >= self.wanted && wait == 0) {
            verdict.decision = Decision::Admitted;
        } else {
            verdict.decision = if self.blocked > 0 { Decision::Blocked } else { Decision::Refused };
            verdict.wait = Duration::from_micros(wait);
        }
        verdict
    }

    fn standing(&self, quota: usize, limit: Limit, debt: u64) -> Standing {
        let (remaining, wait) = match self.blocked {
            0 => gcra::standing(limit, debt),
            blocked => (0, gcra::wait(limit, debt, 1).max(blocked)),
        };
        Standing {
            quota: u8::try_from(quota).unwrap_or(u8::MAX),
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            seconds: u32::try_from(wait.div_ceil(1_000_000)).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;
    /// Three at once, one per 10 s; and 100 at once, one per minute.
    const QUOTAS: [(usize, Limit); 2] = [
        (0, Limit { interval: 10 * SECOND, capacity: 30 * SECOND }),
        (1, Limit { interval: 60 * SECOND, capacity: 6000 * SECOND }),
    ];

    fn read(numbers: &[i64], wanted: u32, cost: u32) -> Option<Grant> {
        let answer = Value::Array(numbers.iter().map(|number| Value::Int(*number)).collect());
        Grant::read(&answer, wanted, cost, QUOTAS.into_iter())
    }

    fn told(grant: &Grant, nth: u32) -> (Decision, Duration, Vec<(u8, u32, u32)>) {
        let verdict = grant.verdict(nth);
        let standings = verdict.standings().iter().map(|of| (of.quota, of.remaining, of.seconds)).collect();
        (verdict.decision, verdict.wait, standings)
    }

    #[test]
    fn each_of_several_requests_is_told_how_it_stood_after_it() {
        let grant = read(&[2, 0, 25_000_000, 120_000_000], 4, 1).unwrap();
        assert_eq!(told(&grant, 0), (Decision::Admitted, Duration::ZERO, vec![(0, 1, 5), (1, 99, 60)]));
        assert_eq!(told(&grant, 1), (Decision::Admitted, Duration::ZERO, vec![(0, 0, 5), (1, 98, 60)]));
        for nth in [2, 3] {
            let wait = Duration::from_secs(5);
            assert_eq!(told(&grant, nth), (Decision::Refused, wait, vec![(0, 0, 5), (1, 98, 60)]));
        }
    }

    #[test]
    fn a_wait_is_until_this_cost_is_possible() {
        let wait = |cost, debts: [i64; 2]| read(&[0, 0, debts[0], debts[1]], 1, cost).unwrap().verdict(0).wait;
        assert_eq!(wait(2, [10_000_001, 0]), Duration::from_micros(1));
        assert_eq!(wait(3, [1, 0]), Duration::from_micros(1));
        assert_eq!(wait(200, [1, 1000]), Duration::from_micros(1000), "the longer one; a whole burst is enough");
        assert_eq!(wait(1, [30_000_000, 5_941_000_000]), Duration::from_secs(10));
    }

    #[test]
    fn a_further_one_is_told_what_it_would_be() {
        assert_eq!(read(&[1, 0, 20_000_000, 0], 1, 1).unwrap().verdict(1).decision, Decision::Admitted);
        let spent = read(&[1, 0, 20_000_001, 0], 1, 1).unwrap();
        assert_eq!(spent.verdict(0).decision, Decision::Admitted);
        assert_eq!(told(&spent, 1), (Decision::Refused, Duration::from_micros(1), vec![(0, 0, 1), (1, 100, 60)]));
    }

    #[test]
    fn seconds_are_rounded_up() {
        let grant = read(&[0, 0, 29_000_001, 0], 1, 1).unwrap();
        assert_eq!(told(&grant, 0).2, [(0, 0, 10), (1, 100, 60)]);
        let grant = read(&[0, 0, 20_000_001, 0], 1, 1).unwrap();
        assert_eq!(told(&grant, 0).2, [(0, 0, 1), (1, 100, 60)]);
    }

    #[test]
    fn a_look_tells_what_a_request_would_be_told() {
        assert_eq!(told(&read(&[0, 0, 20_000_000, 0], 0, 1).unwrap(), 0).0, Decision::Admitted);
        let refused = read(&[0, 0, 20_000_001, 0], 0, 1).unwrap();
        assert_eq!(told(&refused, 0), (Decision::Refused, Duration::from_micros(1), vec![(0, 0, 1), (1, 100, 60)]));
        let blocked = read(&[0, 7, 0, 0], 0, 1).unwrap();
        assert_eq!(told(&blocked, 0), (Decision::Blocked, Duration::from_micros(7), vec![(0, 0, 1), (1, 0, 1)]));
    }

    #[test]
    fn who_is_blocked_waits_for_the_end_of_it_and_of_its_debt() {
        for (blocked, wait, each) in [(70_000_000, 70, [70, 70]), (7, 10, [10, 1])] {
            let told = told(&read(&[0, blocked, 30_000_000, 0], 1, 1).unwrap(), 0);
            let standings = vec![(0, 0, each[0]), (1, 0, each[1])];
            assert_eq!(told, (Decision::Blocked, Duration::from_secs(wait), standings));
        }
    }

    #[test]
    fn anything_else_is_no_answer() {
        for numbers in [
            &[][..],
            &[1],
            &[1, 0],
            &[1, 0, 0],
            &[1, 0, 0, 0, 0],
            &[2, 0, 0, 0],
            &[-1, 0, 0, 0],
            &[1, -1, 0, 0],
            &[1, 0, -1, 0],
            &[1, 0, 30_000_001, 0],
        ] {
            assert_eq!(read(numbers, 1, 1), None, "{numbers:?}");
        }
        for answer in [Value::Nil, Value::Int(1), Value::Okay, Value::Array(vec![Value::Nil; 4])] {
            assert_eq!(Grant::read(&answer, 1, 1, QUOTAS.into_iter()), None, "{answer:?}");
        }
    }

    #[test]
    fn standings_are_in_the_policys_order() {
        let answer = Value::Array([1, 0, 60_000_000, 10_000_000].map(Value::Int).to_vec());
        let grant = Grant::read(&answer, 1, 1, QUOTAS.into_iter().rev()).unwrap();
        assert_eq!(told(&grant, 0).2, [(0, 2, 10), (1, 99, 60)]);
    }

    proptest! {
        /// Requests that go together are told what they would have been told one after the other.
        #[test]
        fn together_or_one_by_one(debts in [0_u64..=30_000_000, 5_700_000_000_u64..=6_000_000_000], cost in 1_u32..5, wanted in 1_u32..6) {
            let answer = |granted: i64, debts: [u64; 2]| {
                [granted, 0, i64::try_from(debts[0]).unwrap(), i64::try_from(debts[1]).unwrap()]
            };
            let charge = |debts: [u64; 2]| {
                let charge = |at: usize| gcra::charge(QUOTAS[at].1, debts[at], cost.into());
                charge(0).zip(charge(1)).map(|(own, other)| [own, other])
            };
            let (mut after, mut granted, mut singly) = (debts, 0, Vec::new());
            for _ in 0..wanted {
                let charged = charge(after);
                granted += i64::from(charged.is_some());
                after = charged.unwrap_or(after);
                singly.push(read(&answer(charged.is_some().into(), after), 1, cost).unwrap().verdict(0));
            }
            let together = read(&answer(granted, after), wanted, cost).unwrap();
            let together: Vec<_> = (0..wanted).map(|nth| together.verdict(nth)).collect();
            prop_assert_eq!(together, singly);
        }

        /// Who waits as long as it is told is admitted, and not a microsecond earlier.
        #[test]
        fn a_wait_is_long_enough_and_no_longer(debts in [0_u64..=30_000_000, 5_700_000_000_u64..=6_000_000_000], cost in 1_u32..200) {
            let verdict = read(&[0, 0, debts[0].try_into().unwrap(), debts[1].try_into().unwrap()], 0, cost).unwrap().verdict(0);
            let admitted = |wait: u64| {
                let fits = |(of, debt): (&(usize, Limit), &u64)| gcra::charge(of.1, debt.saturating_sub(wait), cost.into()).is_some();
                QUOTAS.iter().zip(&debts).all(fits)
            };
            let wait = u64::try_from(verdict.wait.as_micros()).unwrap();
            prop_assert!(admitted(wait) && (wait == 0 || !admitted(wait - 1)));
            prop_assert_eq!(verdict.admitted(), wait == 0);
        }
    }
}
