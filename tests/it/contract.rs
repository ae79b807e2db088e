//! The contract that every layer keeps: readiness, errors, bodies, cancellation, one-line use, any order.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::MockConnectInfo;
use axum::routing::get;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::util::BoxCloneService;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_scale::cache::{self, CacheLayer, MemoryStore, RedisStore, TieredStore};
use tower_scale::client_ip::{self, ClientIp, ClientIpLayer, Origin, PeerAddr};
use tower_scale::offload::{self, OffloadLayer, OffloadPool};
use tower_scale::rate_limit::{self, Fallback, Lease, Policy, Quota, RateLimitLayer};
use tower_scale::redis::{self, Redis};
use tower_scale::refusal::{Reason, Refusal};
use tower_scale::telemetry::{self, TelemetryLayer};

use crate::support::eventually;
use crate::support::inner::{Inner, InnerError, Stage};
use crate::support::redis_server::RedisServer;

type Stack = BoxCloneService<Request<Body>, Response<Body>, InnerError>;

/// A layer, applied to any stack.
#[derive(Clone)]
struct Named {
    name: &'static str,
    apply: Arc<dyn Fn(Stack) -> Stack + Send + Sync>,
}

fn boxed<S, B>(service: S) -> Stack
where
    S: Service<Request<Body>, Response = Response<B>, Error = InnerError> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    ServiceBuilder::new().map_response(|response: Response<B>| response.map(Body::new)).service(service).boxed_clone()
}

macro_rules! named {
    ($name:literal, $layer:expr) => {{
        let layer = $layer;
        Named { name: $name, apply: Arc::new(move |stack| boxed(layer.layer(stack))) }
    }};
}

fn pool() -> OffloadPool {
    OffloadPool::new().expect("threads can be started")
}

fn quota() -> Quota {
    Quota::per_second(10_000)
}

/// Every layer on embedded stores; a new state each time.
fn layers() -> Vec<Named> {
    vec![
        named!("cache", CacheLayer::new(MemoryStore::new(1 << 20))),
        named!("client_ip", ClientIpLayer::new()),
        named!("offload", OffloadLayer::new(pool())),
        named!("rate_limit", RateLimitLayer::new(quota())),
        named!("telemetry", TelemetryLayer::new()),
    ]
}

/// The limiter with everything that it may hold of a request until its outcome is known.
fn refunding(limiter: RateLimitLayer) -> RateLimitLayer {
    limiter.count_when(|outcome| outcome.status().is_none()).refund_abandoned()
}

fn tiers() -> Policy {
    Policy::new([quota().named("burst"), Quota::per_minute(600_000).named("minute")])
        .ipv6_tier(48, quota().named("site"))
}

/// The limiter in its other forms.
fn limiters() -> Vec<Named> {
    vec![
        named!("rate_limit, refunding", refunding(RateLimitLayer::new(tiers()))),
        named!("rate_limit, in the shadow", refunding(RateLimitLayer::new(Quota::per_hour(1))).shadow()),
        named!("rate_limit, skipping", RateLimitLayer::new(Quota::per_hour(1)).skip(|_| true)),
    ]
}

fn redis_layers(url: &str) -> Vec<Named> {
    let redis = Redis::connect(url).expect("a valid URL");
    vec![
        named!("cache on Redis", CacheLayer::new(RedisStore::new(redis.clone()).expect("it can subscribe"))),
        named!("rate_limit on Redis", RateLimitLayer::new(quota()).redis(redis.clone())),
        named!("rate_limit on Redis, refunding", refunding(RateLimitLayer::new(tiers()).redis(redis.clone()))),
        named!(
            "rate_limit on Redis, with leases",
            RateLimitLayer::new(Policy::new(quota()).named("leased"))
                .redis(redis)
                .lease(Lease::new(10, Duration::from_millis(200)))
                .fallback(Fallback::share(0.5))
        ),
    ]
}

fn request(path: &str) -> Request<Body> {
    let mut request = Request::get(path).header("host", "example.com").body(Body::empty()).expect("a valid request");
    request.extensions_mut().insert(PeerAddr(SocketAddr::from(([192, 0, 2, 1], 4711))));
    request
}

/// Polls `future` at most `polls` times, then drops it.
async fn poll_times<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let (mut future, mut left) = (pin!(future), polls);
    std::future::poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap_or_else(|_| panic!("not within 10 s: {what}"))
}

async fn get_ok(stack: &Stack, path: &str, what: &str) {
    let response = within(what, stack.clone().oneshot(request(path))).await.expect(what);
    assert_eq!(response.status(), StatusCode::OK, "{what}");
    let body = within(what, response.into_body().collect()).await.expect(what).to_bytes();
    assert_eq!(body, "hello world", "{what}");
}

// === readiness ===

#[tokio::test]
async fn only_readied_services_are_called() {
    let server = RedisServer::start();
    for layer in layers().into_iter().chain(limiters()).chain(redis_layers(&server.url())) {
        let (inner, control) = Inner::new(1000);
        let stack = (layer.apply)(boxed(inner));
        for path in ["/plain", "/cacheable", "/cacheable"] {
            get_ok(&stack, path, layer.name).await;
        }
        let mut kept = stack.clone();
        for _ in 0..3 {
            let response = kept.ready().await.unwrap().call(request("/plain")).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
        let crowd: Vec<_> =
            (0..50).map(|n| tokio::spawn(stack.clone().oneshot(request(["/plain", "/cacheable"][n % 2])))).collect();
        for client in crowd {
            client.await.unwrap().unwrap().into_body().collect().await.unwrap();
        }
        assert!(control.calls() >= 29, "{}: {} calls", layer.name, control.calls());
        eventually(layer.name, async || control.live() == 0).await;
    }
}

#[tokio::test]
async fn a_never_ready_inner_service_still_gets_hits_answered() {
    let server = RedisServer::start();
    for layer in [layers().remove(0), redis_layers(&server.url()).remove(0)] {
        let (inner, control) = Inner::new(10);
        let stack = (layer.apply)(boxed(inner));
        get_ok(&stack, "/cacheable", layer.name).await;
        control.hold_at(Stage::Readiness);
        eventually("the entry is stored", async || {
            let hit =
                tokio::time::timeout(Duration::from_millis(500), stack.clone().oneshot(request("/cacheable"))).await;
            hit.is_ok_and(|response| response.unwrap().headers()["cache-status"].to_str().unwrap().contains("; hit"))
        })
        .await;
        let miss =
            tokio::time::timeout(Duration::from_millis(50), stack.clone().oneshot(request("/cacheable/2"))).await;
        assert!(miss.is_err(), "{}: a miss waits for the inner service", layer.name);
    }
}

#[tokio::test]
async fn a_never_ready_inner_service_still_gets_refusals_answered() {
    let server = RedisServer::start();
    let redis = Redis::connect(&server.url()).unwrap();
    let once = Quota::per_hour(1);
    let limiters = [
        named!("rate_limit", RateLimitLayer::new(once)),
        named!("rate_limit on Redis", RateLimitLayer::new(once).redis(redis)),
    ];
    for layer in limiters {
        let (inner, control) = Inner::new(10);
        control.hold_at(Stage::Readiness);
        let stack = (layer.apply)(boxed(inner));
        let first = tokio::spawn(stack.clone().oneshot(request("/plain")));
        eventually("the first request waits for the inner service", async || control.arrived.load(Ordering::SeqCst))
            .await;
        let second = within(layer.name, stack.clone().oneshot(request("/plain"))).await.unwrap();
        assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS, "{}", layer.name);
        assert_eq!(second.extensions().get(), Some(&Reason::QuotaExceeded));
        first.abort();
    }
    for layer in [named!("client_ip", ClientIpLayer::new()), named!("rate_limit", RateLimitLayer::new(quota()))] {
        let (inner, control) = Inner::new(10);
        control.hold_at(Stage::Readiness);
        let mut nobody = request("/plain");
        nobody.extensions_mut().remove::<PeerAddr>();
        let response = within(layer.name, (layer.apply)(boxed(inner)).oneshot(nobody)).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "{}", layer.name);
        assert_eq!(response.extensions().get(), Some(&Reason::PeerUnknown));
        assert_eq!(control.calls(), 0);
    }
}

// === errors and bodies ===

#[tokio::test]
async fn inner_errors_pass_untouched() {
    let server = RedisServer::start();
    for layer in layers().into_iter().chain(limiters()).chain(redis_layers(&server.url())) {
        let (inner, control) = Inner::new(10);
        control.fail.store(true, Ordering::SeqCst);
        let stack = (layer.apply)(boxed(inner));
        for path in ["/plain", "/cacheable"] {
            let error = within(layer.name, stack.clone().oneshot(request(path))).await.expect_err(layer.name);
            assert_eq!(error, InnerError(7), "{}", layer.name);
        }
        eventually(layer.name, async || control.live() == 0).await;
    }
}

#[tokio::test]
async fn frames_and_trailers_pass_untouched() {
    let server = RedisServer::start();
    for layer in layers().into_iter().chain(limiters()).chain(redis_layers(&server.url())) {
        let (inner, _control) = Inner::new(10);
        let stack = (layer.apply)(boxed(inner));
        for path in ["/trailers", "/cacheable/trailers"] {
            let response = stack.clone().oneshot(request(path)).await.unwrap();
            let whole = response.into_body().collect().await.unwrap();
            assert_eq!(
                whole.trailers().map(|trailers| trailers["x-trailer"].as_bytes()),
                Some(&b"end"[..]),
                "{}",
                layer.name
            );
            assert_eq!(whole.to_bytes(), "hello world", "{}", layer.name);
        }
    }
}

#[tokio::test]
async fn sizes_and_body_errors_pass() {
    for layer in layers().into_iter().chain(limiters()) {
        let sized = tower::service_fn(async |_: Request<Body>| Ok(Response::new(Body::from("12345"))));
        let response = (layer.apply)(boxed(sized)).oneshot(request("/plain")).await.unwrap();
        assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(5), "{}", layer.name);

        let broken = tower::service_fn(async |request: Request<Body>| {
            let frames = [Ok(Bytes::from_static(b"part")), Err(InnerError(9))];
            let mut response = Response::new(Body::from_stream(futures_util::stream::iter(frames)));
            if request.uri().path() == "/cacheable" {
                response.headers_mut().insert("cache-control", http::HeaderValue::from_static("max-age=60"));
            }
            Ok(response)
        });
        let stack = (layer.apply)(boxed(broken));
        for path in ["/plain", "/cacheable"] {
            let mut body = stack.clone().oneshot(request(path)).await.unwrap().into_body();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "part");
            let error = body.frame().await.expect("an error, not an end").expect_err(layer.name);
            let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            assert!(chain.into_iter().any(|error| error.to_string() == "inner error 9"), "{}: {error}", layer.name);
        }
    }
}

// === cancellation ===

/// Holds a request at each stage in turn, lets the client go, and checks that nothing of it is left.
#[tokio::test]
async fn a_client_that_leaves_leaves_nothing_behind() {
    let server = RedisServer::start();
    for layer in layers().into_iter().chain(limiters()).chain(redis_layers(&server.url())) {
        for stage in [Stage::Readiness, Stage::Head, Stage::FirstFrame, Stage::LastFrame] {
            for path in ["/plain", "/cacheable"] {
                let path = &format!("{path}/{stage:?}");
                let what = format!("{} {path}", layer.name);
                let (inner, control) = Inner::new(1);
                let stack = (layer.apply)(boxed(inner));
                control.hold_at(stage);
                let client = tokio::spawn({
                    let (stack, request) = (stack.clone(), request(path));
                    async move { stack.oneshot(request).await.unwrap().into_body().collect().await.map(drop) }
                });
                eventually(&what, async || control.arrived.load(Ordering::SeqCst)).await;
                client.abort();
                let _ = client.await;
                control.hold_at(Stage::Nowhere);
                eventually(&what, async || control.live() == 0 && control.permits.available_permits() == 1).await;
                get_ok(&stack, path, &what).await;
            }
        }
    }
}

/// Drops the request after every possible number of polls.
#[tokio::test]
async fn dropping_after_any_poll_releases_everything() {
    let server = RedisServer::start();
    for layer in layers().into_iter().chain(limiters()).chain(redis_layers(&server.url())) {
        for path in ["/plain", "/cacheable"] {
            let (inner, control) = Inner::new(1);
            let stack = (layer.apply)(boxed(inner));
            for polls in 0..40 {
                let what = format!("{} {path} after {polls} polls", layer.name);
                let stack = stack.clone();
                let path = format!("{path}/{polls}");
                let done = poll_times(polls, async {
                    let response = stack.clone().oneshot(request(&path)).await.unwrap();
                    response.into_body().collect().await.map(http_body_util::Collected::to_bytes)
                });
                let done = within(&what, done).await;
                eventually(&what, async || control.live() == 0 && control.permits.available_permits() == 1).await;
                get_ok(&stack, &path, &what).await;
                if done.is_some() {
                    break;
                }
                assert!(polls < 39, "{what}: never done");
            }
        }
    }
}

/// Work that waits for a thread is given up with its clients, whatever stands between them and the pool.
#[tokio::test]
async fn queued_work_of_clients_that_left_never_runs() {
    for cached in [false, true] {
        let pool = OffloadPool::builder().threads(std::num::NonZeroUsize::MIN).build().unwrap();
        let (calls, blocked) = (Arc::new(std::sync::atomic::AtomicUsize::new(0)), std::sync::mpsc::channel::<()>());
        let (release, wait) = (blocked.0, Arc::new(std::sync::Mutex::new(blocked.1)));
        let counter = calls.clone();
        let handler = tower::service_fn(move |_: Request<Body>| {
            let (counter, wait) = (counter.clone(), wait.clone());
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(10));
                Ok(Response::new(Body::empty()))
            }
        });
        let mut stack = boxed(OffloadLayer::new(pool).layer(handler));
        if cached {
            stack = boxed(CacheLayer::new(MemoryStore::new(1 << 20)).layer(stack));
        }
        let clients: Vec<_> = (0..20).map(|n| tokio::spawn(stack.clone().oneshot(request(&format!("/{n}"))))).collect();
        eventually("one has the thread", async || calls.load(Ordering::SeqCst) == 1).await;
        clients.iter().for_each(tokio::task::JoinHandle::abort);
        // The cache keeps a fetch that nobody wants for a second, in case its next client comes.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        drop(release);
        let next = within("the next request", stack.oneshot(request("/next"))).await.unwrap();
        assert_eq!(next.status(), StatusCode::OK);
        assert_eq!(calls.load(Ordering::SeqCst), 2, "cached: {cached}");
    }
}

// === types ===

fn send_sync<T: Send + Sync + 'static>() {}
fn send<T: Send + 'static>() {}
fn layer_type<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
fn error_type<T: std::error::Error + Send + Sync + 'static>() {}

#[test]
fn auto_traits() {
    layer_type::<CacheLayer>();
    layer_type::<ClientIpLayer>();
    layer_type::<OffloadLayer>();
    layer_type::<OffloadPool>();
    layer_type::<RateLimitLayer>();
    layer_type::<TelemetryLayer>();
    layer_type::<telemetry::Vitals>();
    layer_type::<Redis>();
    send_sync::<MemoryStore>();
    send_sync::<RedisStore>();
    send_sync::<TieredStore>();
    layer_type::<Quota>();
    layer_type::<Policy>();
    layer_type::<Lease>();
    layer_type::<Fallback>();
    layer_type::<rate_limit::Fields>();
    layer_type::<rate_limit::Head<'static>>();
    layer_type::<rate_limit::Key>();
    layer_type::<rate_limit::OnFull>();
    layer_type::<rate_limit::Outcome<'static>>();
    layer_type::<rate_limit::RateLimitHandle>();
    layer_type::<rate_limit::Secret>();
    layer_type::<rate_limit::Standing>();
    layer_type::<rate_limit::Subject>();
    layer_type::<ClientIp>();
    layer_type::<Origin>();
    layer_type::<PeerAddr>();
    layer_type::<Reason>();
    layer_type::<cache::CacheTtl>();
    layer_type::<cache::CacheTags>();
    layer_type::<cache::NoStore>();
    layer_type::<cache::CachePolicy>();
    layer_type::<cache::CacheHandle>();
    layer_type::<cache::CacheStats>();
    layer_type::<cache::Purge>();
    layer_type::<cache::Key>();
    layer_type::<cache::Record>();
    layer_type::<cache::StoreFailure>();
    layer_type::<cache::Usage>();
    send::<cache::Reply<()>>();
    send::<cache::Purging>();
    error_type::<cache::PurgeError>();
    layer_type::<client_ip::Header>();
    layer_type::<client_ip::Networks>();
    layer_type::<client_ip::TrustedProxies>();
    layer_type::<offload::PoolBuilder>();
    layer_type::<redis::Kind>();
    layer_type::<telemetry::Memory>();
    send_sync::<Refusal>();

    layer_type::<cache::Cache<Plain>>();
    layer_type::<client_ip::ClientIpService<Plain>>();
    layer_type::<offload::Offload<Plain>>();
    layer_type::<rate_limit::RateLimit<Plain>>();
    layer_type::<telemetry::Telemetry<Plain>>();

    // axum's and tonic's futures and bodies are not `Sync`, so neither are ours around them.
    send::<cache::ResponseFuture<Plain, Body, Body>>();
    send::<client_ip::ResponseFuture<Plain, Body>>();
    send::<offload::ResponseFuture<Plain, Body>>();
    send::<offload::Offloaded<u8>>();
    send::<rate_limit::ResponseFuture<Plain, Body>>();
    send::<telemetry::ResponseFuture<PlainFuture>>();
    send::<cache::ResponseBody<Body>>();
    send::<client_ip::ResponseBody<Body>>();
    send::<offload::ResponseBody<Body>>();
    send::<rate_limit::ResponseBody<Body>>();
    send::<telemetry::ResponseBody<Body>>();

    error_type::<redis::StoreError>();
    error_type::<redis::ConfigError>();
    error_type::<client_ip::ConfigError>();
    error_type::<offload::BuildError>();
    error_type::<offload::OffloadError>();
    error_type::<rate_limit::ConfigError>();
    error_type::<rate_limit::HandleError>();
    error_type::<cache::BodyError>();
}

/// A service that is everything a layer could wish for.
type Plain = tower::util::ServiceFn<fn(Request<Body>) -> PlainFuture>;
type PlainFuture = std::future::Ready<Result<Response<Body>, Infallible>>;

/// Every public type is asserted above.
#[test]
fn auto_traits_of_every_public_type() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let asserted = std::fs::read_to_string(source.join("tests/it/contract.rs")).unwrap();
    for module in ["cache", "client_ip", "offload", "rate_limit", "redis", "telemetry"] {
        let page = std::fs::read_to_string(source.join("src").join(module).join("mod.rs")).unwrap();
        let exports = page.lines().filter_map(|line| line.strip_prefix("pub use ")?.split_once("::"));
        let names = exports.flat_map(|(_, names)| names.trim_matches(|c| "{};".contains(c)).split(", "));
        // Traits, aliases and constants have no auto traits to assert.
        for name in names.filter(|name| !["Store", "BoxError", "LAG_BUCKETS"].contains(name)) {
            assert!(asserted.contains(name), "{module}::{name}");
        }
    }
}

// === one line each ===

/// One line on a router, on a route, on a method router; CORS and timeout outside want `Default` bodies.
macro_rules! one_line {
    ($layer:expr) => {{
        let layer = $layer;
        let handler = async || "hello world";
        let cors = tower_http::cors::CorsLayer::permissive();
        let timeout =
            tower_http::timeout::TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(9));
        let routers = [
            Router::new().route("/a", get(handler)).layer(layer.clone()),
            Router::new().route("/a", get(handler)).route_layer(layer.clone()),
            Router::new().route("/a", get(handler).layer(layer.clone())),
            Router::new()
                .route("/a", get(handler))
                .layer(ServiceBuilder::new().layer(cors).layer(timeout).layer(layer.clone())),
            Router::new().route("/a", get(handler)).layer(layer.clone()).layer(layer),
        ];
        let peer = MockConnectInfo(SocketAddr::from(([192, 0, 2, 1], 4711)));
        for router in routers {
            let request = Request::get("/a").header("host", "example.com").body(Body::empty()).unwrap();
            let response = router.layer(peer).oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello world");
        }
    }};
}

#[tokio::test]
async fn one_line_on_axum() {
    one_line!(CacheLayer::new(MemoryStore::new(1 << 20)));
    one_line!(ClientIpLayer::new());
    one_line!(OffloadLayer::new(pool()));
    one_line!(RateLimitLayer::new(quota()));
    one_line!(TelemetryLayer::new());
}

/// One line on a hyper service, over a real connection.
macro_rules! on_hyper {
    ($layer:expr) => {{
        let handler = tower::service_fn(async |_: Request<hyper::body::Incoming>| {
            Ok::<_, Infallible>(Response::new(http_body_util::Full::new(Bytes::from_static(b"hello world"))))
        });
        let service = ServiceBuilder::new()
            .map_request(|mut request: Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(PeerAddr(SocketAddr::from(([192, 0, 2, 1], 4711))));
                request
            })
            .layer($layer)
            .service(handler);
        let (client, server) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new())
                .serve_connection(
                    hyper_util::rt::TokioIo::new(server),
                    hyper_util::service::TowerToHyperService::new(service),
                )
                .await
                .map_err(|error| error.to_string())
        });
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/a").header("host", "example.com").body(Body::empty()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-length"], "11", "the size hint reaches hyper");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello world");
    }};
}

#[tokio::test]
async fn one_line_on_hyper() {
    on_hyper!(CacheLayer::new(MemoryStore::new(1 << 20)));
    on_hyper!(ClientIpLayer::new());
    on_hyper!(OffloadLayer::new(pool()));
    on_hyper!(RateLimitLayer::new(quota()));
    on_hyper!(TelemetryLayer::new());
}

/// A hand-written gRPC service: one unary method that answers with an empty message and an OK status.
#[derive(Clone)]
struct Greeter;

impl tonic::server::NamedService for Greeter {
    const NAME: &'static str = "test.Greeter";
}

impl Service<Request<tonic::body::Body>> for Greeter {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        let message = http_body_util::Full::new(Bytes::from_static(&[0, 0, 0, 0, 0]));
        let trailers =
            http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), http::HeaderValue::from_static("0"))]);
        let body = message.with_trailers(std::future::ready(Some(Ok::<_, Infallible>(trailers))));
        let mut response = Response::new(tonic::body::Body::new(body));
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        std::future::ready(Ok(response))
    }
}

/// One line on tonic's server builder, over a real socket: the status in the trailers arrives.
macro_rules! on_tonic {
    ($layer:expr) => {{
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server =
            tonic::transport::Server::builder().layer($layer).add_service(Greeter).serve_with_incoming(incoming);
        let server = tokio::spawn(server);
        let answer = grpc_call(address).await;
        server.abort();
        answer
    }};
}

/// The gRPC status of one call, and whether it came in trailers.
async fn grpc_call(address: SocketAddr) -> (String, bool) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{address}/test.Greeter/Hello"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::from(Bytes::from_static(&[0, 0, 0, 0, 0])))
        .unwrap();
    let response = within("a gRPC call", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let status =
        |headers: &http::HeaderMap| headers.get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
    if let Some(status) = status(response.headers()) {
        return (status, false);
    }
    let whole = response.into_body().collect().await.unwrap();
    (status(whole.trailers().expect("trailers")).expect("a status"), true)
}

#[tokio::test]
async fn one_line_on_tonic() {
    let fine = ("0".to_owned(), true);
    assert_eq!(on_tonic!(CacheLayer::new(MemoryStore::new(1 << 20))), fine);
    assert_eq!(on_tonic!(ClientIpLayer::new()), fine);
    assert_eq!(on_tonic!(OffloadLayer::new(pool())), fine);
    assert_eq!(on_tonic!(RateLimitLayer::new(quota())), fine);
    assert_eq!(on_tonic!(TelemetryLayer::new()), fine);
}

#[tokio::test]
async fn grpc_refusals_are_trailers_only() {
    let limiter = RateLimitLayer::new(Quota::per_hour(1));
    assert_eq!(on_tonic!(limiter.clone()), ("0".to_owned(), true));
    assert_eq!(on_tonic!(limiter), ("8".to_owned(), false), "RESOURCE_EXHAUSTED");
}

// === any order ===

/// All orders of `items`.
fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    let Some((first, rest)) = items.split_first() else { return vec![vec![]] };
    let mut all = Vec::new();
    for order in orders(rest) {
        for at in 0..=order.len() {
            let mut longer = order.clone();
            longer.insert(at, first.clone());
            all.push(longer);
        }
    }
    all
}

#[tokio::test]
async fn layers_stack_in_every_order() {
    let layers = layers();
    let orders = orders(&layers);
    assert_eq!(orders.len(), 120);
    for order in orders {
        let names: Vec<_> = order.iter().map(|layer| layer.name).collect();
        let what = format!("{names:?}");
        let (inner, control) = Inner::new(2);
        let mut stack = boxed(inner);
        for layer in &order {
            stack = (layer.apply)(stack);
        }
        for path in ["/plain", "/cacheable", "/cacheable"] {
            get_ok(&stack, path, &what).await;
        }
        // A client that leaves in the middle.
        control.hold_at(Stage::Head);
        let client = tokio::spawn(stack.clone().oneshot(request("/plain")));
        eventually(&what, async || control.arrived.load(Ordering::SeqCst)).await;
        client.abort();
        let _ = client.await;
        control.hold_at(Stage::Nowhere);
        eventually(&what, async || control.live() == 0 && control.permits.available_permits() == 2).await;
        control.fail.store(true, Ordering::SeqCst);
        assert_eq!(stack.oneshot(request("/plain")).await.expect_err(&what), InnerError(7));
    }
}
