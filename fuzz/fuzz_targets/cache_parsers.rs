//! What the cache reads from fields, each parser by itself: no panic, agreement with an oracle or with itself.
#![no_main]
#![allow(dead_code, unused_imports)]

use std::ops::Range;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, PRAGMA, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use libfuzzer_sys::fuzz_target;
use sfv::{BareItem, ListEntry, Parser};

use directives::{CacheControl, RequestControl};
use range::Selection;
use structured::{Dictionary, Item};

// The parsers are private to the crate, and need nothing from the rest of it.
#[path = "../../src/cache/conditional.rs"]
mod conditional;
#[path = "../../src/cache/date.rs"]
mod date;
#[path = "../../src/cache/directives.rs"]
mod directives;
#[path = "../../src/cache/partial.rs"]
mod partial;
#[path = "../../src/cache/range.rs"]
mod range;
#[path = "../../src/cache/request_control.rs"]
mod request_control;
#[path = "../../src/cache/structured.rs"]
mod structured;
#[path = "../../src/cache/tokens.rs"]
mod tokens;

const TARGET: HeaderName = HeaderName::from_static("cdn-cache-control");

fuzz_target!(|input: (Vec<u8>, Vec<u8>, u16)| {
    let (first, second, length) = input;
    dictionary(&first);
    dates(&first);
    let (Ok(first), Ok(second)) = (HeaderValue::from_bytes(&first), HeaderValue::from_bytes(&second)) else { return };
    directives_of(&first, &second);
    conditions(&first, &second);
    ranges(&first, &second, length);
});

fn lines(fields: &[(HeaderName, &HeaderValue)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(name, (*value).clone());
    }
    headers
}

fn dictionary(field: &[u8]) {
    let expected: Option<sfv::Dictionary> = Parser::new(field).parse().ok();
    let found = Dictionary::parse(field);
    assert_eq!(found.is_some(), expected.is_some());
    let (Some(found), Some(expected)) = (found, expected) else { return };
    assert_eq!(found.is_empty(), expected.is_empty());
    for (key, entry) in &expected {
        let item = match entry {
            ListEntry::InnerList(_) => Item::Other,
            ListEntry::Item(item) => match &item.bare_item {
                BareItem::Boolean(value) => Item::Boolean(*value),
                BareItem::Integer(value) => Item::Integer((*value).into()),
                BareItem::String(value) => Item::String(value.as_str().as_bytes().into()),
                _ => Item::Other,
            },
        };
        assert_eq!(found.get(key.as_str()), Some(&item), "{key}");
    }
}

fn dates(value: &[u8]) {
    let Some(date) = date::parse(value) else { return };
    assert_eq!(date::parse(httpdate::fmt_http_date(date).as_bytes()), Some(date));
    assert_eq!(date::parse(&value.to_ascii_uppercase()), Some(date));
    assert_eq!(date::parse(&value.to_ascii_lowercase()), Some(date));
    let leap = value.windows(3).any(|second| second == b":60");
    let known = std::str::from_utf8(value).ok().and_then(|text| httpdate::parse_http_date(text).ok());
    assert!(leap || known.is_none_or(|known| known == date));
}

fn directives_of(first: &HeaderValue, second: &HeaderValue) {
    let both = HeaderValue::from_bytes(&[first.as_bytes(), b", ", second.as_bytes()].concat()).expect("both are valid");
    let apart = CacheControl::of(&lines(&[(CACHE_CONTROL, first), (CACHE_CONTROL, second)]));
    let joined = CacheControl::of(&lines(&[(CACHE_CONTROL, &both)]));
    assert!(apart.malformed || apart == joined);
    let no_store = HeaderValue::from_static("No-Store");
    assert!(CacheControl::of(&lines(&[(CACHE_CONTROL, first), (CACHE_CONTROL, &no_store)])).no_store);

    let targeted = |fields: &[(HeaderName, &HeaderValue)]| CacheControl::targeted(&lines(fields), &[TARGET]);
    assert_eq!(targeted(&[(TARGET, first), (TARGET, second)]), targeted(&[(TARGET, &both)]));
    let no_store = HeaderValue::from_static("no-store");
    assert!(targeted(&[(TARGET, first), (TARGET, &no_store)]).is_none_or(|control| control.no_store));

    let asked = RequestControl::of(&lines(&[(CACHE_CONTROL, first), (PRAGMA, second)]));
    assert_eq!(asked, RequestControl::of(&lines(&[(CACHE_CONTROL, first)])));
    RequestControl::of(&lines(&[(PRAGMA, second)]));
}

fn conditions(first: &HeaderValue, second: &HeaderValue) {
    let stored = lines(&[(ETAG, first), (LAST_MODIFIED, second)]);
    conditional::not_modified(&lines(&[(IF_NONE_MATCH, second)]), &stored);
    let dated = conditional::not_modified(&lines(&[(IF_MODIFIED_SINCE, second)]), &stored);
    assert_eq!(dated, date::parse(second.as_bytes()).is_some());
    let tag = first.as_bytes().strip_prefix(b"\"").and_then(|tag| tag.strip_suffix(b"\""));
    if tag.is_some_and(|tag| !tag.contains(&b'"')) {
        assert!(conditional::not_modified(&lines(&[(IF_NONE_MATCH, first)]), &stored));
        assert!(conditional::is_same_strong_tag(first.as_bytes(), first.as_bytes()));
    }
}

fn ranges(asked: &HeaderValue, condition: &HeaderValue, length: u16) {
    let body: Bytes = (0..length).map(|at| at.to_le_bytes()[0]).collect();
    let stored = lines(&[(ETAG, condition)]);
    let alone = range::select(&lines(&[(RANGE, asked)]), &stored, length.into());
    let guarded = range::select(&lines(&[(RANGE, asked), (IF_RANGE, condition)]), &stored, length.into());
    assert!(guarded == Selection::Whole || guarded == alone);
    let parts: &[Range<u64>] = match &alone {
        Selection::One(part) => std::slice::from_ref(part),
        Selection::Many(parts) => parts,
        Selection::Whole | Selection::Unsatisfiable => &[],
    };
    assert!(parts.iter().all(|part| part.start < part.end && part.end <= length.into()));
    assert!(parts.len() <= 16 && parts.iter().map(|part| part.end - part.start).sum::<u64>() <= length.into());
    let response = range::apply(alone.clone(), Response::new(body.clone()));
    let status = response.status().as_u16();
    match alone {
        Selection::Whole => assert_eq!((status, response.body()), (200, &body)),
        Selection::Unsatisfiable => assert_eq!((status, response.body().len()), (416, 0)),
        Selection::One(part) => {
            let expected = &body[usize::try_from(part.start).unwrap()..usize::try_from(part.end).unwrap()];
            assert_eq!((status, &response.body()[..]), (206, expected));
        }
        Selection::Many(_) => assert_eq!(status, 206),
    }
}
