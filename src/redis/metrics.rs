//! What is counted.

use super::error::Kind;
use crate::meter::{Counter, Counters, Gauge, Histogram, Meter};

const OPERATIONS: Meter = Meter::new("redis_operations_total", "Redis operations by outcome");
const SECONDS: Meter = Meter::new("redis_operation_seconds", "Time of the Redis operations that were sent, in seconds");
const BREAKER: Meter = Meter::new("redis_breaker_open", "Open breakers: Redis servers that are not asked");
const REPLACEMENTS: Meter = Meter::new("redis_lane_replacements_total", "Redis connections given up for a new one");

const OUTCOMES: [&str; 5] = ["ok", "timeout", "open", "unavailable", "error"];

pub(super) struct Metrics {
    operations: Counters<5>,
    pub(super) seconds: Histogram,
    pub(super) breaker_open: Gauge,
    pub(super) replacements: Counter,
}

impl Metrics {
    pub(super) const fn new() -> Self {
        Self {
            operations: Counters::new(OPERATIONS, "outcome", OUTCOMES),
            seconds: Histogram::new(SECONDS),
            breaker_open: Gauge::new(BREAKER),
            replacements: Counter::new(REPLACEMENTS),
        }
    }

    pub(super) fn count(&self, failure: Option<Kind>) {
        self.operations.count(match failure {
            None => 0,
            Some(Kind::Timeout) => 1,
            Some(Kind::Open) => 2,
            Some(Kind::Unavailable) => 3,
            Some(Kind::Refused) => 4,
        });
    }
}
