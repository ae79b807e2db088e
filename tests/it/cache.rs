//! The response cache, through the layer: what is shared, what never is, and what happens when things end early.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Channel, Empty, Full};
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceExt};
use tower_scale::cache::{BoxError, Cache, CacheLayer, CacheTtl, MemoryStore, RedisStore};
use tower_scale::redis::Redis;
use tower_scale::refusal::Reason;

use crate::support::eventually;
use crate::support::redis_server::RedisServer;

mod bodies;
mod channel;
mod coalescing;
mod coding;
mod confusion;
mod credentials;
mod early;
mod herd;
mod leaks;
mod purge;
mod redis_store;
mod renewal;
mod routes;
mod safety;
mod stale;
mod stampedes;
mod time;

type Body = axum::body::Body;
type ReqBody = UnsyncBoxBody<Bytes, Infallible>;
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Broken>> + Send>>;

/// The inner service's own error.
#[derive(Debug, PartialEq)]
struct Broken(usize);

/// A scripted inner service: its handler also gets the number of the call, from 1.
#[derive(Clone)]
struct Origin {
    calls: Arc<AtomicUsize>,
    handler: Arc<dyn Fn(usize, Request<ReqBody>) -> Answering + Send + Sync>,
}

impl Origin {
    fn new<F>(handler: impl Fn(usize, Request<ReqBody>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Response<Body>, Broken>> + Send + 'static,
    {
        Self { calls: Arc::default(), handler: Arc::new(move |n, request| Box::pin(handler(n, request))) }
    }

    /// Answers at once; the body is the number of the call.
    fn answering(build: impl Fn(usize, &Request<ReqBody>) -> http::response::Builder + Send + Sync + 'static) -> Self {
        Self::new(move |n, request| {
            let response = build(n, &request).body(text(&n.to_string())).unwrap();
            async move { Ok(response) }
        })
    }

    /// The same fields on every answer.
    fn with(fields: &'static [(&'static str, &'static str)]) -> Self {
        Self::answering(|_, _| fields.iter().fold(Response::builder(), |b, (name, value)| b.header(*name, *value)))
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn cached(&self) -> Cache<Self> {
        layer().layer(self.clone())
    }
}

impl Service<Request<ReqBody>> for Origin {
    type Response = Response<Body>;
    type Error = Broken;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Answering {
        let n = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        (self.handler)(n, request)
    }
}

/// Leaves nothing to chance: what is renewed by chance has tests of its own.
fn layer() -> CacheLayer {
    CacheLayer::new(MemoryStore::new(1 << 20)).early_refresh(0.0)
}

fn redis_layer(server: &RedisServer) -> CacheLayer {
    CacheLayer::new(RedisStore::new(Redis::connect(&server.url()).unwrap()).unwrap())
}

fn text(text: &str) -> Body {
    Body::from(text.to_owned())
}

fn fresh() -> http::response::Builder {
    Response::builder().header("cache-control", "max-age=60")
}

fn request(method: Method, path: &str, fields: &[(&str, &str)]) -> Request<ReqBody> {
    let mut request = Request::builder().method(method).uri(path);
    if !fields.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "shop.example");
    }
    fields.iter().fold(request, |r, (name, value)| r.header(*name, *value)).body(Empty::new().boxed_unsync()).unwrap()
}

fn get(path: &str) -> Request<ReqBody> {
    request(Method::GET, path, &[])
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Result<String, BoxError>,
}

impl Answer {
    fn text(&self) -> &str {
        self.body.as_deref().unwrap()
    }

    fn cache_status(&self) -> &str {
        self.headers.get_all("cache-status").iter().next_back().unwrap().to_str().unwrap()
    }

    fn is_hit(&self) -> bool {
        self.cache_status().starts_with("tower-scale; hit")
    }
}

async fn send(cache: &Cache<Origin>, request: Request<ReqBody>) -> Answer {
    try_send(cache, request).await.unwrap()
}

async fn try_send(cache: &Cache<Origin>, request: Request<ReqBody>) -> Result<Answer, Broken> {
    let (parts, body) = cache.clone().oneshot(request).await?.into_parts();
    let body = body.collect().await.map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap());
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.map_err(Into::into) })
}

/// Polls everything else that can run.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

// === hits ===

#[tokio::test]
async fn a_second_get_is_a_hit_with_age_and_cache_status() {
    let origin = Origin::answering(|_, _| fresh().header("age", "7").header("link", "a").header("link", "b"));
    let cache = origin.cached();
    let first = send(&cache, get("/products/1")).await;
    assert_eq!(first.cache_status(), "tower-scale; fwd=uri-miss; stored");
    let second = send(&cache, get("/products/1")).await;
    assert_eq!((second.text(), origin.calls()), ("1", 1));
    assert_eq!(second.headers["age"], "7");
    assert!(["tower-scale; hit; ttl=52", "tower-scale; hit; ttl=53"].contains(&second.cache_status()), "{second:?}");
    assert_eq!(second.headers.get_all("link").iter().collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn a_memory_hit_is_ready_at_once_without_a_runtime_task() {
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let mut cache = origin.cached();
    send(&cache, get("/")).await;
    let response = cache.call(get("/")).now_or_never().expect("a hit waits for nothing").unwrap();
    assert_eq!(response.body().size_hint().exact(), Some(1));
}

#[tokio::test]
async fn our_member_of_cache_status_is_the_last() {
    let origin = Origin::with(&[("cache-control", "max-age=60"), ("cache-status", "upstream; fwd=miss")]);
    let cache = origin.cached();
    for expected in ["tower-scale; fwd=uri-miss; stored", "tower-scale; hit; ttl=59"] {
        let answer = send(&cache, get("/")).await;
        let lines: Vec<_> = answer.headers.get_all("cache-status").iter().collect();
        assert_eq!(lines, ["upstream; fwd=miss", expected]);
    }
}

#[tokio::test]
async fn expired_responses_are_fetched_again() {
    let origin = Origin::answering(|_, _| Response::builder().extension(CacheTtl(Duration::from_millis(30))));
    let cache = origin.cached();
    send(&cache, get("/")).await;
    assert!(send(&cache, get("/")).await.is_hit());
    let begun = Instant::now();
    eventually("expires", async || send(&cache, get("/")).await.cache_status().contains("fwd=stale")).await;
    assert!(begun.elapsed() < Duration::from_secs(5) && origin.calls() == 2);
}

#[tokio::test]
async fn ttl_precedence() {
    type Fields = &'static [(&'static str, &'static str)];
    let minute = Some(Duration::from_secs(60));
    for (handler, fields, default, stored) in [
        (None, &[] as Fields, None, false),
        (None, &[], minute, true),
        (None, &[("cache-control", "max-age=0")], minute, false),
        (minute, &[("cache-control", "max-age=0")], None, true),
        (Some(Duration::ZERO), &[("cache-control", "max-age=60")], minute, false),
        (minute, &[("cache-control", "no-store")], minute, false),
    ] {
        let origin = Origin::answering(move |_, _| {
            let mut response = fields.iter().fold(Response::builder(), |b, (name, value)| b.header(*name, *value));
            if let Some(ttl) = handler {
                response = response.extension(CacheTtl(ttl));
            }
            response
        });
        let layer = match default {
            Some(ttl) => layer().ttl(ttl),
            None => layer(),
        };
        let cache = layer.layer(origin.clone());
        send(&cache, get("/")).await;
        assert_eq!(send(&cache, get("/")).await.is_hit(), stored, "{handler:?} {fields:?} {default:?}");
    }
}

#[tokio::test]
async fn conditions_are_answered_from_the_store_and_from_what_is_fetched_for_all() {
    let origin = Origin::answering(|_, request| {
        assert!(!request.headers().contains_key("if-none-match"));
        fresh().header("etag", "\"a\"").header("content-type", "text/plain")
    });
    let cache = origin.cached();
    let conditional = |tag| request(Method::GET, "/", &[("if-none-match", tag)]);
    assert_eq!(send(&cache, conditional("\"a\"")).await.status, 304, "as if it had been stored before");
    eventually("stored", async || send(&cache, get("/")).await.is_hit()).await;
    let answer = send(&cache, conditional("\"b\", W/\"a\"")).await;
    assert_eq!((answer.status, answer.text(), answer.is_hit()), (StatusCode::NOT_MODIFIED, "", true));
    assert_eq!(answer.headers["etag"], "\"a\"");
    assert!(!answer.headers.contains_key("content-type"));
    assert_eq!(send(&cache, conditional("\"b\"")).await.status, 200);
    assert_eq!(origin.calls(), 1);
}

// === what is never shared ===

#[tokio::test]
async fn what_must_not_be_stored_is_not() {
    let cases: [&'static [(&str, &str)]; 9] = [
        &[("cache-control", "max-age=60"), ("set-cookie", "session=alice")],
        &[("cache-control", "Private, max-age=60")],
        &[("cache-control", "max-age=60"), ("cache-control", "NO-STORE")],
        &[("cache-control", "no-cache, max-age=60")],
        &[("cache-control", "max-age=60"), ("vary", "*")],
        &[("cache-control", "max-age=60"), ("content-range", "bytes 0-0/9")],
        &[("cache-control", "max-age=60"), ("content-length", "17")],
        &[("cache-control", "max-age = 60")],
        &[],
    ];
    for fields in cases {
        let origin = Origin::with(fields);
        let cache = layer().layer(origin.clone());
        for n in 1..=2 {
            let answer = send(&cache, get("/")).await;
            assert_eq!(answer.text(), n.to_string(), "{fields:?}");
            assert_eq!(answer.cache_status(), "tower-scale; fwd=uri-miss", "{fields:?}");
        }
    }
}

#[tokio::test]
async fn hosts_paths_and_queries_are_apart() {
    let cache = Origin::with(&[("cache-control", "max-age=60")]).cached();
    let at = |host, path| request(Method::GET, path, &[("host", host)]);
    let targets = [("a", "/x"), ("b", "/x"), ("a", "/x?q=1"), ("a", "/x?q=2"), ("a", "/X")];
    for (n, (host, path)) in targets.iter().enumerate() {
        assert_eq!(send(&cache, at(host, path)).await.text(), (n + 1).to_string());
    }
    for (n, (host, path)) in targets.iter().enumerate() {
        let answer = send(&cache, at(host, path)).await;
        assert_eq!((answer.text(), answer.is_hit()), (&*(n + 1).to_string(), true));
    }
    let nowhere = Request::builder().uri("/x").body(Empty::new().boxed_unsync()).unwrap();
    assert_eq!(send(&cache, nowhere).await.cache_status(), "tower-scale; fwd=bypass");
}

#[tokio::test]
async fn a_host_field_that_contradicts_the_url_poisons_nothing() {
    let origin = Origin::new(|_, request| {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        async move { Ok(fresh().body(text(&host)).unwrap()) }
    });
    let cache = origin.cached();
    let odd = request(Method::GET, "http://shop.example/", &[("host", "evil.example")]);
    assert_eq!(send(&cache, odd).await.cache_status(), "tower-scale; fwd=bypass");
    assert_eq!(send(&cache, get("/")).await.text(), "shop.example");
    let usual = request(Method::GET, "http://SHOP.example:80/", &[]);
    assert!(send(&cache, usual).await.is_hit());
}

#[tokio::test]
async fn a_prefix_stripped_by_axum_still_counts() {
    use axum::routing::get as route;
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = move || {
        let n = calls.fetch_add(1, Ordering::SeqCst);
        async move { ([("cache-control", "max-age=60")], n.to_string()) }
    };
    let item = axum::Router::new().route("/item", route(handler)).layer(layer());
    let app = axum::Router::new().nest("/v1", item.clone()).nest("/v2", item);
    let mut bodies = Vec::new();
    for path in ["/v1/item", "/v2/item", "/v1/item", "/v2/item"] {
        let request = Request::builder().uri(path).header("host", "a").body(axum::body::Body::empty()).unwrap();
        let body = app.clone().oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        bodies.push(body);
    }
    assert_eq!(bodies, ["0", "1", "0", "1"]);
}

#[tokio::test]
async fn other_methods_pass_and_a_post_is_never_replayed() {
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let cache = origin.cached();
    for n in 1..=2 {
        let answer = send(&cache, request(Method::POST, "/pay", &[])).await;
        assert_eq!((answer.text(), answer.cache_status()), (&*n.to_string(), "tower-scale; fwd=method"));
    }
    assert_eq!(send(&cache, get("/pay")).await.text(), "3");
}

#[tokio::test]
async fn a_successful_post_invalidates_its_url_with_all_variants() {
    let fail = Arc::new(AtomicBool::new(true));
    let failing = fail.clone();
    let origin = Origin::answering(move |_, request| {
        let fails = *request.method() == Method::POST && failing.load(Ordering::SeqCst);
        fresh().header("vary", "accept-language").status(if fails { 400 } else { 200 })
    });
    let cache = origin.cached();
    let page = |language| request(Method::GET, "/page", &[("accept-language", language)]);
    for (language, body) in [("en", "1"), ("de", "2"), ("en", "1"), ("de", "2")] {
        assert_eq!(send(&cache, page(language)).await.text(), body);
    }
    send(&cache, request(Method::POST, "/page", &[])).await;
    assert!(send(&cache, page("en")).await.is_hit(), "an error changes nothing");
    fail.store(false, Ordering::SeqCst);
    send(&cache, request(Method::POST, "/page", &[])).await;
    assert_eq!(send(&cache, page("en")).await.text(), "5");
    assert_eq!(send(&cache, page("de")).await.text(), "6", "the old variant is out of reach");
}

#[tokio::test]
async fn a_fetch_that_a_post_has_overtaken_is_not_stored() {
    let gate = Arc::new(Semaphore::new(0));
    let (opened, waiting) = (gate.clone(), gate.clone());
    let origin = Origin::new(move |n, request| {
        let gate = waiting.clone();
        async move {
            if *request.method() == Method::GET {
                gate.acquire().await.unwrap().forget();
            }
            Ok(fresh().body(text(&n.to_string())).unwrap())
        }
    });
    let cache = origin.cached();
    let early = tokio::spawn({
        let cache = cache.clone();
        async move { send(&cache, get("/")).await }
    });
    settle().await;
    send(&cache, request(Method::PUT, "/", &[])).await;
    let late = spawn(&cache, get("/"));
    settle().await;
    assert_eq!(origin.calls(), 3, "whoever asks after the change does not share a fetch from before it");
    opened.add_permits(1);
    assert_eq!(early.await.unwrap().text(), "1");
    opened.add_permits(1);
    assert_eq!(late.await.unwrap().unwrap().text(), "3");
    assert_eq!(send(&cache, get("/")).await.text(), "3");
}

#[tokio::test]
async fn no_variant_from_before_a_post_comes_back_through_a_fetch_that_began_before_it() {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = gate.clone();
    let origin = Origin::new(move |n, request| {
        let gate = waiting.clone();
        async move {
            if request.headers().get("accept-language").is_some_and(|value| value == "slow") {
                gate.acquire().await.unwrap().forget();
            }
            if n == 3 {
                return Err(Broken(n));
            }
            Ok(fresh().header("vary", "accept-language").body(text(&n.to_string())).unwrap())
        }
    });
    let cache = origin.cached();
    let page = |language: &str| request(Method::GET, "/", &[("accept-language", language)]);
    assert_eq!(send(&cache, page("de")).await.text(), "1");
    assert_eq!(send(&cache, page("en")).await.text(), "2");
    // The second waits for the first, which fails: it takes over after the POST, with a lookup from before.
    let failing = spawn(&cache, page("slow"));
    settle().await;
    let successor = spawn(&cache, page("slow"));
    settle().await;
    send(&cache, request(Method::POST, "/", &[])).await;
    gate.add_permits(2);
    assert!(failing.await.unwrap().is_err());
    assert_eq!(successor.await.unwrap().unwrap().text(), "5");
    assert!(!send(&cache, page("de")).await.is_hit());
}

/// After a PUT has answered, no GET that begins later may see what was there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_asks_after_a_put_gets_what_came_of_it() {
    let version = Arc::new(AtomicUsize::new(0));
    let current = version.clone();
    let origin = Origin::new(move |n, request| {
        let version = current.clone();
        async move {
            if *request.method() == Method::PUT {
                version.fetch_add(1, Ordering::SeqCst);
                return Ok(Response::new(text("")));
            }
            let seen = version.load(Ordering::SeqCst);
            for _ in 0..n % 7 {
                tokio::task::yield_now().await;
            }
            if n % 5 == 0 {
                return Err(Broken(n));
            }
            Ok(fresh().header("vary", "accept-language").body(text(&seen.to_string())).unwrap())
        }
    });
    let cache = origin.cached();
    let (answered, end) = (Arc::new(AtomicUsize::new(0)), Instant::now() + Duration::from_millis(1500));
    let putting = tokio::spawn({
        let (cache, answered) = (cache.clone(), answered.clone());
        async move {
            while Instant::now() < end {
                send(&cache, request(Method::PUT, "/", &[])).await;
                answered.store(version.load(Ordering::SeqCst), Ordering::SeqCst);
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let getting = (0..23).map(|worker| {
        let (cache, answered) = (cache.clone(), answered.clone());
        tokio::spawn(async move {
            let mut round = worker;
            while Instant::now() < end {
                round += 1;
                tokio::task::yield_now().await;
                let language = ["a", "b", "c", "d"][(round * 7 + worker) % 4];
                let at_least = answered.load(Ordering::SeqCst);
                let call = try_send(&cache, request(Method::GET, "/", &[("accept-language", language)]));
                if round % 3 == 0 {
                    let _ = tokio::time::timeout(Duration::from_micros(200), call).await;
                } else if let Ok(answer) = call.await
                    && answer.status == StatusCode::OK
                {
                    let seen: usize = answer.text().parse().unwrap();
                    assert!(seen >= at_least, "{seen} after {at_least}: {}", answer.cache_status());
                }
            }
        })
    });
    let all = join_all(getting.chain([putting]));
    for task in tokio::time::timeout(Duration::from_secs(30), all).await.expect("nobody is stuck") {
        task.unwrap();
    }
}

#[tokio::test]
async fn a_request_with_credentials_takes_no_variant_out_of_reach() {
    let origin = Origin::answering(|_, request| {
        let shared = request.headers().contains_key("authorization");
        let control = if shared { "public, max-age=60" } else { "max-age=60" };
        Response::builder().header("vary", "accept-language").header("cache-control", control)
    });
    let cache = origin.cached();
    let page = |language| request(Method::GET, "/", &[("accept-language", language)]);
    send(&cache, page("de")).await;
    send(&cache, page("en")).await;
    let own = request(Method::GET, "/", &[("accept-language", "en"), ("authorization", "x")]);
    assert_eq!(send(&cache, own).await.cache_status(), "tower-scale; fwd=request; stored; detail=credentials");
    assert!(send(&cache, page("de")).await.is_hit());
}

#[tokio::test]
async fn head_is_answered_from_a_get_and_stores_nothing() {
    let origin = Origin::answering(|_, _| fresh());
    let cache = origin.cached();
    let head = || request(Method::HEAD, "/", &[]);
    assert_eq!(send(&cache, head()).await.cache_status(), "tower-scale; fwd=uri-miss");
    let full = send(&cache, get("/")).await;
    assert_eq!((full.text(), full.cache_status()), ("2", "tower-scale; fwd=uri-miss; stored"));
    let answer = send(&cache, head()).await;
    assert_eq!((answer.text(), answer.is_hit(), origin.calls()), ("", true, 2));
    assert_eq!(answer.headers["content-length"], "1");
}

#[tokio::test]
async fn credentials_are_shared_only_with_permission() {
    for (control, shared) in [
        ("max-age=60", false),
        ("max-age=60, public", true),
        ("s-maxage=60", true),
        ("max-age=9, must-revalidate", true),
    ] {
        for name in ["authorization", "cookie"] {
            let origin = Origin::answering(move |_, _| Response::builder().header("cache-control", control));
            let cache = origin.cached();
            let alice = || request(Method::GET, "/", &[(name, "alice")]);
            let bob = || request(Method::GET, "/", &[(name, "bob")]);
            let first = send(&cache, alice()).await;
            let mark = if shared { "; stored" } else { "" };
            assert_eq!(
                first.cache_status(),
                format!("tower-scale; fwd=uri-miss{mark}; detail=credentials"),
                "{control}"
            );
            settle().await;
            assert_eq!(send(&cache, bob()).await.is_hit(), shared, "{name} {control}");
            let anonymous = send(&cache, get("/")).await;
            assert_eq!(anonymous.is_hit(), shared, "{name} {control}");
            let answer = send(&cache, bob()).await;
            assert_eq!(answer.is_hit(), shared, "{name} {control}: what a stranger fetched");
            if !shared {
                assert_eq!(answer.cache_status(), "tower-scale; fwd=request; detail=credentials");
            }
        }
    }
}

#[tokio::test]
async fn what_only_the_handler_can_answer_goes_to_it() {
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let cache = origin.cached();
    send(&cache, get("/")).await;
    let fields = ["if-match", "if-unmodified-since", "upgrade", "transfer-encoding", "content-length"];
    for (n, name) in fields.iter().enumerate() {
        let answer = send(&cache, request(Method::GET, "/", &[(name, "5")])).await;
        assert_eq!(
            (answer.text(), answer.cache_status()),
            (&*(n + 2).to_string(), "tower-scale; fwd=bypass"),
            "{name}"
        );
    }
    let mut http2 = get("/");
    *http2.version_mut() = http::Version::HTTP_2;
    *http2.body_mut() = Full::new(Bytes::from_static(b"poison")).boxed_unsync();
    assert_eq!(send(&cache, http2).await.cache_status(), "tower-scale; fwd=bypass");
    assert!(send(&cache, request(Method::GET, "/", &[("content-length", "0")])).await.is_hit());
    assert!(send(&cache, request(Method::GET, "/", &[("cache-control", "no-cache, no-store")])).await.is_hit());
}

#[tokio::test]
async fn variants_are_apart() {
    let origin = Origin::answering(|_, _| fresh().header("vary", "Accept-Language"));
    let cache = origin.cached();
    let page = |languages: &[&str]| {
        let fields: Vec<_> = languages.iter().map(|language| ("accept-language", *language)).collect();
        request(Method::GET, "/", &fields)
    };
    let first = send(&cache, page(&["en"])).await;
    assert_eq!(first.cache_status(), "tower-scale; fwd=uri-miss; stored");
    let other = send(&cache, page(&["de"])).await;
    assert_eq!((other.text(), other.cache_status()), ("2", "tower-scale; fwd=vary-miss; stored"));
    assert_eq!(send(&cache, page(&[])).await.text(), "3");
    assert_eq!(send(&cache, page(&["de", "en"])).await.text(), "4");
    for (languages, body) in [(&["en"] as &[&str], "1"), (&["de"], "2"), (&[], "3"), (&["de, en"], "4")] {
        let answer = send(&cache, page(languages)).await;
        assert_eq!((answer.text(), answer.is_hit()), (body, true), "{languages:?}");
        assert_eq!(answer.headers["vary"], "Accept-Language");
    }
    assert_eq!(send(&cache, page(&[&"x".repeat(5000)])).await.cache_status(), "tower-scale; fwd=bypass");
}

#[tokio::test]
async fn fields_of_one_connection_are_not_stored() {
    let cache = Origin::with(&[
        ("cache-control", "max-age=60"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("x-kept", "1"),
    ])
    .cached();
    assert!(send(&cache, get("/")).await.headers.contains_key("x-hop"));
    let hit = send(&cache, get("/")).await;
    assert!(hit.is_hit() && hit.headers.contains_key("x-kept"));
    for name in ["x-hop", "connection", "keep-alive"] {
        assert!(!hit.headers.contains_key(name), "{name}");
    }
}

// === coalescing ===

/// Waits for a permit per call, then answers with these fields.
fn gated(fields: &'static [(&'static str, &'static str)]) -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = gate.clone();
    let origin = Origin::new(move |n, request| {
        let gate = waiting.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            let response = fields.iter().fold(Response::builder(), |b, (name, value)| b.header(*name, *value));
            let language = request.headers().get("accept-language").map_or("", |value| value.to_str().unwrap());
            Ok(response.body(text(&format!("{n}{language}"))).unwrap())
        }
    });
    (origin, gate)
}

fn spawn(cache: &Cache<Origin>, request: Request<ReqBody>) -> tokio::task::JoinHandle<Result<Answer, Broken>> {
    let cache = cache.clone();
    tokio::spawn(async move { try_send(&cache, request).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_second_call_slips_in_between_a_lookup_and_a_flight() {
    // Every call is as quick as it can be, so that fetches end while others are between lookup and flight.
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let cache = origin.cached();
    for round in 0..300 {
        let path = format!("/{round}");
        join_all((0..8).map(|_| spawn(&cache, get(&path)))).await;
        assert_eq!(origin.calls(), round + 1);
    }
}

#[tokio::test]
async fn a_fetch_outlives_every_client() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60")]);
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let cache = origin.cached();
    let clients: Vec<_> = (0..100).map(|_| spawn(&cache, get("/slow"))).collect();
    settle().await;
    let gauges = || recorder.handle().render();
    assert!(gauges().contains("cache_waiters 99\n") && gauges().contains("cache_fills_in_flight 1\n"), "{}", gauges());
    for client in &clients {
        client.abort();
    }
    settle().await;
    assert!(gauges().contains("cache_waiters 0\n"), "{}", gauges());
    gate.add_permits(1);
    eventually("the fetch ends", async || gauges().contains("cache_fills_in_flight 0\n")).await;
    assert!(send(&cache, get("/slow")).await.is_hit());
    assert_eq!(origin.calls(), 1);
    let text = gauges();
    assert!(text.contains("cache_entries 1\n"), "{text}");
    assert!(text.contains("cache_requests_total{outcome=\"miss\"} 1\n"), "{text}");
    assert!(text.contains("cache_requests_total{outcome=\"hit\"} 1\n"), "{text}");
    drop(cache);
}

#[tokio::test]
async fn a_response_that_was_asked_for_earlier_replaces_no_later_one() {
    let (hold, held) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let gates = (hold.clone(), held.clone());
    let origin = Origin::new(move |n, _| {
        let (hold, held) = gates.clone();
        async move {
            if n == 1 {
                held.add_permits(1);
                hold.acquire().await.unwrap().forget();
            }
            Ok(Response::builder().header("cache-control", "s-maxage=60").body(text(&n.to_string())).unwrap())
        }
    });
    let cache = origin.cached();
    let credentials = || request(Method::GET, "/", &[("authorization", "a")]);
    // With credentials, and nothing known of the key: each goes alone.
    let first = spawn(&cache, credentials());
    held.acquire().await.unwrap().forget();
    assert_eq!(send(&cache, credentials()).await.text(), "2");
    hold.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap().text(), "1");
    assert_eq!(send(&cache, get("/")).await.text(), "2");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_nobody_wants_ends_by_itself_after_a_while() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60")]);
    let held = Arc::downgrade(&gate);
    let cache = origin.cached();
    let client = spawn(&cache, get("/"));
    settle().await;
    client.abort();
    drop((origin, cache, gate));
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(held.upgrade().is_some(), "still running");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(held.upgrade().is_none());
}

#[tokio::test]
async fn followers_survive_the_leaders_departure() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60")]);
    let cache = origin.cached();
    let leader = spawn(&cache, get("/"));
    settle().await;
    let followers: Vec<_> = (0..20).map(|_| spawn(&cache, get("/"))).collect();
    settle().await;
    leader.abort();
    gate.add_permits(1);
    for follower in join_all(followers).await {
        let answer = follower.unwrap().unwrap();
        assert_eq!((answer.text(), answer.cache_status()), ("1", "tower-scale; fwd=uri-miss; collapsed"));
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn uncacheable_at_the_head_releases_everybody_at_once() {
    let (origin, gate) = gated(&[("cache-control", "no-store")]);
    let cache = origin.cached();
    let clients: Vec<_> = (0..10).map(|_| spawn(&cache, get("/"))).collect();
    settle().await;
    assert_eq!(origin.calls(), 1);
    gate.add_permits(1);
    eventually("nine run side by side", async || origin.calls() == 10).await;
    gate.add_permits(9);
    let mut bodies: Vec<_> = join_all(clients).await.into_iter().map(|a| a.unwrap().unwrap().body.unwrap()).collect();
    bodies.sort_by_key(|body| body.parse::<usize>().unwrap());
    assert_eq!(bodies, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]);
}

#[tokio::test]
async fn nobody_waits_for_what_was_not_for_sharing_until_something_is_stored() {
    let cacheable = Arc::new(AtomicBool::new(false));
    let (gate, now) = (Arc::new(Semaphore::new(0)), cacheable.clone());
    let waiting = gate.clone();
    let origin = Origin::new(move |_, _| {
        let (gate, field) = (waiting.clone(), if now.load(Ordering::SeqCst) { "max-age=60" } else { "no-store" });
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(Response::builder().header("cache-control", field).body(text("x")).unwrap())
        }
    });
    let cache = origin.cached();
    gate.add_permits(1);
    send(&cache, get("/")).await;
    let side_by_side: Vec<_> = (0..5).map(|_| spawn(&cache, get("/"))).collect();
    eventually("nobody waits for another", async || origin.calls() == 6).await;
    gate.add_permits(5);
    join_all(side_by_side).await;
    // A response that may be stored ends it.
    cacheable.store(true, Ordering::SeqCst);
    gate.add_permits(1);
    send(&cache, get("/")).await;
    assert!(send(&cache, get("/")).await.is_hit());
    assert_eq!(origin.calls(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_response_is_stored_before_its_client_can_ask_again() {
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let cache = origin.cached();
    for n in 0..500 {
        let path = format!("/{n}");
        send(&cache, get(&path)).await;
        let second = send(&cache, get(&path)).await;
        assert!(second.is_hit(), "{}", second.cache_status());
    }
}

#[tokio::test]
async fn followers_with_other_fields_do_not_share() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60"), ("vary", "accept-language")]);
    let cache = origin.cached();
    let languages = ["en", "de", "en", "de", "fr"];
    let clients: Vec<_> = languages
        .iter()
        .map(|language| spawn(&cache, request(Method::GET, "/", &[("accept-language", language)])))
        .collect();
    settle().await;
    gate.add_permits(10);
    for (client, language) in join_all(clients).await.into_iter().zip(languages) {
        assert!(client.unwrap().unwrap().text().ends_with(language));
    }
    assert_eq!(origin.calls(), 3, "one per language");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_one_variant_after_another_waits_five_seconds_in_all() {
    let origin = Origin::new(|_, request| async move {
        tokio::time::sleep(Duration::from_millis(4900)).await;
        let language = request.headers()["accept-language"].to_str().unwrap().to_owned();
        Ok(fresh().header("vary", "accept-language").body(text(&language)).unwrap())
    });
    let cache = origin.cached();
    let began = tokio::time::Instant::now();
    let ask = |language| spawn(&cache, request(Method::GET, "/", &[("accept-language", language)]));
    let first = ask("en");
    settle().await;
    let others = [ask("fr"), ask("fr"), ask("fr")];
    first.await.unwrap().unwrap();
    for other in others {
        assert_eq!(other.await.unwrap().unwrap().text(), "fr");
    }
    // One fetches `fr` from 4.9 s on; the others wait for it until 5 s and then go alone.
    assert!(began.elapsed() < Duration::from_millis(9950), "{:?}", began.elapsed());
    assert_eq!(origin.calls(), 4);
}

#[tokio::test]
async fn requests_with_credentials_neither_lead_nor_follow() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60, public")]);
    let cache = origin.cached();
    let alice = spawn(&cache, request(Method::GET, "/", &[("cookie", "alice")]));
    let bob = spawn(&cache, request(Method::GET, "/", &[("cookie", "bob")]));
    let anonymous = spawn(&cache, get("/"));
    settle().await;
    assert_eq!(origin.calls(), 3);
    gate.add_permits(3);
    for client in [alice, bob, anonymous] {
        client.await.unwrap().unwrap();
    }
}

type Failing = fn(usize) -> Result<Response<Body>, Broken>;

/// Fails the first `failures` calls in one way, then answers.
fn failing(failures: usize, fail: Failing) -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = gate.clone();
    let origin = Origin::new(move |n, _| {
        let gate = waiting.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            if n <= failures { fail(n) } else { Ok(fresh().body(text(&n.to_string())).unwrap()) }
        }
    });
    (origin, gate)
}

#[tokio::test]
async fn a_failed_fetch_elects_one_successor() {
    let fails: [Failing; 3] = [
        |n| Err(Broken(n)),
        |_| Ok(Response::builder().status(503).body(text("busy")).unwrap()),
        |_| panic!("the handler panics"),
    ];
    for (kind, fail) in fails.into_iter().enumerate() {
        let (origin, gate) = failing(2, fail);
        let cache = origin.cached();
        let mut clients: Vec<_> = (0..6).map(|_| spawn(&cache, get("/"))).collect();
        settle().await;
        for n in 1..=3 {
            assert_eq!(origin.calls(), n, "one at a time");
            gate.add_permits(1);
            settle().await;
        }
        assert_eq!(origin.calls(), 3);
        let (mut own_failures, mut shared) = (0, 0);
        for client in clients.drain(..) {
            match client.await {
                Err(error) => own_failures += usize::from(error.is_panic() && kind == 2),
                Ok(Err(Broken(1..=2))) => own_failures += usize::from(kind == 0),
                Ok(Ok(answer)) if answer.status == 503 => own_failures += usize::from(kind == 1),
                Ok(answer) => shared += usize::from(answer.unwrap().text() == "3"),
            }
        }
        assert_eq!((own_failures, shared), (2, 4), "kind {kind}");
        assert!(send(&cache, get("/")).await.is_hit());
    }
}

#[tokio::test]
async fn three_failures_are_a_502_for_those_who_still_wait() {
    let (origin, gate) = failing(9, |n| Err(Broken(n)));
    let cache = origin.cached();
    let clients: Vec<_> = (0..6).map(|_| spawn(&cache, get("/"))).collect();
    settle().await;
    gate.add_permits(9);
    let (mut own, mut refused) = (Vec::new(), 0);
    for client in join_all(clients).await {
        match client.unwrap() {
            Err(Broken(n)) => own.push(n),
            Ok(answer) => {
                assert_eq!(answer.status, 502);
                assert_eq!(answer.cache_status(), "tower-scale; fwd=uri-miss; collapsed");
                assert_eq!(answer.headers["cache-control"], "no-store");
                refused += usize::from(answer.text().contains("fill_failed"));
            }
        }
    }
    own.sort_unstable();
    assert_eq!((own, refused, origin.calls()), (vec![1, 2, 3], 3, 3));
}

#[tokio::test]
async fn the_refusal_hook_answers_for_a_failed_fetch() {
    let (origin, gate) = failing(9, |n| Err(Broken(n)));
    let cache = layer()
        .refusal(|refusal| {
            assert_eq!(refusal.reason(), Reason::FillFailed);
            Response::builder().status(599).body(Bytes::from_static(b"later")).unwrap()
        })
        .layer(origin);
    let clients: Vec<_> = (0..4).map(|_| spawn(&cache, get("/"))).collect();
    settle().await;
    gate.add_permits(9);
    let statuses: Vec<_> = join_all(clients).await.into_iter().filter_map(|client| client.unwrap().ok()).collect();
    assert_eq!((statuses.len(), statuses[0].status.as_u16(), statuses[0].text()), (1, 599, "later"));
}

#[tokio::test]
async fn a_failed_fetch_whose_waiters_have_all_left_strands_nobody() {
    let (origin, gate) = failing(1, |n| Err(Broken(n)));
    let cache = origin.cached();
    let leader = spawn(&cache, get("/"));
    settle().await;
    let follower = spawn(&cache, get("/"));
    settle().await;
    gate.add_permits(1);
    // The fetch fails; the follower leaves before it can take over.
    assert_eq!(leader.await.unwrap().unwrap_err(), Broken(1));
    follower.abort();
    let _ = follower.await;
    gate.add_permits(1);
    assert_eq!(send(&cache, get("/")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_layer_twice_in_one_stack_does_not_wait_for_itself() {
    let (layer, other, origin) = (layer(), layer(), Origin::with(&[("cache-control", "max-age=60")]));
    let boxed = |response: Response<_>| response.map(Body::new);
    let inner = other.layer(tower::util::MapResponse::new(layer.layer(origin.clone()), boxed));
    let outer = layer.layer(tower::util::MapResponse::new(inner, boxed));
    let begun = tokio::time::Instant::now();
    let response = outer.oneshot(get("/")).await.unwrap();
    let members: Vec<_> = response.headers().get_all("cache-status").iter().collect();
    let stored = "tower-scale; fwd=uri-miss; stored";
    assert_eq!(members, ["tower-scale; fwd=bypass", stored, stored]);
    assert_eq!((begun.elapsed(), origin.calls()), (Duration::ZERO, 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_has_an_end() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60")]);
    let cache = origin.cached();
    let clients: Vec<_> = (0..3).map(|_| spawn(&cache, get("/"))).collect();
    settle().await;
    tokio::time::sleep(Duration::from_millis(4900)).await;
    assert_eq!(origin.calls(), 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(origin.calls(), 3, "the others go alone");
    gate.add_permits(3);
    for client in join_all(clients).await {
        client.unwrap().unwrap();
    }
}

#[test]
fn without_a_runtime_requests_go_alone() {
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let cache = origin.cached();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for expected in ["1", "2"] {
        let answer = send(&cache, get("/")).now_or_never().unwrap();
        assert_eq!((answer.text(), answer.cache_status()), (expected, "tower-scale; fwd=uri-miss"));
    }
    assert_eq!(runtime.block_on(send(&cache, get("/"))).text(), "3");
}

// === bodies ===

/// Answers each call with a body that the test feeds.
fn streaming(
    fields: &'static [(&'static str, &'static str)],
) -> (Origin, tokio::sync::mpsc::UnboundedReceiver<http_body_util::channel::Sender<Bytes, BoxError>>) {
    let (senders, receiver) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::new(move |_, _| {
        let (sender, body) = Channel::<Bytes, BoxError>::new(1);
        senders.send(sender).unwrap();
        let response = fields.iter().fold(Response::builder(), |b, (name, value)| b.header(*name, *value));
        async move { Ok(response.body(Body::new(body)).unwrap()) }
    });
    (origin, receiver)
}

type Streamed = tower_scale::cache::ResponseBody<Body>;

async fn open(cache: &Cache<Origin>) -> Streamed {
    cache.clone().oneshot(get("/")).await.unwrap().into_body()
}

async fn chunk(body: &mut Streamed) -> Option<Result<Bytes, tower_scale::cache::BodyError>> {
    body.frame().await.map(|frame| frame.map(|frame| frame.into_data().unwrap()))
}

#[tokio::test]
async fn everybody_streams_a_body_of_known_length_while_it_grows() {
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=60"), ("content-length", "6")]);
    let cache = origin.cached();
    let mut leader = open(&cache).await;
    let mut sender = senders.recv().await.unwrap();
    sender.send_data("abc".into()).await.unwrap();
    assert_eq!(chunk(&mut leader).await.unwrap().unwrap(), "abc");
    let mut follower = open(&cache).await;
    assert_eq!(follower.size_hint().exact(), Some(6));
    assert_eq!(chunk(&mut follower).await.unwrap().unwrap(), "abc");
    drop(leader);
    sender.send_data("def".into()).await.unwrap();
    drop(sender);
    assert_eq!(chunk(&mut follower).await.unwrap().unwrap(), "def");
    assert!(chunk(&mut follower).await.is_none());
    assert_eq!(origin.calls(), 1);
    assert_eq!(send(&cache, get("/")).await.text(), "abcdef");
}

#[tokio::test]
async fn nobody_joins_a_response_that_is_no_longer_fresh() {
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=1"), ("content-length", "6")]);
    let cache = origin.cached();
    let _leader = open(&cache).await;
    let _sender = senders.recv().await.unwrap();
    eventually("goes alone", async || {
        let response = cache.clone().oneshot(get("/")).await.unwrap();
        let alone = response.headers()["cache-status"] == "tower-scale; fwd=stale";
        assert!(alone || response.headers()["cache-status"] == "tower-scale; fwd=uri-miss; collapsed");
        alone
    })
    .await;
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn slow_readers_of_stored_bodies_do_not_stop_storing() {
    let origin = Origin::new(|_, _| async { Ok(fresh().body(Body::from(vec![b'x'; 1 << 20])).unwrap()) });
    let cache = CacheLayer::new(MemoryStore::new(512 << 20)).layer(origin.clone());
    let mut held = Vec::new();
    for n in 0..70 {
        held.push(cache.clone().oneshot(get(&format!("/{n}"))).await.unwrap());
    }
    assert!(send(&cache, get("/69")).await.is_hit());
}

#[tokio::test]
async fn no_budget_cuts_a_body_of_known_length_short() {
    // A quarter of it for copies under way.
    let layer = CacheLayer::new(MemoryStore::new(256 << 20)).max_object_bytes(7 << 20);
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=60"), ("content-length", "100000")]);
    let cache = layer.layer(origin);
    let _leader = open(&cache).await;
    let mut sender = senders.recv().await.unwrap();
    let mut follower = open(&cache).await;
    // What is left of the budget goes to bodies that nobody reads.
    let (hog, mut hogs) = streaming(&[("cache-control", "max-age=60")]);
    let hog = layer.layer(hog);
    let mut held = Vec::new();
    'full: for n in 0..12 {
        let response = hog.clone().oneshot(get(&format!("/hog/{n}"))).await.unwrap();
        let mut hog = hogs.recv().await.unwrap();
        for _ in 0..400 {
            let piece = hog.send_data(vec![b'z'; 16 << 10].into());
            if tokio::time::timeout(Duration::from_millis(300), piece).await.is_err() {
                held.push((response, hog));
                break 'full;
            }
        }
        held.push((response, hog));
    }
    assert!(held.len() < 12, "the budget has an end");
    let feed = tokio::spawn(async move {
        for _ in 0..1000 {
            let _ = sender.send_data(vec![b'y'; 100].into()).await;
        }
    });
    let mut read = 0;
    while let Some(piece) = chunk(&mut follower).await {
        read += piece.unwrap().len();
    }
    assert_eq!(read, 100_000);
    feed.await.unwrap();
}

#[tokio::test]
async fn followers_of_an_unknown_length_wait_for_the_whole() {
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=60")]);
    let cache = origin.cached();
    let mut leader = open(&cache).await;
    let mut sender = senders.recv().await.unwrap();
    sender.send_data("abc".into()).await.unwrap();
    assert_eq!(chunk(&mut leader).await.unwrap().unwrap(), "abc");
    let follower = spawn(&cache, get("/"));
    settle().await;
    assert!(!follower.is_finished());
    drop(sender);
    assert_eq!(follower.await.unwrap().unwrap().text(), "abc");
    assert!(send(&cache, get("/")).await.is_hit());
}

#[tokio::test]
async fn a_truncated_or_broken_body_is_never_stored_nor_taken_for_whole() {
    for breaks in [false, true] {
        let (origin, mut senders) = streaming(&[("cache-control", "max-age=60"), ("content-length", "6")]);
        let cache = origin.cached();
        let mut leader = open(&cache).await;
        let mut sender = senders.recv().await.unwrap();
        let mut follower = open(&cache).await;
        sender.send_data("abc".into()).await.unwrap();
        assert_eq!(chunk(&mut follower).await.unwrap().unwrap(), "abc");
        if breaks {
            sender.abort("reset".into());
        } else {
            drop(sender);
        }
        let error = chunk(&mut follower).await.unwrap().unwrap_err();
        assert!(std::error::Error::source(&error).is_none());
        assert_eq!(chunk(&mut leader).await.unwrap().unwrap(), "abc");
        match chunk(&mut leader).await {
            // The leader's body ends as the inner one did.
            None => assert!(!breaks),
            Some(end) => assert_eq!(std::error::Error::source(&end.unwrap_err()).unwrap().to_string(), "reset"),
        }
        let again = open(&cache).await;
        assert_eq!(origin.calls(), 2);
        drop(again);
    }
}

#[tokio::test]
async fn a_body_longer_than_it_says_is_never_stored() {
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=60"), ("content-length", "3")]);
    let cache = origin.cached();
    let mut leader = open(&cache).await;
    let mut sender = senders.recv().await.unwrap();
    for text in ["abc", "def", "ghi"] {
        sender.send_data(text.into()).await.unwrap();
        assert_eq!(chunk(&mut leader).await.unwrap().unwrap(), text);
    }
    drop(open(&cache).await);
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn an_endless_body_passes_with_its_first_byte_at_once() {
    for fields in [
        &[("content-type", "Text/event-stream ;charset=utf-8")] as &'static [_],
        &[("content-type", "text/event-stream"), ("cache-control", "max-age=60")],
    ] {
        let (origin, mut senders) = streaming(fields);
        let cache = layer().ttl(Duration::from_secs(60)).layer(origin);
        let mut body = open(&cache).await;
        let mut sender = senders.recv().await.unwrap();
        for n in 0..3 {
            sender.send_data(format!("data: {n}\n\n").into()).await.unwrap();
            assert_eq!(chunk(&mut body).await.unwrap().unwrap(), format!("data: {n}\n\n"));
        }
    }
}

#[tokio::test]
async fn an_oversized_body_streams_on_with_backpressure_and_is_not_stored() {
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=60")]);
    let cache = layer().max_object_bytes(100).layer(origin.clone());
    let mut leader = open(&cache).await;
    let mut sender = senders.recv().await.unwrap();
    let mut sent = 0;
    while sender.try_send(Frame::data(Bytes::from(vec![b'x'; 30]))).is_ok() {
        sent += 1;
        settle().await;
        assert!(sent < 10, "the producer is held back once the copy is given up");
    }
    drop(spawn(&cache, get("/")));
    let mut read = 0;
    while read < sent * 30 {
        read += chunk(&mut leader).await.unwrap().unwrap().len();
    }
    assert_eq!(read, sent * 30);
    for n in 0..50u8 {
        sender.send_data(Bytes::from(vec![n; 30])).await.unwrap();
        assert_eq!(chunk(&mut leader).await.unwrap().unwrap(), vec![n; 30]);
    }
    drop(sender);
    assert!(chunk(&mut leader).await.is_none());
    let stated = Origin::new(|_, _| async { Ok(fresh().body(text(&"x".repeat(101))).unwrap()) });
    let cache = layer().max_object_bytes(100).layer(stated.clone());
    for _ in 0..2 {
        let answer = send(&cache, get("/")).await;
        assert_eq!((answer.text().len(), answer.cache_status()), (101, "tower-scale; fwd=uri-miss"));
    }
    assert_eq!(stated.calls(), 2);
}

#[tokio::test]
async fn the_rest_of_an_oversized_body_goes_when_its_client_goes() {
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=60")]);
    let cache = layer().max_object_bytes(100).layer(origin);
    let leader = open(&cache).await;
    let mut sender = senders.recv().await.unwrap();
    drop(leader);
    let fill = async { while sender.send_data(Bytes::from(vec![b'x'; 60])).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), fill).await.expect("the body is dropped");
}

#[tokio::test]
async fn trailers_reach_the_client_and_are_never_lost_in_the_store() {
    let origin = Origin::new(|_, _| async {
        let trailers = async { Some(Ok(HeaderMap::from_iter([("x-sum".parse().unwrap(), "9".parse().unwrap())]))) };
        Ok(fresh().body(Body::new(text("abc").with_trailers(trailers))).unwrap())
    });
    let cache = origin.cached();
    for n in 1..=2 {
        let collected = open(&cache).await.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-sum"], "9");
        assert_eq!(collected.to_bytes(), "abc");
        settle().await;
        assert_eq!(origin.calls(), n);
    }
}

#[tokio::test]
async fn a_body_that_panics_is_an_error_for_all_and_stored_for_none() {
    struct Bomb(bool);
    impl http_body::Body for Bomb {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            assert!(!self.0, "the body panics");
            self.0 = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }
    let origin =
        Origin::new(|_, _| async { Ok(fresh().header("content-length", "5").body(Body::new(Bomb(false))).unwrap()) });
    let cache = origin.cached();
    for n in 1..=2 {
        assert!(send(&cache, get("/")).await.body.is_err());
        assert_eq!(origin.calls(), n);
    }
}

// === the contract ===

#[tokio::test]
async fn a_hit_needs_no_ready_inner_service() {
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let layer = layer();
    send(&layer.layer(origin.clone()), get("/")).await;

    #[derive(Clone)]
    struct NeverReady(Origin);
    impl Service<Request<ReqBody>> for NeverReady {
        type Response = Response<Body>;
        type Error = Broken;
        type Future = Answering;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
            Poll::Pending
        }
        fn call(&mut self, request: Request<ReqBody>) -> Answering {
            self.0.call(request)
        }
    }
    let cache = layer.layer(NeverReady(origin.clone()));
    let hit = cache.clone().oneshot(get("/")).now_or_never().expect("a hit is ready").unwrap();
    assert!(hit.headers()["cache-status"].to_str().unwrap().contains("hit"));
    assert!(cache.oneshot(get("/other")).now_or_never().is_none());
    settle().await;
    assert_eq!(origin.calls(), 1, "never called before it is ready");
}

#[tokio::test]
async fn hostile_fields_lose_nothing() {
    let long = "x".repeat(64 << 10);
    let origin = Origin::with(&[("cache-control", "max-age=60"), ("vary", "x-long")]);
    let cache = origin.cached();
    for (name, value) in
        [("host", "a b"), ("host", &*long), ("range", "bytes=9-1"), ("x-long", &long), ("if-none-match", "\"")]
    {
        let answer = send(&cache, request(Method::GET, "/", &[(name, value)])).await;
        assert_eq!(answer.status, 200, "{name}");
    }
}
