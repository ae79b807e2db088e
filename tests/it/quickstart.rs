//! The quickstart's contract, against the real process.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::{FuturesUnordered, iter};
use http::StatusCode;

use crate::support::eventually;
use crate::support::example::{Answer, Example, run_to_end};
use crate::support::redis_server::RedisServer;

fn start(environment: &[(&str, &str)]) -> Example {
    Example::start("quickstart", environment)
}

const UNLIMITED: (&str, &str) = ("RATE_LIMIT", "1000000");

/// `count` requests, ten at a time, spread over `servers`.
async fn burst(servers: &[&Example], count: usize, path: &str) -> Vec<Answer> {
    iter(0..count).map(|n| servers[n % servers.len()].get(path)).buffer_unordered(10).collect().await
}

fn passed(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.status == StatusCode::OK).count()
}

#[tokio::test]
async fn first_a_miss_then_a_hit() {
    let server = start(&[]);
    let miss = server.get("/products/1").await;
    assert_eq!(miss.status, StatusCode::OK);
    assert!(miss.took >= Duration::from_millis(50), "{:?}", miss.took);
    assert!(miss.header("cache-status").contains("fwd="), "{}", miss.header("cache-status"));
    let hit = server.get("/products/1").await;
    assert!(hit.header("cache-status").contains("hit"), "{}", hit.header("cache-status"));
    assert!(!hit.header("age").is_empty());
    assert!(hit.took < Duration::from_millis(50), "a hit cannot have called the handler: {:?}", hit.took);
    assert_eq!(hit.body, miss.body);
    // Never cached.
    for path in ["/primes/1000", "/block/0"] {
        for _ in 0..2 {
            let answer = server.get(path).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert!(!answer.header("cache-status").contains("hit"), "{path}");
        }
    }
    assert!(server.get("/primes/1000").await.body.contains(":168"));
}

#[tokio::test]
async fn one_address_passes_as_often_as_its_quota_says() {
    let server = start(&[]);
    let started = Instant::now();
    let answers = burst(&[&server], 150, "/").await;
    let extra = usize::try_from(started.elapsed().as_secs()).unwrap() * 2;
    let passes = passed(&answers);
    assert!((100..=105 + extra).contains(&passes), "{passes} passed in {:?}", started.elapsed());
    let refused = answers.iter().find(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).expect("some refused");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(refused.header("content-type"), "application/problem+json");
    assert!(refused.header("ratelimit-policy").contains("q=100;w=60"), "{}", refused.header("ratelimit-policy"));
    assert!(refused.header("ratelimit").contains("r=0"), "{}", refused.header("ratelimit"));
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK || answer.status == refused.status));
    // Nor does guessing paths.
    assert_eq!(server.get("/nowhere").await.status, StatusCode::TOO_MANY_REQUESTS);
    // The probes are never limited.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn the_metrics_move() {
    let server = start(&[]);
    server.get("/products/1").await;
    server.get("/products/1").await;
    server.get("/primes/1000").await;
    server.get("/block/300").await;
    eventually("the stall is seen", async || {
        server.metric("event_loop_lag_max_seconds").await.is_some_and(|lag| (0.2..0.6).contains(&lag))
    })
    .await;
    for line in [
        "event_loop_lag_seconds_count",
        "http_long_polls_total{route=\"/block/{ms}\"}",
        "process_resident_memory_bytes",
        "cache_requests_total{outcome=\"hit\"}",
        "rate_limit_decisions_total{decision=\"admitted\"}",
        "offload_requests_total{outcome=\"completed\"}",
    ] {
        let value = server.metric(line).await;
        assert!(value.is_some_and(|value| value > 0.0), "{line}: {value:?}");
    }
    assert_eq!(server.metric("offload_queue_depth").await, Some(0.0));
    assert!(server.get("/metrics").await.body.contains("event_loop_lag_seconds_bucket{le="));
}

#[tokio::test]
async fn two_instances_share_one_redis() {
    let redis = RedisServer::start();
    let environment = [("REDIS_URL", &*redis.url())];
    let (one, two) = (start(&environment), start(&environment));
    one.get("/products/7").await;
    eventually("what one filled the other hits", async || {
        two.get("/products/7").await.header("cache-status").contains("hit")
    })
    .await;
    assert!(two.metric("redis_operations_total{outcome=\"ok\"}").await.is_some_and(|count| count > 0.0));

    let redis = RedisServer::start();
    let environment = [("REDIS_URL", &*redis.url())];
    let (one, two) = (start(&environment), start(&environment));
    // Both are connected before the burst, so that none of it is decided locally.
    let warm = usize::from(one.get("/").await.status == StatusCode::OK)
        + usize::from(two.get("/").await.status == StatusCode::OK);
    let started = Instant::now();
    let answers = burst(&[&one, &two], 150, "/").await;
    let extra = usize::try_from(started.elapsed().as_secs()).unwrap() * 2;
    let passes = passed(&answers) + warm;
    assert!((100..=105 + extra).contains(&passes), "{passes} passed in {:?}", started.elapsed());
}

#[tokio::test]
async fn redis_frozen_killed_and_restarted_costs_no_answer() {
    let mut redis = RedisServer::start();
    let server = start(&[("REDIS_URL", &redis.url()), UNLIMITED]);
    server.get("/products/0").await;
    let mut slowest = Duration::ZERO;
    for (phase, wait) in [("up", 300), ("frozen", 700), ("thawed", 500), ("killed", 700), ("restarted", 300)] {
        match phase {
            "frozen" => redis.freeze(),
            "thawed" => redis.thaw(),
            "killed" => redis.kill(),
            "restarted" => redis.launch(),
            _ => {}
        }
        let until = Instant::now() + Duration::from_millis(wait);
        let mut clients = FuturesUnordered::new();
        let mut next = 0;
        while Instant::now() < until {
            while clients.len() < 16 {
                next += 1;
                let path = format!("/products/{}", next % 50);
                let server = &server;
                clients.push(async move { server.get(&path).await });
            }
            let answer: Answer = clients.next().await.unwrap();
            assert_eq!(answer.status, StatusCode::OK, "{phase}");
            slowest = slowest.max(answer.took);
        }
        while let Some(answer) = clients.next().await {
            assert_eq!(answer.status, StatusCode::OK, "{phase}");
        }
    }
    // The handler takes 50 ms, Redis costs 80 ms at most; the rest is for a busy test machine and an unoptimised build.
    assert!(slowest < Duration::from_millis(50 + 80 + 250), "{slowest:?}");
    let before = server.metric("redis_operations_total{outcome=\"ok\"}").await.unwrap();
    eventually("the restarted server is used again", async || {
        server.get("/products/1").await;
        server.metric("redis_operations_total{outcome=\"ok\"}").await.unwrap() > before
    })
    .await;
    assert_eq!(server.get("/readyz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_hundred_clients_that_leave_at_once() {
    let server = start(&[UNLIMITED]);
    let filling = async || while server.metric("cache_fills_in_flight").await != Some(1.0) {};
    // Who is answered before the fill is seen has not left: another product, then.
    for product in 900..930 {
        let path = format!("/products/{product}");
        let all = futures_util::future::join_all((0..100).map(|_| server.get(&path)));
        let left = futures_util::future::select(Box::pin(all), Box::pin(filling())).await;
        let early = matches!(left, futures_util::future::Either::Right(_));
        drop(left);
        eventually("the one fill ends", async || {
            server.metric("cache_fills_in_flight").await.unwrap_or(0.0) == 0.0
                && server.metric("cache_waiters").await.unwrap_or(0.0) == 0.0
        })
        .await;
        if early {
            let next = server.get(&path).await;
            assert!(next.header("cache-status").contains("hit"), "the handler ran: {}", next.header("cache-status"));
            return;
        }
    }
    panic!("no fill of 50 ms was ever seen");
}

#[tokio::test]
async fn bad_input_gets_a_plain_answer() {
    let server = start(&[UNLIMITED, ("TRUSTED_PROXIES", "127.0.0.0/8")]);
    let long = vec![b'a'; 64 << 10];
    let headers: &[(&str, &[u8])] = &[
        ("x-forwarded-for", b"not an address"),
        ("x-forwarded-for", b"1.2.3.4, , ,,, ::::, 5.6.7.8:99999"),
        ("x-forwarded-for", b"\xff\xfe"),
        ("forwarded", b"for=\"[::1"),
        ("cache-control", b"max-age=\"unterminated, no-store=,,,=="),
        ("range", b"bytes=9-1,-,a-b"),
        ("range", b"bytes=0-0"),
        ("if-none-match", b"\"unterminated"),
        ("host", b"a b c"),
        ("host", b"[::1"),
        ("host", b"evil.example:99999"),
        ("x-long", &long),
        ("cookie", &long),
    ];
    for (name, value) in headers {
        for path in ["/products/5", "/", "/nowhere", "/primes/18446744073709551616", "/block/x", "/products/%00"] {
            match server.try_get(path, &[(name, value)]).await {
                Ok(answer) => assert!(answer.status.as_u16() < 500, "{path} with {name}: {}", answer.status),
                Err(error) => panic!("{path} with {name}: {error}"),
            }
        }
    }
    let after = server.get("/products/5").await;
    assert_eq!(after.status, StatusCode::OK);
    assert_eq!(server.get("/primes/50000001").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(server.get("/block/2001").await.status, StatusCode::BAD_REQUEST);
}

#[test]
fn unusable_settings_are_named() {
    for (name, value) in [
        ("ADDR", "nonsense"),
        ("REDIS_URL", "http://nowhere"),
        ("RATE_LIMIT", "0"),
        ("RATE_LIMIT", "-1"),
        ("TRUSTED_PROXIES", "10.0.0.0/99"),
        ("TRUSTED_PROXIES", "0.0.0.0/0"),
        ("OFFLOAD_THREADS", "many"),
        ("OFFLOAD_THREADS", "99999999"),
        ("RUST_LOG", "a=b=c"),
    ] {
        let output = run_to_end("quickstart", &[(name, value)]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {text}");
        assert!(text.contains(name) && text.contains(value) && text.contains("expected"), "{text}");
    }
    let secret = run_to_end("quickstart", &[("REDIS_URL", "http://user:hunter2@nowhere")]);
    let text = String::from_utf8_lossy(&secret.stderr).into_owned();
    assert!(!text.contains("hunter2") && text.contains("http://…@nowhere"), "{text}");
}

#[tokio::test]
async fn a_terminated_server_drains() {
    let mut server = start(&[]);
    assert_eq!(server.get("/readyz").await.status, StatusCode::OK);
    // The request in flight outlives the first second.
    let slow = server.try_get("/block/1500", &[]);
    let drain = async {
        eventually("the request has begun", async || {
            server.metric("rate_limit_decisions_total{decision=\"admitted\"}").await == Some(1.0)
        })
        .await;
        server.terminate();
        eventually("not ready", async || server.get("/readyz").await.status == StatusCode::SERVICE_UNAVAILABLE).await;
        assert_eq!(server.get("/healthz").await.status, StatusCode::OK, "still accepting");
    };
    let (slow, ()) = tokio::join!(slow, drain);
    assert_eq!(slow.expect("answered while draining").status, StatusCode::OK);
    let mut status = None;
    let deadline = Instant::now() + Duration::from_secs(5);
    while status.is_none() && Instant::now() < deadline {
        status = server.exited();
        tokio::task::yield_now().await;
    }
    assert_eq!(status.expect("it ends by itself").code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut server = start(&[]);
    server.terminate();
    eventually("draining", async || server.get("/readyz").await.status == StatusCode::SERVICE_UNAVAILABLE).await;
    let started = Instant::now();
    server.terminate();
    while server.exited().is_none() {
        assert!(started.elapsed() < Duration::from_millis(900), "the first second is not waited for");
        tokio::task::yield_now().await;
    }
}
