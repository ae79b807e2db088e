//! Clients that somebody blocked, and until when.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::super::clock::LAST_TICK;
use super::super::gcra::Limit;
use super::super::policy::OnFull;
use super::super::table::Table;

const SLOTS: usize = 1 << 16;
/// A block is a debt of milliseconds. 2⁴⁴ of them are 557 years.
const TICK_NANOS: u64 = 1_000_000;
const LIMIT: Limit = Limit { interval: 1, capacity: LAST_TICK };

pub(super) struct Blocks {
    /// No block ends later.
    until: AtomicU64,
}

pub(super) fn table() -> Table {
    Table::new(SLOTS, OnFull::Admit)
}

impl Blocks {
    pub(super) fn new() -> Self {
        Self { until: AtomicU64::new(0) }
    }

    /// Whether anybody may be blocked.
    #[inline]
    pub(super) fn may_hold(&self, now: u64) -> bool {
        now < self.until.load(Relaxed)
    }

    /// How long the client is blocked yet, if it is.
    #[inline]
    pub(super) fn wait(&self, table: &Table, hash: u64, now: u64) -> Option<Duration> {
        if !self.may_hold(now) {
            return None;
        }
        let tick = now / TICK_NANOS;
        let owed = table.peek(hash, LIMIT, tick).ok()?.debt;
        (owed > 0).then(|| Duration::from_nanos(tick.saturating_add(owed).saturating_mul(TICK_NANOS) - now))
    }

    /// Blocks a client for so long from now on, or no more.
    pub(super) fn set(&self, table: &Table, hash: u64, now: u64, duration: Duration) {
        let (tick, end) = (now / TICK_NANOS, now.saturating_add(nanos(duration)));
        let owed = if duration.is_zero() { 0 } else { end.div_ceil(TICK_NANOS) - tick };
        let _ = table.set(hash, LIMIT, tick, owed);
        if owed > 0 {
            self.until.fetch_max((tick + owed).saturating_mul(TICK_NANOS), Relaxed);
        }
    }

    #[cfg(any(test, feature = "redis"))]
    pub(super) fn clear(&self) {
        self.until.store(0, Relaxed);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
