//! The way of a request that goes on alone: nobody waits for its response, but it may be stored.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tower_service::Service;

use super::body::{BoxError, ResponseBody};
use super::case::{Case, Counted};
use super::fill::{BODY_PATIENCE, settle};
use super::lookup::Miss;
use super::metrics::Outcome;
use super::plan::{Manner, Plan};
use super::status::{self, Forward, Mark};
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
        return pass(&case, inner, Request::from_parts(parts, body), miss.forward, &miss.held).await;
    }
    let mut counted = Counted::new(&case.shared);
    let is_head = case.asked.head;
    let plan = Plan::new(case, &mut parts, miss, Manner::Alone, writable);
    let mut call = Box::pin(caught(CallWhenReady::new(inner, Request::from_parts(parts, body))));
    let called = match plan.case.config.fetch_timeout.zip(Handle::try_current().ok()) {
        Some((timeout, runtime)) if plan.may_rescue() => match tokio::time::timeout(timeout, &mut call).await {
            Ok(called) => called,
            Err(_) => match plan.rescue(None) {
                Some(stale) => {
                    // The fetch goes on, as one in the background does.
                    let scope = plan.scope.clone();
                    let rest = async move {
                        if let Ok(called) = call.await
                            && !is_head
                        {
                            drop(settle(plan, called).await);
                        }
                    };
                    runtime.spawn(Scoped::new(scope, tokio::time::timeout(BODY_PATIENCE, rest)));
                    counted.outcome = Outcome::Stale;
                    return Ok(stale);
                }
                None => call.await,
            },
        },
        _ => call.await,
    };
    let called = match called {
        Ok(called) => called,
        Err(panic) => match plan.rescue(None) {
            Some(stale) => {
                counted.outcome = Outcome::Stale;
                return Ok(stale);
            }
            None => resume_unwind(panic),
        },
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
            plan.learn_from_head(&head).await;
            Ok(plan.pass(Response::from_parts(head, body)))
        }
        called => {
            let (outcome, answer) = settle(plan, called).await;
            counted.outcome = outcome;
            answer
        }
    }
}

/// A panic is a failure like any other where something stale may stand in for it; else it is resumed.
async fn caught<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// Forwards a request in its own task, as if there were no cache but for what may stand in for an error.
pub(super) async fn pass<S, B, ResBody>(
    case: &Case,
    inner: S,
    request: Request<B>,
    forward: Forward,
    held: &Held,
) -> Result<Response<ResponseBody<ResBody>>, S::Error>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
{
    let fields = held.own.as_ref().map(|_| request.headers().clone());
    let mut counted = Counted::new(&case.shared);
    let called = CallWhenReady::new(inner, request).await;
    let answered = called.as_ref().map(Response::status).ok();
    if let Some(fields) = fields
        && answered.is_none_or(|status| status.is_server_error())
        && let Some(stale) = case.rescue(&fields, held, forward, answered)
    {
        counted.outcome = Outcome::Stale;
        return Ok(stale);
    }
    let mut response = called?;
    status::forwarded(response.headers_mut(), forward, None, Mark::Plain);
    Ok(response.map(ResponseBody::inner))
}
