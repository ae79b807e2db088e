//! Fields of any form in requests and responses: no panic, what must not be stored is not served twice, and a part of
//! the body is the part that it says it is.
#![no_main]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use libfuzzer_sys::fuzz_target;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::cache::{CacheLayer, MemoryStore};

const ANSWERED: [&str; 10] = [
    "cache-control",
    "expires",
    "date",
    "age",
    "vary",
    "content-length",
    "set-cookie",
    "etag",
    "last-modified",
    "cdn-cache-control",
];
const ASKED: [&str; 8] =
    ["range", "if-range", "if-none-match", "if-modified-since", "cache-control", "pragma", "authorization", "cookie"];
const BODY: &[u8] = b"a body of some length";

type Fields = Vec<(u8, Vec<u8>)>;

fn headers(names: &'static [&'static str], fields: &Fields) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields.iter().take(16) {
        let name = HeaderName::from_static(names[usize::from(*name) % names.len()]);
        headers.append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(headers)
}

fuzz_target!(|input: (Fields, Fields)| {
    let (Some(answered), Some(asked)) = (headers(&ANSWERED, &input.0), headers(&ASKED, &input.1)) else { return };
    let says = |name, word: &[u8]| answered.get_all(name).iter().any(|line| line.as_bytes().eq_ignore_ascii_case(word));
    let forbidden = answered.contains_key("set-cookie")
        || (says("cache-control", b"no-store") && !answered.contains_key("cdn-cache-control"))
        || says("vary", b"*");
    let calls = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let (counter, answered) = (calls.clone(), answered.clone());
        let handler = service_fn(move |_: Request<Empty<Bytes>>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
            *response.headers_mut() = answered.clone();
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let service = CacheLayer::new(MemoryStore::new(1 << 20)).layer(handler);
        for fields in [HeaderMap::new(), asked] {
            let mut request = Request::get("/a").header("host", "example.com").body(Empty::new()).expect("valid");
            request.headers_mut().extend(fields);
            let response = service.clone().oneshot(request).await.expect("infallible");
            let (head, body) = response.into_parts();
            // A body that contradicts its Content-Length may end in an error, never in a hang.
            if let Ok(body) = body.collect().await {
                check(&head, &body.to_bytes());
            }
        }
    });
    if forbidden {
        assert_eq!(calls.load(Ordering::Relaxed), 2, "{answered:?}");
    }
});

fn check(head: &Parts, body: &[u8]) {
    match head.status.as_u16() {
        200 => assert_eq!(body, BODY),
        206 if head.headers.contains_key("content-range") => {
            let range = head.headers["content-range"].to_str().expect("ours");
            let range = range.strip_prefix("bytes ").and_then(|range| range.split_once('/')).expect("a part of bytes");
            let (first, last) = range.0.split_once('-').expect("two positions");
            let (first, last): (usize, usize) = (first.parse().expect("digits"), last.parse().expect("digits"));
            assert_eq!((body, range.1), (&BODY[first..=last], BODY.len().to_string().as_str()));
        }
        206 => assert!(head.headers["content-type"].as_bytes().starts_with(b"multipart/byteranges")),
        304 | 416 => assert!(body.is_empty()),
        _ => panic!("{head:?}"),
    }
}
