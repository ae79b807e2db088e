//! What `examples/rate_limit.rs` says of itself, against the real process.

use http::StatusCode;

use crate::support::eventually;
use crate::support::example::{Answer, Example, run_to_end};
use crate::support::redis_server::RedisServer;

/// Clients are told apart by what the test says of them.
fn start(environment: &[(&str, &str)]) -> Example {
    let environment: Vec<_> = environment.iter().copied().chain([("TRUSTED_PROXIES", "127.0.0.0/8")]).collect();
    Example::start("rate_limit", &environment)
}

async fn ask(server: &Example, client: &str, path: &str, headers: &[(&str, &[u8])]) -> Answer {
    let headers: Vec<_> = headers.iter().copied().chain([("x-forwarded-for", client.as_bytes())]).collect();
    server.try_get(path, &headers).await.expect("an answer")
}

async fn passed(server: &Example, client: &str, path: &str, headers: &[(&str, &[u8])], requests: usize) -> usize {
    let mut passed = 0;
    for _ in 0..requests {
        let answer = ask(server, client, path, headers).await;
        assert!(matches!(answer.status, StatusCode::OK | StatusCode::TOO_MANY_REQUESTS), "{answer:?}");
        passed += usize::from(answer.status == StatusCode::OK);
    }
    passed
}

async fn log_in(server: &Example, client: &str, password: &'static str) -> StatusCode {
    let headers: &[(&str, &[u8])] = &[("x-forwarded-for", client.as_bytes())];
    server.send("POST", "/login", headers, password).await.expect("an answer").status
}

async fn command(server: &Example, path: &str) -> StatusCode {
    server.send("POST", path, &[], "").await.expect("an answer").status
}

#[tokio::test]
async fn a_hundred_per_quarter_of_an_hour() {
    let server = start(&[]);
    let first = ask(&server, "203.0.113.9", "/", &[]).await;
    assert_eq!(first.header("ratelimit-policy"), r#""default";q=100;w=900"#);
    assert_eq!(first.header("ratelimit"), r#""default";r=99;t=9"#);
    let more = passed(&server, "203.0.113.9", "/", &[], 120).await;
    assert!((99..=101).contains(&more), "{more}");
    let refused = ask(&server, "203.0.113.9", "/", &[]).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.body, "Too many requests, please try again later.\n");
    assert!((1..=9).contains(&refused.header("retry-after").parse().unwrap()), "{refused:?}");
    assert!(refused.header("ratelimit").starts_with(r#""default";r=0;t="#));
    assert_eq!(ask(&server, "203.0.113.10", "/", &[]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn tiers_of_clients() {
    let server = start(&[("ALLOW", "198.51.100.0/24")]);
    let search = "/api/search";
    let anonymous = ask(&server, "2001:db8:1:2::1", search, &[]).await;
    assert_eq!(anonymous.header("ratelimit-policy"), r#""burst";q=5;w=1, "day";q=500;w=86400, "site";q=8000;w=86400"#);
    let alice: &[(&str, &[u8])] = &[("authorization", b"Bearer alice-token")];
    let member = ask(&server, "2001:db8:1:2::1", search, alice).await;
    assert_eq!(member.header("ratelimit-policy"), r#""burst";q=50;w=1, "day";q=5000;w=86400"#);
    assert!(member.header("ratelimit").contains(r#""day";r=4999"#), "{member:?}");
    let elsewhere = ask(&server, "203.0.113.77", search, alice).await;
    assert!(elsewhere.header("ratelimit").contains(r#""day";r=4998"#), "{elsewhere:?}");
    let forged = ask(&server, "203.0.113.9", search, &[("authorization", b"Bearer forged")]).await;
    assert!(forged.header("ratelimit-policy").contains("q=500;"), "{forged:?}");

    // More than the burst at once costs the whole burst.
    assert_eq!(ask(&server, "203.0.113.20", "/api/export", &[]).await.status, StatusCode::OK);
    assert_eq!(ask(&server, "203.0.113.20", search, &[]).await.status, StatusCode::TOO_MANY_REQUESTS);
    let allowed = passed(&server, "198.51.100.7", search, &[], 30).await;
    assert_eq!(allowed, 30);
    assert_eq!(ask(&server, "198.51.100.7", search, &[]).await.header("ratelimit"), "");
}

#[tokio::test]
async fn failed_logins() {
    let server = start(&[]);
    let guesser = "203.0.113.9";
    for _ in 0..20 {
        assert_eq!(log_in(&server, guesser, "correct horse").await, StatusCode::OK);
    }
    for _ in 0..5 {
        assert_eq!(log_in(&server, guesser, "wrong").await, StatusCode::UNAUTHORIZED);
    }
    for password in ["wrong", "correct horse"] {
        assert_eq!(log_in(&server, guesser, password).await, StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(log_in(&server, "203.0.113.10", "correct horse").await, StatusCode::OK);

    assert!(server.get("/admin/203.0.113.9").await.body.contains("admitted: false"));
    assert_eq!(command(&server, "/admin/203.0.113.9/reset").await, StatusCode::OK);
    assert_eq!(log_in(&server, guesser, "correct horse").await, StatusCode::OK);
    assert_eq!(command(&server, "/admin/203.0.113.10/block").await, StatusCode::OK);
    assert!(server.get("/admin/203.0.113.10").await.body.contains("blocked: true"));
    assert_eq!(log_in(&server, "203.0.113.10", "correct horse").await, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn two_instances_are_one_limit_and_without_redis_nobody_guesses() {
    let mut redis = RedisServer::start();
    let environment = [("REDIS_URL", &*redis.url())];
    let (one, two) = (start(&environment), start(&environment));
    // Until both are connected.
    for server in [&one, &two] {
        eventually("Redis decides", async || log_in(server, "198.51.100.1", "correct horse").await == StatusCode::OK)
            .await;
    }
    let mut guesses = 0;
    for n in 0..12 {
        let server = if n % 2 == 0 { &one } else { &two };
        guesses += usize::from(log_in(server, "203.0.113.9", "wrong").await == StatusCode::UNAUTHORIZED);
    }
    assert_eq!(guesses, 5);
    assert_eq!(passed(&one, "203.0.113.9", "/hot", &[], 50).await, 50);
    redis.kill();
    eventually("no guess", async || log_in(&one, "203.0.113.9", "wrong").await == StatusCode::SERVICE_UNAVAILABLE)
        .await;
    assert_eq!(ask(&one, "203.0.113.9", "/api/search", &[]).await.status, StatusCode::OK, "by itself");
}

#[test]
fn a_wrong_environment_is_named() {
    for (name, value) in [
        ("ADDR", "everywhere"),
        ("REDIS_URL", "http://127.0.0.1"),
        ("TRUSTED_PROXIES", "0.0.0.0/0"),
        ("ALLOW", "home"),
        ("RUST_LOG", "a=b=c"),
    ] {
        let output = run_to_end("rate_limit", &[(name, value)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("rate_limit: ") && said.contains(name) && said.contains(value), "{said}");
    }
}
