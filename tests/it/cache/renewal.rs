//! What renews, replaces and outdates a stored response.

use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use tower_scale::cache::CachePolicy;

use super::*;

/// A clock that only a test moves.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn on(&self, layer: CacheLayer) -> CacheLayer {
        let (hands, begin) = (self.clone(), SystemTime::now());
        layer.clock(move || begin + Duration::from_secs(hands.0.load(Ordering::SeqCst)))
    }

    fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

/// One answer for each call, the last one for all that follow: status and fields. The body is the number of the call.
fn script(answers: &'static [(u16, &'static [(&'static str, &'static str)])]) -> Origin {
    Origin::new(move |n, _| {
        let (status, fields) = answers[(n - 1).min(answers.len() - 1)];
        let response =
            fields.iter().fold(Response::builder().status(status), |b, (name, value)| b.header(*name, *value));
        let body = if status == 304 { Body::empty() } else { text(&n.to_string()) };
        let response = response.body(body).unwrap();
        async move { Ok(response) }
    })
}

fn asking(fields: &[(&str, &str)]) -> Request<ReqBody> {
    request(Method::GET, "/", fields)
}

#[tokio::test]
async fn only_if_cached_in_vain_says_so() {
    let cache = layer().policy(CachePolicy::safe().request_directives(true)).layer(Origin::with(&[]));
    let answer = send(&cache, asking(&[("cache-control", "only-if-cached")])).await;
    assert_eq!(answer.status, 504);
    assert!(answer.headers.contains_key("cache-status"));
}

#[tokio::test]
async fn a_head_that_contradicts_what_is_stored_outdates_it() {
    let hands = Hands::default();
    let origin = script(&[
        (200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")]),
        (200, &[("cache-control", "max-age=60"), ("etag", "\"b\"")]),
    ]);
    let cache = hands.on(layer()).policy(CachePolicy::safe().request_directives(true)).layer(origin);
    send(&cache, get("/")).await;
    let head = send(&cache, request(Method::HEAD, "/", &[("cache-control", "no-cache")])).await;
    assert_eq!(head.headers["etag"], "\"b\"");
    let answer = send(&cache, get("/")).await;
    assert!(!answer.is_hit(), "{answer:?}");
}

#[tokio::test]
async fn what_is_gone_is_not_served_stale() {
    let hands = Hands::default();
    let origin =
        script(&[(200, &[("cache-control", "max-age=1, stale-while-revalidate=3600"), ("etag", "\"a\"")]), (404, &[])]);
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    assert_eq!(send(&cache, get("/")).await.status, 200);
    settle().await;
    assert_eq!(origin.calls(), 2);
    let answer = send(&cache, get("/")).await;
    assert_eq!(answer.status, 404, "{answer:?}");
}

#[tokio::test]
async fn what_has_become_private_is_not_served_stale() {
    let hands = Hands::default();
    let origin = script(&[
        (200, &[("cache-control", "max-age=1, stale-while-revalidate=3600"), ("etag", "\"a\"")]),
        (200, &[("cache-control", "private")]),
    ]);
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    assert_eq!(send(&cache, get("/")).await.status, 200);
    settle().await;
    assert_eq!(origin.calls(), 2);
    let answer = send(&cache, get("/")).await;
    assert_eq!(answer.text(), "3", "{answer:?}");
}

#[tokio::test]
async fn a_304_without_a_tag_is_never_taken_for_another_variant() {
    // The French page is the English one; a 304 names no tag.
    let origin = Origin::new(|_, request| {
        let field = |name| request.headers().get(name).map_or("", |value| value.to_str().unwrap());
        let language = if field("accept-language") == "fr" { "en" } else { field("accept-language") };
        let tag = format!("\"{language}\"");
        let response = fresh().header("vary", "accept-language");
        let response = if field("if-none-match").contains(&tag) {
            response.status(304).body(Body::empty())
        } else {
            response.header("etag", tag).body(text(language))
        };
        async move { Ok(response.unwrap()) }
    });
    let cache = origin.cached();
    for language in ["en", "de"] {
        send(&cache, asking(&[("accept-language", language)])).await;
    }
    for expected in ["fwd=vary-miss", "hit"] {
        let answer = send(&cache, asking(&[("accept-language", "fr")])).await;
        assert!(answer.text() == "en" && answer.cache_status().contains(expected), "{answer:?}");
    }
}

#[tokio::test]
async fn a_304_never_makes_a_weak_tag_strong() {
    let hands = Hands::default();
    let origin = script(&[
        (200, &[("cache-control", "max-age=1"), ("etag", "W/\"a\"")]),
        (304, &[("cache-control", "max-age=60"), ("etag", "\"a\"")]),
    ]);
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    send(&cache, get("/")).await;
    let answer = send(&cache, asking(&[("range", "bytes=0-0"), ("if-range", "\"a\"")])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_304_with_another_tag_leaves_the_stored_one() {
    let hands = Hands::default();
    let origin = script(&[
        (200, &[("cache-control", "max-age=1"), ("etag", "\"a\"")]),
        (304, &[("cache-control", "max-age=60"), ("etag", "\"b\"")]),
    ]);
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    send(&cache, get("/")).await;
    let answer = send(&cache, asking(&[("if-none-match", "\"b\"")])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn an_error_is_not_validated() {
    let hands = Hands::default();
    let origin = Origin::new(|n, request| {
        let b = Response::builder().header("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT");
        let response = match n {
            1 => b.status(404).header("cache-control", "max-age=1, stale-if-error=60").body(text("gone")),
            _ if request.headers().contains_key("if-modified-since") => {
                b.status(304).header("cache-control", "max-age=60").body(Body::empty())
            }
            _ => b.header("cache-control", "max-age=60").body(text("there")),
        }
        .unwrap();
        async move { Ok(response) }
    });
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    let answer = send(&cache, get("/")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "there"), "{answer:?}");
}

#[tokio::test]
async fn a_location_with_a_url_in_its_query_or_with_dot_segments_is_invalidated() {
    for (status, location, changed, named) in
        [(303, "/a?next=http://b/", "/x", "/a?next=http://b/"), (201, "../a/./7", "/b/c", "/a/7")]
    {
        let origin = Origin::answering(move |_, request| match *request.method() {
            Method::POST => Response::builder().status(status).header("location", location),
            _ => fresh(),
        });
        let cache = origin.cached();
        send(&cache, get(named)).await;
        assert!(send(&cache, get(named)).await.is_hit(), "{location}");
        send(&cache, request(Method::POST, changed, &[])).await;
        assert!(!send(&cache, get(named)).await.is_hit(), "{location}");
    }
}

#[tokio::test]
async fn endless_stale_periods_keep_nothing_from_being_stored() {
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let cache = layer()
        .stale_if_error(Duration::MAX)
        .stale_while_revalidate(Duration::MAX)
        .ttl_jitter(1.0)
        .layer(origin.clone());
    send(&cache, get("/")).await;
    assert!(send(&cache, get("/")).await.cache_status().contains("hit"));
}

#[tokio::test]
async fn an_endless_timeout_is_none() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60")]);
    let cache = layer().stale_if_error(Duration::from_secs(5)).fetch_timeout(Duration::MAX).layer(origin.clone());
    let first = spawn(&cache, get("/"));
    settle().await;
    let second = spawn(&cache, get("/"));
    settle().await;
    gate.add_permits(9);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_ttl_of_zero_stores_nothing() {
    let origin =
        Origin::answering(|_, _| Response::builder().header("etag", "\"a\"").extension(CacheTtl(Duration::ZERO)));
    let cache = layer().stale_while_revalidate(Duration::from_secs(60)).layer(origin.clone());
    let first = send(&cache, get("/")).await;
    let second = send(&cache, get("/")).await;
    assert_eq!(second.text(), "2", "{first:?} {second:?}");
}

#[tokio::test]
async fn a_clock_beyond_all_dates_stores_without_one() {
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let cache = layer().clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800)).layer(origin.clone());
    send(&cache, get("/")).await;
}

#[tokio::test]
async fn fields_for_one_client_reach_it_also_by_a_304() {
    let hands = Hands::default();
    let origin = script(&[
        (200, &[("cache-control", "max-age=1, private=\"x-user\""), ("etag", "\"a\""), ("x-user", "1")]),
        (304, &[("cache-control", "max-age=60, private=\"x-user\""), ("etag", "\"a\""), ("x-user", "2")]),
    ]);
    let cache = hands.on(layer()).layer(origin.clone());
    assert_eq!(send(&cache, get("/")).await.headers["x-user"], "1");
    hands.pass(2);
    let answer = send(&cache, get("/")).await;
    assert_eq!(answer.headers["x-user"], "2");
}

#[tokio::test]
async fn who_goes_alone_has_the_timeout_too() {
    let hands = Hands::default();
    let origin = Origin::new(|n, _| async move {
        if n > 1 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        Ok(Response::builder()
            .header("cache-control", "max-age=0, stale-if-error=60")
            .header("etag", "\"a\"")
            .body(text(&n.to_string()))
            .unwrap())
    });
    let cache = hands.on(layer()).fetch_timeout(Duration::from_millis(100)).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    let answer = send(&cache, get("/")).await;
    assert!(answer.cache_status().contains("stale-if-error"), "{answer:?}");
}

#[tokio::test]
async fn a_stale_response_stands_in_for_an_error_to_head_too() {
    let hands = Hands::default();
    let origin = script(&[(200, &[("cache-control", "max-age=1, stale-if-error=60"), ("etag", "\"a\"")]), (503, &[])]);
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    assert_eq!(send(&cache, get("/")).await.status, 200);
    let answer = send(&cache, request(Method::HEAD, "/", &[])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_targeted_field_decides_what_is_immutable() {
    let hands = Hands::default();
    let origin = Origin::with(&[("cache-control", "max-age=60, immutable"), ("cdn-cache-control", "max-age=60")]);
    let cache = hands.on(layer()).policy(CachePolicy::safe().request_directives(true)).layer(origin);
    send(&cache, get("/")).await;
    let answer = send(&cache, asking(&[("cache-control", "no-cache")])).await;
    assert_eq!(answer.text(), "2", "{answer:?}");
}

#[tokio::test]
async fn nothing_is_stored_without_its_vary() {
    let hands = Hands::default();
    let origin = Origin::new(|_, request| {
        let lang = request.headers().get("accept-language").unwrap().to_str().unwrap().to_owned();
        let b = Response::builder().header("cache-control", "max-age=5, no-cache=\"vary\"").header("etag", "\"x\"");
        let r = if request.headers().contains_key("if-none-match") {
            b.status(304).body(Body::empty())
        } else {
            b.header("vary", "accept-language").body(text(&lang))
        }
        .unwrap();
        async move { Ok(r) }
    });
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, asking(&[("accept-language", "en")])).await;
    hands.pass(6);
    send(&cache, asking(&[("accept-language", "en")])).await;
    let answer = send(&cache, asking(&[("accept-language", "de")])).await;
    assert_ne!(answer.text(), "en");
}

#[tokio::test]
async fn a_304_leaves_the_digest_of_the_stored_content() {
    let hands = Hands::default();
    let origin = script(&[
        (200, &[("cache-control", "max-age=1"), ("etag", "\"a\""), ("content-digest", "sha-256=:aGk=:")]),
        (304, &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-digest", "sha-256=:empty:")]),
    ]);
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    let answer = send(&cache, get("/")).await;
    assert_eq!(answer.headers["content-digest"], "sha-256=:aGk=:");
}

#[tokio::test]
async fn an_error_that_nobody_may_keep_is_no_reason_not_to_serve_stale() {
    let hands = Hands::default();
    let origin = Origin::new(|n, _| async move {
        let b = Response::builder();
        Ok(if n == 1 {
            b.header("cache-control", "max-age=1, stale-if-error=60").body(text("1"))
        } else {
            b.status(503).extension(tower_scale::cache::NoStore).body(text("bad"))
        }
        .unwrap())
    });
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    assert_eq!(send(&cache, get("/")).await.text(), "1");
    assert_eq!(send(&cache, get("/")).await.text(), "1");
}

#[tokio::test]
async fn a_compressed_variant_never_answers_who_cannot_read_it() {
    // As nginx does: strong tag for the plain form, weak for the compressed, strong in every 304.
    let origin = Origin::new(|_, request| {
        let gzip = request.headers().get("accept-encoding").is_some_and(|v| v == "gzip");
        let b = fresh().header("vary", "accept-encoding");
        let r = if request.headers().contains_key("if-none-match") {
            b.status(304).header("etag", "\"a\"").body(Body::empty())
        } else if gzip {
            b.header("etag", "W/\"a\"").header("content-encoding", "gzip").body(text("gz"))
        } else {
            b.header("etag", "\"a\"").body(text("plain"))
        };
        let r = r.unwrap();
        async move { Ok(r) }
    });
    let cache = origin.cached();
    send(&cache, asking(&[("accept-encoding", "gzip")])).await;
    let answer = send(&cache, get("/")).await;
    assert_eq!(answer.text(), "plain", "{answer:?}");
}

#[tokio::test]
async fn fields_for_one_client_reach_it_also_by_a_304_of_ours() {
    let origin =
        Origin::with(&[("cache-control", "max-age=60, private=\"x-user\""), ("etag", "\"a\""), ("x-user", "1")]);
    let cache = origin.cached();
    let first = send(&cache, asking(&[("if-none-match", "\"a\"")])).await;
    assert_eq!((first.status.as_u16(), &first.headers["x-user"]), (304, &"1".parse().unwrap()));
    let second = send(&cache, get("/")).await;
    assert!(second.is_hit() && !second.headers.contains_key("x-user"), "{second:?}");
}

#[tokio::test]
async fn what_was_never_fresh_is_not_served_stale_by_default() {
    for fields in [
        &[("cache-control", "max-age=0")] as &[_],
        &[("cache-control", "max-age=0"), ("etag", "\"a\"")],
        &[("expires", "0")],
        &[],
    ] {
        let origin = Origin::with(fields);
        for policy in [CachePolicy::safe(), CachePolicy::rfc9111()] {
            let cache = layer().policy(policy).stale_while_revalidate(Duration::from_secs(60)).layer(origin.clone());
            for _ in 0..2 {
                assert!(!send(&cache, get("/")).await.is_hit(), "{fields:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_missing_is_stored_for_ten_seconds_at_most() {
    let hands = Hands::default();
    let day = Duration::from_secs(24 * 3600);
    let cache =
        hands.on(layer()).negative_ttl(day).stale_while_revalidate(day).layer(script(&[(404, &[]), (200, &[])]));
    send(&cache, get("/")).await;
    hands.pass(9);
    assert_eq!(send(&cache, get("/")).await.status, 404);
    hands.pass(2);
    assert_eq!(send(&cache, get("/")).await.status, 200);
}

#[tokio::test]
async fn a_head_is_never_answered_with_a_part() {
    let origin = Origin::answering(|_, request| match *request.method() {
        Method::GET => fresh().status(206).header("content-range", "bytes 0-0/9"),
        _ => fresh(),
    });
    let cache = layer().policy(CachePolicy::rfc9111()).layer(origin);
    send(&cache, asking(&[("range", "bytes=0-0")])).await;
    assert!(send(&cache, asking(&[("range", "bytes=0-0")])).await.is_hit());
    assert_eq!(send(&cache, request(Method::HEAD, "/", &[("range", "bytes=0-0")])).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_in_vain_has_the_stale_response_instead_of_an_error() {
    let hands = Hands::default();
    let origin = Origin::new(|n, _| async move {
        let response = fresh().header("cache-control", "stale-if-error=600");
        match n {
            1 => Ok(response.body(text("1")).unwrap()),
            2 => std::future::pending().await,
            3 => Ok(Response::builder().status(503).body(Body::empty()).unwrap()),
            _ => Err(Broken(n)),
        }
    });
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(61);
    let _first = spawn(&cache, get("/"));
    settle().await;
    for _ in 0..2 {
        let answer = send(&cache, get("/")).await;
        assert!(answer.text() == "1" && answer.cache_status().contains("stale-if-error"), "{answer:?}");
    }
    assert_eq!(origin.calls(), 4);
}

#[tokio::test]
async fn a_panic_of_who_goes_alone_is_answered_with_the_stale_response() {
    let hands = Hands::default();
    let origin = Origin::new(|n, _| async move {
        assert!(n == 1, "a panic of the handler, as the test wants it");
        let response = Response::builder().header("cache-control", "max-age=0, stale-if-error=60");
        Ok(response.header("etag", "\"a\"").body(text("1")).unwrap())
    });
    let cache = hands.on(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    hands.pass(2);
    assert_eq!(send(&cache, get("/")).await.text(), "1");
    hands.pass(60);
    let panic = tokio::spawn(async move { send(&cache, get("/")).await.status }).await.unwrap_err();
    assert!(panic.is_panic());
}

#[tokio::test(start_paused = true)]
async fn a_head_that_came_too_late_is_not_stored_for_get() {
    let hands = Hands::default();
    let origin = Origin::new(|n, request| async move {
        let is_head = *request.method() == Method::HEAD;
        tokio::time::sleep(Duration::from_secs(if is_head { 2 } else { 0 })).await;
        let body = if is_head { Body::empty() } else { text(&n.to_string()) };
        Ok(fresh().header("cache-control", "stale-if-error=60").body(body).unwrap())
    });
    let cache = hands.on(layer()).fetch_timeout(Duration::from_secs(1)).layer(origin);
    send(&cache, get("/")).await;
    hands.pass(61);
    let head = send(&cache, request(Method::HEAD, "/", &[])).await;
    assert!(head.cache_status().contains("stale-if-error"), "{head:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(send(&cache, get("/")).await.text(), "3");
}

#[tokio::test(start_paused = true)]
async fn our_member_stands_also_where_cache_status_is_for_one_client_alone() {
    let hands = Hands::default();
    let origin = Origin::answering(|n, _| {
        let response = Response::builder().status(if n == 1 { 200 } else { 304 }).header("etag", "\"a\"");
        response.header("cache-control", "max-age=5, no-cache=\"cache-status\"").header("cache-status", "origin; hit")
    });
    let cache = hands.on(layer()).layer(origin);
    for (expected, lines) in [("uri-miss", 2), ("; hit", 1), ("fwd=stale; fwd-status=304", 2)] {
        let answer = send(&cache, get("/")).await;
        assert!(answer.cache_status().contains(expected), "{answer:?}");
        assert_eq!(answer.headers.get_all("cache-status").iter().count(), lines, "{answer:?}");
        hands.pass(3);
    }
}
