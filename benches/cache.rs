//! The cost of a response cache per request: a memory hit through the layer, and what a miss adds to a bare service.

#![allow(clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tower::{Layer, Service};
use tower_scale::cache::{CacheLayer, CacheTtl, MemoryStore};

#[derive(Clone)]
struct Kibibyte;

impl Service<Request<Empty<Bytes>>> for Kibibyte {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        static BODY: [u8; 1024] = [b'x'; 1024];
        let mut response = Response::new(Full::new(Bytes::from_static(&BODY)));
        response.extensions_mut().insert(CacheTtl(Duration::from_secs(3600)));
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain"));
        ready(Ok(response))
    }
}

fn request(n: u64) -> Request<Empty<Bytes>> {
    let uri = format!("/products/{n}");
    Request::builder().uri(uri).header("host", "shop.example").body(Empty::new()).expect("a valid request")
}

fn cache(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("cache");
    let mut bare = Kibibyte;
    group.bench_function("bare", |bencher| {
        bencher.iter(|| runtime.block_on(async { black_box(bare.call(request(1)).await) }));
    });
    let mut cached = CacheLayer::new(MemoryStore::new(64 << 20)).layer(Kibibyte);
    runtime.block_on(async { cached.call(request(1)).await.expect("infallible").into_body().collect().await.ok() });
    group.bench_function("hit", |bencher| {
        bencher.iter(|| runtime.block_on(async { black_box(cached.call(request(1)).await) }));
    });
    let mut n = 1;
    group.bench_function("miss", |bencher| {
        bencher.iter(|| {
            n += 1;
            runtime
                .block_on(async { cached.call(request(n)).await.expect("infallible").into_body().collect().await.ok() })
        });
    });
    group.finish();
}

criterion_group!(benches, cache);
criterion_main!(benches);
