//! One decision of the limiter: one hot client, and a million clients at random.
//!
//! Through the whole layer, since that is its only door: identifying the client, the table, the fields. The same call
//! without the layer is measured beside it, to be taken off.
#![allow(missing_docs, clippy::unwrap_used)]

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::task::{Context, Waker};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, Service};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{Quota, RateLimitLayer};

const CLIENTS: u32 = 1 << 20;

#[derive(Clone)]
struct Inner;

impl Service<Request<()>> for Inner {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        black_box(request);
        ready(Ok(Response::new(Empty::new())))
    }
}

fn request(client: u32) -> Request<()> {
    let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(client)), 4711);
    let mut request = Request::new(());
    request.extensions_mut().insert(PeerAddr(peer));
    request
}

/// Calls a service whose future is ready at once.
fn call<S: Service<Request<()>>>(service: &mut S, client: u32) {
    let future = pin!(service.call(request(client)));
    let response = future.poll(&mut Context::from_waker(Waker::noop()));
    assert!(response.is_ready());
    drop(black_box(response));
}

fn bench(c: &mut Criterion) {
    // Never refuses one client alone, so that every decision writes.
    let quota = Quota::per_second(60_000).burst(u32::MAX);
    let mut group = c.benchmark_group("rate_limit");
    let mut random = 1_u64;
    let mut client = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(random >> 33).unwrap() % CLIENTS
    };

    group.bench_function("without", |b| b.iter(|| call(&mut Inner, client())));
    let mut service = RateLimitLayer::new(quota).layer(Inner);
    group.bench_function("one client", |b| b.iter(|| call(&mut service, 7)));
    let mut service = RateLimitLayer::new(quota).slots(CLIENTS as usize * 2).layer(Inner);
    (0..CLIENTS).for_each(|client| call(&mut service, client));
    group.bench_function("a million clients", |b| b.iter(|| call(&mut service, client())));
    let mut service = RateLimitLayer::new(Quota::per_hour(1)).layer(Inner);
    group.bench_function("one client, refused", |b| b.iter(|| call(&mut service, 7)));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
