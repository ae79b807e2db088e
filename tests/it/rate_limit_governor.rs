//! An application's own `governor::RateLimiter` decides a policy.

use std::convert::Infallible;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governor::clock::FakeRelativeClock;
use governor::middleware::{NoOpMiddleware, RateLimitingMiddleware, StateInformationMiddleware};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{self, HandleError, Head, Key, Policy, RateLimitLayer, Subject};
use tower_scale::refusal::Reason;

type Body = Full<Bytes>;
type Limiter<K, M> = RateLimiter<K, HashMapStateStore<K>, FakeRelativeClock, M>;
type Told = StateInformationMiddleware;
type Silent = NoOpMiddleware<governor::nanos::Nanos>;

fn count(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

fn limiter<K, M>(quota: Quota) -> (Arc<Limiter<K, M>>, FakeRelativeClock)
where
    K: std::hash::Hash + Eq + Clone,
    M: RateLimitingMiddleware<governor::nanos::Nanos>,
{
    let clock = FakeRelativeClock::default();
    (Arc::new(RateLimiter::new(quota, HashMapStateStore::default(), clock.clone())), clock)
}

fn address(head: &Head<'_>) -> Option<IpAddr> {
    head.client_ip()
}

fn token(head: &Head<'_>) -> Option<String> {
    Some(head.headers().get("x-token")?.to_str().ok()?.to_owned())
}

async fn send(layer: &RateLimitLayer, request: http::request::Builder) -> Response<()> {
    let inner = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::default())) });
    let response = layer.layer(inner).oneshot(request.body(Body::default()).unwrap()).await.unwrap();
    response.map(drop)
}

fn from(peer: &str) -> http::request::Builder {
    Request::builder().extension(PeerAddr(format!("{peer}:4711").parse().unwrap()))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
}

#[tokio::test]
async fn it_decides_together_with_the_application() {
    let quota = Quota::per_minute(count(3));
    let (limiter, clock) = limiter::<IpAddr, Told>(quota);
    let policy = Policy::governor(quota, limiter.clone(), address).unwrap().named("calls");
    let layer = RateLimitLayer::new(policy);

    let response = send(&layer, from("203.0.113.9")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(text(response.headers(), "ratelimit-policy"), r#""calls";q=3;w=60"#);
    assert_eq!(text(response.headers(), "ratelimit"), r#""calls";r=2;t=20"#);
    assert!(limiter.check_key(&"203.0.113.9".parse().unwrap()).is_ok());
    assert_eq!(text(send(&layer, from("203.0.113.9")).await.headers(), "ratelimit"), r#""calls";r=0;t=20"#);

    clock.advance(Duration::from_millis(500));
    let refused = send(&layer, from("203.0.113.9")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.extensions().get(), Some(&Reason::QuotaExceeded));
    assert_eq!(text(refused.headers(), "ratelimit"), r#""calls";r=0;t=20"#);
    assert_eq!(text(refused.headers(), "retry-after"), "20");
    assert_eq!(send(&layer, from("203.0.113.10")).await.status(), 200);
    clock.advance(Duration::from_secs(20));
    assert_eq!(send(&layer, from("203.0.113.9")).await.status(), 200, "who waits as told is admitted");
}

#[tokio::test]
async fn without_state_information_only_refusals_have_fields() {
    let quota = Quota::per_second(count(1));
    let (limiter, _) = limiter::<IpAddr, Silent>(quota);
    let layer = RateLimitLayer::new(Policy::governor(quota, limiter, address).unwrap());
    let admitted = send(&layer, from("203.0.113.9")).await;
    assert_eq!((admitted.status().as_u16(), admitted.headers().len()), (200, 0));
    let refused = send(&layer, from("203.0.113.9")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(text(refused.headers(), "ratelimit"), r#""default";r=0;t=1"#);
}

#[tokio::test]
async fn keys_are_the_application_s_and_a_request_without_one_is_a_stranger_s() {
    let quota = Quota::per_second(count(1));
    let (limiter, _) = limiter::<String, Told>(quota);
    let members = Policy::governor(quota, limiter.clone(), token).unwrap().named("members");
    let layer = RateLimitLayer::new(rate_limit::Quota::per_hour(5)).when(|head| token(head).is_some(), members.clone());
    assert_eq!(send(&layer, from("203.0.113.9").header("x-token", "a")).await.status(), 200);
    assert_eq!(send(&layer, from("203.0.113.9").header("x-token", "a")).await.status(), 429);
    assert_eq!(send(&layer, from("203.0.113.9").header("x-token", "b")).await.status(), 200);
    assert_eq!(send(&layer, from("203.0.113.9")).await.status(), 200, "the other policy");
    assert!(limiter.check_key(&"b".to_owned()).is_err());

    let alone = RateLimitLayer::new(members);
    let stranger = send(&alone, from("203.0.113.9")).await;
    assert_eq!(stranger.extensions().get(), Some(&Reason::PeerUnknown));
}

#[tokio::test]
async fn shadow_skip_and_costs_work() {
    let quota = Quota::per_minute(count(10));
    let cost = |head: &Head<'_>| head.headers().get("x-cost").map_or(1, |cost| cost.to_str().unwrap().parse().unwrap());
    let (told, _) = limiter::<IpAddr, Told>(quota);
    let policy = Policy::governor(quota, told, address).unwrap();
    let layer = RateLimitLayer::new(policy.clone()).cost(cost).skip(|head| head.headers().contains_key("x-skip"));
    let response = send(&layer, from("203.0.113.9").header("x-cost", "7")).await;
    assert_eq!(text(response.headers(), "ratelimit"), r#""default";r=3;t=6"#);
    let refused = send(&layer, from("203.0.113.9").header("x-cost", "4")).await;
    assert_eq!((refused.status().as_u16(), text(refused.headers(), "retry-after")), (429, "6"));
    assert_eq!(send(&layer, from("203.0.113.9").header("x-skip", "1")).await.headers().len(), 0);
    assert_eq!(send(&layer, from("203.0.113.9").header("x-cost", "3")).await.status(), 200);

    let shadow = RateLimitLayer::new(policy).shadow();
    for _ in 0..20 {
        assert_eq!(send(&shadow, from("203.0.113.10")).await.status(), 200);
    }
}

/// governor 0.10.4 admits 213 505 at once under a quota of 10 per 10 days: the product wraps around.
#[tokio::test]
async fn no_cost_is_so_high_that_it_passes() {
    let quota = Quota::with_period(Duration::from_secs(86_400)).unwrap().allow_burst(count(10));
    for cost in [11, 213_505, 213_506, u32::MAX] {
        let (limiter, _) = limiter::<IpAddr, Told>(quota);
        let policy = Policy::governor(quota, limiter, address).unwrap();
        let layer = RateLimitLayer::new(policy).cost(move |_| cost);
        let response = send(&layer, from("203.0.113.9")).await;
        assert_eq!(
            text(response.headers(), "ratelimit"),
            r#""default";r=0;t=86400"#,
            "{cost} are charged as the burst"
        );
        assert_eq!(send(&layer, from("203.0.113.9")).await.status(), 429);
    }
    // Also where the quota is not the limiter's.
    let (limiter, _) = limiter::<IpAddr, Told>(quota);
    let layer = RateLimitLayer::new(Policy::governor(Quota::per_hour(count(100)), limiter, address).unwrap());
    let layer = layer.cost(|_| 50);
    assert_eq!(send(&layer, from("203.0.113.9")).await.status(), 200);
    assert_eq!(send(&layer, from("203.0.113.9")).await.status(), 429);
}

fn panic_of<T>(make: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(make)).err().expect("a panic");
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref().map(|text: &&str| (*text).to_owned()))
        .unwrap()
}

#[tokio::test]
async fn what_it_cannot_do_is_refused() {
    let quota = Quota::per_minute(count(3));
    let (limiter, _) = limiter::<IpAddr, Told>(quota);
    let policy = Policy::governor(quota, limiter.clone(), address).unwrap();
    let layer = RateLimitLayer::new(policy.clone());

    let apply = |layer: RateLimitLayer| {
        layer.layer(service_fn(|_: Request<Body>| async { Ok::<Response<Body>, ()>(Response::default()) }))
    };
    let counts = layer.clone().count_when(|outcome| outcome.status().is_some());
    assert!(panic_of(|| apply(counts)).contains("count_when"));
    assert!(panic_of(|| apply(layer.clone().refund_abandoned())).contains("refund_abandoned"));
    assert!(panic_of(|| policy.clone().key(Key::global())).contains("governor"));
    assert!(
        panic_of(|| policy.clone().ipv6_tier(48, rate_limit::Quota::per_minute(9).named("site"))).contains("governor")
    );
    let other = RateLimitLayer::new(rate_limit::Quota::per_hour(1))
        .when(|_| true, policy.clone().named("calls"))
        .refund_abandoned();
    assert!(panic_of(|| apply(other)).contains("refund_abandoned"), "also as one of several policies");

    let (handle, subject) = (layer.handle(), Subject::ip("203.0.113.9".parse().unwrap()));
    assert!(matches!(handle.peek(&subject).await, Err(HandleError::Governor)));
    assert!(matches!(handle.penalise(&subject, count(1)).await, Err(HandleError::Governor)));
    assert!(matches!(handle.reward(&subject, count(1)).await, Err(HandleError::Governor)));
    assert!(matches!(handle.block(&subject, Duration::from_secs(1)).await, Err(HandleError::Governor)));
    assert!(matches!(handle.reset(&subject).await, Err(HandleError::Governor)));
    let set = handle.set_quota("default", rate_limit::Quota::per_hour(1)).await;
    assert!(matches!(set, Err(HandleError::Governor)));

    let too_fast = Quota::per_second(count(70_000));
    assert!(Policy::governor(too_fast, limiter, address).is_err());
}

#[tokio::test]
async fn not_together_with_redis() {
    let quota = Quota::per_minute(count(3));
    let (limiter, _) = limiter::<IpAddr, Told>(quota);
    let policy = Policy::governor(quota, limiter, address).unwrap();
    // Nobody listens there; nobody is asked.
    let redis = tower_scale::redis::Redis::connect("redis://127.0.0.1:1").unwrap();
    let layer = RateLimitLayer::new(policy).redis(redis);
    assert!(panic_of(|| layer.handle()).contains("two layers"));
}
