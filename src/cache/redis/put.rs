//! Storing, under what was known before the request was forwarded.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::redis::Value as Answer;

use super::channel::Channel;
use super::hub::{Hub, trouble};
use super::message::News;
use super::metrics::Dropped;
use super::remove::Tell;
use super::token::{Maker, token};
use super::value;
use super::writes::Place;
use crate::cache::entry::{Kind, Record};
use crate::cache::fleet::{Control, End, Fence};
use crate::cache::key::Key;
use crate::cache::purge::Purged;
use crate::cache::store::{Store, StoreFailure};
use crate::cache::stripes::Stripes;
use crate::redis::{Script, StoreError};

/// Generations outlive what is stored under them by this.
pub(super) const BEYOND: Duration = Duration::from_secs(3600);

/// Nothing is kept longer: sums of times have no end otherwise.
const MAX_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Which keys this process is changing in Redis.
pub(super) struct Writing {
    begun: Stripes,
    ended: Stripes,
}

impl Writing {
    pub(super) fn new() -> Self {
        Self { begun: Stripes::new(), ended: Stripes::new() }
    }

    /// A number that is another one if the key is changed meanwhile. `None`: it is being changed.
    pub(super) fn quiet(&self, key: &Key) -> Option<u64> {
        let ended = self.ended.read(key);
        Some(self.begun.read(key)).filter(|begun| *begun == ended)
    }
}

/// A change under way. What is read meanwhile does not get into memory.
pub(super) struct Change {
    hub: Arc<Hub>,
    pub(super) key: Key,
}

impl Change {
    pub(super) fn begin(hub: &Arc<Hub>, key: &Key) -> Self {
        hub.writing.begun.bump(key);
        Self { hub: hub.clone(), key: key.clone() }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.hub.writing.ended.bump(&self.key);
    }
}

impl Hub {
    /// Without a fence: in place of whatever is there.
    pub(super) fn put(
        self: &Arc<Self>,
        key: &Key,
        record: Record,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<bool, StoreFailure>> + Send + 'static + use<> {
        let change = Change::begin(self, key);
        let record = match record.0 {
            // A response is stamped since its request was forwarded.
            Kind::Vary(_) => value::adopt(record, self.purges.stamp(SystemTime::now()), None),
            Kind::Response(_) => record,
        };
        if let Some(memory) = self.memory_for(&record) {
            let _ = memory.put(key, record.clone());
        } else if let Some(memory) = self.memory.get() {
            let _ = memory.remove(key);
        }
        let place = self.writes.reserve(record.weight());
        let hub = self.clone();
        async move {
            let written = hub.write(&change.key, &record, fence, place).await;
            let outcome = match written {
                Ok(()) => Ok(true),
                Err(Unwritten::Useless) => Ok(false),
                Err(Unwritten::Failed(failure)) => {
                    hub.metrics.dropped(Dropped::Failed);
                    Err(failure)
                }
                Err(Unwritten::For(reason)) => {
                    hub.metrics.dropped(reason);
                    match fence {
                        Some(fence) => Ok(hub.keep_here(&change.key, &record, fence, reason)),
                        None if reason == Dropped::TooLarge => Ok(false),
                        // Who compares nothing expects that what was there is gone.
                        None => Err(StoreFailure::unavailable()),
                    }
                }
            };
            drop(change);
            outcome
        }
    }

    /// Whether this process's memory goes on having what was not written: its own table of purges guards that.
    fn keep_here(self: &Arc<Self>, key: &Key, record: &Record, fence: Fence, reason: Dropped) -> bool {
        if let (Dropped::Outdated, Some(memory)) = (reason, self.memory.get()) {
            memory.discard(key, record);
            return false;
        }
        if let (true, Some(token)) = (self.tiered, fence.lease) {
            self.end(key, token, End::Failed);
        }
        self.tiered
    }

    async fn write(
        self: &Arc<Self>,
        key: &Key,
        record: &Record,
        fence: Option<Fence>,
        place: Option<Place>,
    ) -> Result<(), Unwritten> {
        if fence.is_some_and(|fence| !fence.control.known) {
            return Err(Unwritten::For(Dropped::Unknown));
        }
        let Some(_place) = place else { return Err(Unwritten::For(Dropped::Behind)) };
        let now = SystemTime::now();
        let too_large = is_larger(record, self.max_object_bytes());
        let left = record.keep_for(now).filter(|_| !too_large).map(|left| left.min(MAX_LIFETIME));
        let (Some(left), Some(bytes)) = (left, record.encode(key)) else {
            // What is there must not stay in place of it.
            self.erase(key, if too_large { Tell::IfThere } else { Tell::Always }).await?;
            return Err(if too_large { Unwritten::For(Dropped::TooLarge) } else { Unwritten::Useless });
        };
        let control = match fence {
            Some(fence) => fence.control,
            None => self.anything(now).await?,
        };
        if self.broad.verdict(control.broad, key) != Some(Purged::No) {
            return Err(Unwritten::For(Dropped::Outdated));
        }
        let tags = self.tags_for(record, fence.is_some(), now, left).await?;
        let id = u64::try_from(token(Maker::Fill, now) & u128::from(u64::MAX)).unwrap_or(1);
        let rest = value::rest(id, control.broad, &tags, &bytes).ok_or(Unwritten::Useless)?;
        drop(bytes);
        self.run_put(key, fence, control, &rest, left).await
    }

    /// For who compares nothing.
    async fn anything(self: &Arc<Self>, now: SystemTime) -> Result<Control, StoreError> {
        Channel::ensure(self);
        self.channel.begun(self.redis.budget()).await;
        if !self.channel.is_alive() || self.broad.newest() == 0 {
            self.broad.refresh(self, now).await?;
        }
        let (next, broad) = (token(Maker::Fill, now), self.broad.newest());
        Ok(Control { next, broad, known: true, ..Control::default() })
    }

    async fn run_put(
        &self,
        key: &Key,
        fence: Option<Fence>,
        control: Control,
        rest: &[u8],
        left: Duration,
    ) -> Result<(), Unwritten> {
        let mode: &[u8] = match (fence, control.generations) {
            (None, _) => b"any",
            (Some(_), Some(_)) => b"same",
            (Some(_), None) => b"new",
        };
        let generations = value::pack(control.generations.unwrap_or((control.next, control.next)));
        let lease = fence.and_then(|fence| fence.lease).map_or(Vec::new(), |token| token.to_be_bytes().to_vec());
        let names = [self.names.record(key), self.names.generations(key), self.names.lease(key)];
        let message = self.message(News::Overwritten(key.clone()));
        let answer = self
            .run(
                &self.scripts.put,
                &names,
                &[
                    mode,
                    &generations,
                    rest,
                    &millis(left),
                    &millis(left + BEYOND),
                    &lease,
                    &control.seen.to_be_bytes(),
                    &self.names.channel(),
                    &message,
                ],
            )
            .await?;
        if answer == Answer::Int(1) { Ok(()) } else { Err(Unwritten::For(Dropped::Outdated)) }
    }

    pub(super) async fn run(&self, script: &Script, names: &[Vec<u8>], words: &[&[u8]]) -> Result<Answer, StoreError> {
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        self.redis.eval(script, &names, words).await
    }
}

/// Why nothing was written.
pub(super) enum Unwritten {
    For(Dropped),
    /// It is of no use any more, or has no form.
    Useless,
    Failed(StoreFailure),
}

impl From<StoreError> for Unwritten {
    fn from(error: StoreError) -> Self {
        Self::Failed(trouble(&error))
    }
}

fn is_larger(record: &Record, most: usize) -> bool {
    match &record.0 {
        Kind::Response(entry) => entry.body.len() > most,
        Kind::Vary(_) => false,
    }
}

/// As Redis takes it: at least 1.
pub(super) fn millis(time: Duration) -> Vec<u8> {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1).to_string().into_bytes()
}
