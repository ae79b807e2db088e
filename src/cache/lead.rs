//! Who fetches for everybody: what its own client gets of that, and when.

use std::panic::resume_unwind;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tower_service::Service;

use super::body::{BoxError, ResponseBody};
use super::case::{Case, Counted};
use super::coalesce::refuse;
use super::fill::{Answer, BODY_PATIENCE, Fill};
use super::lookup::Miss;
use super::metrics::Outcome;
use super::status::{self, Forward, Mark};
use super::update::Held;
use crate::refusal::{Caller, Reason};

/// What a leader needs to answer its client without the fetch.
pub(super) struct Spare {
    case: Case,
    caller: Caller,
    request: HeaderMap,
    held: Held,
    forward: Forward,
}

impl Spare {
    pub(super) fn new(case: &Case, parts: &Parts, miss: &Miss) -> Self {
        let request = if miss.held.own.is_some() { parts.headers.clone() } else { HeaderMap::new() };
        let caller = Caller::of_parts(&parts.headers, &parts.extensions);
        Self { case: case.clone(), caller, request, held: miss.held.clone(), forward: miss.forward }
    }

    fn rescue<B>(&self) -> Option<Response<ResponseBody<B>>> {
        self.case.rescue(&self.request, &self.held, self.forward, None)
    }
}

/// Runs the fetch for everybody, and returns what this request gets of it.
pub(super) async fn lead<S, B, ResBody>(
    spare: Spare,
    fill: Fill<S, B>,
    runtime: &Handle,
) -> Result<Response<ResponseBody<ResBody>>, S::Error>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    let mut counted = Counted::new(&spare.case.shared);
    let listener = fill.seat.audience().listen();
    let (mut answer, task) = fill.start(runtime);
    let patience = spare.case.patience(&spare.held);
    let in_time = match patience {
        None => None,
        Some(patience) => tokio::time::timeout(patience, &mut answer).await.ok(),
    };
    if in_time.is_none()
        && patience.is_some()
        && let Some(stale) = spare.rescue()
    {
        // The fetch goes on, as one in the background does.
        runtime.spawn(async move {
            let _ = tokio::time::timeout(BODY_PATIENCE, answer).await;
            drop(listener);
        });
        counted.outcome = Outcome::Stale;
        return Ok(stale);
    }
    let answered = match in_time {
        Some(answered) => answered,
        None => answer.await,
    };
    let (outcome, answer) = match answered {
        Ok(answer) => answer,
        Err(_) => fallen(&spare, task).await,
    };
    counted.outcome = outcome;
    answer
}

/// The fetch has panicked, or the runtime is shutting down.
async fn fallen<B, E>(spare: &Spare, task: tokio::task::JoinHandle<()>) -> Answer<B, E> {
    let ended = task.await;
    if let Some(stale) = spare.rescue() {
        return (Outcome::Stale, Ok(stale));
    }
    match ended {
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        _ => {
            let mut response = refuse(&spare.case, spare.caller.clone(), Reason::FillFailed);
            status::forwarded(response.headers_mut(), spare.forward, None, Mark::Plain);
            (Outcome::Failed, Ok(response))
        }
    }
}
