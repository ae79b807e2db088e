//! The decision, in process.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::clock::Clock;
use super::gcra::{self, Limit};
use super::metrics::Metrics;
use super::partition::Partition;
use super::quota::Quota;
use super::table::Table;

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) admitted: bool,
    /// How many more requests would be admitted now.
    pub(crate) remaining: u64,
    /// How long until that is one more. Not zero.
    pub(crate) wait: Duration,
}

/// One quota, and what every client owes of it.
pub(crate) struct Limiter {
    table: Table,
    clock: Clock,
    limit: Limit,
    start: Instant,
    /// Keyed at random, so that nobody can choose addresses that meet in one bucket.
    hasher: RandomState,
    pub(crate) metrics: Metrics,
}

impl Limiter {
    pub(crate) fn new(quota: &Quota, slots: usize) -> Self {
        let (clock, limit) = Clock::for_quota(quota);
        Self {
            table: Table::new(slots),
            clock,
            limit,
            start: Instant::now(),
            hasher: RandomState::new(),
            metrics: Metrics::new(),
        }
    }

    /// How many clients can be in debt at once.
    pub(crate) fn slots(&self) -> usize {
        self.table.slots()
    }

    /// Charges `client` for one request.
    pub(crate) fn check(&self, client: Partition) -> Verdict {
        let now = self.clock.ticks(self.start.elapsed());
        let outcome = self.table.charge(self.hasher.hash_one(client), self.limit, now, 1);
        if outcome.evicted {
            self.metrics.evictions.increment(1);
        }
        let (remaining, wait) = gcra::standing(self.limit, outcome.debt);
        Verdict { admitted: outcome.admitted, remaining, wait: self.clock.duration(wait) }
    }
}
