//! How full the tables are, for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::super::metrics::TableMetrics;

const SAMPLE_EVERY_NANOS: u64 = 1_000_000_000;

pub(super) struct Watch {
    metrics: TableMetrics,
    /// When the next sample is due.
    due: AtomicU64,
}

impl Watch {
    pub(super) fn new(policy: &'static str) -> Self {
        Self { metrics: TableMetrics::new(policy), due: AtomicU64::new(0) }
    }

    pub(super) fn count_eviction(&self) {
        self.metrics.evictions.increment(1);
    }

    #[inline]
    pub(super) fn is_due(&self, now: u64) -> bool {
        cfg!(feature = "metrics") && now >= self.due.load(Relaxed)
    }

    /// Takes a sample with this, if none was taken within a second.
    #[inline]
    pub(super) fn sample(&self, now: u64, sample: impl FnOnce(u64) -> f64) {
        let due = self.due.load(Relaxed);
        let next = now.saturating_add(SAMPLE_EVERY_NANOS);
        if self.is_due(now) && self.due.compare_exchange(due, next, Relaxed, Relaxed).is_ok() {
            self.metrics.occupancy.set(sample(now));
        }
    }
}
