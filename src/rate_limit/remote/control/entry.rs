//! Changes and quotas, as they stand in the record.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use super::super::super::handle::Change;
use super::super::super::partition::Partition;
use super::super::super::quota::Quota;

/// A charge that is told later than this has long been paid off, as far as anybody here can know.
const LATE: Duration = Duration::from_secs(1);

/// A change that some instance has made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// By Redis's clock, in milliseconds.
    made: u64,
    pub(super) instance: u64,
    pub(super) client: Partition,
    change: Change,
}

impl Entry {
    /// Who, which of its changes, whom, and what; Redis puts the time before it.
    pub(super) fn text(instance: u64, number: u64, client: Partition, change: Change) -> String {
        let [kind, high, low] = client.words();
        format!("{instance:016x} {number} {kind:x} {high:x} {low:x} {}", Words(change))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let [made, instance, _number, kind, high, low, change, amount] = words.as_slice() else { return None };
        let hex = |word: &str| u64::from_str_radix(word, 16).ok();
        let change = match *change {
            "penalise" => Change::Penalise(amount.parse().ok()?),
            "reward" => Change::Reward(amount.parse().ok()?),
            "block" => Change::Block(Duration::from_millis(amount.parse().ok()?)),
            "reset" => Change::Reset,
            _ => return None,
        };
        let client = Partition::from_words([hex(kind)?, hex(high)?, hex(low)?])?;
        Some(Self { made: made.parse().ok()?, instance: hex(instance)?, client, change })
    }

    /// What is left of it at `now`, by Redis's clock.
    pub(super) fn change_at(&self, now: u64) -> Option<Change> {
        let age = Duration::from_millis(now.saturating_sub(self.made));
        match self.change {
            Change::Penalise(_) if age > LATE => None,
            Change::Block(duration) => Some(Change::Block(duration.saturating_sub(age))),
            change => Some(change),
        }
    }
}

struct Words(Change);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Change::Penalise(cost) => write!(f, "penalise {cost}"),
            Change::Reward(cost) => write!(f, "reward {cost}"),
            Change::Block(duration) => {
                write!(f, "block {}", u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
            }
            Change::Reset => f.write_str("reset 0"),
        }
    }
}

/// Count, nanoseconds of the period, and burst.
pub(super) fn quota_text(quota: Quota) -> String {
    format!("{} {} {}", quota.count(), quota.period_nanos(), quota.burst_size())
}

pub(super) fn parse_quota(text: &str) -> Option<Quota> {
    let words: Vec<_> = text.split(' ').collect();
    let [count, nanos, burst] = words.as_slice() else { return None };
    let nanos: u128 = nanos.parse().ok()?;
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    let period = Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).ok()?);
    let burst: NonZeroU32 = burst.parse().ok()?;
    Some(Quota::new(count.parse().ok()?, period).ok()?.burst(burst.get()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client() -> impl Strategy<Value = Partition> {
        prop_oneof![
            Just(Partition::EVERYBODY),
            any::<u128>().prop_map(Partition::digest),
            (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(bits, prefix)| Partition::of(bits.into(), prefix, 64)),
            (any::<[u16; 8]>(), 0..=128_u8).prop_map(|(bits, prefix)| Partition::of(bits.into(), 32, prefix)),
        ]
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            any::<u32>().prop_map(Change::Penalise),
            any::<u32>().prop_map(Change::Reward),
            any::<u64>().prop_map(|millis| Change::Block(Duration::from_millis(millis))),
            Just(Change::Reset),
        ]
    }

    proptest! {
        #[test]
        fn what_is_noted_is_read(
            made in any::<u64>(), instance in any::<u64>(), number in any::<u64>(), client in client(), change in change(),
        ) {
            let text = format!("{made} {}", Entry::text(instance, number, client, change));
            prop_assert_eq!(Entry::parse(&text), Some(Entry { made, instance, client, change }));
        }

        #[test]
        fn quotas_are_read_as_they_were_set(count in 1..=u32::MAX, nanos in 1_u64.., burst in 1..=u32::MAX) {
            let quota = Quota::new(NonZeroU32::new(count).unwrap(), Duration::from_nanos(nanos));
            prop_assume!(quota.is_ok());
            let quota = quota.unwrap().burst(burst);
            prop_assert_eq!(parse_quota(&quota_text(quota)), Some(quota));
        }

        #[test]
        fn anything_may_stand_there(text in ".{0,80}") {
            prop_assert!(Entry::parse(&text).is_none() && parse_quota(&text).is_none());
        }
    }

    #[test]
    fn what_is_left_of_a_change() {
        let seconds = Duration::from_secs;
        let at = |change, made, now| Entry { made, instance: 0, client: Partition::EVERYBODY, change }.change_at(now);
        let block = Change::Block(seconds(60));
        assert_eq!(at(block, 1_000, 11_000), Some(Change::Block(seconds(50))));
        assert_eq!(at(block, 1_000, 100_000), Some(Change::Block(Duration::ZERO)), "it ends an earlier one");
        assert_eq!(at(block, 1_000, 500), Some(block), "Redis's clock went back");
        let penalty = Change::Penalise(3);
        assert_eq!(at(penalty, 1_000, 2_000), Some(penalty));
        assert_eq!(at(penalty, 1_000, 2_001), None);
        assert_eq!(at(Change::Reset, 1_000, 100_000), Some(Change::Reset));
    }
}
