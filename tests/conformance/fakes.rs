//! The runner itself: caches that are known to be wrong must fail where they are wrong, and nowhere else.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt, Collected};
use tower::{Service, ServiceExt};

use crate::case::{Case, Kind, Suite, parse};
use crate::client::run;
use crate::origin::{Disconnected, Origin};
use crate::report::{Outcome, Report};

type Kept = (StatusCode, HeaderMap, Bytes);

/// Stores the first answer to every URL, and gives it to everybody for ever.
#[derive(Clone)]
struct Forever {
    origin: Origin,
    kept: Arc<Mutex<HashMap<String, Kept>>>,
    manner: Manner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Silent,
    /// With `Age` and `Cache-Status`.
    Loud,
    /// One answer for all URLs, and one part for all ranges.
    Careless,
}

impl Service<Request<Body>> for Forever {
    type Response = Response<Body>;
    type Error = Disconnected;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Disconnected>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Disconnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let key = if this.manner == Manner::Careless { String::new() } else { request.uri().to_string() };
            let ranged = this.manner == Manner::Careless && request.headers().contains_key("range");
            let kept = this.kept.lock().unwrap().get(&key).cloned();
            let (hit, (status, mut headers, body)) = match kept {
                Some(kept) => (true, kept),
                None => {
                    let (head, body) = this.origin.oneshot(request).await?.into_parts();
                    let body = body.collect().await.map_or_else(|_| Bytes::new(), Collected::to_bytes);
                    let kept = (head.status, head.headers, body);
                    this.kept.lock().unwrap().insert(key, kept.clone());
                    (false, kept)
                }
            };
            if hit && ranged {
                headers.insert("content-range", "bytes 0-3/10".parse().unwrap());
                let mut response = Response::new(Body::from(body.slice(..body.len().min(4))));
                (*response.status_mut(), *response.headers_mut()) = (StatusCode::PARTIAL_CONTENT, headers);
                return Ok(response);
            }
            if hit && this.manner == Manner::Loud {
                headers.insert("age", "60".parse().unwrap());
                headers.insert("cache-status", "fake; hit; ttl=5".parse().unwrap());
            }
            let mut response = Response::new(Body::from(body));
            (*response.status_mut(), *response.headers_mut()) = (status, headers);
            Ok(response)
        })
    }
}

const CASES: &str = r#"[{ "id": "runner", "name": "x", "tests": [
    { "id": "reused", "name": "x", "requests": [
        { "response_headers": [["Cache-Control", "max-age=9"]], "setup": true, "pause_after": true },
        { "expected_type": "cached" }] },
    { "id": "not-reused", "name": "x", "requests": [
        { "setup": true },
        { "expected_type": "not_cached" }] },
    { "id": "aged", "name": "x", "depends_on": ["reused"], "requests": [
        { "setup": true },
        { "expected_response_headers": [["Age", ">", 2]] }] },
    { "id": "says-hit", "name": "x", "depends_on": ["reused"], "requests": [
        { "setup": true },
        { "expected_cache_status": ["hit", "ttl=5"], "expected_cache_status_missing": ["fwd"] }] },
    { "id": "validated", "name": "x", "requests": [
        { "response_headers": [["ETag", "\"a\""]], "setup": true },
        { "expected_type": "etag_validated" }] },
    { "id": "after-validated", "name": "x", "depends_on": ["validated"], "requests": [{}] },
    { "id": "changed", "name": "x", "requests": [
        { "response_headers": [["A", "1"]] },
        { "response_headers": [["A", "2"]], "expected_response_headers": [["A", "2"]] }] },
    { "id": "own-body", "name": "x", "requests": [
        { "response_body": "one" },
        { "response_body": "two" }] },
    { "id": "own-status", "name": "x", "requests": [
        { "response_status": [404, "Not Found"] },
        { "response_status": [200, "OK"] }] },
    { "id": "error", "name": "x", "requests": [
        { "disconnect": true, "expected_status": 502, "check_body": false }] },
    { "id": "counted", "name": "x", "requests": [
        { "expected_answer_of": 1, "expected_origin_requests": 1 },
        { "expected_answer_of": 2, "expected_origin_requests": 2 }] },
    { "id": "set-up", "name": "x", "requests": [
        {},
        { "expected_type": "cached", "setup_tests": ["expected_type"] }] }
] }]"#;

fn report(mut run: impl FnMut(&Case) -> Outcome) -> Vec<(String, &'static str)> {
    let suites: Vec<Suite> = parse("fakes.rs", CASES);
    let report = Report::of(&suites, &mut run);
    let word = |outcome: &Outcome| match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed(_) => "failed",
        Outcome::Setup(_) => "setup",
        Outcome::Depends(_) => "depends",
    };
    report.rows().map(|row| (row.case.id.clone(), word(&row.outcome))).collect()
}

fn forever(case: &Case, manner: Manner) -> Outcome {
    run(case, |origin, _| Forever { origin, kept: Arc::default(), manner })
}

/// The outcomes of no cache, of one that stores everything for ever, and of that without a word about it.
#[test]
fn wrong_caches_fail() {
    let [none, eager, silent] = [
        report(|case| run(case, |origin, _| origin)),
        report(|case| forever(case, Manner::Loud)),
        report(|case| forever(case, Manner::Silent)),
    ];
    for (id, wanted) in [
        ("reused", ["failed", "passed", "passed"]),
        ("not-reused", ["passed", "failed", "failed"]),
        ("aged", ["depends", "passed", "failed"]),
        ("says-hit", ["depends", "passed", "failed"]),
        ("validated", ["failed", "failed", "failed"]),
        ("after-validated", ["depends", "depends", "depends"]),
        ("changed", ["passed", "failed", "failed"]),
        ("own-body", ["passed", "failed", "failed"]),
        ("own-status", ["passed", "failed", "failed"]),
        ("error", ["passed", "passed", "passed"]),
        ("counted", ["passed", "failed", "failed"]),
        ("set-up", ["setup", "passed", "passed"]),
    ] {
        for (report, wanted) in [&none, &eager, &silent].into_iter().zip(wanted) {
            assert!(report.contains(&(id.to_owned(), wanted)), "{id} is not {wanted} in {report:?}");
        }
    }
}

/// The outcome of these elements without a cache.
fn alone(requests: &str) -> Outcome {
    let text = format!(r#"[{{"id":"a","name":"x","tests":[{{"id":"a","name":"x","requests":[{requests}]}}]}}]"#);
    run(&parse("fakes.rs", &text)[0].tests[0], |origin, _| origin)
}

#[test]
fn each_check_can_fail() {
    for (good, bad) in [
        (r#"{"expected_status":200}"#, r#"{"expected_status":304}"#),
        (
            r#"{"expected_status":null,"response_status":[503,""]}"#,
            r#"{"expected_status":200,"response_status":[503,""]}"#,
        ),
        (r#"{"expected_method":"GET"}"#, r#"{"expected_method":"HEAD"}"#),
        (r#"{"expected_request_headers":["Req-Num"]}"#, r#"{"expected_request_headers":["X"]}"#),
        (r#"{"expected_request_headers":[["Pragma","foo"]]}"#, r#"{"expected_request_headers":[["Pragma","bar"]]}"#),
        (
            r#"{"expected_request_headers":[["Cache-Control","nothing-to-see-here, b"]],"request_headers":[["Cache-Control","b"]]}"#,
            r#"{"expected_request_headers":[["Cache-Control","b"]],"request_headers":[["Cache-Control","b"]]}"#,
        ),
        (r#"{"expected_request_headers_missing":["X"]}"#, r#"{"expected_request_headers_missing":["Test-ID"]}"#),
        (
            r#"{"expected_request_headers_missing":[["Pragma","bar"]]}"#,
            r#"{"expected_request_headers_missing":[["Pragma","foo"]]}"#,
        ),
        (r#"{"expected_response_headers":["Server-Now"]}"#, r#"{"expected_response_headers":["X"]}"#),
        (
            r#"{"expected_response_headers":[["Content-Type","text/plain"]]}"#,
            r#"{"expected_response_headers":[["Content-Type","x"]]}"#,
        ),
        (
            r#"{"expected_response_headers":[["Expires",7]],"response_headers":[["Expires",7]]}"#,
            r#"{"expected_response_headers":[["Expires",8]],"response_headers":[["Expires",7]]}"#,
        ),
        (
            r#"{"expected_response_headers":[["A","=","B"]],"response_headers":[["A","1"],["B","1"]]}"#,
            r#"{"expected_response_headers":[["A","=","B"]],"response_headers":[["A","1"],["B","2"]]}"#,
        ),
        (
            r#"{"expected_response_headers":[["Server-Request-Count",">",0]]}"#,
            r#"{"expected_response_headers":[["Server-Request-Count",">",1]]}"#,
        ),
        (r#"{"expected_response_headers_missing":["X"]}"#, r#"{"expected_response_headers_missing":["Server-Now"]}"#),
        (
            r#"{"expected_response_headers_missing":[["Content-Type","html"]]}"#,
            r#"{"expected_response_headers_missing":[["Content-Type","plain"]]}"#,
        ),
        (
            r#"{"response_body":"a","expected_response_text":"a"}"#,
            r#"{"response_body":"a","expected_response_text":"b"}"#,
        ),
        // As HTTP frames it.
        (
            r#"{"response_body":"abcd","response_headers":[["Content-Length","3"]],"expected_response_text":"abc"}"#,
            r#"{"response_body":"abcd","response_headers":[["Content-Length","5"]]}"#,
        ),
        (r#"{"response_chunked":true}"#, r#"{"response_truncated":true}"#),
        (r#"{"expected_interim_responses":[]}"#, r#"{"expected_interim_responses":[[103,[]]]}"#),
        (r#"{"expected_answer_of":1}"#, r#"{"expected_answer_of":2}"#),
        (r#"{"expected_origin_requests":1}"#, r#"{"expected_origin_requests":0}"#),
        (
            r#"{"response_headers":[["Cache-Status","a; fwd=miss"]],"expected_cache_status":["fwd=miss"],"expected_cache_status_missing":["hit"]}"#,
            r#"{"response_headers":[["Cache-Status","a; fwd=miss; hit"]],"expected_cache_status_missing":["hit"]}"#,
        ),
        // The answer of the origin to a validation, and to what should have been one.
        (
            r#"{"response_headers":[["Last-Modified",-9]],"pause_after":true},
               {"request_headers":[["If-Modified-Since",-12]],"expected_type":"lm_validated","expected_status":304}"#,
            r#"{"response_headers":[["Last-Modified",-9]],"pause_after":true},
               {"request_headers":[["If-Modified-Since",-13]],"expected_type":"lm_validated","expected_status":304}"#,
        ),
        (
            r#"{"response_headers":[["ETag","\"a\""]]},
               {"request_headers":[["If-None-Match","\"b\", \"a\""]],"expected_type":"etag_validated","expected_status":304}"#,
            r#"{"response_headers":[["ETag","\"a\""]]},
               {"request_headers":[["If-None-Match","\"b\""]],"expected_status":999,"expected_type":"etag_validated"}"#,
        ),
        // Offsets of a client are counted from the origin's clock.
        (
            r#"{"response_headers":[["Date",-5]],"pause_after":true},
               {"magic_ims":true,"request_headers":[["If-Modified-Since",-3]],"response_headers":[["Date",-6]]}"#,
            r#"{},{"expected_response_headers":["Date"]}"#,
        ),
        (
            r#"{"magic_locations":true,"response_headers":[["Location","a"],["B","{path}/a"]],"expected_response_headers":[["Location","=","B"]]}"#,
            r#"{"magic_locations":true,"response_headers":[["Location","a"],["B","a"]],"expected_response_headers":[["Location","=","B"]]}"#,
        ),
    ] {
        assert_eq!(alone(good), Outcome::Passed, "{good}");
        assert!(matches!(alone(bad), Outcome::Failed(_)), "{bad}: {}", alone(bad));
    }
}

/// Stores nothing and meddles with everything: requests lose their fields, responses all lines but the last of each
/// field, and gain an `Age`.
fn meddling(case: &Case) -> Outcome {
    run(case, |origin, _| {
        tower::service_fn(move |mut request: Request<Body>| {
            let number = request.headers().get("req-num").cloned().unwrap();
            *request.headers_mut() = HeaderMap::from_iter([(HeaderName::from_static("req-num"), number)]);
            let origin = origin.clone();
            async move {
                let mut response = origin.oneshot(request).await?;
                let lines = response.headers().clone();
                response.headers_mut().clear();
                for (name, value) in &lines {
                    response.headers_mut().insert(name, value.clone());
                }
                response.headers_mut().insert("age", "60".parse().unwrap());
                Ok(response)
            }
        })
    })
}

/// Of our own cases none that must pass does so whatever the cache does.
#[test]
fn every_own_case_can_fail() {
    let mut always = Vec::new();
    for case in crate::own_cases().iter().flat_map(|suite| &suite.tests).filter(|case| case.kind != Kind::Check) {
        let outcomes = [
            run(case, |origin, _| origin),
            forever(case, Manner::Loud),
            forever(case, Manner::Careless),
            meddling(case),
        ];
        if outcomes.iter().all(Outcome::is_passed) {
            always.push(case.id.clone());
        }
    }
    assert!(always.is_empty(), "{} cases always pass: {always:#?}", always.len());
}

#[test]
fn a_panic_or_a_hang_of_a_cache_is_a_failure() {
    let suites = parse("fakes.rs", CASES);
    let case = &suites[0].tests[0];
    let panicking = run(case, |origin, _| tower::service_fn(move |_| panicking(origin.clone())));
    assert_eq!(panicking, Outcome::Failed("panic: on purpose".to_owned()));
    let hanging = run(case, |_, _| tower::service_fn(|_| std::future::pending::<Result<Response<Body>, _>>()));
    assert_eq!(hanging, Outcome::Failed("hangs".to_owned()));
}

async fn panicking(_: Origin) -> Result<Response<Body>, Disconnected> {
    panic!("on purpose")
}

#[test]
#[should_panic(expected = "unknown field")]
fn a_word_that_nobody_knows_is_no_case() {
    alone(r#"{"expected_responce_text":"a"}"#);
}
