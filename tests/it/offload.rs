//! Real threads, so real time: every wait is for a condition.

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::routing::get;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_scale::offload::{BuildError, OffloadError, OffloadLayer, OffloadPool};
use tower_scale::refusal::Reason;

use crate::support::eventually;

fn pool(threads: usize, queue: usize) -> OffloadPool {
    let builder = OffloadPool::builder().threads(NonZeroUsize::new(threads).unwrap());
    builder.queue(NonZeroUsize::new(queue).unwrap()).build().unwrap()
}

/// Occupies one thread of the pool until it is dropped.
struct Block {
    _release: mpsc::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Block {
    async fn of(pool: &OffloadPool) -> Self {
        let (release, released) = mpsc::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let running = pool.run(move || {
            begin.send(()).unwrap();
            let _ = released.recv();
        });
        let task = tokio::spawn(async move { running.await.unwrap() });
        begun.await.unwrap();
        Self { _release: release, task }
    }

    async fn end(self) {
        drop(self._release);
        self.task.await.unwrap();
    }
}

fn request() -> Request<Body> {
    Request::new(Body::empty())
}

async fn text(
    response: Response<impl axum::body::HttpBody<Data = axum::body::Bytes, Error: std::fmt::Debug>>,
) -> String {
    String::from_utf8(response.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

// === the queue ===

#[tokio::test]
async fn first_in_first_out_within_the_bound() {
    let pool = pool(1, 3);
    let block = Block::of(&pool).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let queued: Vec<_> = (0..5)
        .map(|index| {
            let order = order.clone();
            pool.run(move || order.lock().unwrap().push(index))
        })
        .collect();
    block.end().await;
    let outcomes = futures_util::future::join_all(queued).await;
    assert_eq!(outcomes, [Ok(()), Ok(()), Ok(()), Err(OffloadError::QueueFull), Err(OffloadError::QueueFull)]);
    assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
}

#[tokio::test]
async fn dropped_while_queued_never_runs_and_frees_its_place() {
    let pool = pool(1, 50);
    let block = Block::of(&pool).await;
    let ran = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 {
        let queued: Vec<_> = (0..50)
            .map(|_| {
                let ran = ran.clone();
                pool.run(move || ran.fetch_add(1, Ordering::SeqCst))
            })
            .collect();
        assert_eq!(pool.run(|| ()).await, Err(OffloadError::QueueFull));
        drop(queued);
        assert_eq!(Arc::strong_count(&ran), 1, "the closures are gone before the thread is free");
    }
    block.end().await;
    pool.run(|| ()).await.unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_full_queue_is_a_503_with_its_reason() {
    let pool = pool(1, 1);
    let block = Block::of(&pool).await;
    let mut service = tower::ServiceBuilder::new()
        .layer(OffloadLayer::new(pool.clone()))
        .service(service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::from("done"))) }));
    let waiting = service.call(request());
    let refused = service.call(request()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.extensions().get(), Some(&Reason::QueueFull));
    let retry: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3).contains(&retry));
    block.end().await;
    assert_eq!(text(waiting.await.unwrap()).await, "done");
}

#[tokio::test]
async fn a_hook_replaces_the_refusal() {
    let pool = pool(1, 1);
    pool.close();
    let layer = OffloadLayer::new(pool).refusal(|refusal| {
        assert_eq!(refusal.reason(), Reason::PoolClosed);
        Response::builder().status(418).body(axum::body::Bytes::new()).unwrap()
    });
    let app = Router::new().route("/", get(|| async { "never" })).layer(layer);
    assert_eq!(app.oneshot(request()).await.unwrap().status(), 418);
}

#[tokio::test]
async fn suspended_requests_are_bounded_too() {
    let one = NonZeroUsize::MIN;
    let pool = OffloadPool::builder().threads(one).queue(one).in_flight(NonZeroUsize::new(3).unwrap()).build().unwrap();
    let suspended = Arc::new(AtomicUsize::new(0));
    let app = suspending(&pool, &suspended, &Arc::new(Notify::new()));
    let mut waiting = Vec::new();
    for count in 1..=3 {
        waiting.push(tokio::spawn(app.clone().oneshot(request())));
        eventually("suspended", || async { suspended.load(Ordering::SeqCst) == count }).await;
    }
    assert_eq!(app.clone().oneshot(request()).await.unwrap().status(), 503);
    waiting.pop().unwrap().abort();
    eventually("a place is free again", || async { app.clone().oneshot(request()).now_or_never().is_none() }).await;
}

/// Handlers that suspend until `resume` is notified. Each counts both of its turns.
fn suspending(pool: &OffloadPool, suspended: &Arc<AtomicUsize>, resume: &Arc<Notify>) -> Router {
    let (suspended, resume) = (suspended.clone(), resume.clone());
    Router::new()
        .route(
            "/",
            get(move || {
                let (suspended, resume) = (suspended.clone(), resume.clone());
                async move {
                    let resumed = resume.notified();
                    suspended.fetch_add(1, Ordering::SeqCst);
                    resumed.await;
                    suspended.fetch_add(1, Ordering::SeqCst);
                    "resumed"
                }
            }),
        )
        .layer(OffloadLayer::new(pool.clone()))
}

#[tokio::test]
async fn a_suspended_request_holds_no_thread_and_resumes_past_a_full_queue() {
    let pool = pool(1, 2);
    let (suspended, resume) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let app = suspending(&pool, &suspended, &resume);
    let response = tokio::spawn(app.oneshot(request()));
    eventually("suspended", || async { suspended.load(Ordering::SeqCst) == 1 }).await;

    let block = Block::of(&pool).await;
    let queued = [0; 2].map(|_| {
        let turns = suspended.clone();
        pool.run(move || turns.load(Ordering::SeqCst))
    });
    assert_eq!(pool.run(|| ()).await, Err(OffloadError::QueueFull));
    resume.notify_waiters();
    block.end().await;
    let response = response.await.unwrap().unwrap();
    assert_eq!(text(response).await, "resumed");
    for run in queued {
        assert_eq!(run.await, Ok(2), "the second turn was before those that waited");
    }
}

// === cancellation ===

#[tokio::test]
async fn a_suspended_request_that_is_dropped_lets_go_at_once() {
    let pool = pool(1, 4);
    let held = Arc::new(());
    let begun = Arc::new(AtomicBool::new(false));
    let service = service_fn({
        let (held, begun) = (held.clone(), begun.clone());
        move |_: Request<Body>| {
            let (held, begun) = (held.clone(), begun.clone());
            async move {
                begun.store(true, Ordering::SeqCst);
                std::future::pending::<()>().await;
                drop(held);
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }
    });
    let mut service = tower::ServiceBuilder::new().layer(OffloadLayer::new(pool.clone())).service(service);
    let mut response = service.call(request());
    drop(service);
    assert!((&mut response).now_or_never().is_none());
    eventually("begun", || async { begun.load(Ordering::SeqCst) }).await;
    // The one thread is busy, so nobody but the caller can drop the future.
    let block = Block::of(&pool).await;
    drop(response);
    eventually("let go", || async { Arc::strong_count(&held) == 1 }).await;
    block.end().await;
}

#[tokio::test]
async fn a_suspended_request_is_dropped_in_its_runtime_wherever_its_caller_is() {
    struct Spawns(Option<oneshot::Sender<()>>);

    impl Drop for Spawns {
        fn drop(&mut self) {
            let sender = self.0.take().unwrap();
            tokio::spawn(async move { sender.send(()).unwrap() });
        }
    }

    let (sender, spawned) = oneshot::channel();
    let held = Arc::new(Mutex::new(Some(Spawns(Some(sender)))));
    let suspended = Arc::new(Notify::new());
    let service = service_fn({
        let (held, suspended) = (held.clone(), suspended.clone());
        move |_: Request<Body>| {
            let (held, suspended) = (held.lock().unwrap().take(), suspended.clone());
            async move {
                suspended.notify_one();
                std::future::pending::<()>().await;
                drop(held);
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }
    });
    let pool = pool(1, 4);
    let response = OffloadLayer::new(pool.clone()).layer(service).call(request());
    suspended.notified().await;
    // Its turn is over once the one thread has had another.
    pool.run(|| ()).await.unwrap();
    std::thread::spawn(move || drop(response)).join().unwrap();
    spawned.await.expect("the destructor could spawn");
}

#[tokio::test]
async fn a_dropped_request_that_runs_is_dropped_when_it_suspends() {
    let pool = pool(1, 4);
    let held = Arc::new(());
    let (release, released) = mpsc::channel::<()>();
    let (begin, begun) = oneshot::channel();
    let slot = Arc::new(Mutex::new(Some((released, begin))));
    let service = service_fn({
        let held = held.clone();
        move |_: Request<Body>| {
            let (held, slot) = (held.clone(), slot.clone());
            async move {
                let (released, begin) = slot.lock().unwrap().take().unwrap();
                begin.send(()).unwrap();
                let _ = released.recv();
                std::future::pending::<()>().await;
                drop(held);
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }
    });
    let response = OffloadLayer::new(pool.clone()).layer(service).oneshot(request());
    let response = tokio::spawn(response);
    begun.await.unwrap();
    response.abort();
    assert!(response.await.unwrap_err().is_cancelled());
    assert_eq!(Arc::strong_count(&held), 2, "synchronous code cannot be stopped");
    drop(release);
    eventually("dropped at its suspension", || async { Arc::strong_count(&held) == 1 }).await;
    pool.run(|| ()).await.unwrap();
}

#[tokio::test]
async fn a_future_that_is_always_ready_can_be_cancelled() {
    let pool = pool(1, 4);
    let turns = Arc::new(AtomicUsize::new(0));
    let service = service_fn({
        let turns = turns.clone();
        move |_: Request<Body>| {
            let turns = turns.clone();
            async move {
                loop {
                    turns.fetch_add(1, Ordering::SeqCst);
                    tokio::task::consume_budget().await;
                }
                #[allow(unreachable_code)]
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }
    });
    let response = tokio::spawn(OffloadLayer::new(pool.clone()).layer(service).oneshot(request()));
    eventually("many turns", || async { turns.load(Ordering::SeqCst) > 1000 }).await;
    response.abort();
    pool.run(|| ()).await.unwrap();
}

#[test]
fn a_runtime_that_ends_takes_its_requests_along() {
    let pool = pool(1, 2);
    let (release, released) = mpsc::channel::<()>();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let (begin, begun) = oneshot::channel();
    let entered = runtime.enter();
    let running = pool.run(move || {
        begin.send(()).unwrap();
        let _ = released.recv();
    });
    drop(entered);
    runtime.block_on(async {
        begun.await.unwrap();
        let (queued, waiting) = (pool.clone(), ran.clone());
        tokio::spawn(async move { queued.run(move || waiting.fetch_add(1, Ordering::SeqCst)).await });
        eventually("queued", || async { Arc::strong_count(&ran) == 2 }).await;
    });
    runtime.shutdown_background();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&ran) > 1 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    drop(release);
    block_on(running).unwrap();
    assert_eq!(block_on(pool.run(|| 7)), Ok(7), "and no runtime is needed");
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

/// An executor without tokio.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

// === panics ===

#[tokio::test]
async fn panics_reach_their_caller_and_no_thread_ends() {
    let pool = pool(2, 8);
    let app = Router::new()
        .route(
            "/",
            get(|| async {
                if true {
                    resume_unwind(Box::new("handler"))
                }
            }),
        )
        .layer(OffloadLayer::new(pool.clone()))
        .layer(tower_http::catch_panic::CatchPanicLayer::new());
    // Unwinding without `panic!`, so that no hook writes a thousand messages.
    for _ in 0..334 {
        let payload = AssertUnwindSafe(pool.run(|| resume_unwind(Box::new("run")))).catch_unwind().await.unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&"run"));
        let payload = AssertUnwindSafe(pool.install(|| rayon::join(|| (), || resume_unwind(Box::new("part")))))
            .catch_unwind()
            .await;
        assert_eq!(payload.unwrap_err().downcast_ref(), Some(&"part"));
        assert_eq!(app.clone().oneshot(request()).await.unwrap().status(), 500);
    }
    // Both threads are there, at once.
    let (first, second) = (Block::of(&pool).await, Block::of(&pool).await);
    assert_eq!(pool.install(|| rayon::broadcast(|_| ()).len()).await, Ok(2));
    first.end().await;
    second.end().await;
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        resume_unwind(Box::new("destructor"));
    }
}

#[tokio::test]
async fn a_panicking_destructor_ends_nothing() {
    let pool = pool(1, 8);
    // A captured value, dropped with a suspended future, and a result that nobody takes.
    let begun = Arc::new(Notify::new());
    let service = service_fn({
        let begun = begun.clone();
        move |_: Request<Body>| {
            let begun = begun.clone();
            async move {
                let _held = PanicsWhenDropped;
                begun.notify_one();
                std::future::pending::<()>().await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }
    });
    let response = tokio::spawn(OffloadLayer::new(pool.clone()).layer(service).oneshot(request()));
    begun.notified().await;
    response.abort();
    assert!(response.await.unwrap_err().is_cancelled());

    let (begin, began) = oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let running = pool.run(move || {
        begin.send(()).unwrap();
        let _ = released.recv();
        PanicsWhenDropped
    });
    began.await.unwrap();
    drop(running);
    drop(release);
    pool.run(|| ()).await.unwrap();
}

// === an unmodified service ===

/// Uses what a handler uses: extractors, timers, sockets, tasks.
fn app(pool: &OffloadPool) -> Router {
    async fn handler(axum::extract::Path(id): axum::extract::Path<u32>) -> String {
        let thread = std::thread::current().name().unwrap().to_owned();
        assert!(thread.starts_with("offload-"), "{thread}");
        assert!(rayon::current_thread_index().is_none(), "rayon's threads run no requests");
        tokio::time::sleep(Duration::from_millis(2)).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"over tcp").await.unwrap();
        });
        let mut received = String::new();
        tokio::net::TcpStream::connect(address).await.unwrap().read_to_string(&mut received).await.unwrap();
        server.await.unwrap();
        format!("{id} {received}")
    }
    Router::new().route("/{id}", get(handler)).layer(OffloadLayer::new(pool.clone()))
}

async fn many_requests() {
    let pool = pool(2, 64);
    let app = app(&pool);
    let responses = (0..32).map(|id| {
        let app = app.clone();
        tokio::spawn(async move {
            let request = Request::get(format!("/{id}")).body(Body::empty()).unwrap();
            assert_eq!(text(app.oneshot(request).await.unwrap()).await, format!("{id} over tcp"));
        })
    });
    for response in responses.collect::<Vec<_>>() {
        response.await.unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_unmodified_handler_runs_from_a_current_thread_runtime() {
    many_requests().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmodified_handler_runs_from_a_multi_thread_runtime() {
    many_requests().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_is_allowed_where_tokio_allows_it() {
    let pool = pool(1, 4);
    let wait = || tokio::time::sleep(Duration::from_millis(1));
    pool.run(move || tokio::runtime::Handle::current().block_on(wait())).await.unwrap();
    pool.install(move || tokio::runtime::Handle::current().block_on(wait())).await.unwrap();
    let handler = move || async move {
        tokio::task::block_in_place(move || tokio::runtime::Handle::current().block_on(wait()));
        "done"
    };
    let app = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool));
    assert_eq!(text(app.oneshot(request()).await.unwrap()).await, "done");
}

#[tokio::test]
async fn a_refusal_needs_no_ready_service() {
    #[derive(Clone)]
    struct NeverReady;

    impl Service<Request<Body>> for NeverReady {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            unreachable!("it was never ready")
        }
    }

    let pool = pool(1, 1);
    let mut service = OffloadLayer::new(pool.clone()).layer(NeverReady);
    let block = Block::of(&pool).await;
    let waiting = service.ready().await.unwrap().call(request());
    assert_eq!(service.ready().await.unwrap().call(request()).await.unwrap().status(), 503);
    block.end().await;
    eventually("a request that is not ready holds no thread", || async { pool.run(|| ()).await.is_ok() }).await;
    drop(waiting);
}

#[tokio::test]
async fn one_line_on_every_axum_surface() {
    let layer = OffloadLayer::new(pool(1, 64));
    let name = || async { std::thread::current().name().unwrap().to_owned() };
    let apps = [
        Router::new().route("/", get(name)).layer(layer.clone()),
        Router::new().route("/", get(name)).route_layer(layer.clone()),
        Router::new().route("/", get(name).layer(layer.clone())),
        Router::new().route("/", get(name)).layer(layer.clone()).layer(layer),
    ];
    for app in apps {
        assert_eq!(text(app.oneshot(request()).await.unwrap()).await, "offload-0");
    }
}

#[tokio::test]
async fn hyper_without_axum() {
    let service = tower::ServiceBuilder::new().layer(OffloadLayer::new(pool(1, 4))).service(service_fn(
        |_: Request<hyper::body::Incoming>| async {
            let name = std::thread::current().name().unwrap().to_owned();
            Ok::<_, Infallible>(Response::new(http_body_util::Full::new(axum::body::Bytes::from(name))))
        },
    ));
    let (mut client, server) = tokio::io::duplex(4096);
    let service = hyper_util::service::TowerToHyperService::new(service);
    let io = hyper_util::rt::TokioIo::new(server);
    tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    assert!(reply.contains("content-length: 9"), "{reply}");
    assert!(reply.ends_with("offload-0"), "{reply}");
}

#[tokio::test]
async fn the_span_follows() {
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry());
    let pool = pool(1, 4);
    let span = tracing::info_span!("request");
    let current = || tracing::Span::current().id();
    assert_eq!(span.in_scope(|| pool.run(current)).await, Ok(span.id()));
    assert_eq!(span.in_scope(|| pool.install(current)).await, Ok(span.id()));

    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let service = service_fn(move |_: Request<Body>| {
        let sender = sender.clone();
        async move {
            sender.send(current()).unwrap();
            tokio::task::yield_now().await;
            sender.send(current()).unwrap();
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    let mut service = OffloadLayer::new(pool).layer(service);
    span.in_scope(|| service.call(request())).await.unwrap();
    assert_eq!((seen.recv().await.unwrap(), seen.recv().await.unwrap()), (span.id(), span.id()));
}

#[tokio::test]
async fn the_service_that_was_readied_is_called_and_its_error_passes() {
    #[derive(Clone)]
    struct Inner {
        ready: Option<std::thread::ThreadId>,
    }

    impl Service<Request<Body>> for Inner {
        type Response = Response<Body>;
        type Error = std::thread::ThreadId;
        type Future = std::future::Ready<Result<Response<Body>, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            self.ready = Some(std::thread::current().id());
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            std::future::ready(Err(self.ready.take().unwrap()))
        }
    }

    let pool = pool(1, 4);
    let thread = pool.run(|| std::thread::current().id()).await.unwrap();
    let mut service = OffloadLayer::new(pool).layer(Inner { ready: None });
    for _ in 0..3 {
        assert_eq!(service.call(request()).await.unwrap_err(), thread);
    }
}

// === nesting ===

#[tokio::test]
async fn a_request_on_the_only_thread_may_use_the_pool() {
    let pool = pool(1, 4);
    let nested = pool.clone();
    let handler = move || async move {
        let parts = nested.install(|| rayon::join(|| 1, || 2)).await.unwrap();
        nested.run(move || parts.0 + parts.1).await.unwrap().to_string()
    };
    let app = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool));
    assert_eq!(text(app.oneshot(request()).await.unwrap()).await, "3");
}

#[tokio::test]
async fn no_job_runs_on_the_stack_of_another() {
    thread_local!(static INSIDE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    /// Waits for a part that another thread has taken.
    #[allow(clippy::disallowed_methods, reason = "rayon's threads may block")]
    fn wait() {
        rayon::join(|| std::thread::sleep(Duration::from_millis(1)), || std::thread::sleep(Duration::from_millis(3)));
    }
    let pool = pool(2, 64);
    let jobs = (0..32).map(|_| {
        pool.install(|| {
            let nested = INSIDE.replace(true);
            wait();
            INSIDE.set(false);
            nested
        })
    });
    for job in jobs.collect::<Vec<_>>() {
        assert_eq!(job.await, Ok(false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_within_a_job_runs_in_its_place() {
    let one = NonZeroUsize::MIN;
    let pool = OffloadPool::builder().threads(one).in_flight(one).build().unwrap();
    let nested = pool.clone();
    let job = pool.install(move || {
        let thread = std::thread::current().id();
        let wait = |job| tokio::runtime::Handle::current().block_on(job);
        assert_eq!(wait(nested.install(|| std::thread::current().id())), Ok(thread));
        let panic =
            std::panic::catch_unwind(AssertUnwindSafe(|| wait(nested.install(|| resume_unwind(Box::new("nested"))))));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"nested"));
        // Part of what has begun, which ends as ever.
        nested.close();
        wait(nested.install(|| std::thread::current().id())) == Ok(thread)
    });
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), job).await, Ok(Ok(true)));
    assert_eq!(pool.install(|| ()).await, Err(OffloadError::Closed));
}

// === the end of a pool ===

#[tokio::test]
async fn closing_refuses_what_waits_and_finishes_what_has_begun() {
    let pool = pool(1, 8);
    let (suspended, resume) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let app = suspending(&pool, &suspended, &resume);
    let begun = tokio::spawn(app.clone().oneshot(request()));
    eventually("suspended", || async { suspended.load(Ordering::SeqCst) == 1 }).await;
    let block = Block::of(&pool).await;
    let (run, install) = (pool.run(|| ()), pool.install(|| ()));
    let response = tokio::spawn(app.clone().oneshot(request()));
    eventually("queued", || async { format!("{pool:?}").contains("queued: 2") }).await;
    install.await.unwrap();
    pool.close();
    assert_eq!(run.await, Err(OffloadError::Closed));
    let refused = response.await.unwrap().unwrap();
    assert_eq!(
        (refused.status(), refused.extensions().get()),
        (StatusCode::SERVICE_UNAVAILABLE, Some(&Reason::PoolClosed))
    );
    assert_eq!(pool.run(|| ()).await, Err(OffloadError::Closed));
    block.end().await;
    resume.notify_waiters();
    assert_eq!(text(begun.await.unwrap().unwrap()).await, "resumed");
}

#[test]
fn too_many_threads_are_refused_before_any_is_started() {
    let build = |threads| OffloadPool::builder().threads(NonZeroUsize::new(threads).unwrap()).build();
    for threads in [1025, 99_999_999, usize::MAX] {
        let error = build(threads).unwrap_err();
        assert!(matches!(error, BuildError::TooManyThreads(refused) if refused.get() == threads), "{error:?}");
        assert!(error.to_string().contains("1024"), "{error}");
    }
}

#[tokio::test]
async fn threads_end_with_the_last_handle_wherever_it_is_dropped() {
    thread_local!(static ALIVE: std::cell::RefCell<Option<Arc<()>>> = const { std::cell::RefCell::new(None) });
    let (alive, parallel) = (Arc::new(()), Arc::new(()));
    for way in ["dropped here", "dropped on the pool", "closed"] {
        let pool = pool(2, 8);
        // At once, so that each is on a thread of its own.
        let both = Arc::new(std::sync::Barrier::new(2));
        let mark = || {
            let (alive, both) = (alive.clone(), both.clone());
            pool.run(move || {
                both.wait();
                ALIVE.set(Some(alive));
            })
        };
        assert_eq!(tokio::join!(mark(), mark()), (Ok(()), Ok(())));
        let part = parallel.clone();
        pool.install(move || rayon::broadcast(|_| ALIVE.set(Some(part.clone())))).await.unwrap();
        let (handle, started) = (pool.clone(), Block::of(&pool).await);
        if way == "closed" {
            pool.close();
            started.end().await;
            eventually("closed, with handles left", || async { Arc::strong_count(&alive) == 1 }).await;
            drop((pool, handle));
        } else if way == "dropped here" {
            drop((pool, handle));
            started.end().await;
        } else {
            started.end().await;
            pool.run(move || drop(handle)).await.unwrap();
            drop(pool);
        }
        eventually(way, || async { Arc::strong_count(&alive) + Arc::strong_count(&parallel) == 2 }).await;
    }
}

#[tokio::test]
async fn a_request_outlives_every_handle() {
    let app = Router::new().route("/", get(|| async { "done" })).layer(OffloadLayer::new(pool(1, 4)));
    assert_eq!(text(app.oneshot(request()).await.unwrap()).await, "done");
}

// === figures ===

/// Runs the test once more, alone in a process, where the global recorder counts nothing else. True in that process.
fn in_a_process_of_its_own(test: &str) -> bool {
    const MARK: &str = "TOWER_SCALE_OWN_PROCESS";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test]).env(MARK, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}

type Figures = std::collections::BTreeMap<String, f64>;

/// Adds what was recorded since the last call: a snapshot starts every figure anew.
fn add_figures(figures: &mut Figures, snapshotter: &Snapshotter) {
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let labels: String = key.key().labels().map(|label| format!("/{}", label.value())).collect();
        *figures.entry(format!("{}{labels}", key.key().name())).or_default() += match value {
            DebugValue::Counter(count) => u32::try_from(count).unwrap().into(),
            DebugValue::Gauge(level) => level.into_inner(),
            DebugValue::Histogram(values) => u32::try_from(values.len()).unwrap().into(),
        };
    }
}

/// A recorder that is installed now.
fn recorder() -> Snapshotter {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    snapshotter
}

#[test]
fn a_recorder_after_the_pool_sees_all_of_it() {
    if !in_a_process_of_its_own("offload::a_recorder_after_the_pool_sees_all_of_it") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (pool, unused) = (pool(2, 4), pool(2, 4));
        eventually("threads begun", || async { format!("{pool:?}{unused:?}").matches("idle: 2").count() == 2 }).await;
        let snapshotter = recorder();
        unused.close();
        eventually("threads ended", || async { format!("{unused:?}").contains("idle: 0") }).await;
        pool.run(|| ()).await.unwrap();
        let mut figures = Figures::new();
        add_figures(&mut figures, &snapshotter);
        let expected = [
            ("offload_active", 0.0),
            ("offload_queue_depth", 0.0),
            ("offload_requests_total/cancelled", 0.0),
            ("offload_requests_total/completed", 1.0),
            ("offload_requests_total/panicked", 0.0),
            ("offload_requests_total/refused", 0.0),
            ("offload_run_seconds", 1.0),
            ("offload_threads", 2.0),
            ("offload_wait_seconds", 1.0),
        ];
        assert_eq!(figures, expected.map(|(name, value)| (name.to_owned(), value)).into());
        drop(pool);
        eventually("threads ended", || {
            add_figures(&mut figures, &snapshotter);
            std::future::ready(figures["offload_threads"] == 0.0)
        })
        .await;
    });
}

#[test]
fn closing_leaves_no_depth_behind() {
    if !in_a_process_of_its_own("offload::closing_leaves_no_depth_behind") {
        return;
    }
    let snapshotter = recorder();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let pool = pool(1, 4);
        let block = Block::of(&pool).await;
        let queued = [0; 3].map(|_| pool.run(|| ()));
        let mut figures = Figures::new();
        add_figures(&mut figures, &snapshotter);
        assert_eq!(figures["offload_queue_depth"], 3.0);
        pool.close();
        for run in queued {
            assert_eq!(run.await, Err(OffloadError::Closed));
        }
        add_figures(&mut figures, &snapshotter);
        assert_eq!((figures["offload_queue_depth"], figures["offload_requests_total/refused"]), (0.0, 3.0));
        block.end().await;
    });
}

#[test]
fn a_thousand_clients_leave() {
    if !in_a_process_of_its_own("offload::a_thousand_clients_leave") {
        return;
    }
    let snapshotter = recorder();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let pool = pool(2, 1000);
        let ran = Arc::new(AtomicUsize::new(0));
        let blocks = [Block::of(&pool).await, Block::of(&pool).await];
        let app = Router::new()
            .route(
                "/",
                get({
                    let ran = ran.clone();
                    move || async move { ran.fetch_add(1, Ordering::SeqCst).to_string() }
                }),
            )
            .layer(OffloadLayer::new(pool.clone()));
        let clients: Vec<_> = (0..1000).map(|_| tokio::spawn(app.clone().oneshot(request()))).collect();
        eventually("queued", || async { format!("{pool:?}").contains("queued: 1000") }).await;
        assert_eq!(app.clone().oneshot(request()).await.unwrap().status(), 503);
        let mut figures = Figures::new();
        add_figures(&mut figures, &snapshotter);
        assert_eq!(figures["offload_queue_depth"], 1000.0);
        assert_eq!((figures["offload_active"], figures["offload_threads"]), (2.0, 2.0));
        assert_eq!(figures["offload_requests_total/refused"], 1.0);
        clients.iter().for_each(tokio::task::JoinHandle::abort);
        for client in clients {
            assert!(client.await.unwrap_err().is_cancelled());
        }
        add_figures(&mut figures, &snapshotter);
        assert_eq!((figures["offload_queue_depth"], figures["offload_active"]), (0.0, 2.0));
        assert_eq!(figures["offload_requests_total/cancelled"], 1000.0);
        for block in blocks {
            block.end().await;
        }
        let panicking = tokio::spawn(pool.run(|| resume_unwind(Box::new("counted"))));
        assert!(panicking.await.unwrap_err().is_panic());
        pool.install(|| ()).await.unwrap();
        drop(app);
        add_figures(&mut figures, &snapshotter);
        assert_eq!(ran.load(Ordering::SeqCst), 0);
        assert_eq!(figures["offload_requests_total/completed"], 3.0);
        assert_eq!(figures["offload_requests_total/panicked"], 1.0);
        assert_eq!((figures["offload_queue_depth"], figures["offload_active"]), (0.0, 0.0));
        assert_eq!((figures["offload_wait_seconds"], figures["offload_run_seconds"]), (4.0, 4.0));
        drop(pool);
        eventually("threads ended", || {
            add_figures(&mut figures, &snapshotter);
            std::future::ready(figures["offload_threads"] == 0.0)
        })
        .await;
    });
}
