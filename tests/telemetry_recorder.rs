//! What is scraped. A binary of its own: the sampler records from its own thread, into the process's one recorder.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use http::Request;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tower::ServiceExt;
use tower_scale::cache::{CacheLayer, MemoryStore};
use tower_scale::offload::{OffloadLayer, OffloadPool};
use tower_scale::telemetry::{LAG_BUCKETS, TelemetryLayer};

/// One sampler at a time, so that the histogram is its own; and the recorder, once it is installed.
static RECORDER: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

struct Scrape<'a>(MutexGuard<'a, Option<PrometheusHandle>>);

impl Scrape<'_> {
    /// Also waits for the samplers of earlier tests: one whose runtime has just gone may still record a stall.
    fn alone() -> Self {
        let recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(target_os = "linux")]
        wait_for_samplers(0);
        Self(recorder)
    }

    fn install(&mut self) {
        self.0.get_or_insert_with(|| {
            PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Full("event_loop_lag_seconds".into()), &LAG_BUCKETS)
                .unwrap()
                .install_recorder()
                .unwrap()
        });
    }

    fn text(&self) -> String {
        let handle = self.0.as_ref().unwrap();
        handle.run_upkeep();
        handle.render()
    }

    /// The value on the line that starts with `series`, or zero.
    fn value(&self, series: &str) -> f64 {
        value_in(&self.text(), series)
    }

    fn long_polls(&self, route: &str) -> f64 {
        self.value(&format!("http_long_polls_total{{route=\"{route}\"}}"))
    }

    fn lag_over(&self, bound: f64) -> f64 {
        self.lag_count_and_over(bound).1
    }

    /// From one scrape: between two of them samples come in.
    fn lag_count_and_over(&self, bound: f64) -> (f64, f64) {
        let text = self.text();
        let mut series = String::from("event_loop_lag_seconds_bucket{le=\"");
        write!(series, "{bound}\"}}").unwrap();
        let count = value_in(&text, "event_loop_lag_seconds_count");
        (count, count - value_in(&text, &series))
    }
}

fn value_in(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[allow(clippy::disallowed_methods, reason = "blocking a thread is what is tested")]
fn block(time: Duration) {
    std::thread::sleep(time);
}

/// A runtime that is driven all the time, on a thread of its own, so that the test may scrape on its own.
struct Server {
    handle: Handle,
    router: Router,
    layer: TelemetryLayer,
    _stop: oneshot::Sender<()>,
}

fn serve(workers: usize) -> Server {
    let runtime = match workers {
        0 => Builder::new_current_thread().enable_all().build().unwrap(),
        _ => Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap(),
    };
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::spawn(move || runtime.block_on(stopped));
    let layer = {
        let _entered = handle.enter();
        TelemetryLayer::new()
    };
    let blocks = async |Path(ms): Path<u64>| block(Duration::from_millis(ms));
    let router = Router::new().route("/block/{ms}", get(blocks)).layer(layer.clone());
    Server { handle, router, layer, _stop: stop }
}

impl Server {
    /// Runs `task` on the runtime and waits for it here.
    fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.handle.spawn(async move { sender.send(task.await) });
        receiver.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    fn ask(&self, uri: &str) {
        let request = Request::get(uri).body(axum::body::Body::empty()).unwrap();
        let response = self.run(self.router.clone().oneshot(request)).unwrap();
        assert!(response.status().is_success());
    }
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[cfg(target_os = "linux")]
fn sampler_threads() -> usize {
    let is_sampler = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "telemetry")
    };
    std::fs::read_dir("/proc/self/task").unwrap().flatten().filter(is_sampler).count()
}

#[test]
fn a_recorder_installed_after_the_layer_gets_everything() {
    let mut scrape = Scrape::alone();
    let server = serve(2);
    server.ask("/block/30");
    block(Duration::from_millis(50));
    scrape.install();
    server.ask("/block/100");
    // Past the next of the once-a-second figures.
    block(Duration::from_millis(1200));
    let text = scrape.text();
    for name in [
        "event_loop_lag_max_seconds",
        "memory_limit_bytes",
        "memory_working_set_bytes",
        "process_resident_memory_bytes",
        "process_threads",
        "runtime_workers",
    ] {
        assert!(scrape.value(name) > 0.0, "{name} in\n{text}");
    }
    for name in ["process_cpu_seconds_total", "runtime_alive_tasks", "runtime_global_queue_depth", "runtime_busy_ratio"]
    {
        assert!(text.contains(&format!("\n{name} ")), "{name} in\n{text}");
    }
    for name in ["event_loop_lag_seconds", "http_long_polls_total", "process_open_fds", "runtime_busy_ratio"] {
        assert!(text.contains(&format!("# HELP {name} ")), "help of {name} in\n{text}");
    }
    assert!(scrape.value("http_long_polls_total{route=\"/block/{ms}\"}") >= 1.0, "{text}");
    assert!(scrape.lag_over(0.05) >= 1.0, "{text}");
    let max = scrape.value("event_loop_lag_max_seconds");
    assert!(max > 0.08, "{max}");
}

fn cacheable(ms: u64) -> ([(&'static str, &'static str); 1], &'static str) {
    block(Duration::from_millis(ms));
    ([("cache-control", "max-age=60")], "done")
}

#[test]
fn a_handler_that_a_cache_fill_moved_is_blamed_under_its_own_route() {
    let mut scrape = Scrape::alone();
    scrape.install();
    for workers in [0, 2] {
        let mut server = serve(workers);
        let handler = async |Path(ms): Path<u64>| cacheable(ms);
        server.router = Router::new()
            .route("/filled/{ms}", get(handler))
            .layer(CacheLayer::new(MemoryStore::new(1 << 20)))
            .layer(server.layer.clone().long_poll(Duration::from_millis(40)));
        let counts = || ["/filled/{ms}", "unknown"].map(|route| scrape.long_polls(route));
        let before = counts();
        for _ in 0..2 {
            server.ask("http://localhost/filled/50");
        }
        let after = counts();
        assert_eq!([after[0] - before[0], after[1] - before[1]], [1.0, 0.0], "filled once, {workers} workers");
    }
}

#[test]
fn an_offloaded_handler_holds_no_event_loop() {
    let mut scrape = Scrape::alone();
    scrape.install();
    let mut server = serve(2);
    let handler = async |Path(ms): Path<u64>| cacheable(ms);
    let route = Router::new().route("/offloaded/{ms}", get(handler));
    let timed = server.layer.clone().long_poll(Duration::from_millis(40));
    server.router =
        route.clone().layer(OffloadLayer::new(OffloadPool::builder().build().unwrap())).layer(timed.clone());
    server.ask("/offloaded/50");
    assert_eq!(scrape.long_polls("/offloaded/{ms}"), 0.0);
    // Without the pool it is seen.
    server.router = route.layer(timed);
    server.ask("/offloaded/50");
    assert_eq!(scrape.long_polls("/offloaded/{ms}"), 1.0);
}

#[test]
fn every_block_is_in_the_histogram_with_its_ticks() {
    let mut scrape = Scrape::alone();
    scrape.install();
    for workers in [0, 2] {
        let server = serve(workers);
        block(Duration::from_millis(40));
        for trial in 0..20 {
            // Always found; on a machine that is busy elsewhere the OS may hold the loop up as well, not always.
            assert!((0..8).any(|_| block_counts_exactly(&scrape, &server, trial)), "{workers} workers, trial {trial}");
        }
    }
}

/// 150 ms are waits of 150, 140, … 10 ms: ten above 50 ms, five above 100 ms.
fn block_counts_exactly(scrape: &Scrape<'_>, server: &Server, trial: u64) -> bool {
    let over = || [0.05, 0.1, 0.2].map(|bound| scrape.lag_over(bound));
    let before = over();
    let ticks = || std::array::from_fn::<f64, 3, _>(|n| over()[n] - before[n]);
    server.ask("/block/150");
    let deadline = Instant::now() + Duration::from_secs(10);
    while ticks()[0] < 8.0 || ticks()[1] < 3.0 {
        assert!(Instant::now() < deadline, "trial {trial}: {:?}", ticks());
        block(Duration::from_millis(2));
    }
    block(Duration::from_millis(20 + trial));
    let [over_50, over_100, over_200] = ticks();
    over_50 <= 12.0 && over_100 <= 7.0 && over_200 <= 0.0
}

#[test]
fn work_on_other_threads_is_not_lag() {
    let mut scrape = Scrape::alone();
    scrape.install();
    let server = serve(2);
    block(Duration::from_millis(40));
    let before = scrape.lag_count_and_over(0.02);
    // A client's view: how many ticks of 10 ms would have waited for more than 20 ms.
    let waited = server.run(async {
        let end = Instant::now() + Duration::from_secs(2);
        let busy = std::thread::spawn(move || while Instant::now() < end {});
        let mut ticks = 0.0;
        while Instant::now() < end {
            let start = Instant::now();
            tokio::spawn(pause(5)).await.unwrap();
            ticks += (start.elapsed().as_secs_f64() - 0.025).max(0.0) * 100.0;
        }
        busy.join().unwrap();
        ticks
    });
    let after = scrape.lag_count_and_over(0.02);
    let (samples, late) = (after.0 - before.0, after.1 - before.1);
    assert!(samples > 60.0, "{samples} samples in 2 s");
    // On an idle machine this is one per cent; a machine that is busy elsewhere delays clients as well.
    assert!(late <= samples * 0.01 + waited * 2.0, "{late} of {samples} samples; a client waited for {waited} ticks");
}

/// How many samples an idle runtime gives in a second.
fn samples_in_a_second(scrape: &Scrape<'_>) -> f64 {
    let count = || scrape.value("event_loop_lag_seconds_count");
    let (start, before) = (Instant::now(), count());
    block(Duration::from_secs(1));
    (count() - before) / start.elapsed().as_secs_f64()
}

#[test]
fn a_runtime_gives_one_sample_per_tick_however_many_layers_it_has() {
    let mut scrape = Scrape::alone();
    scrape.install();
    let server = serve(2);
    let second = server.run(async { TelemetryLayer::new() });
    #[cfg(target_os = "linux")]
    wait_for_samplers(1);
    // A machine that is busy elsewhere runs the sampler late: fewer.
    let samples = samples_in_a_second(&scrape);
    assert!((60.0..105.0).contains(&samples), "{samples} samples in a second");
    server.ask("/block/100");
    block(Duration::from_millis(40));
    for vitals in [server.layer.vitals(), second.vitals()] {
        assert!(vitals.lag_max() >= Duration::from_millis(80), "{vitals:?}");
    }
    let other = serve(0);
    #[cfg(target_os = "linux")]
    wait_for_samplers(2);
    assert!(other.layer.vitals().lag_max() < Duration::from_millis(80));

    let Server { router, layer, handle, _stop: stop } = server;
    drop((router, layer, second, other));
    #[cfg(target_os = "linux")]
    wait_for_samplers(0);
    assert!(samples_in_a_second(&scrape) < 1.0);
    let _entered = handle.enter();
    let again = TelemetryLayer::new();
    assert!(samples_in_a_second(&scrape) > 60.0);
    drop((again, stop));
}

#[test]
fn the_largest_lag_is_that_of_all_runtimes() {
    let mut scrape = Scrape::alone();
    scrape.install();
    let (stalled, quiet) = (serve(0), serve(0));
    #[cfg(target_os = "linux")]
    wait_for_samplers(2);
    stalled.ask("/block/400");
    block(Duration::from_millis(50));
    for _ in 0..20 {
        quiet.run(pause(15));
        let lag_max = scrape.value("event_loop_lag_max_seconds");
        assert!(lag_max > 0.3, "the quiet runtime's sampler hides the other's stall: {lag_max}");
    }
}

#[cfg(target_os = "linux")]
fn wait_for_samplers(count: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while sampler_threads() != count {
        assert!(Instant::now() < deadline, "{} samplers, expected {count}", sampler_threads());
        block(Duration::from_millis(2));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_sampler_ends_with_its_last_owner_or_its_runtime() {
    let _alone = Scrape::alone();
    let Server { router, layer, _stop: stop, .. } = serve(2);
    let vitals = layer.vitals();
    wait_for_samplers(1);
    drop((router, layer));
    block(Duration::from_millis(60));
    wait_for_samplers(1);
    drop(vitals);
    wait_for_samplers(0);
    let Server { router, layer, _stop: other, .. } = serve(0);
    wait_for_samplers(1);
    drop((stop, other));
    wait_for_samplers(0);
    drop((router, layer));
}
