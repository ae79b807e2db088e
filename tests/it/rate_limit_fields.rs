//! What responses state of limits, in every style, through the whole layer.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use sfv::{Dictionary, List, ListEntry, Parser};
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{Fields, Policy, Quota, RateLimitLayer};

type Body = Full<Bytes>;

async fn ask(layer: &RateLimitLayer, peer: &str) -> (u16, HeaderMap) {
    let inner = service_fn(|_: Request<Body>| async {
        let response = Response::builder().header("ratelimit", "\"inner\";r=1").header("x-ratelimit-limit", "7");
        Ok::<_, Infallible>(response.body(Body::default()).unwrap())
    });
    let peer = PeerAddr(format!("{peer}:4711").parse().unwrap());
    let request = Request::builder().extension(peer).body(Body::default()).unwrap();
    let (parts, _) = layer.layer(inner).oneshot(request).await.unwrap().into_parts();
    (parts.status.as_u16(), parts.headers)
}

/// The last line of a field: the layer's, where the inner service has one too.
fn last<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get_all(name).iter().next_back().unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
}

fn quotas() -> Policy {
    Policy::new([Quota::per_second(2).named("burst"), Quota::per_hour(3)])
        .ipv6_tier(48, Quota::per_minute(100).named("site"))
}

/// By the time of the test's runtime, which is paused.
fn paused(layer: RateLimitLayer) -> RateLimitLayer {
    let start = tokio::time::Instant::now();
    layer.clock(move || start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn every_style_on_the_way_to_a_refusal() {
    for (style, policy, first, refused) in [
        (
            Fields::Draft,
            Some(r#""burst";q=2;w=1, "hour";q=3;w=3600, "site";q=100;w=60"#),
            &[("ratelimit", r#""burst";r=1;t=1, "hour";r=2;t=1200"#)][..],
            &[("ratelimit", r#""burst";r=2;t=1, "hour";r=0;t=1198"#)][..],
        ),
        (
            Fields::Draft7,
            Some("2;w=1, 3;w=3600, 100;w=60"),
            &[("ratelimit", "limit=2, remaining=1, reset=1")],
            &[("ratelimit", "limit=3, remaining=0, reset=1198")],
        ),
        (
            Fields::Draft6,
            Some("2;w=1, 3;w=3600, 100;w=60"),
            &[("ratelimit-limit", "2"), ("ratelimit-remaining", "1"), ("ratelimit-reset", "1")],
            &[("ratelimit-limit", "3"), ("ratelimit-remaining", "0"), ("ratelimit-reset", "1198")],
        ),
        (
            Fields::Legacy,
            None,
            &[("x-ratelimit-limit", "2"), ("x-ratelimit-remaining", "1")],
            &[("x-ratelimit-limit", "3"), ("x-ratelimit-remaining", "0")],
        ),
    ] {
        let layer = paused(RateLimitLayer::new(quotas()).fields(style));
        let (status, headers) = ask(&layer, "203.0.113.9").await;
        assert_eq!(status, 200);
        assert_eq!(headers.get("ratelimit-policy").map(|value| value.to_str().unwrap()), policy, "{style:?}");
        for (name, value) in first {
            assert_eq!(last(&headers, name), *value, "{style:?}");
        }
        assert_eq!(headers["ratelimit"], "\"inner\";r=1", "{style:?}: the inner service's comes first");
        assert_eq!(headers["x-ratelimit-limit"], "7");

        for _ in 0..2 {
            tokio::time::advance(Duration::from_millis(900)).await;
            assert_eq!(ask(&layer, "203.0.113.9").await.0, 200);
        }
        tokio::time::advance(Duration::from_millis(900)).await;
        let (status, headers) = ask(&layer, "203.0.113.9").await;
        assert_eq!((status, last(&headers, "retry-after")), (429, "1198"));
        for (name, value) in refused {
            assert_eq!(last(&headers, name), *value, "{style:?}");
        }
    }
}

#[tokio::test]
async fn no_style_adds_nothing_but_retry_after() {
    let layer = RateLimitLayer::new(Quota::per_hour(1)).fields(Fields::None);
    let (_, headers) = ask(&layer, "203.0.113.9").await;
    assert_eq!(headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["ratelimit", "x-ratelimit-limit"]);
    let (status, headers) = ask(&layer, "203.0.113.9").await;
    assert_eq!((status, last(&headers, "retry-after")), (429, "3600"));
    assert!(!headers.contains_key("ratelimit") && !headers.contains_key("ratelimit-policy"));
}

#[tokio::test]
async fn a_legacy_reset_is_a_unix_time_at_which_the_client_is_admitted() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let layer = RateLimitLayer::new(Quota::per_minute(30).burst(1)).fields(Fields::Legacy);
    assert_eq!(ask(&layer, "203.0.113.9").await.0, 200);
    let (status, headers) = ask(&layer, "203.0.113.9").await;
    assert_eq!(status, 429);
    let reset = Duration::from_secs(last(&headers, "x-ratelimit-reset").parse().unwrap());
    assert!(reset <= now() + Duration::from_secs(3));
    tokio::time::sleep(reset.saturating_sub(now())).await;
    assert_eq!(ask(&layer, "203.0.113.9").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn an_independent_parser_reads_all_of_it() {
    let draft = paused(RateLimitLayer::new(quotas()));
    let draft_7 = paused(RateLimitLayer::new(quotas()).fields(Fields::Draft7));
    for request in 0..20 {
        tokio::time::advance(Duration::from_millis(request * 37)).await;
        for peer in ["203.0.113.9", "[2001:db8::1]"] {
            let (status, headers) = ask(&draft, peer).await;
            let names = |name: &str| -> Vec<String> {
                let list: List = Parser::new(last(&headers, name)).parse().unwrap();
                list.iter()
                    .map(|entry| match entry {
                        ListEntry::Item(item) => item.bare_item.as_string().unwrap().to_string(),
                        ListEntry::InnerList(_) => panic!("an inner list"),
                    })
                    .collect()
            };
            assert_eq!(names("ratelimit-policy"), ["burst", "hour", "site"]);
            assert_eq!(names("ratelimit"), ["burst", "hour", "site"][..if peer.starts_with('[') { 3 } else { 2 }]);
            if status == 429 {
                let wait: i64 = last(&headers, "retry-after").parse().unwrap();
                let list: List = Parser::new(last(&headers, "ratelimit")).parse().unwrap();
                let waits = list.iter().map(|entry| match entry {
                    ListEntry::Item(item) => i64::from(item.params.get("t").unwrap().as_integer().unwrap()),
                    ListEntry::InnerList(_) => panic!("an inner list"),
                });
                assert_eq!(waits.max(), Some(wait), "the quota that refuses says what Retry-After says");
            }
            let (_, headers) = ask(&draft_7, peer).await;
            let standing: Dictionary = Parser::new(last(&headers, "ratelimit")).parse().unwrap();
            assert_eq!(standing.len(), 3);
            Parser::new(last(&headers, "ratelimit-policy")).parse::<List>().unwrap();
        }
    }
}
