//! Limits that count only some outcomes: charged before, given back at most once.

use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};

use futures_util::future::join_all;
use futures_util::task::noop_waker;
use tokio::sync::Semaphore;
use tower_scale::rate_limit::{Fallback, Quota, RateLimitLayer, Subject};

use super::*;

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Answered(u16),
    Failed,
    Panicked,
    /// The client leaves before it has ever been waited for, while the inner service is not ready, or during its call.
    Unpolled,
    Unready,
    Cancelled,
}

const ENDS: [End; 7] =
    [End::Answered(200), End::Answered(401), End::Failed, End::Panicked, End::Unpolled, End::Unready, End::Cancelled];

#[derive(Clone)]
struct Ending(End);

impl Service<Request<Body>> for Ending {
    type Response = Response<Body>;
    type Error = &'static str;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, &'static str>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        if self.0 == End::Unready { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let end = self.0;
        Box::pin(async move {
            match end {
                End::Answered(status) => Ok(Response::builder().status(status).body(Body::empty()).unwrap()),
                End::Failed => Err("failed"),
                End::Panicked => panic!("on purpose"),
                End::Unpolled => unreachable!("it was polled"),
                End::Unready => unreachable!("it was not ready"),
                End::Cancelled => pending().await,
            }
        })
    }
}

/// Sends one request, and ends it.
fn send_to_end(layer: &RateLimitLayer, end: End) {
    let call = layer.layer(Ending(end)).call(request(HOME));
    if end == End::Unpolled {
        return;
    }
    let polled = catch_unwind(AssertUnwindSafe(|| {
        pin!(call).poll(&mut Context::from_waker(&noop_waker())).map_ok(|response| response.status().as_u16())
    }));
    match end {
        End::Answered(status) => assert_eq!(polled.unwrap(), Poll::Ready(Ok(status))),
        End::Failed => assert_eq!(polled.unwrap(), Poll::Ready(Err("failed"))),
        End::Panicked => assert!(polled.is_err()),
        End::Unpolled | End::Unready | End::Cancelled => assert!(polled.unwrap().is_pending()),
    }
}

fn left(layer: &RateLimitLayer) -> u32 {
    let handle = layer.handle();
    let standing = handle.peek(&Subject::ip(HOME.parse().unwrap())).now_or_never().unwrap().unwrap();
    standing.remaining
}

#[test]
fn a_charge_is_given_back_at_most_once_however_a_request_ends() {
    let plain = || RateLimitLayer::new(Quota::per_hour(20));
    let only_401 = || plain().count_when(|outcome| outcome.status().is_some_and(|status| status == 401));
    let abandoned = |end| matches!(end, End::Panicked | End::Unpolled | End::Unready | End::Cancelled);
    for end in ENDS {
        let other = matches!(end, End::Answered(200) | End::Failed);
        for (what, layer, back) in [
            ("everything counts", plain(), false),
            ("only a 401 counts", only_401(), other),
            ("whoever leaves does not count", plain().refund_abandoned(), abandoned(end)),
            ("neither", only_401().refund_abandoned(), other || abandoned(end)),
        ] {
            let clock = Clock::default();
            let layer = clock.times(layer);
            for _ in 0..5 {
                send_to_end(&layer, End::Answered(401));
            }
            assert_eq!(left(&layer), 15);
            for round in 1..=3 {
                send_to_end(&layer, end);
                assert_eq!(left(&layer), if back { 15 } else { 15 - round }, "{what}: {end:?}");
            }
        }
    }
}

#[test]
fn what_a_request_cost_is_what_it_gets_back() {
    let layer = RateLimitLayer::new([Quota::per_hour(10).named("hour"), Quota::per_day(50).named("day")])
        .cost(|_| 7)
        .count_when(|outcome| outcome.status().unwrap() == 401);
    let layer = Clock::default().times(layer);
    for _ in 0..20 {
        send_to_end(&layer, End::Answered(200));
    }
    assert_eq!(left(&layer), 10);
    send_to_end(&layer, End::Answered(401));
    assert_eq!(left(&layer), 3);
}

#[test]
fn a_handler_may_say_what_its_status_does_not() {
    #[derive(Clone)]
    struct Failed;
    let layer = RateLimitLayer::new(Quota::per_hour(3)).count_when(|outcome| {
        assert!(outcome.headers().unwrap().contains_key("x-inner"));
        outcome.extensions().unwrap().get::<Failed>().is_some()
    });
    let inner = service_fn(|request: Request<Body>| async move {
        let failed = request.headers().contains_key("x-status").then_some(Failed);
        let mut response = Response::builder().header("x-inner", "1").body(Body::empty()).unwrap();
        response.extensions_mut().extend(
            failed
                .map(|failed| {
                    let mut extensions = http::Extensions::new();
                    extensions.insert(failed);
                    extensions
                })
                .unwrap_or_default(),
        );
        Ok::<_, Infallible>(response)
    });
    let service = boxed(&layer, inner);
    assert_eq!(admitted(&service, HOME, 10), 10);
    let passed = (0..10).filter(|_| send(&service, with_field(HOME, "x-status", &["401"])).status() == 200).count();
    assert_eq!(passed, 3);
}

/// The `RateLimit` fields are of the moment of the decision, when the charge still stands.
#[test]
fn a_response_that_does_not_count_tells_the_standing_before_it_was_given_back() {
    let layer = RateLimitLayer::new(Quota::per_hour(3)).count_when(|outcome| outcome.status().unwrap() == 401);
    let service = limited(&Clock::default().times(layer));
    for _ in 0..3 {
        assert_eq!(send(&service, request(HOME)).headers()["ratelimit"], r#""default";r=2;t=1200"#);
    }
}

/// All guesses are on their way before the first is answered.
#[tokio::test]
async fn no_more_guesses_at_once_than_the_quota_has() {
    for (answer, counts) in [(401, true), (200, false)] {
        let (release, guesses) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let handler = {
            let (release, guesses) = (release.clone(), guesses.clone());
            service_fn(move |_: Request<Body>| {
                let (release, guesses) = (release.clone(), guesses.clone());
                async move {
                    guesses.fetch_add(1, Ordering::SeqCst);
                    release.acquire().await.unwrap().forget();
                    Ok::<_, Infallible>(Response::builder().status(answer).body(Body::empty()).unwrap())
                }
            })
        };
        let layer = RateLimitLayer::new(Quota::per_hour(5)).count_when(|outcome| outcome.status().unwrap() == 401);
        let service = boxed(&layer, handler);
        let crowd = || join_all((0..50).map(|_| tokio::spawn(service.clone().oneshot(request(HOME)))));
        let first = tokio::spawn(crowd());
        crate::support::eventually("five are admitted", || async { guesses.load(Ordering::SeqCst) == 5 }).await;
        tokio::task::yield_now().await;
        release.add_permits(50);
        let answers = first.await.unwrap();
        let of =
            |status: u16| answers.iter().filter(|a| a.as_ref().unwrap().as_ref().unwrap().status() == status).count();
        assert_eq!(guesses.load(Ordering::SeqCst), 5);
        assert_eq!((of(answer), of(429)), (5, 45));
        assert_eq!(left(&layer), if counts { 0 } else { 5 });
    }
}

/// Successes give back, failures do not, on several threads at once: never more failures than the quota, and in the end
/// nothing is owed but what failed.
#[test]
fn failures_among_successes_never_exceed_the_quota() {
    for round in 0..10 {
        let layer = RateLimitLayer::new(Quota::per_hour(100)).count_when(|outcome| outcome.status().unwrap() == 401);
        let layer = Clock::default().times(layer);
        let service = limited(&layer);
        let failures = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (service, failures) = (service.clone(), &failures);
                scope.spawn(move || {
                    for n in 0..400 {
                        let wanted = if (n + thread + round) % 7 == 0 { "401" } else { "200" };
                        let response = send(&service, with_field(HOME, "x-status", &[wanted]));
                        if response.status() == 401 {
                            failures.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner();
        assert!(failures <= 100, "{failures}");
        assert_eq!(left(&layer), 100 - u32::try_from(failures).unwrap());
    }
}

/// While Redis is away each request costs four times as much, and gets that back.
#[tokio::test]
async fn a_share_is_given_back_as_it_was_charged() {
    let server = crate::support::redis_server::RedisServer::absent();
    for fallback in [Fallback::share(0.25), Fallback::admit()] {
        let layer = RateLimitLayer::new(Quota::per_hour(8))
            .redis(tower_scale::redis::Redis::connect(&server.url()).unwrap())
            .count_when(|outcome| outcome.status().unwrap() == 401)
            .fallback(fallback);
        let service = limited(&Clock::default().times(layer));
        let send = async |status: &str| {
            let request = with_field(HOME, "x-status", &[status]);
            service.clone().oneshot(request).await.unwrap().status().as_u16()
        };
        for _ in 0..20 {
            assert_eq!(send("200").await, 200);
        }
        let expected = if fallback == Fallback::admit() { [401, 401, 401] } else { [401, 401, 429] };
        assert_eq!([send("401").await, send("401").await, send("401").await], expected, "{fallback:?}");
    }
}
