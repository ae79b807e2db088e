//! What is counted.

use super::error::Kind;
use crate::meter::{Counter, Gauge, Histogram, Meter};

const OPERATIONS: Meter = Meter::new("redis_operations_total", "Redis operations by outcome");
const SECONDS: Meter = Meter::new("redis_operation_seconds", "Time of the Redis operations that were sent, in seconds");
const BREAKER: Meter = Meter::new("redis_breaker_open", "Open breakers: Redis servers that are not asked");
const REPLACEMENTS: Meter = Meter::new("redis_lane_replacements_total", "Redis connections given up for a new one");

pub(super) struct Metrics {
    ok: Counter,
    timeout: Counter,
    open: Counter,
    unavailable: Counter,
    error: Counter,
    pub(super) seconds: Histogram,
    pub(super) breaker_open: Gauge,
    pub(super) replacements: Counter,
}

impl Metrics {
    pub(super) const fn new() -> Self {
        const fn outcome(value: &'static str) -> Counter {
            Counter::labelled(OPERATIONS, "outcome", value)
        }
        Self {
            ok: outcome("ok"),
            timeout: outcome("timeout"),
            open: outcome("open"),
            unavailable: outcome("unavailable"),
            error: outcome("error"),
            seconds: Histogram::new(SECONDS),
            breaker_open: Gauge::new(BREAKER),
            replacements: Counter::new(REPLACEMENTS),
        }
    }

    pub(super) fn count(&self, failure: Option<Kind>) {
        match failure {
            None => &self.ok,
            Some(Kind::Timeout) => &self.timeout,
            Some(Kind::Open) => &self.open,
            Some(Kind::Unavailable) => &self.unavailable,
            Some(Kind::Refused) => &self.error,
        }
        .increment(1);
    }
}
