//! What may be stored, for how long, and for whom (RFC 9111 §3 and §4.2): plain functions, with the time as an argument.

use std::time::{Duration, SystemTime};

use http::header::{AGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, EXPIRES, SET_COOKIE, TRAILER, UPGRADE};
use http::{HeaderMap, HeaderName, StatusCode};

use super::directives::{CacheControl, MAX_DELTA_SECONDS, Seconds, delta_seconds};
use super::vary;

/// A response's head, and what is known about how it came to be.
pub(super) struct Exchange<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    /// What the handler says ([`CacheTtl`](super::CacheTtl)).
    pub(super) handler_ttl: Option<Duration>,
    /// What the layer says, for responses that say nothing.
    pub(super) default_ttl: Option<Duration>,
    /// The length that the body itself states.
    pub(super) exact_length: Option<u64>,
    pub(super) requested: SystemTime,
    pub(super) now: SystemTime,
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
    /// Also for requests with credentials (RFC 9111 §3.5).
    pub(super) shared: bool,
    pub(super) vary: Option<vary::Names>,
    pub(super) length: Option<u64>,
}

/// Decides about one response.
pub(super) fn assess(exchange: &Exchange<'_>) -> Verdict {
    match terms(exchange) {
        Some(terms) => Verdict::Store(terms),
        None if exchange.status.is_server_error() => Verdict::Failed,
        None => Verdict::Uncacheable,
    }
}

fn terms(exchange: &Exchange<'_>) -> Option<Terms> {
    let headers = exchange.headers;
    let control = CacheControl::of(headers);
    if control.no_store || control.private || control.no_cache || control.malformed || is_personal_or_partial(headers) {
        return None;
    }
    let length = content_length(headers, exchange.exact_length).ok()?;
    let freshness = freshness(exchange, &control)?;
    Some(Terms {
        born: exchange.now.checked_sub(freshness.age)?,
        fresh_until: exchange.now.checked_add(freshness.remaining)?,
        shared: control.public || control.must_revalidate || matches!(control.s_maxage, Seconds::Valid(_)),
        vary: vary::names(headers).ok()?,
        length,
    })
}

fn is_personal_or_partial(headers: &HeaderMap) -> bool {
    [SET_COOKIE, CONTENT_RANGE, TRAILER, UPGRADE].iter().any(|name| headers.contains_key(name))
}

/// Never stored, whatever they say: not a whole answer (1xx, 206, 304), or about this client and moment.
fn is_never_stored(status: StatusCode) -> bool {
    status.is_informational() || matches!(status.as_u16(), 206 | 304 | 401 | 403 | 407 | 416 | 421 | 425 | 429)
}

/// Stored under the layer's default TTL, which asks no handler.
fn is_stored_by_default(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308)
}

struct Freshness {
    age: Duration,
    remaining: Duration,
}

/// `None`: stale on arrival, or nobody gave it a lifetime.
fn freshness(exchange: &Exchange<'_>, control: &CacheControl) -> Option<Freshness> {
    if is_never_stored(exchange.status) {
        return None;
    }
    let age = initial_age(exchange);
    let remaining = if let Some(ttl) = exchange.handler_ttl {
        ttl
    } else if let Some(lifetime) = stated_lifetime(exchange, control) {
        Duration::from_secs(lifetime?).checked_sub(age)?
    } else if is_stored_by_default(exchange.status) && !is_event_stream(exchange.headers) {
        exchange.default_ttl?
    } else {
        return None;
    };
    let remaining = remaining.min(Duration::from_secs(MAX_DELTA_SECONDS));
    (!remaining.is_zero()).then_some(Freshness { age, remaining })
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// What the fields say (RFC 9111 §4.2.1). `None`: nothing; `Some(None)`: something that cannot be used, so stale.
fn stated_lifetime(exchange: &Exchange<'_>, control: &CacheControl) -> Option<Option<u64>> {
    for seconds in [control.s_maxage, control.max_age] {
        match seconds {
            Seconds::Absent => {}
            Seconds::Valid(seconds) => return Some(Some(seconds)),
            Seconds::Invalid => return Some(None),
        }
    }
    match date(exchange.headers, &EXPIRES) {
        Date::Absent => None,
        Date::Invalid => Some(None),
        Date::Valid(expires) => {
            let date = match date(exchange.headers, &DATE) {
                Date::Valid(date) => date,
                Date::Absent => exchange.now,
                Date::Invalid => return Some(None),
            };
            Some(expires.duration_since(date).ok().map(|lifetime| lifetime.as_secs()))
        }
    }
}

/// RFC 9111 §4.2.3. The delay of our own request counts only where `Age` shows that another cache answered it: the
/// handler itself makes its response now, however long that takes.
fn initial_age(exchange: &Exchange<'_>) -> Duration {
    let apparent = match date(exchange.headers, &DATE) {
        Date::Valid(date) => exchange.now.duration_since(date).unwrap_or_default(),
        Date::Absent | Date::Invalid => Duration::ZERO,
    };
    // `Date` has whole seconds: less than one is rounding, not age.
    let apparent = if apparent < Duration::from_secs(1) { Duration::ZERO } else { apparent };
    let corrected = age_field(exchange.headers).map_or(Duration::ZERO, |age| {
        let delay = exchange.now.duration_since(exchange.requested).unwrap_or_default();
        Duration::from_secs(age) + delay
    });
    apparent.max(corrected)
}

/// The first member; an invalid one is ignored (RFC 9111 §5.1).
fn age_field(headers: &HeaderMap) -> Option<u64> {
    let line = headers.get(AGE)?.as_bytes();
    delta_seconds(line.split(|byte| *byte == b',').next()?.trim_ascii())
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

/// Any of the three forms of RFC 9110 §5.6.7.
pub(super) fn parse_date(value: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()
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
        default_ttl: Option<u64>,
        exact_length: Option<u64>,
    }

    fn case(lines: &[(&'static str, &str)]) -> Case {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        Case { status: 200, headers, handler_ttl: None, default_ttl: None, exact_length: None }
    }

    impl Case {
        fn verdict(&self) -> Verdict {
            assess(&Exchange {
                status: StatusCode::from_u16(self.status).unwrap(),
                headers: &self.headers,
                handler_ttl: self.handler_ttl.map(Duration::from_secs),
                default_ttl: self.default_ttl.map(Duration::from_secs),
                exact_length: self.exact_length,
                requested: at(NOW - 2),
                now: at(NOW),
            })
        }

        /// Seconds of freshness left, and age.
        fn fresh(&self) -> Option<(u64, u64)> {
            match self.verdict() {
                Verdict::Store(terms) => {
                    let left = terms.fresh_until.duration_since(at(NOW)).unwrap().as_secs();
                    Some((left, at(NOW).duration_since(terms.born).unwrap().as_secs()))
                }
                Verdict::Uncacheable | Verdict::Failed => None,
            }
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
            (vec![("cache-control", "max-age=60"), ("age", "20")], Some((38, 22))),
            (vec![("cache-control", "max-age=60"), ("age", "20, 90")], Some((38, 22))),
            (vec![("cache-control", "max-age=60"), ("age", "-1")], Some((60, 0))),
            (vec![("cache-control", "max-age=60"), ("age", "99999999999999999999")], None),
            (vec![("cache-control", "max-age=90"), ("date", &minute_ago)], Some((30, 60))),
            (vec![("cache-control", "max-age=60"), ("date", &minute_ago)], None),
            (vec![("cache-control", "max-age=60"), ("date", &in_a_minute)], Some((60, 0))),
            (vec![("cache-control", "max-age=99999999999999999999")], Some((MAX_DELTA_SECONDS, 0))),
            (vec![("expires", &in_a_minute)], Some((60, 0))),
            (vec![("expires", &in_a_minute), ("date", &now)], Some((60, 0))),
            (vec![("expires", &in_a_minute), ("date", &minute_ago)], Some((60, 60))),
            (vec![("expires", &in_a_minute), ("date", "yesterday")], None),
            (vec![("expires", &in_a_minute), ("expires", &now)], None),
            (vec![("expires", &minute_ago)], None),
            (vec![("expires", "0")], None),
            (vec![("expires", "")], None),
        ] {
            assert_eq!(case(&lines).fresh(), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_handlers_ttl_beats_the_fields_and_those_beat_the_layers() {
        let mut case = case(&[("cache-control", "max-age=60"), ("age", "20")]);
        case.default_ttl = Some(7);
        assert_eq!(case.fresh(), Some((38, 22)));
        case.handler_ttl = Some(5);
        assert_eq!(case.fresh(), Some((5, 22)));
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
            ("cache-control", "private=\"x\""),
            ("cache-control", "no-cache"),
            ("cache-control", "no-cache=\"x\""),
            ("cache-control", "max-age=60; public"),
            ("set-cookie", "a=b"),
            ("content-range", "bytes 0-1/2"),
            ("trailer", "x"),
            ("upgrade", "h2c"),
            ("vary", "*"),
            ("vary", "accept, *"),
            ("content-length", "x"),
            ("content-length", "+1"),
            ("content-length", "1, 2"),
        ] {
            let mut case = case(&[("cache-control", "s-maxage=60, public"), (name, value)]);
            (case.handler_ttl, case.default_ttl) = (Some(60), Some(60));
            assert_eq!(case.verdict(), Verdict::Uncacheable, "{name}: {value}");
        }
        let mut contradiction = case(&[("cache-control", "max-age=60"), ("content-length", "5")]);
        contradiction.exact_length = Some(4);
        assert_eq!(contradiction.verdict(), Verdict::Uncacheable);
    }

    #[test]
    fn statuses() {
        for status in 100..600 {
            let mut case = case(&[]);
            case.status = status;
            let lost = if status >= 500 { Verdict::Failed } else { Verdict::Uncacheable };
            case.default_ttl = Some(60);
            let by_default = [200, 203, 204, 300, 301, 308].contains(&status);
            assert_eq!(case.fresh().is_some(), by_default, "{status} with the layer's ttl");
            case.handler_ttl = Some(60);
            let never = status < 200 || [206, 304, 401, 403, 407, 416, 421, 425, 429].contains(&status);
            assert_eq!(case.verdict() == lost, never, "{status} with the handler's ttl");
            case.handler_ttl = None;
            case.headers.insert("cache-control", "max-age=60".parse().unwrap());
            assert_eq!(case.verdict() == lost, never, "{status} with max-age");
        }
    }

    #[test]
    fn event_streams_take_no_default() {
        let mut case = case(&[("content-type", "Text/Event-Stream; charset=utf-8")]);
        case.default_ttl = Some(60);
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
            let expected = max_age.checked_sub((age + 2).max(old)).filter(|left| *left > 0);
            prop_assert_eq!(left.map(|(left, _)| left), expected);
        }
    }
}
