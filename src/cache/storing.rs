//! What may be stored, for how long, and for whom (RFC 9111 §3 and §4.2): plain functions, with the time as an argument.

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPIRES, LAST_MODIFIED, SET_COOKIE,
    VARY,
};
use http::{HeaderMap, HeaderName, StatusCode};

use super::date::parse as parse_date;
use super::directives::{CacheControl, Fields, MAX_DELTA_SECONDS, Seconds, delta_seconds};
use super::policy::CachePolicy;
use super::vary;

/// A lifetime is guessed as this part of the time since the last change, as RFC 9111 §4.2.2 suggests, and never longer
/// than a day.
const HEURISTIC_PART: u32 = 10;
const MAX_HEURISTIC: Duration = Duration::from_secs(24 * 3600);
/// What has expired but can be validated is kept for as long again as it was fresh, within these bounds.
const MIN_KEPT: Duration = Duration::from_secs(3600);
const MAX_KEPT: Duration = Duration::from_secs(24 * 3600);
/// More than any field can say.
const FOREVER: Duration = Duration::from_secs(MAX_DELTA_SECONDS);

/// A response's head, and what is known about how it came to be.
pub(super) struct Exchange<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    /// What the handler says ([`CacheTtl`](super::CacheTtl)).
    pub(super) handler_ttl: Option<Duration>,
    /// The length that the body itself states.
    pub(super) exact_length: Option<u64>,
    /// The request had a `Range`, and no `If-Range`.
    pub(super) ranged: bool,
    pub(super) requested: SystemTime,
    pub(super) now: SystemTime,
}

/// What the layer is told.
pub(super) struct Rules<'a> {
    pub(super) policy: &'a CachePolicy,
    /// For responses that say nothing.
    pub(super) ttl: Option<Duration>,
    /// For 404 and 410 that say nothing.
    pub(super) negative_ttl: Option<Duration>,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
    /// The part of the lifetime that is taken off, from 0 to 1.
    pub(super) shortened: f64,
}

/// The decision at the head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Store(Terms),
    /// It is one client's, or nobody may keep it.
    Uncacheable,
    /// A server error that nobody asked to keep: the next one may do better.
    Failed,
}

/// How a stored response may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// When the response was (or would have been) generated: its age is counted from here.
    pub(super) born: SystemTime,
    pub(super) fresh_until: SystemTime,
    pub(super) revalidate_until: SystemTime,
    pub(super) error_until: SystemTime,
    pub(super) keep_until: SystemTime,
    /// Also for requests with credentials (RFC 9111 §3.5).
    pub(super) shared: bool,
    /// Never stale, whatever the request or the layer allows.
    pub(super) strict: bool,
    pub(super) vary: Option<vary::Names>,
    pub(super) length: Option<u64>,
    /// Fields that are not for others (`private` and `no-cache` with a list).
    pub(super) without: Vec<HeaderName>,
}

impl Terms {
    /// Of a response that nobody else may have.
    pub(super) fn expired(now: SystemTime) -> Self {
        Self {
            born: now,
            fresh_until: now,
            revalidate_until: now,
            error_until: now,
            keep_until: now,
            shared: false,
            strict: true,
            vary: None,
            length: None,
            without: Vec::new(),
        }
    }
}

/// Decides about one response.
pub(super) fn assess(exchange: &Exchange<'_>, rules: &Rules<'_>) -> Verdict {
    match terms(exchange, rules) {
        Some(terms) => Verdict::Store(terms),
        None if exchange.status.is_server_error() => Verdict::Failed,
        None => Verdict::Uncacheable,
    }
}

/// Whether the fields themselves say for how long (RFC 9110 §9.3.3 asks this of a response to POST).
pub(super) fn states_lifetime(headers: &HeaderMap, policy: &CachePolicy) -> bool {
    let control = CacheControl::targeted(headers, &policy.targeted);
    let by_expires = control.is_none() && headers.contains_key(EXPIRES);
    let control = control.unwrap_or_else(|| CacheControl::of(headers));
    control.s_maxage != Seconds::Absent || control.max_age != Seconds::Absent || by_expires
}

fn terms(exchange: &Exchange<'_>, rules: &Rules<'_>) -> Option<Terms> {
    let headers = exchange.headers;
    if exchange.handler_ttl == Some(Duration::ZERO) {
        return None;
    }
    let targeted = CacheControl::targeted(headers, &rules.policy.targeted);
    let is_targeted = targeted.is_some();
    let control = targeted.unwrap_or_else(|| CacheControl::of(headers));
    let without = permitted(&control, exchange.status)?;
    if !may_store_status(exchange, rules.policy) {
        return None;
    }
    let length = content_length(headers, exchange.exact_length).ok()?;
    let freshness = freshness(exchange, rules, &control, is_targeted)?;
    let sets_cookie = headers.contains_key(SET_COOKIE) && !without.contains(&SET_COOKIE);
    if sets_cookie && !(rules.policy.store_set_cookie && freshness.stated) {
        return None;
    }
    let windows = windows(rules, &control, &freshness);
    let can_be_validated =
        exchange.status == StatusCode::OK && (headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED));
    let fresh_until = exchange.now.checked_add(freshness.remaining)?;
    let revalidate_until = fresh_until.checked_add(windows.revalidate)?;
    let error_until = fresh_until.checked_add(windows.error)?;
    let mut keep_until = revalidate_until.max(error_until);
    if can_be_validated || rules.policy.request_directives && !windows.strict && !freshness.remaining.is_zero() {
        keep_until = keep_until.checked_add(freshness.remaining.clamp(MIN_KEPT, MAX_KEPT))?;
    }
    if keep_until <= exchange.now {
        return None;
    }
    Some(Terms {
        born: exchange.now.checked_sub(freshness.age)?,
        fresh_until,
        revalidate_until,
        error_until,
        keep_until,
        shared: control.public || control.must_revalidate || matches!(control.s_maxage, Seconds::Valid(_)),
        strict: windows.strict,
        vary: vary::names(headers).ok()?,
        length,
        without,
    })
}

/// RFC 9111 §3: which fields must be left out. `None`: nothing of it may be stored.
fn permitted(control: &CacheControl, status: StatusCode) -> Option<Vec<HeaderName>> {
    let understood = control.must_understand && is_understood(status);
    if control.malformed || (control.no_store || control.must_understand) && !understood {
        return None;
    }
    let mut without = Vec::new();
    for fields in [&control.private, &control.no_cache] {
        if let Fields::Named(names) = fields {
            without.extend(names.iter().cloned());
        }
    }
    // Without these it could not be told later for whom the rest is.
    if without.contains(&VARY) || without.contains(&CACHE_CONTROL) {
        return None;
    }
    (control.private != Fields::All).then_some(without)
}

fn may_store_status(exchange: &Exchange<'_>, policy: &CachePolicy) -> bool {
    let partial = exchange.status == StatusCode::PARTIAL_CONTENT;
    let has_range = exchange.headers.contains_key(CONTENT_RANGE);
    match exchange.status.as_u16() {
        _ if has_range != partial => false,
        100..200 | 304 | 416 => false,
        206 => policy.store_partial && exchange.ranged,
        401 | 403 | 407 | 421 | 425 | 429 => policy.any_status,
        _ => true,
    }
}

/// Stored under the layer's default TTL, which asks no handler.
fn is_stored_by_default(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308)
}

/// RFC 9110 §15.1: whose lifetime may be guessed.
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// RFC 9111 §5.2.2.3: the final status codes of RFC 9110 whose caching requirements this module implements.
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 305 | 307 | 308 | 400..=415 | 417 | 421 | 422 | 426 | 500..=505)
}

struct Freshness {
    age: Duration,
    /// Zero: it has to be validated before every use.
    remaining: Duration,
    /// The response itself says how long.
    stated: bool,
    /// It was stale when it came.
    never_fresh: bool,
    /// The layer's lifetime for what is missing, which nothing prolongs.
    negative: bool,
}

/// `None`: nobody gave it a lifetime.
fn freshness(
    exchange: &Exchange<'_>,
    rules: &Rules<'_>,
    control: &CacheControl,
    is_targeted: bool,
) -> Option<Freshness> {
    let age = initial_age(exchange);
    let stated = stated_lifetime(exchange, control, is_targeted);
    let is_stated = stated.is_some() || control.no_cache == Fields::All;
    let left = |lifetime: Duration| lifetime.checked_sub(age).unwrap_or_default();
    let remaining = if control.no_cache == Fields::All {
        Duration::ZERO
    } else if let Some(ttl) = exchange.handler_ttl {
        ttl
    } else if let Some(lifetime) = stated {
        left(Duration::from_secs(lifetime))
    } else {
        default_ttl(exchange, rules).or_else(|| guessed_lifetime(exchange, rules, control).map(left))?
    };
    let remaining = remaining.min(FOREVER);
    let missing = matches!(exchange.status, StatusCode::NOT_FOUND | StatusCode::GONE);
    let negative = missing && !is_stated && exchange.handler_ttl.is_none() && rules.negative_ttl.is_some();
    let never_fresh = remaining.is_zero();
    let remaining = remaining.mul_f64(1.0 - rules.shortened);
    Some(Freshness { age, remaining, stated: is_stated, never_fresh, negative })
}

fn default_ttl(exchange: &Exchange<'_>, rules: &Rules<'_>) -> Option<Duration> {
    match exchange.status {
        StatusCode::NOT_FOUND | StatusCode::GONE => rules.negative_ttl,
        status if is_stored_by_default(status) && !is_event_stream(exchange.headers) => rules.ttl,
        _ => None,
    }
}

/// RFC 9111 §4.2.2.
fn guessed_lifetime(exchange: &Exchange<'_>, rules: &Rules<'_>, control: &CacheControl) -> Option<Duration> {
    let may_guess = control.public || is_heuristically_cacheable(exchange.status);
    if !rules.policy.heuristics || !may_guess || is_event_stream(exchange.headers) {
        return None;
    }
    let Date::Valid(changed) = date(exchange.headers, &LAST_MODIFIED) else { return Some(Duration::ZERO) };
    let unchanged_for = served(exchange).duration_since(changed).unwrap_or_default();
    Some((unchanged_for / HEURISTIC_PART).min(MAX_HEURISTIC))
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// What the fields say (RFC 9111 §4.2.1), in seconds; zero where that cannot be used. `None`: nothing.
fn stated_lifetime(exchange: &Exchange<'_>, control: &CacheControl, is_targeted: bool) -> Option<u64> {
    for seconds in [control.s_maxage, control.max_age] {
        match seconds {
            Seconds::Absent => {}
            Seconds::Valid(seconds) => return Some(seconds),
            Seconds::Invalid => return Some(0),
        }
    }
    // A targeted field stands for `Expires` too (RFC 9213 §2.2).
    if is_targeted {
        return None;
    }
    match date(exchange.headers, &EXPIRES) {
        Date::Absent => None,
        Date::Invalid => Some(0),
        Date::Valid(expires) => Some(expires.duration_since(served(exchange)).unwrap_or_default().as_secs()),
    }
}

/// When the response was made; without a usable `Date`, when it came (RFC 9110 §6.6.1).
fn served(exchange: &Exchange<'_>) -> SystemTime {
    match date(exchange.headers, &DATE) {
        Date::Valid(date) => date,
        Date::Absent | Date::Invalid => exchange.now,
    }
}

/// RFC 9111 §4.2.3, the time that the answer took included.
fn initial_age(exchange: &Exchange<'_>) -> Duration {
    let apparent = exchange.now.duration_since(served(exchange)).unwrap_or_default();
    // `Date` has whole seconds: less than one is rounding, not age.
    let apparent = if apparent < Duration::from_secs(1) { Duration::ZERO } else { apparent };
    let delay = exchange.now.duration_since(exchange.requested).unwrap_or_default();
    apparent.max(Duration::from_secs(age_field(exchange.headers).unwrap_or(0)) + delay)
}

/// The first member; an invalid one is ignored (RFC 9111 §5.1).
fn age_field(headers: &HeaderMap) -> Option<u64> {
    let line = headers.get(AGE)?.as_bytes();
    delta_seconds(line.split(|byte| *byte == b',').next()?.trim_ascii())
}

/// For how long beyond its lifetime a response may be served.
struct Windows {
    strict: bool,
    revalidate: Duration,
    error: Duration,
}

/// RFC 5861, within RFC 9111 §4.2.4.
fn windows(rules: &Rules<'_>, control: &CacheControl, freshness: &Freshness) -> Windows {
    let forbidden = control.must_revalidate || control.proxy_revalidate || control.no_cache == Fields::All;
    let by_s_maxage = control.s_maxage != Seconds::Absent;
    let default =
        |period: Duration, withheld: bool| if withheld || freshness.negative { Duration::ZERO } else { period };
    let revalidate = default(rules.stale_while_revalidate, freshness.never_fresh);
    let error = default(rules.stale_if_error, false);
    let window = |stated: Seconds, default: Duration| match stated {
        _ if forbidden => Duration::ZERO,
        Seconds::Valid(seconds) if !by_s_maxage || rules.policy.stale_beside_s_maxage => Duration::from_secs(seconds),
        Seconds::Absent if !by_s_maxage => default,
        Seconds::Valid(_) | Seconds::Absent | Seconds::Invalid => Duration::ZERO,
    };
    Windows {
        strict: forbidden || by_s_maxage,
        revalidate: window(control.stale_while_revalidate, revalidate).min(FOREVER),
        error: window(control.stale_if_error, error).min(FOREVER),
    }
}

enum Date {
    Absent,
    Valid(SystemTime),
    Invalid,
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Date {
    let mut lines = headers.get_all(name).iter();
    let Some(first) = lines.next() else { return Date::Absent };
    if lines.any(|line| line != first) {
        return Date::Invalid;
    }
    parse_date(first.as_bytes()).map_or(Date::Invalid, Date::Valid)
}

/// The length that the response promises. `Err`: it contradicts itself.
fn content_length(headers: &HeaderMap, exact: Option<u64>) -> Result<Option<u64>, ()> {
    let mut length = exact;
    for line in headers.get_all(CONTENT_LENGTH) {
        for member in line.as_bytes().split(|byte| *byte == b',') {
            let stated = parse_length(member.trim_ascii()).ok_or(())?;
            if length.is_some_and(|length| length != stated) {
                return Err(());
            }
            length = Some(stated);
        }
    }
    Ok(length)
}

/// Digits only, without a sign.
pub(super) fn parse_length(value: &[u8]) -> Option<u64> {
    if value.iter().all(u8::is_ascii_digit) { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
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
        for (value, expected) in [("no-cache", true), ("max-age=0", true), ("no-cache, max-age=60", true), ("x", false)]
        {
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
            let never = status < 200 || [206, 304, 401, 403, 407, 416, 421, 425, 429].contains(&status);
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
}
