//! Runs one case: a client, a fresh cache, a scripted origin, and a clock that nobody waits for.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{CACHE_CONTROL, HOST, PRAGMA};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{Service, ServiceExt};

use crate::case::{Case, Field, Literal, Step};
use crate::checks;
use crate::clock::{self, Clock};
use crate::fields;
use crate::origin::{Disconnected, Origin, Place};
use crate::report::Outcome;

/// More than any case pauses in all, and more than the layer waits for anything.
const HUNG: Duration = Duration::from_secs(10_000_000);
/// Enough for everything that a response sets off in the background.
const TURNS: usize = 64;

/// What a client got.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body ended in an error.
    pub broken: bool,
    /// How many requests the origin had seen by then.
    pub origin_requests: usize,
}

/// Runs a case on a runtime of its own. A panic of the cache is a failure of the case.
pub fn run<S, B>(case: &Case, cache: impl FnOnce(Origin, Clock) -> S) -> Outcome
where
    S: Service<Request<Body>, Response = Response<B>, Error = Disconnected> + Clone,
    B: http_body::Body<Data = Bytes>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            match tokio::time::timeout(HUNG, conversation(case, cache)).await {
                Ok(findings) => findings,
                Err(_) => Outcome::Failed("hangs".to_owned()),
            }
        })
    }));
    outcome.unwrap_or_else(|panic| Outcome::Failed(format!("panic: {}", message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

async fn conversation<S, B>(case: &Case, cache: impl FnOnce(Origin, Clock) -> S) -> Outcome
where
    S: Service<Request<Body>, Response = Response<B>, Error = Disconnected> + Clone,
    B: http_body::Body<Data = Bytes>,
{
    let clock = Clock::start();
    let token = token(&case.id);
    let place = Place { host: "conformance.test".to_owned(), path: format!("/test/{token}"), token };
    let origin = Origin::new(case.clone(), place.clone(), clock);
    let service = cache(origin.clone(), clock);

    let mut answers: Vec<Answer> = Vec::new();
    while answers.len() < case.requests.len() {
        let first = answers.len();
        let rest = &case.requests[first..];
        let group = rest.iter().position(|step| !step.overlap).map_or(rest.len(), |last| last + 1);
        let sent = (first..first + group).map(|index| {
            let request = request(case, index, &place, answers.last(), clock);
            let (service, origin) = (service.clone(), origin.clone());
            async move {
                turns((index - first) * TURNS).await;
                let answer = receive(service.oneshot(request).await).await;
                turns(TURNS).await;
                Answer { origin_requests: origin.seen().len(), ..answer }
            }
        });
        let got = join_all(sent.collect::<Vec<_>>()).await;
        answers.extend(got);
        tokio::time::sleep(case.requests[answers.len() - 1].pause_after.duration()).await;
    }
    checks::judge(case, &place, &answers, &origin.seen())
}

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

fn request(case: &Case, index: usize, place: &Place, previous: Option<&Answer>, clock: Clock) -> Request<Body> {
    let step = &case.requests[index];
    let filename = step.filename.as_ref().map_or(String::new(), |name| format!("/{name}"));
    let query = step.query_arg.as_ref().map_or(String::new(), |query| format!("?{query}"));
    let method = step.request_method.as_deref().unwrap_or("GET");
    let mut request = Request::new(Body::from(step.request_body.clone().unwrap_or_default()));
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    *request.uri_mut() = format!("{}{filename}{query}", place.path).parse().unwrap();
    let headers = request.headers_mut();
    headers.insert(HOST, fields::value(step.host.as_ref().unwrap_or(&place.host)));
    headers.insert(PRAGMA, HeaderValue::from_static("foo"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("nothing-to-see-here"));
    headers.insert("test-id", fields::value(&case.id));
    headers.insert("req-num", (index + 1).into());
    for field in &step.request_headers {
        headers.append(fields::name(&field.name), fields::value(&render(step, field, place, previous, clock)));
    }
    request
}

fn render(step: &Step, field: &Field, place: &Place, previous: Option<&Answer>, clock: Clock) -> String {
    let offset = match &field.value {
        Literal::Text(text) => return place.fill(text),
        Literal::Offset(offset) => *offset,
    };
    if !step.magic_ims {
        return clock::imf(clock.now(), offset);
    }
    clock::imf(previous.and_then(server_now).expect("a `Server-Now` before"), offset)
}

/// The origin's clock when it wrote this answer.
pub fn server_now(answer: &Answer) -> Option<SystemTime> {
    let millis = answer.headers.get("server-now")?.to_str().ok()?.parse().ok()?;
    Some(UNIX_EPOCH + Duration::from_millis(millis))
}

/// An inner error is what a server makes of it: a 502 without fields.
async fn receive<B: http_body::Body<Data = Bytes>>(result: Result<Response<B>, Disconnected>) -> Answer {
    let Ok(response) = result else {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        return Answer { status: StatusCode::BAD_GATEWAY, headers, body, broken: false, origin_requests: 0 };
    };
    let (head, body) = response.into_parts();
    let mut body = std::pin::pin!(body);
    let (mut whole, mut broken) = (Vec::new(), false);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => whole.extend(frame.into_data().unwrap_or_default()),
            Err(_) => {
                broken = true;
                break;
            }
        }
    }
    Answer { status: head.status, headers: head.headers, body: whole.into(), broken, origin_requests: 0 }
}

/// 36 characters in the shape of a UUID, of its own for every case (FNV-1a).
fn token(id: &str) -> String {
    let hash = |seed: u64| id.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let digits = format!("{:016x}{:016x}", hash(0xcbf2_9ce4_8422_2325), hash(0x9e37_79b9_7f4a_7c15));
    let part = |from: usize, to: usize| &digits[from..to];
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}
