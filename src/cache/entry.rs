//! A stored response, and how it is given out again.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, DATE, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::conditional;
use super::date;
use super::early::Cost;
use super::fields::Fields;
use super::range::{self, Selection};
use super::status::number;
use super::storing::Terms;
use super::vary::VarySpec;

/// How far another machine's clock, or a stepped one, may be off.
const MAX_SKEW: Duration = Duration::from_secs(60);

/// A response's status and fields, as stored, and how long they may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: Fields,
    pub(super) born: SystemTime,
    pub(super) fresh_until: SystemTime,
    /// Until when it may be served stale while it is renewed; not after `fresh_until` where that is not allowed.
    pub(super) revalidate_until: SystemTime,
    /// Until when it may be served instead of an error.
    pub(super) error_until: SystemTime,
    /// From then on it is of no use at all, not even to be validated.
    pub(super) keep_until: SystemTime,
    /// Also for requests with credentials (RFC 9111 §3.5).
    pub(super) shared: bool,
    /// Never stale, whatever the request allows (`must-revalidate` and its kin).
    pub(super) strict: bool,
    /// When its request was forwarded, in microseconds of the Unix era: a purge that is no older voids it.
    pub(super) stamp: u64,
    /// What purges of tags look for.
    pub(super) tags: Arc<[Box<str>]>,
    /// Known when its body has ended; of what is never renewed ahead of its time, not at all.
    pub(super) cost: OnceLock<Cost>,
}

/// The record of a response.
pub(super) fn record(entry: Arc<Entry>) -> Record {
    Record(Kind::Response(entry))
}

/// Where a stored response comes from.
pub(super) struct Provenance {
    pub(super) received: SystemTime,
    pub(super) stamp: u64,
    pub(super) tags: Arc<[Box<str>]>,
}

/// A whole stored response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) head: Arc<Head>,
    pub(super) body: Bytes,
}

/// What a store holds under one key: a response, or by what a URL's responses vary. Cloning it is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record(pub(super) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The response itself.
    Response(Arc<Entry>),
    /// The URL's responses vary: each is stored under a key of its own.
    Vary(Arc<VarySpec>),
}

impl Record {
    /// How long it is of any use after `now`, be it stale or only for validation. `None`: it is not.
    ///
    /// A store that can expire what it holds should do so then.
    #[must_use]
    pub fn keep_for(&self, now: SystemTime) -> Option<Duration> {
        let until = match &self.0 {
            Kind::Response(entry) => entry.head.keep_until,
            Kind::Vary(spec) => spec.until,
        };
        until.duration_since(now).ok().filter(|left| !left.is_zero())
    }

    /// Whether both are one and the same stored thing.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Kind::Response(left), Kind::Response(right)) => Arc::ptr_eq(left, right),
            (Kind::Vary(left), Kind::Vary(right)) => Arc::ptr_eq(left, right),
            (Kind::Response(_), Kind::Vary(_)) | (Kind::Vary(_), Kind::Response(_)) => false,
        }
    }
}

impl Head {
    /// Of a response that came at `received`: it gets that `Date` if it has none (RFC 9110 §6.6.1).
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, terms: &Terms, origin: &Provenance) -> Self {
        let mut headers = end_to_end(headers);
        for name in &terms.without {
            headers.remove(name);
        }
        if !headers.contains_key(DATE)
            && let Some(date) = date::write(origin.received)
        {
            headers.insert(DATE, date);
        }
        Self {
            status,
            headers: headers.into(),
            born: terms.born,
            fresh_until: terms.fresh_until,
            revalidate_until: terms.revalidate_until,
            error_until: terms.error_until,
            keep_until: terms.keep_until,
            shared: terms.shared,
            strict: terms.strict,
            stamp: origin.stamp,
            tags: origin.tags.clone(),
            cost: OnceLock::new(),
        }
    }

    pub(super) fn is_fresh(&self, now: SystemTime) -> bool {
        now < self.fresh_until && !self.is_from_the_future(now)
    }

    /// This clock is far behind the one that was read when the entry was made: it would never expire.
    pub(super) fn is_from_the_future(&self, now: SystemTime) -> bool {
        // The sum is worth a comparison.
        now < self.born && now + MAX_SKEW <= self.born
    }

    /// Whole seconds of freshness left.
    pub(super) fn ttl(&self, now: SystemTime) -> u64 {
        self.fresh_until.duration_since(now).unwrap_or_default().as_secs()
    }

    /// Whole seconds since it expired, rounded up.
    pub(super) fn stale_for(&self, now: SystemTime) -> u64 {
        now.duration_since(self.fresh_until).map_or(0, |stale| stale.as_secs() + u64::from(stale.subsec_nanos() > 0))
    }

    /// RFC 9111 §4.2.3. A clock that went back, or another machine's, never makes an age negative.
    pub(super) fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.born).unwrap_or_default()
    }

    /// Status and fields for one more client, with `Age`, and a place for `Cache-Status`.
    pub(super) fn response<T>(&self, now: SystemTime, body: T) -> Response<T> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.answer(number(self.age(now).as_secs()), None);
        response
    }

    /// What part of the body a GET asks for, once it is known how long that is.
    pub(super) fn part(&self, request: &HeaderMap, length: u64) -> Selection {
        if self.status == StatusCode::OK && request.contains_key(RANGE) {
            range::select(request, &self.headers, length)
        } else {
            Selection::Whole
        }
    }

    /// The client already holds it.
    pub(super) fn is_held_by(&self, request: &HeaderMap) -> bool {
        self.status == StatusCode::OK && conditional::not_modified(request, &self.headers)
    }

    /// RFC 9110 §15.4.5: without what only describes the content that is not sent.
    pub(super) fn not_modified<T>(&self, now: SystemTime, empty: T) -> Response<T> {
        let mut response = self.response(now, empty);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE] {
            response.headers_mut().remove(name);
        }
        response
    }
}

impl Entry {
    pub(super) fn new(head: Arc<Head>, body: Bytes) -> Self {
        Self { head, body }
    }

    /// The answer to a plain GET, with this member of `Cache-Status`: put together in place, since it is large.
    #[inline]
    pub(super) fn whole<T>(&self, now: SystemTime, member: HeaderValue, wrap: impl FnOnce(Bytes) -> T) -> Response<T> {
        let mut response = Response::new(wrap(self.body.clone()));
        *response.status_mut() = self.head.status;
        *response.headers_mut() = self.head.headers.answer(number(self.head.age(now).as_secs()), Some(member));
        response
    }

    /// The answer to a GET or HEAD request that this entry satisfies.
    pub(super) fn answer(&self, is_head: bool, request: &HeaderMap, now: SystemTime) -> Response<Bytes> {
        let head = &*self.head;
        if head.is_held_by(request) {
            return head.not_modified(now, Bytes::new());
        }
        if !is_head {
            let response = head.response(now, self.body.clone());
            return match head.part(request, self.body.len() as u64) {
                Selection::Whole => response,
                part => range::apply(part, response),
            };
        }
        let mut response = head.response(now, Bytes::new());
        if head.status != StatusCode::NO_CONTENT {
            let length = || HeaderValue::from(self.body.len());
            response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(length);
        }
        response
    }
}

/// The fields that may be stored (RFC 9111 §3.1): not those of one connection, nor of one proxy. `Age` is made anew.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    const HOP_BY_HOP: [HeaderName; 11] = [
        AGE,
        CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        PROXY_AUTHENTICATE,
        HeaderName::from_static("proxy-authentication-info"),
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    let mut kept = headers.clone();
    for line in headers.get_all(CONNECTION) {
        for member in line.as_bytes().split(|byte| *byte == b',') {
            if let Ok(name) = HeaderName::from_bytes(member.trim_ascii()) {
                kept.remove(name);
            }
        }
    }
    for name in HOP_BY_HOP {
        kept.remove(name);
    }
    kept.values_mut().for_each(own);
    kept
}

/// A client's parser hands out slices of its read buffer: a stored one would keep all of that alive.
fn own(value: &mut HeaderValue) {
    if let Ok(mut copy) = HeaderValue::from_bytes(value.as_bytes()) {
        copy.set_sensitive(value.is_sensitive());
        *value = copy;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A head with these times, and nothing else in it.
    pub(in super::super) fn head(born: SystemTime, fresh_until: SystemTime) -> Head {
        Head {
            status: StatusCode::OK,
            headers: HeaderMap::new().into(),
            born,
            fresh_until,
            revalidate_until: fresh_until,
            error_until: fresh_until,
            keep_until: fresh_until,
            shared: false,
            strict: false,
            stamp: 0,
            tags: [].into(),
            cost: OnceLock::new(),
        }
    }

    fn terms(at: SystemTime) -> Terms {
        Terms {
            born: at,
            fresh_until: at,
            revalidate_until: at,
            error_until: at,
            keep_until: at,
            shared: false,
            strict: false,
            vary: None,
            length: None,
            without: Vec::new(),
        }
    }

    #[test]
    fn a_clock_far_behind_uses_nothing() {
        let born = SystemTime::now();
        let fresh_until = born + Duration::from_secs(10);
        let head = head(born, fresh_until);
        assert!(head.is_fresh(born) && !head.is_fresh(fresh_until));
        assert!(head.is_fresh(born - Duration::from_secs(59)) && !head.is_fresh(born - Duration::from_secs(61)));
        assert_eq!(head.age(born - Duration::from_secs(59)), Duration::ZERO);
    }

    #[test]
    fn a_response_without_date_gets_the_one_of_its_arrival() {
        let received = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let terms = terms(received);
        let origin = Provenance { received, stamp: 0, tags: [].into() };
        let date = |lines: &[(HeaderName, &str)]| {
            let headers = lines.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
            Head::new(StatusCode::OK, &headers, &terms, &origin).headers[DATE].clone()
        };
        assert_eq!(date(&[]), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(&[(DATE, "Sun, 06 Nov 1994 08:49:30 GMT")]), "Sun, 06 Nov 1994 08:49:30 GMT");
    }

    #[test]
    fn a_stored_field_keeps_no_larger_buffer_alive() {
        let buffer = Bytes::from(vec![b'a'; 1 << 16]);
        let value = HeaderValue::from_maybe_shared(buffer.slice(..5)).unwrap();
        let kept = end_to_end(&HeaderMap::from_iter([(CONTENT_TYPE, value)]));
        assert_eq!(kept[CONTENT_TYPE], "aaaaa");
        assert!(buffer.is_unique());
    }

    #[test]
    fn what_belongs_to_a_connection_is_not_stored() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "X-Hop, keep-alive"),
            ("connection", "x-other"),
            ("x-hop", "1"),
            ("x-other", "1"),
            ("transfer-encoding", "chunked"),
            ("age", "7"),
            ("link", "a"),
            ("link", "b"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let kept = end_to_end(&headers);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept.get_all("link").iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
