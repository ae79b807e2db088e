//! Fewer trips to Redis: checks that go together, and tokens on lease. Each layer stands for an instance.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{Lease, Quota, RateLimitLayer};
use tower_scale::redis::Redis;

use crate::support::eventually;
use crate::support::redis_server::RedisServer;

const IP: &str = "203.0.113.9";

fn redis(server: &RedisServer) -> Redis {
    Redis::connect(&server.url()).unwrap().time_budget(Duration::from_secs(5))
}

fn through(server: &RedisServer, quota: Quota) -> RateLimitLayer {
    RateLimitLayer::new(quota).redis(redis(server))
}

async fn is_admitted(layer: &RateLimitLayer, ip: &str) -> bool {
    let handler = service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>(Response::new(Full::default())) });
    let peer = PeerAddr(SocketAddr::new(ip.parse().unwrap(), 4711));
    let request = Request::builder().extension(peer).body(Full::default()).unwrap();
    let response: Response<_> = layer.layer(handler).oneshot(request).await.unwrap();
    response.status() == 200
}

async fn admitted(layers: &[RateLimitLayer], requests: usize) -> usize {
    let questions = (0..requests).map(|nth| is_admitted(&layers[nth % layers.len()], IP));
    join_all(questions).await.into_iter().filter(|admitted| *admitted).count()
}

/// Connected, and aware of all changes: from now on instances trust what they know.
async fn warm_up(layers: &[RateLimitLayer], server: &RedisServer) {
    let calls = || server.calls("eval") + server.calls("evalsha");
    for layer in layers {
        is_admitted(layer, "192.0.2.1").await;
    }
    let mut before = 0;
    eventually("background questions are answered", || {
        let quiet = calls() == std::mem::replace(&mut before, calls());
        async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            quiet
        }
    })
    .await;
}

/// How many scripts Redis ran meanwhile.
async fn trips<T>(server: &RedisServer, work: impl Future<Output = T>) -> (T, u64) {
    let before = server.calls("evalsha");
    let result = work.await;
    (result, server.calls("evalsha") - before)
}

#[tokio::test]
async fn a_thousand_checks_of_one_client_take_a_handful_of_trips() {
    let server = RedisServer::start();
    let layers = [(); 2].map(|()| through(&server, Quota::per_hour(100)));
    warm_up(&layers, &server).await;
    let (admitted, trips) = trips(&server, admitted(&layers, 1000)).await;
    assert_eq!(admitted, 100);
    // Two per instance, and what it asks in the background.
    assert!(trips <= 8, "{trips}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn checks_from_several_threads_are_counted_exactly() {
    let server = RedisServer::start();
    let layers = [(); 3].map(|()| through(&server, Quota::per_hour(100)));
    warm_up(&layers, &server).await;
    let tasks = (0..1500).map(|nth| {
        let layer = layers[nth % layers.len()].clone();
        tokio::spawn(async move { is_admitted(&layer, IP).await })
    });
    let tasks: Vec<_> = tasks.collect();
    let admitted = join_all(tasks).await.into_iter().filter(|admitted| *admitted.as_ref().unwrap()).count();
    assert_eq!(admitted, 100);
}

#[tokio::test]
async fn costs_and_small_bursts_are_counted_exactly() {
    let server = RedisServer::start();
    for (quota, cost, expected) in
        [(Quota::per_hour(10), 3, 3), (Quota::per_hour(10).burst(1), 1, 1), (Quota::per_hour(2), 5, 1)]
    {
        let layers = [(); 2].map(|()| through(&server, quota).cost(move |_| cost));
        warm_up(&layers, &server).await;
        assert_eq!(admitted(&layers, 100).await, expected, "{quota:?}");
    }
}

#[test]
fn a_service_may_be_called_outside_a_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = RedisServer::start();
    let layer = through(&server, Quota::per_hour(100));
    for _ in 0..2 {
        let handler =
            service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>(Response::new(Full::default())) });
        let peer = PeerAddr(SocketAddr::new(IP.parse().unwrap(), 4711));
        let request = Request::builder().extension(peer).body(Full::<Bytes>::default()).unwrap();
        let response = layer.layer(handler).call(request);
        assert_eq!(runtime().block_on(response).unwrap().status(), 200);
        // What a runtime that has ended had under way holds nobody up.
        let admitted = runtime().block_on(admitted(std::slice::from_ref(&layer), 30));
        assert_eq!(admitted, 30);
    }
}

/// Whom nobody polls any more, since its runtime is kept and not driven, nobody waits for either.
#[tokio::test]
async fn a_runtime_that_stands_still_ends_no_trust() {
    let server = RedisServer::start();
    let redis = redis(&server).time_budget(Duration::from_millis(500));
    let layer = RateLimitLayer::new(Quota::per_hour(100)).redis(redis);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let response = {
        let _entered = other.enter();
        let handler =
            service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>(Response::new(Full::default())) });
        let peer = PeerAddr(SocketAddr::new(IP.parse().unwrap(), 4711));
        layer.layer(handler).call(Request::builder().extension(peer).body(Full::<Bytes>::default()).unwrap())
    };
    drop(response);
    eventually("it asks for changes", || async {
        is_admitted(&layer, "192.0.2.1").await;
        server.calls("hmget") > 0
    })
    .await;
    other.shutdown_background();
}

#[tokio::test]
async fn who_leaves_strands_nobody() {
    let server = RedisServer::start();
    let layer = through(&server, Quota::per_hour(100));
    warm_up(std::slice::from_ref(&layer), &server).await;
    server.freeze();
    let question = || {
        let layer = layer.clone();
        tokio::spawn(async move { is_admitted(&layer, IP).await })
    };
    let mut questions: Vec<_> = (0..40).map(|_| question()).collect();
    // On their way, or waiting for the first.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let rest = questions.split_off(20);
    // The first last: who leaves once the next are on their way stays charged.
    questions.iter().rev().for_each(tokio::task::JoinHandle::abort);
    join_all(questions).await;
    server.thaw();
    let answers = tokio::time::timeout(Duration::from_secs(4), join_all(rest)).await.expect("nobody is stranded");
    assert!(answers.into_iter().all(Result::unwrap));
    let more = admitted(std::slice::from_ref(&layer), 100).await;
    // The first may have been charged in vain; the others that left were not asked for.
    assert!((79..=80).contains(&more), "{more}");
}

#[tokio::test]
async fn nobody_waits_for_a_frozen_redis_longer_than_the_budget() {
    let server = RedisServer::start();
    let budget = Duration::from_millis(200);
    let layer = RateLimitLayer::new(Quota::per_hour(100)).redis(redis(&server).time_budget(budget));
    eventually("Redis decides", || async {
        is_admitted(&layer, "192.0.2.1").await;
        server.command(&["DBSIZE"]) != ":0\r\n"
    })
    .await;
    server.freeze();
    let question = |pause| {
        let layer = layer.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let started = Instant::now();
            (is_admitted(&layer, IP).await, started.elapsed())
        })
    };
    // Some come while others have waited for a while.
    let questions = (0..300).map(|nth| question(Duration::from_millis(nth)));
    let answers: Vec<_> = join_all(questions.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).collect();
    server.thaw();
    let mut times: Vec<_> = answers.iter().map(|(_, time)| *time).collect();
    times.sort();
    assert!(times[times.len() * 9 / 10] <= budget * 3 / 2, "{times:?}");
    assert!(times[times.len() - 1] <= budget * 4, "{times:?}");
    assert_eq!(answers.iter().filter(|(admitted, _)| *admitted).count(), 100, "then this process decides");
}

#[tokio::test]
async fn a_client_far_above_its_quota_costs_few_trips() {
    let server = RedisServer::start();
    // Ten at each tick are 200 times what is allowed.
    for (quota, tick) in [(Quota::per_second(10).burst(5), 5), (Quota::per_minute(100), 30)] {
        let layer = through(&server, quota);
        warm_up(std::slice::from_ref(&layer), &server).await;
        admitted(std::slice::from_ref(&layer), 110).await;
        let started = Instant::now();
        let ((), trips) = trips(&server, async {
            let mut clock = tokio::time::interval(Duration::from_millis(tick));
            for _ in 0..100 {
                clock.tick().await;
                admitted(std::slice::from_ref(&layer), 10).await;
            }
        })
        .await;
        println!("{quota:?}: {trips} trips per 1000 requests");
        // On a busy machine it takes longer, and more are admitted.
        let allowed = 10.0 * started.elapsed().as_secs_f64() / Duration::from_millis(100 * tick).as_secs_f64();
        assert!(f64::from(u32::try_from(trips).unwrap()) < allowed.max(10.0), "{quota:?}: {trips}");
    }
}

#[tokio::test]
async fn a_busy_client_lives_on_tokens() {
    let server = RedisServer::start();
    let layer = through(&server, Quota::per_minute(100_000)).lease(Lease::new(100, Duration::from_secs(1)));
    warm_up(std::slice::from_ref(&layer), &server).await;
    let ((), trips) = trips(&server, async {
        for _ in 0..1000 {
            assert!(is_admitted(&layer, IP).await);
        }
    })
    .await;
    println!("{trips} trips per 1000 requests");
    assert!(trips < 50, "{trips}");
}

#[tokio::test]
async fn unused_tokens_come_back() {
    let server = RedisServer::start();
    let life = Duration::from_millis(300);
    let [one, two] = [(); 2].map(|()| through(&server, Quota::per_hour(100)).lease(Lease::new(50, life)));
    warm_up(&[one.clone(), two.clone()], &server).await;
    let mut used = 0;
    for _ in 0..20 {
        used += usize::from(is_admitted(&one, IP).await);
    }
    assert_eq!(used, 20);
    let rest = admitted(std::slice::from_ref(&two), 100).await;
    assert!(rest < 80, "some are on lease: {rest}");
    let started = Instant::now();
    used += rest;
    while used < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        used += usize::from(is_admitted(&two, IP).await);
        assert!(started.elapsed() < Duration::from_secs(10), "{used}");
    }
    tokio::time::sleep(2 * life).await;
    assert!(!is_admitted(&one, IP).await && !is_admitted(&two, IP).await, "nothing came back twice");
}

/// In any stretch of time `w`, at most `burst + rate × (w + life)`: also if all instances hoard, one after the other, and
/// then spend all that they have at the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_leases_four_instances_admit_no_more_than_the_documented_bound() {
    let server = RedisServer::start();
    let (rate, burst, life) = (400, 200, Duration::from_millis(250));
    let quota = Quota::per_second(rate).burst(burst);
    let layers = [(); 4].map(|()| through(&server, quota).lease(Lease::new(100, life)));
    warm_up(&layers, &server).await;
    let begun = tokio::time::Instant::now();
    let tasks = layers.into_iter().zip(0..4).map(|(layer, nth)| {
        tokio::spawn(async move {
            let mut admitted = Vec::new();
            for round in 0..3 {
                tokio::time::sleep_until(begun + Duration::from_millis(1500 * round + 250 * nth)).await;
                // The 64th brings 63 for later.
                for _ in 0..64 {
                    admitted.extend(timed(begun, &layer).await);
                }
                tokio::time::sleep_until(begun + Duration::from_millis(1500 * round + 900)).await;
                let storm = join_all((0..150).map(|_| timed(begun, &layer))).await;
                admitted.extend(storm.into_iter().flatten());
            }
            admitted
        })
    });
    let all = join_all(tasks.collect::<Vec<_>>()).await;
    let mut admitted: Vec<_> = all.into_iter().flat_map(Result::unwrap).collect();
    admitted.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (rate, burst) = (f64::from(rate), f64::from(burst));
    let mut tightest = f64::INFINITY;
    for (from, _) in &admitted {
        // Whoever asked at `from` or later, and had an answer at `to`, was admitted between.
        let answers = admitted.iter().filter(|(asked, _)| asked >= from);
        for (count, (_, to)) in (1_u32..).zip(answers) {
            let bound = burst + rate * (to - from + life.as_secs_f64());
            tightest = tightest.min(bound - f64::from(count));
        }
    }
    let total = admitted.len();
    println!("{total} admitted, {tightest:.0} below the bound at the tightest");
    assert!(tightest >= 0.0, "{tightest}");
    assert!(total >= 400, "{total}: the quota is used, too");
}

/// When it asked, and when it was answered, if it was admitted.
async fn timed(begun: tokio::time::Instant, layer: &RateLimitLayer) -> Option<(f64, f64)> {
    let asked = begun.elapsed().as_secs_f64();
    is_admitted(layer, IP).await.then(|| (asked, begun.elapsed().as_secs_f64()))
}

#[tokio::test]
async fn tokens_in_hand_outlive_redis() {
    let mut server = RedisServer::start();
    let layer = through(&server, Quota::per_hour(1000)).lease(Lease::new(100, Duration::from_secs(5)));
    let layer = layer.fallback(tower_scale::rate_limit::Fallback::refuse());
    warm_up(std::slice::from_ref(&layer), &server).await;
    // 1, 2, 4, 8 and 16 of them.
    for _ in 0..17 {
        assert!(is_admitted(&layer, IP).await);
    }
    server.kill();
    for _ in 0..14 {
        assert!(is_admitted(&layer, IP).await);
    }
    eventually("no more tokens", || async { !is_admitted(&layer, IP).await }).await;
}
