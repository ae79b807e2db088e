//! Inner services that hold a layer to the tower contract.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use tokio::sync::watch;
use tower::Service;

/// The error of [`Inner`]; layers must pass it on untouched.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InnerError(pub u32);

impl std::fmt::Display for InnerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inner error {}", self.0)
    }
}

impl std::error::Error for InnerError {}

/// Where a request may be held, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Readiness,
    Head,
    FirstFrame,
    LastFrame,
    Nowhere,
}

/// What all clones of one [`Inner`] share.
pub(crate) struct Control {
    /// Requests are held at this stage.
    hold: watch::Sender<Stage>,
    /// How many services that reserved capacity, futures and bodies are alive.
    live: Arc<()>,
    /// Whether some request has arrived at the held stage.
    pub(crate) arrived: AtomicBool,
    pub(crate) calls: AtomicUsize,
    pub(crate) fail: AtomicBool,
    pub(crate) permits: Arc<tokio::sync::Semaphore>,
}

impl Control {
    pub(crate) fn hold_at(&self, stage: Stage) {
        self.arrived.store(false, Ordering::SeqCst);
        self.hold.send_replace(stage);
    }

    pub(crate) fn live(&self) -> usize {
        Arc::strong_count(&self.live) - 1
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn pass(self: Arc<Self>, stage: Stage) {
        let mut hold = self.hold.subscribe();
        while *hold.borrow_and_update() == stage {
            self.arrived.store(true, Ordering::SeqCst);
            hold.changed().await.expect("the sender lives in self");
        }
    }
}

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;
type Reserve = Pin<Box<dyn Future<Output = tokio::sync::OwnedSemaphorePermit> + Send>>;

/// A service that answers `hello world` in two frames; `…/trailers` adds trailers, `/cacheable…` may be cached. It has
/// one permit for each request at a time, taken in `poll_ready`, spent in `call` and given back when the
/// body ends. Calling a clone that was never readied panics.
pub(crate) struct Inner {
    control: Arc<Control>,
    waiting: Option<Wait>,
    reserving: Option<Reserve>,
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Inner {
    /// `permits`: how many requests may be in flight; a leaked one shows as a hang.
    pub(crate) fn new(permits: usize) -> (Self, Arc<Control>) {
        let control = Arc::new(Control {
            hold: watch::Sender::new(Stage::Nowhere),
            live: Arc::new(()),
            arrived: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            fail: AtomicBool::new(false),
            permits: Arc::new(tokio::sync::Semaphore::new(permits)),
        });
        (Self { control: control.clone(), waiting: None, reserving: None, permit: None }, control)
    }
}

impl Clone for Inner {
    /// A clone has reserved nothing.
    fn clone(&self) -> Self {
        Self { control: self.control.clone(), waiting: None, reserving: None, permit: None }
    }
}

// Only ever polled through `&mut self`.
fn poll_in_place<T>(slot: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>, cx: &mut Context<'_>) -> Poll<T> {
    let ready = slot.as_mut().expect("set by the caller").as_mut().poll(cx);
    if ready.is_ready() {
        *slot = None;
    }
    ready
}

impl Service<Request<Body>> for Inner {
    type Response = Response<Body>;
    type Error = InnerError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, InnerError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), InnerError>> {
        if self.permit.is_some() {
            return Poll::Ready(Ok(()));
        }
        if self.reserving.is_none() {
            self.waiting.get_or_insert_with(|| Box::pin(self.control.clone().pass(Stage::Readiness)));
            std::task::ready!(poll_in_place(&mut self.waiting, cx));
            let permits = self.control.permits.clone();
            self.reserving = Some(Box::pin(async move { permits.acquire_owned().await.expect("never closed") }));
        }
        self.permit = Some(std::task::ready!(poll_in_place(&mut self.reserving, cx)));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let permit = self.permit.take().expect("a clone that was never readied was called");
        let control = self.control.clone();
        let live = control.live.clone();
        control.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            control.clone().pass(Stage::Head).await;
            if control.fail.load(Ordering::SeqCst) {
                return Err(InnerError(7));
            }
            let path = request.uri().path();
            let (cacheable, trailers) = (path.starts_with("/cacheable"), path.ends_with("/trailers"));
            let start = (0, control, live, permit);
            let frames = futures_util::stream::unfold(start, move |(step, control, live, permit)| async move {
                let frame = match step {
                    0 => {
                        control.clone().pass(Stage::FirstFrame).await;
                        Frame::data(Bytes::from_static(b"hello "))
                    }
                    1 => {
                        control.clone().pass(Stage::LastFrame).await;
                        Frame::data(Bytes::from_static(b"world"))
                    }
                    2 if trailers => {
                        let name = http::HeaderName::from_static("x-trailer");
                        Frame::trailers(HeaderMap::from_iter([(name, HeaderValue::from_static("end"))]))
                    }
                    _ => return None,
                };
                Some((Ok::<_, InnerError>(frame), (step + 1, control, live, permit)))
            });
            let mut response = Response::new(Body::new(http_body_util::StreamBody::new(frames)));
            if cacheable {
                response.headers_mut().insert("cache-control", HeaderValue::from_static("max-age=60"));
            }
            Ok(response)
        })
    }
}
