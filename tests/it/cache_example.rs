//! What `examples/cache.rs` says of itself, against the real process.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;

use crate::support::eventually;
use crate::support::example::{Answer, Example, run_to_end};
use crate::support::redis_server::RedisServer;

const ALICE: &[(&str, &[u8])] = &[("authorization", b"Bearer alice")];
const BOB: &[(&str, &[u8])] = &[("authorization", b"Bearer bob")];
const FRENCH: &[(&str, &[u8])] = &[("accept-language", b"fr-CH")];

fn start() -> Example {
    Example::start("cache", &[])
}

async fn ask(server: &Example, path: &str, headers: &[(&str, &[u8])]) -> Answer {
    let answer = server.try_get(path, headers).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::OK, "{path}");
    answer
}

async fn post(server: &Example, path: &str, body: &str) -> StatusCode {
    let body = String::leak(body.to_owned());
    server.send("POST", path, &[], body).await.expect("an answer").status
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").starts_with("tower-scale; hit")
}

#[tokio::test]
async fn each_route_is_kept_as_it_says() {
    let server = start();
    for (path, first, second, hit) in [
        ("/articles", &[][..], &[][..], true),
        ("/about", &[], &[], true),
        ("/greeting", FRENCH, FRENCH, true),
        ("/greeting", &[], &[], true),
        ("/prices", ALICE, BOB, true),
        ("/search?q=tea", &[], &[], true),
        ("/me", ALICE, ALICE, false),
        ("/me", ALICE, BOB, false),
        ("/draft", &[], &[], false),
    ] {
        let made = ask(&server, path, first).await;
        assert!(!is_hit(&made), "{path}");
        assert!(made.took >= Duration::from_millis(100), "{path}: {:?}", made.took);
        let again = ask(&server, path, second).await;
        assert_eq!((is_hit(&again), again.body == made.body), (hit, hit), "{path}");
    }
    assert!(ask(&server, "/greeting", FRENCH).await.body.starts_with("bonjour"));
    assert!(ask(&server, "/greeting", &[]).await.body.starts_with("hello"));
    assert!(ask(&server, "/me", BOB).await.body.starts_with("bob"));
    assert_eq!(server.get("/me").await.status, StatusCode::UNAUTHORIZED);
    assert_ne!(ask(&server, "/search?q=milk", &[]).await.body, ask(&server, "/search?q=tea", &[]).await.body);
    // The articles' TTL is their cache's affair; the handler's fields are everybody's.
    assert_eq!(ask(&server, "/articles", &[]).await.header("cache-control"), "");
    assert_ne!(ask(&server, "/articles/1", &[]).await.header("cache-control"), "");
}

/// Before it expires, if it is asked for often, else while it is served stale.
#[tokio::test]
async fn nobody_waits_for_what_is_renewed() {
    let server = start();
    let first = ask(&server, "/articles/1", &[]).await;
    eventually("it is renewed", async || {
        let answer = ask(&server, "/articles/1", &[]).await;
        assert!(is_hit(&answer), "{}", answer.header("cache-status"));
        answer.body != first.body
    })
    .await;
}

#[tokio::test]
async fn an_outage_is_bridged() {
    let server = start();
    let before = ask(&server, "/articles", &[]).await;
    assert_eq!(post(&server, "/outage/on", "").await, StatusCode::NO_CONTENT);
    assert_eq!(server.get("/articles/7").await.status, StatusCode::SERVICE_UNAVAILABLE, "never asked before");
    // It expires at once, and may still stand in for an error.
    assert_eq!(post(&server, "/admin/soft-purge/tag", "article-1").await, StatusCode::NO_CONTENT);
    for _ in 0..2 {
        let during = ask(&server, "/articles", &[]).await;
        assert_eq!(during.body, before.body);
        assert!(!is_hit(&during), "{}", during.header("cache-status"));
    }
    assert_eq!(post(&server, "/outage/off", "").await, StatusCode::NO_CONTENT);
    assert_ne!(ask(&server, "/articles", &[]).await.body, before.body);
}

#[tokio::test]
async fn an_edit_and_a_purge_reach_what_they_name() {
    let server = start();
    let origin = format!("http://{}", server.address);
    let paths = ["/articles", "/articles/1", "/about", "/greeting", "/search?q=tea"];
    for (purge, name, gone) in [
        ("/articles/1", String::new(), &["/articles", "/articles/1"][..]),
        ("/admin/purge/tag", "article-1".to_owned(), &["/articles", "/articles/1"]),
        ("/admin/purge/tag", "article-2".to_owned(), &["/articles"]),
        ("/admin/soft-purge/tag", "article-2".to_owned(), &["/articles"]),
        ("/admin/purge/url", format!("{origin}/about"), &["/about"]),
        ("/admin/purge/prefix", format!("{origin}/art"), &["/articles", "/articles/1"]),
        ("/admin/purge/everything", String::new(), &["/articles", "/articles/1", "/about", "/greeting"]),
    ] {
        let mut before = Vec::new();
        for path in paths {
            before.push(ask(&server, path, &[]).await.body);
        }
        assert_eq!(post(&server, purge, &name).await, StatusCode::NO_CONTENT);
        for (path, before) in paths.iter().zip(before) {
            // An article lives for 2 s, so that it may go by itself meanwhile.
            let stays = !gone.contains(path) && *path != "/articles/1";
            let after = ask(&server, path, &[]).await.body;
            assert!(!stays || after == before, "{purge} {name} took {path}");
            assert!(!gone.contains(path) || after != before, "{purge} {name} left {path}");
        }
    }
    for (kind, name) in [("url", "/about"), ("prefix", "x"), ("what", ""), ("tag", &*"x".repeat(257))] {
        assert_eq!(post(&server, &format!("/admin/purge/{kind}"), name).await, StatusCode::BAD_REQUEST, "{kind}");
    }
    let stats = ask(&server, "/admin/stats", &[]).await.body;
    assert!(stats.contains("misses: ") && !stats.contains("misses: 0"), "{stats}");
}

#[tokio::test]
async fn two_instances_share_one_redis() {
    let redis = RedisServer::start();
    let environment = [("REDIS_URL", &*redis.url())];
    let (one, two) = (Example::start("cache", &environment), Example::start("cache", &environment));
    // A name for both: by their addresses they are two sites.
    let host: &[(&str, &[u8])] = &[("host", b"shop.example")];
    let articles = AtomicU32::new(0);
    eventually("what one made the other has", async || {
        let path = format!("/articles/{}", articles.fetch_add(1, Ordering::Relaxed));
        let made = ask(&one, &path, host).await;
        let found = ask(&two, &path, host).await;
        is_hit(&found) && found.body == made.body
    })
    .await;
}

#[test]
fn unusable_settings_are_named() {
    for (name, value) in [("ADDR", "nonsense"), ("REDIS_URL", "http://nowhere"), ("RUST_LOG", "a=b=c")] {
        let output = run_to_end("cache", &[(name, value)]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {text}");
        assert!(text.contains(name) && text.contains(value) && text.contains("expected"), "{text}");
    }
    let secret = run_to_end("cache", &[("REDIS_URL", "http://user:hunter2@nowhere")]);
    assert!(!String::from_utf8_lossy(&secret.stderr).contains("hunter2"));
}
