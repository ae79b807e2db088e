//! What every client owes, in Redis.

mod grant;
mod layout;
mod limits;

use std::sync::Arc;

pub(super) use self::grant::Grant;
use self::layout::{Layout, Record};
pub(super) use self::limits::Limits;
use self::limits::MAX_MICROS;
use super::super::gcra::{self, Limit};
use super::super::handle::Change;
use super::super::local::Local;
use super::super::partition::Partition;
use crate::redis::{Redis, Script, StoreError};

/// One policy's part of a Redis.
pub(super) struct Ledger {
    pub(super) redis: Redis,
    pub(super) local: Arc<Local>,
    layout: Layout,
    limits: Arc<Limits>,
    take: Script,
    settle: Script,
}

impl Ledger {
    pub(super) fn new(redis: Redis, local: Arc<Local>) -> Self {
        let layout = Layout::new(&redis, &local.policy);
        let limits = Arc::new(Limits::new(local.policy.rules.iter().map(|rule| &rule.quota)));
        let take = Script::new(concat!(include_str!("state.lua"), include_str!("take.lua")));
        let settle = Script::new(concat!(include_str!("state.lua"), include_str!("settle.lua")));
        Self { redis, local, layout, limits, take, settle }
    }

    /// The quotas in Redis's time, as they are now.
    pub(super) fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// The key of what handles have changed.
    pub(super) fn control_key(&self) -> Vec<u8> {
        self.layout.common("control")
    }

    /// Charges `client` for up to `wanted` requests of `cost` each. With 0 it only looks.
    ///
    /// Dropped before it is done, it may have charged or not.
    pub(super) async fn take(&self, client: Partition, cost: u32, wanted: u32) -> Result<Grant, StoreError> {
        let limits = self.limits.now();
        let records = self.layout.records(client);
        let words = words(&records, &limits, wanted.to_string(), |limit| gcra::price(limit, cost.into()).to_string());
        let answer = self.run(&self.take, &records, &words).await?;
        let quotas = records.iter().flat_map(|record| record.rules);
        let quotas = quotas.filter_map(|rule| Some((*rule, *limits.get(*rule)?)));
        Grant::read(&answer, wanted, cost, quotas).ok_or_else(StoreError::unexpected)
    }

    /// Gives back `times` requests of `cost`, as far as they are still owed.
    pub(super) async fn refund(&self, client: Partition, cost: u32, times: u32) -> Result<(), StoreError> {
        let step = |limit| gcra::price(limit, cost.into()).saturating_mul(times.into()).min(limit.capacity);
        self.settle(&self.layout.records(client), String::new(), |limit| format!("-{}", step(limit))).await
    }

    /// Does what a handle asks for. No other instance hears of it.
    pub(super) async fn change(&self, client: Partition, change: Change) -> Result<(), StoreError> {
        let mut records = self.layout.records(client);
        match change {
            Change::Penalise(cost) => {
                self.settle(&records, String::new(), |limit| gcra::price(limit, cost.into()).to_string()).await
            }
            Change::Reward(cost) => self.refund(client, cost, 1).await,
            Change::Block(duration) => {
                // The others in its tiers are not blocked.
                records.truncate(1);
                let micros = u64::try_from(duration.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX).min(MAX_MICROS);
                self.settle(&records, micros.to_string(), |_| "0".to_owned()).await
            }
            Change::Reset => {
                let mut delete = ::redis::cmd("DEL");
                delete.arg(records.first().map(|own| &*own.key));
                self.redis.query(&delete).await.map(|_| ())
            }
        }
    }

    async fn settle(
        &self,
        records: &[Record<'_>],
        block: String,
        step: impl Fn(Limit) -> String,
    ) -> Result<(), StoreError> {
        let words = words(records, &self.limits.now(), block, step);
        self.run(&self.settle, records, &words).await.map(|_| ())
    }

    async fn run(
        &self,
        script: &Script,
        records: &[Record<'_>],
        words: &[String],
    ) -> Result<::redis::Value, StoreError> {
        let keys: Vec<_> = records.iter().map(|record| &*record.key).collect();
        let words: Vec<_> = words.iter().map(String::as_bytes).collect();
        self.redis.eval(script, &keys, &words).await
    }
}

/// What the scripts are told of these records.
fn words(records: &[Record<'_>], limits: &[Limit], first: String, step: impl Fn(Limit) -> String) -> Vec<String> {
    let mut words = Vec::with_capacity(1 + records.len() + 2 * limits.len());
    words.push(first);
    for record in records {
        words.push(record.rules.len().to_string());
        for limit in record.rules.iter().filter_map(|rule| limits.get(*rule)) {
            words.extend([limit.capacity.to_string(), step(*limit)]);
        }
    }
    words
}
