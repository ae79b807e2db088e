//! How a table takes over another one, of another clock, while requests use both.
//!
//! The new table is put where requests find it; then its buckets are settled one by one, by the first request that misses
//! its client there, or by [`Table::settle`], whoever comes first. Settling a bucket empties the same bucket of the old
//! table: each slot is swapped for a word that no client has. So a request that still uses the old table either came
//! before the swap, and its charge goes along, or finds neither its client nor a lock that it could take ([`Moved`]), and
//! turns to the new table. No charge is lost or made twice.

use std::sync::{Arc, PoisonError};

use super::super::clock::Clock;
use super::bucket::Locked;
use super::word::Word;
use super::{BUCKETS_PER_PAGE, Moved, Table};

/// So many buckets are settled before other tasks may run: about 100 µs.
const BUCKETS_AT_ONCE: usize = 2048;

/// Where a table has its clients from.
pub(super) struct Source {
    table: Arc<Table>,
    scale: Scale,
}

/// From one clock to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) from: Clock,
    pub(crate) to: Clock,
    /// Nobody owes more than a whole burst of the new quota: its TAT is at most this.
    pub(crate) latest: u64,
}

impl Scale {
    fn tat(&self, tat: u64) -> u64 {
        self.to.ticks_until(self.from.duration(tat)).min(self.latest)
    }

    fn word(&self, word: Word) -> Word {
        word.with_tat(self.tat(word.tat()))
    }
}

impl Table {
    /// A table of the same size that will take over `source`. It has to be put where all requests use it, before anything
    /// is done with it.
    pub(crate) fn after(source: &Arc<Self>, scale: Scale) -> Self {
        let mut table = Self::of_pages(source.buckets / BUCKETS_PER_PAGE, source.on_full);
        table.source = Some(Arc::new(Source { table: source.clone(), scale })).into();
        table
    }

    /// Takes over what is left, and lets the old table go. May be dropped: requests go on settling what they need.
    pub(crate) async fn settle(&self) {
        if self.source().is_none() {
            return;
        }
        for index in 0..self.buckets {
            if !self.bucket(index).is_settled() {
                let _ = self.lock(index);
            }
            if index % BUCKETS_AT_ONCE == BUCKETS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn lock(&self, index: usize) -> Result<Locked<'_>, Moved> {
        let mut locked = self.bucket(index).lock()?;
        if !locked.is_settled() {
            if let Some(source) = self.source() {
                source.move_to(index, &mut locked);
            }
            locked.settle();
        }
        Ok(locked)
    }

    fn source(&self) -> Option<Arc<Source>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source {
    fn move_to(&self, index: usize, target: &mut Locked<'_>) {
        if let Ok(mut old) = self.table.lock(index) {
            let (floor, words) = old.take();
            target.fill(self.scale.tat(floor), words.map(|word| self.scale.word(word)));
        }
    }
}
