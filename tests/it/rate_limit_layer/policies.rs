//! Which policy concerns a request, what it costs, and what several quotas make of it together.

use std::sync::atomic::AtomicUsize;

use tower_scale::client_ip::Networks;
use tower_scale::rate_limit::{Fallback, Fields, Key, Policy, Quota, RateLimitLayer, Secret};

use super::*;

#[derive(Clone)]
struct Member(u8);

fn member(ip: &str, id: u8) -> Request<Body> {
    let mut request = request(ip);
    request.extensions_mut().insert(Member(id));
    request
}

#[test]
fn the_first_policy_that_concerns_a_request_decides_it() {
    let by_member = || Key::by(Secret::random(), |head| head.extensions().get().map(|member: &Member| [member.0]));
    let layer = RateLimitLayer::new(Quota::per_hour(1))
        .when(
            |head| head.extensions().get().is_some_and(|member: &Member| member.0 == 0),
            Policy::new(Quota::per_hour(5)).named("staff").key(by_member()),
        )
        .when(
            |head| head.extensions().get::<Member>().is_some(),
            Policy::new(Quota::per_hour(3)).named("member").key(by_member()),
        );
    let service = limited(&layer);
    let passed = |id| (0..9).filter(|_| send(&service, member(HOME, id)).status() == 200).count();
    assert_eq!((passed(0), passed(1), passed(2)), (5, 3, 3));
    assert_eq!((admitted(&service, HOME, 9), admitted(&service, AWAY, 9)), (1, 1), "the policy of `new` for the rest");
    let refused = send(&service, member(HOME, 1));
    assert_eq!(refused.headers()["ratelimit-policy"], r#""member";q=3;w=3600"#);
    assert!(layer.handle_of("staff").is_some() && layer.handle_of("default").is_some());
    assert!(layer.handle_of("nobody").is_none());
}

#[test]
#[should_panic(expected = "default is named already")]
fn two_policies_of_one_name_are_a_mistake() {
    let _ = RateLimitLayer::new(Quota::per_hour(1)).when(|_| true, Quota::per_hour(2));
}

#[test]
fn skipped_and_allowed_requests_are_neither_counted_nor_labelled() {
    let monitors: Networks = "198.51.100.0/24, 2001:db8:7::/48".parse().unwrap();
    let layer = RateLimitLayer::new(Quota::per_hour(1))
        .skip(|head| head.uri().path() == "/healthz")
        .skip(|head| head.method() == http::Method::OPTIONS)
        .allow(monitors);
    let counted = decisions(|| {
        let service = limited(&layer);
        for ip in ["198.51.100.7", "::ffff:198.51.100.7", "2001:db8:7:1::1"] {
            for _ in 0..3 {
                let response = send(&service, request(ip));
                assert_eq!((response.status().as_u16(), response.headers().len()), (200, 0), "{ip}");
            }
        }
        for _ in 0..3 {
            let mut probe = without_peer();
            *probe.uri_mut() = "/healthz".parse().unwrap();
            assert_eq!(send(&service, probe).status(), 200, "not even its peer matters");
            let mut preflight = request(HOME);
            *preflight.method_mut() = http::Method::OPTIONS;
            assert_eq!(send(&service, preflight).status(), 200);
        }
        assert_eq!(admitted(&service, HOME, 3), 1);
    });
    assert_eq!(counted, BTreeMap::from([("skipped".into(), 15), ("admitted".into(), 1), ("refused".into(), 2)]));
}

#[test]
fn a_request_costs_what_the_closure_says() {
    let layer = RateLimitLayer::new(Quota::per_hour(10))
        .cost(|head| head.headers().get("x-cost").map_or(1, |cost| cost.to_str().unwrap().parse().unwrap()));
    let service = limited(&layer);
    let costs = |cost: &str| send(&service, with_field(HOME, "x-cost", &[cost]));
    for _ in 0..20 {
        let free = costs("0");
        assert!(free.status() == 200 && !free.headers().contains_key("ratelimit"));
    }
    assert_eq!(costs("4").headers()["ratelimit"], r#""default";r=6;t=360"#);
    let refused = costs("7");
    assert_eq!((refused.status().as_u16(), seconds(&refused)), (429, 360), "as long as this request has to wait");
    assert_eq!(costs("6").status(), 200);
    assert_eq!(costs("1").status(), 429);

    let other = |cost: &str| send(&service, with_field(AWAY, "x-cost", &[cost])).status();
    assert_eq!(other("4294967295"), 200, "above the burst: charged the burst");
    assert_eq!((other("1"), other("4294967295")), (StatusCode::TOO_MANY_REQUESTS, StatusCode::TOO_MANY_REQUESTS));
}

#[test]
fn all_quotas_of_a_policy_must_allow_a_request() {
    let clock = Clock::default();
    let quotas = [Quota::per_second(2).named("burst"), Quota::per_day(5).named("day")];
    let service = limited(&clock.times(RateLimitLayer::new(quotas)));
    assert_eq!(admitted(&service, HOME, 10), 2);
    let refused = send(&service, request(HOME));
    assert_eq!(refused.headers()["ratelimit-policy"], r#""burst";q=2;w=1, "day";q=5;w=86400"#);
    assert_eq!(refused.headers()["ratelimit"], r#""burst";r=0;t=1, "day";r=3;t=1"#, "a refusal is charged to none");
    assert_eq!(seconds(&refused), 1);
    clock.advance(Duration::from_secs(1));
    assert_eq!(admitted(&service, HOME, 10), 2);
    clock.advance(Duration::from_secs(1));
    assert_eq!(admitted(&service, HOME, 10), 1);
    let refused = send(&service, request(HOME));
    let wait = seconds(&refused);
    assert!((17_278..=17_279).contains(&wait), "the longest wait of all, to a tick and rounded up: {wait}");
    clock.advance(Duration::from_secs(wait));
    assert_eq!(admitted(&service, HOME, 10), 1);
}

#[test]
fn clones_count_together_until_they_are_changed() {
    let layer = RateLimitLayer::new(Quota::per_hour(2));
    let (one, two) = (limited(&layer), limited(&layer.clone()));
    let changed = limited(&layer.clone().fields(Fields::None));
    assert_eq!((status(&one, HOME), status(&two, HOME)), (StatusCode::OK, StatusCode::OK));
    assert_eq!(
        (status(&one, HOME), status(&two, HOME)),
        (StatusCode::TOO_MANY_REQUESTS, StatusCode::TOO_MANY_REQUESTS)
    );
    assert_eq!(admitted(&changed, HOME, 5), 2);
    assert_eq!(admitted(&limited(&RateLimitLayer::new(Quota::per_hour(2))), HOME, 5), 2);
}

#[test]
fn the_given_clock_is_the_time() {
    let clock = Clock::default();
    let service = limited(&clock.times(RateLimitLayer::new(Quota::per_minute(100).burst(2))));
    assert_eq!(admitted(&service, HOME, 5), 2);
    clock.advance(Duration::from_millis(599));
    assert_eq!(admitted(&service, HOME, 5), 0);
    clock.advance(Duration::from_millis(1));
    assert_eq!(admitted(&service, HOME, 5), 1);
    clock.advance(Duration::from_secs(10 * 365 * 86_400));
    assert!(admitted(&service, HOME, 5) >= 2, "after its last tick the clock stands still, and nobody is locked out");
}

#[test]
fn a_clock_may_count_from_any_moment() {
    let clock = Clock::default();
    clock.advance(Duration::from_secs(56 * 365 * 86_400)); // 1970, for one
    let service = limited(&clock.times(RateLimitLayer::new(Quota::per_minute(100).burst(2))));
    assert_eq!(admitted(&service, HOME, 5), 2);
    clock.advance(Duration::from_millis(600));
    assert_eq!(admitted(&service, HOME, 5), 1);
}

#[test]
fn the_clock_is_read_once_per_request_and_not_for_free_ones() {
    let reads = Arc::new(AtomicUsize::new(0));
    let counter = reads.clone();
    let layer = RateLimitLayer::new([Quota::per_second(2), Quota::per_day(5)])
        .skip(|head| head.headers().contains_key("x-skip"))
        .clock(move || Duration::from_nanos(counter.fetch_add(1, Ordering::SeqCst) as u64));
    let service = limited(&layer);
    let built = reads.load(Ordering::SeqCst);
    admitted(&service, HOME, 10);
    assert_eq!(reads.load(Ordering::SeqCst) - built, 10);
    send(&service, with_field(HOME, "x-skip", &["1"]));
    assert_eq!(reads.load(Ordering::SeqCst) - built, 10);
}

#[test]
fn a_shadow_refuses_nobody_and_counts() {
    let layer = RateLimitLayer::new(Quota::per_hour(2)).shadow();
    let counted = decisions(|| {
        let service = limited(&layer);
        for _ in 0..5 {
            let response = send(&service, request(HOME));
            assert_eq!((response.status().as_u16(), response.headers().len()), (200, 0));
        }
        assert_eq!(send(&service, without_peer()).status(), 200);
    });
    assert_eq!(counted, BTreeMap::from([("admitted".into(), 2), ("shadowed".into(), 3), ("peer_unknown".into(), 1)]));
}

/// What was not charged is not given back.
#[test]
fn a_shadow_gives_back_only_what_it_took() {
    let layer = RateLimitLayer::new(Quota::per_hour(2)).count_when(|outcome| outcome.status().unwrap() == 401).shadow();
    let counted = decisions(|| {
        let service = limited(&layer);
        for status in ["401", "401", "200", "200", "200", "200", "401"] {
            send(&service, with_field(HOME, "x-status", &[status]));
        }
    });
    assert_eq!(counted, BTreeMap::from([("admitted".into(), 2), ("shadowed".into(), 5)]));
}

#[test]
fn a_fallback_concerns_only_what_redis_decides() {
    let service = limited(&RateLimitLayer::new(Quota::per_hour(2)).fallback(Fallback::refuse()));
    assert_eq!(admitted(&service, HOME, 5), 2);
}
