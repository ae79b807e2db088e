//! The cost of an admitted request, beside tower_governor and a layer written by hand over governor's keyed store.
//!
//! Every subject reads the client's address from axum's `ConnectInfo`. With many keys, all of them have been seen before
//! and owe something. Ours without fields stands beside theirs without, and ours with fields beside theirs with.

use std::convert::Infallible;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use governor::{DefaultKeyedRateLimiter, RateLimiter};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;
use tower_governor::key_extractor::PeerIpKeyExtractor;
use tower_scale::rate_limit::{Fields, Policy, Quota, RateLimitLayer};

use crate::loads::zipf_keys;
use crate::measure::{Plan, Subject};
use crate::subjects::{BODY, handler};

const BARE: &str = "bare service";
const OURS: &str = "tower-scale, no fields";
const OURS_WITH_FIELDS: &str = "tower-scale, with fields";
const PEER: &str = "tower_governor 0.8.0, no fields";
const PEER_WITH_FIELDS: &str = "tower_governor 0.8.0, with fields";
const BY_HAND: &str = "governor 0.10.4 by hand, no fields";

/// What is compared with what, by what it adds to the bare service.
const PAIRS: [(&str, &str); 3] = [(OURS, PEER), (OURS_WITH_FIELDS, PEER_WITH_FIELDS), (OURS, BY_HAND)];

/// One every 0.864 s, and many at once: in a run every key stays in debt and none is refused.
const PER_DAY: u32 = 100_000;
const BURST: u32 = 100_000_000;

/// Who asks, one after the other, over and over.
type Clients = Arc<[IpAddr]>;

/// All loads, on one thread and on two.
pub fn tables(plan: &Plan, keys: u32) {
    let one: Clients = [address(1)].into();
    let draws = 4 * plan.requests.max(250_000) as usize;
    let loads = [
        ("one client".to_owned(), one.clone(), one),
        (format!("{keys} clients, uniform"), uniform(keys, draws), (0..keys).map(address).collect()),
        (format!("{keys} clients, Zipf"), zipf(keys, draws), (0..keys).map(address).collect()),
    ];
    for threads in [1, 2] {
        for (what, clients, known) in &loads {
            let mut subjects = subjects(clients, known, threads);
            let took = plan.gather(&mut subjects);
            let title = format!("an admitted request, {what}, {threads} thread(s)");
            plan.report(&title, BARE, &subjects, &took, |took| *took);
            plan.report_added(BARE, &PAIRS, &subjects, &took);
        }
    }
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 | number).into()
}

fn uniform(keys: u32, draws: usize) -> Clients {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        address(((state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32) % keys)
    };
    (0..draws).map(|_| draw()).collect()
}

fn zipf(keys: u32, draws: usize) -> Clients {
    zipf_keys(keys as usize, draws.div_ceil(2)).into_iter().map(|key| address(key.min(keys - 1))).collect()
}

fn subjects(clients: &Clients, known: &Clients, threads: usize) -> Vec<Subject> {
    let page = || service_fn(handler::<Body, Body>);
    // The sizing formula: two slots per client in debt.
    let policy = || Policy::new(Quota::per_day(PER_DAY).burst(BURST)).slots(2 * known.len().max(1 << 19));
    let ours = |fields| RateLimitLayer::new(policy()).fields(fields).layer(page());
    // Their quota is stated as the time until one request is given back.
    let mut peer = GovernorConfigBuilder::default().key_extractor(PeerIpKeyExtractor);
    let peer = peer.period(Duration::from_secs(86_400) / PER_DAY).burst_size(BURST);
    let by_hand: Arc<DefaultKeyedRateLimiter<IpAddr>> = {
        let period = governor::Quota::with_period(Duration::from_secs(86_400) / PER_DAY).expect("a period");
        Arc::new(RateLimiter::keyed(period.allow_burst(NonZeroU32::new(BURST).expect("not 0"))))
    };
    let load = Load { clients, known, threads };
    vec![
        load.subject(BARE, page()),
        load.subject(OURS, ours(Fields::None)),
        load.subject(OURS_WITH_FIELDS, ours(Fields::Draft)),
        load.subject(PEER, GovernorLayer::new(peer.finish().expect("a valid quota")).layer(page())),
        load.subject(
            PEER_WITH_FIELDS,
            GovernorLayer::new(peer.use_headers().finish().expect("a valid quota")).layer(page()),
        ),
        load.subject(BY_HAND, service_fn(move |request| limited_by_hand(by_hand.clone(), request))),
    ]
}

/// What one writes without a layer.
async fn limited_by_hand(
    limiter: Arc<DefaultKeyedRateLimiter<IpAddr>>,
    request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    if peer.is_some_and(|ip| limiter.check_key(&ip).is_ok()) {
        return handler(request).await;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    Ok(response)
}

struct Load<'a> {
    clients: &'a Clients,
    known: &'a Clients,
    threads: usize,
}

impl Load<'_> {
    fn subject<S, B>(&self, name: &'static str, service: S) -> Subject
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Debug,
        B: http_body::Body<Data = Bytes>,
        B::Error: Debug,
    {
        let mut workers: Vec<_> = (0..self.threads)
            .map(|worker| Worker {
                service: service.clone(),
                runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
                clients: self.clients.clone(),
                next: worker * self.clients.len() / self.threads,
            })
            .collect();
        if let Some(first) = workers.first_mut() {
            let known = Worker { service, runtime: runtime(), clients: self.known.clone(), next: 0 };
            let mut known = known;
            known.serve(u32::try_from(self.known.len()).expect("few keys"));
            first.serve(1);
        }
        Subject { name, serve: Box::new(move |requests| together(&mut workers, requests)) }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// The mean time of the workers, who all begin at once and do this many requests each.
fn together<S, B>(workers: &mut [Worker<S>], requests: u32) -> Duration
where
    S: Service<Request<Body>, Response = Response<B>> + Send,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    if let [worker] = workers {
        return worker.serve(requests);
    }
    let (start, count) = (Barrier::new(workers.len()), u32::try_from(workers.len()).expect("few threads"));
    let serve = |worker: &mut Worker<S>| {
        start.wait();
        worker.serve(requests)
    };
    let total: Duration = std::thread::scope(|scope| {
        let running: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(|| serve(worker))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    total / count
}

struct Worker<S> {
    service: S,
    runtime: Runtime,
    clients: Clients,
    next: usize,
}

impl<S, B> Worker<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    fn serve(&mut self, requests: u32) -> Duration {
        let Self { service, runtime, clients, next } = self;
        runtime.block_on(async {
            let started = Instant::now();
            for _ in 0..requests {
                *next = if *next + 1 < clients.len() { *next + 1 } else { 0 };
                ask(service, clients[*next]).await;
            }
            started.elapsed()
        })
    }
}

async fn ask<S, B>(service: &mut S, client: IpAddr)
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client, 4711)));
    let response = service.ready().await.expect("ready").call(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    assert_eq!(body.len(), BODY.len());
}

/// A flood of clients that are never seen twice, into a table of the default size: what stays resident.
pub fn flood(clients: u32) {
    let page = service_fn(handler::<Body, Body>);
    let mut service = RateLimitLayer::new(Quota::per_minute(100)).layer(page);
    println!("\n{clients} clients, each seen once, into a table of the default size");
    println!("{:>12} {:>14} {:>12} {:>10}", "clients", "resident KiB", "ns each", "refused");
    let runtime = runtime();
    let steps = 10;
    for step in 0..steps {
        let (started, mut refused) = (Instant::now(), 0_u32);
        runtime.block_on(async {
            for client in 0..clients / steps {
                let mut request = Request::new(Body::empty());
                let ip = IpAddr::from(Ipv4Addr::from_bits(0x0100_0000 + step * (clients / steps) + client));
                request.extensions_mut().insert(ConnectInfo(SocketAddr::new(ip, 4711)));
                let response = service.ready().await.expect("ready").call(request).await.expect("an answer");
                refused += u32::from(response.status() != 200);
            }
        });
        let each = started.elapsed().as_nanos() / u128::from((clients / steps).max(1));
        println!("{:>12} {:>14} {each:>12} {refused:>10}", (step + 1) * (clients / steps), resident_kib());
    }
}

/// 0 where there is no `/proc`.
fn resident_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4
}
