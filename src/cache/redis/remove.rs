//! Removing and invalidating.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::channel::Channel;
use super::hub::{Hub, trouble};
use super::message::News;
use super::put::{Change, millis};
use super::token::{Maker, token};
use crate::cache::key::Key;
use crate::cache::purge::Purge;
use crate::cache::store::{Store, StoreFailure, finish};
use crate::redis::StoreError;

/// Longer than a fetch that was forwarded before an invalidation may take, in other processes, to store its response.
const VOID: Duration = Duration::from_secs(60);

/// When other processes learn that a record is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// Also if it is not in Redis: it may be in their memory.
    Always,
    /// If it was in Redis. What is too large for Redis each process keeps in its own memory: they must not go on taking
    /// it from each other.
    IfThere,
}

impl Hub {
    /// Forgets one record.
    pub(super) fn remove(
        self: &Arc<Self>,
        key: &Key,
    ) -> impl Future<Output = Result<(), StoreFailure>> + Send + 'static + use<> {
        let change = Change::begin(self, key);
        if let Some(memory) = self.memory.get() {
            let _ = memory.remove(key);
        }
        let hub = self.clone();
        async move {
            let erased = hub.erase(&change.key, Tell::Always).await;
            drop(change);
            erased.map_err(|error| trouble(&error))
        }
    }

    pub(super) async fn erase(&self, key: &Key, tell: Tell) -> Result<(), StoreError> {
        let message = self.message(News::Overwritten(key.clone()));
        let names = [self.names.record(key)];
        let tell: &[u8] = if tell == Tell::Always { b"always" } else { b"" };
        self.run(&self.scripts.remove, &names, &[&self.names.channel(), &message, tell]).await.map(|_| ())
    }

    /// Goes on if it is dropped.
    pub(super) fn invalidate(
        self: &Arc<Self>,
        primary: &Key,
    ) -> impl Future<Output = Result<(), StoreFailure>> + Send + 'static + use<> {
        let change = Change::begin(self, primary);
        self.voided.bump(primary);
        if let Some(memory) = self.memory.get() {
            let _ = memory.remove(primary);
        }
        // Again: whoever has looked in between may build on what is now removed.
        self.voided.bump(primary);
        let hub = self.clone();
        let work = Box::pin(async move {
            let told = hub.void(&change.key).await;
            let url = url_of(&change.key);
            drop(change);
            let told = told.map_err(|error| trouble(&error));
            match (told, url) {
                (Err(failure), Some(url)) => {
                    let telling = Channel::spread(&hub, url, false);
                    // Who has waited in vain does not wait again: it goes on without.
                    if failure.timed_out { Err(failure) } else { telling.await }
                }
                (Ok(token), Some(url)) => {
                    hub.channel.told(url, token);
                    Ok(())
                }
                (told, None) => told.map(drop),
            }
        });
        async move { finish(work).await.unwrap_or(Err(StoreFailure::unavailable())) }
    }

    /// Returns the token that says so.
    async fn void(&self, primary: &Key) -> Result<u128, StoreError> {
        let now = SystemTime::now();
        let (hard, soft) = (token(Maker::Purge, now), token(Maker::Fill, now));
        let names = [self.names.generations(primary), self.names.record(primary)];
        let message = self.message(News::Invalidated(primary.clone()));
        let words: [&[u8]; 5] =
            [&hard.to_be_bytes(), &soft.to_be_bytes(), &millis(VOID), &self.names.channel(), &message];
        self.run(&self.scripts.invalidate, &names, &words).await.map(|_| hard)
    }
}

fn url_of(key: &Key) -> Option<Purge> {
    let url = key.url();
    let text = [url.scheme, b"://", url.host, url.asked()].concat();
    Purge::url(std::str::from_utf8(&text).ok()?).ok()
}
