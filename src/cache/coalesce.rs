//! The way of a request that was not answered from the store at once: look, then lead, follow, or go alone.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tower_service::Service;

use super::alone::{alone, pass};
use super::body::{BoxError, ResponseBody};
use super::case::{Case, Counted, Verdict};
use super::fill::{Fill, Place};
use super::flight::{Join, Landed, Phase, Seat, Stream, Ticket, Variant};
use super::layer::Fetching;
use super::lead::{Spare, lead};
use super::log::Reader;
use super::lookup::{Found, Miss, Search, Step, Took};
use super::markers;
use super::metrics::{Outcome, Refresh};
use super::plan::{Manner, Plan, present};
use super::purge::Purged;
use super::refresh;
use super::status::{self, Forward, Mark};
use super::store::StoreFailure;
use super::update::Held;
use super::vary::Known;
use crate::refusal::{Caller, Reason, Refusal};

/// How long a request waits for another's response before it goes alone.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(5);
/// How often a request may be sent back to look again.
const MAX_ROUNDS: usize = 8;

/// Where a request goes next.
enum Turn<B> {
    Answer(Response<ResponseBody<B>>),
    /// Answered, with something to renew.
    Renew(Response<ResponseBody<B>>, Miss, Refresh),
    Lead(Seat, Miss),
    /// Alone; its response may be stored.
    Alone(Miss),
    /// Alone, as it came.
    Pass(Forward, Held),
    /// The URL's responses vary, by this: what was looked for is another's.
    Again(Option<Known>),
}

/// How far the first lookup has come.
pub(super) enum Looked {
    /// Not begun.
    Not,
    /// The store has been asked.
    Asked(Search, Step),
    /// Through.
    Found(Found),
    /// Through, in vain, or nearly.
    Missed(Miss),
    /// The store has failed.
    Failed(StoreFailure, Miss),
}

/// What a request remembers between its rounds.
struct Way {
    looked: Looked,
    known: Option<Known>,
    writable: bool,
    /// Until when it waits for others, from the first for whom it does.
    deadline: Option<Instant>,
}

/// Waits for what the store has been asked. Most often that is the answer, so this carries no more than that takes.
#[allow(clippy::manual_async_fn, reason = "an async function keeps its arguments twice")]
pub(super) fn first<S, B, ResBody>(
    case: Case,
    inner: S,
    request: Request<B>,
    search: Search,
    step: Step,
) -> impl Future<Output = Result<Response<ResponseBody<ResBody>>, S::Error>> + Send + 'static
where
    S: Service<Request<B>, Response = Response<ResBody>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    async move {
        // Who leaves meanwhile has cost no fetch.
        let mut counted = Counted::new(&case.shared);
        counted.outcome = Outcome::Collapsed;
        let answer = step.wait().await;
        counted.leave_to_others();
        let now = case.now();
        let looked = match search.take(case.sources(request.headers()), answer, now) {
            Took::Found(Found::Entry(entry, search)) => match case.decide(request.headers(), entry, &search, now) {
                Verdict::Answer(response) => return Ok(response),
                Verdict::Renew(response, miss, why) => {
                    let (parts, body) = request.into_parts();
                    refresh::begin(case, inner, parts, body, miss, why);
                    return Ok(response);
                }
                Verdict::Fetch(miss) => Looked::Missed(miss),
            },
            Took::Found(found) => Looked::Found(found),
            Took::Further(search, step) => Looked::Asked(search, step),
            Took::Failed(failure, miss) => Looked::Failed(failure, miss),
        };
        Box::pin(run(case, inner, request, looked)).await
    }
}

/// Runs a request to its answer.
pub(super) async fn run<S, B, ResBody>(
    case: Case,
    inner: S,
    request: Request<B>,
    looked: Looked,
) -> Result<Response<ResponseBody<ResBody>>, S::Error>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    let (mut parts, body) = request.into_parts();
    let mut way = Way { looked, known: None, writable: true, deadline: None };
    let mut turn = Turn::Again(None);
    // Who leaves meanwhile has cost no fetch.
    let mut counted = Counted::new(&case.shared);
    counted.outcome = Outcome::Collapsed;
    for _ in 0..MAX_ROUNDS {
        let Turn::Again(known) = turn else { break };
        way.known = known;
        turn = next(&case, &mut parts, &mut way).await;
    }
    counted.leave_to_others();
    let miss = match turn {
        Turn::Answer(response) => return Ok(response),
        Turn::Renew(response, miss, why) => {
            refresh::begin(case, inner, parts, body, miss, why);
            return Ok(response);
        }
        Turn::Pass(forward, held) => return pass(&case, inner, Request::from_parts(parts, body), forward, held).await,
        Turn::Again(_) => {
            let request = Request::from_parts(parts, body);
            return pass(&case, inner, request, Forward::UriMiss, Held::default()).await;
        }
        Turn::Alone(miss) => miss,
        Turn::Lead(seat, miss) => {
            let Some((place, runtime)) = Place::take(&case.shared).zip(Handle::try_current().ok()) else {
                seat.release();
                return pass(&case, inner, Request::from_parts(parts, body), miss.forward, miss.held).await;
            };
            let spare = Spare::new(&case, &parts, &miss);
            let plan = Plan::new(case, &mut parts, miss, Manner::Shared, way.writable);
            Fetching::note(&plan.case.shared, &mut parts.extensions);
            let request = Request::from_parts(parts, body);
            let deadline = way.deadline.unwrap_or_else(|| Instant::now() + MAX_WAIT);
            return lead(spare, Fill { plan, seat, place, deadline, inner, request }, &runtime).await;
        }
    };
    alone(case, inner, parts, body, miss, way.writable).await
}

async fn next<B>(case: &Case, parts: &mut Parts, way: &mut Way) -> Turn<B> {
    let miss = match look(case, parts, way).await {
        Ok(miss) => miss,
        Err(turn) => return turn,
    };
    if case.asked.control.as_ref().is_some_and(|control| control.only_if_cached) {
        let mut refused = refuse(case, Caller::of_parts(&parts.headers, &parts.extensions), Reason::NotStored);
        case.shared.count(Outcome::Failed);
        status::not_stored(refused.headers_mut());
        return Turn::Answer(refused);
    }
    if case.asked.range && miss.held.own.is_none() && !case.config.policy.store_partial {
        return Turn::Pass(miss.forward, miss.held);
    }
    if !may_share(case, &miss) || Handle::try_current().is_err() {
        return Turn::Alone(miss);
    }
    let shared = &case.shared;
    match shared.flights.join(&miss.key, &case.primary, miss.seen, shared.purges.epoch()) {
        Join::Lead(seat) => {
            if holds_shared(&miss) {
                // For those who will wait: it may be stored for longer than it is remembered.
                shared.flights.markers.mark(&miss.key, markers::Mark::Permitted, Instant::now());
            }
            Turn::Lead(seat, miss)
        }
        Join::Wait(ticket) => {
            let deadline = *way.deadline.get_or_insert_with(|| Instant::now() + MAX_WAIT);
            follow(case, ticket, parts, miss, deadline).await
        }
        Join::Unshared => Turn::Alone(miss),
        Join::LookAgain => Turn::Again(None),
        Join::Full => Turn::Pass(miss.forward, miss.held),
    }
}

/// Whether the request may fetch for others, and take what others fetch. With credentials only where the key's last
/// response permitted that; with a range only where the whole is known to be small enough to be stored.
fn may_share(case: &Case, miss: &Miss) -> bool {
    let permitted = || holds_shared(miss) || is_permitted(case, miss);
    !case.asked.head
        && (!case.asked.range || miss.held.own.is_some() && !miss.held.is_part())
        && miss.forward != Forward::Request
        && (!case.asked.credentials || permitted())
}

/// Whether what is stored is for requests with credentials too.
fn holds_shared(miss: &Miss) -> bool {
    miss.held.own.as_ref().is_some_and(|own| own.head.shared)
}

/// Whether the key's last response was for requests with credentials too.
fn is_permitted(case: &Case, miss: &Miss) -> bool {
    case.shared.flights.markers.holds(&miss.key, markers::Mark::Permitted, Instant::now())
}

/// Asks the store.
async fn look<B>(case: &Case, parts: &mut Parts, way: &mut Way) -> Result<Miss, Turn<B>> {
    match find(case, parts, way).await {
        Found::Miss(miss) => Ok(miss),
        Found::NoKey => Err(Turn::Pass(Forward::Bypass, Held::default())),
        Found::Entry(entry, search) => match case.decide(&parts.headers, entry, &search, case.now()) {
            Verdict::Answer(response) => Err(Turn::Answer(response)),
            Verdict::Renew(response, miss, why) => Err(Turn::Renew(response, miss, why)),
            Verdict::Fetch(miss) => Ok(miss),
        },
    }
}

async fn find(case: &Case, parts: &mut Parts, way: &mut Way) -> Found {
    let sources = case.sources(&parts.headers);
    let now = || case.now();
    let search = match (std::mem::replace(&mut way.looked, Looked::Not), way.known.take()) {
        (Looked::Found(found), _) => Err(Ok(found)),
        (Looked::Missed(miss), _) => Err(Ok(Found::Miss(miss))),
        (Looked::Failed(failure, miss), _) => Err(Err((failure, miss))),
        (Looked::Asked(search, step), _) => Ok((search, Some(step))),
        (Looked::Not, None) => Ok((Search::new(sources), None)),
        (Looked::Not, Some(known)) => Search::at_variant(sources, known).map(|search| (search, None)).map_err(Ok),
    };
    let spent = !way.writable || case.shared.store.is_spent(&parts.extensions);
    let found = match search {
        Err(found) => found,
        Ok((search, Some(step))) => search.later(sources, step, now).await,
        Ok((search, None)) if spent && sources.fleet.is_none() => {
            way.writable = false;
            Ok(Found::Miss(search.miss(sources, Forward::UriMiss)))
        }
        Ok((search, None)) => match search.now(sources, now()) {
            Ok(found) => Ok(found),
            Err((search, _)) if spent => Ok(Found::Miss(search.unanswered().miss(sources, Forward::UriMiss))),
            Err((search, step)) => search.later(sources, step, now).await,
        },
    };
    let (failure, left) = match found {
        Ok(Found::Entry(entry, search)) if !spent && !case.is_fit(&entry) => match search.further(sources) {
            None => return Found::Entry(entry, search),
            Some(step) => match search.clone().later(sources, step, now).await {
                Ok(found) => return found,
                Err((failure, _)) => (failure, Found::Entry(entry, search.unanswered())),
            },
        },
        // It has cost the request its time already: what several processes share is not asked later on either.
        Ok(Found::Entry(entry, search)) if spent => return Found::Entry(entry, search.unanswered()),
        Ok(found) => return found,
        Err((failure, miss)) => (failure, Found::Miss(miss)),
    };
    case.shared.metrics.store_errors.increment(1);
    // What several processes share has told nothing: then only this one's memory is written.
    way.writable = case.shared.fleet.is_some();
    if failure.timed_out {
        case.shared.store.mark_spent(&mut parts.extensions);
    }
    left
}

/// Waits for another request's response.
async fn follow<B>(case: &Case, mut ticket: Ticket, parts: &Parts, miss: Miss, mut deadline: Instant) -> Turn<B> {
    let patience = case.patience(&miss.held);
    let mut stale_by = patience.and_then(|patience| Instant::now().checked_add(patience));
    loop {
        match ticket.phase() {
            Phase::Running => {}
            Phase::Vacant if case.asked.credentials && !is_permitted(case, &miss) => {
                return Turn::Pass(miss.forward, miss.held);
            }
            Phase::Vacant => {
                if let Some(stale) = rescued(case, parts, &miss) {
                    return Turn::Answer(stale);
                }
                if let Some(seat) = ticket.claim() {
                    return Turn::Lead(seat, miss);
                }
            }
            Phase::Streaming(stream) => {
                if let Some(turn) = unfit(case, &stream.head, stream.variant.as_ref(), stream.voided, parts, &miss.held)
                {
                    return turn;
                }
                if stream.length.is_some() {
                    return Turn::Answer(join_stream(case, &stream, &ticket, &parts.headers, &miss));
                }
                deadline = deadline.min(stream.since + MAX_WAIT);
            }
            Phase::Complete(landed) => {
                let Landed { entry, variant, voided } = &*landed;
                if let Some(turn) = unfit(case, &entry.head, variant.as_ref(), *voided, parts, &miss.held) {
                    return turn;
                }
                let response = entry.answer(case.asked.head, &parts.headers, case.now()).map(ResponseBody::own);
                return Turn::Answer(collapsed(case, response, &miss));
            }
            Phase::Released => return Turn::Pass(miss.forward, miss.held),
            Phase::Failed => {
                let caller = Caller::of_parts(&parts.headers, &parts.extensions);
                return Turn::Answer(match rescued(case, parts, &miss) {
                    Some(stale) => stale,
                    None => {
                        let mut response = refuse(case, caller, Reason::FillFailed);
                        case.shared.count(Outcome::Failed);
                        status::forwarded(response.headers_mut(), miss.forward, None, Mark::Collapsed);
                        response
                    }
                });
            }
        }
        if ticket.changed_by(stale_by.map_or(deadline, |by| by.min(deadline))).await {
            continue;
        }
        match stale_by.take().and_then(|_| rescued(case, parts, &miss)) {
            Some(stale) => return Turn::Answer(stale),
            None if Instant::now() >= deadline => return Turn::Pass(miss.forward, miss.held),
            None => {}
        }
    }
}

fn rescued<B>(case: &Case, parts: &Parts, miss: &Miss) -> Option<Response<ResponseBody<B>>> {
    let stale = case.rescue(&parts.headers, &miss.held, miss.forward, None)?;
    case.shared.count(Outcome::Stale);
    Some(stale)
}

/// Where a request goes that may not use another's response after all.
fn unfit<B>(
    case: &Case,
    head: &super::entry::Head,
    variant: Option<&Variant>,
    voided: u64,
    parts: &Parts,
    held: &Held,
) -> Option<Turn<B>> {
    if !head.is_fresh(case.now()) {
        return Some(Turn::Pass(Forward::Stale, held.clone()));
    }
    if case.shared.purges.verdict(head.stamp, &case.primary, &head.tags) != Purged::No {
        return Some(Turn::Again(None));
    }
    if case.asked.credentials && !head.shared {
        return Some(Turn::Pass(Forward::Request, held.clone()));
    }
    let (spec, key) = variant?;
    let other = spec.key(&case.config.intake, &case.primary, &parts.headers).as_ref() != Some(key);
    other.then(|| Turn::Again(Some(Known { spec: spec.clone(), voided })))
}

fn join_stream<B>(
    case: &Case,
    stream: &Stream,
    ticket: &Ticket,
    request: &HeaderMap,
    miss: &Miss,
) -> Response<ResponseBody<B>> {
    let now = case.now();
    let response = present(stream, request, ticket.audience(), now).unwrap_or_else(|| {
        let body = ResponseBody::following(Reader::new(&stream.log), stream.length, ticket.audience().listen());
        stream.head.response(now, body)
    });
    collapsed(case, response, miss)
}

fn collapsed<B>(case: &Case, mut response: Response<ResponseBody<B>>, miss: &Miss) -> Response<ResponseBody<B>> {
    case.shared.metrics.count(Outcome::Collapsed);
    status::forwarded(response.headers_mut(), miss.forward, None, Mark::Collapsed);
    response
}

pub(super) fn refuse<B>(case: &Case, caller: Caller, reason: Reason) -> Response<ResponseBody<B>> {
    case.config.refuse.respond(&Refusal::new(reason, caller)).map(ResponseBody::own)
}
