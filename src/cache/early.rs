//! When a fresh response is renewed ahead of its time, so that at the end of its lifetime nobody has to wait.
//!
//! XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015): a hit at `now`
//! renews if `now + cost * beta * -ln(random) >= fresh_until`. The more often a key is asked for, and the longer its
//! fetch takes, the surer one hit does so in time; of a key that is hardly asked for, none does. By chance, and not at a
//! fixed time before the end, so that hits at the same moment, in many processes too, do not all come forward.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use http::StatusCode;

use super::entry::Head;
use super::layer::Config;
use super::request::Asked;

/// Never longer than this many times the cost before the end: one draw in 500 million goes beyond it with a beta of 1.
const REACH: u32 = 20;

/// What a fetch took, from its request's forward to the end of its response's body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    took: Duration,
    /// From when on a renewal is possible at all: every hit compares it, where a sum would cost it ten times as much.
    from: SystemTime,
}

impl Cost {
    /// As much as a number of nanoseconds can tell.
    pub(super) fn new(took: Duration, fresh_until: SystemTime) -> Self {
        let took = Duration::from_nanos(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        Self { took, from: fresh_until.checked_sub(took * REACH).unwrap_or(SystemTime::UNIX_EPOCH) }
    }

    pub(super) fn took(self) -> Duration {
        self.took
    }
}

/// The rest follows from the head that it stands in.
impl PartialEq for Cost {
    fn eq(&self, other: &Self) -> bool {
        self.took == other.took
    }
}

impl Eq for Cost {}

impl Head {
    /// To be told once, when the body has ended. Errors are not worth a fetch that nobody asked for, and of parts there
    /// are too many.
    pub(super) fn note_cost(&self, took: Duration) {
        let whole = self.status != StatusCode::PARTIAL_CONTENT;
        if whole && (self.status.is_success() || self.status.is_redirection()) {
            let _ = self.cost.set(Cost::new(took, self.fresh_until));
        }
    }

    /// The freshness left, where it is so short that a renewal is possible.
    #[inline]
    fn left_within_reach(&self, now: SystemTime) -> Option<(Duration, Cost)> {
        let cost = *self.cost.get().filter(|cost| now >= cost.from)?;
        Some((self.fresh_until.duration_since(now).ok()?, cost))
    }
}

/// Whether the request that `head` is about to answer renews it as well.
#[inline]
pub(super) fn is_due(head: &Head, config: &Config, asked: &Asked, now: SystemTime) -> bool {
    match head.left_within_reach(now) {
        // With credentials it might fetch what is one client's.
        Some((left, cost)) => asked.plain && !asked.credentials && draw(left, cost, config.early_refresh),
        None => false,
    }
}

/// Out of the way of all other hits.
#[cold]
fn draw(left: Duration, cost: Cost, beta: f64) -> bool {
    beta > 0.0 && decide(left, cost.took, beta, random())
}

/// The formula, for a random number from 0 to 1.
fn decide(left: Duration, took: Duration, beta: f64, random: f64) -> bool {
    !left.is_zero() && left.as_secs_f64() <= took.as_secs_f64() * beta * -random.ln()
}

/// Anything from 0 to 1, unpredictably.
pub(super) fn random() -> f64 {
    f64::from(u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::tests::head;
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn by_the_formula() {
        let e = std::f64::consts::E;
        for (left, took, beta, random, expected) in [
            // -ln(1/e) = 1: as long before the end as the fetch takes.
            (99, 100, 1.0, 1.0 / e, true),
            (101, 100, 1.0, 1.0 / e, false),
            (199, 100, 2.0, 1.0 / e, true),
            (201, 100, 2.0, 1.0 / e, false),
            (49, 100, 0.5, 1.0 / e, true),
            (51, 100, 0.5, 1.0 / e, false),
            (299, 100, 1.0, (-3.0f64).exp(), true),
            (301, 100, 1.0, (-3.0f64).exp(), false),
            // Longer than any lifetime: almost every hit.
            (1000, 10_000, 1.0, 0.9, true),
            (1000, 10_000, 1.0, 0.91, false),
            // The ends of what can be drawn.
            (1, 100, 1.0, 1.0, false),
            (1_000_000, 100, 1.0, 0.0, true),
            (1, 100, f64::INFINITY, 1.0, false),
            (1, 100, f64::INFINITY, 0.9, true),
            // Nothing is left, or it costs nothing, or it is switched off.
            (0, 100, 1.0, 0.5, false),
            (1, 0, 1.0, 0.5, false),
            (1, 0, 1.0, 0.0, false),
            (1, 100, 0.0, 0.5, false),
            (1, 100, 0.0, 0.0, false),
        ] {
            let decided = decide(ms(left), ms(took), beta, random);
            assert_eq!(decided, expected, "{left} ms left, {took} ms, {beta}, {random}");
        }
    }

    /// Numbers from 0 to 1 that are the same in every run.
    fn sequence(seed: u64) -> impl Iterator<Item = f64> {
        (0..20_000u64).map(move |n| {
            let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_be_bytes(), seed);
            f64::from(u32::try_from(hash >> 32).unwrap()) / f64::from(u32::MAX)
        })
    }

    #[test]
    fn as_often_as_the_distribution_says() {
        for (seed, left, took, beta) in
            [(1, 100, 100, 1.0), (2, 50, 100, 1.0), (3, 300, 100, 1.0), (4, 300, 100, 3.0), (5, 100, 100, 0.5)]
        {
            let due = sequence(seed).filter(|random| decide(ms(left), ms(took), beta, *random)).count();
            let expected = (-(f64::from(u32::try_from(left).unwrap()) / (100.0 * beta))).exp() * 20_000.0;
            assert!((f64::from(u32::try_from(due).unwrap()) - expected).abs() < 300.0, "{due}, not {expected}");
        }
    }

    #[test]
    fn draws_differ_and_fill_the_range() {
        let drawn: Vec<_> = (0..1000).map(|_| random()).collect();
        assert!(drawn.iter().all(|random| (0.0..=1.0).contains(random)));
        let below = |limit: f64| drawn.iter().filter(|random| **random < limit).count();
        // Eight standard deviations.
        assert!((375..=625).contains(&below(0.5)) && (141..=359).contains(&below(0.25)), "{drawn:?}");
    }

    #[test]
    fn only_within_reach() {
        let now = SystemTime::now();
        let entry = |status, took: Option<Duration>| {
            let mut head = head(now, now + ms(10_000));
            head.status = status;
            took.into_iter().for_each(|took| head.note_cost(took));
            head
        };
        let is_within = |head: &Head, left: u64| head.left_within_reach(now + ms(10_000 - left)).is_some();
        let ok = entry(StatusCode::OK, Some(ms(100)));
        assert!(!is_within(&ok, 2001) && is_within(&ok, 2000) && is_within(&ok, 1));
        assert!(ok.left_within_reach(now + ms(10_001)).is_none(), "it has expired");
        assert!(is_within(&entry(StatusCode::MOVED_PERMANENTLY, Some(ms(100))), 1));
        for head in [
            entry(StatusCode::OK, None),
            entry(StatusCode::PARTIAL_CONTENT, Some(ms(100))),
            entry(StatusCode::NOT_FOUND, Some(ms(100))),
            entry(StatusCode::INTERNAL_SERVER_ERROR, Some(ms(100))),
        ] {
            assert!(!is_within(&head, 1), "{head:?}");
        }
    }

    #[test]
    fn a_cost_is_kept_to_the_nanosecond() {
        for nanos in [0, 1, 19, 20, 21, 999_999_999, 1_234_567_890_123, u64::MAX] {
            assert_eq!(Cost::new(Duration::from_nanos(nanos), SystemTime::now()).took(), Duration::from_nanos(nanos));
        }
        assert_eq!(Cost::new(Duration::MAX, SystemTime::now()).took(), Duration::from_nanos(u64::MAX));
    }

    proptest! {
        #[test]
        fn less_time_a_dearer_fetch_and_more_zeal_never_delay(
            left in 1u64..1_000_000, took in 0u64..1_000_000, beta in 0.0f64..10.0, random in 0.0f64..=1.0,
            sooner in 0u64..1_000_000, dearer in 0u64..1_000_000, keener in 0.0f64..10.0,
        ) {
            let due = |left, took, beta| decide(ms(left), ms(took), beta, random);
            if due(left, took, beta) {
                prop_assert!(due(left.saturating_sub(sooner).max(1), took, beta));
                prop_assert!(due(left, took + dearer, beta));
                prop_assert!(due(left, took, beta + keener));
            }
        }

        #[test]
        fn without_zeal_never(left in 1u64..u64::MAX, took: u64, random in 0.0f64..=1.0) {
            prop_assert!(!decide(Duration::from_nanos(left), Duration::from_nanos(took), 0.0, random));
        }
    }
}
