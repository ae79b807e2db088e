//! What has expired (RFC 5861): renewed once, and instead of what failures, for whom.

use tower_scale::cache::Purge;

use super::time::{moving, pass, seconds};
use super::*;

/// The first call succeeds; later ones do as `then` says.
fn once(control: &'static str, then: impl Fn(usize) -> Answering + Send + Sync + 'static) -> Origin {
    Origin::new(move |n, _| match n {
        1 => Box::pin(async move {
            let response = Response::builder().header("cache-control", control).header("etag", "\"1\"");
            Ok(response.body(text("1")).unwrap())
        }),
        n => then(n),
    })
}

const RENEWED: &str = "max-age=10, stale-while-revalidate=600";

#[tokio::test(start_paused = true)]
async fn a_thousand_stale_hits_are_one_refresh() {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = gate.clone();
    let origin = once(RENEWED, move |n| {
        let gate = waiting.clone();
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Ok(Response::builder().header("cache-control", RENEWED).body(text(&n.to_string())).unwrap())
        })
    });
    let cache = moving(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    pass(seconds(11)).await;
    let hits = join_all((0..1000).map(|_| spawn(&cache, get("/")))).await;
    for hit in hits {
        let hit = hit.unwrap().unwrap();
        assert_eq!((hit.text(), hit.cache_status()), ("1", "tower-scale; hit; ttl=-1"));
    }
    assert_eq!(origin.calls(), 2);
    gate.add_permits(1);
    settle().await;
    let hit = send(&cache, get("/")).await;
    assert_eq!((hit.text(), hit.cache_status(), origin.calls()), ("2", "tower-scale; hit; ttl=10", 2));
}

type Fail = fn(usize) -> Answering;

const FAILURES: [(&str, Fail); 7] = [
    ("500", |_| status(500)),
    ("502", |_| status(502)),
    ("503", |_| status(503)),
    ("504", |_| status(504)),
    ("error", |n| Box::pin(async move { Err(Broken(n)) })),
    ("panic", |_| Box::pin(async { panic!("the handler panics") })),
    ("panic before its future", |_| panic!("the handler panics")),
];

fn status(status: u16) -> Answering {
    Box::pin(async move { Ok(Response::builder().status(status).body(text("down")).unwrap()) })
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_is_tried_once_a_second() {
    for (what, fail) in FAILURES {
        let origin = once(RENEWED, fail);
        let cache = moving(layer()).layer(origin.clone());
        send(&cache, get("/")).await;
        pass(seconds(11)).await;
        for tenth in 0..50 {
            for _ in 0..10 {
                assert_eq!(send(&cache, get("/")).await.text(), "1", "{what}");
                settle().await;
            }
            let most = 2 + tenth / 10;
            assert!(origin.calls() <= most + 1 && (tenth > 0 || origin.calls() == 2), "{what}: {}", origin.calls());
            pass(Duration::from_millis(100)).await;
        }
        assert!(origin.calls() >= 5, "{what}: it is tried again: {}", origin.calls());
    }
}

/// What has come in place of the stored response is not for sharing: nobody gets the outdated one any more.
#[tokio::test(start_paused = true)]
async fn a_refresh_whose_response_is_not_for_sharing_ends_what_is_stored() {
    let origin = once(RENEWED, |n| {
        let control = if n < 4 { "no-store" } else { RENEWED };
        let response = Response::builder().header("cache-control", control).body(text(&n.to_string())).unwrap();
        Box::pin(async { Ok(response) })
    });
    let cache = moving(layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    pass(seconds(11)).await;
    assert_eq!(send(&cache, get("/")).await.text(), "1", "while it is renewed");
    settle().await;
    for live in ["3", "4", "4"] {
        assert_eq!(send(&cache, get("/")).await.text(), live);
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_from_the_start_is_renewed_by_every_use() {
    let origin = Origin::with(&[("cache-control", "max-age=0, stale-while-revalidate=60")]);
    let cache = moving(layer()).layer(origin.clone());
    for served in ["1", "1", "2", "3", "4"] {
        assert_eq!(send(&cache, get("/")).await.text(), served);
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn stale_instead_of_any_failure_for_all_who_wait() {
    const FIELD: &str = "max-age=10, stale-if-error=600";
    let slow: (&str, Fail) = ("a timeout", |n| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(Response::builder().header("cache-control", FIELD).body(text(&n.to_string())).unwrap())
        })
    });
    for (what, fail) in FAILURES.into_iter().chain([slow]) {
        let origin = once(FIELD, fail);
        let cache = moving(layer()).fetch_timeout(seconds(1)).layer(origin.clone());
        send(&cache, get("/")).await;
        pass(seconds(11)).await;
        let began = tokio::time::Instant::now();
        let clients: Vec<_> = (0..10).map(|_| spawn(&cache, get("/"))).collect();
        for client in join_all(clients).await {
            let answer = client.unwrap().unwrap();
            assert_eq!((answer.status.as_u16(), answer.text()), (200, "1"), "{what}");
            assert!(answer.cache_status().contains("stale-if-error"), "{what}: {}", answer.cache_status());
        }
        assert!(began.elapsed() <= Duration::from_millis(1002), "{what}: {:?}", began.elapsed());
        assert_eq!(origin.calls(), 2, "{what}: the failure counts for all");
    }
}

#[tokio::test(start_paused = true)]
async fn other_answers_are_never_replaced() {
    for code in [200, 301, 400, 401, 403, 404, 405, 410, 418, 429] {
        let origin = once("max-age=10, stale-if-error=600", move |_| status(code));
        let cache = moving(layer()).layer(origin);
        send(&cache, get("/")).await;
        pass(seconds(11)).await;
        assert_eq!(send(&cache, get("/")).await.status, code);
    }
}

#[tokio::test(start_paused = true)]
async fn never_stale_where_that_is_forbidden() {
    for control in [
        "max-age=10, must-revalidate",
        "max-age=10, proxy-revalidate",
        "max-age=10, no-cache",
        "s-maxage=10",
        "max-age=10, stale-if-error=0",
        "max-age=10, stale-if-error=x",
    ] {
        for (what, fail) in FAILURES {
            let origin = once(control, fail);
            let layer = moving(layer()).stale_if_error(seconds(600)).fetch_timeout(seconds(1));
            let cache = layer.layer(origin.clone());
            send(&cache, get("/")).await;
            pass(seconds(11)).await;
            match spawn(&cache, get("/")).await {
                Ok(Ok(answer)) => assert!(answer.status.is_server_error(), "{control} {what}: {answer:?}"),
                Ok(Err(Broken(n))) => assert_eq!(n, 2),
                Err(error) => assert!(error.is_panic()),
            }
        }
    }
    // The window has an end.
    let origin = once("max-age=10, stale-if-error=20", |_| status(503));
    let cache = moving(layer()).layer(origin);
    send(&cache, get("/")).await;
    pass(seconds(29)).await;
    assert_eq!(send(&cache, get("/")).await.status, 200);
    pass(seconds(2)).await;
    assert_eq!(send(&cache, get("/")).await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn what_was_purged_hard_stands_in_for_nothing_and_soft_for_an_error() {
    for (what, fail) in FAILURES {
        for soft in [false, true] {
            let origin = once("max-age=10, stale-if-error=600", fail);
            let layer = moving(layer());
            let (handle, cache) = (layer.handle(), layer.layer(origin.clone()));
            send(&cache, get("/")).await;
            let purge = Purge::url("http://shop.example/").unwrap();
            if soft {
                handle.soft_purge(&purge);
            } else {
                handle.purge(&purge);
            }
            let answer = spawn(&cache, get("/")).await;
            let stale = answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200));
            assert_eq!((stale, origin.calls()), (soft, 2), "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_purged_softly_is_served_while_it_is_renewed() {
    let origin = once(RENEWED, |n| {
        Box::pin(
            async move { Ok(Response::builder().header("cache-control", RENEWED).body(text(&n.to_string())).unwrap()) },
        )
    });
    let layer = moving(layer());
    let (handle, cache) = (layer.handle(), layer.layer(origin.clone()));
    send(&cache, get("/")).await;
    handle.soft_purge(&Purge::everything());
    assert_eq!(send(&cache, get("/")).await.text(), "1");
    settle().await;
    assert_eq!(send(&cache, get("/")).await.text(), "2");
    assert_eq!(origin.calls(), 2);
}

/// The refresh must not take over what the client asked for itself.
#[tokio::test(start_paused = true)]
async fn a_refresh_asks_for_the_whole() {
    for (method, field) in [(Method::HEAD, None), (Method::GET, Some(("range", "bytes=0-0")))] {
        let origin = Origin::new(|n, request| async move {
            assert_eq!((request.method(), request.headers().get("range")), (&Method::GET, None));
            Ok(Response::builder().header("cache-control", RENEWED).body(text(&format!("whole{n}"))).unwrap())
        });
        let cache = moving(layer()).layer(origin);
        send(&cache, get("/")).await;
        pass(seconds(11)).await;
        send(&cache, request(method, "/", field.as_slice())).await;
        settle().await;
        assert_eq!(send(&cache, get("/")).await.text(), "whole2");
    }
}
