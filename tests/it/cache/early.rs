//! Fresh responses that are renewed ahead of their time (XFetch).
//!
//! A beta without end makes chance certain: every hit that may renew does so.

use std::sync::Mutex;

use tower_scale::cache::{CachePolicy, Purge};

use super::time::{moving, pass, seconds};
use super::*;

const MS: Duration = Duration::from_millis(1);

/// As everybody has it.
fn default_layer() -> CacheLayer {
    CacheLayer::new(MemoryStore::new(1 << 20))
}

fn certain() -> CacheLayer {
    default_layer().early_refresh(f64::INFINITY)
}

/// Answers after 50 ms.
fn taking_50_ms(build: impl Fn(usize) -> http::response::Builder + Send + Sync + 'static) -> Origin {
    Origin::new(move |n, _| {
        let response = build(n).body(text(&n.to_string())).unwrap();
        async move {
            tokio::time::sleep(50 * MS).await;
            Ok(response)
        }
    })
}

fn for_a_second(_: usize) -> http::response::Builder {
    Response::builder().extension(CacheTtl(seconds(1)))
}

/// A fetch begins about 220 ms before the end, since there are a thousand hits in the second, and takes 50: twelve in
/// ten seconds. That none begins in time has a probability of 1e-8.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_hot_key() {
    let origin = taking_50_ms(for_a_second);
    let cache = moving(default_layer()).layer(origin.clone());
    send(&cache, get("/")).await;
    for hit in 0..10_000 {
        let answer = send(&cache, get("/")).await;
        assert!(answer.cache_status().starts_with("tower-scale; hit; ttl="), "after {hit} ms: {answer:?}");
        assert!(!answer.cache_status().contains("ttl=-"), "after {hit} ms: {answer:?}");
        pass(MS).await;
    }
    assert!((10..=17).contains(&origin.calls()), "once a lifetime: {}", origin.calls());
}

#[tokio::test(start_paused = true)]
async fn a_cold_key_expires() {
    let origin = taking_50_ms(|_| Response::builder().extension(CacheTtl(seconds(10))));
    let cache = moving(certain()).layer(origin.clone());
    send(&cache, get("/")).await;
    for _ in 0..17 {
        pass(500 * MS).await;
        assert!(send(&cache, get("/")).await.is_hit());
    }
    pass(seconds(2)).await;
    assert_eq!(origin.calls(), 1, "never sooner than a second before the end");
    assert_eq!(send(&cache, get("/")).await.cache_status(), "tower-scale; fwd=stale; stored");
}

#[tokio::test(start_paused = true)]
async fn switched_off_never() {
    for beta in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
        let origin = taking_50_ms(for_a_second);
        let cache = moving(default_layer().early_refresh(beta)).layer(origin.clone());
        send(&cache, get("/")).await;
        for _ in 0..999 {
            assert!(send(&cache, get("/")).await.is_hit());
            pass(MS).await;
        }
        assert_eq!(origin.calls(), 1, "{beta}");
        pass(MS).await;
        assert!(!send(&cache, get("/")).await.is_hit());
    }
}

#[tokio::test(start_paused = true)]
async fn one_fetch_for_a_thousand_hits_and_it_validates() {
    let origin = Origin::new(|n, request| {
        let validates = request.headers().get("if-none-match").is_some_and(|tag| tag == "\"a\"");
        async move {
            tokio::time::sleep(50 * MS).await;
            let response = for_a_second(n).header("etag", "\"a\"");
            let response = if n > 1 && validates { response.status(304) } else { response };
            Ok(response.body(if n == 1 { text("1") } else { Body::empty() }).unwrap())
        }
    });
    let cache = moving(certain()).layer(origin.clone());
    send(&cache, get("/")).await;
    pass(500 * MS).await;
    let began = tokio::time::Instant::now();
    for answer in join_all((0..1000).map(|_| spawn(&cache, get("/")))).await {
        let answer = answer.unwrap().unwrap();
        assert_eq!((answer.text(), answer.cache_status()), ("1", "tower-scale; hit; ttl=0"));
    }
    settle().await;
    assert_eq!((origin.calls(), began.elapsed()), (2, Duration::ZERO), "all at once, and one fetch");
    pass(50 * MS).await;
    pass(900 * MS).await;
    let answer = send(&cache, get("/")).await;
    assert!(answer.text() == "1" && answer.is_hit(), "renewed by the 304: {answer:?}");
}

/// A failure leaves what is stored, costs nobody anything, and comes once a second at most.
#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_is_left_in_peace() {
    for failure in ["500", "error", "panic"] {
        let calls: Arc<Mutex<Vec<tokio::time::Instant>>> = Arc::default();
        let noted = calls.clone();
        let origin = Origin::new(move |n, _| {
            noted.lock().unwrap().push(tokio::time::Instant::now());
            async move {
                tokio::time::sleep(500 * MS).await;
                match failure {
                    _ if n == 1 => Ok(Response::builder().extension(CacheTtl(seconds(10))).body(text("1")).unwrap()),
                    "500" => Ok(Response::builder().status(500).body(text("down")).unwrap()),
                    "error" => Err(Broken(n)),
                    _ => panic!("the handler panics"),
                }
            }
        });
        let cache = moving(certain()).layer(origin.clone());
        send(&cache, get("/")).await;
        for _ in 0..999 {
            let answer = send(&cache, get("/")).await;
            assert!(answer.text() == "1" && answer.is_hit(), "{failure}: {answer:?}");
            pass(10 * MS).await;
        }
        let calls = calls.lock().unwrap();
        assert!((6..=8).contains(&calls.len()), "{failure}: {}", calls.len());
        let gaps = || calls[1..].windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps().all(|gap| gap >= 1500 * MS), "{failure}: {:?}", gaps().collect::<Vec<_>>());
    }
}

/// One fetch after the other is all that a response costs which takes longer than it lives.
#[tokio::test(start_paused = true)]
async fn slower_than_its_lifetime_is_one_fetch_at_a_time() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = (running.clone(), most.clone());
    let origin = Origin::new(move |n, _| {
        let (running, most) = seen.clone();
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(seconds(3)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(for_a_second(n).body(text(&n.to_string())).unwrap())
        }
    });
    let cache = moving(certain()).layer(origin.clone());
    let mut clients = Vec::new();
    for _ in 0..3000 {
        clients.push(spawn(&cache, get("/")));
        pass(10 * MS).await;
    }
    assert_eq!((origin.calls(), most.load(Ordering::SeqCst)), (10, 1));
    for client in clients {
        assert_eq!(client.await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_plain_get_without_credentials_begins_one() {
    type Fields = &'static [(&'static str, &'static str)];
    for (method, fields, expected) in [
        (Method::GET, &[] as Fields, 2),
        (Method::GET, &[("accept", "x"), ("cache-control", "no-cache")], 2),
        (Method::HEAD, &[], 1),
        (Method::GET, &[("range", "bytes=0-0")], 1),
        (Method::GET, &[("if-none-match", "\"a\"")], 1),
        (Method::GET, &[("if-modified-since", "Wed, 01 Jan 2020 00:00:00 GMT")], 1),
        (Method::GET, &[("authorization", "Basic eDp5")], 1),
        (Method::GET, &[("cookie", "session=1")], 1),
    ] {
        let origin = taking_50_ms(|n| for_a_second(n).header("cache-control", "public").header("etag", "\"a\""));
        let cache = moving(certain()).layer(origin.clone());
        send(&cache, get("/")).await;
        pass(500 * MS).await;
        let answer = send(&cache, request(method.clone(), "/", fields)).await;
        assert!(answer.is_hit(), "{method} {fields:?}: {answer:?}");
        settle().await;
        assert_eq!(origin.calls(), expected, "{method} {fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_and_parts_are_left_to_expire() {
    let missing = taking_50_ms(|_| Response::builder().status(404));
    let cache = moving(certain().negative_ttl(seconds(1))).layer(missing.clone());
    let part = taking_50_ms(|n| for_a_second(n).status(206).header("content-range", "bytes 0-0/9"));
    let parts = moving(certain().policy(CachePolicy::rfc9111())).layer(part.clone());
    let ranged = || request(Method::GET, "/", &[("range", "bytes=0-0")]);
    send(&cache, get("/")).await;
    send(&parts, ranged()).await;
    for _ in 0..9 {
        pass(100 * MS).await;
        assert!(send(&cache, get("/")).await.is_hit() && send(&parts, ranged()).await.is_hit());
        settle().await;
    }
    assert_eq!((missing.calls(), part.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_counted_by_their_reason() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let origin = taking_50_ms(|_| Response::builder().header("cache-control", "max-age=1, stale-while-revalidate=60"));
    let layer = moving(certain());
    let (cache, handle) = (layer.layer(origin.clone()), layer.handle());
    let counted = |early: u64, stale: u64| {
        let text = recorder.handle().render();
        for line in [
            format!("cache_refreshes_total{{reason=\"early\"}} {early}\n"),
            format!("cache_refreshes_total{{reason=\"stale\"}} {stale}\n"),
        ] {
            assert!(text.contains(&line), "{line} {text}");
        }
    };
    let renewed = async || {
        assert!(send(&cache, get("/")).await.is_hit());
        settle().await;
        pass(50 * MS).await;
    };
    send(&cache, get("/")).await;
    renewed().await;
    counted(1, 0);
    pass(seconds(2)).await;
    renewed().await;
    counted(1, 1);
    handle.soft_purge(&Purge::everything());
    renewed().await;
    counted(1, 2);
    assert!(recorder.handle().render().contains("cache_requests_total{outcome=\"hit\"} 1\n"), "counted as any hit");
}

/// What it cost to fetch is known to who did not fetch it.
#[tokio::test]
async fn what_one_process_fetched_another_renews() {
    let server = RedisServer::start();
    let origin = taking_50_ms(for_a_second);
    let now = std::time::SystemTime::now();
    // The end never comes.
    let layer = || redis_layer(&server).clock(move || now);
    let one = layer().early_refresh(0.0).layer(origin.clone());
    let two = layer().early_refresh(f64::INFINITY).layer(origin.clone());
    eventually("one stores", async || send(&one, get("/")).await.is_hit()).await;
    let calls = origin.calls();
    eventually("the other renews", async || {
        send(&two, get("/")).await;
        origin.calls() > calls
    })
    .await;
}
