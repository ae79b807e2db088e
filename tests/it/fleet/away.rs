//! Without Redis, or without the connection that hears of purges: no request fails or waits, nothing old is used for long,
//! and all is as before once it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::task::JoinHandle;

use super::{DISCONNECTED, Fleet, INSTANCES, PAGES, SECOND, content, is_hit, ok, percentile};
use crate::support::eventually;
use crate::support::fleet::{SITE, Servers, Setup};
use crate::support::random::Random;
use crate::support::shop::{Page, Shop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_costs_no_answer() {
    an_absent_redis_costs_no_answer(Setup::Standalone, Servers::kill, Servers::launch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_redis_costs_no_answer() {
    an_absent_redis_costs_no_answer(Setup::Standalone, Servers::freeze, Servers::thaw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_cluster_costs_no_answer() {
    an_absent_redis_costs_no_answer(Setup::Cluster, Servers::kill, Servers::launch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_cluster_costs_no_answer() {
    an_absent_redis_costs_no_answer(Setup::Cluster, Servers::freeze, Servers::thaw).await;
}

/// Clients that ask for one of [`PAGES`] pages of some instance, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Duration>>>,
}

impl Load {
    fn start(fleet: &Fleet) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |seed| {
            let (stop, instances, mut random) = (stop.clone(), fleet.instances.clone(), Random::new(seed));
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let path = format!("/{}", random.below(PAGES));
                    times.push(ok(instances[random.below(INSTANCES)].get(&path).await).took);
                    tokio::time::sleep(Duration::from_millis(random.between(5, 20))).await;
                }
                times
            })
        };
        Self { clients: (0..8).map(client).collect(), stop }
    }

    async fn end(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut times: Vec<_> =
            join_all(self.clients).await.into_iter().flat_map(|times| times.expect("only 200")).collect();
        times.sort();
        times
    }

    /// All were answered, and at once.
    async fn was_fast(self, what: &str) {
        let times = self.end().await;
        let [median, most, worst] = [50, 99, 100].map(|percent| percentile(&times, percent));
        eprintln!("{what}: {} answers in {median:?} (p50), {most:?} (p99), {worst:?} (max)", times.len());
        assert!(most < SECOND / 4 && worst < 2 * SECOND, "{what}: {most:?}, {worst:?}");
    }
}

/// Until a purge by one is told to Redis, and counts in all others.
async fn is_one_again(fleet: &Fleet) {
    let tries = AtomicUsize::new(0);
    eventually("purges reach all again", async || {
        let path = format!("/again/{}", tries.fetch_add(1, Ordering::Relaxed));
        fleet.warm(&path).await;
        let issued = fleet.shop.now();
        let told = fleet.instances[0].purge(&format!("url={SITE}{path}")).await;
        let until = Instant::now() + SECOND / 2;
        let mut seen = false;
        while !seen && Instant::now() < until {
            let answers = join_all(fleet.instances.iter().map(|instance| instance.get(&path))).await;
            seen = answers.iter().all(|answer| content(answer).made > issued);
        }
        told && seen
    })
    .await;
    eventually("what one has fetched another has", async || {
        let path = format!("/shared/{}", tries.fetch_add(1, Ordering::Relaxed));
        let fetched = content(&ok(fleet.instances[0].get(&path).await));
        let found = ok(fleet.instances[3].get(&path).await);
        is_hit(&found) && content(&found) == fetched
    })
    .await;
}

async fn an_absent_redis_costs_no_answer(setup: Setup, away: fn(&mut Servers), back: fn(&mut Servers)) {
    let shop = Shop::start(|_| Page::new("max-age=600")).await;
    let mut fleet = Fleet::start(setup, &[], shop).await;
    for n in 0..PAGES {
        fleet.warm(&format!("/{n}")).await;
    }
    let load = Load::start(&fleet);
    let (gone, before) = (Instant::now(), fleet.shop.all_calls());
    away(&mut fleet.servers);
    let issued = fleet.shop.now();
    assert!(!fleet.instances[0].purge("everything").await, "there is no Redis to have it");
    let others = fleet.instances[1..].iter().map(async |instance| {
        while content(&ok(instance.get("/0").await)).made <= issued {
            assert!(gone.elapsed() < DISCONNECTED + SECOND, "memory is used for ever");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    join_all(others).await;
    // Beyond, each process keeps what it fetches: no page is fetched more than once in its time.
    let more = SECOND * 2;
    eventually("a while", async || gone.elapsed() > DISCONNECTED + more).await;
    let calls = fleet.shop.all_calls() - before;
    eprintln!("{setup:?}: {calls} requests to the origin for {PAGES} pages in {:?} without Redis", gone.elapsed());
    assert!(calls <= PAGES * INSTANCES * 3, "{calls}");
    load.was_fast("without Redis").await;
    let load = Load::start(&fleet);
    back(&mut fleet.servers);
    is_one_again(&fleet).await;
    load.was_fast("with Redis back").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_costs_no_answer() {
    let shop = Shop::start(|_| Page::new("max-age=600")).await;
    let mut fleet = Fleet::start(Setup::Sentinel, &[], shop).await;
    for n in 0..PAGES {
        fleet.warm(&format!("/{n}")).await;
    }
    let load = Load::start(&fleet);
    let gone = Instant::now();
    fleet.servers.kill();
    is_one_again(&fleet).await;
    eprintln!("one again after {:?}", gone.elapsed());
    load.was_fast("through a failover").await;
}

/// The connection that listens is not the one that asks: one may be lost without the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_trusts_its_memory_no_more() {
    let shop = Shop::start(|_| Page::new("max-age=600")).await;
    let mut fleet = Fleet::start(Setup::Standalone, &[], shop).await;
    for _ in 0..5 {
        fleet.warm("/page").await;
        fleet.servers.cut_off();
        let (issued, cut) = (fleet.shop.now(), Instant::now());
        assert!(fleet.instances[0].purge(&format!("url={SITE}/page")).await, "Redis has it");
        let others = fleet.instances[1..].iter().map(async |instance| {
            while content(&ok(instance.get("/page").await)).made <= issued {
                assert!(cut.elapsed() < DISCONNECTED, "memory is used for ever");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        join_all(others).await;
        eprintln!("cut off, all others have seen a purge after {:?}", cut.elapsed());
        is_one_again(&fleet).await;
    }
}
