//! The metrics of this module. Their handles are looked up at every use and never cached: the sampler starts when the
//! layer is built inside a runtime, often before a recorder is installed, and a handle from before that records nothing
//! for ever.

use std::time::Duration;

/// Bucket bounds for `event_loop_lag_seconds`, in seconds.
///
/// A Prometheus exporter renders a histogram as a summary unless it is told its buckets
/// (`PrometheusBuilder::set_buckets_for_metric`). The bound at 20 ms is the lag that a service should stay below.
pub const LAG_BUCKETS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

#[cfg(feature = "metrics")]
pub(super) mod meters {
    use crate::meter::Meter;

    pub(in crate::telemetry) const LAG: Meter = Meter::new(
        "event_loop_lag_seconds",
        "How long a task that became due had to wait for the event loop, one sample per 10 ms tick.",
    );
    pub(in crate::telemetry) const LAG_MAX: Meter =
        Meter::new("event_loop_lag_max_seconds", "Largest event-loop lag of the last 60 s.");
    pub(in crate::telemetry) const LONG_POLLS: Meter = Meter::new(
        "http_long_polls_total",
        "Polls of a request that held the event loop for longer than the threshold (20 ms unless configured).",
    );
    pub(in crate::telemetry) const MEMORY_LIMIT: Meter =
        Meter::new("memory_limit_bytes", "Lowest control group memory limit, at most the machine's memory.");
    pub(in crate::telemetry) const WORKING_SET: Meter = Meter::new(
        "memory_working_set_bytes",
        "Memory that the control group of the limit uses and that cannot simply be dropped.",
    );
    pub(in crate::telemetry) const WORKERS: Meter = Meter::new("runtime_workers", "Worker threads of the runtime.");
    pub(in crate::telemetry) const ALIVE_TASKS: Meter =
        Meter::new("runtime_alive_tasks", "Tasks that were spawned and have not ended.");
    pub(in crate::telemetry) const QUEUE_DEPTH: Meter =
        Meter::new("runtime_global_queue_depth", "Tasks that wait in the runtime's global queue.");
    pub(in crate::telemetry) const BUSY_RATIO: Meter = Meter::new(
        "runtime_busy_ratio",
        "Share of the workers' time spent polling tasks over the last second, 0 to 1.",
    );

    pub(in crate::telemetry) const GAUGES: [Meter; 7] =
        [LAG_MAX, MEMORY_LIMIT, WORKING_SET, WORKERS, ALIVE_TASKS, QUEUE_DEPTH, BUSY_RATIO];
}

pub(super) fn lag(sample: Duration) {
    #[cfg(feature = "metrics")]
    metrics::histogram!(meters::LAG.name).record(sample);
    #[cfg(not(feature = "metrics"))]
    let _ = sample;
}

pub(super) fn lag_max(max: Duration) {
    #[cfg(feature = "metrics")]
    metrics::gauge!(meters::LAG_MAX.name).set(max.as_secs_f64());
    #[cfg(not(feature = "metrics"))]
    let _ = max;
}

pub(super) fn long_poll(route: &str) {
    #[cfg(feature = "metrics")]
    metrics::counter!(meters::LONG_POLLS.name, "route" => route.to_owned()).increment(1);
    #[cfg(not(feature = "metrics"))]
    let _ = route;
}
