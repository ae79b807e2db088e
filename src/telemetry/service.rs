use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::layer::Namer;
use super::watch::LongPolls;
use super::{ResponseBody, ResponseFuture};
use crate::scope::{NamedRoute, Route, Watcher};

/// A service whose polls are timed. See the [module](super).
#[derive(Clone)]
pub struct Telemetry<S> {
    inner: S,
    polls: Arc<LongPolls>,
    namer: Option<Namer>,
}

/// What times the polls of one request, in its future and its body.
pub(super) struct Stopwatch {
    polls: Arc<LongPolls>,
    route: Route,
}

impl Stopwatch {
    #[inline]
    pub(super) fn time<R>(&self, poll: impl FnOnce() -> R) -> R {
        self.polls.time(&self.route, poll)
    }
}

impl<S> Telemetry<S> {
    pub(super) fn new(inner: S, polls: Arc<LongPolls>, namer: Option<Namer>) -> Self {
        Self { inner, polls, namer }
    }

    fn attach<B>(&self, request: &mut Request<B>) -> Stopwatch {
        if let Some(name) = &self.namer {
            let name = NamedRoute(name(request.method(), request.uri()));
            request.extensions_mut().insert(name);
        }
        // Layers that move the request to another task time it there through this.
        request.extensions_mut().insert(Watcher(self.polls.clone()));
        Stopwatch { polls: self.polls.clone(), route: Route::of(request.extensions()) }
    }
}

impl<S, B, RB> Service<Request<B>> for Telemetry<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
{
    type Response = Response<ResponseBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        self.polls.readings().sample_here();
        let stopwatch = self.attach(&mut request);
        let future = stopwatch.time(|| self.inner.call(request));
        ResponseFuture::new(future, stopwatch)
    }
}

impl<S: fmt::Debug> fmt::Debug for Telemetry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("inner", &self.inner).finish_non_exhaustive()
    }
}
