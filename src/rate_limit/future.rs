//! The future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::ResponseBody;
use super::fields::Stamp;
use super::gate::Gate;
use super::outcome::Outcome;
use super::partition::Partition;
use super::question::{Question, Unanswered};
use super::shared::{Judge, Ruling, Shared};
use super::ticket::Ticket;
use super::verdict::Verdict;
use crate::body::GuardedBody;
use crate::ready::CallWhenReady;

pin_project! {
    /// Response future of [`RateLimit`](super::RateLimit).
    ///
    /// Dropping it drops the inner call. A request that was admitted stays counted, unless the layer
    /// [gives it back](super::RateLimitLayer::refund_abandoned). One that is dropped while Redis is being asked may have
    /// been counted, and stays so.
    pub struct ResponseFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<S, B, CallWhenReady<S, Request<B>>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, F> {
        Asking { question: Question, waiting: Option<Waiting<S, B>> },
        Passed { #[pin] call: F, stamp: Option<Stamp>, ticket: Option<Ticket> },
        Refused { response: Option<Response<Bytes>> },
    }
}

/// What waits for Redis's answer.
pub(crate) struct Waiting<S, B> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) client: Partition,
    pub(crate) cost: u32,
    pub(crate) service: S,
    pub(crate) request: Request<B>,
}

impl<S: Service<Request<B>>, B> ResponseFuture<S, B> {
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(crate) fn ask(question: Question, waiting: Waiting<S, B>) -> Self {
        Self { state: State::Asking { question, waiting: Some(waiting) } }
    }

    pub(crate) fn pass(service: S, request: Request<B>, stamp: Stamp, ticket: Option<Ticket>) -> Self {
        Self { state: State::passed(service, request, stamp, ticket) }
    }

    pub(crate) fn refuse(response: Response<Bytes>) -> Self {
        Self { state: State::Refused { response: Some(response) } }
    }
}

impl<S: Service<Request<B>>, B> State<S, B, CallWhenReady<S, Request<B>>> {
    fn passed(service: S, request: Request<B>, stamp: Stamp, ticket: Option<Ticket>) -> Self {
        Self::Passed { call: CallWhenReady::new(service, request), stamp: Some(stamp), ticket }
    }

    /// Redis has decided, or has failed to, in which case this process decides.
    fn answered(waiting: Waiting<S, B>, answer: Result<Verdict, Unanswered>) -> Self {
        let Waiting { shared, gate, client, cost, service, mut request } = waiting;
        let ruling = match answer {
            Ok(verdict) => shared.rule(&gate, &verdict, Judge::Redis, &request),
            Err(failure) => {
                gate.note(&failure, request.extensions_mut());
                shared.decide_here(&gate, client, cost, shared.time.now(), &request)
            }
        };
        match ruling {
            Ruling::Pass(stamp, paid) => {
                let ticket = Ticket::new(&shared, &gate, client, cost, paid);
                Self::passed(service, request, stamp, ticket)
            }
            Ruling::Refuse(response) => Self::Refused { response: Some(response) },
        }
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    ResBody: http_body::Body<Data = Bytes>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjection::Asking { question, waiting } => {
                    let answer = ready!(question.as_mut().poll(cx));
                    let Some(waiting) = waiting.take() else { return Poll::Pending };
                    state.set(State::answered(waiting, answer));
                }
                StateProjection::Passed { call, stamp, ticket } => {
                    let answer = ready!(call.poll(cx));
                    if let Some(ticket) = ticket.take() {
                        ticket.settle(&answer.as_ref().map_or(Outcome::FAILED, Outcome::answered));
                    }
                    let mut response = answer?;
                    if let Some(stamp) = stamp.take() {
                        stamp.append(response.headers_mut());
                    }
                    return Poll::Ready(Ok(response.map(|body| GuardedBody::inner(body, ()).into())));
                }
                StateProjection::Refused { response } => {
                    // Empty only when polled again after its end, against the contract of `Future`.
                    let Some(response) = response.take() else { return Poll::Pending };
                    return Poll::Ready(Ok(response.map(|bytes| GuardedBody::own(bytes).into())));
                }
            }
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
