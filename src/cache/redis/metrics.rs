//! The store's numbers.

use std::time::Duration;

use crate::meter::{Counter, Counters, Gauge, Histogram, Meter};

const MEMORY: Meter = Meter::new(
    "cache_memory_lookups_total",
    "Lookups in the memory in front of Redis: hit, miss, void (held, but not to be used without asking Redis)",
);
const REDIS: Meter = Meter::new(
    "cache_redis_lookups_total",
    "Lookups in Redis: hit, stale (by a soft purge), miss, void (held, but outdated), failed",
);
const SECONDS: Meter = Meter::new("cache_redis_seconds", "Time of the lookups in Redis, with what they depend on");
const LEASES: Meter = Meter::new(
    "cache_leases_total",
    "Fetches that asked for the lease of all processes: granted, stored (by another), unshared, alone (waited too long), failed",
);
const DROPPED: Meter = Meter::new(
    "cache_writes_dropped_total",
    "Responses not written to Redis: behind (too many at once), outdated, unsure (a tag was purged a short time ago), too_large, unknown (the lookup had failed), failed",
);
const LAG: Meter = Meter::new(
    "cache_invalidation_lag_seconds",
    "Time that a message of this process took to come back to it through Redis, from all masters",
);
const UP: Meter = Meter::new("cache_channel_up", "Invalidation channels that are alive");
const LOSSES: Meter = Meter::new("cache_channel_losses_total", "Losses of an invalidation channel that was alive");
const PENDING: Meter = Meter::new("cache_purges_pending", "Purges that Redis has not taken yet");

/// What a lookup in memory found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recalled {
    Hit,
    Miss,
    /// Something that is not to be used without asking.
    Void,
}

/// What a lookup in Redis found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Hit,
    Stale,
    Miss,
    Void,
    Failed,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    Granted,
    Stored,
    Unshared,
    Alone,
    Failed,
}

/// Why a response was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    Behind,
    Outdated,
    /// A tag of it was purged a short time ago, perhaps since its request was forwarded.
    Unsure,
    TooLarge,
    Unknown,
    Failed,
}

pub(super) struct Metrics {
    memory: Counters<3>,
    redis: Counters<5>,
    seconds: Histogram,
    leases: Counters<5>,
    dropped: Counters<6>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            memory: Counters::new(MEMORY, "outcome", ["hit", "miss", "void"]),
            redis: Counters::new(REDIS, "outcome", ["hit", "stale", "miss", "void", "failed"]),
            seconds: Histogram::new(SECONDS),
            leases: Counters::new(LEASES, "outcome", ["granted", "stored", "unshared", "alone", "failed"]),
            dropped: Counters::new(
                DROPPED,
                "reason",
                ["behind", "outdated", "unsure", "too_large", "unknown", "failed"],
            ),
        }
    }

    pub(super) fn recalled(&self, outcome: Recalled) {
        self.memory.count(outcome as usize);
    }

    pub(super) fn looked(&self, outcome: Looked, took: Duration) {
        self.redis.count(outcome as usize);
        self.seconds.record(took.as_secs_f64());
    }

    pub(super) fn claimed(&self, outcome: Claimed) {
        self.leases.count(outcome as usize);
    }

    pub(super) fn dropped(&self, reason: Dropped) {
        self.dropped.count(reason as usize);
    }
}

/// Those of the invalidation channel.
pub(super) struct ChannelMetrics {
    pub(super) lag: Histogram,
    pub(super) up: Gauge,
    pub(super) losses: Counter,
    pub(super) pending: Gauge,
}

impl ChannelMetrics {
    pub(super) fn new() -> Self {
        Self {
            lag: Histogram::new(LAG),
            up: Gauge::new(UP),
            losses: Counter::new(LOSSES),
            pending: Gauge::new(PENDING),
        }
    }
}
