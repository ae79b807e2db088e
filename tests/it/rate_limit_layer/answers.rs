//! What refused clients are told, and that it is true.

use bytes::Bytes;
use http_body_util::BodyExt;
use proptest::prelude::*;
use tower_scale::rate_limit::{Fields, OnFull, Policy, Quota, RateLimitLayer};

use super::*;

fn text(response: Response<Body>) -> String {
    let body = response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[test]
fn a_refusal_is_a_problem_document() {
    let service = limited(&RateLimitLayer::new(Quota::per_hour(1)));
    assert_eq!(status(&service, HOME), 200);
    let refused = send(&service, request(HOME));
    assert_eq!((refused.status().as_u16(), reason(&refused)), (429, Some(Reason::QuotaExceeded)));
    for (name, value) in
        [("content-type", "application/problem+json"), ("cache-control", "no-store"), ("retry-after", "3600")]
    {
        assert_eq!(refused.headers()[name], value);
    }
    assert!(text(refused).contains(r#""reason":"quota_exceeded""#));
}

#[test]
fn a_refused_grpc_call_is_resource_exhausted() {
    let service = limited(&RateLimitLayer::new(Quota::per_hour(1)));
    let call = || with_field(HOME, "content-type", &["application/grpc+proto"]);
    assert_eq!(send(&service, call()).status(), 200);
    let refused = send(&service, call());
    assert_eq!((refused.status().as_u16(), seconds(&refused)), (200, 3600));
    assert_eq!(refused.headers()["grpc-status"], "8");
    assert_eq!(refused.headers()["content-type"], "application/grpc");
    assert!(refused.headers().contains_key("ratelimit"));
    assert!(text(refused).is_empty());
}

#[test]
fn a_hook_makes_the_refusal_and_the_layer_adds_the_fields() {
    let layer = RateLimitLayer::new(Quota::per_hour(1)).refusal(|refusal| {
        let wait = refusal.retry_after().unwrap().as_secs();
        Response::builder()
            .status(420)
            .header("retry-after", wait)
            .body(Bytes::from(format!("{}: {wait}", refusal.reason())))
            .unwrap()
    });
    let service = limited(&layer);
    assert_eq!(status(&service, HOME), 200);
    let refused = send(&service, request(HOME));
    assert_eq!((refused.status().as_u16(), reason(&refused)), (420, Some(Reason::QuotaExceeded)));
    assert_eq!(refused.headers()["ratelimit"], r#""default";r=0;t=3600"#);
    assert_eq!(refused.headers()["cache-control"], "no-store");
    assert_eq!(refused.headers().get_all("retry-after").iter().count(), 1);
    assert_eq!(text(refused), "quota_exceeded: 3600");
}

#[test]
fn each_field_occurs_once_in_every_style() {
    for style in [Fields::Draft, Fields::Draft7, Fields::Draft6, Fields::Legacy, Fields::None] {
        let quotas = [Quota::per_second(2).named("burst"), Quota::per_day(5).named("day")];
        let service = limited(&RateLimitLayer::new(quotas).fields(style));
        for _ in 0..3 {
            let response = send(&service, request(HOME));
            for name in response.headers().keys() {
                assert_eq!(response.headers().get_all(name).iter().count(), 1, "{style:?} {name}");
            }
            let any = response.headers().keys().any(|name| name.as_str().contains("ratelimit"));
            assert_eq!(any, style != Fields::None, "{style:?}");
        }
        assert_eq!(status(&service, HOME), 429, "{style:?}");
    }
}

/// A flood of new clients into a tiny table: nobody gets more than its quota, and who waits for the debt of another is
/// told so.
#[test]
fn who_inherited_a_debt_is_told_so() {
    let policy = Policy::new(Quota::per_hour(2)).slots(1);
    let counted = decisions(|| {
        let service = limited(&RateLimitLayer::new(policy.clone()));
        assert_eq!(admitted(&service, HOME, 5), 2);
        let inherited = (0..40_000)
            .map(|n| send(&service, request(&format!("2001:db8:{:x}:{:x}::1", n >> 12, n & 0xfff))))
            .find(|response| response.status() != 200)
            .expect("a table of a page is full at last");
        assert_eq!((inherited.status().as_u16(), reason(&inherited)), (429, Some(Reason::DebtInherited)));
        assert!(seconds(&inherited) >= 1);
        assert!(text(inherited).contains("Too many clients"));
        assert_eq!(admitted(&service, HOME, 5), 0, "the flood washed nothing out");
    });
    assert!(counted["refused_inherited"] >= 1, "{counted:?}");

    let service = limited(&RateLimitLayer::new(policy.on_full(OnFull::Admit)));
    let all = (0..10_000).all(|n| status(&service, &format!("2001:db8:0:{n:x}::1")) == 200);
    assert!(all, "with OnFull::Admit no new client ever waits");
}

fn any_quotas() -> impl Strategy<Value = Vec<Quota>> {
    let quota = (1_u32..50, 1_u64..200_000, 1_u32..20).prop_map(|(count, millis, burst)| {
        Quota::new(count.try_into().unwrap(), Duration::from_millis(millis)).unwrap().burst(burst)
    });
    let named =
        |quotas: Vec<Quota>| ["a", "b", "c"].into_iter().zip(quotas).map(|(name, quota)| quota.named(name)).collect();
    prop::collection::vec(quota, 1..4).prop_map(named)
}

/// What is told is rounded up by at most one of the limiter's ticks, and then to whole seconds.
const TICK: Duration = Duration::from_micros(31);

proptest! {
    /// `Retry-After` is never 0, and whoever waits that long is admitted; whoever comes a whole second and a tick earlier,
    /// is not.
    #[test]
    fn waiting_as_told_is_enough_and_not_too_long(
        quotas in any_quotas(),
        trace in prop::collection::vec((0_u64..2_000_000_000, 1_u32..8), 1..40),
    ) {
        let clock = Clock::default();
        let layer = RateLimitLayer::new(Policy::try_from(quotas.as_slice()).unwrap())
            .cost(|head| head.headers()["x-cost"].to_str().unwrap().parse().unwrap());
        let service = limited(&clock.times(layer));
        for (pause, cost) in trace {
            clock.advance(Duration::from_nanos(pause));
            let ask = || send(&service, with_field(HOME, "x-cost", &[&cost.to_string()]));
            let response = ask();
            if response.status() == 200 {
                continue;
            }
            let wait = seconds(&response);
            prop_assert!(wait >= 1);
            let early = Duration::from_secs(wait - 1).saturating_sub(TICK);
            clock.advance(early);
            if wait > 1 {
                prop_assert_eq!(ask().status(), 429, "told to wait {} s, one less was enough", wait);
            }
            clock.advance(Duration::from_secs(wait) - early);
            prop_assert_eq!(ask().status(), 200, "told to wait {} s", wait);
        }
    }

    /// What `RateLimit` says is so: `r` requests more, none before `t` is over, and one more then.
    #[test]
    fn the_standing_is_what_the_client_finds(
        quotas in any_quotas(),
        trace in prop::collection::vec((0_u64..2_000_000_000, 1_u32..8), 1..12),
    ) {
        // Another one that has seen the same.
        let replayed = || {
            let clock = Clock::default();
            let layer = RateLimitLayer::new(Policy::try_from(quotas.as_slice()).unwrap())
                .cost(|head| head.headers().get("x-cost").map_or(1, |cost| cost.to_str().unwrap().parse().unwrap()));
            let service = limited(&clock.times(layer));
            let mut last = None;
            for (pause, cost) in &trace {
                clock.advance(Duration::from_nanos(*pause));
                last = Some(send(&service, with_field(HOME, "x-cost", &[&cost.to_string()])));
            }
            let last = last.unwrap();
            (clock, service, last)
        };
        let (_, service, last) = replayed();
        let stated = last.headers()["ratelimit"].to_str().unwrap();
        let number = |item: &str, name: &str| -> usize {
            item.split(name).nth(1).unwrap().split(';').next().unwrap().parse().unwrap()
        };
        let least = stated.split(", ").map(|item| number(item, ";r=")).min().unwrap();
        prop_assert_eq!(admitted(&service, HOME, least + 1), least, "{}", stated);
        if quotas.len() == 1 && last.status() == 200 {
            let time = Duration::from_secs(number(stated, ";t=") as u64);
            let early = time.saturating_sub(Duration::from_secs(1) + TICK);
            for (after, expected) in [(early, least), (time, least + 1)] {
                let (clock, service, _) = replayed();
                clock.advance(after);
                prop_assert_eq!(admitted(&service, HOME, expected), expected, "{:?} after {}", after, stated);
                if after == early {
                    prop_assert_eq!(status(&service, HOME), 429, "{:?} after {}", after, stated);
                }
            }
        }
    }
}
