//! One cache over several processes, proven from outside: four processes of `examples/fleet.rs`, an origin that counts,
//! and real Redis, as one server, as a cluster of three masters, and behind a sentinel.
//!
//! One test at a time: they look at times, and each starts many processes.

mod away;
mod permission;
mod soak;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;

use crate::support::eventually;
use crate::support::example::{Answer, run_to_end};
use crate::support::fleet::{Instance, SITE, Servers, Setup};
use crate::support::shop::{Content, Page, Shop};

const INSTANCES: usize = 4;
const SECOND: Duration = Duration::from_secs(1);
/// What an instance may use of its memory once it hears nothing more, and how long it takes it to notice.
const DISCONNECTED: Duration = Duration::from_secs(6);

pub(crate) static TURN: Mutex<()> = Mutex::const_new(());

struct Fleet {
    instances: Vec<Arc<Instance>>,
    servers: Servers,
    shop: Arc<Shop>,
    _turn: MutexGuard<'static, ()>,
}

impl Fleet {
    async fn start(setup: Setup, settings: &[(&str, &str)], shop: Shop) -> Self {
        let turn = TURN.lock().await;
        let (servers, origin) = (Servers::start(setup), shop.url());
        let start = |_| Arc::new(Instance::start(&origin, &servers, settings));
        Self { instances: (0..INSTANCES).map(start).collect(), servers, shop: Arc::new(shop), _turn: turn }
    }

    /// Until each answers from what is stored.
    async fn warm(&self, path: &str) {
        for instance in &self.instances {
            eventually("it is stored", async || is_hit(&ok(instance.get(path).await))).await;
        }
    }

    /// `count` requests at once, spread over the instances.
    async fn burst(&self, path: &str, count: usize) -> Vec<Answer> {
        let ask = |n: usize| {
            let (instance, path) = (self.instances[n % INSTANCES].clone(), path.to_owned());
            tokio::spawn(async move { instance.get(&path).await })
        };
        let asked: Vec<_> = (0..count).map(ask).collect();
        join_all(asked).await.into_iter().map(|answer| ok(answer.expect("no panic"))).collect()
    }
}

fn ok(answer: Answer) -> Answer {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").starts_with("tower-scale; hit")
}

fn content(answer: &Answer) -> Content {
    Content::of(&answer.body).unwrap_or_else(|| panic!("not the shop's: {answer:?}"))
}

fn slowest(answers: &[Answer]) -> Duration {
    answers.iter().map(|answer| answer.took).max().expect("some")
}

/// The value below which `percent` of them are.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// One test per setup of Redis.
macro_rules! on_each {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::support::fleet::Setup;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn standalone() {
                super::$name(Setup::Standalone).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn cluster() {
                super::$name(Setup::Cluster).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sentinel() {
                super::$name(Setup::Sentinel).await;
            }
        }
    )+};
}

on_each!(
    what_has_expired_or_gone_is_fetched_once,
    what_was_never_seen_is_fetched_once_per_process,
    nobody_waits_for_what_is_not_for_sharing,
    a_purge_is_seen_by_all,
    a_killed_process_holds_up_nobody,
);

/// A thousand requests at once are patient with a machine that is busy with them.
const PATIENT: (&str, &str) = ("REDIS_BUDGET_MS", "2000");

async fn what_has_expired_or_gone_is_fetched_once(setup: Setup) {
    let herd = Arc::new(AtomicBool::new(false));
    let coming = herd.clone();
    let shop = Shop::start(move |asked| match (coming.load(Ordering::SeqCst), asked.path) {
        (false, "/expired") => Page::new("max-age=1"),
        (false, _) => Page::new("max-age=600"),
        (true, _) => Page::new("max-age=600").delay(SECOND / 2),
    });
    let fleet = Fleet::start(setup, &[PATIENT], shop.await).await;
    fleet.warm("/expired").await;
    fleet.warm("/purged").await;
    herd.store(true, Ordering::SeqCst);
    for path in ["/expired", "/purged"] {
        let before = fleet.shop.calls(path);
        if path == "/purged" {
            assert!(fleet.instances[1].purge(&format!("url={SITE}{path}")).await, "Redis has it");
        } else {
            let last = content(&fleet.instances[0].get(path).await).made;
            eventually("it has expired", async || fleet.shop.now() > last + 1_100_000).await;
        }
        let answers = fleet.burst(path, 1000).await;
        let fetched = fleet.shop.calls(path) - before;
        eprintln!("{setup:?} {path}: {fetched} of 1000 went to the origin, the slowest took {:?}", slowest(&answers));
        assert_eq!(fetched, 1, "{path}");
    }
}

async fn what_was_never_seen_is_fetched_once_per_process(setup: Setup) {
    let shop = Shop::start(|_| Page::new("max-age=600").delay(SECOND / 2)).await;
    let fleet = Fleet::start(setup, &[PATIENT], shop).await;
    let answers = fleet.burst("/new", 1000).await;
    let fetched = fleet.shop.calls("/new");
    eprintln!("{setup:?}: {fetched} of 1000 went to the origin, the slowest took {:?}", slowest(&answers));
    assert!((1..=INSTANCES).contains(&fetched), "{fetched}");
}

async fn nobody_waits_for_what_is_not_for_sharing(setup: Setup) {
    const HEAD: Duration = Duration::from_millis(200);
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = stopped.clone();
    let shop = Shop::start(move |_| match stop.load(Ordering::SeqCst) {
        false => Page::new("max-age=600"),
        true => Page::new("no-store").delay(HEAD),
    });
    let fleet = Fleet::start(setup, &[], shop.await).await;
    fleet.warm("/page").await;
    stopped.store(true, Ordering::SeqCst);
    assert!(fleet.instances[2].purge(&format!("url={SITE}/page")).await, "Redis has it");
    // In the time of two heads: that of who went first, and that of each one's own.
    for (round, most) in [("first", 2 * HEAD + SECOND), ("second", HEAD + SECOND)] {
        let answers = fleet.burst("/page", 100).await;
        eprintln!("{setup:?}: the slowest of the {round} hundred took {:?}", slowest(&answers));
        assert!(slowest(&answers) < most, "{round}: {:?}", slowest(&answers));
    }
}

/// For how long the three other processes still use what was purged, once Redis has the purge.
async fn a_purge_is_seen_by_all(setup: Setup) {
    let shop = Shop::start(|asked| {
        let tag = asked.path.replace('/', "t");
        Page::new("max-age=600").field("cache-tag", &format!("{tag}, all"))
    });
    let fleet = Fleet::start(setup, &[], shop.await).await;
    // A machine that is busy with other things can spoil a round.
    for round in 1.. {
        let seen = purges(&fleet).await;
        let [median, most, worst] = [50, 99, 100].map(|percent| percentile(&seen, percent));
        eprintln!("{setup:?}: {PURGES} purges: {median:?} (p50), {most:?} (p99), {worst:?} (max)");
        if most < Duration::from_millis(100) {
            break;
        }
        assert!(round < 3, "{most:?}");
    }
}

const PAGES: usize = 20;
const PURGES: usize = 208;

/// All kinds of purges, each by another process: until when each other process was seen to use what was there before,
/// from the moment that Redis had the purge.
async fn purges(fleet: &Fleet) -> Vec<Duration> {
    let (mut seen, mut untold) = (Vec::new(), 0);
    for n in 0..PURGES {
        let path = format!("/{}", n % PAGES);
        fleet.warm(&path).await;
        let query = match n % 4 {
            0 => format!("url={SITE}{path}"),
            1 => format!("tag=t{}", &path[1..]),
            2 => format!("prefix={SITE}{path}"),
            _ => "everything".to_owned(),
        };
        let query = if n % 8 < 4 { query } else { format!("{query}&soft") };
        let issued = fleet.shop.now();
        untold += usize::from(!fleet.instances[n % INSTANCES].purge(&query).await);
        let told = Instant::now();
        let others = (1..INSTANCES).map(|step| {
            let (instance, path, query) = (&fleet.instances[(n + step) % INSTANCES], &path, &query);
            async move {
                let mut last = Duration::ZERO;
                while content(&ok(instance.get(path).await)).made <= issued {
                    last = told.elapsed();
                    assert!(last < DISCONNECTED, "{query} was never seen");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                last
            }
        });
        seen.extend(join_all(others).await);
        // Not before: what it fetched would be what the others see.
        assert!(content(&ok(fleet.instances[n % INSTANCES].get(&path).await)).made > issued, "{query}");
    }
    assert!(untold <= PURGES / 20, "Redis was late for {untold}");
    seen.sort();
    seen
}

async fn a_killed_process_holds_up_nobody(setup: Setup) {
    let fatal = Arc::new(AtomicBool::new(false));
    let once = fatal.clone();
    let shop = Shop::start(move |_| match once.swap(false, Ordering::SeqCst) {
        false => Page::new("max-age=2"),
        true => Page::new("max-age=2").delay(60 * SECOND),
    });
    let fleet = Fleet::start(setup, &[PATIENT], shop.await).await;
    fleet.warm("/page").await;
    let last = content(&fleet.instances[0].get("/page").await).made;
    eventually("it has expired", async || fleet.shop.now() > last + 2_100_000).await;
    let before = fleet.shop.calls("/page");
    fatal.store(true, Ordering::SeqCst);
    let victim = fleet.instances[0].clone();
    let lost = tokio::spawn(async move { victim.example.try_get("/page", &[]).await });
    eventually("it fetches", async || fleet.shop.calls("/page") > before).await;
    let others: Vec<_> = fleet.instances[1..].to_vec();
    let others = others.into_iter().map(|instance| tokio::spawn(async move { instance.get("/page").await }));
    let others: Vec<JoinHandle<_>> = others.collect();
    fleet.instances[0].example.kill();
    let answers: Vec<_> = join_all(others).await.into_iter().map(|answer| ok(answer.expect("no panic"))).collect();
    let (took, fetched) = (slowest(&answers), fleet.shop.calls("/page") - before);
    eprintln!("{setup:?}: the others have it after {took:?}, with {fetched} requests to the origin");
    assert!(took < 4 * SECOND, "{took:?}");
    assert_eq!(fetched, 2, "one of the others went for all of them");
    assert!(lost.await.expect("no panic").is_err());
}

/// What was purged meanwhile it has not heard, nor that it was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_catches_up() {
    let shop = Shop::start(|_| Page::new("max-age=600")).await;
    let fleet = Fleet::start(Setup::Standalone, &[], shop).await;
    let [one, two] = [&fleet.instances[0], &fleet.instances[1]];
    for still in [100, 3_000] {
        fleet.warm("/page").await;
        one.example.freeze();
        let (issued, began) = (fleet.shop.now(), Instant::now());
        assert!(two.purge("everything").await, "Redis has it");
        eventually("some time", async || began.elapsed() > Duration::from_millis(still)).await;
        one.example.thaw();
        let thawed = Instant::now();
        while content(&ok(one.get("/page").await)).made <= issued {
            assert!(thawed.elapsed() < SECOND, "it has not caught up");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        eprintln!("after {still} ms, a process has caught up within {:?}", thawed.elapsed());
    }
}

// === The example itself ===

#[tokio::test]
async fn tags_and_administration() {
    let shop = Shop::start(|_| Page::new("max-age=600").field("cache-tag", "a b,c , d").field("cache-tag", "e")).await;
    let servers = Servers::start(Setup::Standalone);
    let _turn = TURN.lock().await;
    for store in ["tiered", "redis"] {
        let settings = [("STORE", store), ("MEMORY_BYTES", "1000000"), PATIENT];
        let instance = Instance::start(&shop.url(), &servers, &settings);
        for tag in ["a", "b", "c", "d", "e"] {
            eventually("stored", async || is_hit(&ok(instance.get("/page").await))).await;
            let before = ok(instance.get("/page").await);
            assert_eq!(before.header("cache-tag"), "", "it is for the cache");
            assert!(instance.purge("tag=unknown").await);
            assert_eq!(ok(instance.get("/page").await).body, before.body);
            assert!(instance.purge(&format!("tag={tag}")).await);
            assert_ne!(ok(instance.get("/page").await).body, before.body, "{tag}");
        }
        for query in ["", "soft", "url=/page", "tag=a&tag=b", "what=1", "everything&tag=a"] {
            let answer = instance.example.send("POST", &format!("/-/purge?{query}"), &[], "").await.unwrap();
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        }
        let stats: serde_json::Value = serde_json::from_str(&instance.get("/-/stats").await.body).unwrap();
        assert!(stats["misses"].as_u64().unwrap() >= 5 && stats["hits"].as_u64().unwrap() >= 10, "{stats}");
        assert!(
            instance.example.metric("cache_requests_total{outcome=\"hit\"}").await.is_some_and(|hits| hits >= 10.0)
        );
    }
}

#[test]
fn unusable_settings_are_named() {
    let origin = ("ORIGIN", "http://127.0.0.1:1");
    let redis = ("REDIS_URL", "redis://127.0.0.1:1");
    for (environment, named) in [
        (vec![redis], "ORIGIN"),
        (vec![redis, ("ORIGIN", "https://127.0.0.1")], "ORIGIN"),
        (vec![redis, ("ORIGIN", "http://127.0.0.1/path")], "ORIGIN"),
        (vec![origin], "REDIS_URL"),
        (vec![origin, redis, ("REDIS_CLUSTER", "redis://127.0.0.1:1")], "REDIS_CLUSTER"),
        (vec![origin, ("REDIS_SENTINEL", "redis://127.0.0.1:1")], "REDIS_SERVICE"),
        (vec![origin, redis, ("STORE", "disk")], "STORE"),
        (vec![origin, redis, ("MEMORY_BYTES", "1GB")], "MEMORY_BYTES"),
        (vec![origin, redis, ("REDIS_BUDGET_MS", "1s")], "REDIS_BUDGET_MS"),
    ] {
        let output = run_to_end("fleet", &environment);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{environment:?}: {text}");
        assert!(text.contains(named) && text.contains("expected"), "{environment:?}: {text}");
    }
}
