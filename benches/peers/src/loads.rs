//! What one request after the other on one thread does not show: misses, threads, many keys, and many clients at once.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_http_cache::backend::memory::InMemoryBackend;
use tower_scale::cache::{CacheLayer, MemoryStore};

use crate::measure::{Subject, middle};
use crate::subjects::{BODY, handler};

const HOUR: Duration = Duration::from_secs(3600);
const BUDGET: u64 = 64 << 20;

fn get<R: Default>(key: u32) -> Request<R> {
    Request::get(format!("/products/{key}")).header(header::HOST, "example.com").body(R::default()).expect("valid")
}

async fn ask<S, R, B>(service: &mut S, key: u32)
where
    S: Service<Request<R>, Response = Response<B>>,
    S::Error: Debug,
    R: Default,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let response = service.ready().await.expect("ready").call(get(key)).await.expect("an answer");
    assert_eq!(response.into_body().collect().await.expect("a whole body").to_bytes().len(), BODY.len());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Misses of known length: the time to the first byte of the body; what follows it is not measured.
pub fn first_bytes() -> Vec<Subject> {
    let ours = CacheLayer::new(MemoryStore::new(BUDGET)).layer(service_fn(handler::<Full<Bytes>, Full<Bytes>>));
    vec![first_byte("bare service", service_fn(handler::<Full<Bytes>, Full<Bytes>>)), first_byte("tower-scale", ours)]
}

fn first_byte<S, B>(name: &'static str, mut service: S) -> Subject
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + 'static,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Debug,
{
    let (runtime, mut key) = (runtime(), 0);
    let serve = move |requests: u32| {
        let mut took = Duration::ZERO;
        runtime.block_on(async {
            for _ in 0..requests {
                key += 1;
                let request = get(key);
                let started = Instant::now();
                let response = service.ready().await.expect("ready").call(request).await.expect("an answer");
                let mut body = response.into_body();
                let first = body.frame().await.expect("a frame").expect("no error");
                took += started.elapsed();
                drop(first);
                while body.frame().await.is_some() {}
                tokio::task::yield_now().await;
            }
        });
        took
    };
    Subject { name, serve: Box::new(serve) }
}

/// Hits of one key from several threads, each with a clone of the service and a runtime of its own.
pub fn threads(rounds: usize, requests: u32) {
    println!("\nhits of one hot key, requests per second: median of {rounds} rounds of {requests} requests per thread");
    println!("{:<38} {:>12} {:>12} {:>12} {:>9} {:>9}", "", "1 thread", "2 threads", "4 threads", "2 : 1", "4 : 1");
    let plain = || service_fn(handler::<Full<Bytes>, Full<Bytes>>);
    on_threads::<_, Full<Bytes>, _>("bare service", plain(), rounds, requests);
    on_threads("tower-scale", CacheLayer::new(MemoryStore::new(BUDGET)).layer(plain()), rounds, requests);
    let peer = tower_http_cache::layer::CacheLayer::builder(InMemoryBackend::new(10_000)).ttl(HOUR).build();
    on_threads("tower-http-cache 0.6.1", peer.layer(plain()), rounds, requests);
    let peer = axum_response_cache::CacheLayer::with_lifespan(HOUR);
    on_threads("axum-response-cache 0.5.0, axum body", peer.layer(service_fn(handler::<Body, Body>)), rounds, requests);
}

fn on_threads<S, R, B>(name: &str, service: S, rounds: usize, requests: u32)
where
    S: Service<Request<R>, Response = Response<B>> + Clone + Send,
    S::Error: Debug,
    R: Default,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let mut service = service;
    runtime().block_on(ask(&mut service, 1));
    let counts = [1, 2, 4];
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (threads, rates) in counts.into_iter().zip(&mut rates) {
            let start = Barrier::new(threads);
            let serve = |mut service: S| {
                let runtime = runtime();
                start.wait();
                let started = Instant::now();
                runtime.block_on(async {
                    for _ in 0..requests {
                        ask(&mut service, 1).await;
                    }
                });
                (started, Instant::now())
            };
            let spans: Vec<_> = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads)
                    .map(|_| {
                        let service = service.clone();
                        scope.spawn(|| serve(service))
                    })
                    .collect();
                running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            let first = spans.iter().map(|span| span.0).min().expect("a thread");
            let last = spans.iter().map(|span| span.1).max().expect("a thread");
            rates.push(threads as f64 * f64::from(requests) / (last - first).as_secs_f64());
        }
    }
    let [one, two, four] = rates.map(middle);
    println!("{name:<38} {one:>12.0} {two:>12.0} {four:>12.0} {:>9.2} {:>9.2}", two / one, four / one);
}

/// A Zipf distribution over 1 M keys of 1 KiB each, far more than fit.
pub fn zipf(requests: usize) {
    const KEYS: usize = 1_000_000;
    let keys = zipf_keys(KEYS, requests);
    println!(
        "\n{requests} requests over {KEYS} keys (Zipf, exponent 0.99), 64 MiB, 1 KiB bodies, after as many to warm up"
    );
    println!("{:<48} {:>9} {:>14}", "", "hits", "ns per request");
    let calls = Arc::new(AtomicU64::new(0));
    let counted = || {
        let calls = calls.clone();
        service_fn(move |request: Request<Full<Bytes>>| {
            calls.fetch_add(1, Ordering::Relaxed);
            handler::<Full<Bytes>, Full<Bytes>>(request)
        })
    };
    let layer = CacheLayer::new(MemoryStore::new(BUDGET));
    let handle = layer.handle();
    run_zipf("tower-scale", layer.layer(counted()), &keys, &calls);
    let entries = handle.stats().entries.expect("known");
    // Theirs is bounded in entries: it gets as many as ours held, and as many as bodies alone would take.
    for (name, entries) in [("as many entries", entries), ("65 536 entries", BUDGET >> 10)] {
        let peer = tower_http_cache::layer::CacheLayer::builder(InMemoryBackend::new(entries)).ttl(HOUR).build();
        run_zipf(&format!("tower-http-cache 0.6.1 (moka), {name}: {entries}"), peer.layer(counted()), &keys, &calls);
    }
}

fn run_zipf<S, B>(name: &str, mut service: S, keys: &[u32], calls: &AtomicU64)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let (warm, measured) = keys.split_at(keys.len() / 2);
    runtime().block_on(async {
        for key in warm {
            ask(&mut service, *key).await;
        }
        calls.store(0, Ordering::Relaxed);
        let started = Instant::now();
        for key in measured {
            ask(&mut service, *key).await;
        }
        let took = started.elapsed();
        let misses = calls.load(Ordering::Relaxed) as f64 / measured.len() as f64;
        println!(
            "{name:<48} {:>8.1}% {:>14.0}",
            100.0 * (1.0 - misses),
            took.as_secs_f64() * 1e9 / measured.len() as f64
        );
    });
}

/// Twice as many as are measured, the same in every run.
pub fn zipf_keys(keys: usize, requests: usize) -> Vec<u32> {
    let mut sums = Vec::with_capacity(keys);
    let mut sum = 0.0;
    for rank in 1..=keys {
        sum += (rank as f64).powf(-0.99);
        sums.push(sum);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let part = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64;
        sums.partition_point(|upto| *upto < part * sum) as u32
    };
    (0..2 * requests).map(|_| draw()).collect()
}

/// Many clients ask for what is not there, all at once, on a runtime of several threads.
pub fn herd(rounds: usize) {
    const CLIENTS: usize = 1_000;
    const CALL: Duration = Duration::from_millis(50);
    println!("\n{CLIENTS} concurrent misses of a call that takes 50 ms: medians of {rounds} rounds");
    println!("{:<38} {:>12} {:>22}", "", "inner calls", "slowest waiter : call");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (mut calls, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (layer, count) = (CacheLayer::new(MemoryStore::new(BUDGET)), Arc::new(AtomicU32::new(0)));
        let inner = count.clone();
        let service = layer.layer(service_fn(move |_: Request<Full<Bytes>>| slow(inner.clone(), CALL)));
        let slowest = runtime.block_on(slowest(service, CLIENTS));
        calls.push(f64::from(count.load(Ordering::Relaxed)));
        ratios.push(slowest.as_secs_f64() / CALL.as_secs_f64());
    }
    println!("{:<38} {:>12} {:>22.2}", "tower-scale", middle(calls), middle(ratios));
}

fn slow(calls: Arc<AtomicU32>, call: Duration) -> impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> {
    async move {
        calls.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(call).await;
        let mut response = Response::new(Full::from(Bytes::from_static(&BODY)));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
        Ok(response)
    }
}

/// From before the first request to the end of the last body.
async fn slowest<S, B>(service: S, clients: usize) -> Duration
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Debug,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Debug,
{
    let started = Instant::now();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let mut service = service.clone();
        waiting.spawn(async move {
            ask(&mut service, 1).await;
            started.elapsed()
        });
    }
    waiting.join_all().await.into_iter().max().expect("a client")
}
