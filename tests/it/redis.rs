//! The Redis handle against real servers. Real time, bounded waits.

use std::error::Error;
use std::time::{Duration, Instant};

use deadpool_redis::{Runtime, cluster, sentinel};
use metrics_util::debugging::DebugValue;
use redis::{Client, TlsCertificates, Value, cmd};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower_scale::redis::{ConfigError, Kind, Redis, StoreError};

use crate::support::eventually;
use crate::support::redis_server::{Cluster, RedisServer, Sentinel, TlsServer};

const BUDGET: Duration = Duration::from_millis(20);
/// A budget, its extension, and a very busy machine; less than any other timeout in play.
const ONE_BUDGET: Duration = Duration::from_millis(250);

/// A handle for tests in which a busy machine must not look like a slow Redis.
fn patient(url: &str) -> Redis {
    Redis::connect(url).unwrap().time_budget(Duration::from_secs(2))
}

async fn get(redis: &Redis, key: &str) -> Result<Value, StoreError> {
    redis.query(cmd("GET").arg(key)).await
}

async fn set(redis: &Redis, key: &str, value: &str) -> Result<Value, StoreError> {
    redis.query(cmd("SET").arg(key).arg(value)).await
}

async fn kind(redis: &Redis) -> Option<Kind> {
    get(redis, "k").await.err().map(|error| error.kind())
}

async fn up(redis: &Redis) {
    eventually("Redis answers", async || kind(redis).await.is_none()).await;
}

async fn down(redis: &Redis) {
    eventually("the breaker is open", async || kind(redis).await == Some(Kind::Open)).await;
}

/// Runs `clients` tasks that ask `ask` until `stop`, and returns for each failure how long it took.
async fn load(redis: &Redis, clients: usize, stop: Instant) -> Vec<(Kind, Duration)> {
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let redis = redis.clone();
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while Instant::now() < stop {
                    let start = Instant::now();
                    if let Some(kind) = kind(&redis).await {
                        failures.push((kind, start.elapsed()));
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                failures
            })
        })
        .collect();
    let mut failures = Vec::new();
    for task in tasks {
        failures.extend(task.await.unwrap());
    }
    failures
}

fn pool(url: &str, size: usize) -> deadpool_redis::Pool {
    let manager = deadpool_redis::Manager::new(url).unwrap();
    deadpool_redis::Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1).build().unwrap()
}

#[tokio::test]
async fn a_command_is_one_round_trip() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    up(&redis).await;
    let before = server.calls("get");
    let gets = 64 * 20;
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let redis = redis.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    get(&redis, "k").await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(server.calls("get") - before, gets);
    assert_eq!((server.calls("unwatch"), server.calls("watch")), (0, 0));
    // The server's own starter has sent one or a few before it answered; each on a connection of its own.
    assert!(server.calls("ping") < 10, "{}", server.calls("ping"));
    let clients = server.command(&["CLIENT", "LIST"]);
    assert_eq!(clients.lines().filter(|line| line.contains("cmd=get")).count(), 1, "{clients}");
}

#[tokio::test]
async fn values_and_refusals_come_back() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    eventually("Redis answers", async || set(&redis, "k", "v").await.is_ok()).await;
    assert_eq!(get(&redis, "k").await.unwrap(), Value::BulkString(b"v".to_vec()));
    for _ in 0..20 {
        let refused = redis.query(cmd("INCR").arg("k")).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Refused);
        assert_eq!(refused.source().unwrap().to_string(), "ERR");
        assert_eq!(
            redis.query(cmd("LPUSH").arg("k").arg("1")).await.unwrap_err().source().unwrap().to_string(),
            "WRONGTYPE"
        );
    }
    assert_eq!(kind(&redis).await, None, "a refusal is an answer");
}

#[tokio::test]
async fn starts_while_redis_is_down() {
    let mut server = RedisServer::absent();
    let redis = patient(&server.url());
    let start = Instant::now();
    let first = get(&redis, "k").await.unwrap_err();
    assert_eq!(first.kind(), Kind::Unavailable, "refused at once, no timeout: {first:?}");
    assert_eq!(first.source().unwrap().to_string(), "connection refused");
    assert!(start.elapsed() < ONE_BUDGET, "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..200 {
        assert_eq!(kind(&redis).await, Some(Kind::Open));
    }
    assert!(start.elapsed() < ONE_BUDGET, "all 200 together: {:?}", start.elapsed());
    server.launch();
    let start = Instant::now();
    up(&redis).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test]
async fn killed_and_restarted() {
    let mut server = RedisServer::start();
    let redis = patient(&server.url());
    for _ in 0..2 {
        up(&redis).await;
        server.kill();
        let start = Instant::now();
        for _ in 0..100 {
            let start = Instant::now();
            assert!(matches!(kind(&redis).await, Some(Kind::Unavailable | Kind::Open)));
            assert!(start.elapsed() < ONE_BUDGET, "{:?}", start.elapsed());
        }
        assert!(start.elapsed() < 2 * ONE_BUDGET, "all 100 together: {:?}", start.elapsed());
        down(&redis).await;
        server.launch();
        let start = Instant::now();
        up(&redis).await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn restarted_while_idle() {
    let mut server = RedisServer::start();
    let redis = patient(&server.url());
    up(&redis).await;
    server.kill();
    server.launch();
    let failures = async {
        let mut failures = 0;
        while kind(&redis).await.is_some() {
            failures += 1;
        }
        failures
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(2), failures).await.unwrap() <= 1,
        "one finds out, the next connects"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_under_load() {
    let server = RedisServer::start();
    let redis = Redis::connect(&server.url()).unwrap();
    for _ in 0..2 {
        up(&redis).await;
        let clients = 64;
        let loaded = tokio::spawn({
            let redis = redis.clone();
            async move { load(&redis, clients, Instant::now() + Duration::from_millis(900)).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.freeze();
        let failures = loaded.await.unwrap();
        let slowest = failures.iter().map(|(_, took)| *took).max().unwrap();
        let waited = failures.iter().filter(|(kind, _)| *kind != Kind::Open).count();
        assert!(slowest < 2 * ONE_BUDGET, "{slowest:?}");
        // The first four timeouts do not open the breaker, and a busy machine may cause one or the other.
        assert!(waited <= 2 * clients, "each client waits once: {waited}");
        assert!(failures.len() > 5 * clients, "and then nobody: {}", failures.len());
        server.thaw();
        let start = Instant::now();
        up(&redis).await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

/// Callers with a deadline below the budget, such as a timeout layer's.
#[tokio::test]
async fn callers_that_leave_early_open_it_too() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    up(&redis).await;
    let hasty = redis.clone().time_budget(ONE_BUDGET);
    let ask = async || tokio::time::timeout(BUDGET / 4, kind(&hasty)).await;
    server.freeze();
    let mut left = 0;
    while ask().await.is_err() {
        left += 1;
        assert!(left < 100, "they still wait");
    }
    assert_eq!(left, 64, "5 ms each, longer than a budget");
    assert_eq!(ask().await, Ok(Some(Kind::Open)));
    server.thaw();
    up(&hasty).await;
}

/// A client that closes its connection takes all its requests along. Redis is well, and stays in use.
#[tokio::test]
async fn many_callers_that_leave_at_once_do_not() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    up(&redis).await;
    for _ in 0..20 {
        let asked = (0..500).map(|_| kind(&redis));
        let left = tokio::time::timeout(Duration::ZERO, futures_util::future::join_all(asked)).await;
        assert!(left.is_err());
        assert_eq!(kind(&redis).await, None);
    }
}

#[tokio::test]
async fn frozen_before_the_first_connection() {
    let server = RedisServer::start();
    let redis = Redis::connect(&server.url()).unwrap();
    server.freeze();
    for _ in 0..5 {
        let start = Instant::now();
        assert_eq!(kind(&redis).await, Some(Kind::Timeout));
        assert!(start.elapsed() >= BUDGET && start.elapsed() < ONE_BUDGET, "{:?}", start.elapsed());
    }
    assert_eq!(kind(&redis).await, Some(Kind::Open));
    server.thaw();
    up(&redis).await;
}

/// A proxy whose connections so far lead nowhere from `hole` on; new ones work.
async fn proxy(to: u16, hole: watch::Receiver<u64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let connections = (1..).map(|n| (n, hole.clone()));
        for (number, mut hole) in connections {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                // Both sockets stay open, whatever happens.
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    _ = hole.wait_for(|swallowed| *swallowed >= number) => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_connection_that_leads_nowhere_is_replaced() {
    let server = RedisServer::start();
    let (swallow, hole) = watch::channel(0);
    let port = proxy(server.port(), hole).await;
    let redis = Redis::connect(&format!("redis://127.0.0.1:{port}")).unwrap();
    up(&redis).await;
    swallow.send(1).unwrap();
    down(&redis).await;
    let start = Instant::now();
    up(&redis).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_budget_is_kept() {
    let server = RedisServer::start();
    let redis = Redis::connect(&server.url()).unwrap();
    up(&redis).await;
    let generous = redis.clone().time_budget(Duration::from_millis(300));
    server.freeze();
    let start = Instant::now();
    assert_eq!(kind(&generous).await, Some(Kind::Timeout));
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(kind(&redis).await, Some(Kind::Timeout));
    assert!(start.elapsed() >= BUDGET && start.elapsed() < ONE_BUDGET, "{:?}", start.elapsed());
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "blocks the loop on purpose")]
async fn a_blocked_event_loop_is_no_timeout() {
    let server = RedisServer::start();
    let redis = Redis::connect(&server.url()).unwrap().time_budget(5 * BUDGET);
    up(&redis).await;
    for _ in 0..10 {
        let block = tokio::spawn(async { std::thread::sleep(15 * BUDGET) });
        assert_eq!(kind(&redis).await, None);
        block.await.unwrap();
    }
}

#[tokio::test]
async fn too_many_at_once_fail_fast() {
    let server = RedisServer::start();
    let redis = Redis::connect(&server.url()).unwrap().time_budget(Duration::from_secs(5));
    up(&redis).await;
    server.freeze();
    let ask = || {
        let redis = redis.clone();
        tokio::spawn(async move { kind(&redis).await })
    };
    let asked: Vec<_> = (0..4196).map(|_| ask()).collect();
    let is_finished = |task: &&tokio::task::JoinHandle<_>| task.is_finished();
    eventually("100 are refused", async || asked.iter().filter(is_finished).count() == 100).await;
    server.thaw();
    let mut refused = 0;
    for task in asked {
        refused += usize::from(task.await.unwrap() == Some(Kind::Unavailable));
    }
    assert_eq!(refused, 100, "the others were answered");
    assert_eq!(kind(&redis).await, None, "and have left");
}

#[tokio::test]
async fn wrong_password() {
    let server = RedisServer::start_with(&[]);
    assert!(server.command(&["CONFIG", "SET", "requirepass", "s3cret"]).starts_with("+OK"));
    let wrong = patient(&server.url().replace("://", "://:wr0ng@"));
    let failure = get(&wrong, "k").await.unwrap_err();
    assert_eq!(failure.source().unwrap().to_string(), "authentication failed");
    down(&wrong).await;
    let later = get(&wrong, "k").await.unwrap_err();
    let shown = format!("{wrong:?} {failure} {failure:?} {later:?} {}", later.source().unwrap());
    assert!(!shown.contains("wr0ng") && !shown.contains("127.0.0.1"), "{shown}");
    up(&Redis::connect(&server.url().replace("://", "://:s3cret@")).unwrap()).await;
}

#[tokio::test]
async fn own_pool() {
    let mut server = RedisServer::start();
    assert_eq!(Redis::from_pool(pool(&server.url(), 1)).unwrap_err(), ConfigError::PoolTooSmall);
    let pool = pool(&server.url(), 2);
    let redis = Redis::from_pool(pool.clone()).unwrap();
    up(&redis).await;
    assert_eq!((pool.status().size, pool.status().available), (1, 0), "one is held");
    drop(pool.get().await.unwrap());
    server.kill();
    down(&redis).await;
    server.launch();
    up(&redis).await;
    assert!(pool.status().size <= 2, "{:?}", pool.status());
    drop(pool.get().await.expect("the broken connection's place is free again"));
    drop(redis);
    eventually("the connection is back in the pool", async || pool.status().available == pool.status().size).await;
}

#[tokio::test]
async fn an_exhausted_pool_costs_no_more_than_the_budget() {
    let server = RedisServer::start();
    let pool = pool(&server.url(), 2);
    let all = (pool.get().await.unwrap(), pool.get().await.unwrap());
    let redis = Redis::from_pool(pool).unwrap();
    let start = Instant::now();
    assert_eq!(kind(&redis).await, Some(Kind::Timeout));
    assert!(start.elapsed() < ONE_BUDGET, "{:?}", start.elapsed());
    drop(all);
    up(&redis).await;
}

#[tokio::test]
async fn a_replica_is_left_for_its_master() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    eventually("Redis answers", async || set(&redis, "k", "v").await.is_ok()).await;
    let identity = async || redis.query(cmd("CLIENT").arg("ID")).await;
    let before = identity().await.unwrap();
    assert!(server.command(&["REPLICAOF", "127.0.0.1", "1"]).starts_with("+OK"));
    eventually("another connection", async || {
        let refused = set(&redis, "k", "v").await.unwrap_err();
        assert_eq!((refused.kind(), refused.source().unwrap().to_string().as_str()), (Kind::Refused, "READONLY"));
        identity().await.unwrap() != before
    })
    .await;
    // Not one per request, though.
    let (mut before, start, mut changes) = (identity().await.unwrap(), Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(900) {
        let _ = set(&redis, "k", "v").await;
        let now = identity().await.unwrap();
        changes += u32::from(before != now);
        before = now;
    }
    assert!(changes <= 1, "{changes}");
    assert!(server.command(&["REPLICAOF", "NO", "ONE"]).starts_with("+OK"));
    eventually("writes again", async || set(&redis, "k", "v").await.is_ok()).await;
}

#[tokio::test]
async fn cluster_pool() {
    let cluster = Cluster::start();
    let manager = cluster::Manager::new(cluster.urls(), false).unwrap();
    let pool = cluster::Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
    let redis = Redis::from_cluster_pool(pool).unwrap().time_budget(5 * BUDGET);
    up(&redis).await;
    let patient = redis.clone().time_budget(Duration::from_secs(2));
    for n in 0..90 {
        set(&patient, &format!("key{n}"), "v").await.unwrap();
        assert_eq!(get(&patient, &format!("key{n}")).await.unwrap(), Value::BulkString(b"v".to_vec()));
    }
    let sets: Vec<_> = cluster.masters.iter().map(|master| master.calls("set")).collect();
    assert_eq!(sets.iter().sum::<u64>(), 90);
    assert!(sets.iter().all(|sets| *sets > 10), "{sets:?}");

    // One master freezes: its keys fail, at once after a few; the others' keep being served.
    cluster.masters[1].freeze();
    let slow = std::cell::Cell::new(0);
    let pass = async || {
        let (mut served, mut open) = (0, 0);
        for n in 0..90 {
            match get(&redis, &format!("key{n}")).await.map_err(|error| error.kind()) {
                Ok(_) => served += 1,
                Err(Kind::Open) => open += 1,
                Err(_) => slow.set(slow.get() + 1),
            }
        }
        (served, open)
    };
    pass().await;
    assert!(slow.get() <= 8, "{}", slow.get());
    for _ in 0..5 {
        let start = Instant::now();
        let (served, open) = pass().await;
        assert!(served >= 40 && open >= 10, "{served} served, {open} not asked");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    assert!(slow.get() <= 8, "{}", slow.get());
    cluster.masters[1].thaw();
    eventually("all keys again", async || pass().await == (90, 0)).await;
}

#[tokio::test]
async fn several_keys_of_a_slot_are_one_command() {
    let cluster = Cluster::start();
    let manager = cluster::Manager::new(cluster.urls(), false).unwrap();
    let pool = cluster::Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
    let redis = Redis::from_cluster_pool(pool).unwrap().time_budget(Duration::from_secs(2));
    let calls = |command| cluster.masters.iter().map(|master| master.calls(command)).sum::<u64>();
    for n in 1..=20 {
        let keys = [format!("ts:{{{n}}}K"), format!("ts:{{{n}}}g")];
        set(&redis, &keys[0], "v").await.unwrap();
        let both = redis.query(cmd("MGET").arg(&keys)).await.unwrap();
        assert_eq!(both, Value::Array(vec![Value::BulkString(b"v".to_vec()), Value::Nil]));
        assert_eq!(redis.query(cmd("DEL").arg(&keys)).await.unwrap(), Value::Int(1));
        assert_eq!((calls("mget"), calls("del")), (n, n));
    }
    assert!(cluster.masters.iter().all(|master| master.calls("mget") > 0), "to the master of each");
}

#[tokio::test]
async fn sentinel_pool_follows_the_master() {
    let mut servers = Sentinel::start();
    let urls = vec![servers.sentinel.url()];
    let manager =
        sentinel::Manager::new(urls, Sentinel::SERVICE.into(), None, sentinel::SentinelServerType::Master).unwrap();
    let pool = sentinel::Pool::builder(manager).max_size(2).runtime(Runtime::Tokio1).build().unwrap();
    let redis = Redis::from_sentinel_pool(pool).unwrap().time_budget(5 * BUDGET);
    eventually("Redis answers", async || set(&redis, "k", "v").await.is_ok()).await;
    assert_eq!(servers.master.calls("set"), 1);
    servers.master.kill();
    eventually("the replica is the master", async || set(&redis, "k", "w").await.is_ok()).await;
    assert!(servers.replica.calls("set") >= 1);
}

#[tokio::test]
async fn tls_with_an_unknown_authority_is_refused() {
    let server = TlsServer::start();
    let redis = Redis::connect(&server.url()).unwrap().time_budget(Duration::from_millis(500));
    let failure = get(&redis, "k").await.unwrap_err();
    assert_eq!(failure.kind(), Kind::Unavailable);
    assert_eq!(failure.source().unwrap().to_string(), "TLS handshake failed");
    down(&redis).await;
}

#[tokio::test]
async fn tls_with_an_own_pool() {
    let server = TlsServer::start();
    let root_cert = Some(std::fs::read(server.authority()).unwrap());
    let client = Client::build_with_tls(server.url(), TlsCertificates { client_tls: None, root_cert }).unwrap();
    let redis = Redis::from_pool(pool_of(&client)).unwrap();
    up(&redis).await;
    assert!(server.plain.calls("get") >= 1);
}

fn pool_of(client: &Client) -> deadpool_redis::Pool {
    let manager = deadpool_redis::Manager::new(client.get_connection_info().clone()).unwrap();
    deadpool_redis::Pool::builder(manager).max_size(2).build().unwrap()
}

/// The environment belongs to the whole process, so the test runs itself again in one of its own.
#[tokio::test]
async fn tls_with_the_systems_authorities() {
    const CHILD: &str = "TOWER_SCALE_TEST_TLS_URL";
    if let Ok(url) = std::env::var(CHILD) {
        return up(&Redis::connect(&url).unwrap()).await;
    }
    let server = TlsServer::start();
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "redis::tls_with_the_systems_authorities"])
        .env(CHILD, server.url())
        .env("SSL_CERT_FILE", server.authority())
        .status();
    assert!(tokio::time::timeout(Duration::from_secs(30), status).await.unwrap().unwrap().success());
    assert!(server.plain.calls("get") >= 1);
}

#[test]
fn several_runtimes_share_a_handle() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime().block_on(up(&redis));
    for _ in 0..3 {
        // The runtime that drove the connection is gone; not even the first request notices.
        assert_eq!(runtime().block_on(kind(&redis)), None);
    }
    let parked = runtime();
    drop(redis);
    let redis = Redis::connect(&server.url()).unwrap().time_budget(ONE_BUDGET);
    parked.block_on(up(&redis));
    // The runtime that owns the connection lives, but nobody drives it.
    runtime().block_on(up(&redis));
    drop(parked);
    runtime().block_on(up(&redis));
}

#[test]
fn a_runtime_that_ends_while_mending_is_succeeded() {
    let mut server = RedisServer::absent();
    let redis = patient(&server.url());
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime().block_on(down(&redis));
    server.launch();
    runtime().block_on(up(&redis));
}

#[tokio::test]
async fn dropping_the_handle_closes_the_connection() {
    let server = RedisServer::start();
    let redis = patient(&server.url());
    up(&redis).await;
    let connected = || {
        let clients = server.command(&["CLIENT", "LIST"]);
        clients.lines().filter(|line| line.contains("cmd=get")).count()
    };
    assert_eq!(connected(), 1);
    drop(redis);
    eventually("the connection is closed", async || connected() == 0).await;
}

#[tokio::test]
async fn a_unix_socket() {
    let path = std::env::temp_dir().join(format!("tower-scale-{}.sock", std::process::id()));
    let server = RedisServer::start_with(&["--unixsocket", path.to_str().unwrap()]);
    up(&Redis::connect(&format!("unix://{}", path.display())).unwrap()).await;
    drop(server);
    let _ = std::fs::remove_file(path);
}

#[test]
fn what_happens_is_counted() {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(up_down_up()));
    let (mut counted, mut timed, mut open) = (std::collections::BTreeMap::new(), 0, f64::NAN);
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let label = key.key().labels().map(|label| label.value().to_owned()).next();
        match (key.key().name(), value) {
            ("redis_operations_total", DebugValue::Counter(n)) => drop(counted.insert(label.unwrap(), n)),
            ("redis_lane_replacements_total", DebugValue::Counter(n)) => assert_eq!(n, 1),
            ("redis_operation_seconds", DebugValue::Histogram(values)) => timed = values.len() as u64,
            ("redis_breaker_open", DebugValue::Gauge(level)) => open = level.into_inner(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counted["error"], 1);
    assert!(counted["ok"] >= 2 && counted["unavailable"] >= 1 && counted["open"] >= 3, "{counted:?}");
    assert_eq!(timed, counted.values().sum::<u64>() - counted["open"], "those that were sent are timed: {counted:?}");
    assert_eq!(open, 0.0);
}

async fn up_down_up() {
    let mut server = RedisServer::start();
    let redis = patient(&server.url());
    up(&redis).await;
    redis.query(cmd("HGET").arg("k")).await.unwrap_err();
    server.kill();
    down(&redis).await;
    for _ in 0..2 {
        assert_eq!(kind(&redis).await, Some(Kind::Open));
    }
    server.launch();
    up(&redis).await;
}
