//! Lookups: in this process's memory, and in what all processes share.

use std::iter::repeat;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ::redis::{Cmd, Value as Answer};
use bytes::Bytes;

use super::channel::Channel;
use super::hub::{Hub, trouble};
use super::metrics::{Looked, Recalled};
use super::tags::Generations;
use super::token::{Maker, token};
use super::value::{self, Value};
use crate::cache::entry::{Kind, Record};
use crate::cache::fleet::{Control, Find};
use crate::cache::key::Key;
use crate::cache::purge::Purged;
use crate::cache::store::{Reply, Store, StoreFailure};
use crate::redis::StoreError;

const MGET: &str = "MGET";

impl Hub {
    /// What memory holds, if it may be used without asking Redis.
    pub(super) fn recall(&self, key: &Key) -> Option<Record> {
        let found = self.memory.get()?.get(key);
        let (record, outcome) = match found {
            Reply::Now(Ok(Some(record))) if self.trusts(&record) => (Some(record), Recalled::Hit),
            Reply::Now(Ok(Some(_))) => (None, Recalled::Void),
            _ => (None, Recalled::Miss),
        };
        if self.tiered {
            self.metrics.recalled(outcome);
        }
        record
    }

    /// The same, for who does not look it up for a request: it counts nowhere.
    pub(super) fn peek(&self, key: &Key) -> Option<Record> {
        match self.memory.get()?.get(key) {
            Reply::Now(Ok(found)) => found.filter(|record| self.trusts(record)),
            _ => None,
        }
    }

    fn trusts(&self, record: &Record) -> bool {
        let stamp = match &record.0 {
            Kind::Response(entry) => entry.head.stamp,
            Kind::Vary(spec) => spec.stamp,
        };
        self.channel.trusts(stamp, self.disconnected_ttl())
    }

    pub(super) async fn look(self: Arc<Self>, key: Key) -> Result<Find, StoreFailure> {
        Channel::ensure(&self);
        self.channel.begun(self.redis.budget()).await;
        let begun = Instant::now();
        match self.ask(&key).await {
            Ok((find, outcome)) => {
                self.metrics.looked(outcome, begun.elapsed());
                Ok(find)
            }
            Err(error) => {
                self.metrics.looked(Looked::Failed, begun.elapsed());
                Err(trouble(&error))
            }
        }
    }

    async fn ask(self: &Arc<Self>, key: &Key) -> Result<(Find, Looked), StoreError> {
        // Before anything is read: what comes in between voids what is read.
        let quiet = self.writing.quiet(key);
        let (touched, now) = (self.touched.read(key), SystemTime::now());
        // What Redis has not been told yet is not to be found again as if it were new.
        let stamp = self.purges.stamp(now).min(self.channel.floor(key));
        let (stored, generations) = self.fetch(key, now).await?;
        let seen = stored.as_deref().map_or(0, value::seen);
        let generations = generations.as_deref().and_then(value::unpack_marked);
        let control = Control {
            generations: generations.map(|(pair, _)| pair),
            next: if generations.is_some() { 0 } else { token(Maker::Fill, now) },
            broad: self.broad.newest(),
            seen,
            marked: generations.is_some_and(|(_, marked)| marked),
            known: true,
        };
        let Some(stored) = stored else { return Ok((Find { record: None, control }, Looked::Miss)) };
        let verdict = match value::decode(key, stored) {
            None => None,
            Some(value) => Some((self.judge(key, &value, control.generations).await?, value.record)),
        };
        let (record, outcome) = match verdict {
            None | Some((Purged::Hard, _)) => (None, Looked::Void),
            Some((Purged::Soft, record)) => (Some(value::adopt(record, stamp, Some(now))), Looked::Stale),
            Some((Purged::No, record)) => (Some(value::adopt(record, stamp, None)), Looked::Hit),
        };
        if let Some(record) = record.as_ref().filter(|_| quiet.is_some()) {
            self.remember(key, record, || self.touched.read(key) == touched && self.writing.quiet(key) == quiet);
        }
        Ok((Find { record, control }, outcome))
    }

    /// What stands under the key, and its URL's generations: in one trip. Where the channel does not keep the list of
    /// broad purges right, that is read meanwhile.
    async fn fetch(&self, key: &Key, now: SystemTime) -> Result<(Option<Bytes>, Option<Bytes>), StoreError> {
        let names = self.names.lookup(key);
        let mut found = if self.channel.is_alive() {
            self.mget(&names).await?
        } else {
            // In a box, for every lookup would have to carry it along.
            let both = Box::pin(async { tokio::try_join!(self.mget(&names), self.broad.refresh(self, now)) });
            both.await?.0
        };
        Ok((found.next().flatten(), found.next().flatten()))
    }

    /// In the order of the names; none is missing.
    pub(super) async fn mget(
        &self,
        names: &[Vec<u8>],
    ) -> Result<impl Iterator<Item = Option<Bytes>> + use<>, StoreError> {
        let room = names.iter().map(Vec::len).sum::<usize>();
        let mut command = Cmd::with_capacity(1 + names.len(), MGET.len() + room);
        command.arg(MGET).arg(names);
        let answer = self.redis.query(&command).await?;
        let answers = if let Answer::Array(answers) = answer { answers } else { Vec::new() };
        Ok(answers.into_iter().map(bytes).chain(repeat(None)).take(names.len()))
    }

    /// What has happened to a response since it was stored.
    async fn judge(&self, key: &Key, value: &Value, url: Option<Generations>) -> Result<Purged, StoreError> {
        let mut verdict = compare(value.generations, url);
        if verdict == Purged::Hard {
            return Ok(verdict);
        }
        let tags = value::tags_of(&value.record);
        if !tags.is_empty() {
            for (had, has) in value.tags.iter().zip(Box::pin(self.generations_of(tags, &value.tags)).await?) {
                verdict = verdict.max(compare(*had, has));
            }
        }
        Ok(verdict.max(self.broad.verdict(value.broad, key).unwrap_or(Purged::Hard)))
    }

    /// Puts into memory what was read, unless it has changed meanwhile.
    fn remember(&self, key: &Key, record: &Record, unchanged: impl Fn() -> bool) {
        let Some(memory) = self.memory_for(record) else { return };
        if !unchanged() || !self.trusts(record) {
            return;
        }
        let _ = memory.put(key, record.clone());
        // Who changes it counts first and removes then: one of the two looks sees the other.
        if !unchanged() {
            memory.discard(key, record);
        }
    }
}

fn bytes(answer: Answer) -> Option<Bytes> {
    match answer {
        Answer::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

/// What a name's purges have done to what was stored under `had`.
fn compare(had: Generations, has: Option<Generations>) -> Purged {
    match has {
        Some((hard, soft)) if hard == had.0 => {
            if soft == had.1 {
                Purged::No
            } else {
                Purged::Soft
            }
        }
        _ => Purged::Hard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_voids_and_what_differs_tells() {
        for (has, verdict) in [
            (None, Purged::Hard),
            (Some((1, 2)), Purged::No),
            (Some((1, 3)), Purged::Soft),
            (Some((3, 2)), Purged::Hard),
            (Some((3, 3)), Purged::Hard),
        ] {
            assert_eq!(compare((1, 2), has), verdict);
        }
    }
}
