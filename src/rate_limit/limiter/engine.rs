//! What a quota change replaces.

use std::sync::Arc;
use std::time::Duration;

use super::super::clock::Clock;
use super::super::gcra::{self, Limit};
use super::super::policy::{OnFull, Policy, Rule};
use super::super::quota::Quota;
use super::super::table::{Moved, Outcome, Scale, Table};
use super::blocks;
use super::{Share, Standing};

pub(super) struct Engine {
    pub(super) parts: Box<[Part]>,
    pub(super) blocks: Arc<Table>,
}

/// One quota.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) quota: Quota,
    pub(super) table: Arc<Table>,
    clock: Clock,
    limit: Limit,
    slots: usize,
    on_full: OnFull,
}

/// What is done to a client in a table: its hash, the limit, the time, the cost.
pub(super) type Action = fn(&Table, u64, Limit, u64, u64) -> Result<Outcome, Moved>;

/// What a table said, and of which quota.
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    limit: Limit,
    clock: Clock,
    cost: u64,
}

impl Engine {
    pub(super) fn new(policy: &Policy) -> Self {
        let part = |rule: &Rule| Part::new(rule.quota, policy.slots, policy.on_full);
        Self { parts: policy.rules.iter().map(part).collect(), blocks: Arc::new(blocks::table()) }
    }

    /// The same, but for one quota, whose table is one that takes over the present one.
    pub(super) fn with_quota(&self, index: usize, quota: Quota, now: u64) -> Self {
        let mut parts = self.parts.clone();
        if let Some(part) = parts.get_mut(index) {
            *part = part.with_quota(quota, now);
        }
        Self { parts, blocks: self.blocks.clone() }
    }

    /// The same quotas, and nobody owes anything.
    #[cfg(any(test, feature = "redis"))]
    pub(super) fn emptied(&self) -> Self {
        let part = |part: &Part| Part::new(part.quota, part.slots, part.on_full);
        Self { parts: self.parts.iter().map(part).collect(), blocks: Arc::new(blocks::table()) }
    }
}

impl Part {
    fn new(quota: Quota, slots: usize, on_full: OnFull) -> Self {
        let (clock, limit) = Clock::for_quota(&quota);
        Self { quota, table: Arc::new(Table::new(slots, on_full)), clock, limit, slots, on_full }
    }

    fn with_quota(&self, quota: Quota, now: u64) -> Self {
        let (clock, limit) = Clock::for_quota(&quota);
        let latest = clock.ticks(now).saturating_add(limit.capacity);
        let table = Table::after(&self.table, Scale { from: self.clock, to: clock, latest });
        Self { quota, table: Arc::new(table), clock, limit, slots: self.slots, on_full: self.on_full }
    }

    #[inline]
    pub(super) fn ask(
        &self,
        action: impl Fn(&Table, u64, Limit, u64, u64) -> Result<Outcome, Moved>,
        hash: u64,
        cost: u64,
        share: Share,
        now: u64,
    ) -> Result<Answer, Moved> {
        let limit = share.of(self.limit);
        let outcome = action(&self.table, hash, limit, self.clock.ticks(now), cost)?;
        Ok(Answer { outcome, limit, clock: self.clock, cost })
    }

    /// The share of its table's slots in use, by a sample.
    pub(super) fn occupancy(&self, sample: impl ExactSizeIterator<Item = u64>, now: u64) -> f64 {
        self.table.occupancy(sample, self.clock.ticks(now))
    }
}

impl Answer {
    /// Whether a request, or one more, would be admitted.
    pub(super) fn admits(&self) -> bool {
        gcra::charge(self.limit, self.outcome.debt, self.cost).is_some()
    }

    pub(super) fn standing(&self, quota: u8) -> Standing {
        let (remaining, more) = gcra::standing(self.limit, self.outcome.debt);
        let seconds = whole_seconds(self.clock.duration(more));
        Standing { quota, remaining: u32::try_from(remaining).unwrap_or(u32::MAX), seconds }
    }

    /// Until a request would be admitted.
    pub(super) fn wait(&self) -> Duration {
        self.clock.duration(gcra::wait(self.limit, self.outcome.debt, self.cost))
    }
}

/// Rounded up.
pub(super) fn whole_seconds(duration: Duration) -> u32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

impl Share {
    /// With half a share, a request costs twice as much: at most the capacity, so that one is always possible.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an interval is at most 2⁴³, and is a positive number after the division"
    )]
    fn of(self, limit: Limit) -> Limit {
        if self == Self::WHOLE {
            return limit;
        }
        let interval = (limit.interval as f64 / self.0).ceil() as u64;
        Limit { interval: interval.min(limit.capacity), ..limit }
    }
}
