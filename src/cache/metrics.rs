//! The module's numbers.

use crate::meter::{Counter, Counters, Gauge, Histogram, Meter};

const REQUESTS: Meter =
    Meter::new("cache_requests_total", "Requests, by what the cache did: hit, miss, collapsed, bypass, failed");
const FILLS: Meter = Meter::new("cache_fills_in_flight", "Responses being fetched or collected for the store");
const WAITERS: Meter = Meter::new("cache_waiters", "Requests that wait for another request's response");
const STORE_ERRORS: Meter = Meter::new("cache_store_errors_total", "Store operations that failed; each is a miss");
const FILL_SECONDS: Meter =
    Meter::new("cache_fill_seconds", "Time from a request's forward to the end of its response's body, where stored");
const ENTRIES: Meter = Meter::new("cache_entries", "Entries in the memory stores, expired ones included");
const BYTES: Meter = Meter::new("cache_bytes", "Bytes in the memory stores: keys, fields, bodies and overhead");

/// What the cache did with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered from the store.
    Hit,
    /// Looked up in vain and forwarded.
    Miss,
    /// Answered with the response to another request.
    Collapsed,
    /// Forwarded without a look.
    Bypass,
    /// Refused: the requests that it waited for failed.
    Failed,
}

impl Outcome {
    /// In the order of the variants.
    const WORDS: [&str; 5] = ["hit", "miss", "collapsed", "bypass", "failed"];
}

/// One layer's handles.
pub(super) struct Metrics {
    requests: Counters<5>,
    fills: Gauge,
    waiters: Gauge,
    pub(super) store_errors: Counter,
    pub(super) fill_seconds: Histogram,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            requests: Counters::new(REQUESTS, "outcome", Outcome::WORDS),
            fills: Gauge::new(FILLS),
            waiters: Gauge::new(WAITERS),
            store_errors: Counter::new(STORE_ERRORS),
            fill_seconds: Histogram::new(FILL_SECONDS),
        }
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.requests.count(outcome as usize);
    }

    pub(super) fn fill_began(&self) {
        self.fills.increment(1.0);
    }

    pub(super) fn fill_ended(&self) {
        self.fills.decrement(1.0);
    }

    pub(super) fn waiter_came(&self) {
        self.waiters.increment(1.0);
    }

    pub(super) fn waiter_left(&self) {
        self.waiters.decrement(1.0);
    }
}

/// A memory store's handles.
pub(super) struct Usage {
    pub(super) entries: Gauge,
    pub(super) bytes: Gauge,
}

impl Usage {
    pub(super) fn new() -> Self {
        Self { entries: Gauge::new(ENTRIES), bytes: Gauge::new(BYTES) }
    }
}
