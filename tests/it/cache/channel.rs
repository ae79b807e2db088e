//! What one process purges, another one sees: also when Redis, or the connection that listens to it, has been away.
//!
//! Processes are layers with handles and stores of their own. Bounds of time are those of a busy machine; what is kept
//! for a minute shows that something was voided, and not forgotten.

mod refused;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;

use deadpool_redis::{Runtime, cluster, sentinel};
use metrics_exporter_prometheus::PrometheusBuilder;
use tower_scale::cache::{CacheHandle, CacheTags, Purge, TieredStore};

use super::*;
use crate::support::redis_server::{Cluster, Sentinel};

const MINUTE: Duration = Duration::from_secs(60);

struct Process {
    cache: Cache<Origin>,
    handle: CacheHandle,
}

impl Process {
    /// With a memory that is used for `bound` after the channel was lost.
    fn tiered(redis: Redis, origin: &Origin, bound: Duration) -> Self {
        let store = TieredStore::new(MemoryStore::new(8 << 20), RedisStore::new(redis).unwrap());
        Self::on(&CacheLayer::new(store.disconnected_ttl(bound)), origin)
    }

    /// Without.
    fn plain(redis: Redis, origin: &Origin) -> Self {
        Self::on(&CacheLayer::new(RedisStore::new(redis).unwrap()), origin)
    }

    fn on(layer: &CacheLayer, origin: &Origin) -> Self {
        Self { handle: layer.handle(), cache: layer.layer(origin.clone()) }
    }

    async fn get(&self, path: &str) -> Answer {
        send(&self.cache, get(path)).await
    }

    /// What it answers once it answers a hit without asking any server.
    async fn in_memory(&self, path: &str, servers: &[&RedisServer]) -> String {
        let asked = || servers.iter().map(|server| server.calls("mget")).sum::<u64>();
        let text = RefCell::new(String::new());
        eventually("in memory", async || {
            let before = asked();
            let answer = self.get(path).await;
            answer.text().clone_into(&mut text.borrow_mut());
            answer.is_hit() && asked() == before
        })
        .await;
        text.into_inner()
    }
}

fn patient(server: &RedisServer) -> Redis {
    Redis::connect(&server.url()).unwrap().time_budget(Duration::from_millis(500))
}

/// Tagged, and good for a minute; a soft purge lets it be served while it is renewed.
fn origin() -> Origin {
    Origin::answering(|_, _| {
        Response::builder()
            .header("cache-control", "max-age=60, stale-while-revalidate=60")
            .extension(CacheTags::new(["tag"]))
    })
}

fn pair(server: &RedisServer, bound: Duration) -> (Process, Process, Origin) {
    let origin = origin();
    let process = || Process::tiered(patient(server), &origin, bound);
    (process(), process(), origin)
}

/// What both of them come to have in memory.
async fn agree(one: &Process, other: &Process, path: &str, servers: &[&RedisServer]) -> String {
    let text = RefCell::new(String::new());
    eventually("the same in both", async || {
        *text.borrow_mut() = one.in_memory(path, servers).await;
        let theirs = other.in_memory(path, servers).await;
        *text.borrow() == theirs
    })
    .await;
    text.into_inner()
}

fn listeners(server: &RedisServer) -> usize {
    server.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).matches(" cmd=").count()
}

fn url(path: &str) -> Purge {
    Purge::url(&format!("http://shop.example{path}")).unwrap()
}

fn is_stale(answer: &Answer) -> bool {
    ["; ttl=-", "; ttl=0"].iter().any(|ttl| answer.cache_status().contains(ttl))
        || answer.cache_status().contains("fwd=stale")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_any_kind_is_seen_by_all() {
    let server = RedisServer::start();
    let origin = origin();
    let tiered = || Process::tiered(patient(&server), &origin, MINUTE);
    let (one, other, plain) = (tiered(), tiered(), Process::plain(patient(&server), &origin));
    for (round, purge) in [
        Purge::url("http://shop.example/a").unwrap(),
        Purge::tag("tag").unwrap(),
        Purge::prefix("http://shop.example/").unwrap(),
        Purge::everything(),
    ]
    .iter()
    .cycle()
    .take(12)
    .enumerate()
    {
        let soft = round % 2 == usize::from(round < 8);
        let old = agree(&one, &other, "/a", &[&server]).await;
        eventually("everywhere", async || plain.get("/a").await.text() == old).await;
        let purging = if soft { one.handle.soft_purge(purge) } else { one.handle.purge(purge) };
        let begun = Instant::now();
        if round % 3 == 0 {
            let mine = one.get("/a").await;
            assert!(is_stale(&mine) || !mine.is_hit(), "at once, where it was purged: {purge:?} {mine:?}");
        }
        purging.await.unwrap();
        for process in [&other, &plain] {
            eventually("purged", async || {
                let answer = process.get("/a").await;
                let purged = is_stale(&answer) || answer.text() != old;
                assert!(soft || !purged || answer.text() != old, "a hard one, but served: {purge:?} {answer:?}");
                purged
            })
            .await;
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        eventually("fetched anew", async || one.get("/a").await.text() != old).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_purged_is_not_answered_where_it_was_purged_from_the_moment_of_the_call_on() {
    let server = RedisServer::start();
    let origin = origin();
    let one = Process::tiered(patient(&server), &origin, MINUTE);
    for round in 0..50 {
        let old = one.in_memory("/a", &[&server]).await;
        let purge = [url("/a"), Purge::tag("tag").unwrap(), Purge::everything()][round % 3].clone();
        let purging = one.handle.purge(&purge);
        for _ in 0..5 {
            assert_ne!(one.get("/a").await.text(), old, "{purge:?}");
        }
        purging.await.unwrap();
        for _ in 0..5 {
            assert_ne!(one.get("/a").await.text(), old, "{purge:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_is_noticed_by_the_next_heartbeat() {
    let server = RedisServer::start();
    let (one, other, _) = pair(&server, MINUTE);
    let old = agree(&one, &other, "/a", &[&server]).await;
    server.command(&["FLUSHALL"]);
    let begun = Instant::now();
    eventually("fetched anew", async || one.get("/a").await.text() != old && other.get("/a").await.text() != old).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    agree(&one, &other, "/a", &[&server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_memory_is_used_for_the_bound_and_no_longer() {
    let mut server = RedisServer::start();
    let (one, other, _) = pair(&server, Duration::from_secs(2));
    let old = agree(&one, &other, "/a", &[&server]).await;
    server.kill();
    let begun = Instant::now();
    assert!(other.get("/a").await.is_hit(), "just lost");
    assert!(one.handle.purge(&url("/a")).await.is_err());
    assert_ne!(one.get("/a").await.text(), old, "it counts here all the same");
    eventually("the bound is over", async || other.get("/a").await.text() != old).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.launch();
    assert_ne!(agree(&one, &other, "/a", &[&server]).await, old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_purged_while_redis_stands_still_is_purged_afterwards() {
    let server = RedisServer::start();
    let (one, other, _) = pair(&server, Duration::from_secs(1));
    for purge in [url("/a"), Purge::tag("tag").unwrap(), Purge::prefix("http://shop.example/a").unwrap()] {
        let old = agree(&one, &other, "/a", &[&server]).await;
        server.freeze();
        assert!(one.handle.purge(&purge).await.is_err());
        assert_ne!(one.get("/a").await.text(), old);
        eventually("the bound is over", async || other.get("/a").await.text() != old).await;
        server.thaw();
        let begun = Instant::now();
        let mut last = begun;
        while begun.elapsed() < Duration::from_secs(3) {
            assert_ne!(one.get("/a").await.text(), old, "purged here");
            if other.get("/a").await.text() == old {
                last = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(last - begun < Duration::from_secs(2), "purged there too, in the end: {:?}", last - begun);
        assert_ne!(other.in_memory("/a", &[&server]).await, old);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_heard_is_not_missed() {
    let server = RedisServer::start();
    let (one, other, _) = pair(&server, MINUTE);
    for purge in
        [url("/a"), Purge::tag("tag").unwrap(), Purge::prefix("http://shop.example/a").unwrap(), Purge::everything()]
    {
        let old = agree(&one, &other, "/a", &[&server]).await;
        eventually("both listen", async || listeners(&server) == 2).await;
        assert!(server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).starts_with(":2"));
        one.handle.purge(&purge).await.unwrap();
        eventually("purged", async || other.get("/a").await.text() != old).await;
    }
    agree(&one, &other, "/a", &[&server]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_tells_of_purges_whatever_master_they_went_to() {
    let mut cluster = Cluster::start();
    let urls = cluster.urls();
    let origin = origin();
    let process = || {
        let manager = cluster::Manager::new(urls.clone(), false).unwrap();
        let pool = cluster::Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
        let redis = Redis::from_cluster_pool(pool).unwrap().invalidation_urls(&urls).unwrap();
        Process::tiered(redis.time_budget(Duration::from_millis(500)), &origin, Duration::from_secs(2))
    };
    let (one, other) = (process(), process());
    {
        let servers: Vec<_> = cluster.masters.iter().collect();
        for number in 0..12 {
            let path = format!("/{number}");
            let old = agree(&one, &other, &path, &servers).await;
            one.handle.purge(&url(&path)).await.unwrap();
            let begun = Instant::now();
            eventually("purged", async || other.get(&path).await.text() != old).await;
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        }
        let old = agree(&one, &other, "/0", &servers).await;
        one.handle.purge(&Purge::tag("tag").unwrap()).await.unwrap();
        eventually("purged", async || other.get("/0").await.text() != old).await;
    }
    // Nobody knows what one master would have told.
    let servers: Vec<_> = cluster.masters.iter().collect();
    let paths: Vec<_> = (0..12).map(|number| format!("/{number}")).collect();
    for path in &paths {
        other.in_memory(path, &servers).await;
    }
    cluster.masters[1].kill();
    let rest = [&cluster.masters[0], &cluster.masters[2]];
    let asked = || rest.iter().map(|server| server.calls("mget")).sum::<u64>();
    eventually("the others are asked again", async || {
        let before = asked();
        for path in &paths {
            other.get(path).await;
        }
        asked() > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_no_purge() {
    let mut servers = Sentinel::start();
    let origin = origin();
    let process = || {
        let kind = sentinel::SentinelServerType::Master;
        let manager =
            sentinel::Manager::new(vec![servers.sentinel.url()], Sentinel::SERVICE.to_owned(), None, kind).unwrap();
        let pool = sentinel::Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
        let redis = Redis::from_sentinel_pool(pool).unwrap();
        let redis = redis.invalidation_urls([servers.master.url(), servers.replica.url()]).unwrap();
        Process::tiered(redis.time_budget(Duration::from_millis(500)), &origin, MINUTE)
    };
    let (one, other) = (process(), process());
    let old = agree(&one, &other, "/a", &[&servers.master]).await;
    servers.master.kill();
    assert!(one.handle.purge(&url("/a")).await.is_err());
    eventually("purged", async || other.get("/a").await.text() != old).await;
    assert_ne!(agree(&one, &other, "/a", &[&servers.replica]).await, old);
}

/// Redis loses a purge (a failover) after it was sent once more, and while nobody trusts the channel yet: what is read
/// then is not trusted once the channel is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_before_the_channel_is_back_is_not_trusted_afterwards() {
    let server = RedisServer::start();
    let one = Process::tiered(patient(&server), &origin(), Duration::from_millis(100));
    let eval = |script: &str| {
        server.command(&["EVAL", &format!("for _, k in ipairs(redis.call('KEYS', '*}}g')) do {script} end"), "0"])
    };
    let old = one.in_memory("/a", &[&server]).await;
    eval("redis.call('COPY', k, 'old')");
    assert_eq!(one.handle.purge(&url("/a")).await, Ok(()));
    assert!(server.command(&["ACL", "SETUSER", "default", "-publish"]).starts_with("+OK"));
    eventually("lost", async || listeners(&server) == 0).await;
    let before = server.calls("evalsha");
    eventually("sent once more", async || server.calls("evalsha") > before + 2).await;
    eval("redis.call('COPY', 'old', k, 'REPLACE')");
    for _ in 0..2 {
        eventually("between", async || listeners(&server) == 0).await;
        eventually("it listens again", async || listeners(&server) == 1).await;
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(200) {
        assert_eq!(one.get("/a").await.text(), old, "nobody can know");
    }
    assert!(server.command(&["ACL", "SETUSER", "default", "+publish"]).starts_with("+OK"));
    eventually("purged", async || one.get("/a").await.text() != old).await;
}

/// What a master has confirmed and not passed on before it died.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_redis_forgets_is_told_again() {
    let server = RedisServer::start();
    let (one, other, _) = pair(&server, MINUTE);
    let each = |pattern: &str, script: &str| {
        server.command(&["EVAL", &format!("for _, k in ipairs(redis.call('KEYS', '{pattern}')) do {script} end"), "0"])
    };
    let old = agree(&one, &other, "/a", &[&server]).await;
    each("ts:cache:*", "redis.call('COPY', k, 'old:' .. k)");
    send(&one.cache, request(Method::POST, "/a", &[])).await;
    each("old:*", "redis.call('COPY', k, string.sub(k, 5), 'REPLACE')");
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    eventually("told again", async || one.get("/a").await.text() != old && other.get("/a").await.text() != old).await;
}

#[test]
fn an_event_loop_that_stood_still_trusts_little_of_its_memory() {
    let server = RedisServer::start();
    let origin = origin();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (tell, told) = mpsc::channel::<()>();
    let purging = {
        let (redis, origin) = (patient(&server), origin.clone());
        std::thread::spawn(move || {
            runtime().block_on(async {
                let one = Process::plain(redis, &origin);
                one.get("/a").await;
                told.recv().unwrap();
                one.handle.purge(&url("/a")).await.unwrap();
            });
        })
    };
    runtime().block_on(async {
        let other = Process::tiered(patient(&server), &origin, Duration::ZERO);
        let old = other.in_memory("/a", &[&server]).await;
        tell.send(()).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        purging.join().unwrap();
        let mut used = 0;
        for _ in 0..50 {
            used += usize::from(other.get("/a").await.text() == old);
        }
        assert!(used < 8, "{used} before it was noticed");
    });
}

#[test]
fn the_connection_goes_with_the_store_and_comes_back_on_another_runtime() {
    let server = RedisServer::start();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let one = first.block_on(async {
        let one = Process::tiered(patient(&server), &origin(), MINUTE);
        one.in_memory("/a", &[&server]).await;
        assert_eq!(listeners(&server), 1);
        one
    });
    drop(first);
    runtime().block_on(async {
        eventually("closed with its runtime", async || listeners(&server) == 0).await;
        one.handle.purge(&url("/a")).await.unwrap();
        one.in_memory("/a", &[&server]).await;
        assert_eq!(listeners(&server), 1);
        drop(one);
        eventually("closed with the store", async || listeners(&server) == 0).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_is_heard_by_its_own_store_only() {
    let server = RedisServer::start();
    let (one, other, _) = pair(&server, MINUTE);
    agree(&one, &other, "/a", &[&server]).await;
    let mut listener = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    listener.write_all(b"SUBSCRIBE ts:cache:inv\r\n").unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut heard = [0; 4096];
    assert_ne!(listener.read(&mut heard).unwrap(), 0, "subscribed");
    let before = server.calls("publish");
    eventually("heartbeats of both", async || server.calls("publish") >= before + 5).await;
    one.handle.purge(&url("/b")).await.unwrap();
    let length = listener.read(&mut heard).unwrap();
    let only = String::from_utf8_lossy(&heard[..length]);
    assert!(only.matches("message").count() == 1 && only.contains("shop.example"), "{only}");
}

#[tokio::test]
async fn numbers() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let shows = |line: &str| recorder.handle().render().contains(&format!("\n{line}\n"));
    let mut server = RedisServer::start();
    let one = Process::tiered(patient(&server), &origin(), MINUTE);
    one.in_memory("/a", &[&server]).await;
    assert!(shows("cache_channel_up 1"), "{}", recorder.handle().render());
    eventually("a heartbeat is back", async || recorder.handle().render().contains("cache_invalidation_lag_seconds"))
        .await;
    server.kill();
    eventually("lost", async || shows("cache_channel_up 0") && shows("cache_channel_losses_total 1")).await;
    assert!(one.handle.purge(&url("/a")).await.is_err());
    assert!(shows("cache_purges_pending 1"));
    server.launch();
    eventually("back", async || shows("cache_channel_up 1") && shows("cache_purges_pending 0")).await;
    drop(one);
    eventually("gone", async || shows("cache_channel_up 0")).await;
    assert!(shows("cache_channel_losses_total 1"), "to be dropped is no loss");
}
