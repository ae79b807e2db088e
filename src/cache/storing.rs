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
        400 | 401 | 403 | 406..=408 | 411..=413 | 415 | 417 | 421 | 425 | 429 | 431 => policy.any_status,
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
mod tests;
