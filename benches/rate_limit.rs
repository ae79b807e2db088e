//! One decision of the limiter: one hot client, and a million clients at random and by Zipf's law, on one thread and two.
//!
//! Through the whole layer, since that is its only door: identifying the client, the table, the fields. The same call
//! without the layer is measured beside it, to be taken off.
#![allow(missing_docs, clippy::unwrap_used)]

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Barrier;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, Service};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{Fields, Policy, Quota, RateLimitLayer};

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

/// Which client comes next.
type Order = Vec<u32>;

fn random(count: usize) -> impl Iterator<Item = u32> {
    let mut state = 1_u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(state >> 33).unwrap()
    })
    .take(count)
}

fn uniform() -> Order {
    random(1 << 21).map(|n| n % CLIENTS).collect()
}

/// The n-th client comes with a frequency of 1/n.
fn zipf() -> Order {
    let most = f64::from(CLIENTS).ln();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    random(1 << 21).map(|n| (most * f64::from(n) / f64::from(1_u32 << 31)).exp() as u32).collect()
}

/// Each of some threads calls, and is measured until the last has done so many calls.
fn on_threads<S>(service: &S, order: &Order, threads: usize, calls: u64) -> Duration
where
    S: Service<Request<()>> + Clone + Send,
{
    let start = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (mut service, start) = (service.clone(), &start);
            scope.spawn(move || {
                let mut clients = order.iter().cycle().skip(thread * order.len() / threads);
                start.wait();
                (0..calls).for_each(|_| call(&mut service, *clients.next().unwrap()));
                start.wait();
            });
        }
        start.wait();
        let began = Instant::now();
        start.wait();
        began.elapsed()
    })
}

fn bench(c: &mut Criterion) {
    // Never refuses one client alone, so that every decision writes.
    let quota = Quota::per_second(60_000).burst(u32::MAX);
    let policy = || Policy::new(quota).slots(CLIENTS as usize * 2);
    let (one, uniform, zipf) = (vec![7], uniform(), zipf());
    let mut group = c.benchmark_group("rate_limit");
    let mut measure = |name: &str, layer: Option<&RateLimitLayer>, order: &Order, threads| {
        group.bench_function(name, |b| {
            b.iter_custom(|calls| match layer {
                Some(layer) => on_threads(&layer.layer(Inner), order, threads, calls),
                None => on_threads(&Inner, order, threads, calls),
            });
        });
    };

    measure("without", None, &one, 1);
    let layer = RateLimitLayer::new(quota);
    measure("one client", Some(&layer), &one, 1);
    measure("one client, 2 threads", Some(&layer), &one, 2);
    let layer = RateLimitLayer::new(quota).fields(Fields::None);
    measure("one client, no fields", Some(&layer), &one, 1);
    let layer = RateLimitLayer::new([quota, Quota::per_minute(600_000).burst(u32::MAX)]).fields(Fields::None);
    measure("one client, two quotas, no fields", Some(&layer), &one, 1);
    let layer = RateLimitLayer::new(Quota::per_hour(1));
    measure("one client, refused", Some(&layer), &one, 1);

    measure("without, a million clients", None, &uniform, 1);
    let layer = RateLimitLayer::new(policy()).fields(Fields::None);
    let mut service = layer.layer(Inner);
    (0..CLIENTS).for_each(|client| call(&mut service, client));
    measure("a million clients, no fields", Some(&layer), &uniform, 1);
    measure("a million clients, no fields, 2 threads", Some(&layer), &uniform, 2);
    measure("a million clients, Zipf, no fields", Some(&layer), &zipf, 1);
    let layer = RateLimitLayer::new(policy());
    measure("a million clients", Some(&layer), &uniform, 1);
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
