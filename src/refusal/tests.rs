use super::*;

fn caller(name: &'static str, value: &'static str) -> Caller {
    Caller::of(&Request::builder().header(name, value).body(()).unwrap())
}

#[test]
fn retry_after_rounds_up_and_is_never_zero() {
    for (wait, seconds) in [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (59_999, 60)] {
        let refusal =
            Refusal::new(Reason::QuotaExceeded, Caller::default()).retry_after_at_least(Duration::from_millis(wait));
        let response = Refuse::default().respond(&refusal);
        assert_eq!(response.headers()[RETRY_AFTER], seconds.to_string(), "{wait} ms");
    }
}

#[test]
fn crowds_are_spread_over_three_seconds() {
    let waits: std::collections::BTreeSet<u64> = (0..500)
        .map(|_| {
            let refusal = Refusal::new(Reason::QueueFull, Caller::default());
            refusal.retry_after_at_least(Duration::ZERO).retry_after().unwrap().as_secs()
        })
        .collect();
    assert_eq!(waits.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn the_default_is_a_problem_document() {
    let response = Refuse::default().respond(&Refusal::new(Reason::QueueFull, caller("accept", "text/html")));
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    assert_eq!(response.extensions().get(), Some(&Reason::QueueFull));
    assert_eq!(
        response.body(),
        &r#"{"type":"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity","title":"Service Unavailable","status":503,"detail":"The server is busy; retry after the given time.","reason":"queue_full"}"#
    );
}

#[test]
fn the_page_says_what_each_reason_is() {
    let page: Vec<_> = include_str!("../refusal.rs").lines().filter(|line| line.starts_with("//! | `")).collect();
    let reasons = [
        Reason::QuotaExceeded,
        Reason::DebtInherited,
        Reason::Blocked,
        Reason::LimiterUnavailable,
        Reason::ForwardingInvalid,
        Reason::PeerUnknown,
        Reason::QueueFull,
        Reason::PoolClosed,
        Reason::FillFailed,
        Reason::NotStored,
    ];
    assert_eq!(page.len(), reasons.len());
    for (line, reason) in page.iter().zip(reasons) {
        let kind = reason.problem_type().replace("https://iana.org/assignments/", "…");
        let (status, grpc) = (reason.status().as_u16(), reason.grpc_status());
        let expected = format!("//! | `{reason}` | {status} | `{kind}` | {grpc} `");
        assert!(line.starts_with(&expected), "{line}");
    }
}

#[test]
fn grpc_gets_trailers_only() {
    let refusal = Refusal::new(Reason::QuotaExceeded, caller("content-type", "application/grpc+proto"));
    let response = Refuse::default().respond(&refusal);
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "8");
    assert!(response.body().is_empty());
}

#[test]
fn grpc_is_told_by_the_whole_media_type() {
    for (value, expected) in [
        ("application/grpc", Some(Grpc::Plain)),
        ("Application/gRPC+json", Some(Grpc::Plain)),
        ("application/grpc; charset=x", Some(Grpc::Plain)),
        ("application/grpc-web+proto", Some(Grpc::Web)),
        ("application/grpc-web-text", Some(Grpc::WebText)),
        ("application/grpcfoo", None),
        ("application/json", None),
    ] {
        let caller = caller("content-type", value);
        assert_eq!(caller.grpc, expected, "{value}");
        let response = Refuse::default().respond(&Refusal::new(Reason::QueueFull, caller));
        let kind = expected.map_or("application/problem+json", Grpc::content_type);
        assert_eq!(response.headers()[CONTENT_TYPE], kind, "{value}");
    }
}

#[test]
fn a_hook_that_names_no_wait_gets_the_right_one() {
    for (own, expected) in [(None, "7"), (Some("60"), "60")] {
        let refuse = Refuse::with(move |_| {
            let builder = own.into_iter().fold(Response::builder(), |builder, wait| builder.header(RETRY_AFTER, wait));
            builder.body(Bytes::new()).unwrap()
        });
        let refusal = Refusal::new(Reason::QuotaExceeded, Caller::default());
        let response = refuse.respond(&refusal.retry_after_at_least(Duration::from_millis(6_500)));
        assert_eq!(response.headers().get_all(RETRY_AFTER).iter().collect::<Vec<_>>(), [expected]);
    }
    let response = Refuse::with(|_| Response::default()).respond(&Refusal::new(Reason::FillFailed, Caller::default()));
    assert!(!response.headers().contains_key(RETRY_AFTER), "nothing to wait for");
}

#[test]
fn a_hook_replaces_the_response_but_never_makes_it_cacheable_by_omission() {
    let refuse = Refuse::with(|refusal| {
        assert_eq!(refusal.accept().unwrap(), "text/html");
        Response::builder().status(418).body(Bytes::new()).unwrap()
    });
    let response = refuse.respond(&Refusal::new(Reason::QuotaExceeded, caller("accept", "text/html")));
    assert_eq!(response.status(), 418);
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    assert_eq!(response.extensions().get(), Some(&Reason::QuotaExceeded));
}
