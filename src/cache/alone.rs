//! The way of a request that goes on alone: nobody waits for its response, but it may be stored.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use tokio::runtime::Handle;
use tower_service::Service;

use super::body::{BoxError, ResponseBody};
use super::case::{Case, Counted};
use super::fill::{BODY_PATIENCE, Place, settle};
use super::lookup::Miss;
use super::metrics::Outcome;
use super::plan::{Manner, Plan};
use super::status::{self, Forward, Mark};
use super::store;
use super::update::Held;
use crate::ready::CallWhenReady;
use crate::scope::Scoped;

/// Forwards a request in its own task; its response is stored where that is allowed.
pub(super) async fn alone<S, B, ResBody>(
    case: Case,
    inner: S,
    mut parts: Parts,
    body: B,
    miss: Miss,
    writable: bool,
) -> Result<Response<ResponseBody<ResBody>>, S::Error>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    if case.asked.head && miss.held.own.is_none() {
        return pass(&case, inner, Request::from_parts(parts, body), miss.forward, miss.held).await;
    }
    let mut counted = Counted::new(&case.shared);
    let is_head = case.asked.head;
    let patience = case.patience(&miss.held);
    let plan = Plan::new(case, &mut parts, miss, Manner::Alone, writable);
    let call = Box::pin(CallWhenReady::new(inner, Request::from_parts(parts, body)));
    let called = match or_stale(patience, call, || plan.rescue(None)).await {
        Called::Ended(called) => called,
        Called::Stale(stale, rest) => {
            let place = Place::take(&plan.case.shared);
            if let (Some(call), Ok(runtime), Some(place), false) = (rest, Handle::try_current(), place, is_head) {
                // The fetch goes on, as one in the background does.
                let scope = plan.scope.clone();
                let rest = async move {
                    let _place = place;
                    drop(settle(plan, call.await).await);
                };
                runtime.spawn(Scoped::new(scope, tokio::time::timeout(BODY_PATIENCE, rest)));
            }
            counted.outcome = Outcome::Stale;
            return Ok(stale);
        }
    };
    match called {
        Ok(response) if is_head => {
            if response.status().is_server_error()
                && let Some(stale) = plan.rescue(Some(response.status()))
            {
                counted.outcome = Outcome::Stale;
                return Ok(stale);
            }
            let (head, body) = response.into_parts();
            let passed = plan.pass(Response::from_parts(head.clone(), body));
            store::detach(Box::pin(async move { plan.learn_from_head(&head).await })).await;
            Ok(passed)
        }
        called => {
            let (outcome, answer) = settle(plan, called).await;
            counted.outcome = outcome;
            answer
        }
    }
}

/// Forwards a request in its own task, as if there were no cache.
pub(super) async fn pass<S, B, ResBody>(
    case: &Case,
    inner: S,
    request: Request<B>,
    forward: Forward,
    held: Held,
) -> Result<Response<ResponseBody<ResBody>>, S::Error>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
{
    let mut counted = Counted::new(&case.shared);
    let fields = if held.own.is_some() { request.headers().clone() } else { HeaderMap::new() };
    let rescue = |answered| case.rescue(&fields, &held, forward, answered);
    let call = Box::pin(CallWhenReady::new(inner, request));
    let stale = match or_stale(case.patience(&held), call, || rescue(None)).await {
        Called::Stale(stale, _) => stale,
        Called::Ended(called) => {
            let mut response = called?;
            let status = response.status();
            match Some(status).filter(StatusCode::is_server_error).and_then(|status| rescue(Some(status))) {
                Some(stale) => stale,
                None => {
                    status::forwarded(response.headers_mut(), forward, None, Mark::Plain);
                    return Ok(response.map(ResponseBody::inner));
                }
            }
        }
    };
    counted.outcome = Outcome::Stale;
    Ok(stale)
}

/// What became of a call.
enum Called<F, T, E, Stale> {
    Ended(Result<T, E>),
    /// What is stored stands in; and the call, if it only takes too long.
    Stale(Stale, Option<Pin<Box<F>>>),
}

/// Calls, unless what `rescue` finds can stand in: for an error, for a panic, or for what takes longer than `patience`.
async fn or_stale<F, T, E, Stale>(
    patience: Option<Duration>,
    mut call: Pin<Box<F>>,
    rescue: impl Fn() -> Option<Stale>,
) -> Called<F, T, E, Stale>
where
    F: Future<Output = Result<T, E>>,
{
    // After a panic it is polled no more.
    let guarded = |call: &mut Pin<Box<F>>, cx: &mut Context<'_>| match catch_unwind(AssertUnwindSafe(|| {
        call.as_mut().poll(cx)
    })) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    };
    let in_time = match patience {
        None => None,
        Some(patience) => tokio::time::timeout(patience, poll_fn(|cx| guarded(&mut call, cx))).await.ok(),
    };
    let ended = match in_time {
        Some(ended) => ended,
        None => {
            if patience.is_some()
                && let Some(stale) = rescue()
            {
                return Called::Stale(stale, Some(call));
            }
            poll_fn(|cx| guarded(&mut call, cx)).await
        }
    };
    match ended {
        Ok(Ok(response)) => Called::Ended(Ok(response)),
        Ok(Err(error)) => match rescue() {
            Some(stale) => Called::Stale(stale, None),
            None => Called::Ended(Err(error)),
        },
        Err(panic) => match rescue() {
            Some(stale) => Called::Stale(stale, None),
            None => resume_unwind(panic),
        },
    }
}
