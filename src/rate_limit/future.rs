//! The future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::ResponseBody;
use super::fields;
use super::layer::RateLimitLayer;
use super::limiter::Verdict;
use super::partition::Partition;
use super::question::{Question, Unanswered};
use crate::body::GuardedBody;
use crate::ready::CallWhenReady;

pin_project! {
    /// Response future of [`RateLimit`](super::RateLimit).
    ///
    /// Dropping it drops the inner call. A request that was admitted stays counted.
    pub struct ResponseFuture<S: Service<Request<B>>, B> {
        #[pin]
        state: State<S, B, CallWhenReady<S, Request<B>>>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, F> {
        Asking { question: Question, waiting: Option<Waiting<S, B>> },
        Passed { #[pin] call: F, policy: Option<HeaderValue>, verdict: Verdict },
        Refused { response: Option<Response<Bytes>> },
    }
}

/// What waits for Redis's answer.
pub(crate) struct Waiting<S, B> {
    pub(crate) client: Partition,
    pub(crate) layer: Arc<RateLimitLayer>,
    pub(crate) service: S,
    pub(crate) request: Request<B>,
}

impl<S: Service<Request<B>>, B> ResponseFuture<S, B> {
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(crate) fn ask(question: Question, waiting: Waiting<S, B>) -> Self {
        Self { state: State::Asking { question, waiting: Some(waiting) } }
    }

    pub(crate) fn pass(service: S, request: Request<B>, policy: HeaderValue, verdict: Verdict) -> Self {
        Self { state: State::passed(service, request, policy, verdict) }
    }

    pub(crate) fn refuse(response: Response<Bytes>) -> Self {
        Self { state: State::Refused { response: Some(response) } }
    }
}

impl<S: Service<Request<B>>, B> State<S, B, CallWhenReady<S, Request<B>>> {
    fn passed(service: S, request: Request<B>, policy: HeaderValue, verdict: Verdict) -> Self {
        Self::Passed { call: CallWhenReady::new(service, request), policy: Some(policy), verdict }
    }

    /// Redis has decided, or has failed to, in which case this process decides.
    fn answered(waiting: Waiting<S, B>, answer: Result<Verdict, Unanswered>) -> Self {
        let Waiting { client, layer, service, mut request } = waiting;
        let verdict = match answer {
            Ok(verdict) => layer.decided_remotely(client, verdict),
            Err(failure) => {
                layer.note(&failure, request.extensions_mut());
                layer.decide_here(client)
            }
        };
        if verdict.admitted {
            Self::passed(service, request, layer.policy.clone(), verdict)
        } else {
            Self::Refused { response: Some(layer.refuse(&request, &verdict)) }
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
                StateProjection::Passed { call, policy, verdict } => {
                    let mut response = ready!(call.poll(cx))?;
                    if let Some(policy) = policy.take() {
                        fields::append(response.headers_mut(), policy, verdict);
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
