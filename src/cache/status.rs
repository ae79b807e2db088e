//! `Cache-Status` (RFC 9211): what this cache did with a request.

use std::io::Write;

use http::header::InvalidHeaderValue;
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
    append(headers, HeaderValue::from_str(&format!("tower-scale; fwd={}{answered}{mark}", forward.as_str())));
}

/// Neither a hit nor a forward: the client forbade the one, and nothing was there for the other.
pub(super) fn not_forwarded(headers: &mut HeaderMap) {
    append(headers, Ok(HeaderValue::from_static("tower-scale; detail=only-if-cached")));
}

/// A short text and a number as a value, with one allocation: this is the fast path.
pub(super) fn numbered(text: &str, number: u64) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut buffer = [0; 48];
    let mut rest = buffer.as_mut_slice();
    let _ = write!(rest, "{text}{number}");
    let unused = rest.len();
    HeaderValue::from_bytes(buffer.get(..buffer.len() - unused).unwrap_or_default())
}

/// Our member comes last: caches nearer to the origin have added theirs before.
fn append(headers: &mut HeaderMap, member: Result<HeaderValue, InvalidHeaderValue>) {
    if let Ok(value) = member {
        headers.append(CACHE_STATUS, value);
    }
}
