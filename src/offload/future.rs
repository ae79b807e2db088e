//! The caller's side: futures of work that the pool has, or has refused.

use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Body;

use super::body::ResponseBody;
use super::error::OffloadError;
use super::metrics::Outcome;
use super::pool::Owner;
use super::shared::Handle;
use super::task::Answer;
use crate::body::GuardedBody;
use crate::refusal::{Caller, Refusal, Refuse};

/// Why a refused client comes back no sooner: a queue that is full now is not empty in a moment.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Future of [`OffloadPool::run`](super::OffloadPool::run) and [`OffloadPool::install`](super::OffloadPool::install).
///
/// Dropped while the work waits, it takes the work out of the queue at once. Dropped while the work runs, the work
/// runs to its end and its value is dropped.
#[must_use = "dropping the future cancels work that has not begun"]
pub struct Offloaded<T> {
    state: State<T>,
    // Keeps the pool open for as long as somebody waits.
    pool: Arc<Owner>,
}

enum State<T> {
    Admitted(Handle<T>),
    Refused(OffloadError),
    Done,
}

// === impl Offloaded ===

impl<T> Offloaded<T> {
    pub(super) fn new(submitted: Result<Handle<T>, OffloadError>, pool: Arc<Owner>) -> Self {
        Self { state: submitted.map_or_else(State::Refused, State::Admitted), pool }
    }

    fn end(&mut self, outcome: Outcome) -> State<T> {
        self.pool.metrics().count(outcome);
        std::mem::replace(&mut self.state, State::Done)
    }
}

impl<T> Future for Offloaded<T> {
    type Output = Result<T, OffloadError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match &mut self.state {
            State::Admitted(handle) => ready!(Pin::new(&mut handle.task).poll(cx)).and_then(Answer::take),
            State::Refused(error) => {
                let error = *error;
                self.end(Outcome::Refused);
                return Poll::Ready(Err(error));
            }
            State::Done => return Poll::Pending,
        };
        match answer {
            Some(Ok(value)) => {
                self.end(Outcome::Completed);
                Poll::Ready(Ok(value))
            }
            Some(Err(panic)) => {
                self.end(Outcome::Panicked);
                resume_unwind(panic)
            }
            // The pool was closed, and dropped the work.
            None => {
                self.end(Outcome::Refused);
                Poll::Ready(Err(OffloadError::Closed))
            }
        }
    }
}

impl<T> Drop for Offloaded<T> {
    fn drop(&mut self) {
        match self.state {
            State::Admitted(_) => {
                if let State::Admitted(handle) = self.end(Outcome::Cancelled) {
                    self.pool.abandon(handle);
                }
            }
            State::Refused(_) => drop(self.end(Outcome::Refused)),
            State::Done => {}
        }
    }
}

impl<T> fmt::Debug for Offloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offloaded").finish_non_exhaustive()
    }
}

/// Future of the service [`Offload`](super::Offload).
///
/// Dropped while the request waits, it takes the request out of the queue at once; later, the inner future is dropped
/// as soon as it is suspended.
pub struct ResponseFuture<B, E> {
    response: Offloaded<Result<Response<B>, E>>,
    caller: Caller,
    refuse: Refuse,
}

// === impl ResponseFuture ===

impl<B, E> ResponseFuture<B, E> {
    pub(super) fn new(response: Offloaded<Result<Response<B>, E>>, caller: Caller, refuse: Refuse) -> Self {
        Self { response, caller, refuse }
    }

    fn refusal(&mut self, error: OffloadError) -> Response<Bytes> {
        let caller = std::mem::take(&mut self.caller);
        self.refuse.respond(&Refusal::new(error.reason(), caller).retry_after_at_least(RETRY_AFTER))
    }
}

impl<B, E> Future for ResponseFuture<B, E>
where
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(Pin::new(&mut self.response).poll(cx)) {
            Ok(response) => response.map(|response| response.map(|body| GuardedBody::inner(body, ()).into())),
            Err(error) => Ok(self.refusal(error).map(|bytes| GuardedBody::own(bytes).into())),
        })
    }
}

impl<B, E> fmt::Debug for ResponseFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
