//! One cache on several routes, each with its own options; and the options that change lifetimes.

use axum::Router;
use axum::routing::get as route;
use http::header::HeaderName;

use super::time::{moving, pass, seconds};
use super::*;

async fn ask(app: &Router, path: &str, fields: &[(&str, &str)]) -> (String, String) {
    let request = fields
        .iter()
        .fold(Request::builder().uri(path).header("host", "a"), |r, (name, value)| r.header(*name, *value));
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.headers().get("cache-status").map_or("", |status| status.to_str().unwrap()).to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (String::from_utf8(body.to_vec()).unwrap(), status)
}

#[tokio::test(start_paused = true)]
async fn clones_of_one_layer_with_options_of_their_own() {
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = move || {
        let n = calls.fetch_add(1, Ordering::SeqCst) + 1;
        async move { n.to_string() }
    };
    let layer = moving(layer());
    let app = Router::new()
        .route("/short", route(handler.clone()).layer(layer.clone().ttl(seconds(5))))
        .route("/long", route(handler.clone()).layer(layer.clone().ttl(seconds(50))))
        .route("/never", route(handler.clone()).layer(layer.clone()))
        .route("/page", route(handler.clone()).layer(layer.clone().ttl(seconds(50)).query_parameters(["page"])))
        .route("/anyone", route(handler.clone()).layer(layer.clone().ttl(seconds(50)).share_despite_cookies()))
        .route(
            "/tenant",
            route(handler).layer(layer.clone().ttl(seconds(50)).key_header(HeaderName::from_static("x-tenant"))),
        );
    let expect = async |path, fields: &[(&str, &str)], expected: &str| {
        let (body, _) = ask(&app, path, fields).await;
        assert_eq!(body, expected, "{path} {fields:?}");
    };
    for (path, fields, body) in [
        ("/short", &[] as &[(&str, &str)], "1"),
        ("/long", &[], "2"),
        ("/never", &[], "3"),
        ("/never", &[], "4"),
        ("/page?page=1&utm=1", &[], "5"),
        ("/page?page=1&utm=2", &[], "5"),
        ("/long?utm=1", &[], "6"),
        ("/long?utm=2", &[], "7"),
        ("/anyone", &[("cookie", "alice")], "8"),
        ("/anyone", &[("cookie", "bob")], "8"),
        ("/long", &[("cookie", "bob")], "9"),
        ("/tenant", &[("x-tenant", "a")], "10"),
        ("/tenant", &[("x-tenant", "b")], "11"),
        ("/tenant", &[("x-tenant", "a")], "10"),
        ("/long", &[("x-tenant", "a")], "2"),
        ("/short", &[], "1"),
    ] {
        expect(path, fields, body).await;
    }
    pass(seconds(6)).await;
    expect("/short", &[], "12").await;
    expect("/long", &[], "2").await;
    // One handle for all of them.
    layer.handle().purge(&tower_scale::cache::Purge::everything());
    for (path, body) in [("/short", "13"), ("/long", "14"), ("/tenant", "15"), ("/long", "14")] {
        expect(path, &[], body).await;
    }
}

fn ttl(status: &str) -> u64 {
    status.rsplit("ttl=").next().unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn jitter_shortens_and_never_lengthens() {
    for (part, least) in [(0.0, 1000), (0.3, 700), (1.0, 0), (7.0, 0), (-1.0, 1000)] {
        let origin = Origin::with(&[("cache-control", "max-age=1000")]);
        let cache = moving(layer()).ttl_jitter(part).layer(origin);
        let mut lifetimes = Vec::new();
        for n in 0..200 {
            let path = format!("/{n}");
            send(&cache, get(&path)).await;
            let hit = send(&cache, get(&path)).await;
            if hit.is_hit() {
                lifetimes.push(ttl(hit.cache_status()));
            }
        }
        assert!(lifetimes.len() > 190, "{part}");
        assert!(lifetimes.iter().all(|ttl| (least..=1000).contains(ttl)), "{part}: {lifetimes:?}");
        lifetimes.sort_unstable();
        lifetimes.dedup();
        assert_eq!(lifetimes.len() > 50, least < 1000, "{part}: {lifetimes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_exist_is_stored_for_ten_seconds_at_most() {
    for status in (400..=431).chain([451]).chain(500..=511) {
        let stored = [404, 410].contains(&status);
        for (asked, lifetime) in [(5, 5), (3600, 10)] {
            let origin = Origin::answering(move |_, _| Response::builder().status(status));
            let cache = moving(layer()).ttl(seconds(60)).negative_ttl(seconds(asked)).layer(origin);
            send(&cache, get("/")).await;
            let second = send(&cache, get("/")).await;
            assert_eq!(second.is_hit(), stored, "{status}");
            if stored {
                assert_eq!(ttl(second.cache_status()), lifetime, "{status}");
                pass(seconds(lifetime)).await;
                assert!(!send(&cache, get("/")).await.is_hit());
            }
        }
    }
    // What the response says itself comes first, and nothing is for others that came to credentials.
    for (control, fields, stored) in [
        ("max-age=60", &[] as &[(&str, &str)], true),
        ("no-store", &[], false),
        ("private", &[], false),
        ("max-age=0", &[], false),
        ("x", &[("cookie", "a")], false),
        ("x", &[("authorization", "a")], false),
        ("public", &[("authorization", "a")], true),
    ] {
        let origin = Origin::answering(move |_, _| Response::builder().status(404).header("cache-control", control));
        let cache = moving(layer()).negative_ttl(seconds(5)).layer(origin);
        send(&cache, request(Method::GET, "/", fields)).await;
        assert_eq!(send(&cache, get("/")).await.is_hit(), stored, "{control} {fields:?}");
    }
}

/// The clock decides about freshness and `Age`; one that jumps back makes nothing fresh again.
#[tokio::test]
async fn the_clock_decides() {
    let now = Arc::new(std::sync::Mutex::new(std::time::SystemTime::now()));
    let clock = now.clone();
    let origin = Origin::with(&[("cache-control", "max-age=60")]);
    let cache = layer().clock(move || *clock.lock().unwrap()).layer(origin.clone());
    send(&cache, get("/")).await;
    for (moved, calls) in [(59, 1), (2, 2), (0, 2)] {
        *now.lock().unwrap() += seconds(moved);
        let answer = send(&cache, get("/")).await;
        assert_eq!(origin.calls(), calls, "{answer:?}");
    }
    *now.lock().unwrap() -= seconds(3600);
    assert!(!send(&cache, get("/")).await.is_hit());
    assert_eq!(origin.calls(), 3);
}
