//! Between users: what one request can do to what others get.

use std::sync::Mutex;

use http::HeaderName;
use tower_scale::cache::{CachePolicy, Purge};

use super::time::{moving, pass};
use super::*;

/// What must reach no handler whose response others may get. Each value says `evil`.
const CLAIMS: &[(&str, &str)] = &[
    ("x-forwarded-host", "evil.example"),
    ("x_forwarded_host", "evil.example"),
    ("x-forwarded-proto", "evil"),
    ("x-original-url", "/evil"),
    ("x-http-method-override", "evil"),
    ("forwarded", "host=evil.example"),
    ("cookie", "_ga=evil"),
];

fn claiming(method: Method, path: &str, more: &[(&str, &str)]) -> Request<ReqBody> {
    request(method, &format!("{path}?evil"), &[CLAIMS, more].concat())
}

/// How many claims each call has seen, the query among them.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<usize>>>);

impl Seen {
    fn origin(
        &self,
        build: impl Fn(usize, &Request<ReqBody>) -> http::response::Builder + Send + Sync + 'static,
    ) -> Origin {
        let seen = self.clone();
        Origin::answering(move |n, request| {
            let fields = request.headers().values().filter(|value| value.as_bytes().windows(4).any(|w| w == b"evil"));
            seen.0.lock().unwrap().push(fields.count() + usize::from(request.uri().to_string().contains("evil")));
            build(n, request)
        })
    }

    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn hiding() -> CacheLayer {
    moving(layer()).ignore_cookies(["_ga"]).query_parameters(["q"])
}

fn brief(tag: &str) -> http::response::Builder {
    Response::builder().header("etag", tag).extension(CacheTtl(Duration::from_millis(5)))
}

#[tokio::test(start_paused = true)]
async fn no_claim_reaches_a_handler_on_any_way_that_stores() {
    let seen = Seen::default();
    let ways: [(&str, CacheLayer, Origin, Vec<Request<ReqBody>>); 7] = [
        ("miss", hiding(), seen.origin(|_, _| fresh()), vec![claiming(Method::GET, "/", &[])]),
        (
            "alone, where the last could not be stored",
            hiding(),
            seen.origin(|_, _| Response::builder()),
            vec![claiming(Method::GET, "/", &[]), claiming(Method::GET, "/", &[])],
        ),
        (
            "alone, with credentials",
            hiding(),
            seen.origin(|_, _| fresh().header("vary", "x-forwarded-host")),
            vec![claiming(Method::GET, "/", &[("authorization", "a")])],
        ),
        (
            "validation",
            hiding(),
            seen.origin(|n, _| brief("\"a\"").status(if n == 1 { 200 } else { 304 })),
            vec![claiming(Method::GET, "/", &[]), claiming(Method::GET, "/", &[])],
        ),
        (
            "refresh",
            hiding().stale_while_revalidate(Duration::from_secs(60)),
            seen.origin(|_, _| brief("\"a\"")),
            vec![claiming(Method::GET, "/", &[]), claiming(Method::GET, "/", &[])],
        ),
        (
            "HEAD that renews",
            hiding(),
            seen.origin(|_, _| brief("\"a\"")),
            vec![claiming(Method::GET, "/", &[]), claiming(Method::HEAD, "/", &[])],
        ),
        (
            "POST whose response may be stored, and a range",
            hiding().policy(CachePolicy::rfc9111()),
            seen.origin(|_, _| fresh().header("content-location", "/")),
            vec![claiming(Method::POST, "/", &[]), claiming(Method::GET, "/r", &[("range", "bytes=0-0")])],
        ),
    ];
    for (way, layer, origin, requests) in ways {
        let (cache, calls) = (layer.layer(origin), requests.len());
        for request in requests {
            send(&cache, request).await;
            settle().await;
            pass(Duration::from_millis(10)).await;
        }
        assert_eq!(seen.take(), vec![0; calls], "{way}");
    }
}

#[tokio::test]
async fn a_request_that_fills_nothing_passes_as_it_came() {
    let seen = Seen::default();
    let cache = hiding().layer(seen.origin(|_, _| fresh()));
    for request in [
        claiming(Method::POST, "/", &[]),
        claiming(Method::OPTIONS, "/", &[]),
        claiming(Method::HEAD, "/", &[]),
        claiming(Method::GET, "/", &[("if-match", "*")]),
        claiming(Method::GET, "/", &[("range", "bytes=0-0")]),
    ] {
        let method = request.method().clone();
        send(&cache, request).await;
        assert_eq!(seen.take(), [CLAIMS.len() + 1], "{method}");
    }
}

/// A handler may read the first line only, or look for the very bytes: the commas in a comment separate nothing.
#[tokio::test]
async fn a_user_agent_is_no_list() {
    let origin = Origin::new(|_, request| {
        let agent = request.headers()["user-agent"].to_str().unwrap().to_owned();
        async move { Ok(fresh().header("vary", "user-agent").body(text(&agent)).unwrap()) }
    });
    let cache = origin.cached();
    for agent in [&["A (b,c)"][..], &["A (b, c)"], &["A (b , c)"], &["A (b", "c)"], &["A (b", "c)", ""]] {
        let lines: Vec<_> = agent.iter().map(|line| ("user-agent", *line)).collect();
        let answer = send(&cache, request(Method::GET, "/", &lines)).await;
        assert_eq!((answer.text(), answer.is_hit()), (agent[0], false), "{agent:?}");
    }
}

#[tokio::test]
async fn a_jitter_that_is_no_number_is_none() {
    for part in [f64::NAN, -1.0] {
        let cache = layer().ttl_jitter(part).layer(Origin::with(&[("cache-control", "max-age=60")]));
        send(&cache, get("/")).await;
        assert!(send(&cache, get("/")).await.is_hit(), "{part}");
    }
}

#[tokio::test]
async fn stores_of_any_size_answer() {
    for (bytes, stored) in [(0, false), (1, false), (100, false), (1 << 40, true), (u64::MAX, true)] {
        let cache = CacheLayer::new(MemoryStore::new(bytes)).layer(Origin::with(&[("cache-control", "max-age=60")]));
        send(&cache, get("/")).await;
        assert_eq!(send(&cache, get("/")).await.is_hit(), stored, "{bytes}");
    }
}

#[tokio::test]
async fn a_purge_names_the_url_as_clients_do() {
    const PATH: &str = "/a?utm=1&q=2";
    let layer = layer().query_parameters(["q"]);
    let cache = layer.layer(Origin::with(&[("cache-control", "max-age=60")]));
    for purged in [PATH, "/a?q=2", "/a?q=2&utm=9"] {
        send(&cache, get(PATH)).await;
        assert!(send(&cache, get(PATH)).await.is_hit());
        layer.handle().purge(&Purge::url(&format!("http://shop.example{purged}")).unwrap());
        assert!(!send(&cache, get(PATH)).await.is_hit(), "{purged}");
    }
    layer.handle().purge(&Purge::url("http://shop.example/a?q=3&utm=1").unwrap());
    assert!(send(&cache, get(PATH)).await.is_hit());
}

#[tokio::test]
async fn a_purge_takes_all_values_of_a_field_in_the_key_and_a_change_only_its_own() {
    let layer = layer().key_header(HeaderName::from_static("x-tenant"));
    let cache = layer.layer(Origin::with(&[("cache-control", "max-age=60")]));
    let of = |method, tenant| request(method, "/", &[("x-tenant", tenant)]);
    let hits =
        async || [send(&cache, of(Method::GET, "a")).await.is_hit(), send(&cache, of(Method::GET, "b")).await.is_hit()];
    hits().await;
    send(&cache, of(Method::POST, "a")).await;
    assert_eq!(hits().await, [false, true]);
    layer.handle().purge(&Purge::url("http://shop.example/").unwrap());
    assert_eq!(hits().await, [false, false]);
}

#[tokio::test]
async fn what_a_soft_purge_made_stale_is_said_and_counted_to_be() {
    let layer = layer().stale_while_revalidate(Duration::from_secs(60));
    let cache = layer.layer(Origin::with(&[("cache-control", "max-age=60")]));
    send(&cache, get("/")).await;
    layer.handle().soft_purge(&Purge::everything());
    let answer = send(&cache, get("/")).await;
    assert_eq!((answer.text(), answer.cache_status()), ("1", "tower-scale; hit; ttl=0"));
    assert_eq!((layer.handle().stats().hits, layer.handle().stats().stale), (0, 1));
    eventually("renewed", async || send(&cache, get("/")).await.text() == "2").await;
}

#[tokio::test]
async fn a_504_says_that_nothing_was_forwarded() {
    let policy = CachePolicy::safe().request_directives(true);
    let cache = layer().policy(policy).layer(Origin::with(&[("cache-control", "max-age=60")]));
    let answer = send(&cache, request(Method::GET, "/", &[("cache-control", "only-if-cached")])).await;
    assert_eq!(
        (answer.status, answer.cache_status()),
        (StatusCode::GATEWAY_TIMEOUT, "tower-scale; detail=only-if-cached")
    );
}

/// For ever, as far as a clock goes.
#[tokio::test]
async fn the_longest_durations_do_what_they_say() {
    const MAX: Duration = Duration::MAX;
    let minute = || layer().ttl(Duration::from_secs(60));
    for (name, layer) in [
        ("ttl", layer().ttl(MAX).ttl_jitter(0.5)),
        ("error", minute().stale_if_error(MAX)),
        ("revalidate", minute().stale_while_revalidate(MAX)),
        ("timeout", minute().fetch_timeout(MAX)),
    ] {
        let cache = layer.layer(Origin::with(&[]));
        // The second waits for the first.
        let both = join_all([send(&cache, get("/")), send(&cache, get("/"))]).await;
        assert!(both.iter().all(|answer| answer.text() == "1"), "{name}");
        assert!(send(&cache, get("/")).await.is_hit(), "{name}");
    }
    let cache = Origin::answering(|_, _| Response::builder().extension(CacheTtl(MAX)).header("etag", "\"a\"")).cached();
    send(&cache, get("/")).await;
    assert!(send(&cache, get("/")).await.is_hit(), "CacheTtl");
}
