//! One client at one moment, before all quotas that concern it.

use std::time::Duration;

use super::super::gcra::Limit;
use super::super::swap::Present;
use super::super::table::{Moved, Outcome, Table};
use super::engine::{Action, Answer, Engine, whole_seconds};
use super::{Decision, Limiter, Partition, Scope, Share, Standing, Verdict};

pub(super) struct Visit<'a> {
    limiter: &'a Limiter,
    engine: Present<'a, Engine>,
    client: Partition,
    hash: u64,
    cost: u64,
    share: Share,
    now: u64,
}

impl<'a> Visit<'a> {
    pub(super) fn new(limiter: &'a Limiter, client: Partition, cost: u32, share: Share, now: u64) -> Self {
        let engine = limiter.engine.load();
        Self { limiter, engine, client, hash: limiter.hash(client), cost: cost.into(), share, now }
    }

    /// Charges all quotas or none.
    pub(super) fn charge(&mut self) -> Verdict {
        let several = self.limiter.scopes.len() > 1;
        if several {
            let verdict = self.peek();
            if !verdict.admitted() {
                return verdict;
            }
        }
        let mut verdict = Verdict::new(Decision::Admitted);
        for (index, hash) in self.concerned() {
            let Some(answer) = self.ask(Table::charge, index, hash) else { continue };
            note(&mut verdict, index, &answer, answer.outcome.changed, self.limiter.tells);
            if several && !answer.outcome.changed {
                self.give_back_before(index);
                // With all standings. Meanwhile there may be room again, but this request was refused.
                let mut seen = self.peek();
                (seen.decision, seen.wait) = (verdict.decision, verdict.wait);
                return seen;
            }
        }
        verdict
    }

    fn give_back_before(&mut self, end: u8) {
        for (index, hash) in self.concerned().take_while(|(index, _)| *index < end) {
            self.ask(Table::refund, index, hash);
        }
    }

    /// What [`charge`](Self::charge) would say.
    pub(super) fn peek(&mut self) -> Verdict {
        let mut verdict = Verdict::new(Decision::Admitted);
        for (index, hash) in self.concerned() {
            let Some(answer) = self.ask(|table, hash, limit, now, _| table.peek(hash, limit, now), index, hash) else {
                continue;
            };
            note(&mut verdict, index, &answer, answer.admits(), true);
        }
        verdict
    }

    /// Does this in all tables that concern the client.
    pub(super) fn each(&mut self, action: Action) {
        for (index, hash) in self.concerned() {
            self.ask(action, index, hash);
        }
    }

    /// Forgets what the client owes by itself, and its block.
    pub(super) fn reset(&mut self) {
        self.block(Duration::ZERO);
        for (index, hash) in self.concerned() {
            if self.limiter.scopes.get(usize::from(index)) == Some(&Scope::Key) {
                self.ask(|table, hash, limit, now, _| table.set(hash, limit, now, 0), index, hash);
            }
        }
    }

    pub(super) fn block(&mut self, duration: Duration) {
        self.limiter.blocks.set(&self.engine.blocks, self.hash, self.now, duration);
    }

    /// The refusal of a client that is blocked.
    pub(super) fn blocked(&mut self) -> Option<Verdict> {
        let wait = self.limiter.blocks.wait(&self.engine.blocks, self.hash, self.now)?;
        let mut verdict = Verdict::new(Decision::Blocked);
        // What the client owes may last longer than its block.
        verdict.wait = wait.max(self.peek().wait);
        for (quota, _) in self.concerned() {
            verdict.push(Standing { quota, remaining: 0, seconds: whole_seconds(verdict.wait) });
        }
        Some(verdict)
    }

    /// Now and then, measures how full the fullest table is.
    pub(super) fn sample(&self) {
        self.limiter.watch.sample(self.now, |seed| {
            let hashes = (0..64_u32)
                .map(|n| self.limiter.hasher.hash(&[seed.to_ne_bytes(), u64::from(n).to_ne_bytes()].concat()));
            self.engine.parts.iter().map(|part| part.occupancy(hashes.clone(), self.now)).fold(0.0, f64::max)
        });
    }

    /// The quotas that concern the client, and as whom they know it.
    fn concerned(&self) -> impl Iterator<Item = (u8, u64)> + use<'a> {
        let (limiter, client, own) = (self.limiter, self.client, self.hash);
        (0..).zip(&limiter.scopes).filter_map(move |(index, scope)| match scope {
            Scope::Key => Some((index, own)),
            Scope::Ipv6(prefix) => Some((index, limiter.hash(client.wider(*prefix)?))),
        })
    }

    /// Does this in the quota's table, as it is now.
    #[inline]
    fn ask(
        &mut self,
        action: impl Fn(&Table, u64, Limit, u64, u64) -> Result<Outcome, Moved>,
        index: u8,
        hash: u64,
    ) -> Option<Answer> {
        loop {
            let part = self.engine.parts.get(usize::from(index))?;
            if let Ok(answer) = part.ask(&action, hash, self.cost, self.share, self.now) {
                if answer.outcome.evicted {
                    self.limiter.watch.count_eviction();
                }
                return Some(answer);
            }
            self.engine = self.limiter.engine.load();
        }
    }
}

/// Adds what a quota says. Having spent a quota is a better reason than having inherited a debt.
#[inline]
pub(super) fn note(verdict: &mut Verdict, quota: u8, answer: &Answer, admitted: bool, tells: bool) {
    if tells || !admitted {
        verdict.push(answer.standing(quota));
    }
    if admitted {
        return;
    }
    verdict.wait = verdict.wait.max(answer.wait());
    if !answer.outcome.inherited {
        verdict.decision = Decision::Refused;
    } else if verdict.decision == Decision::Admitted {
        verdict.decision = Decision::Inherited;
    }
}
