//! The service's future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::{BoxError, ResponseBody};
use super::fill::{Plan, settle};
use super::key::Key;
use super::layer::Shared;
use super::status::{self, Forward, Mark};
use super::store::{Reply, StoreFailure};
use crate::ready::CallWhenReady;

type Detour<B, E> = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<B>>, E>> + Send>>;
type Removal = Pin<Box<dyn Future<Output = Result<(), StoreFailure>> + Send>>;

/// What happens to the response of a request that is forwarded in its own task.
pub(super) enum Passage {
    /// It passes.
    Through {
        shared: Arc<Shared>,
        forward: Forward,
        /// What the request changes, if it succeeds.
        changes: Option<Change>,
    },
    /// It is stored if it may be.
    Storing { plan: Box<Plan> },
}

/// A URL that a request changes.
pub(super) struct Change {
    pub(super) primary: Key,
    /// The store has already cost the request its time: only this process can be told.
    pub(super) spent: bool,
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
        Invalidating {
            removal: Removal,
            shared: Arc<Shared>,
            response: Option<Response<ResponseBody<ResBody>>>,
        },
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
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let (removal, shared, response) = match state.as_mut().project() {
                StateProjection::Answered { response } => return take(response),
                StateProjection::Detour { future } => return future.as_mut().poll(cx),
                StateProjection::Invalidating { removal, shared, response } => {
                    if ready!(removal.as_mut().poll(cx)).is_err() {
                        shared.metrics.store_errors.increment(1);
                    }
                    return take(response);
                }
                StateProjection::Forwarded { call, passage } => {
                    let response = ready!(call.poll(cx))?;
                    match passage.take() {
                        None => return Poll::Pending,
                        Some(Passage::Storing { plan }) => return Poll::Ready(Ok(settle(*plan, response))),
                        Some(Passage::Through { shared, forward, changes }) => {
                            let removal = changes
                                .filter(|_| is_success(response.status()))
                                .map(|change| shared.invalidate(change));
                            let response = pass(response, forward);
                            match removal {
                                Some(Reply::Later(removal)) => (removal, shared, response),
                                Some(Reply::Now(_)) | None => return Poll::Ready(Ok(response)),
                            }
                        }
                    }
                }
            };
            state.set(State::Invalidating { removal, shared, response: Some(response) });
        }
    }
}

/// A future that is polled after its end never ends again.
fn take<T, E>(slot: &mut Option<T>) -> Poll<Result<T, E>> {
    slot.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)))
}

fn pass<B>(mut response: Response<B>, forward: Forward) -> Response<ResponseBody<B>> {
    status::forwarded(response.headers_mut(), forward, Mark::Plain);
    response.map(ResponseBody::inner)
}

/// RFC 9111 §4.4: a non-error response.
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

impl Shared {
    /// Forgets the response to a GET of this URL, with all variants, and voids fetches under way.
    fn invalidate(self: &Arc<Self>, Change { primary, spent }: Change) -> Reply<Result<(), StoreFailure>> {
        let removal = self.flights.in_order(&primary, || {
            self.flights.note_voided(&primary);
            let removal = if spent { Reply::Now(Ok(())) } else { self.store.remove(&primary) };
            // Again: whoever has looked in between may have read what is now removed, and must not build on it.
            self.flights.note_voided(&primary);
            removal
        });
        match removal {
            Reply::Now(done) => Reply::Now(done),
            Reply::Later(removal) => {
                let shared = self.clone();
                Reply::Later(Box::pin(async move {
                    let done = removal.await;
                    shared.flights.note_voided(&primary);
                    done
                }))
            }
        }
    }
}

impl<S: Service<Request<B>>, B, ResBody> fmt::Debug for ResponseFuture<S, B, ResBody> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
