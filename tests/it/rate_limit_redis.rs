//! What clients owe, in a real Redis.

mod scripts;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use deadpool_redis::{Runtime, cluster};
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use redis::{Value, cmd};
use tokio::sync::Semaphore;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{Fallback, Policy, Quota, RateLimitLayer, Subject};
use tower_scale::redis::Redis;

use crate::support::eventually;
use crate::support::redis_server::{Cluster, RedisServer};

type Body = Full<Bytes>;

async fn connect(server: &RedisServer) -> Redis {
    ready(Redis::connect(&server.url()).unwrap()).await
}

async fn ready(redis: Redis) -> Redis {
    let redis = redis.time_budget(Duration::from_secs(2));
    eventually("Redis answers", async || redis.query(cmd("GET").arg("k")).await.is_ok()).await;
    redis
}

/// One of several instances. What Redis does not decide is a 503.
fn instance(policy: impl Into<Policy>, redis: &Redis) -> RateLimitLayer {
    RateLimitLayer::new(policy).redis(redis.clone()).fallback(Fallback::refuse())
}

/// The response to one request from `ip`.
async fn send(layer: &RateLimitLayer, ip: impl Into<IpAddr>) -> StatusCode {
    let peer = PeerAddr(SocketAddr::new(ip.into(), 4711));
    let request = Request::builder().extension(peer).body(Body::default()).unwrap();
    let service =
        layer.layer(service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::from(""))) }));
    service.oneshot(request).await.unwrap().status()
}

async fn admitted(layer: &RateLimitLayer, ip: &str, requests: usize) -> usize {
    let ip: IpAddr = ip.parse().unwrap();
    let answers = join_all((0..requests).map(|_| send(layer, ip))).await;
    assert!(answers.iter().all(|status| *status != StatusCode::SERVICE_UNAVAILABLE), "{answers:?}");
    answers.iter().filter(|status| status.is_success()).count()
}

/// Of all clients.
async fn keys(redis: &Redis) -> Vec<String> {
    let mut keys: Vec<String> =
        redis::from_redis_value(redis.query(cmd("KEYS").arg("ts:rl:*")).await.unwrap()).unwrap();
    keys.retain(|key| !key.ends_with(":control"));
    keys
}

/// The limiter's keys, without what they begin with, and their TATs.
async fn ledger(redis: &Redis) -> HashMap<String, Vec<u64>> {
    let mut found = HashMap::new();
    for key in keys(redis).await {
        let Ok(Value::BulkString(value)) = redis.query(cmd("GET").arg(&key)).await else { continue };
        let tats = String::from_utf8(value).unwrap().split(',').map(|tat| tat.parse().unwrap()).collect();
        found.insert(key.splitn(5, ':').last().unwrap().to_owned(), tats);
    }
    found
}

#[tokio::test]
async fn several_quotas_are_charged_together_or_not_at_all() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    let (hour, day) = (Quota::per_hour(5), Quota::per_day(24).burst(8));
    let instances = [(); 4].map(|()| instance([hour, day], &redis));
    let admitted = join_all(instances.iter().map(|layer| admitted(layer, "192.0.2.1", 50))).await;
    assert_eq!(admitted.iter().sum::<usize>(), 5, "{admitted:?}");
    let ledger = ledger(&redis).await;
    let [of_hour, of_day] = ledger["192.0.2.1"][..] else { panic!("{ledger:?}") };
    // Both were charged five times since the same moment.
    assert_eq!(of_hour - 5 * 720_000_000, of_day - 5 * 3_600_000_000);
}

#[tokio::test]
async fn a_client_and_its_tier_are_charged_together_or_not_at_all() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    let policy = || Policy::new(Quota::per_hour(5)).ipv6_tier(48, Quota::per_day(24).burst(12));
    let instances = [(); 2].map(|()| instance(policy(), &redis));
    let clients = [1, 2, 3, 4].map(|client| format!("2001:db8:1:{client}::9"));
    let all = instances.iter().flat_map(|layer| clients.iter().map(move |client| admitted(layer, client, 10)));
    assert_eq!(join_all(all).await.iter().sum::<usize>(), 12);
    let ledger = ledger(&redis).await;
    let begun = ledger["{2001:db8:1::/48}"][0] - 12 * 3_600_000_000;
    let own = |client: u32| ledger.get(&format!("{{2001:db8:1::/48}}2001:db8:1:{client}::/64"));
    let own = [1, 2, 3, 4].map(|client| own(client).map_or(0, |tats| (tats[0] - begun) / 720_000_000));
    assert_eq!(own.iter().sum::<u64>(), 12, "{own:?} of {ledger:?}");
    assert!(own.iter().all(|admitted| *admitted <= 5), "{own:?}");
    assert_eq!(admitted(&instances[0], "2001:db8:2:1::9", 10).await, 5, "of another network");
    assert_eq!(admitted(&instances[1], "192.0.2.1", 10).await, 5, "concerned by no tier");
}

#[tokio::test]
async fn who_owes_nothing_takes_no_memory() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    let layer = instance([Quota::per_second(50).burst(5), Quota::per_second(20).burst(6).named("slow")], &redis);
    for client in 1..=20 {
        assert_eq!(admitted(&layer, &format!("192.0.2.{client}"), 5).await, 5);
    }
    assert!(!ledger(&redis).await.is_empty());
    for key in keys(&redis).await {
        let Ok(Value::Int(left)) = redis.query(cmd("PTTL").arg(&key)).await else { panic!("no expiry") };
        assert!(left <= 250 && left != -1, "{left} ms");
    }
    eventually("the debts are paid", async || ledger(&redis).await.is_empty()).await;
}

#[tokio::test]
async fn scripts_that_redis_forgets_are_sent_again() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    let layer = instance(Quota::per_hour(20), &redis);
    let mut passed = 0;
    for round in 0..10 {
        if round % 3 == 0 {
            assert!(server.command(&["SCRIPT", "FLUSH"]).starts_with("+OK"));
        }
        passed += admitted(&layer, "192.0.2.1", 3).await;
    }
    assert_eq!(passed, 20);
    assert!((4..30).contains(&server.calls("eval")), "{}", server.calls("eval"));
}

#[tokio::test]
async fn a_request_is_one_command() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    let layer = instance([Quota::per_hour(5), Quota::per_day(24)], &redis);
    let warm = instance(Quota::per_minute(5), &redis);
    send(&warm, [192, 0, 2, 1]).await;
    let before = server.calls("evalsha");
    for client in 1..=100 {
        assert_eq!(send(&layer, [192, 0, 2, client]).await, StatusCode::OK);
    }
    // And now and then one about what handles have changed.
    let calls = server.calls("evalsha") - before;
    assert!((100..110).contains(&calls), "{calls}");
}

#[tokio::test]
async fn what_does_not_count_leaves_nothing() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    let policy = Policy::new([Quota::per_hour(9), Quota::per_day(9)]).ipv6_tier(48, Quota::per_day(9).named("site"));
    let layer = instance(policy, &redis).count_when(|_| false);
    for _ in 0..5 {
        assert_eq!(admitted(&layer, "2001:db8:1:2::9", 4).await, 4);
        eventually("all is given back", async || keys(&redis).await.is_empty()).await;
    }
}

#[tokio::test]
async fn what_others_give_back_is_not_refused_for_hours() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    // As for logins, of which only those that fail count; of the tier's two clients, each spends what is for both.
    let policy = || Policy::new(Quota::per_day(9)).ipv6_tier(48, Quota::per_day(3).named("site"));
    let [one, two] = [(); 2].map(|()| instance(policy(), &redis).count_when(|_| false));
    let (client, neighbour): (IpAddr, IpAddr) =
        ("2001:db8:1:2::9".parse().unwrap(), "2001:db8:1:3::9".parse().unwrap());
    let [started, done] = [(); 2].map(|()| Arc::new(Semaphore::new(0)));
    let begun = (0..3).map(|_| {
        let (layer, started, done) = (one.clone(), started.clone(), done.clone());
        let handler = service_fn(move |_: Request<Body>| {
            let (started, done) = (started.clone(), done.clone());
            async move {
                started.add_permits(1);
                done.acquire().await.unwrap().forget();
                Ok::<_, Infallible>(Response::new(Body::from("")))
            }
        });
        let request = Request::builder().extension(PeerAddr(SocketAddr::new(client, 4711))).body(Body::default());
        tokio::spawn(layer.layer(handler).oneshot(request.unwrap()))
    });
    let begun: Vec<_> = begun.collect();
    let _ = started.acquire_many(3).await.unwrap();
    for (layer, ip) in [(&one, neighbour), (&two, client), (&two, neighbour)] {
        eventually("all is spent", async || send(layer, ip).await == StatusCode::TOO_MANY_REQUESTS).await;
    }
    done.add_permits(3);
    for answer in join_all(begun).await {
        assert_eq!(answer.unwrap().unwrap().status(), StatusCode::OK);
    }
    for (layer, ip) in [(&one, neighbour), (&two, client), (&two, neighbour)] {
        eventually("all is given back", async || send(layer, ip).await == StatusCode::OK).await;
    }
}

#[tokio::test]
async fn what_a_share_made_dearer_is_not_held_against_a_client_once_redis_is_back() {
    let server = RedisServer::start();
    let redis = connect(&server).await.time_budget(Duration::from_millis(500));
    let layer = RateLimitLayer::new(Quota::per_day(10)).redis(redis.clone()).fallback(Fallback::share(0.1));
    send(&layer, [192, 0, 2, 2]).await;
    let before = server.calls("hmget");
    server.freeze();
    assert_eq!(send(&layer, [192, 0, 2, 1]).await, StatusCode::OK, "by the tenth that this instance may give away");
    server.thaw();
    // Until it is back, and this instance knows that it has missed nothing.
    eventually("Redis decides", async || {
        send(&layer, [192, 0, 2, 2]).await;
        server.calls("hmget") > before + 2
    })
    .await;
    let more = admitted(&layer, "192.0.2.1", 20).await;
    assert!((8..=9).contains(&more), "{more}: one was charged when it was too late");
}

#[tokio::test]
async fn a_handle_changes_what_redis_holds() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    let policy = || Policy::new(Quota::per_hour(10)).ipv6_tier(48, Quota::per_day(24).burst(20).named("site"));
    let (layer, other) = (instance(policy(), &redis), instance(policy(), &redis));
    let (handle, client) = (layer.handle(), Subject::ip("2001:db8:1:2::9".parse().unwrap()));
    let neighbour = Subject::ip("2001:db8:1:3::9".parse().unwrap());
    let left = async |subject: &Subject| other.handle().peek(subject).await.unwrap().remaining;
    let owed = async |name: &str, interval: u64| {
        let ledger = ledger(&redis).await;
        let tats = |name: &str| ledger.get(&format!("{{2001:db8:1::/48}}{name}")).map(|tats| tats[0]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        tats(name).map_or(0, |tat| (tat / 1_000_000 - now).div_ceil(interval))
    };
    let (own, site) = (async || owed("2001:db8:1:2::/64", 360).await, async || owed("", 3600).await);
    let cost = |cost| NonZeroU32::new(cost).unwrap();

    handle.penalise(&client, cost(4)).await.unwrap();
    assert_eq!((own().await, site().await, left(&client).await, left(&neighbour).await), (4, 4, 6, 10));
    handle.penalise(&client, cost(100)).await.unwrap();
    assert_eq!((own().await, site().await, left(&client).await), (10, 20, 0), "as far as the burst");
    handle.reward(&client, cost(3)).await.unwrap();
    assert_eq!((own().await, site().await, left(&client).await), (7, 17, 3));
    handle.reset(&client).await.unwrap();
    assert_eq!((own().await, site().await, left(&client).await), (0, 17, 3), "what others share stays");

    handle.block(&client, Duration::from_secs(600)).await.unwrap();
    let standing = other.handle().peek(&client).await.unwrap();
    assert!(standing.blocked && !standing.admitted && standing.retry_after > Duration::from_secs(590), "{standing:?}");
    assert_eq!(admitted(&layer, "2001:db8:1:2::9", 3).await, 0);
    assert_eq!((site().await, left(&neighbour).await), (17, 3), "refused and blocked requests cost nothing");
    handle.block(&client, Duration::from_millis(20)).await.unwrap();
    eventually("the block ends", async || !other.handle().peek(&client).await.unwrap().blocked).await;
    handle.block(&client, Duration::MAX).await.unwrap();
    handle.block(&client, Duration::ZERO).await.unwrap();
    assert_eq!(left(&client).await, 3);
    handle.reward(&neighbour, cost(100)).await.unwrap();
    assert_eq!(keys(&redis).await, [""; 0], "nothing is owed");
}

#[tokio::test]
async fn a_clock_that_went_back_locks_nobody_out() {
    let server = RedisServer::start();
    let redis = connect(&server).await;
    let layer = instance(Quota::per_second(10).burst(2), &redis);
    send(&layer, [192, 0, 2, 1]).await;
    let keys = keys(&redis).await;
    // As if it had been charged by a server whose clock is a day ahead.
    let Ok(Value::Array(time)) = redis.query(&cmd("TIME").clone()).await else { panic!("no time") };
    let seconds: u64 = redis::from_redis_value(time[0].clone()).unwrap();
    let ahead = (seconds + 86_400) * 1_000_000;
    redis.query(cmd("SET").arg(&keys[0]).arg(ahead).arg("PX").arg(86_400_000)).await.unwrap();
    assert_eq!(send(&layer, [192, 0, 2, 1]).await, StatusCode::TOO_MANY_REQUESTS);
    eventually("it has paid", async || send(&layer, [192, 0, 2, 1]).await == StatusCode::OK).await;
    let Ok(Value::Int(left)) = redis.query(cmd("PTTL").arg(&keys[0])).await else { panic!("no expiry") };
    assert!(left <= 200, "{left} ms");
}

#[tokio::test]
async fn a_cluster_decides_on_a_client_and_its_tiers_at_once() {
    let cluster = Cluster::start();
    let manager = cluster::Manager::new(cluster.urls(), false).unwrap();
    let pool = cluster::Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
    let redis = ready(Redis::from_cluster_pool(pool).unwrap()).await;
    let policy = || Policy::new([Quota::per_hour(4), Quota::per_day(30)]);
    let policy =
        || policy().ipv6_tier(48, Quota::per_hour(6).named("site")).ipv6_tier(32, Quota::per_hour(7).named("isp"));
    let instances = [(); 2].map(|()| instance(policy(), &redis));
    for isp in 1..=20 {
        let client = |site: u32, client: u32| format!("2001:{isp}:{site}:{client}::9");
        assert_eq!(admitted(&instances[0], &client(1, 1), 9).await, 4);
        assert_eq!(admitted(&instances[1], &client(1, 2), 9).await, 2);
        assert_eq!(admitted(&instances[0], &client(2, 1), 9).await, 1);
        assert_eq!(admitted(&instances[1], &format!("192.0.2.{isp}"), 9).await, 4);
    }
    assert!(cluster.masters.iter().all(|master| master.calls("evalsha") > 10), "on all masters");
}
