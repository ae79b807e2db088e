//! What the pool counts.

use std::sync::Once;
use std::time::Duration;

use crate::meter::{Counters, Gauge, Histogram, Meter};

const REQUESTS: Meter =
    Meter::new("offload_requests_total", "Requests and closures given to an offload pool, by how they ended.");
const QUEUE_DEPTH: Meter = Meter::new("offload_queue_depth", "Requests and closures that wait for their first turn.");
const ACTIVE: Meter =
    Meter::new("offload_active", "Requests and closures that have begun and not ended, running or suspended.");
const THREADS: Meter = Meter::new("offload_threads", "Threads of offload pools that run requests and closures.");
const WAIT: Meter = Meter::new("offload_wait_seconds", "Time from admission to the first turn on a thread.");
const RUN: Meter = Meter::new("offload_run_seconds", "Time on a thread, all turns together, suspensions not counted.");

/// How a request or closure ended, as its caller saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ran to its end.
    Completed,
    /// It never began: the pool was full or closed.
    Refused,
    /// Its caller left before its end.
    Cancelled,
    /// It panicked.
    Panicked,
}

impl Outcome {
    /// In the order of the variants.
    const WORDS: [&str; 4] = ["completed", "refused", "cancelled", "panicked"];
}

/// One pool's handles. Levels are counted up and down, never set, so that several pools add up.
pub(super) struct Metrics {
    requests: Counters<4>,
    queue_depth: Gauge,
    active: Gauge,
    threads: Gauge,
    /// Whether the pool's threads are in the gauge.
    threads_counted: Once,
    wait: Histogram,
    run: Histogram,
}

impl Metrics {
    pub(super) const fn new() -> Self {
        Self {
            requests: Counters::new(REQUESTS, "outcome", Outcome::WORDS),
            queue_depth: Gauge::new(QUEUE_DEPTH),
            active: Gauge::new(ACTIVE),
            threads: Gauge::new(THREADS),
            threads_counted: Once::new(),
            wait: Histogram::new(WAIT),
            run: Histogram::new(RUN),
        }
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.requests.count(outcome as usize);
    }

    pub(super) fn queued(&self) {
        self.queue_depth.increment(1.0);
    }

    pub(super) fn unqueued(&self) {
        self.queue_depth.decrement(1.0);
    }

    pub(super) fn begun(&self, waited: Duration) {
        self.wait.record(waited.as_secs_f64());
        self.active.increment(1.0);
    }

    pub(super) fn ended(&self, ran: Duration) {
        self.run.record(ran.as_secs_f64());
        self.active.decrement(1.0);
    }

    /// Counts the pool's threads, once: at the first admission, since the recorder may come after the threads. No
    /// thread has ended by then, for that takes a closed pool, which admits nothing.
    pub(super) fn count_threads(&self, threads: usize) {
        self.threads_counted.call_once(|| (0..threads).for_each(|_| self.threads.increment(1.0)));
    }

    pub(super) fn thread_ended(&self) {
        if self.threads_counted.is_completed() {
            self.threads.decrement(1.0);
        }
    }
}
