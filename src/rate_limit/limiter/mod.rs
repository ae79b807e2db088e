//! The decision of a policy, in process.
//!
//! 1. One table per quota, so that debts of different periods never mix, and one reading of the time for all of them.
//! 2. Several quotas decide all or nothing: first all are looked at, then each is charged. Where one refuses only then,
//!    because of another request at the same moment, those before it are given back.
//! 3. What a quota change replaces, tables, clocks and limits, is one [`Engine`], behind one pointer. A change puts a new
//!    engine in place, whose table takes over the old one's clients one by one ([`table::moving`](super::table)); a
//!    request that comes too late to the old table turns to the new one. No charge is lost.
//! 4. Blocks are a table of their own, of 2¹⁶ slots, and are looked at only while one is in force. Of eight blocks in one
//!    bucket, the one that ends first is lifted.
//!
//! It never waits, never allocates for a request, and never asks what time it is.

mod blocks;
mod engine;
#[cfg(test)]
mod tests;
mod visit;
mod watch;

use std::hash::{BuildHasher, RandomState};

use siphasher::sip::SipHasher13;

use self::blocks::Blocks;
use self::engine::Engine;
use self::visit::Visit;
use self::watch::Watch;
use super::handle::Change;
use super::partition::Partition;
use super::policy::{Policy, Scope};
use super::quota::{ConfigError, Quota};
use super::swap::Swap;
use super::table::Table;
use super::verdict::{Decision, Standing, Verdict};

/// What part of every quota an instance may give away by itself: above 0, at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share(pub(crate) f64);

impl Share {
    pub(crate) const WHOLE: Self = Self(1.0);
}

/// One policy, and what every client owes of it. Times are nanoseconds of the layer's time.
pub(crate) struct Limiter {
    engine: Swap<Engine>,
    /// Whom each quota concerns.
    scopes: Vec<Scope>,
    blocks: Blocks,
    /// Keyed at random, so that nobody can choose addresses that meet in one bucket.
    hasher: SipHasher13,
    /// Whether those that are admitted are told where they stand.
    tells: bool,
    /// Held while a quota changes: one after the other.
    changing: tokio::sync::Mutex<()>,
    watch: Watch,
}

impl Limiter {
    pub(crate) fn new(policy: &Policy, tells: bool) -> Self {
        let random = RandomState::new();
        Self {
            engine: Swap::new(Engine::new(policy)),
            scopes: policy.rules.iter().map(|rule| rule.scope).collect(),
            blocks: Blocks::new(),
            hasher: SipHasher13::new_with_keys(random.hash_one(0), random.hash_one(1)),
            tells,
            changing: tokio::sync::Mutex::new(()),
            watch: Watch::new(policy.name),
        }
    }

    /// Charges `client` for a request of `cost`, if all quotas allow it. A cost above a burst counts as the burst.
    pub(crate) fn take(&self, client: Partition, cost: u32, share: Share, now: u64) -> Verdict {
        if let Some(verdict) = self.take_single(client, cost, share, now) {
            return verdict;
        }
        let mut visit = self.visit(client, cost, share, now);
        visit.sample();
        let verdict = visit.blocked();
        verdict.unwrap_or_else(|| visit.charge())
    }

    /// The usual case by itself, in half the instructions: one quota, which has not changed just now, and no block.
    #[inline]
    fn take_single(&self, client: Partition, cost: u32, share: Share, now: u64) -> Option<Verdict> {
        if self.scopes.as_slice() != [Scope::Key] || self.watch.is_due(now) || self.blocks.may_hold(now) {
            return None;
        }
        let engine = self.engine.load();
        let part = engine.parts.first()?;
        let answer = part.ask(Table::charge, self.hash(client), cost.into(), share, now).ok()?;
        let mut verdict = Verdict::new(Decision::Admitted);
        visit::note(&mut verdict, 0, &answer, answer.outcome.changed, self.tells);
        if answer.outcome.evicted {
            self.watch.count_eviction();
        }
        Some(verdict)
    }

    /// What [`take`](Self::take) would say, charging nothing.
    pub(crate) fn peek(&self, client: Partition, cost: u32, now: u64) -> Verdict {
        let mut visit = self.visit(client, cost, Share::WHOLE, now);
        let verdict = visit.blocked();
        verdict.unwrap_or_else(|| visit.peek())
    }

    /// Charges without asking, up to the whole burst: somebody else has admitted the request, or punishes the client.
    pub(crate) fn owe(&self, client: Partition, cost: u32, now: u64) {
        self.visit(client, cost, Share::WHOLE, now).each(Table::penalise);
    }

    /// Gives back what a request of `cost` was charged: as far as it is not paid yet, and at the price that it has now.
    pub(crate) fn refund(&self, client: Partition, cost: u32, share: Share, now: u64) {
        self.visit(client, cost, share, now).each(Table::refund);
    }

    /// Does to a client what a handle asks for.
    pub(crate) fn change(&self, client: Partition, change: Change, now: u64) {
        match change {
            Change::Penalise(cost) => self.owe(client, cost, now),
            Change::Reward(cost) => self.refund(client, cost, Share::WHOLE, now),
            Change::Block(duration) => self.visit(client, 0, Share::WHOLE, now).block(duration),
            Change::Reset => self.visit(client, 0, Share::WHOLE, now).reset(),
        }
    }

    /// Replaces the quota at `index`; debts are kept as times: who would have been free of debt in 30 s, will be, unless
    /// that is more than a whole burst of the new quota. `in_force` is called when requests are decided by it, which is
    /// long before the last debt has been taken over.
    ///
    /// Dropped, it has made the change, and called `in_force`, or neither.
    pub(crate) async fn set_quota(
        &self,
        index: usize,
        quota: Quota,
        now: u64,
        in_force: impl FnOnce(),
    ) -> Result<(), ConfigError> {
        let _changing = self.changing.lock().await;
        // What an earlier change left, that was dropped: no table has more than one to take over.
        self.settle(index).await?;
        self.engine.update(|engine| engine.with_quota(index, quota, now));
        in_force();
        self.settle(index).await
    }

    async fn settle(&self, index: usize) -> Result<(), ConfigError> {
        let table = self.engine.load().parts.get(index).map(|part| part.table.clone());
        table.ok_or_else(|| ConfigError::NoSuchQuota(index.to_string()))?.settle().await;
        Ok(())
    }

    /// The quotas, as they are now.
    pub(crate) fn quotas(&self) -> Vec<Quota> {
        self.engine.load().parts.iter().map(|part| part.quota).collect()
    }

    /// Forgets what everybody owes, and all blocks.
    #[cfg(any(test, feature = "redis"))]
    pub(crate) fn clear(&self) {
        self.blocks.clear();
        self.engine.update(Engine::emptied);
    }

    fn visit(&self, client: Partition, cost: u32, share: Share, now: u64) -> Visit<'_> {
        Visit::new(self, client, cost, share, now)
    }

    fn hash(&self, client: Partition) -> u64 {
        client.hash(&self.hasher)
    }
}
