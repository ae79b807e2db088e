//! What a handle sees and changes: here in process.

mod redis;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{
    ConfigError, HandleError, Key, Policy, Quota, RateLimitHandle, RateLimitLayer, Secret, Standing, Subject,
};
use tower_scale::refusal::Reason;

type Body = Full<Bytes>;

const CLIENT: &str = "203.0.113.9";
const OTHER: &str = "203.0.113.10";
const SECOND: Duration = Duration::from_secs(1);

fn request(ip: &str) -> Request<Body> {
    let ip = ip.parse().expect("an address");
    Request::builder().extension(PeerAddr(SocketAddr::new(ip, 4711))).body(Body::default()).unwrap()
}

fn subject(ip: &str) -> Subject {
    Subject::ip(ip.parse().expect("an address"))
}

fn cost(cost: u32) -> NonZeroU32 {
    NonZeroU32::new(cost).unwrap()
}

/// One request, through a service of its own: what is counted is in the layer.
async fn send(layer: &RateLimitLayer, request: Request<Body>) -> Response<()> {
    let handler = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::default())) });
    layer.layer(handler).oneshot(request).await.unwrap().map(drop)
}

async fn is_admitted(layer: &RateLimitLayer, ip: &str) -> bool {
    let response = send(layer, request(ip)).await;
    assert!([200, 429].contains(&response.status().as_u16()), "{response:?}");
    response.status() == 200
}

/// How many of so many requests, one after the other, are admitted.
async fn admitted(layer: &RateLimitLayer, ip: &str, requests: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..requests {
        admitted += usize::from(is_admitted(layer, ip).await);
    }
    admitted
}

/// Stands still until it is moved.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn of(&self, policy: impl Into<Policy>) -> RateLimitLayer {
        let clock = self.0.clone();
        RateLimitLayer::new(policy).clock(move || Duration::from_nanos(clock.load(Ordering::SeqCst)))
    }

    fn advance(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos().try_into().unwrap(), Ordering::SeqCst);
    }
}

async fn remaining(handle: &RateLimitHandle, ip: &str) -> u32 {
    handle.peek(&subject(ip)).await.unwrap().remaining
}

#[tokio::test]
async fn a_look_charges_nothing() {
    let clock = Clock::default();
    let layer = clock.of(Quota::per_minute(60).burst(3));
    let handle = layer.handle();
    for left in [3, 2, 1] {
        for _ in 0..3 {
            let Standing { admitted, blocked, retry_after, remaining, .. } =
                handle.peek(&subject(CLIENT)).await.unwrap();
            assert_eq!((admitted, blocked, retry_after, remaining), (true, false, Duration::ZERO, left));
        }
        assert!(is_admitted(&layer, CLIENT).await);
    }
    let standing = handle.peek(&subject(CLIENT)).await.unwrap();
    assert!(!standing.admitted && !standing.blocked && standing.remaining == 0);
    assert!(standing.retry_after > SECOND - Duration::from_millis(1) && standing.retry_after <= SECOND, "{standing:?}");
    clock.advance(standing.retry_after);
    assert!(is_admitted(&layer, CLIENT).await && !is_admitted(&layer, CLIENT).await);
}

#[tokio::test]
async fn penalties_and_rewards_are_like_requests_made_and_not_made() {
    let clock = Clock::default();
    let layer = clock.of([Quota::per_minute(60).burst(10).named("fast"), Quota::per_day(100)]);
    let handle = layer.handle();
    handle.penalise(&subject(CLIENT), cost(8)).await.unwrap();
    assert_eq!((remaining(&handle, CLIENT).await, remaining(&handle, OTHER).await), (2, 10));
    assert_eq!(admitted(&layer, CLIENT, 5).await, 2);
    handle.reward(&subject(CLIENT), cost(3)).await.unwrap();
    assert_eq!(admitted(&layer, CLIENT, 5).await, 3);
    handle.reward(&subject(CLIENT), cost(u32::MAX)).await.unwrap();
    assert_eq!(remaining(&handle, CLIENT).await, 10, "nobody has more than the burst");
    handle.penalise(&subject(CLIENT), cost(u32::MAX)).await.unwrap();
    let standing = handle.peek(&subject(CLIENT)).await.unwrap();
    assert!(standing.remaining == 0 && standing.retry_after <= Duration::from_secs(24 * 36), "one burst at most");
    assert_eq!(admitted(&layer, OTHER, 12).await, 10);
}

#[tokio::test]
async fn a_block_holds_for_as_long_as_it_says() {
    let clock = Clock::default();
    let layer = clock.of(Quota::per_second(5));
    let handle = layer.handle();
    handle.block(&subject(CLIENT), 10 * SECOND).await.unwrap();
    let refused = send(&layer, request(CLIENT)).await;
    assert_eq!((refused.status().as_u16(), refused.extensions().get()), (429, Some(&Reason::Blocked)));
    assert_eq!(refused.headers()["retry-after"], "10");
    let standing = handle.peek(&subject(CLIENT)).await.unwrap();
    assert!(standing.blocked && !standing.admitted && standing.retry_after <= 10 * SECOND, "{standing:?}");
    assert!(is_admitted(&layer, OTHER).await);

    clock.advance(9 * SECOND);
    assert!(!is_admitted(&layer, CLIENT).await);
    clock.advance(SECOND);
    assert_eq!(admitted(&layer, CLIENT, 9).await, 5, "its quota was untouched meanwhile");

    handle.block(&subject(CLIENT), 60 * SECOND).await.unwrap();
    handle.block(&subject(CLIENT), 3 * SECOND).await.unwrap();
    clock.advance(3 * SECOND);
    assert!(is_admitted(&layer, CLIENT).await, "the second has replaced the first");
    handle.block(&subject(CLIENT), Duration::MAX).await.unwrap();
    assert!(!is_admitted(&layer, CLIENT).await);
    handle.block(&subject(CLIENT), Duration::ZERO).await.unwrap();
    assert!(is_admitted(&layer, CLIENT).await);
}

#[tokio::test]
async fn a_reset_forgets_debts_and_blocks_of_one_client_only() {
    let clock = Clock::default();
    let layer = clock.of(Policy::new(Quota::per_hour(3)).ipv6_tier(48, Quota::per_hour(5).named("site")));
    let handle = layer.handle();
    for ip in [CLIENT, OTHER, "2001:db8:1:1::1"] {
        assert_eq!(admitted(&layer, ip, 5).await, 3);
    }
    handle.block(&subject(CLIENT), 60 * SECOND).await.unwrap();
    handle.reset(&subject(CLIENT)).await.unwrap();
    assert_eq!(admitted(&layer, CLIENT, 5).await, 3);
    assert!(!is_admitted(&layer, OTHER).await);
    handle.reset(&subject("2001:db8:1:1::ffff")).await.unwrap();
    assert_eq!(admitted(&layer, "2001:db8:1:1::2", 5).await, 2, "what the site owes stays");
}

#[tokio::test]
async fn a_quota_is_replaced_and_debts_stay() {
    let clock = Clock::default();
    let layer = clock.of(Quota::per_minute(10));
    let handle = layer.handle();
    assert_eq!(admitted(&layer, CLIENT, 12).await, 10);
    clock.advance(30 * SECOND);
    // 30 s of debt are left: half of either burst.
    handle.set_quota("default", Quota::per_minute(20)).await.unwrap();
    assert_eq!((remaining(&handle, CLIENT).await, remaining(&handle, OTHER).await), (10, 20));
    let response = send(&layer, request(OTHER)).await;
    assert_eq!(response.headers()["ratelimit-policy"], r#""default";q=20;w=60"#);
    assert_eq!(response.headers()["ratelimit"], r#""default";r=19;t=3"#);

    handle.set_quota("default", Quota::per_minute(20).burst(5).named("another")).await.unwrap();
    assert_eq!(remaining(&handle, CLIENT).await, 0, "nobody owes more than the burst");
    clock.advance(3 * SECOND);
    assert_eq!(remaining(&handle, CLIENT).await, 1);

    let unknown = handle.set_quota("another", Quota::per_minute(1)).await.unwrap_err();
    assert!(matches!(&unknown, HandleError::Config(ConfigError::NoSuchQuota(name)) if name == "another"), "{unknown}");
}

#[tokio::test]
async fn subjects_are_named_as_the_key_tells_clients_apart() {
    let secret = || Secret::random();
    let by_header =
        Policy::new(Quota::per_hour(2)).named("member").key(Key::header("x-key".parse().unwrap(), secret()));
    let everybody = Policy::new(Quota::per_hour(2)).named("all").key(Key::global());
    let layer = RateLimitLayer::new(Quota::per_hour(2))
        .when(|head| head.headers().contains_key("x-key"), by_header)
        .when(|head| head.uri().path() == "/all", everybody);
    let with_key = |key: &'static str| {
        let mut request = request(CLIENT);
        request.headers_mut().insert("x-key", HeaderValue::from_static(key));
        request
    };
    let (ip, member, all) = (layer.handle(), layer.handle_of("member").unwrap(), layer.handle_of("all").unwrap());
    assert!(layer.handle_of("nobody").is_none());

    assert_eq!(send(&layer, with_key("a")).await.status(), 200);
    assert_eq!(member.peek(&Subject::key("a")).await.unwrap().remaining, 1);
    assert_eq!(member.peek(&Subject::key("b")).await.unwrap().remaining, 2);
    member.penalise(&Subject::key("b"), cost(2)).await.unwrap();
    assert_eq!(send(&layer, with_key("b")).await.status(), 429);
    all.penalise(&Subject::everybody(), cost(1)).await.unwrap();
    assert_eq!(all.peek(&Subject::everybody()).await.unwrap().remaining, 1);
    assert_eq!(remaining(&ip, CLIENT).await, 2, "policies count apart");

    for (handle, wrong) in [
        (&ip, Subject::key("a")),
        (&ip, Subject::everybody()),
        (&member, Subject::everybody()),
        (&all, subject(CLIENT)),
        (&all, Subject::key("a")),
    ] {
        assert!(matches!(handle.peek(&wrong).await, Err(HandleError::Subject)), "{wrong:?}");
        assert!(matches!(handle.block(&wrong, SECOND).await, Err(HandleError::Subject)), "{wrong:?}");
    }
    assert_eq!(format!("{:?}", Subject::key("hunter2")), "Subject(key)");
}

#[test]
fn a_handle_goes_anywhere() {
    fn anywhere<T: Send + Sync + Clone + std::fmt::Debug + 'static>(_: &T) {}
    fn sendable<T: Send>(_: T) {}
    let layer = RateLimitLayer::new(Quota::per_hour(1));
    let handle = layer.handle();
    anywhere(&handle);
    sendable(handle.set_quota("default", Quota::per_hour(2)));
    sendable(handle.block(&subject(CLIENT), SECOND));
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    error::<HandleError>();
}
