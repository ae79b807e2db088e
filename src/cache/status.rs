//! `Cache-Status` (RFC 9211): what this cache did with a request.

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// The field itself.
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went on to the inner service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    /// The cache was not asked.
    Bypass,
    /// The method is none that it answers.
    Method,
    /// Nothing is stored for the URL.
    UriMiss,
    /// Only responses to other request fields are stored.
    VaryMiss,
    /// What is stored has expired, or may be used only after validation.
    Stale,
    /// What is stored may not be given to this request: it has credentials, or asks for something fresher.
    Request,
}

impl Forward {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// What became of a forwarded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Plain,
    /// The response is being stored.
    Stored,
    /// The response of another request's forward was used.
    Collapsed,
    /// What is stored was served instead of an error.
    Rescued,
}

/// A hit, with the seconds of freshness left.
pub(super) fn hit(headers: &mut HeaderMap, ttl: u64) {
    append(headers, numbered("tower-scale; hit; ttl=", ttl));
}

/// A hit that expired so many seconds ago.
pub(super) fn stale_hit(headers: &mut HeaderMap, stale_for: u64) {
    append(headers, numbered("tower-scale; hit; ttl=-", stale_for));
}

/// A forward; with the status that came back, where it is not the one that goes out.
pub(super) fn forwarded(headers: &mut HeaderMap, forward: Forward, answered: Option<StatusCode>, mark: Mark) {
    let answered = answered.map_or(String::new(), |status| format!("; fwd-status={}", status.as_u16()));
    let mark = match mark {
        Mark::Plain => "",
        Mark::Stored => "; stored",
        Mark::Collapsed => "; collapsed",
        Mark::Rescued => "; detail=stale-if-error",
    };
    if let Ok(member) = HeaderValue::from_str(&format!("tower-scale; fwd={}{answered}{mark}", forward.as_str())) {
        append(headers, member);
    }
}

/// A short text and a number as a value. Without `fmt`, which takes longer than the rest of a hit's fields together.
pub(super) fn numbered(text: &str, number: u64) -> HeaderValue {
    let mut buffer = [0; 48];
    let (mut start, mut left) = (buffer.len(), number);
    let mut places = buffer.iter_mut().enumerate().rev();
    for (at, place) in places.by_ref() {
        *place = b'0' + u8::try_from(left % 10).unwrap_or(0);
        (start, left) = (at, left / 10);
        if left == 0 {
            break;
        }
    }
    for ((at, place), byte) in places.zip(text.bytes().rev()) {
        (*place, start) = (byte, at);
    }
    HeaderValue::from_bytes(buffer.get(start..).unwrap_or_default()).unwrap_or(HeaderValue::from_static(""))
}

/// Our member comes last: caches nearer to the origin have added theirs before. What is stored has a blank line in its
/// place, and a blank line says nothing.
fn append(headers: &mut HeaderMap, member: HeaderValue) {
    match headers.try_entry(CACHE_STATUS) {
        // A map of 24576 names takes no more.
        Err(_) => {}
        Ok(Entry::Vacant(place)) => drop(place.try_insert(member)),
        Ok(Entry::Occupied(mut lines)) => match lines.iter_mut().next_back().filter(|last| last.is_empty()) {
            Some(place) => *place = member,
            None => lines.append(member),
        },
    }
}
