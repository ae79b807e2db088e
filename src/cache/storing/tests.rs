use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_700_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn http_date(seconds: u64) -> String {
    httpdate::fmt_http_date(at(seconds))
}

struct Case {
    status: u16,
    headers: HeaderMap,
    handler_ttl: Option<u64>,
    ttl: Option<u64>,
    exact_length: Option<u64>,
    ranged: bool,
    policy: CachePolicy,
    stale: u64,
    delay: u64,
}

fn case(lines: &[(&'static str, &str)]) -> Case {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, value.parse().unwrap());
    }
    let policy = CachePolicy::safe();
    Case {
        status: 200,
        headers,
        handler_ttl: None,
        ttl: None,
        exact_length: None,
        ranged: false,
        policy,
        stale: 0,
        delay: 0,
    }
}

impl Case {
    fn verdict(&self) -> Verdict {
        let exchange = Exchange {
            status: StatusCode::from_u16(self.status).unwrap(),
            headers: &self.headers,
            handler_ttl: self.handler_ttl.map(Duration::from_secs),
            exact_length: self.exact_length,
            ranged: self.ranged,
            requested: at(NOW - self.delay),
            now: at(NOW),
        };
        let rules = Rules {
            policy: &self.policy,
            ttl: self.ttl.map(Duration::from_secs),
            negative_ttl: None,
            stale_while_revalidate: Duration::from_secs(self.stale),
            stale_if_error: Duration::from_secs(self.stale),
            shortened: 0.0,
        };
        assess(&exchange, &rules)
    }

    fn terms(&self) -> Option<Terms> {
        match self.verdict() {
            Verdict::Store(terms) => Some(terms),
            Verdict::Uncacheable | Verdict::Failed => None,
        }
    }

    /// Seconds of freshness left, and age.
    fn fresh(&self) -> Option<(u64, u64)> {
        let terms = self.terms()?;
        let left = terms.fresh_until.duration_since(at(NOW)).unwrap().as_secs();
        Some((left, at(NOW).duration_since(terms.born).unwrap().as_secs()))
    }

    /// Seconds for which it may be served stale: while it is renewed, and instead of an error.
    fn windows(&self) -> (u64, u64) {
        let terms = self.terms().unwrap();
        let beyond = |until: SystemTime| until.duration_since(terms.fresh_until).unwrap().as_secs();
        (beyond(terms.revalidate_until), beyond(terms.error_until))
    }

    fn under(mut self, policy: CachePolicy) -> Self {
        self.policy = policy;
        self
    }
}

#[test]
fn freshness_comes_from_the_fields() {
    let (minute_ago, in_a_minute, now) = (http_date(NOW - 60), http_date(NOW + 60), http_date(NOW));
    for (lines, expected) in [
        (vec![], None),
        (vec![("cache-control", "max-age=60")], Some((60, 0))),
        (vec![("cache-control", "max-age=60, s-maxage=10")], Some((10, 0))),
        (vec![("cache-control", "max-age=60, s-maxage=x")], None),
        (vec![("cache-control", "max-age=60, s-maxage=0")], None),
        (vec![("cache-control", "max-age=60"), ("expires", "0")], Some((60, 0))),
        (vec![("cache-control", "max-age=60"), ("age", "20")], Some((40, 20))),
        (vec![("cache-control", "max-age=60"), ("age", "20, 90")], Some((40, 20))),
        (vec![("cache-control", "max-age=60"), ("age", "-1")], Some((60, 0))),
        (vec![("cache-control", "max-age=60"), ("age", "99999999999999999999")], None),
        (vec![("cache-control", "max-age=90"), ("date", &minute_ago)], Some((30, 60))),
        (vec![("cache-control", "max-age=60"), ("date", &minute_ago)], None),
        (vec![("cache-control", "max-age=60"), ("date", &in_a_minute)], Some((60, 0))),
        (vec![("cache-control", "max-age=99999999999999999999")], Some((MAX_DELTA_SECONDS, 0))),
        (vec![("expires", &in_a_minute)], Some((60, 0))),
        (vec![("expires", &in_a_minute), ("date", &now)], Some((60, 0))),
        (vec![("expires", &in_a_minute), ("date", &minute_ago)], Some((60, 60))),
        (vec![("expires", &in_a_minute), ("date", "yesterday")], Some((60, 0))),
        (vec![("expires", &in_a_minute), ("expires", &now)], None),
        (vec![("expires", &minute_ago)], None),
        (vec![("expires", "0")], None),
        (vec![("expires", "")], None),
        (vec![("cdn-cache-control", "max-age=5"), ("cache-control", "no-store")], Some((5, 0))),
        (vec![("cdn-cache-control", "max-age=5"), ("expires", &in_a_minute)], Some((5, 0))),
        (vec![("cdn-cache-control", "public"), ("expires", &in_a_minute)], None),
        (vec![("cdn-cache-control", "max-age=&"), ("cache-control", "max-age=60")], Some((60, 0))),
    ] {
        assert_eq!(case(&lines).fresh(), expected, "{lines:?}");
    }
}

#[test]
fn the_time_that_the_answer_took_counts() {
    for (lines, expected) in [
        (vec![("cache-control", "max-age=60")], (58, 2)),
        (vec![("cache-control", "max-age=60"), ("age", "20")], (38, 22)),
        (vec![("cache-control", "max-age=60"), ("date", &http_date(NOW - 1))], (58, 2)),
    ] {
        let mut case = case(&lines);
        case.delay = 2;
        assert_eq!(case.fresh(), Some(expected), "{lines:?}");
        case.handler_ttl = Some(7);
        assert_eq!(case.fresh(), Some((7, expected.1)), "a handler's ttl counts from now");
    }
}

#[test]
fn a_handlers_ttl_beats_the_fields_and_those_beat_the_layers() {
    let mut case = case(&[("cache-control", "max-age=60"), ("age", "20")]);
    case.ttl = Some(7);
    assert_eq!(case.fresh(), Some((40, 20)));
    case.handler_ttl = Some(5);
    assert_eq!(case.fresh(), Some((5, 20)));
    case.headers.clear();
    case.handler_ttl = None;
    assert_eq!(case.fresh(), Some((7, 0)));
    case.headers.insert("cache-control", "max-age=0".parse().unwrap());
    assert_eq!(case.fresh(), None);
    case.handler_ttl = Some(0);
    assert_eq!(case.fresh(), None);
}

#[test]
fn some_responses_are_never_stored() {
    for (name, value) in [
        ("cache-control", "no-store"),
        ("cache-control", "NO-STORE, max-age=60"),
        ("cache-control", "Private"),
        ("cache-control", "private=\"\""),
        ("cache-control", "no-cache"),
        ("cache-control", "max-age=60; public"),
        ("set-cookie", "a=b"),
        ("content-range", "bytes 0-1/2"),
        ("vary", "*"),
        ("vary", "accept, *"),
        ("content-length", "x"),
        ("content-length", "+1"),
        ("content-length", "1, 2"),
    ] {
        let mut case = case(&[("cache-control", "s-maxage=60, public"), (name, value)]);
        (case.handler_ttl, case.ttl) = (Some(60), Some(60));
        assert_eq!(case.verdict(), Verdict::Uncacheable, "{name}: {value}");
    }
    let mut contradiction = case(&[("cache-control", "max-age=60"), ("content-length", "5")]);
    contradiction.exact_length = Some(4);
    assert_eq!(contradiction.verdict(), Verdict::Uncacheable);
}

#[test]
fn fields_that_are_one_clients_are_left_out() {
    for value in ["private=\"set-cookie, x-user\"", "no-cache=\"set-cookie, x-user\""] {
        let case = case(&[("cache-control", "max-age=60"), ("cache-control", value), ("set-cookie", "a=b")]);
        assert_eq!(case.terms().unwrap().without, ["set-cookie", "x-user"], "{value}");
        assert_eq!(case.fresh(), Some((60, 0)), "{value}");
    }
    let other = case(&[("cache-control", "max-age=60, private=\"x-user\""), ("set-cookie", "a=b")]);
    assert_eq!(other.verdict(), Verdict::Uncacheable);
}

#[test]
fn what_is_stale_from_the_start_is_stored_if_it_can_be_validated() {
    for (value, expected) in [("no-cache", true), ("max-age=0", true), ("no-cache, max-age=60", true), ("x", false)] {
        let with_tag = case(&[("cache-control", value), ("etag", "\"a\"")]);
        assert_eq!(with_tag.fresh(), expected.then_some((0, 0)), "{value}");
        assert_eq!(case(&[("cache-control", value)]).fresh(), None, "{value} without a validator");
        let mut missing = case(&[("cache-control", value), ("etag", "\"a\"")]);
        missing.status = 404;
        assert_eq!(missing.fresh(), None, "{value} on a 404");
    }
    let stored = case(&[("cache-control", "max-age=7200"), ("etag", "\"a\"")]).terms().unwrap();
    assert_eq!(stored.keep_until, at(NOW + 2 * 7200));
}

#[test]
fn stale_windows() {
    for (value, expected, strict) in [
        ("max-age=1", (9, 9), false),
        ("max-age=1, stale-while-revalidate=5", (5, 9), false),
        ("max-age=1, stale-if-error=5", (9, 5), false),
        ("max-age=1, stale-while-revalidate=0, stale-if-error=x", (0, 0), false),
        ("max-age=1, stale-while-revalidate=5, must-revalidate", (0, 0), true),
        ("max-age=1, stale-if-error=5, proxy-revalidate", (0, 0), true),
        ("s-maxage=1, stale-while-revalidate=5", (0, 0), true),
        ("no-cache, stale-if-error=5", (0, 0), true),
    ] {
        let mut case = case(&[("cache-control", value), ("etag", "\"a\"")]);
        case.stale = 9;
        assert_eq!((case.windows(), case.terms().unwrap().strict), (expected, strict), "{value}");
    }
    let both = case(&[("cache-control", "s-maxage=1, stale-while-revalidate=5")]);
    assert_eq!(both.under(CachePolicy::safe().stale_beside_s_maxage(true)).windows(), (5, 0));
}

#[test]
fn must_understand_stands_over_no_store() {
    for (status, value, expected) in [
        (200, "max-age=60, no-store, must-understand", true),
        (404, "max-age=60, no-store, must-understand", true),
        (299, "max-age=60, no-store, must-understand", false),
        (299, "max-age=60, must-understand", false),
        (299, "max-age=60", true),
    ] {
        let mut case = case(&[("cache-control", value)]);
        case.status = status;
        assert_eq!(case.fresh().is_some(), expected, "{status} {value}");
    }
}

#[test]
fn lifetimes_are_guessed_where_the_policy_allows_it() {
    let changed = http_date(NOW - 1000);
    for (lines, status, expected) in [
        (vec![("last-modified", &*changed)], 200, Some((100, 0))),
        (vec![("last-modified", &changed)], 404, Some((100, 0))),
        (vec![("last-modified", &changed)], 201, None),
        (vec![("last-modified", &changed), ("cache-control", "public")], 599, Some((100, 0))),
        (vec![("last-modified", &changed), ("cache-control", "max-age=0")], 200, Some((0, 0))),
        (vec![("etag", "\"a\"")], 200, Some((0, 0))),
        (vec![], 200, None),
    ] {
        let mut case = case(&lines);
        case.status = status;
        assert!(case.fresh().is_none_or(|fresh| fresh == (0, 0)), "{lines:?} {status} by default");
        assert_eq!(case.under(CachePolicy::rfc9111()).fresh(), expected, "{lines:?} {status}");
    }
    let long_ago = case(&[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
    assert_eq!(long_ago.under(CachePolicy::rfc9111()).fresh(), Some((24 * 3600, 0)));
}

#[test]
fn the_policy_decides_about_cookies_and_parts() {
    let cookie = || case(&[("cache-control", "max-age=60"), ("set-cookie", "a=b")]);
    assert_eq!(cookie().fresh(), None);
    assert_eq!(cookie().under(CachePolicy::rfc9111()).fresh(), Some((60, 0)));
    let mut unstated = case(&[("set-cookie", "a=b"), ("etag", "\"a\"")]).under(CachePolicy::rfc9111());
    unstated.ttl = Some(60);
    assert_eq!(unstated.fresh(), None);
    let mut part = case(&[("cache-control", "max-age=60"), ("content-range", "bytes 0-1/2")]);
    (part.status, part.ranged) = (206, true);
    assert_eq!(part.fresh(), None);
    let mut part = part.under(CachePolicy::rfc9111());
    assert_eq!(part.fresh(), Some((60, 0)));
    part.ranged = false;
    assert_eq!(part.fresh(), None);
}

/// By the safe preset.
const NEVER: [u16; 18] = [206, 304, 400, 401, 403, 406, 407, 408, 411, 412, 413, 415, 416, 417, 421, 425, 429, 431];

#[test]
fn statuses() {
    for status in 100..600 {
        let mut case = case(&[]);
        case.status = status;
        let lost = if status >= 500 { Verdict::Failed } else { Verdict::Uncacheable };
        case.ttl = Some(60);
        let by_default = [200, 203, 204, 300, 301, 308].contains(&status);
        assert_eq!(case.fresh().is_some(), by_default, "{status} with the layer's ttl");
        case.handler_ttl = Some(60);
        let never = status < 200 || NEVER.contains(&status);
        assert_eq!(case.verdict() == lost, never, "{status} with the handler's ttl");
        case.handler_ttl = None;
        case.headers.insert("cache-control", "max-age=60".parse().unwrap());
        assert_eq!(case.verdict() == lost, never, "{status} with max-age");
        let by_rfc = status < 200 || [206, 304, 416].contains(&status);
        assert_eq!(case.under(CachePolicy::rfc9111()).verdict() == lost, by_rfc, "{status} by the RFC");
    }
}

#[test]
fn event_streams_take_no_default() {
    let mut case = case(&[("content-type", "Text/Event-Stream; charset=utf-8")]);
    case.ttl = Some(60);
    assert_eq!(case.verdict(), Verdict::Uncacheable);
    case.headers.insert("cache-control", "max-age=60".parse().unwrap());
    assert_eq!(case.fresh(), Some((60, 0)));
}

#[test]
fn permission_for_credentials_is_explicit() {
    for (value, expected) in [
        ("max-age=60", false),
        ("max-age=60, public", true),
        ("max-age=60, must-revalidate", true),
        ("s-maxage=60", true),
        ("max-age=60, proxy-revalidate", false),
    ] {
        match case(&[("cache-control", value)]).verdict() {
            Verdict::Store(terms) => assert_eq!(terms.shared, expected, "{value}"),
            other => panic!("{value}: {other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn no_combination_keeps_what_is_private(
        mut values in proptest::collection::vec(
            prop_oneof!["public", "max-age=[0-9]{1,12}", "s-maxage=[0-9]{1,3}", "[a-z]{1,5}=\"[a-z, ]{0,5}\""], 0..5),
        poison in prop_oneof!["[Pp]rivate", "[Nn]o-[Ss]tore", "no-cache", "max-age", "a=\""],
        at in 0usize..5,
    ) {
        values.insert(at.min(values.len()), poison);
        let lines: Vec<_> = values.iter().map(|value| ("cache-control", value.as_str())).collect();
        // A bare `max-age` makes the response stale, which a valid `s-maxage` outranks.
        let outranked = lines.iter().any(|(_, value)| value.starts_with("s-maxage="))
            && lines.iter().any(|(_, value)| *value == "max-age");
        prop_assert!(outranked || case(&lines).fresh().is_none());
    }

    #[test]
    fn nothing_is_fresh_for_longer_than_it_says(max_age in 0u64..1000, age in 0u64..1000, old in 0u64..1000) {
        let (control, age_line, date) = (format!("max-age={max_age}"), age.to_string(), http_date(NOW - old));
        let left = case(&[("cache-control", &control), ("age", &age_line), ("date", &date)]).fresh();
        let expected = max_age.checked_sub(age.max(old)).filter(|left| *left > 0);
        prop_assert_eq!(left.map(|(left, _)| left), expected);
    }
}
