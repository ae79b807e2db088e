//! The cost of a response cache per request: a memory hit through the layer, on one thread and on several, and what a
//! miss adds to a bare service, until its first byte and in all.

#![allow(clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::sync::Barrier;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use tower::{Layer, Service};
use tower_scale::cache::{Cache, CacheLayer, CacheTtl, MemoryStore};

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
    for (name, mut service) in [("bare, first byte", None), ("miss, first byte", Some(&mut cached))] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|requests| {
                let mut took = Duration::ZERO;
                for _ in 0..requests {
                    n += 1;
                    took += runtime.block_on(async {
                        match &mut service {
                            None => first_byte(&mut bare, n).await,
                            Some(cached) => first_byte(*cached, n).await,
                        }
                    });
                }
                took
            });
        });
    }
    for threads in [1, 2, 4] {
        group.bench_function(format!("hit, {threads} threads"), |bencher| {
            bencher.iter_custom(|requests| hits_on(threads, requests, &cached));
        });
    }
    group.finish();
}

/// How long a request takes until the first bytes of the body; the rest is read after that.
async fn first_byte<S, B>(service: &mut S, n: u64) -> Duration
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let request = request(n);
    let started = Instant::now();
    let mut body = service.call(request).await.expect("infallible").into_body();
    drop(black_box(body.frame().await));
    let took = started.elapsed();
    while body.frame().await.is_some() {}
    tokio::task::yield_now().await;
    took
}

/// The time of `requests` hits on every one of the threads, which ask for the same.
fn hits_on(threads: usize, requests: u64, cached: &Cache<Kibibyte>) -> Duration {
    let start = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let mut cached = cached.clone();
            let start = &start;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                start.wait();
                runtime.block_on(async {
                    for _ in 0..requests {
                        black_box(cached.call(request(1)).await.expect("infallible"));
                    }
                });
                start.wait();
            });
        }
        start.wait();
        let started = Instant::now();
        start.wait();
        started.elapsed()
    })
}

criterion_group!(benches, cache);
criterion_main!(benches);
