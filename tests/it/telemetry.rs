//! The sampler on real runtimes, and who is blamed for a long poll.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::service::TowerToHyperService;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_scale::telemetry::{TelemetryLayer, Vitals};

use crate::support::eventually;

#[allow(clippy::disallowed_methods, reason = "blocking a thread is what is tested")]
fn block(time: Duration) {
    std::thread::sleep(time);
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Polls until `condition` holds, on a thread that is not the runtime's.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        block(ms(1));
    }
}

fn runtime(workers: usize) -> Runtime {
    if workers == 0 {
        return Builder::new_current_thread().enable_all().build().unwrap();
    }
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

fn blocking_router(layer: TelemetryLayer) -> Router {
    let blocks = async |Path(time): Path<u64>| {
        let start = Instant::now();
        block(ms(time));
        start.elapsed().as_micros().to_string()
    };
    Router::new().route("/block/{ms}", get(blocks)).layer(layer)
}

async fn text(router: Router, uri: &str) -> String {
    let response = router.oneshot(Request::get(uri).body(axum::body::Body::empty()).unwrap()).await.unwrap();
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// How late the OS runs a thread at worst, while `f` runs.
fn with_ruler<T>(f: impl FnOnce() -> T) -> (T, Duration) {
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let ruler = std::thread::spawn(move || {
        let mut late = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            block(ms(2));
            late = late.max(start.elapsed().saturating_sub(ms(2)));
        }
        late
    });
    let result = f();
    done.store(true, Ordering::Relaxed);
    (result, ruler.join().unwrap())
}

/// Blocks a worker of a fresh runtime once; returns how long it was blocked, and what the sampler says.
fn block_once(workers: usize, time: u64) -> (Duration, Vitals) {
    let runtime = runtime(workers);
    let layer = runtime.block_on(async { TelemetryLayer::new() });
    let vitals = layer.vitals();
    let router = blocking_router(layer);
    let blocked = runtime.block_on(async {
        // The sampler has read the idle runtime a few times.
        tokio::time::sleep(ms(35 + time % 7)).await;
        let blocked = tokio::spawn(async move { text(router, &format!("/block/{time}")).await }).await.unwrap();
        let blocked = Duration::from_micros(blocked.parse().unwrap());
        let what = format!("a stall of {blocked:?} of one of {workers} workers is in the maximum");
        eventually(&what, async || vitals.lag_max() > blocked.mul_f64(0.8)).await;
        blocked
    });
    (blocked, vitals)
}

#[test]
fn every_blocked_worker_is_seen_with_its_length() {
    for workers in [0, 1, 2, 4] {
        for trial in 0..20 {
            // Always found; on a machine that is busy elsewhere the OS may hold the loop up for longer still, not always.
            let measured_exactly = (0..8).any(|_| {
                let ((blocked, vitals), late) = with_ruler(|| block_once(workers, 50 + 7 * trial));
                vitals.lag_max() < blocked.mul_f64(1.2) + late
            });
            assert!(measured_exactly, "{workers} workers, trial {trial}");
        }
    }
}

#[test]
fn a_stall_shows_while_it_lasts() {
    for workers in [0, 2] {
        let runtime = runtime(workers);
        let layer = runtime.block_on(async { TelemetryLayer::new() });
        let vitals = layer.vitals();
        let router = blocking_router(layer);
        let start = Instant::now();
        let server = std::thread::spawn(move || {
            runtime.block_on(async { tokio::spawn(async move { text(router, "/block/1500").await }).await.unwrap() })
        });
        wait_until("the stall shows", || vitals.lag() > ms(300) && vitals.lag_max() > ms(300));
        assert!(start.elapsed() < ms(1400), "{workers} workers: seen while it lasted");
        server.join().unwrap();
    }
}

#[test]
fn a_loop_that_never_blocks_has_no_lag() {
    let quiet_run = || {
        let runtime = runtime(2);
        let layer = runtime.block_on(async { TelemetryLayer::new() });
        let vitals = layer.vitals();
        let working = async || {
            let end = Instant::now() + ms(300);
            while Instant::now() < end {
                tokio::task::yield_now().await;
            }
            // Neither of the next two holds the loop up.
            tokio::task::block_in_place(|| block(ms(200)));
            #[allow(clippy::disallowed_methods, reason = "one of the ways to leave the loop that are tested")]
            tokio::task::spawn_blocking(|| block(ms(200))).await.unwrap();
        };
        let router = Router::new().route("/", get(working)).layer(layer);
        runtime.block_on(async { tokio::spawn(async move { text(router, "/").await }).await.unwrap() });
        block(ms(50));
        vitals.lag_max()
    };
    // On a machine that is busy elsewhere the OS may hold the loop up, not always.
    assert!((0..8).any(|_| {
        let (max, late) = with_ruler(quiet_run);
        max < ms(50) + late
    }));
}

#[test]
fn a_layer_built_outside_a_runtime_samples_the_first_request_s() {
    let layer = TelemetryLayer::new();
    let vitals = layer.vitals();
    let router = blocking_router(layer);
    for trial in 1..=2 {
        // The second runtime is sampled once the first is gone.
        let runtime = runtime(2);
        wait_until("the former runtime is let go", || vitals.lag_max() == Duration::ZERO);
        runtime.block_on(async {
            for time in [0, 100] {
                let router = router.clone();
                tokio::spawn(async move { text(router, &format!("/block/{time}")).await }).await.unwrap();
            }
        });
        wait_until(&format!("runtime {trial} is sampled"), || vitals.lag_max() > ms(80));
    }
}

#[test]
fn memory_is_read_at_once() {
    let memory = TelemetryLayer::new().vitals().memory();
    assert!(memory.resident > 0 && memory.working_set > 0, "{memory:?}");
}

/// The counter's value per route.
fn long_polls(snapshotter: &Snapshotter) -> Vec<(String, u64)> {
    let mut counts: Vec<(String, u64)> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .filter(|(key, ..)| key.key().name() == "http_long_polls_total")
        .map(|(key, _, _, value)| {
            let route = key.key().labels().find(|label| label.key() == "route").unwrap().value().to_owned();
            let DebugValue::Counter(count) = value else { panic!("a counter") };
            (route, count)
        })
        .collect();
    counts.sort();
    counts
}

/// Runs `test` on a current-thread runtime whose thread records into a recorder of its own.
fn counted<F: Future<Output = ()>>(test: impl FnOnce() -> F) -> Vec<(String, u64)> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || runtime(0).block_on(test()));
    long_polls(&snapshotter)
}

fn count(route: &str, count: u64) -> (String, u64) {
    (route.to_owned(), count)
}

fn layer() -> TelemetryLayer {
    TelemetryLayer::new().long_poll(ms(5))
}

#[test]
fn a_long_poll_is_blamed_on_the_route_pattern() {
    let counts = counted(|| async {
        let router = blocking_router(layer());
        text(router.clone(), "/block/0").await;
        text(router.clone(), "/block/6").await;
        text(router, "/block/7").await;
    });
    assert_eq!(counts, [count("/block/{ms}", 2)]);
}

#[test]
fn only_time_spent_polling_counts() {
    let counts = counted(|| async {
        let waits = async || tokio::time::sleep(ms(30)).await;
        text(Router::new().route("/wait", get(waits)).layer(layer()), "/wait").await;
    });
    assert_eq!(counts, []);
}

/// A service without a router: blocks in `call`, in the future, or in the body.
#[allow(clippy::needless_pass_by_value, reason = "a service takes its request")]
fn plain(request: Request<Empty<Bytes>>) -> impl Future<Output = Result<Response<SlowBody>, Infallible>> {
    let path = request.uri().path().to_owned();
    if path == "/call" {
        block(ms(6));
    }
    async move {
        if path == "/future" {
            block(ms(6));
        }
        let frames = if path == "/body" { 2 } else { 0 };
        Ok(Response::new(SlowBody { frames }))
    }
}

struct SlowBody {
    frames: u8,
}

impl Body for SlowBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.frames == 0 {
            return Poll::Ready(None);
        }
        self.frames -= 1;
        block(ms(6));
        if self.frames > 0 {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))));
        }
        Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::from_iter([(
            http::header::ETAG,
            http::HeaderValue::from_static("end"),
        )])))))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(1)
    }
}

async fn ask<S>(service: S, path: &'static str)
where
    S: Service<Request<Empty<Bytes>>, Error = Infallible>,
    S::Response: IntoBody,
{
    let request = Request::get(path).body(Empty::new()).unwrap();
    service.oneshot(request).await.unwrap().drain().await;
}

trait IntoBody {
    fn drain(self) -> impl Future<Output = ()>;
}

impl<B: Body<Error = Infallible>> IntoBody for Response<B> {
    async fn drain(self) {
        self.into_body().collect().await.unwrap();
    }
}

#[test]
fn call_future_and_body_are_timed_and_a_closure_names_the_route() {
    let counts = counted(|| async {
        let named = layer().route(|_, uri| match uri.path() {
            "/call" => "call",
            "/future" => "future",
            "/body" => "body",
            _ => "other",
        });
        for path in ["/call", "/future", "/body", "/none"] {
            ask(named.layer(service_fn(plain)), path).await;
        }
        ask(layer().layer(service_fn(plain)), "/future").await;
    });
    assert_eq!(counts, [count("body", 2), count("call", 1), count("future", 1), count("unknown", 1)]);
}

#[test]
fn a_poll_counts_once_however_many_layers_time_it() {
    let counts = counted(|| async {
        let stacked = ServiceBuilder::new().layer(layer()).layer(layer()).service_fn(plain);
        ask(stacked, "/future").await;
    });
    assert_eq!(counts, [count("unknown", 1)]);
}

#[test]
fn a_panic_passes_through_and_is_counted() {
    let counts = counted(|| async {
        let panics = service_fn(|_: Request<Empty<Bytes>>| async {
            block(ms(6));
            panic!("handler");
            #[allow(unreachable_code)]
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        });
        let panicked = AssertUnwindSafe(ask(layer().layer(panics), "/")).catch_unwind().await;
        assert_eq!(*panicked.unwrap_err().downcast::<&str>().unwrap(), "handler");
        // The thread's mark is gone: the next long poll is seen.
        ask(layer().layer(service_fn(plain)), "/future").await;
    });
    assert_eq!(counts, [count("unknown", 2)]);
}

#[test]
fn routes_are_bounded() {
    let counts = counted(|| async {
        let next = Arc::new(AtomicUsize::new(0));
        let names: Vec<&'static str> = (0..300).map(|n| &*format!("route {n}").leak()).collect();
        let layer = TelemetryLayer::new()
            .long_poll(Duration::ZERO)
            .route(move |_, _| names[next.fetch_add(1, Ordering::Relaxed)]);
        for _ in 0..300 {
            ask(layer.layer(service_fn(plain)), "/").await;
        }
    });
    assert_eq!(counts.len(), 257);
    assert!(counts.iter().any(|(route, count)| route == "other" && *count >= 44));
}

#[tokio::test]
async fn the_body_passes_through_whole() {
    let service = layer().layer(service_fn(plain));
    let response = service.oneshot(Request::get("/body").body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(response.body().size_hint().exact(), Some(1));
    assert!(!response.body().is_end_stream());
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()[http::header::ETAG], "end");
    assert_eq!(collected.to_bytes(), "x");
}

#[tokio::test]
async fn errors_and_readiness_are_the_inner_service_s() {
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<Request<()>, Response<Full<Bytes>>, _>(TelemetryLayer::new());
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let response = service.call(Request::new(()));
    let (_, inner) = handle.next_request().await.unwrap();
    inner.send_error("inner");
    assert_eq!(response.await.unwrap_err().to_string(), "inner");
}

#[tokio::test]
async fn one_line_on_axum_hyper_and_tonic() {
    let handler = get(async || "ok");
    for router in [
        Router::new().route("/", handler.clone()).layer(TelemetryLayer::new()),
        Router::new().route("/", handler.clone()).route_layer(TelemetryLayer::new()),
        Router::new().route("/", handler.layer(TelemetryLayer::new())),
    ] {
        assert_eq!(text(router, "/").await, "ok");
    }
    let hyper = TowerToHyperService::new(TelemetryLayer::new().layer(service_fn(plain)));
    let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    hyper::service::Service::call(&hyper, request).await.unwrap();
    let _ =
        tonic::transport::Server::builder().layer(TelemetryLayer::new()).add_routes(tonic::service::Routes::default());
}

#[test]
fn auto_traits() {
    fn assert_all<T: Send + Sync + Clone + std::fmt::Debug + 'static>() {}
    fn assert_send<T: Send + std::fmt::Debug>() {}
    assert_all::<TelemetryLayer>();
    assert_all::<Vitals>();
    assert_all::<tower_scale::telemetry::Memory>();
    assert_all::<tower_scale::telemetry::Telemetry<()>>();
    assert_send::<tower_scale::telemetry::ResponseFuture<std::future::Ready<()>>>();
    assert_send::<tower_scale::telemetry::ResponseBody<Full<Bytes>>>();
}
