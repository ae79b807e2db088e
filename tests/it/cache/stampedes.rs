//! Many who ask at once, and fetches that end badly.

use tower_http::catch_panic::CatchPanic;

use super::time::{pass, seconds};
use super::*;

/// Answers after 100 ms.
fn slow(answer: impl Fn(usize) -> Result<Response<Body>, Broken> + Clone + Send + Sync + 'static) -> Origin {
    Origin::new(move |n, _| {
        let answer = answer.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            answer(n)
        }
    })
}

async fn timed(clients: Vec<tokio::task::JoinHandle<Result<Answer, Broken>>>) -> (Vec<Result<Answer, Broken>>, u128) {
    let began = tokio::time::Instant::now();
    let answers = join_all(clients).await.into_iter().map(Result::unwrap).collect();
    (answers, began.elapsed().as_millis())
}

/// tower-http-cache 0.6.1: the leader is cancelled, and 20 who wait make 21 calls. hitbox 0.2.4: none of them ever ends.
/// bucketeer#2552: all of them fail. quick_cache and moka: a second call.
#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_takes_nobody_along() {
    let origin = slow(|n| Ok(fresh().body(text(&n.to_string())).unwrap()));
    let cache = origin.cached();
    let leader = spawn(&cache, get("/"));
    settle().await;
    let followers: Vec<_> = (0..20).map(|_| spawn(&cache, get("/"))).collect();
    pass(Duration::from_millis(50)).await;
    leader.abort();
    let (answers, took) = timed(followers).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().text() == "1"));
    assert_eq!(origin.calls(), 1);
    assert!((50..=52).contains(&took), "{took} ms");
}

/// tower-http-cache 0.6.1: 500s of a 100 ms handler take 203 ms. One after the other, each takes what the handler takes;
/// of many at once three are tried, and the rest learn from that.
#[tokio::test(start_paused = true)]
async fn server_errors_wait_for_no_mark_and_no_queue() {
    for marked in [&[] as &[(&str, &str)], &[("cache-control", "no-store")]] {
        let marked = marked.to_vec();
        let origin = slow(move |_| {
            let response =
                marked.iter().fold(Response::builder(), |response, (name, value)| response.header(*name, *value));
            Ok(response.status(500).body(text("down")).unwrap())
        });
        let cache = origin.cached();
        for n in 1..=5 {
            let (answers, took) = timed(vec![spawn(&cache, get("/"))]).await;
            assert_eq!((answers[0].as_ref().unwrap().status.as_u16(), origin.calls()), (500, n));
            assert!((100..=102).contains(&took), "{took} ms");
        }
        let (answers, took) = timed((0..20).map(|_| spawn(&cache, get("/"))).collect()).await;
        let count = |status| answers.iter().filter(|answer| answer.as_ref().unwrap().status == status).count();
        assert_eq!((count(500), count(502), origin.calls()), (3, 17, 8));
        assert!((300..=306).contains(&took), "{took} ms");
    }
}

/// What is not for sharing is not serialised: twenty at once take twice as long as one, once; then as long as one.
#[tokio::test(start_paused = true)]
async fn what_is_not_for_sharing_is_not_serialised() {
    let origin = slow(|_| Ok(Response::builder().status(404).body(text("")).unwrap()));
    let cache = origin.cached();
    for (expected, calls) in [(200..=204, 20), (100..=102, 40)] {
        let (answers, took) = timed((0..20).map(|_| spawn(&cache, get("/"))).collect()).await;
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap().status == 404));
        assert!(expected.contains(&took), "{took} ms");
        assert_eq!(origin.calls(), calls);
    }
}

/// quick_cache: ten callers of a loader that fails after 100 ms take 1012 ms.
#[tokio::test(start_paused = true)]
async fn a_handler_that_always_fails_is_tried_three_times_for_all() {
    let origin = slow(|n| Err(Broken(n)));
    let cache = origin.cached();
    let (answers, took) = timed((0..10).map(|_| spawn(&cache, get("/"))).collect()).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 3);
    assert_eq!(origin.calls(), 3);
    assert!((300..=306).contains(&took), "{took} ms");
}

/// tower-resilience-coalesce 0.14: one who waits is polled 1.2 million times in 180 ms.
#[tokio::test(start_paused = true)]
async fn who_waits_sleeps() {
    let origin = slow(|n| Ok(fresh().body(text(&n.to_string())).unwrap()));
    let cache = origin.cached();
    let leader = spawn(&cache, get("/"));
    settle().await;
    let mut polls = 0;
    let mut waiting = std::pin::pin!(try_send(&cache, get("/")));
    let answer = std::future::poll_fn(|cx| {
        polls += 1;
        waiting.as_mut().poll(cx)
    })
    .await;
    assert_eq!(answer.unwrap().text(), "1");
    assert!(polls <= 4, "{polls}");
    leader.await.unwrap().unwrap();
}

/// A panic is the request's that ran: caught outside, the others are tried again and lose nothing.
#[tokio::test(start_paused = true)]
async fn a_panic_is_caught_outside() {
    for panics in [1, 2, 9] {
        let origin = slow(move |n| {
            assert!(n > panics, "the handler panics");
            Ok(fresh().body(text(&n.to_string())).unwrap())
        });
        let service = CatchPanic::new(origin.cached());
        let clients = (0..10).map(|_| {
            let service = service.clone();
            tokio::spawn(async move { service.oneshot(get("/")).await.unwrap().status().as_u16() })
        });
        let statuses: Vec<_> = join_all(clients).await.into_iter().map(Result::unwrap).collect();
        let count = |status| statuses.iter().filter(|found| **found == status).count();
        let expected = if panics == 9 { (3, 7, 0) } else { (panics, 0, 10 - panics) };
        assert_eq!((count(500), count(502), count(200)), expected);
    }
}

/// hitbox 0.2.4 keeps the sender of a call that nobody waits for, so that every later call waits in vain.
#[tokio::test(start_paused = true)]
async fn when_all_clients_leave_the_next_one_is_served() {
    for wait in [0, 50, 500, 2000, 40_000] {
        let origin = Origin::new(|n, _| async move {
            // The first never ends.
            tokio::time::sleep(if n == 1 { seconds(3600) } else { Duration::from_millis(100) }).await;
            Ok(fresh().body(text(&n.to_string())).unwrap())
        });
        let cache = origin.cached();
        let clients: Vec<_> = (0..20).map(|_| spawn(&cache, get("/"))).collect();
        pass(Duration::from_millis(10)).await;
        clients.iter().for_each(tokio::task::JoinHandle::abort);
        settle().await;
        pass(Duration::from_millis(wait)).await;
        let (answers, took) = timed(vec![spawn(&cache, get("/"))]).await;
        assert_eq!(answers[0].as_ref().unwrap().text(), "2");
        // Where the old fetch still ran, the new one gave it its five seconds.
        let most = if wait < 1000 { 5110 } else { 110 };
        assert!(took <= most, "after {wait} ms: {took} ms");
    }
}

/// varnish-cache#4032: those who wait are woken one after the other. Here all at once, whatever the answer is.
#[tokio::test(start_paused = true)]
async fn all_who_wait_are_served_together() {
    for control in ["max-age=60", "max-age=0", "no-store", "private", "no-cache"] {
        let origin = slow(move |_| Ok(Response::builder().header("cache-control", control).body(text("")).unwrap()));
        let cache = origin.cached();
        let (_, took) = timed((0..1000).map(|_| spawn(&cache, get("/"))).collect()).await;
        let most = if control == "max-age=60" { 102 } else { 204 };
        assert!(took <= most, "{control}: {took} ms");
        assert_eq!(origin.calls(), if control == "max-age=60" { 1 } else { 1000 });
    }
}
