//! Against real servers: real time, bounded waits.

use std::time::{Duration, Instant};

use ::redis::{Value, cmd};
use deadpool_redis::{Runtime, cluster, sentinel};

#[cfg(feature = "redis-tls")]
use super::super::redis_server::TlsServer;
use super::super::redis_server::{Cluster, RedisServer, Sentinel};
use super::super::{ConfigError, Kind, Redis, Script};
use super::*;

const CHANNEL: &[u8] = b"ts:cache:inv";
const PATIENCE: Duration = Duration::from_secs(10);

async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A handle for tests in which a busy machine must not look like a slow Redis.
fn patient(url: &str) -> Redis {
    Redis::connect(url).unwrap().time_budget(Duration::from_secs(2))
}

async fn next(subscription: &mut Subscription) -> Option<Bytes> {
    tokio::time::timeout(PATIENCE, subscription.next()).await.expect("nothing within 10 s")
}

/// How many connections of ours listen at `server`; sentinels do as well.
fn listeners(server: &RedisServer) -> usize {
    let ours = |line: &&str| line.contains("cmd=subscribe") && !line.contains("name=sentinel");
    server.command(&["CLIENT", "LIST"]).lines().filter(ours).count()
}

fn none() -> [&'static str; 0] {
    []
}

#[test]
fn a_pool_needs_urls() {
    let manager = deadpool_redis::Manager::new("redis://127.0.0.1:1").unwrap();
    let pool = deadpool_redis::Pool::builder(manager).max_size(2).build().unwrap();
    let redis = Redis::from_pool(pool).unwrap();
    let lacking = redis.can_subscribe().unwrap_err();
    assert_eq!(lacking, ConfigError::NoInvalidation);
    assert!(lacking.to_string().contains("Redis::invalidation_urls"), "{lacking}");
    let with = |urls: &[&str]| redis.clone().invalidation_urls(urls).map(|redis| redis.can_subscribe());
    assert_eq!(with(&["redis://127.0.0.1:1", "redis://127.0.0.1:2"]).unwrap(), Ok(()));
    assert_eq!(with(&["redis://127.0.0.1:1", "127.0.0.1:2"]).unwrap_err(), ConfigError::Url);
    let insecure = if cfg!(feature = "redis-tls") { ConfigError::Insecure } else { ConfigError::TlsDisabled };
    assert_eq!(with(&["rediss://127.0.0.1#insecure"]).unwrap_err(), insecure);
    assert_eq!(redis.clone().invalidation_urls(none()).unwrap_err(), ConfigError::NoInvalidation);
    assert_eq!(Redis::connect("redis://127.0.0.1:1").unwrap().can_subscribe(), Ok(()));
}

#[tokio::test]
async fn what_is_published_arrives() {
    let server = RedisServer::start();
    for url in [server.url(), server.url() + "/?protocol=resp3"] {
        let redis = patient(&url);
        let mut one = redis.subscribe(&[CHANNEL]).await.unwrap();
        let mut other = patient(&url).subscribe(&[CHANNEL]).await.unwrap();
        let mut elsewhere = redis.subscribe(&[b"elsewhere"]).await.unwrap();
        let messages = [&b"one"[..], b"", b"\r\n\0\xff", &[7; 100_000]];
        for message in messages {
            redis.publish_everywhere(CHANNEL, message).await.unwrap();
        }
        for message in messages {
            assert_eq!(next(&mut one).await.unwrap(), message);
            assert_eq!(next(&mut other).await.unwrap(), message);
        }
        assert_eq!(one.waiting.load(Ordering::Relaxed), 0);
        let mut both = redis.subscribe(&[CHANNEL, b"elsewhere"]).await.unwrap();
        for (channel, message) in [(CHANNEL, b"1"), (b"elsewhere", b"2"), (CHANNEL, b"3"), (b"elsewhere", b"4")] {
            redis.publish_everywhere(channel, message).await.unwrap();
        }
        for message in [b"1", b"2", b"3", b"4"] {
            assert_eq!(next(&mut both).await.unwrap(), &message[..], "in order");
        }
        drop(both);
        eventually("closed", async || listeners(&server) == 3).await;
        for message in [b"2", b"4"] {
            assert_eq!(next(&mut elsewhere).await.unwrap(), &message[..]);
        }
        redis.publish_everywhere(b"elsewhere", b"here").await.unwrap();
        assert_eq!(next(&mut elsewhere).await.unwrap(), &b"here"[..]);
        assert_eq!(listeners(&server), 3);
        drop((one, other, elsewhere));
        eventually("the connections are closed", async || listeners(&server) == 0).await;
    }
}

#[tokio::test]
async fn a_killed_server_ends_it() {
    let mut server = RedisServer::start();
    let redis = patient(&server.url());
    let mut subscription = redis.subscribe(&[CHANNEL]).await.unwrap();
    redis.publish_everywhere(CHANNEL, b"here").await.unwrap();
    assert_eq!(next(&mut subscription).await.unwrap(), &b"here"[..]);
    let start = Instant::now();
    let ((), last) = tokio::join!(async { server.kill() }, next(&mut subscription));
    assert_eq!((last, next(&mut subscription).await), (None, None));
    let refused = redis.subscribe(&[CHANNEL]).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    server.launch();
    let mut subscription = redis.subscribe(&[CHANNEL]).await.unwrap();
    eventually("Redis answers", async || redis.publish_everywhere(CHANNEL, b"back").await.is_ok()).await;
    assert_eq!(next(&mut subscription).await.unwrap(), &b"back"[..]);
}

#[tokio::test]
async fn a_frozen_server_is_given_up() {
    let (server, other) = (RedisServer::start(), RedisServer::start());
    let redis = patient(&server.url());
    server.freeze();
    let start = Instant::now();
    assert_eq!(redis.subscribe(&[CHANNEL]).await.unwrap_err().kind(), Kind::Timeout);
    assert!(start.elapsed() < ALL + Duration::from_secs(1), "{:?}", start.elapsed());

    let three = redis.clone().invalidation_urls([server.url(), server.url(), server.url(), other.url()]).unwrap();
    let start = Instant::now();
    assert_eq!(three.subscribe(&[CHANNEL]).await.unwrap_err().kind(), Kind::Timeout);
    assert!(start.elapsed() < ALL + Duration::from_secs(1), "all together: {:?}", start.elapsed());
    let _subscription = three.subscribe(&[CHANNEL]).await.expect("the second call goes on where the first one ended");
    assert_eq!(listeners(&other), 1);
}

/// A server that lets one subscribe may be cut off from those that publish, which only the subscriber notices.
#[tokio::test]
async fn each_call_begins_at_the_next_server() {
    let servers = [RedisServer::start(), RedisServer::start()];
    let redis = patient(&servers[0].url()).invalidation_urls(servers.each_ref().map(RedisServer::url)).unwrap();
    for at in [0, 1, 0] {
        let subscription = redis.subscribe(&[CHANNEL]).await.unwrap();
        assert_eq!((listeners(&servers[at]), listeners(&servers[1 - at])), (1, 0));
        drop(subscription);
        eventually("it is closed", async || listeners(&servers[at]) == 0).await;
    }
}

#[tokio::test]
async fn who_falls_behind_is_cut_off() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    let flood = Script::new(
        "local message = string.rep('x', ARGV[2]) for _ = 1, ARGV[1] do redis.call('PUBLISH', KEYS[1], message) end",
    );
    for (count, size, least) in [(WAITING + 2000, 10, WAITING), (200, 64 << 10, 100)] {
        let mut subscription = redis.subscribe(&[CHANNEL]).await.unwrap();
        let (count, size) = (count.to_string(), size.to_string());
        redis.eval(&flood, &[CHANNEL], &[count.as_bytes(), size.as_bytes()]).await.unwrap();
        eventually("it is cut off", async || subscription.reader.is_finished()).await;
        eventually("the connection is closed", async || listeners(&server) == 0).await;
        let (mut taken, mut bytes) = (0, 0);
        while let Some(message) = next(&mut subscription).await {
            (taken, bytes) = (taken + 1, bytes + message.len());
        }
        assert!(taken >= least && taken <= WAITING && bytes <= WAITING_BYTES, "{taken} messages, {bytes} bytes");
    }
    // Who keeps up is not.
    let mut subscription = redis.subscribe(&[CHANNEL]).await.unwrap();
    for _ in 0..4 {
        redis.eval(&flood, &[CHANNEL], &[b"5000", b"10"]).await.unwrap();
        for _ in 0..5000 {
            next(&mut subscription).await.unwrap();
        }
    }
}

#[tokio::test]
async fn nothing_secret_is_shown() {
    let server = RedisServer::start();
    assert!(server.command(&["CONFIG", "SET", "requirepass", "s3cret"]).starts_with("+OK"));
    let with = |password: &str| patient(&server.url().replace("://", &format!("://:{password}@")));
    let failure = with("wr0ng").subscribe(&[CHANNEL]).await.unwrap_err();
    let cause = std::error::Error::source(&failure).unwrap().to_string();
    assert_eq!(cause, "authentication failed");
    let subscription = with("s3cret").subscribe(&[CHANNEL]).await.unwrap();
    let mistaken = Redis::connect("redis://h").unwrap().invalidation_urls(["redis://:wr0ng@127.0.0.1:x"]).unwrap_err();
    let shown = format!("{:?} {failure} {failure:?} {cause} {subscription:?} {mistaken} {mistaken:?}", with("wr0ng"));
    assert!(!shown.contains("wr0ng") && !shown.contains("s3cret") && !shown.contains("127.0.0.1"), "{shown}");
}

/// Since Redis 7, users may use no channel unless they are told to.
#[tokio::test]
async fn a_user_without_the_channel_is_refused() {
    let server = RedisServer::start();
    let user = ["ACL", "SETUSER", "app", "on", ">pass", "~*", "+@all", "resetchannels", "&ts:cache:*"];
    assert!(server.command(&user).starts_with("+OK"));
    let redis = patient(&server.url().replace("://", "://app:pass@"));
    let mut subscription = redis.subscribe(&[CHANNEL]).await.unwrap();
    redis.publish_everywhere(CHANNEL, b"allowed").await.unwrap();
    assert_eq!(next(&mut subscription).await.unwrap(), &b"allowed"[..]);
    let refused = [
        redis.subscribe(&[b"shop:inv"]).await.unwrap_err(),
        redis.publish_everywhere(b"shop:inv", b"").await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(refused.kind(), Kind::Refused);
        assert_eq!(std::error::Error::source(&refused).unwrap().to_string(), "NOPERM");
    }
}

/// Dropping a call leaves nothing behind, and half of one harms nobody.
#[tokio::test]
async fn a_dropped_call_leaves_no_connection() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    for steps in 0..40 {
        let mut call = Box::pin(redis.subscribe(&[CHANNEL]));
        for _ in 0..steps {
            let pending = poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx).is_pending())).await;
            if !pending {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let connected = || server.command(&["CLIENT", "LIST"]).lines().filter(|line| line.contains("id=")).count();
    eventually("all are closed", async || connected() == 1).await;
}

#[test]
fn it_ends_with_its_runtime() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut subscription = runtime().block_on(redis.subscribe(&[CHANNEL])).unwrap();
    assert_eq!(runtime().block_on(next(&mut subscription)), None);
}

/// The environment belongs to the whole process, so the test runs itself again in one of its own.
#[cfg(feature = "redis-tls")]
#[tokio::test]
async fn through_tls() {
    const CHILD: &str = "TOWER_SCALE_TEST_SUBSCRIBE_URL";
    if let Ok(url) = std::env::var(CHILD) {
        let redis = patient(&url);
        let mut subscription = redis.subscribe(&[CHANNEL]).await.unwrap();
        redis.publish_everywhere(CHANNEL, b"sealed").await.unwrap();
        assert_eq!(next(&mut subscription).await.unwrap(), &b"sealed"[..]);
        return;
    }
    let server = TlsServer::start();
    let refused = patient(&server.url()).subscribe(&[CHANNEL]).await.unwrap_err();
    assert_eq!(std::error::Error::source(&refused).unwrap().to_string(), "TLS handshake failed");
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "redis::subscription::tests::through_tls"])
        .env(CHILD, server.url())
        .env("SSL_CERT_FILE", server.authority())
        .status();
    assert!(tokio::time::timeout(Duration::from_secs(30), status).await.unwrap().unwrap().success());
    assert!(server.plain.calls("subscribe") >= 1);
}

fn cluster_handle(cluster: &Cluster) -> Redis {
    let manager = cluster::Manager::new(cluster.urls(), false).unwrap();
    let pool = cluster::Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
    Redis::from_cluster_pool(pool).unwrap().time_budget(Duration::from_secs(2))
}

#[tokio::test]
async fn every_master_of_a_cluster_reaches_every_server() {
    let cluster = Cluster::start();
    let redis = cluster_handle(&cluster);
    assert_eq!(redis.can_subscribe(), Err(ConfigError::NoInvalidation));
    assert_eq!(redis.subscribe(&[CHANNEL]).await.unwrap_err().kind(), Kind::Unavailable);
    let redis = redis.invalidation_urls(cluster.urls()).unwrap();
    let mut subscriptions = Vec::new();
    for _ in &cluster.masters {
        subscriptions.push(redis.subscribe(&[CHANNEL]).await.unwrap());
    }
    let published = || cluster.masters.each_ref().map(|master| master.calls("publish"));
    // The very first operation: the map is not known yet.
    redis.publish_everywhere(CHANNEL, b"from all").await.unwrap();
    assert_eq!(published(), [1; 3]);
    redis.publish_everywhere(CHANNEL, b"from all").await.unwrap();
    assert_eq!(published(), [2; 3]);
    for subscription in &mut subscriptions {
        for _ in 0..6 {
            assert_eq!(next(subscription).await.unwrap(), &b"from all"[..]);
        }
    }
    for (number, master) in cluster.masters.iter().enumerate() {
        let message = format!("from {number}");
        master.command(&["PUBLISH", std::str::from_utf8(CHANNEL).unwrap(), &message]);
        for subscription in &mut subscriptions {
            assert_eq!(next(subscription).await.unwrap(), message.as_bytes());
        }
    }
    let slots: u64 = cluster.masters.iter().map(|master| master.calls("cluster|slots")).sum();
    assert!(slots < 20, "the map is not asked for each time: {slots}");

    // One master freezes: a while later it is not asked any more, and the others have not missed anything.
    let hasty = redis.clone().time_budget(Duration::from_millis(100));
    cluster.masters[1].freeze();
    let first = hasty.publish_everywhere(CHANNEL, b"from two").await.unwrap_err();
    assert_eq!(first.kind(), Kind::Timeout);
    let kind = async || hasty.publish_everywhere(CHANNEL, b"from two").await.unwrap_err().kind();
    eventually("the breaker is open", async || kind().await == Kind::Open).await;
    let start = Instant::now();
    assert_eq!(redis.publish_everywhere(CHANNEL, b"at last").await.unwrap_err().kind(), Kind::Open);
    assert!(start.elapsed() < Duration::from_secs(1), "half of what it has: {:?}", start.elapsed());
    let mut last = 0;
    while last < 2 {
        last += usize::from(next(&mut subscriptions[0]).await.unwrap() == b"at last"[..]);
    }
    cluster.masters[1].thaw();
    eventually("all again", async || hasty.publish_everywhere(CHANNEL, b"from all").await.is_ok()).await;
}

#[tokio::test]
async fn a_failover_is_followed() {
    let mut servers = Sentinel::start();
    let sentinels = vec![servers.sentinel.url()];
    let kind = sentinel::SentinelServerType::Master;
    let manager = sentinel::Manager::new(sentinels, Sentinel::SERVICE.into(), None, kind).unwrap();
    let pool = sentinel::Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
    let redis = Redis::from_sentinel_pool(pool).unwrap().time_budget(Duration::from_millis(500));
    let redis = redis.invalidation_urls([servers.master.url(), servers.replica.url()]).unwrap();
    let mut at_master = redis.subscribe(&[CHANNEL]).await.unwrap();
    let mut at_replica = redis.subscribe(&[CHANNEL]).await.unwrap();
    assert_eq!((listeners(&servers.master), listeners(&servers.replica)), (1, 1));
    eventually("Redis answers", async || redis.publish_everywhere(CHANNEL, b"before").await.is_ok()).await;
    assert_eq!(next(&mut at_master).await.unwrap(), &b"before"[..]);
    assert_eq!(next(&mut at_replica).await.unwrap(), &b"before"[..]);

    servers.master.kill();
    assert_eq!(next(&mut at_master).await, None);
    let write = async || redis.query(cmd("SET").arg("k").arg("v")).await.is_ok();
    eventually("the replica is the master", write).await;
    assert_eq!(next(&mut at_replica).await, None, "a sentinel cuts off whoever listens at a new master");
    let mut again = redis.subscribe(&[CHANNEL]).await.expect("the replica is there");
    redis.publish_everywhere(CHANNEL, b"after").await.unwrap();
    assert_eq!(next(&mut again).await.unwrap(), &b"after"[..]);
}

#[tokio::test]
async fn scripts_take_large_arguments_and_several_keys_of_a_slot() {
    let (server, cluster) = (RedisServer::start(), Cluster::start());
    let script = Script::new("redis.call('SET', KEYS[1], ARGV[1]) redis.call('SET', KEYS[2], ARGV[2]) return #ARGV[1]");
    let large: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    for redis in [patient(&server.url()), cluster_handle(&cluster)] {
        for tag in ["a", "b", "c", "d"] {
            let keys = ["K", "g"].map(|name| format!("ts:cache:{{{tag}}}{name}").into_bytes());
            let length = redis.eval(&script, &[&keys[0], &keys[1]], &[&large, b"\0\r\n"]).await.unwrap();
            assert_eq!(length, Value::Int(1 << 20));
            let both = redis.query(cmd("MGET").arg(&keys[..])).await.unwrap();
            let expected = [large.clone(), b"\0\r\n".to_vec()].map(Value::BulkString);
            assert!(both == Value::Array(expected.into()), "as it was sent");
        }
    }
}
