//! Where the limiter stands among other layers, as `docs/ordering.md` says.

use http::HeaderValue;
use tower::ServiceBuilder;
use tower_http::cors::CorsLayer;
use tower_scale::cache::{CacheLayer, MemoryStore};
use tower_scale::client_ip::ClientIpLayer;
use tower_scale::rate_limit::{Quota, RateLimitLayer};

use super::*;

fn page() -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send {
    service_fn(|_: Request<Body>| async {
        Ok(Response::builder().header("cache-control", "max-age=60").body(Body::from("page")).unwrap())
    })
}

#[test]
fn a_browser_can_read_a_refusal_inside_cors() {
    let origin = HeaderValue::from_static("https://shop.example");
    let cors = CorsLayer::new().allow_origin(origin.clone()).expose_headers([
        http::header::RETRY_AFTER,
        "ratelimit".parse().unwrap(),
        "ratelimit-policy".parse().unwrap(),
    ]);
    let limit = RateLimitLayer::new(Quota::per_hour(1));
    let service = ServiceBuilder::new().layer(cors).layer(limit).service(page());
    let ask = |method: http::Method| {
        let mut request = with_field(HOME, "origin", &["https://shop.example"]);
        if method == http::Method::OPTIONS {
            request.headers_mut().insert("access-control-request-method", HeaderValue::from_static("GET"));
        }
        *request.method_mut() = method;
        service.clone().oneshot(request).now_or_never().unwrap().unwrap()
    };
    for _ in 0..3 {
        assert_eq!(ask(http::Method::OPTIONS).status(), 200, "a preflight never reaches the limiter");
    }
    for expected in [200, 429] {
        let response = ask(http::Method::GET);
        assert_eq!(response.status(), expected);
        assert_eq!(response.headers()["access-control-allow-origin"], origin);
        assert!(response.headers()["access-control-expose-headers"].to_str().unwrap().contains("retry-after"));
        assert!(response.headers().contains_key("ratelimit"));
    }
}

#[tokio::test]
async fn outside_the_cache_a_hit_counts_and_carries_nobody_elses_fields() {
    let service = ServiceBuilder::new()
        .layer(ClientIpLayer::new())
        .layer(RateLimitLayer::new(Quota::per_hour(3)))
        .layer(CacheLayer::new(MemoryStore::new(1 << 20)))
        .service(page());
    let ask = async |ip: &str| {
        let mut request = with_field(ip, "host", &["shop.example"]);
        *request.uri_mut() = "/page".parse().unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        http_body_util::BodyExt::collect(body).await.unwrap();
        let lines: Vec<_> = parts.headers.get_all("ratelimit").iter().map(|line| line.to_str().unwrap()).collect();
        (
            parts.status.as_u16(),
            parts.headers.get("cache-status").is_some_and(|s| s.to_str().unwrap().contains("; hit")),
            lines.join(" and "),
        )
    };
    assert_eq!(ask(HOME).await, (200, false, r#""default";r=2;t=1200"#.into()));
    assert_eq!(ask(HOME).await, (200, true, r#""default";r=1;t=1200"#.into()));
    assert_eq!(ask(AWAY).await, (200, true, r#""default";r=2;t=1200"#.into()));
    assert_eq!(ask(HOME).await, (200, true, r#""default";r=0;t=1200"#.into()));
    assert_eq!(ask(HOME).await, (429, false, r#""default";r=0;t=1200"#.into()));
}

/// Two limiters, one inside the other: both fields stand there, each as its own line.
#[test]
fn two_limits_are_two_lines() {
    let [outer, inner] =
        [("all", 10), ("login", 2)].map(|(name, count)| RateLimitLayer::new(Quota::per_hour(count).named(name)));
    let service = ServiceBuilder::new().layer(outer).layer(inner).service(page());
    let ask = || service.clone().oneshot(request(HOME)).now_or_never().unwrap().unwrap();
    let lines = |response: &Response<_>| -> Vec<String> {
        response.headers().get_all("ratelimit").iter().map(|line| line.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(lines(&ask().map(drop)), [r#""login";r=1;t=1800"#, r#""all";r=9;t=360"#]);
    ask();
    let refused = ask();
    assert_eq!(refused.status(), 429);
    assert_eq!(lines(&refused.map(drop)), [r#""login";r=0;t=1800"#, r#""all";r=7;t=360"#]);
}
