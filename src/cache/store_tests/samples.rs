//! Keys and records of every shape.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::cache::early::Cost;
use crate::cache::entry::{Entry, Head, Kind, Record};
use crate::cache::key::{Key, MAX_KEY_BYTES};
use crate::cache::vary::VarySpec;

/// Long enough for any run, short enough to leave no litter.
const LIFETIME: Duration = Duration::from_secs(3600);

pub(super) struct Samples {
    run: u64,
    next: AtomicU64,
}

impl Samples {
    pub(super) fn new() -> Self {
        Self { run: RandomState::new().hash_one(SystemTime::now()), next: AtomicU64::new(0) }
    }

    /// A number that no other record of this run has.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A key that nobody has used.
    pub(super) fn key(&self) -> Key {
        self.key_with(&self.number().to_be_bytes())
    }

    /// The same key for the same `tail`, within this run. Cut where it gets too long.
    pub(super) fn key_with(&self, tail: &[u8]) -> Key {
        let mut bytes = b"store-tests".to_vec();
        bytes.extend_from_slice(&self.run.to_be_bytes());
        bytes.extend_from_slice(tail);
        bytes.truncate(MAX_KEY_BYTES);
        Key::new(&bytes).unwrap_or_else(|| unreachable!("it is short enough"))
    }

    /// A small response that differs from all others.
    pub(super) fn small(&self) -> Record {
        response(self.number(), 64)
    }

    /// One of each shape, with its name. No body is longer than `longest`.
    pub(super) fn shapes(&self, longest: usize) -> Vec<(&'static str, Record)> {
        let base = head(self.number());
        let with = |head: Head, body: usize| record(head, body);
        vec![
            ("a small response", with(base.clone(), 100)),
            ("an empty body", with(base.clone(), 0)),
            ("a body of one byte", with(base.clone(), 1)),
            ("a body of the longest length", with(base.clone(), longest)),
            ("no fields", with(Head { headers: HeaderMap::new().into(), ..base.clone() }, 10)),
            ("hundred fields", with(Head { headers: many_fields().into(), ..base.clone() }, 10)),
            ("lines of one field", with(Head { headers: lines().into(), ..base.clone() }, 10)),
            ("bytes beyond ASCII", with(Head { headers: strange_values().into(), ..base.clone() }, 10)),
            ("a 404 for everybody", with(Head { status: StatusCode::NOT_FOUND, shared: true, ..base.clone() }, 10)),
            ("a strict response", with(Head { strict: true, ..base.clone() }, 10)),
            ("tags", with(Head { tags: ["a".into(), "b c".into(), "ü".into()].into(), ..base.clone() }, 10)),
            ("a vary spec", vary(self.number(), &[])),
            ("a vary spec with variants", vary(self.number(), &[self.key(), self.key_with(&[0xff; MAX_KEY_BYTES])])),
        ]
    }
}

/// Its number is in it.
pub(super) fn response(number: u64, body: usize) -> Record {
    record(head(number), body)
}

/// The number in a response: in its tag, or else at the beginning of its body.
pub(super) fn number_of(record: &Record) -> Option<u64> {
    let Kind::Response(entry) = &record.0 else { return None };
    let tag = entry.head.headers.get(ETAG).and_then(|tag| tag.to_str().ok()?.trim_matches('"').parse().ok());
    tag.or_else(|| entry.body.first_chunk().copied().map(u64::from_be_bytes))
}

/// Whether a response's body belongs to its head.
pub(super) fn is_whole(record: &Record) -> bool {
    match &record.0 {
        Kind::Response(entry) => {
            number_of(record).is_some_and(|number| entry.body == pattern(number, entry.body.len()))
        }
        Kind::Vary(_) => true,
    }
}

/// With the stamp that it was put with: a store that several processes share gives it another one.
pub(super) fn redated(record: Record) -> Record {
    match (number_of(&record), record.0) {
        (Some(stamp), Kind::Response(entry)) => {
            let head = Head { stamp, ..Head::clone(&entry.head) };
            Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: entry.body.clone() })))
        }
        (_, Kind::Vary(spec)) => Record(Kind::Vary(Arc::new(VarySpec { stamp: 0, ..VarySpec::clone(&spec) }))),
        (None, kind) => Record(kind),
    }
}

pub(super) fn vary(number: u64, variants: &[Key]) -> Record {
    let names = [HeaderName::from_static("accept"), HeaderName::from_static("x-shape")].into();
    let until = SystemTime::now() + LIFETIME;
    let variants = variants.to_vec();
    Record(Kind::Vary(Arc::new(VarySpec { names, generation: number, until, variants, stamp: 0 })))
}

/// Expired a minute ago.
pub(super) fn expired(number: u64) -> Record {
    let then = SystemTime::now() - Duration::from_secs(60);
    let times = Head { fresh_until: then, revalidate_until: then, error_until: then, keep_until: then, ..head(number) };
    record(times, 10)
}

/// Has no form as bytes.
pub(super) fn formless(number: u64) -> Record {
    record(Head { born: UNIX_EPOCH - Duration::from_secs(1), ..head(number) }, 10)
}

fn record(head: Head, body: usize) -> Record {
    let body = pattern(head.stamp, body);
    Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body })))
}

fn pattern(number: u64, length: usize) -> Bytes {
    let mut bytes = number.to_be_bytes().repeat(length / 8 + 1);
    bytes.truncate(length);
    bytes.shrink_to_fit();
    bytes.into()
}

/// No two times are equal, and none is a whole number of milliseconds.
fn head(number: u64) -> Head {
    let born = SystemTime::now();
    let at = |n: u32| born + LIFETIME + Duration::new(n.into(), n);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Ok(tag) = format!("\"{number}\"").parse() {
        headers.insert(ETAG, tag);
    }
    Head {
        status: StatusCode::OK,
        headers: headers.into(),
        born,
        fresh_until: at(1),
        revalidate_until: at(2),
        error_until: at(3),
        keep_until: at(4),
        shared: false,
        strict: false,
        stamp: number,
        tags: [].into(),
        cost: Cost::new(Duration::from_nanos(number.saturating_add(1)), at(1)).into(),
    }
}

fn many_fields() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for n in 0..100 {
        if let Ok(name) = HeaderName::try_from(format!("x-field-{n}")) {
            headers.append(name, HeaderValue::from(n));
        }
    }
    headers
}

fn lines() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in ["b", "a", "", "b"] {
        headers.append(http::header::LINK, HeaderValue::from_static(value));
    }
    headers
}

fn strange_values() -> HeaderMap {
    let value = HeaderValue::from_bytes(b"\xff\xfe \t\x80").unwrap_or_else(|_| unreachable!("allowed since HTTP/1.1"));
    HeaderMap::from_iter([(http::header::SERVER, value)])
}
