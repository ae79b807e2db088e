//! What a handle changes through a real Redis, on other instances.

use std::time::Instant;

use tower_scale::rate_limit::{Fallback, Lease};
use tower_scale::redis::{Kind, Redis};

use super::*;
use crate::support::eventually;
use crate::support::redis_server::{Cluster, RedisServer};

/// An instance, with a budget that no busy machine exceeds: what Redis should decide, it decides.
fn instance(url: &str, policy: impl Into<Policy>) -> RateLimitLayer {
    RateLimitLayer::new(policy).redis(Redis::connect(url).unwrap().time_budget(5 * SECOND))
}

/// Until requests of `ip` show what the caller wants to see: none that begins a second after now may still show anything
/// else, however slow the machine is.
async fn within_a_second(what: &str, layer: &RateLimitLayer, ip: &str, shows: impl Fn(&Response<()>) -> bool) {
    within(SECOND, what, layer, ip, shows).await;
}

/// Who is late to hear of a quota still asks by the old one, and here all are late sometimes.
async fn soon(what: &str, layer: &RateLimitLayer, ip: &str, shows: impl Fn(&Response<()>) -> bool) {
    within(3 * SECOND, what, layer, ip, shows).await;
}

async fn within(time: Duration, what: &str, layer: &RateLimitLayer, ip: &str, shows: impl Fn(&Response<()>) -> bool) {
    let changed = Instant::now();
    loop {
        let begun = changed.elapsed();
        if shows(&send(layer, request(ip)).await) {
            eprintln!("{what}: within {:?}", changed.elapsed());
            return;
        }
        assert!(begun < time, "{what}: not yet after {begun:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn passes(response: &Response<()>) -> bool {
    response.status() == 200
}

fn is_refused(response: &Response<()>) -> bool {
    response.status() == 429
}

fn is_blocked(response: &Response<()>) -> bool {
    response.extensions().get() == Some(&Reason::Blocked)
}

/// Until the instance has asked what others change: from then on it trusts what it knows.
async fn settle(layers: &[&RateLimitLayer], server: &RedisServer) {
    for layer in layers {
        let before = server.calls("hmget");
        eventually("it has asked for changes", async || {
            is_admitted(layer, "198.51.100.1").await;
            server.calls("hmget") > before
        })
        .await;
    }
}

#[tokio::test]
async fn a_reset_reaches_who_knows_of_a_refusal() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| instance(&server.url(), Quota::per_hour(3)));
    // What one has spent, two knows from Redis only.
    assert_eq!(admitted(&one, CLIENT, 5).await, 3);
    assert_eq!(admitted(&two, CLIENT, 20).await, 0);
    one.handle().reset(&subject(CLIENT)).await.unwrap();
    assert!(is_admitted(&one, CLIENT).await, "here at once");
    within_a_second("a reset", &two, CLIENT, passes).await;
    assert_eq!(admitted(&two, CLIENT, 5).await, 1, "all together had three");
}

#[tokio::test]
async fn a_reset_reaches_who_has_admitted_all_of_it() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| instance(&server.url(), Quota::per_hour(3)));
    assert_eq!(admitted(&two, CLIENT, 20).await, 3);
    one.handle().reset(&subject(CLIENT)).await.unwrap();
    within_a_second("a reset", &two, CLIENT, passes).await;
}

#[tokio::test]
async fn a_reward_and_a_penalty_reach_the_others() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| instance(&server.url(), Quota::per_hour(5)));
    assert_eq!(admitted(&two, CLIENT, 20).await, 5);
    one.handle().reward(&subject(CLIENT), cost(2)).await.unwrap();
    within_a_second("a reward", &two, CLIENT, passes).await;
    assert_eq!(admitted(&two, CLIENT, 9).await, 1);
    assert_eq!(admitted(&two, OTHER, 1).await, 1);
    one.handle().penalise(&subject(OTHER), cost(9)).await.unwrap();
    assert!(!is_admitted(&one, OTHER).await, "here at once");
    within_a_second("a penalty", &two, OTHER, is_refused).await;
    assert_eq!(remaining(&two.handle(), OTHER).await, 0);
}

#[tokio::test]
async fn a_reward_reaches_the_neighbours_in_a_tier() {
    let server = RedisServer::start();
    let policy = || Policy::new(Quota::per_hour(9)).ipv6_tier(48, Quota::per_hour(3).named("site"));
    let [one, two] = [(); 2].map(|()| instance(&server.url(), policy()));
    let (client, neighbour) = ("2001:db8:1:2::9", "2001:db8:1:3::9");
    assert_eq!(admitted(&one, client, 5).await, 3);
    assert_eq!(admitted(&one, neighbour, 5).await + admitted(&two, neighbour, 20).await, 0);
    one.handle().reward(&subject(client), cost(2)).await.unwrap();
    assert!(is_admitted(&one, neighbour).await, "here at once");
    within_a_second("a reward", &two, neighbour, passes).await;
}

#[tokio::test]
async fn a_block_reaches_leases_and_holds_without_redis() {
    let mut server = RedisServer::start();
    let leasing = || instance(&server.url(), Quota::per_second(1000)).lease(Lease::new(500, 5 * SECOND));
    let (one, two) = (leasing(), leasing());
    settle(&[&two], &server).await;
    assert_eq!(admitted(&two, CLIENT, 100).await, 100);
    one.handle().block(&subject(CLIENT), 60 * SECOND).await.unwrap();
    within_a_second("a block", &two, CLIENT, is_blocked).await;
    assert_eq!(admitted(&two, CLIENT, 50).await, 0);
    assert!(one.handle().peek(&subject(CLIENT)).await.unwrap().blocked);
    eventually("it is known everywhere", async || {
        is_admitted(&two, OTHER).await;
        server.command(&["PING"]).starts_with("+PONG")
    })
    .await;
    server.kill();
    for layer in [&one, &two] {
        let refused = send(layer, request(CLIENT)).await;
        assert!(is_blocked(&refused), "{refused:?}");
        assert!(is_admitted(layer, OTHER).await, "the process decides");
    }
}

/// What one takes from a client, another has on lease: by its own account the client could go on.
#[tokio::test]
async fn a_penalty_voids_leases() {
    let server = RedisServer::start();
    let quota = || Quota::per_hour(1000);
    let (one, two) =
        (instance(&server.url(), quota()), instance(&server.url(), quota()).lease(Lease::new(250, 5 * SECOND)));
    assert_eq!(admitted(&one, CLIENT, 600).await, 600);
    settle(&[&two], &server).await;
    assert_eq!(admitted(&two, CLIENT, 100).await, 100);
    let trips = server.calls("set");
    eventually("new tokens", async || is_admitted(&two, CLIENT).await && server.calls("set") > trips).await;
    one.handle().penalise(&subject(CLIENT), cost(400)).await.unwrap();
    let told = Instant::now();
    while is_admitted(&two, CLIENT).await {
        assert!(told.elapsed() < SECOND + SECOND / 2, "it still has tokens");
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

#[tokio::test]
async fn a_quota_reaches_all_instances_also_those_to_come() {
    let server = RedisServer::start();
    let quotas = || [Quota::per_hour(10), Quota::per_day(100)];
    let [one, two] = [(); 2].map(|()| instance(&server.url(), quotas()));
    let announces = |q: u32| {
        move |response: &Response<()>| {
            response.headers()["ratelimit-policy"].to_str().unwrap().starts_with(&format!("\"hour\";q={q};"))
        }
    };
    assert_eq!(admitted(&two, CLIENT, 4).await, 4);
    one.handle().set_quota("hour", Quota::per_hour(20)).await.unwrap();
    assert!(announces(20)(&send(&one, request(OTHER)).await), "here at once");
    soon("a quota", &two, OTHER, announces(20)).await;
    // What was 24 minutes of debt is still; an hour is twenty now.
    assert_eq!(admitted(&two, CLIENT, 20).await, 12);
    let later = instance(&server.url(), quotas());
    soon("an old quota", &later, OTHER, announces(20)).await;
    assert!(!is_admitted(&later, CLIENT).await);

    one.handle().set_quota("hour", Quota::per_hour(40)).await.unwrap();
    soon("another quota", &two, OTHER, announces(40)).await;
    assert!(server.command(&["FLUSHALL"]).starts_with("+OK"));
    for layer in [&one, &two, &later] {
        soon("a flush", layer, OTHER, announces(10)).await;
    }
}

#[tokio::test]
async fn a_flush_forgives_everybody_and_a_lost_record_nobody() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| instance(&server.url(), Quota::per_hour(3)));
    settle(&[&one, &two], &server).await;
    assert_eq!(admitted(&one, CLIENT, 20).await, 3);
    assert_eq!(admitted(&two, CLIENT, 20).await, 0);
    let record = record(&server);
    assert!(server.command(&["DEL", &record]).starts_with(":1"));
    let lost = Instant::now();
    eventually("the record is back", async || {
        assert!(!is_admitted(&one, CLIENT).await && !is_admitted(&two, CLIENT).await, "Redis knows the debt");
        server.command(&["EXISTS", &record]).starts_with(":1") && lost.elapsed() > SECOND
    })
    .await;
    assert!(server.command(&["FLUSHALL"]).starts_with("+OK"));
    within_a_second("a flush", &two, CLIENT, passes).await;
    assert_eq!(admitted(&one, CLIENT, 9).await + admitted(&two, CLIENT, 9).await, 2, "one burst for all");
}

/// Of the policy in use.
fn record(server: &RedisServer) -> String {
    let found = "for _, key in ipairs(redis.call('KEYS', '*')) do \
                 if redis.call('TYPE', key).ok == 'hash' then return key end end";
    server.command(&["EVAL", found, "0"])
}

#[tokio::test]
async fn an_evicted_debt_is_one_more_burst() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| instance(&server.url(), Quota::per_hour(3)));
    settle(&[&one, &two], &server).await;
    assert_eq!(admitted(&one, CLIENT, 9).await, 3);
    let found = "for _, key in ipairs(redis.call('KEYS', '*203.0.113.9*')) do redis.call('DEL', key) end return 'done'";
    assert_eq!(server.command(&["EVAL", found, "0"]), "done");
    assert_eq!(admitted(&one, CLIENT, 9).await, 0, "what it has admitted itself it knows");
    assert_eq!(admitted(&two, CLIENT, 9).await, 3);
}

/// More changes than the record keeps, while an instance has no traffic.
#[tokio::test]
async fn who_has_missed_changes_forgets_what_it_knows() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| instance(&server.url(), Quota::per_hour(3)));
    assert_eq!(admitted(&two, CLIENT, 20).await, 3);
    assert_eq!(admitted(&two, OTHER, 20).await, 3);
    one.handle().reset(&subject(CLIENT)).await.unwrap();
    for n in 0..200 {
        one.handle().penalise(&subject(&format!("198.51.100.{n}")), cost(1)).await.unwrap();
    }
    within_a_second("the first of 201 changes", &two, CLIENT, passes).await;
    assert_eq!(admitted(&two, OTHER, 5).await, 0, "Redis knows what it owes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_all_on_a_cluster() {
    let cluster = Cluster::start();
    let redis = || {
        let manager = deadpool_redis::cluster::Manager::new(cluster.urls(), false).unwrap();
        let pool = deadpool_redis::cluster::Pool::builder(manager).max_size(2).build().unwrap();
        Redis::from_cluster_pool(pool).unwrap().time_budget(5 * SECOND)
    };
    let [one, two] = [(); 2].map(|()| RateLimitLayer::new(Quota::per_hour(3)).redis(redis()));
    for n in 0..6 {
        let client = format!("203.0.113.{n}");
        assert_eq!(admitted(&two, &client, 20).await, 3);
        one.handle().reset(&subject(&client)).await.unwrap();
        within_a_second("a reset", &two, &client, passes).await;
        one.handle().block(&subject(&client), 60 * SECOND).await.unwrap();
        within_a_second("a block", &two, &client, is_blocked).await;
    }
}

#[tokio::test]
async fn without_redis_nothing_is_changed() {
    let mut server = RedisServer::start();
    let layer = instance(&server.url(), Quota::per_hour(3));
    assert_eq!(admitted(&layer, CLIENT, 2).await, 2);
    server.kill();
    let handle = layer.handle();
    let client = subject(CLIENT);
    let failures = [
        handle.peek(&client).await.map(drop),
        handle.penalise(&client, cost(1)).await,
        handle.block(&client, 60 * SECOND).await,
        handle.reset(&client).await,
        handle.set_quota("default", Quota::per_hour(100)).await,
    ];
    for failure in failures {
        let Err(HandleError::Store(error)) = failure else { panic!("{failure:?}") };
        assert!(matches!(error.kind(), Kind::Unavailable | Kind::Open), "{error}");
    }
    assert_eq!(admitted(&layer, CLIENT, 9).await, 1);
}

#[tokio::test]
async fn what_does_not_count_is_given_back_in_redis() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| instance(&server.url(), Quota::per_hour(5)).count_when(|_| false));
    for _ in 0..10 {
        assert_eq!(admitted(&one, CLIENT, 2).await, 2);
        eventually("it is given back", async || remaining(&two.handle(), CLIENT).await == 5).await;
    }
    // Refused meanwhile: the refusal is forgotten with the debt that was its reason.
    one.handle().penalise(&subject(CLIENT), cost(4)).await.unwrap();
    let (first, second) = tokio::join!(is_admitted(&one, CLIENT), is_admitted(&one, CLIENT));
    assert!(first || second);
    eventually("it is given back", async || is_admitted(&one, CLIENT).await).await;
}

/// What the operators' page says of permissions.
#[tokio::test]
async fn a_user_needs_no_more_than_is_documented() {
    let page = include_str!("../../../docs/operations/redis.md");
    let rules = page.split("ACL SETUSER limiter ").nth(1).unwrap().split("```").next().unwrap();
    let server = RedisServer::start();
    let words: Vec<_> = ["ACL", "SETUSER", "limiter"].into_iter().chain(rules.split_whitespace()).collect();
    assert!(server.command(&words).starts_with("+OK"), "{words:?}");
    let url = server.url().replace("redis://", "redis://limiter:SECRET@");
    let policy = || Policy::new(Quota::per_hour(3)).ipv6_tier(48, Quota::per_hour(9).named("site"));
    let layer = instance(&url, policy()).fallback(Fallback::refuse()).lease(Lease::new(2, SECOND));
    let handle = layer.handle();
    for ip in [CLIENT, "2001:db8::1"] {
        assert_eq!(admitted(&layer, ip, 5).await, 3);
        handle.penalise(&subject(ip), cost(1)).await.unwrap();
        handle.reward(&subject(ip), cost(1)).await.unwrap();
        handle.block(&subject(ip), SECOND).await.unwrap();
        handle.reset(&subject(ip)).await.unwrap();
    }
    handle.set_quota("site", Quota::per_hour(100)).await.unwrap();
    assert!(server.command(&["SCRIPT", "FLUSH"]).starts_with("+OK"));
    assert_eq!(admitted(&layer, OTHER, 5).await, 3);
    eventually("it has asked for changes", async || {
        is_admitted(&layer, OTHER).await;
        server.calls("hmget") > 0
    })
    .await;
    let denied = server.command(&["ACL", "LOG"]);
    assert!(denied.starts_with("*0"), "{denied}");
}

#[tokio::test]
async fn a_fallback_that_refuses_still_knows_its_changes() {
    let server = RedisServer::start();
    let one = instance(&server.url(), Quota::per_hour(3)).fallback(Fallback::refuse());
    one.handle().block(&subject(CLIENT), 60 * SECOND).await.unwrap();
    assert!(is_blocked(&send(&one, request(CLIENT)).await));
}
