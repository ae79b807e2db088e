//! Field values as text: one character per byte (Latin-1), so that a case can name any byte.

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

pub fn name(text: &str) -> HeaderName {
    HeaderName::from_bytes(text.as_bytes()).unwrap_or_else(|_| panic!("not a field name: {text:?}"))
}

/// Without the whitespace around it, which no parser hands on.
pub fn value(text: &str) -> HeaderValue {
    let bytes: Vec<u8> = text.trim_matches([' ', '\t']).chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect();
    HeaderValue::from_bytes(&bytes).unwrap_or_else(|_| panic!("not a field value: {text:?}"))
}

pub fn text(value: &HeaderValue) -> String {
    value.as_bytes().iter().map(|byte| char::from(*byte)).collect()
}

/// All lines of a field as one.
pub fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<_> = headers.get_all(name).iter().map(text).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

pub fn set_default(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    if let Entry::Vacant(vacant) = headers.entry(name) {
        vacant.insert(HeaderValue::from_static(value));
    }
}
