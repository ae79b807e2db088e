//! The future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::ResponseBody;
use crate::body::GuardedBody;
use crate::ready::CallWhenReady;

pin_project! {
    /// Response future of [`ClientIpService`](super::ClientIpService). Dropping it drops the inner call.
    pub struct ResponseFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<CallWhenReady<S, Request<B>>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Passed { #[pin] call: F },
        Refused { response: Option<Response<Bytes>> },
    }
}

impl<S: Service<Request<B>>, B> ResponseFuture<S, B> {
    pub(crate) fn pass(service: S, request: Request<B>) -> Self {
        Self { state: State::Passed { call: CallWhenReady::new(service, request) } }
    }

    pub(crate) fn refuse(response: Response<Bytes>) -> Self {
        Self { state: State::Refused { response: Some(response) } }
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    ResBody: http_body::Body<Data = Bytes>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Passed { call } => {
                let response = ready!(call.poll(cx))?;
                Poll::Ready(Ok(response.map(|body| GuardedBody::inner(body, ()).into())))
            }
            StateProjection::Refused { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response.map(|bytes| GuardedBody::own(bytes).into()))),
                None => Poll::Pending, // Polled again after its end, against the contract of `Future`.
            },
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
