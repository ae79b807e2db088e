//! The service's future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::{BoxError, ResponseBody};
use super::change::{Change, Removal};
use super::status::{self, Forward, Mark};
use super::store::{Reply, finish};
use crate::ready::CallWhenReady;

type Detour<B, E> = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<B>>, E>> + Send>>;

/// What happens to the response of a request that is forwarded in its own task.
pub(super) struct Passage {
    pub(super) forward: Forward,
    /// What the request changes, if it succeeds.
    pub(super) changes: Option<Change>,
}

pin_project! {
    /// The future of [`Cache`](super::Cache).
    ///
    /// Dropping it never cancels a fetch that others share.
    pub struct ResponseFuture<S, B, ResBody>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<CallWhenReady<S, Request<B>>, ResBody, S::Error>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, ResBody, E> {
        Answered { response: Option<Response<ResponseBody<ResBody>>> },
        Forwarded { #[pin] call: F, passage: Option<Passage> },
        Detour { future: Detour<ResBody, E> },
    }
}

impl<S: Service<Request<B>>, B, ResBody> ResponseFuture<S, B, ResBody> {
    pub(super) fn answered(response: Response<ResponseBody<ResBody>>) -> Self {
        Self { state: State::Answered { response: Some(response) } }
    }

    pub(super) fn forwarded(call: CallWhenReady<S, Request<B>>, passage: Passage) -> Self {
        Self { state: State::Forwarded { call, passage: Some(passage) } }
    }

    pub(super) fn detour(future: Detour<ResBody, S::Error>) -> Self {
        Self { state: State::Detour { future } }
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B, ResBody>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    S::Error: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProjection::Answered { response } => return take(response),
                StateProjection::Detour { future } => return future.as_mut().poll(cx),
                StateProjection::Forwarded { call, passage } => {
                    let response = ready!(call.poll(cx))?;
                    let Some(Passage { forward, changes }) = passage.take() else { return Poll::Pending };
                    let Some(change) = changes else { return Poll::Ready(Ok(pass(response, forward))) };
                    match change.apply(&response) {
                        Reply::Now(_) if !change.may_store() => return Poll::Ready(Ok(pass(response, forward))),
                        removal => Box::pin(conclude(change, removal, response, forward)),
                    }
                }
            };
            state.set(State::Detour { future: next });
        }
    }
}

/// Waits until what has changed is forgotten; only then may the client learn that it has. It has changed whether or not
/// the client stays to learn it.
async fn conclude<B, E>(
    change: Change,
    removal: Removal,
    response: Response<B>,
    forward: Forward,
) -> Result<Response<ResponseBody<B>>, E>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let shared = change.shared().clone();
    let told = finish(Box::pin(async move { shared.done(removal).await })).await == Some(true);
    Ok(change.finish(response, told).await.unwrap_or_else(|response| pass(response, forward)))
}

/// A future that is polled after its end never ends again.
fn take<T, E>(slot: &mut Option<T>) -> Poll<Result<T, E>> {
    slot.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)))
}

fn pass<B>(mut response: Response<B>, forward: Forward) -> Response<ResponseBody<B>> {
    status::forwarded(response.headers_mut(), forward, None, Mark::Plain);
    response.map(ResponseBody::inner)
}

impl<S: Service<Request<B>>, B, ResBody> fmt::Debug for ResponseFuture<S, B, ResBody> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
