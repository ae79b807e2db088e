//! What the cache keeps from handlers, end to end: published ways to poison it, and compression on either side.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::OriginalUri;
use axum::routing::get;
use http::{HeaderMap, HeaderName, Method, Request, Response, Uri};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt};
use tower_http::compression::CompressionLayer;
use tower_scale::cache::{CacheLayer, MemoryStore};
use tower_scale::client_ip::{ClientIpLayer, PeerAddr};

fn layer() -> CacheLayer {
    CacheLayer::new(MemoryStore::new(1 << 20))
}

fn request(method: Method, uri: &str, fields: &[(&str, &str)]) -> Request<Body> {
    let peer = PeerAddr("192.0.2.1:1".parse().unwrap());
    let request = Request::builder().method(method).uri(uri).extension(peer);
    fields.iter().fold(request, |r, (name, value)| r.header(*name, *value)).body(Body::empty()).unwrap()
}

/// Tells all that it was told.
fn mirror() -> Router {
    let mirror = |method: Method, uri: Uri, OriginalUri(original): OriginalUri, headers: HeaderMap| async move {
        ([("cache-control", "max-age=60")], format!("{method} {uri} {original} {headers:?}"))
    };
    Router::new().route("/{*path}", get(mirror).post(mirror))
}

async fn body<S>(service: &S, request: Request<Body>) -> String
where
    S: Service<Request<Body>, Error = Infallible> + Clone,
    S::Response: IntoBody,
{
    service.clone().oneshot(request).await.unwrap().text().await
}

trait IntoBody {
    async fn text(self) -> String;
}

impl<B: http_body::Body> IntoBody for Response<B>
where
    B::Error: std::fmt::Debug,
{
    async fn text(self) -> String {
        String::from_utf8(self.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }
}

/// From James Kettle's "Practical Web Cache Poisoning" and "Web Cache Entanglement", and the CPDoS paper.
const POISONS: [(&str, &str); 13] = [
    ("x-forwarded-host", "evil.example"),
    ("x-host", "evil.example"),
    ("x-forwarded-server", "evil.example"),
    ("x-http-host-override", "evil.example"),
    ("forwarded", "host=evil.example"),
    ("x-forwarded-scheme", "evil"),
    ("x-forwarded-proto", "evil"),
    ("x-forwarded-port", "666"),
    ("x-forwarded-prefix", "/evil"),
    ("x-original-url", "/evil"),
    ("x-rewrite-url", "/evil"),
    ("x-http-method-override", "EVIL"),
    ("x_forwarded_host", "evil.example"),
];

#[tokio::test]
async fn nobody_sees_what_another_sent_in_a_field_that_is_not_in_the_key() {
    let outside = ClientIpLayer::new().origin("https://shop.example".parse().unwrap());
    for pinned in [false, true] {
        for poison in POISONS {
            let plain = layer().layer(mirror());
            let behind = outside.layer(layer().layer(mirror()));
            let ask = async |fields: &[(&str, &str)]| {
                let request = request(Method::GET, "/page", fields);
                if pinned { body(&behind, request).await } else { body(&plain, request).await }
            };
            let poisoned = ask(&[("host", "shop.example"), poison]).await;
            assert!(!poisoned.contains(poison.1), "{poison:?}: {poisoned}");
            assert_eq!(ask(&[("host", "shop.example")]).await, poisoned);
        }
    }
}

#[tokio::test]
async fn whoever_cannot_fill_is_passed_as_it_came() {
    let service = layer().ignore_cookies(["_ga"]).query_parameters(["id"]).layer(mirror());
    let fields = [("host", "A:80"), ("x-original-url", "/admin"), ("cookie", "_ga=1"), ("accept-encoding", "br;q=0.1")];
    let seen = body(&service, request(Method::POST, "/page?utm=1", &fields)).await;
    for part in ["/page?utm=1", "A:80", "/admin", "_ga=1", "br;q=0.1"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
}

#[tokio::test]
async fn what_the_key_ignores_reaches_no_handler_not_even_in_the_original_url() {
    let layer = || layer().ignore_cookies(["_ga"]).query_parameters(["id"]);
    ignores(layer().layer(Router::new().nest("/shop", mirror()))).await;
    ignores(Router::new().nest("/shop", mirror().layer(layer()))).await;
}

async fn ignores<S>(service: S)
where
    S: Service<Request<Body>, Error = Infallible> + Clone,
    S::Response: IntoBody,
{
    let ask = async |uri: &str, cookie: &str| {
        body(&service, request(Method::GET, uri, &[("host", "a"), ("cookie", cookie)])).await
    };
    let first = ask("/shop/page?utm=evil;id=2&id=1&callback=evil", "_ga=evil").await;
    assert!(!first.contains("evil") && first.contains("/page?id=1 /shop/page?id=1"), "{first}");
    assert_eq!(ask("/shop/page?id=1", "_ga=2").await, first, "shared: no credentials are left");
    assert_ne!(ask("/shop/page?id=2", "").await, first);
    assert!(ask("/shop/page?id=1", "_ga=1; session=1").await.contains("session=1"));
}

#[tokio::test]
async fn a_field_in_the_key_reaches_the_handler_and_only_its_own_clients() {
    let service = layer().key_header(HeaderName::from_static("x-forwarded-prefix")).layer(mirror());
    let ask = async |prefix: &str| {
        body(&service, request(Method::GET, "/page", &[("host", "a"), ("x-forwarded-prefix", prefix)])).await
    };
    let (evil, good) = (ask("/evil").await, ask("/app").await);
    assert!(evil.contains("/evil") && good.contains("/app") && !good.contains("evil"));
    assert_eq!(ask("/evil").await, evil);
}

fn page(calls: &Arc<AtomicUsize>) -> Router {
    let calls = calls.clone();
    Router::new().route(
        "/page",
        get(|| async move {
            calls.fetch_add(1, Ordering::SeqCst);
            ([("cache-control", "max-age=60")], "x".repeat(1000))
        }),
    )
}

const BROWSERS: [(&str, bool); 6] = [
    ("gzip, deflate, br, zstd", true),
    ("gzip,deflate,br,zstd", true),
    ("zstd;q=0.5, GZIP;q=1.0,br , deflate", true),
    ("identity", false),
    ("gzip;q=0", false),
    ("", false),
];

async fn is_compressed<S, B>(service: &S, accepted: &str) -> bool
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone,
    B: http_body::Body,
    B::Error: std::fmt::Debug,
{
    let request = request(Method::GET, "/page", &[("host", "a"), ("accept-encoding", accepted)]);
    let response = service.clone().oneshot(request).await.unwrap();
    let coded = response.headers().get("content-encoding").is_some_and(|coding| coding == "gzip");
    let length = response.into_body().collect().await.unwrap().to_bytes().len();
    assert_eq!(coded, length < 1000, "{accepted}");
    coded
}

#[tokio::test]
async fn with_compression_inside_there_is_a_variant_for_each_set_of_codings() {
    let calls = Arc::default();
    let service = layer().layer(CompressionLayer::new().layer(page(&calls)));
    for _ in 0..2 {
        for (accepted, compressed) in BROWSERS {
            assert_eq!(is_compressed(&service, accepted).await, compressed, "{accepted}");
        }
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2, "all four, and none");
}

#[tokio::test]
async fn with_compression_outside_one_plain_body_serves_all() {
    let calls = Arc::default();
    let service = CompressionLayer::new().layer(layer().layer(page(&calls)));
    for (accepted, compressed) in BROWSERS {
        assert_eq!(is_compressed(&service, accepted).await, compressed, "{accepted}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
