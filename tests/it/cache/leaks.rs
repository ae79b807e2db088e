//! Each published leak, replay and poisoning of another cache, tried on this one. The names and versions are those of
//! the cache in which it was seen.

use tower_scale::cache::{CachePolicy, Purge};

use super::time::{moving, pass, seconds};
use super::*;

type Fields = &'static [(&'static str, &'static str)];

fn with(fields: Fields) -> http::response::Builder {
    fields.iter().fold(Response::builder(), |response, (name, value)| response.header(*name, *value))
}

/// What one user's response would show to another, and what the second asks with.
#[tokio::test]
async fn one_users_response_is_not_anothers() {
    const MINUTE: (&str, &str) = ("cache-control", "max-age=60");
    let cases: [(&str, Fields, Fields, Fields); 13] = [
        // What was seen where; the response to alice; her request; bob's.
        (
            "tower-http-cache 0.6.1: another host, Vary and max-age=0 ignored, Set-Cookie replayed",
            &[("cache-control", "max-age=0"), ("vary", "authorization"), ("set-cookie", "session=alice")],
            &[("authorization", "alice"), ("host", "a.example")],
            &[("authorization", "bob"), ("host", "b.example")],
        ),
        (
            "tower-http-cache 0.6.1: Authorization",
            &[MINUTE],
            &[("authorization", "alice")],
            &[("authorization", "bob")],
        ),
        ("axum-response-cache 0.5.0", &[("cache-control", "private, no-store")], &[], &[]),
        ("http-cache-semantics 3.0.0: case", &[("cache-control", "Private, max-age=60")], &[], &[]),
        ("http-cache-semantics 3.0.0: case", &[("cache-control", "max-age=60, NO-STORE")], &[], &[]),
        ("darkweak/souin#805", &[MINUTE, ("set-cookie", "session=alice")], &[], &[]),
        ("darkweak/souin#805, public", &[("cache-control", "public, max-age=60"), ("set-cookie", "a=b")], &[], &[]),
        ("souin 9af22b2: Authorization", &[MINUTE], &[("authorization", "alice")], &[]),
        ("souin 9af22b2: Authorization", &[MINUTE], &[("cookie", "alice")], &[("cookie", "bob")]),
        (
            "http-cache-tower-server 0.2.6: the variant of another language",
            &[MINUTE, ("vary", "accept-language")],
            &[("accept-language", "en")],
            &[("accept-language", "fr")],
        ),
        (
            "pingora 0.7, CVE-2026-2836: no host in the key",
            &[MINUTE],
            &[("host", "a.example")],
            &[("host", "b.example")],
        ),
        (
            "apache/apisix#13831: a Vary key that is not injective",
            &[MINUTE, ("vary", "x-a, x-b")],
            &[("x-a", "1&x-b=2")],
            &[("x-a", "1"), ("x-b", "2")],
        ),
        (
            "apache/apisix#13831: absent, and as text",
            &[MINUTE, ("vary", "x-a, x-b")],
            &[("x-a", "1"), ("x-b", "")],
            &[("x-a", "1")],
        ),
    ];
    for (seen, response, alice, bob) in cases {
        for default in [None, Some(seconds(60))] {
            let origin = Origin::with(response);
            let layer = default.map_or(layer(), |ttl| layer().ttl(ttl));
            let cache = layer.layer(origin.clone());
            assert_eq!(send(&cache, request(Method::GET, "/me", alice)).await.text(), "1", "{seen}");
            settle().await;
            let other = send(&cache, request(Method::GET, "/me", bob)).await;
            assert_eq!((other.text(), other.is_hit()), ("2", false), "{seen}, default {default:?}");
        }
    }
}

/// tower-http-cache 0.6.1 keeps one entry for HEAD and GET: a HEAD first made every GET empty.
#[tokio::test]
async fn a_head_leaves_no_empty_get_behind() {
    let origin = Origin::new(|_, request| async move {
        let body = if *request.method() == Method::HEAD { "" } else { "whole" };
        Ok(fresh().body(text(body)).unwrap())
    });
    let cache = layer().ttl(seconds(60)).layer(origin.clone());
    let head = request(Method::HEAD, "/", &[]);
    assert_eq!(send(&cache, head).await.text(), "");
    for _ in 0..2 {
        assert_eq!(send(&cache, get("/")).await.text(), "whole");
    }
    assert_eq!(origin.calls(), 2);
}

/// tower-http-cache 0.6.1, axum-response-cache 0.5.0 and http-cache-tower-server 0.2.6 replay the first POST.
#[tokio::test]
async fn a_change_is_never_replayed() {
    let origin = Origin::with(&[("cache-control", "public, max-age=60")]);
    let cache = layer().ttl(seconds(60)).layer(origin.clone());
    let mut calls = 0;
    for method in ["POST", "PUT", "PATCH", "DELETE", "QUERY", "OPTIONS", "PROPFIND", "MKCOL", "get", "Head"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        for _ in 0..2 {
            calls += 1;
            let answer = send(&cache, request(method.clone(), "/pay", &[])).await;
            assert_eq!(answer.text(), calls.to_string(), "{method}");
        }
    }
}

/// http-cache-tower-server 0.2.6: `/q?id=2` returned `/q?id=1`.
#[tokio::test]
async fn the_query_is_part_of_the_url() {
    let origin = Origin::with(&[]);
    let cache = layer().ttl(seconds(60)).query_parameters(["id"]).layer(origin.clone());
    for (path, body) in
        [("/q?id=1", "1"), ("/q?id=2", "2"), ("/q?id=1&x", "1"), ("/q?ID=1", "3"), ("/q?id=1&id=2", "4")]
    {
        assert_eq!(send(&cache, get(path)).await.text(), body, "{path}");
    }
}

/// http-cache-semantics 3.0.0 keeps the last line of a field only, on every hit and 304; drops the new fields of a 304;
/// takes RFC 850 dates and an overflowing max-age for 0.
#[tokio::test(start_paused = true)]
async fn fields_come_back_whole() {
    let origin = Origin::answering(|n, request| {
        if request.headers().contains_key("if-none-match") {
            return Response::builder()
                .status(304)
                .header("cache-control", "max-age=60")
                .header("etag", "\"1\"")
                .header("x-new", n.to_string());
        }
        with(&[
            ("cache-control", "max-age=60"),
            ("etag", "\"1\""),
            ("vary", "x-a"),
            ("vary", "x-b"),
            ("link", "<a>"),
            ("link", "<b>"),
        ])
    });
    let cache = moving(layer()).layer(origin.clone());
    let ask = |b: &str| request(Method::GET, "/", &[("x-a", "1"), ("x-b", b)]);
    send(&cache, ask("1")).await;
    for (n, renewed) in [(1, false), (2, true)] {
        let answer = send(&cache, ask("1")).await;
        let lines = |name| answer.headers.get_all(name).iter().map(|line| line.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((lines("link"), lines("vary")), (vec!["<a>", "<b>"], vec!["x-a", "x-b"]));
        assert_eq!((origin.calls(), answer.headers.contains_key("x-new")), (n, renewed));
        pass(seconds(61)).await;
    }
    pass(seconds(61)).await;
    assert_eq!(send(&cache, ask("2")).await.cache_status().split(';').nth(1), Some(" fwd=vary-miss"));

    for (name, value) in [
        ("expires", "Friday, 31-Dec-60 23:59:59 GMT"),
        ("expires", "Fri Dec 31 23:59:59 2060"),
        ("cache-control", "max-age=99999999999999999999999"),
        ("cache-control", "max-age=2147483648"),
    ] {
        let origin = Origin::answering(move |_, _| Response::builder().header(name, value));
        let cache = origin.cached();
        send(&cache, get("/")).await;
        assert!(send(&cache, get("/")).await.is_hit(), "{name}: {value}");
    }
}

/// http-cache-semantics 3.0.0 stores all request fields beside the response, credentials included.
#[tokio::test]
async fn no_request_field_is_stored_that_does_not_select() {
    let server = RedisServer::start();
    let origin = Origin::with(&[("cache-control", "public, max-age=60"), ("vary", "accept-language")]);
    let cache = redis_layer(&server).layer(origin);
    let ask = || {
        let secrets = [("authorization", "Basic hunter2"), ("cookie", "s=hunter2"), ("x-api-key", "hunter2")];
        request(Method::GET, "/", &[&secrets[..], &[("accept-language", "xx-found")]].concat())
    };
    eventually("stored", async || send(&cache, ask()).await.is_hit()).await;
    // Keys and records are bytes, not text: the server puts them together itself.
    const ALL: &str = "local all = '' for _, key in ipairs(redis.call('KEYS', '*')) do \
                       if redis.call('TYPE', key).ok == 'string' then all = all .. key .. redis.call('GET', key) end end return all";
    let dump = server.command(&["EVAL", ALL, "0"]);
    assert!(dump.contains("xx-found"), "what selects is in the key");
    assert!(!dump.contains("hunter2"));
}

/// http-cache-tower 1.0.0-alpha.9 serves stale on a 5xx only if must-revalidate is set; the RFC has it the other way.
/// pingora 0.9.1 zeroes both windows beside s-maxage, which surprises who writes both.
#[tokio::test(start_paused = true)]
async fn stale_is_for_those_who_allow_it_and_for_nobody_else() {
    for (control, beside, served) in [
        ("max-age=10, stale-if-error=60", false, true),
        ("max-age=10, stale-if-error=60, must-revalidate", false, false),
        ("max-age=10, stale-if-error=60, proxy-revalidate", false, false),
        ("max-age=10, stale-if-error=60, no-cache", false, false),
        ("s-maxage=10, stale-if-error=60", false, false),
        ("s-maxage=10, stale-if-error=60", true, true),
        ("s-maxage=10, stale-if-error=60, must-revalidate", true, false),
    ] {
        let origin = Origin::answering(move |n, _| match n {
            1 => Response::builder().header("cache-control", control).header("etag", "\"1\""),
            _ => Response::builder().status(503),
        });
        let policy = CachePolicy::safe().stale_beside_s_maxage(beside);
        let cache = moving(layer()).policy(policy).stale_if_error(seconds(60)).layer(origin.clone());
        send(&cache, get("/")).await;
        pass(seconds(11)).await;
        let answer = send(&cache, get("/")).await;
        assert_eq!((answer.status == 200, origin.calls()), (served, 2), "{control}, {beside}");
    }
}

/// nginx with ngx_cache_purge: a purge removes one variant (FRiCKLE/ngx_cache_purge#16). Souin asks Redis for 2.9 million
/// keys in one command (darkweak/souin#646).
#[tokio::test]
async fn a_purge_takes_all_variants_and_costs_redis_nothing() {
    let server = RedisServer::start();
    let origin = Origin::with(&[("cache-control", "max-age=60"), ("vary", "accept-language")]);
    let layer = redis_layer(&server);
    let (handle, cache) = (layer.handle(), layer.layer(origin));
    let ask = |language| request(Method::GET, "/", &[("accept-language", language)]);
    eventually("both are stored", async || {
        send(&cache, ask("de")).await.is_hit() && send(&cache, ask("en")).await.is_hit()
    })
    .await;
    let _ = handle.purge(&Purge::url("http://shop.example/").unwrap()).await;
    assert!(!send(&cache, ask("de")).await.is_hit() && !send(&cache, ask("en")).await.is_hit());
    for command in ["keys", "scan", "unlink", "flushdb", "flushall"] {
        assert_eq!(server.calls(command), 0, "{command}");
    }
}

/// moka with capacity 64 held 128 of 2000 entries; axum-response-cache 0.5.0 and moka#590 know no bound.
#[tokio::test]
async fn what_is_held_never_exceeds_the_budget() {
    const BUDGET: u64 = 1 << 20;
    let origin = Origin::new(|_, _| async { Ok(fresh().body(Body::from(vec![b'x'; 16 << 10])).unwrap()) });
    let layer = CacheLayer::new(MemoryStore::new(BUDGET));
    let (handle, cache) = (layer.handle(), layer.layer(origin));
    for n in 0..2000 {
        send(&cache, get(&format!("/{n}"))).await;
        let stats = handle.stats();
        assert!(stats.bytes.unwrap() <= BUDGET && stats.entries.unwrap() <= 64, "{stats:?}");
    }
    assert!(handle.stats().entries.unwrap() > 16);
}

/// redis 1.x gives up on a response after 500 ms and tower-http-cache loses large bodies in silence; large payloads in
/// one pipeline have locked redis up (fixed in 1.2.1, redis-rs#2070).
#[tokio::test]
async fn large_bodies_side_by_side_come_back_from_redis() {
    let server = RedisServer::start();
    let origin = Origin::new(|_, _| async { Ok(fresh().body(Body::from(vec![b'x'; 900 << 10])).unwrap()) });
    let cache = redis_layer(&server).layer(origin);
    let paths: Vec<_> = (0..8).map(|n| format!("/{n}")).collect();
    join_all(paths.iter().map(|path| send(&cache, get(path)))).await;
    for path in &paths {
        eventually("a whole hit", async || {
            let answer = send(&cache, get(path)).await;
            assert_eq!(answer.text().len(), 900 << 10);
            answer.is_hit()
        })
        .await;
    }
}
