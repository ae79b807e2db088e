//! Event-loop lag, memory, and which route held the event loop.
//!
//! 1. **Lag is measured from outside the loop**, by one OS thread per runtime, however many layers it has, which reads
//!    the runtime every 10 ms (20 ms while it is quiet) in two ways. A *probe*, a task that only says when it ran,
//!    shows how long the queues are. The workers' own *counters* show a worker that has been in one turn since the last
//!    reading, which the probe cannot see while another worker is free. A third source does not depend on that thread
//!    being run in time: polls of requests are timed where they run. So stalls of 20 ms and more that a request causes
//!    are found, others of 30 ms and more, on every runtime flavour.
//! 2. **A stall counts as every tick that it delayed**: one of 50 ms is recorded as 50, 40, 30, 20 and 10 ms, as tasks
//!    that became due in that time would have waited. Otherwise the histogram would show one bad sample among hundreds
//!    of good ones (coordinated omission). No tick counts twice when both ways, or several workers, see the stall. A
//!    reading after 20 quiet milliseconds gives two samples, so that every tick of 10 ms weighs the same.
//! 3. **A stall shows while it lasts**, in [`Vitals::lag`], [`Vitals::lag_max`] and the gauge of the rolling 60 s
//!    maximum; the histogram gets it when it ends.
//! 4. **A reading that comes late is no evidence against the loop**: when the OS did not run the sampler, it may not
//!    have run the loop either (a frozen or throttled process). Only what readings in time confirm counts.
//! 5. **Every poll of a request is timed**: `call`, the future and the body, on whichever thread they run. One of 20 ms
//!    and more ([`TelemetryLayer::long_poll`]) is counted under its route *pattern*, also if it panics. Threads that
//!    exist to be blocked, those of the offload pool, are exempt. Nested layers count it once.
//! 6. **The log names the culprit**: one line in 10 s about long polls, and one about each poll that has lasted 1 s,
//!    *while it still lasts*, so that an endless loop has a name too (feature `tracing`).
//! 7. **Memory is what the kernel would kill for**: the limit is the lowest of the control group and its ancestors
//!    (cgroup v2 and v1) and the machine's memory, and the working set leaves out page cache that can be dropped.
//!
//! It never answers a request, never delays or reorders one, and never labels a metric with a path. Routes beyond the
//! 256th are counted as `other`, requests that nobody named as `unknown`.
//!
//! **In the stack**: outermost, so that everything inside is timed; with axum use `Router::layer`, which runs after
//! routing and so knows the pattern. With plain hyper, name routes with [`TelemetryLayer::route`].
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, routing::get};
//! use tower_scale::telemetry::TelemetryLayer;
//! # use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "multi_thread", worker_threads = 2)]
//! # async fn main() {
//! let telemetry = TelemetryLayer::new();
//! let vitals = telemetry.vitals();
//! let app: Router = Router::new().route("/slow", get(slow)).layer(telemetry);
//! # let request = http::Request::get("/slow").body(axum::body::Body::empty()).unwrap();
//! # tokio::spawn(app.oneshot(request)).await.unwrap().unwrap();
//! # tokio::time::sleep(Duration::from_millis(50)).await;
//!
//! // After a request to `/slow`:
//! assert!(vitals.lag_max() > Duration::from_millis(100));
//! assert!(vitals.memory().resident > 0);
//!
//! async fn slow() {
//!     std::thread::sleep(Duration::from_millis(150)); // blocks the event loop
//! }
//! # }
//! ```
//!
//! **Cost.** The sampler takes 5 to 7 ms of processor time per second (0.5 to 0.7 % of a core), of which memory, process
//! and exported figures are a part, and its 50 to 100 probes take up to 4 ms per second of an otherwise idle runtime.
//! A request pays two clock readings per poll and an extension, 0.2 to 0.3 µs in all.
//!
//! **What is seen**: stalls of 20 ms and more by a request's poll and of 30 ms and more by any other task, on any
//! worker; shorter waits, of a task that any worker may take, by probing. **What is not**: a worker held for less than
//! 20 ms while another is free; how long one particular task waited; the route behind a task that a handler spawned
//! (it shows as lag only); blocking outside the runtime's workers.
//!
//! **Deployment caveats.** A Prometheus exporter needs [`LAG_BUCKETS`], and its upkeep must run, or histograms grow
//! without bound. A turn is up to `event_interval` (61) polls, so many short polls in a row may show as lag of tens of
//! milliseconds, as they do to a task that waits behind them. The body of `#[tokio::main]` is not on a worker of a
//! multi-thread runtime: blocking there is not lag. Work inside `block_in_place` is counted as a long poll although the
//! runtime moves its other tasks away. Only the first runtime that a layer meets is sampled for it, until it shuts
//! down. With several runtimes, each sampled by a layer of its own, the lag figures are of all of them, the `runtime_*`
//! gauges of whichever wrote last. A sampler that cannot start (no thread to be had) or panics is tried again by a
//! request 10 s later.
//!
//! | metric | kind | meaning |
//! |---|---|---|
//! | `event_loop_lag_seconds` | histogram | how long a task that became due waited, one sample per 10 ms tick |
//! | `event_loop_lag_max_seconds` | gauge | the largest of the last 60 s, stalls in progress included |
//! | `http_long_polls_total{route}` | counter | polls that held the event loop for longer than the threshold |
//! | `memory_limit_bytes` | gauge | lowest control group limit, at most the machine's memory (Linux) |
//! | `memory_working_set_bytes` | gauge | what the control group of that limit uses and cannot simply drop |
//! | `runtime_workers` | gauge | worker threads |
//! | `runtime_alive_tasks` | gauge | tasks spawned and not ended |
//! | `runtime_global_queue_depth` | gauge | tasks in the runtime's global queue |
//! | `runtime_busy_ratio` | gauge | share of the workers' time spent polling, over the last second |
//! | `process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_virtual_memory_max_bytes`, `process_open_fds`, `process_max_fds`, `process_threads`, `process_start_time_seconds` | gauge | the process, by the crate `metrics-process` |
//! | `process_cpu_seconds_total` | counter | processor time of the process |
//!
//! All but `http_long_polls_total` are recorded by the sampler's thread, so they need a global recorder; it may be
//! installed at any time. For that, and since they are used rarely (a long poll, a reading), handles are not cached:
//! each use looks its metric up by name.

mod body;
#[cfg(feature = "metrics")]
mod export;
mod future;
mod lag;
mod layer;
mod memory;
mod metrics;
mod readings;
mod rolling;
mod sampler;
#[cfg(feature = "tracing")]
mod seat;
mod service;
mod watch;

pub use body::ResponseBody;
pub use future::ResponseFuture;
pub use layer::{TelemetryLayer, Vitals};
pub use memory::Memory;
pub use metrics::LAG_BUCKETS;
pub use service::Telemetry;
