//! Hits of what several processes share: in Redis alone, and in memory before Redis.
//!
//! All subjects of one table share a runtime, so that whatever they do in the background goes on while others have their
//! turn. Every hit is one: a subject that asks its inner service after the first round ends the run.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use redis::AsyncCommands;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_http_cache::backend::CacheBackend;
use tower_http_cache::backend::memory::InMemoryBackend;
use tower_http_cache::backend::multi_tier::MultiTierBackend;
use tower_http_cache::backend::redis::RedisBackend;
use tower_scale::cache::{CacheLayer, MemoryStore, RedisStore, TieredStore};
use tower_scale::redis::Redis;

use crate::measure::{Plan, Subject, middle};
use crate::redis_server::RedisServer;
use crate::subjects::BODY;

type Plain = Full<Bytes>;

const HOUR: Duration = Duration::from_secs(3600);
/// Clients at once where CPU time is measured.
const CLIENTS: u32 = 64;

/// What a number of requests took.
struct Load {
    wall: Duration,
    /// CPU time of this process.
    own: Duration,
    /// CPU time of Redis.
    redis: Duration,
    commands: u64,
}

/// A hit in Redis: how long one takes alone, and what many at once cost this process and Redis.
pub fn redis_hits(server: &Rc<RedisServer>, alone: &Plan, many: &Plan) {
    let mut subjects = in_redis(server, 1);
    let took = alone.gather(&mut subjects);
    let title = "a hit in Redis, 1 KiB body, one client: time";
    alone.report(title, "tower-scale", &subjects, &took, |load| load.wall);

    let mut subjects = in_redis(server, CLIENTS);
    let took = many.gather(&mut subjects);
    let title = format!("a hit in Redis, 1 KiB body, {CLIENTS} clients: CPU time");
    many.report(&format!("{title} of this process"), "tower-scale", &subjects, &took, |load| load.own);
    many.report(&format!("{title} of Redis"), "tower-scale", &subjects, &took, |load| load.redis);
    commands(many, &subjects, &took);
}

/// A hit in memory before Redis, beside one in memory alone.
pub fn tiered_hits(server: &Rc<RedisServer>, plan: &Plan) {
    let bench = Bench::new(server, 1);
    let mut subjects = vec![
        bench.subject("bare service", |origin| origin),
        bench.subject("tower-scale, memory", |origin| CacheLayer::new(MemoryStore::new(64 << 20)).layer(origin)),
        bench.subject("tower-scale, tiered", |origin| ours_tiered(&server.url()).layer(origin)),
        bench.subject("tower-http-cache 0.6.1, memory", |origin| peer(InMemoryBackend::new(10_000)).layer(origin)),
        bench.subject("tower-http-cache 0.6.1, multi-tier", |origin| {
            let tiers = MultiTierBackend::new(InMemoryBackend::new(10_000), peers_redis(&bench, "tiered"));
            peer(tiers).layer(origin)
        }),
    ];
    let took = plan.gather(&mut subjects);
    plan.report("a tiered hit, 1 KiB body", "tower-scale, memory", &subjects, &took, |load| load.wall);
    commands(plan, &subjects, &took);
}

fn commands(plan: &Plan, subjects: &[Subject<Load>], took: &[Vec<Load>]) {
    let each = |load: &Load| load.commands as f64 / f64::from(plan.requests);
    let each = |took: &Vec<Load>| middle(took.iter().map(each).collect());
    let each: Vec<_> =
        subjects.iter().zip(took).map(|(subject, took)| format!("{} {:.2}", subject.name, each(took))).collect();
    println!("commands that Redis ran per request: {}", each.join("; "));
}

fn in_redis(server: &Rc<RedisServer>, clients: u32) -> Vec<Subject<Load>> {
    let bench = Bench::new(server, clients);
    vec![
        bench.subject("bare service", |origin| origin),
        bench.subject("tower-scale", |origin| ours(&server.url()).layer(origin)),
        bench.subject("tower-http-cache 0.6.1", |origin| peer(peers_redis(&bench, "redis")).layer(origin)),
        bench.subject("by hand: GET, SETEX", |origin| {
            let redis = bench.runtime.block_on(by_hand_connection(&server.url()));
            service_fn(move |request| by_hand(redis.clone(), origin.clone(), request))
        }),
    ]
}

fn ours(url: &str) -> CacheLayer {
    CacheLayer::new(redis_store(url, "bench-redis:"))
}

fn ours_tiered(url: &str) -> CacheLayer {
    CacheLayer::new(TieredStore::new(MemoryStore::new(64 << 20), redis_store(url, "bench-tiered:")))
}

fn redis_store(url: &str, prefix: &str) -> RedisStore {
    // A round that the machine interrupts should end as a slow one, not as a miss.
    let redis = Redis::connect(url).expect("a valid URL").key_prefix(prefix).time_budget(Duration::from_secs(2));
    RedisStore::new(redis).expect("a handle that can subscribe")
}

fn peer<B: CacheBackend>(backend: B) -> tower_http_cache::layer::CacheLayer<B> {
    tower_http_cache::layer::CacheLayer::builder(backend).ttl(HOUR).build()
}

/// Without timeouts, as its documentation shows: a response timeout makes it slower.
fn peers_redis(bench: &Bench, namespace: &str) -> RedisBackend {
    let config = ConnectionManagerConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let client = redis::Client::open(bench.server.url()).expect("a valid URL");
    let manager = bench.runtime.block_on(client.get_connection_manager_with_config(config)).expect("a connection");
    RedisBackend::new(manager).with_namespace(namespace)
}

async fn by_hand_connection(url: &str) -> ConnectionManager {
    redis::Client::open(url).expect("a valid URL").get_connection_manager().await.expect("a connection")
}

/// What one writes without a cache layer.
async fn by_hand(
    mut redis: ConnectionManager,
    origin: Origin,
    request: Request<Plain>,
) -> Result<Response<Plain>, tower::BoxError> {
    let key = format!("page:{}", request.uri());
    let cached: Option<Vec<u8>> = redis.get(&key).await?;
    let body = match cached {
        Some(body) => body.into(),
        None => {
            let body = origin.oneshot(request).await?.into_body().collect().await?.to_bytes();
            let _: () = redis.set_ex(&key, &body[..], HOUR.as_secs()).await?;
            body
        }
    };
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    Ok(response)
}

/// The inner service; counts its calls.
#[derive(Clone, Default)]
struct Origin(Arc<AtomicU64>);

impl Service<Request<Plain>> for Origin {
    type Response = Response<Plain>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Plain>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Plain>) -> Self::Future {
        self.0.fetch_add(1, Ordering::Relaxed);
        let mut response = Response::new(Full::from(Bytes::from_static(&BODY)));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
        ready(Ok(response))
    }
}

struct Bench {
    server: Rc<RedisServer>,
    runtime: Rc<Runtime>,
    clients: u32,
}

impl Bench {
    fn new(server: &Rc<RedisServer>, clients: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { server: server.clone(), runtime: Rc::new(runtime), clients }
    }

    fn subject<S, B>(&self, name: &'static str, wrap: impl FnOnce(Origin) -> S) -> Subject<Load>
    where
        S: Service<Request<Plain>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Debug,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Debug,
    {
        let (server, runtime, clients, origin) =
            (self.server.clone(), self.runtime.clone(), self.clients, Origin::default());
        let mut service = wrap(origin.clone());
        let cached = name != "bare service";
        if cached {
            runtime.block_on(settle(&mut service, &origin));
        }
        let serve = move |requests: u32| {
            // Hits in memory never wait: without this, what goes on in the background would not get to run.
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(2)).await });
            let (called, spent) = (origin.0.load(Ordering::Relaxed), server.spent());
            let (started, began) = (Instant::now(), process_time());
            runtime.block_on(serve(&mut service, requests, clients));
            let (wall, own) = (started.elapsed(), process_time() - began);
            let (called, after) = (origin.0.load(Ordering::Relaxed) - called, server.spent());
            assert!(!cached || called == 0, "{name}: {called} of {requests} requests were no hits");
            Load { wall, own, redis: after.cpu.saturating_sub(spent.cpu), commands: after.commands - spent.commands }
        };
        Subject { name, serve: Box::new(serve) }
    }
}

/// Stores what is asked for, and waits until hits come from there: storing may go on in the background.
async fn settle<S, B>(service: &mut S, origin: &Origin)
where
    S: Service<Request<Plain>, Response = Response<B>>,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut in_a_row = 0;
    while in_a_row < 20 {
        let called = origin.0.load(Ordering::Relaxed);
        ask(service).await;
        in_a_row = if origin.0.load(Ordering::Relaxed) == called { in_a_row + 1 } else { 0 };
        assert!(Instant::now() < deadline, "there are no hits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn serve<S, B>(service: &mut S, requests: u32, clients: u32)
where
    S: Service<Request<Plain>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Debug,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Debug,
{
    if clients == 1 {
        for _ in 0..requests {
            ask(service).await;
        }
        return;
    }
    let mut running = JoinSet::new();
    for client in 0..clients {
        let mut service = service.clone();
        let share = (requests + client) / clients;
        running.spawn(async move {
            for _ in 0..share {
                ask(&mut service).await;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("a client that got its answers");
    }
}

async fn ask<S, B>(service: &mut S)
where
    S: Service<Request<Plain>, Response = Response<B>>,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let request =
        Request::get("/products/1").header(header::HOST, "example.com").body(Plain::default()).expect("valid");
    let response = service.ready().await.expect("ready").call(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    assert_eq!(body.len(), BODY.len());
}

fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().expect("positive"), time.tv_nsec.try_into().expect("below a second"))
}
