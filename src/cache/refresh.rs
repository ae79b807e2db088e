//! Renews what was just served, stale (RFC 5861 §3) or [soon to be](super::early): one fetch, in the background, with the
//! request of the client that asked.

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tower_service::Service;

use super::body::BoxError;
use super::case::Case;
use super::coalesce::MAX_WAIT;
use super::fill::{BODY_PATIENCE, Fill, Place};
use super::flight::Join;
use super::layer::Fetching;
use super::lookup::Miss;
use super::markers::Mark;
use super::metrics::Refresh;
use super::plan::{Manner, Plan};

/// Begins it, unless one is under way, or has just failed, or there is no room.
pub(super) fn begin<S, B, ResBody>(mut case: Case, inner: S, mut parts: Parts, body: B, miss: Miss, why: Refresh)
where
    S: Service<Request<B>, Response = Response<ResBody>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    let Ok(runtime) = Handle::try_current() else { return };
    let shared = case.shared.clone();
    if shared.flights.markers.holds(&miss.key, Mark::HoldOff, Instant::now()) {
        return;
    }
    let Join::Lead(seat) = shared.flights.join_anyway(&miss.key, &case.primary, miss.seen, shared.purges.epoch())
    else {
        return;
    };
    let Some(place) = Place::take(&shared) else { return seat.release() };
    (case.asked.head, case.asked.range) = (false, miss.held.is_part());
    parts.method = Method::GET;
    let (key, stored) = (miss.key.clone(), shared.flights.stored(&miss.key));
    let plan = Plan::new(case, &mut parts, miss, Manner::Shared, true);
    Fetching::note(&shared, &mut parts.extensions);
    shared.metrics.refresh(why);
    // Nobody else may want it.
    let listener = seat.audience().listen();
    let request = Request::from_parts(parts, body);
    let deadline = Instant::now() + MAX_WAIT;
    let (answer, _) = Fill { plan, seat, place, deadline, inner, request }.start(&runtime);
    runtime.spawn(async move {
        let _ = tokio::time::timeout(BODY_PATIENCE, answer).await;
        // A body still on its way lifts the mark when it is stored.
        if shared.flights.stored(&key) == stored {
            shared.flights.markers.mark(&key, Mark::HoldOff, Instant::now());
        }
        drop(listener);
    });
}
