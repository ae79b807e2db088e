//! The record of a policy's changes, in Redis.

use std::hash::{BuildHasher, RandomState};

use super::super::super::quota::Quota;
use super::super::ledger::Ledger;
use super::entry;
use crate::redis::{Script, StoreError};

/// One hash: `n` counts the changes, `0` to `127` are the newest of them, `q0`, `q1`, … the quotas set at run time. Whoever
/// finds none begins one, with a mark of its own in the place of a first change, so that a flush is noticed in any case.
pub(super) struct Record {
    key: Vec<u8>,
    quotas: usize,
    append: Script,
    read: Script,
}

/// The last change that an instance knows of, and its number. `None`: it has not asked yet.
pub(super) type Seen = Option<(u64, String)>;

/// What an instance did not know yet.
pub(super) struct News {
    /// Some may be missing: the last change that the instance knew of is not there.
    pub(super) is_incomplete: bool,
    /// By Redis's clock, in milliseconds.
    pub(super) now: u64,
    /// Those that were set.
    pub(super) quotas: Vec<Option<Quota>>,
    /// From the oldest to the newest.
    pub(super) entries: Vec<String>,
    /// From now on.
    pub(super) seen: Seen,
}

impl Record {
    pub(super) fn new(ledger: &Ledger) -> Self {
        Self {
            key: ledger.control_key(),
            quotas: ledger.local.policy.rules.len(),
            append: Script::new(include_str!("append.lua")),
            read: Script::new(include_str!("read.lua")),
        }
    }

    pub(super) async fn append(&self, ledger: &Ledger, entry: &str) -> Result<(), StoreError> {
        ledger.redis.eval(&self.append, &[&self.key], &[entry.as_bytes()]).await.map(drop)
    }

    pub(super) async fn set_quota(&self, ledger: &Ledger, index: usize, quota: Quota) -> Result<(), StoreError> {
        let mut set = ::redis::cmd("HSET");
        set.arg(&self.key).arg(format!("q{index}")).arg(entry::quota_text(quota));
        ledger.redis.query(&set).await.map(drop)
    }

    /// `None`: the record is not one.
    pub(super) async fn read(&self, ledger: &Ledger, seen: &Seen) -> Result<Option<News>, StoreError> {
        type Reply = (u8, u64, String, u64, Vec<Option<String>>, Vec<String>);
        let (number, last) = seen.as_ref().map_or((0, ""), |(number, last)| (*number, last));
        let mark = format!("{:016x}", RandomState::new().hash_one(number));
        let args = [&*number.to_string(), last, &self.quotas.to_string(), &mark];
        let reply = ledger.redis.eval(&self.read, &[&self.key], &args.map(str::as_bytes)).await?;
        let Ok((complete, count, last, now, quotas, entries)) = ::redis::from_redis_value::<Reply>(reply) else {
            return Ok(None);
        };
        let quotas = quotas.iter().map(|text| entry::parse_quota(text.as_deref()?)).collect();
        Ok(Some(News { is_incomplete: complete == 0, now, quotas, entries, seen: Some((count, last)) }))
    }
}
