//! What is exported once a second.

use std::time::{Duration, Instant};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use tokio::runtime::RuntimeMetrics;

use super::Memory;
use super::metrics::meters;

/// Sets the gauges of memory, process and runtime.
#[derive(Default)]
pub(super) struct Exporter {
    process: metrics_process::Collector,
    /// When it last ran, and how long the workers had been busy by then.
    last: Option<(Instant, Duration)>,
}

#[allow(clippy::cast_precision_loss, reason = "gauges are floats")]
impl Exporter {
    pub(super) fn export(&mut self, now: Instant, memory: Memory, runtime: &RuntimeMetrics) {
        self.describe();
        self.process.collect();
        if let Some(limit) = memory.limit {
            gauge!(meters::MEMORY_LIMIT.name).set(limit as f64);
        }
        gauge!(meters::WORKING_SET.name).set(memory.working_set as f64);
        gauge!(meters::WORKERS.name).set(runtime.num_workers() as f64);
        gauge!(meters::ALIVE_TASKS.name).set(runtime.num_alive_tasks() as f64);
        gauge!(meters::QUEUE_DEPTH.name).set(runtime.global_queue_depth() as f64);
        gauge!(meters::BUSY_RATIO.name).set(self.busy_ratio(now, runtime));
    }

    /// Hands the help texts to the recorder: every time, since it may have been installed in between.
    fn describe(&self) {
        describe_histogram!(meters::LAG.name, Unit::Seconds, meters::LAG.help);
        describe_counter!(meters::LONG_POLLS.name, meters::LONG_POLLS.help);
        for gauge in meters::GAUGES {
            describe_gauge!(gauge.name, gauge.help);
        }
        self.process.describe();
    }

    fn busy_ratio(&mut self, now: Instant, runtime: &RuntimeMetrics) -> f64 {
        let busy = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker)).sum();
        let Some((then, before)) = self.last.replace((now, busy)) else { return 0.0 };
        let time = now.saturating_duration_since(then).as_secs_f64() * runtime.num_workers() as f64;
        // A long turn is booked when it ends, perhaps after the second in which it began.
        (busy.saturating_sub(before).as_secs_f64() / time).min(1.0)
    }
}
