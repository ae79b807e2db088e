//! Response fields of any form: no panic, and what must not be stored is not served twice.
#![no_main]

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use libfuzzer_sys::fuzz_target;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::cache::{CacheLayer, MemoryStore};

const NAMES: [&str; 8] = ["cache-control", "expires", "date", "age", "vary", "content-length", "set-cookie", "etag"];

fuzz_target!(|fields: Vec<(u8, Vec<u8>)>| {
    let mut response = Response::new(());
    for (name, value) in fields.iter().take(16) {
        let name = HeaderName::from_static(NAMES[usize::from(*name) % NAMES.len()]);
        let Ok(value) = HeaderValue::from_bytes(value) else { return };
        response.headers_mut().append(name, value);
    }
    let headers = response.headers().clone();
    let forbidden = headers.contains_key("set-cookie")
        || headers.get_all("cache-control").iter().any(|line| line.as_bytes().eq_ignore_ascii_case(b"no-store"))
        || headers.get_all("vary").iter().any(|line| line.as_bytes() == b"*");
    let calls = AtomicUsize::new(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let calls = std::sync::Arc::new(calls);
    runtime.block_on(async {
        let counter = calls.clone();
        let handler = service_fn(move |_: Request<Empty<Bytes>>| {
            counter.fetch_add(1, Ordering::Relaxed);
            let mut response = Response::new(Full::new(Bytes::from_static(b"body")));
            *response.headers_mut() = headers.clone();
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let service = CacheLayer::new(MemoryStore::new(1 << 20)).layer(handler);
        for _ in 0..2 {
            let request = Request::get("/a").header("host", "example.com").body(Empty::new()).expect("valid");
            let response = service.clone().oneshot(request).await.expect("infallible");
            // A body that contradicts its Content-Length may end in an error, never in a hang.
            let _ = response.into_body().collect().await;
        }
    });
    if forbidden {
        assert_eq!(calls.load(Ordering::Relaxed), 2, "{response:?}");
    }
});
