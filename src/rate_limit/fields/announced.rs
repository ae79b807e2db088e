//! What does not change from one response to the next.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

use super::digits;
use super::lasting::lasting;
use super::stamp::{DRAFT_6, LEGACY, Stamp};
use super::style::Fields;
use crate::rate_limit::policy::Policy;
use crate::rate_limit::quota::Quota;
use crate::rate_limit::verdict::{Decision, Standing, Verdict};

/// A policy's quotas, as responses state them.
pub(crate) struct Announced {
    style: Fields,
    policy: HeaderValue,
    quotas: Box<[Told]>,
}

/// One quota.
struct Told {
    limit: u64,
    /// What stands before the number of the requests that remain.
    start: String,
}

impl Announced {
    /// `quotas` are the policy's, as they are now.
    pub(crate) fn new(style: Fields, policy: &Policy, quotas: &[Quota]) -> Self {
        let (members, quotas): (Vec<_>, Vec<_>) =
            policy.names().iter().zip(quotas).map(|(name, quota)| told(style, name, quota)).unzip();
        let policy = match style {
            Fields::Draft | Fields::Draft7 | Fields::Draft6 => lasting(members.join(", ")),
            Fields::Legacy | Fields::None => HeaderValue::from_static(""),
        };
        Self { style, policy, quotas: quotas.into() }
    }

    /// The fields of a response to this verdict.
    pub(crate) fn stamp(&self, verdict: &Verdict) -> Stamp {
        let bound = Bound::of(verdict);
        match self.style {
            Fields::None => Stamp::None,
            Fields::Draft => self.texts(verdict.standings(), ";t=", bound),
            Fields::Draft7 => self.texts(binding(verdict).as_slice(), ", reset=", bound),
            Fields::Draft6 | Fields::Legacy => binding(verdict).map_or(Stamp::None, |one| self.numbers(&one, bound)),
        }
    }

    /// As one text, `middle` between the numbers of a quota. Exactly as long as its buffer, which becomes the value.
    fn texts(&self, standings: &[Standing], middle: &str, bound: Bound) -> Stamp {
        let told = || {
            standings.iter().filter_map(|standing| {
                let quota = self.quotas.get(usize::from(standing.quota))?;
                let (remaining, seconds) = bound.state(standing);
                let remaining = if self.style == Fields::Draft { remaining } else { remaining.min(quota.limit) };
                Some((quota.start.as_str(), remaining, seconds))
            })
        };
        let length = |(start, remaining, seconds): (&str, u64, u64)| {
            start.len() + digits::count(remaining) + middle.len() + digits::count(seconds) + 2
        };
        let Some(length) = told().map(length).sum::<usize>().checked_sub(2) else { return Stamp::None };
        let mut text = Vec::with_capacity(length);
        for (start, remaining, seconds) in told() {
            if !text.is_empty() {
                text.extend_from_slice(b", ");
            }
            text.extend_from_slice(start.as_bytes());
            digits::push(&mut text, remaining);
            text.extend_from_slice(middle.as_bytes());
            digits::push(&mut text, seconds);
        }
        let standing = HeaderValue::try_from(text);
        standing.map_or(Stamp::None, |standing| Stamp::Texts { policy: self.policy.clone(), standing })
    }

    fn numbers(&self, standing: &Standing, bound: Bound) -> Stamp {
        let Some(&Told { limit, .. }) = self.quotas.get(usize::from(standing.quota)) else { return Stamp::None };
        let (remaining, seconds) = bound.state(standing);
        let remaining = remaining.min(limit);
        if self.style == Fields::Legacy {
            return Stamp::Numbers { policy: None, names: &LEGACY, limit, remaining, reset: unix_time() + seconds };
        }
        Stamp::Numbers { policy: Some(self.policy.clone()), names: &DRAFT_6, limit, remaining, reset: seconds }
    }
}

/// A quota's member of `RateLimit-Policy`, and the rest.
fn told(style: Fields, name: &str, quota: &Quota) -> (String, Told) {
    // Both below 2³⁴, and so integers of structured fields (RFC 9651 section 3.3.1).
    let (limit, seconds) = quota.in_whole_seconds();
    match style {
        Fields::Draft => {
            (format!(r#""{name}";q={limit};w={seconds}"#), Told { limit, start: format!(r#""{name}";r="#) })
        }
        _ => (format!("{limit};w={seconds}"), Told { limit, start: format!("limit={limit}, remaining=") }),
    }
}

/// The quota that a client runs into first.
fn binding(verdict: &Verdict) -> Option<Standing> {
    verdict.standings().iter().min_by_key(|standing| (standing.remaining, Reverse(standing.seconds))).copied()
}

/// What `Retry-After` says on a refusal, so that no quota says otherwise.
#[derive(Clone, Copy)]
struct Bound {
    latest: u32,
    blocked: bool,
}

impl Bound {
    fn of(verdict: &Verdict) -> Self {
        let wait = || u32::try_from(whole_seconds(verdict.wait)).unwrap_or(u32::MAX).max(1);
        let latest = if verdict.admitted() { u32::MAX } else { wait() };
        Self { latest, blocked: verdict.decision == Decision::Blocked }
    }

    /// How many more requests would be admitted now, and how many seconds on one more than that.
    fn state(self, standing: &Standing) -> (u64, u64) {
        let Self { latest, blocked } = self;
        let (remaining, seconds) =
            if blocked { (0, latest) } else { (standing.remaining, standing.seconds.min(latest)) };
        (remaining.into(), seconds.into())
    }
}

/// Rounded up, so that a client that waits until the stated time is not too early.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, whole_seconds)
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use http::HeaderMap;
    use proptest::prelude::*;
    use sfv::{BareItem, Dictionary, FieldType, List, ListEntry, Parser};

    use super::*;

    fn policy() -> Policy {
        let site = Quota::new(NonZeroU32::new(1600).unwrap(), Duration::from_millis(400)).unwrap();
        Policy::new([Quota::per_second(10).named("burst"), Quota::per_day(10_000)]).ipv6_tier(48, site.named("site"))
    }

    fn verdict(decision: Decision, millis: u64, standings: &[(u8, u32, u32)]) -> Verdict {
        let mut verdict = Verdict::new(decision);
        verdict.wait = Duration::from_millis(millis);
        for &(quota, remaining, seconds) in standings {
            verdict.push(Standing { quota, remaining, seconds });
        }
        verdict
    }

    fn fields(style: Fields, verdict: &Verdict) -> Vec<(String, String)> {
        let policy = policy();
        let quotas: Vec<_> = policy.rules.iter().map(|rule| rule.quota).collect();
        let mut headers = HeaderMap::new();
        Announced::new(style, &policy, &quotas).stamp(verdict).append(&mut headers);
        let text =
            |(name, value): (&http::HeaderName, &HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
        headers.iter().map(text).collect()
    }

    fn check(style: Fields, verdict: &Verdict, expected: &[(&str, &str)]) {
        let found = fields(style, verdict);
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected, "{style:?}");
    }

    #[test]
    fn every_style() {
        let verdict = verdict(Decision::Admitted, 0, &[(0, 9, 1), (1, 9, 8), (2, 4000, 1)]);
        let draft = r#""burst";q=10;w=1, "day";q=10000;w=86400, "site";q=4000;w=1"#;
        let standing = r#""burst";r=9;t=1, "day";r=9;t=8, "site";r=4000;t=1"#;
        check(Fields::Draft, &verdict, &[("ratelimit-policy", draft), ("ratelimit", standing)]);
        let plain = "10;w=1, 10000;w=86400, 4000;w=1";
        let standing = "limit=10000, remaining=9, reset=8";
        check(Fields::Draft7, &verdict, &[("ratelimit-policy", plain), ("ratelimit", standing)]);
        let numbers = [("ratelimit-limit", "10000"), ("ratelimit-remaining", "9"), ("ratelimit-reset", "8")];
        check(Fields::Draft6, &verdict, &[&[("ratelimit-policy", plain)][..], &numbers].concat());
        check(Fields::None, &verdict, &[]);
        let before = unix_time();
        let legacy = fields(Fields::Legacy, &verdict);
        let names: Vec<_> = legacy.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]);
        assert_eq!((legacy[0].1.as_str(), legacy[1].1.as_str()), ("10000", "9"));
        let reset: u64 = legacy[2].1.parse().unwrap();
        assert!((before + 8..=unix_time() + 8).contains(&reset), "{reset}");
    }

    #[test]
    fn the_quota_that_binds_has_the_least_remaining_and_then_the_longest_wait() {
        for (standings, expected) in [
            (&[(0, 3, 1), (1, 2, 1)][..], "limit=10000, remaining=2, reset=1"),
            (&[(0, 2, 9), (1, 3, 1)], "limit=10, remaining=2, reset=9"),
            (&[(0, 0, 1), (1, 0, 9), (2, 0, 3)], "limit=10000, remaining=0, reset=9"),
            (&[(2, 5000, 1)], "limit=4000, remaining=4000, reset=1"),
        ] {
            let found = fields(Fields::Draft7, &verdict(Decision::Admitted, 0, standings));
            assert_eq!(found[1].1, expected);
        }
    }

    #[test]
    fn a_verdict_of_nobody_says_nothing() {
        for style in [Fields::Draft, Fields::Draft7, Fields::Draft6, Fields::Legacy, Fields::None] {
            check(style, &verdict(Decision::Admitted, 0, &[]), &[]);
            check(style, &verdict(Decision::Admitted, 0, &[(9, 1, 1)]), &[]);
        }
    }

    #[test]
    fn a_refusal_states_no_later_time_than_retry_after() {
        for (decision, millis, seconds, stated) in [
            (Decision::Refused, 1001, 2, 2),
            (Decision::Refused, 1000, 2, 1),
            (Decision::Blocked, 0, 30, 1),
            (Decision::Blocked, 60_000, 30, 60),
            (Decision::Inherited, 60_000, 30, 30),
            (Decision::Admitted, 0, 30, 30),
        ] {
            let verdict = verdict(decision, millis, &[(0, 7, seconds)]);
            let remaining = if decision == Decision::Blocked { 0 } else { 7 };
            let draft = format!(r#""burst";r={remaining};t={stated}"#);
            assert_eq!(fields(Fields::Draft, &verdict)[1].1, draft, "{decision:?}");
            let draft_6 = fields(Fields::Draft6, &verdict);
            assert_eq!((draft_6[2].1.as_str(), draft_6[3].1.as_str()), (&*remaining.to_string(), &*stated.to_string()));
        }
    }

    #[test]
    fn stamps_are_small_and_hold_no_more_than_the_text() {
        assert!(size_of::<Stamp>() <= 88, "{}", size_of::<Stamp>());
        // A value of a buffer with room to spare would need a second allocation.
        let text = fields(Fields::Draft, &verdict(Decision::Admitted, 0, &[(0, 9, 1), (1, 0, 12)]));
        assert_eq!(text[1].1.len(), r#""burst";r=9;t=1, "day";r=0;t=12"#.len());
    }

    fn parse<T: FieldType>(text: &str) -> T {
        Parser::new(text).parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn integers(list: &List) -> Vec<(String, Vec<i64>)> {
        let member = |entry: &ListEntry| {
            let ListEntry::Item(item) = entry else { panic!("an inner list") };
            let BareItem::String(name) = &item.bare_item else { panic!("no string") };
            let integer = |value: &BareItem| i64::from(value.as_integer().unwrap());
            (name.to_string(), item.params.values().map(integer).collect())
        };
        list.iter().map(member).collect()
    }

    proptest! {
        #[test]
        fn structured_fields_come_back_as_they_were(
            quotas in prop::collection::vec((1_u32.., 1_u64..1 << 32, 1_u32..), 1..=6),
            standings in prop::collection::vec((any::<u32>(), 1_u32..), 0..=6),
            refused in prop::option::of(0_u64..1 << 50),
        ) {
            const NAMES: [&str; 6] = ["a", "b-2", "c.3", "d_4", "e5", "FF"];
            let quotas: Vec<_> = quotas
                .into_iter()
                .zip(NAMES)
                .map(|((count, seconds, burst), name)| {
                    let count = NonZeroU32::new(u32::try_from(u64::from(count).min(seconds << 16)).unwrap()).unwrap();
                    Quota::new(count, Duration::from_secs(seconds.min((1 << 32) - 1))).unwrap().burst(burst).named(name)
                })
                .collect();
            let policy = Policy::try_from(quotas.as_slice()).unwrap();
            let standings: Vec<_> = (0..).zip(standings).take(quotas.len()).map(|(n, (r, t))| (n, r, t)).collect();
            let decision = if refused.is_some() { Decision::Refused } else { Decision::Admitted };
            let verdict = verdict(decision, refused.unwrap_or(0), &standings);
            let most = refused.map_or(i64::MAX, |millis| i64::try_from(millis.div_ceil(1000).max(1)).unwrap());

            let mut headers = HeaderMap::new();
            Announced::new(Fields::Draft, &policy, &quotas).stamp(&verdict).append(&mut headers);
            prop_assert_eq!(headers.is_empty(), standings.is_empty());
            if let Some(value) = headers.get("ratelimit") {
                let expected: Vec<_> = standings.iter().map(|(n, r, t)| {
                    (NAMES[usize::from(*n)].to_owned(), vec![i64::from(*r), i64::from(*t).min(most)])
                }).collect();
                prop_assert_eq!(integers(&parse(value.to_str().unwrap())), expected);
                let members = integers(&parse(headers["ratelimit-policy"].to_str().unwrap()));
                prop_assert_eq!(members.len(), quotas.len());
                for ((name, numbers), quota) in members.iter().zip(&quotas) {
                    prop_assert_eq!(Some(name.as_str()), quota.name());
                    let (count, seconds) = quota.in_whole_seconds();
                    prop_assert_eq!(numbers.clone(), [count, seconds].map(|n| i64::try_from(n).unwrap()));
                }
            }

            let mut headers = HeaderMap::new();
            Announced::new(Fields::Draft7, &policy, &quotas).stamp(&verdict).append(&mut headers);
            if let Some(value) = headers.get("ratelimit") {
                let standing: Dictionary = parse(value.to_str().unwrap());
                let keys: Vec<_> = standing.keys().map(|key| key.as_str()).collect();
                prop_assert_eq!(keys, ["limit", "remaining", "reset"]);
                parse::<List>(headers["ratelimit-policy"].to_str().unwrap());
            }
        }
    }
}
