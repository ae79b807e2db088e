//! The way of a request that was not answered from the store at once: look, then lead, follow, or go alone.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tower_service::Service;

use super::body::{BoxError, ResponseBody};
use super::fill::{Case, Fill, Place, Plan, settle};
use super::flight::{Join, Phase, Seat, Stream, Ticket};
use super::layer::Fetching;
use super::log::Reader;
use super::lookup::{Found, Got, Miss, Search};
use super::metrics::Outcome;
use super::status::{self, Forward, Mark};
use super::store::Reply;
use super::vary::Known;
use crate::ready::CallWhenReady;
use crate::refusal::{Caller, Reason, Refusal};
use crate::scope::Scope;

/// How long a request waits for another's response before it goes alone.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How often a request may be sent back to look again.
const MAX_ROUNDS: usize = 8;

/// Where a request goes next.
enum Turn<B> {
    Answer(Response<ResponseBody<B>>),
    Lead(Seat, Miss),
    Alone(Alone),
    /// The URL's responses vary, by this: what was looked for is another's.
    Again(Option<Known>),
}

/// How a request goes alone.
struct Alone {
    forward: Forward,
    /// Its response may be stored.
    storing: bool,
    known: Option<Known>,
}

impl Alone {
    fn passing(forward: Forward) -> Self {
        Self { forward, storing: false, known: None }
    }
}

/// How far the first lookup has come.
pub(super) enum Looked {
    /// Not begun.
    Not,
    /// The store has been asked.
    Asked(Search, Reply<Got>),
    /// In vain.
    Missed(Miss),
}

/// What a request remembers between its rounds.
struct Way {
    looked: Looked,
    known: Option<Known>,
    writable: bool,
    /// Until when it waits for others, from the first for whom it does.
    deadline: Option<Instant>,
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
    for _ in 0..MAX_ROUNDS {
        let Turn::Again(known) = turn else { break };
        way.known = known;
        turn = next(&case, &mut parts, &mut way).await;
    }
    let alone = match turn {
        Turn::Answer(response) => return Ok(response),
        Turn::Again(_) => Alone::passing(Forward::UriMiss),
        Turn::Alone(alone) => alone,
        Turn::Lead(seat, miss) => {
            let Some((place, runtime)) = Place::take(&case.shared).zip(Handle::try_current().ok()) else {
                seat.release();
                return forward(
                    case,
                    inner,
                    Request::from_parts(parts, body),
                    Alone::passing(miss.forward),
                    way.writable,
                )
                .await;
            };
            let plan = Plan::new(
                case.clone(),
                &parts.headers,
                Scope::capture(&parts.extensions),
                miss.forward,
                miss.known,
                way.writable,
            );
            Fetching::note(&case.shared, &mut parts.extensions);
            let request = Request::from_parts(parts, body);
            return lead(&case, Fill { plan, seat, place, inner, request }, &runtime).await;
        }
    };
    forward(case, inner, Request::from_parts(parts, body), alone, way.writable).await
}

async fn next<B>(case: &Case, parts: &mut Parts, way: &mut Way) -> Turn<B> {
    let miss = match look(case, parts, way).await {
        Ok(miss) => miss,
        Err(turn) => return turn,
    };
    if !case.asked.may_share() {
        let alone = Alone { forward: miss.forward, storing: !case.asked.head, known: miss.known };
        return Turn::Alone(alone);
    }
    match case.shared.flights.join(&miss.key, &case.primary, miss.seen) {
        Join::Lead(seat) => Turn::Lead(seat, miss),
        Join::Wait(ticket) => {
            let deadline = *way.deadline.get_or_insert_with(|| Instant::now() + MAX_WAIT);
            follow(case, ticket, parts, miss, deadline).await
        }
        Join::Unshared => Turn::Alone(Alone { forward: miss.forward, storing: true, known: miss.known }),
        Join::LookAgain => Turn::Again(None),
        Join::Full => Turn::Alone(Alone::passing(miss.forward)),
    }
}

/// Asks the store.
async fn look<B>(case: &Case, parts: &mut Parts, way: &mut Way) -> Result<Miss, Turn<B>> {
    let store = &*case.shared.store;
    let sources = case.sources(&parts.headers);
    let search = match (std::mem::replace(&mut way.looked, Looked::Not), way.known.take()) {
        (Looked::Missed(miss), _) => return Ok(miss),
        (Looked::Asked(search, step), _) => Ok(Err((search, step))),
        (Looked::Not, None) => Ok(Ok(Search::new(sources))),
        (Looked::Not, Some(known)) => Search::at_variant(sources, known).map(Ok),
    };
    let found = match search {
        Err(found) => Ok(found),
        Ok(Err((search, step))) => search.later(sources, step).await,
        Ok(Ok(search)) if !way.writable || store.is_spent(&parts.extensions) => {
            way.writable = false;
            Ok(Found::Miss(search.miss(sources, Forward::UriMiss)))
        }
        Ok(Ok(search)) => match search.now(sources, SystemTime::now()) {
            Ok(found) => Ok(found),
            Err((search, step)) => search.later(sources, step).await,
        },
    };
    match found {
        Ok(Found::Miss(miss)) => Ok(miss),
        Ok(Found::NoKey) => Err(Turn::Alone(Alone::passing(Forward::Bypass))),
        Ok(Found::Hit(entry, known)) => {
            Err(match case.shared.answer(case.asked, &parts.method, &parts.headers, &entry, SystemTime::now()) {
                Some(response) => Turn::Answer(response),
                None => Turn::Alone(Alone { forward: Forward::Request, storing: !case.asked.head, known }),
            })
        }
        Err((trouble, miss)) => {
            case.shared.metrics.store_errors.increment(1);
            way.writable = false;
            if trouble.timed_out {
                store.mark_spent(&mut parts.extensions);
            }
            Ok(miss)
        }
    }
}

/// Waits for another request's response.
async fn follow<B>(case: &Case, mut ticket: Ticket, parts: &Parts, miss: Miss, mut deadline: Instant) -> Turn<B> {
    loop {
        let phase = ticket.phase();
        if let Phase::Streaming(stream) | Phase::Complete(stream, _) = &phase
            && !stream.head.is_fresh(SystemTime::now())
        {
            return Turn::Alone(Alone::passing(Forward::Stale));
        }
        match phase {
            Phase::Running => {}
            Phase::Vacant => {
                if let Some(seat) = ticket.claim() {
                    return Turn::Lead(seat, miss);
                }
            }
            Phase::Streaming(stream) => {
                if let Some(known) = mismatch(case, &stream, parts) {
                    return Turn::Again(Some(known));
                }
                if stream.length.is_some() {
                    let body = ResponseBody::following(Reader::new(&stream.log), stream.length, ticket.listener());
                    return collapsed(case, stream.head.response(SystemTime::now(), body), &miss);
                }
                deadline = deadline.min(stream.since + MAX_WAIT);
            }
            Phase::Complete(stream, entry) => {
                if let Some(known) = mismatch(case, &stream, parts) {
                    return Turn::Again(Some(known));
                }
                let body = ResponseBody::own(entry.body.clone());
                return collapsed(case, entry.head.response(SystemTime::now(), body), &miss);
            }
            Phase::Released => return Turn::Alone(Alone::passing(miss.forward)),
            Phase::Failed => return Turn::Answer(refuse(case, parts, miss.forward)),
        }
        if !ticket.changed_by(deadline).await {
            return Turn::Alone(Alone::passing(miss.forward));
        }
    }
}

/// What the response varies by, if that makes it another's.
fn mismatch(case: &Case, stream: &Stream, parts: &Parts) -> Option<Known> {
    let (spec, key) = stream.variant.as_ref()?;
    let other = spec.key(&case.primary, &parts.headers).as_ref() != Some(key);
    other.then(|| Known { spec: spec.clone(), voided: stream.voided })
}

fn collapsed<B>(case: &Case, mut response: Response<ResponseBody<B>>, miss: &Miss) -> Turn<B> {
    case.shared.metrics.count(Outcome::Collapsed);
    status::forwarded(response.headers_mut(), miss.forward, Mark::Collapsed);
    Turn::Answer(response)
}

fn refuse<B>(case: &Case, parts: &Parts, forward: Forward) -> Response<ResponseBody<B>> {
    case.shared.metrics.count(Outcome::Failed);
    let caller = Caller::of_parts(&parts.headers, &parts.extensions);
    let mut response = case.config.refuse.respond(&Refusal::new(Reason::FillFailed, caller));
    status::forwarded(response.headers_mut(), forward, Mark::Collapsed);
    response.map(ResponseBody::own)
}

/// Runs the fetch for everybody, and returns what this request gets of it.
async fn lead<S, B, ResBody>(
    case: &Case,
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
    case.shared.metrics.count(Outcome::Miss);
    let caller = Caller::of(&fill.request);
    let _listener = fill.seat.audience().listen();
    let (answer, task) = fill.start(runtime);
    if let Ok(answer) = answer.await {
        return answer;
    }
    match task.await {
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        _ => Ok(case.config.refuse.respond(&Refusal::new(Reason::FillFailed, caller)).map(ResponseBody::own)),
    }
}

/// Forwards a request in its own task, as if there were no cache; storing its response where that is allowed.
async fn forward<S, B, ResBody>(
    case: Case,
    inner: S,
    request: Request<B>,
    alone: Alone,
    writable: bool,
) -> Result<Response<ResponseBody<ResBody>>, S::Error>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    case.shared.metrics.count(Outcome::Miss);
    let plan = alone.storing.then(|| {
        Plan::new(case, request.headers(), Scope::capture(request.extensions()), alone.forward, alone.known, writable)
    });
    let mut response = CallWhenReady::new(inner, request).await?;
    Ok(match plan {
        Some(plan) => settle(plan, response),
        None => {
            status::forwarded(response.headers_mut(), alone.forward, Mark::Plain);
            response.map(ResponseBody::inner)
        }
    })
}
