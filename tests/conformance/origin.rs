//! The origin server that a case scripts, as the inner service.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tower::Service;

use crate::case::{Case, Expected, Field, Literal, Step};
use crate::clock::{self, Clock};
use crate::fields;

/// The connection closed without an answer.
#[derive(Debug)]
pub struct Disconnected;

impl fmt::Display for Disconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the origin closed the connection")
    }
}

impl std::error::Error for Disconnected {}

/// A request that reached the origin, and the fields it was answered with.
#[derive(Clone, Debug)]
pub struct Seen {
    pub number: usize,
    pub method: Method,
    pub headers: HeaderMap,
    pub sent: HeaderMap,
}

/// Answers as the element says whose number the request carries.
#[derive(Clone)]
pub struct Origin {
    script: Arc<Script>,
}

struct Script {
    case: Case,
    place: Place,
    clock: Clock,
    seen: Mutex<Vec<Seen>>,
}

/// Where a case's resources are.
#[derive(Clone, Debug)]
pub struct Place {
    pub host: String,
    pub path: String,
    pub token: String,
}

impl Place {
    /// Fills in `{url}`, `{path}` and `{token}`.
    pub fn fill(&self, text: &str) -> String {
        let url = format!("http://{}{}", self.host, self.path);
        text.replace("{url}", &url).replace("{path}", &self.path).replace("{token}", &self.token)
    }
}

impl Origin {
    pub fn new(case: Case, place: Place, clock: Clock) -> Self {
        Self { script: Arc::new(Script { case, place, clock, seen: Mutex::default() }) }
    }

    /// Every request so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.script.seen.lock().unwrap().clone()
    }
}

impl Service<Request<Body>> for Origin {
    type Response = Response<Body>;
    type Error = Disconnected;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Disconnected>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Disconnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let script = self.script.clone();
        let (request, _) = request.into_parts();
        Box::pin(async move { script.answer(&request).await })
    }
}

impl Script {
    async fn answer(&self, request: &Parts) -> Result<Response<Body>, Disconnected> {
        let number = request.headers["req-num"].to_str().unwrap().parse().unwrap();
        let step = &self.case.requests[number - 1];
        let (at, numbers) = self.note(number, request);
        if step.response_pause > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(step.response_pause)).await;
        }
        if step.disconnect {
            return Err(Disconnected);
        }
        let mut headers = self.scripted(step);
        for (name, value) in [
            ("server-now", self.clock.millis().to_string()),
            ("server-request-count", (at + 1).to_string()),
            ("client-request-count", number.to_string()),
            ("request-numbers", numbers),
        ] {
            headers.insert(name, fields::value(&value));
        }
        fields::set_default(&mut headers, CONTENT_TYPE, "text/plain");
        let status = self.status(number, request);
        let body = self.body(step, status, &request.method, &mut headers);
        self.seen.lock().unwrap()[at].sent.clone_from(&headers);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// Its place in the order, and all numbers so far.
    fn note(&self, number: usize, request: &Parts) -> (usize, String) {
        let mut seen = self.seen.lock().unwrap();
        let (method, headers) = (request.method.clone(), request.headers.clone());
        seen.push(Seen { number, method, headers, sent: HeaderMap::new() });
        let numbers: Vec<_> = seen.iter().map(|seen| seen.number.to_string()).collect();
        (seen.len() - 1, numbers.join(" "))
    }

    fn status(&self, number: usize, request: &Parts) -> StatusCode {
        let step = &self.case.requests[number - 1];
        if !step.expected_type.is_some_and(Expected::is_validated) {
            return StatusCode::from_u16(step.response_status.as_ref().map_or(200, |(code, _)| *code)).unwrap();
        }
        let seen = self.seen.lock().unwrap();
        if before(&seen, number).is_some_and(|previous| is_validated(&request.headers, &previous.sent)) {
            StatusCode::NOT_MODIFIED
        } else {
            StatusCode::from_u16(999).unwrap()
        }
    }

    fn scripted(&self, step: &Step) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for field in &step.response_headers {
            headers.append(fields::name(&field.name), fields::value(&self.render(step, field)));
        }
        headers
    }

    fn render(&self, step: &Step, field: &Field) -> String {
        let listed = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case(&field.name));
        match &field.value {
            Literal::Text(text) if step.magic_locations && field.name.ends_with("location") => {
                // Nothing is the case's own URL.
                format!("{}/{text}", self.place.path).trim_end_matches('/').to_owned()
            }
            Literal::Text(text) => self.place.fill(text),
            Literal::Offset(offset) => {
                let imf = clock::imf(self.clock.now(), *offset);
                match () {
                    () if listed(&step.rfc850date) => clock::rfc850(&imf),
                    () if listed(&step.asctimedate) => clock::asctime(&imf),
                    () => imf,
                }
            }
        }
    }

    /// As HTTP/1.1 would frame it: `Content-Length` cuts a longer body, and a shorter one breaks off.
    fn body(&self, step: &Step, status: StatusCode, method: &Method, headers: &mut HeaderMap) -> Body {
        if method == Method::HEAD || has_no_content(status) {
            return Body::empty();
        }
        let mut text = step.response_body.clone().unwrap_or_else(|| self.place.token.clone());
        let stated = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let short = stated.is_some_and(|stated| stated > text.len());
        text.truncate(stated.unwrap_or(usize::MAX));
        if short || step.response_truncated {
            return broken(text);
        }
        if step.response_chunked {
            let pieces: Vec<_> = text.as_bytes().chunks(4).map(|piece| Ok::<_, Infallible>(piece.to_vec())).collect();
            return Body::from_stream(stream::iter(pieces));
        }
        if stated.is_none() {
            headers.append(CONTENT_LENGTH, text.len().into());
        }
        Body::from(text)
    }
}

fn broken(text: String) -> Body {
    Body::from_stream(stream::iter([Ok(Bytes::from(text)), Err(Disconnected)]))
}

pub fn has_no_content(status: StatusCode) -> bool {
    status.is_informational() || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
}

/// The last request of an element before this one.
pub fn before(seen: &[Seen], number: usize) -> Option<&Seen> {
    seen.iter().rfind(|seen| seen.number < number)
}

/// Whether a validator of the request is that of the previous answer; `If-None-Match` may name others beside it.
fn is_validated(request: &HeaderMap, previous: &HeaderMap) -> bool {
    has_etag(request, previous) || has_date(request, previous)
}

pub fn has_etag(request: &HeaderMap, previous: &HeaderMap) -> bool {
    let Some(tag) = previous.get(ETAG).map(fields::text) else { return false };
    let asked = fields::joined(request, IF_NONE_MATCH.as_str()).unwrap_or_default();
    asked == tag || asked.split(',').any(|member| member.trim() == tag)
}

pub fn has_date(request: &HeaderMap, previous: &HeaderMap) -> bool {
    previous.get(LAST_MODIFIED).is_some_and(|date| request.get(IF_MODIFIED_SINCE) == Some(date))
}
