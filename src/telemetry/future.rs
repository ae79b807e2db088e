use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use super::ResponseBody;
use super::service::Stopwatch;

pin_project! {
    /// The inner service's future, every poll of it timed.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        stopwatch: Option<Stopwatch>,
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(inner: F, stopwatch: Stopwatch) -> Self {
        Self { inner, stopwatch: Some(stopwatch) }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let inner = this.inner;
        let response = ready!(match this.stopwatch {
            Some(stopwatch) => stopwatch.time(|| inner.poll(cx)),
            None => inner.poll(cx),
        })?;
        let stopwatch = this.stopwatch.take();
        Poll::Ready(Ok(response.map(|body| ResponseBody::new(body, stopwatch))))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
