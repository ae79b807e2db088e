//! What every client owes, in a fixed number of slots.
//!
//! A bucket is a cache line of eight words: a control word and seven slots. A slot is 19 bits of the client's hash (the
//! tag), a bit that says that the debt began as somebody else's, and the 44-bit TAT. The control word has a lock bit and
//! the bucket's *floor*: the highest TAT that was ever pushed out of it. The rest of the hash chooses the bucket.
//!
//! 1. A client that has a slot is charged, or given back, with one compare-and-swap of that slot, and nothing else. It
//!    never waits. All words that a slot ever had for a client follow from each other by one step of GCRA.
//! 2. A client that has none takes the bucket's lock bit, looks once more, and takes the slot with the smallest TAT. Where
//!    that debt is paid, the slot was free. The lock is held for some 50 instructions and never across an `await`. Who
//!    finds it taken spins a little and then yields its time slice: a thread that was descheduled with the lock delays
//!    newcomers to one bucket, and nobody else.
//! 3. **No client ever has two slots.** A slot's tag changes only under the lock bit (1 keeps it), and whoever takes the
//!    lock (acquire) sees every tag that was written under it before (release). So the second look finds a slot that
//!    anybody inserted. The slots' own words need no order among each other: relaxed atomics are enough, for what 1 and 2
//!    decide depends on one word each, and a compare-and-swap always sees a word's last value.
//! 4. **Nothing that is pushed out is forgotten.** With [`OnFull::Inherit`] a newcomer first raises the floor to the TAT
//!    that it replaces, then begins at the floor. It replaces by compare-and-swap, so that TAT is the last that the client
//!    had. A client that was pushed out, and comes back, so begins with at least what it owed, whatever was given back to
//!    others meanwhile: the floor never falls. So no client is ever admitted where its own requests alone, under exact
//!    GCRA, would be refused. A flood of fresh clients can make the limiter too strict for newcomers, and never takes more
//!    memory. With [`OnFull::Admit`] the floor stays at zero, and newcomers begin with no debt.
//! 5. Two clients of one bucket and one tag share a slot, and are limited as one: less than 7 in 2¹⁹ newcomers.
//! 6. Threads differ in what time they think it is. Nothing here compares the times of two threads: a slot's tag is looked
//!    at before its TAT, and a debt of zero is no reason to take a slot from anybody while a smaller TAT is there.
//! 7. A table can take over another, of another clock, while both are in use ([`moving`]): bucket by bucket, when first
//!    used, under the lock bits of both. The emptied bucket says so to whoever comes late ([`Moved`]).
//!
//! Untouched pages take no memory: the whole table is one zeroed allocation, and zero is the state of a new bucket.

mod bucket;
#[cfg(all(test, loom_table))]
mod checked;
#[cfg(all(test, not(loom_table)))]
mod flood;
mod moving;
mod sync;
#[cfg(all(test, not(loom_table)))]
mod tests;
mod word;

use std::sync::{Arc, Mutex};

use self::bucket::{Bucket, WORDS};
use self::moving::Source;
use self::sync::Words;
use self::word::Tag;
use super::gcra::{self, Limit};
use super::policy::OnFull;

pub(crate) use self::moving::Scale;

/// Slots of a bucket.
const WAYS: usize = WORDS - 1;
/// Buckets that fill a page of memory.
const BUCKETS_PER_PAGE: usize = if cfg!(all(test, loom_table)) { 1 } else { 64 };

pub(crate) struct Table {
    words: Words,
    buckets: usize,
    on_full: OnFull,
    /// The table whose clients this one takes over, until it has them all.
    source: Mutex<Option<Arc<Source>>>,
}

/// What became of a client's debt, and of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether the debt was changed; of a charge, whether it was admitted.
    pub(crate) changed: bool,
    /// What the client owes now.
    pub(crate) debt: u64,
    /// Whether that began as the debt of somebody else.
    pub(crate) inherited: bool,
    /// Whether a slot was taken from a client that still owed something.
    pub(crate) evicted: bool,
}

/// The clients of this bucket are in another table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved;

impl Table {
    /// At least `slots` slots, rounded up to whole pages of 448.
    pub(crate) fn new(slots: usize, on_full: OnFull) -> Self {
        Self::of_pages(slots.div_ceil(BUCKETS_PER_PAGE * WAYS).max(1), on_full)
    }

    fn of_pages(pages: usize, on_full: OnFull) -> Self {
        let buckets = pages * BUCKETS_PER_PAGE;
        Self { words: Words::zeroed(buckets), buckets, on_full, source: Mutex::new(None) }
    }

    /// Charges the client with this hash for a request of `cost`, if `limit` allows it.
    pub(crate) fn charge(&self, hash: u64, limit: Limit, now: u64, cost: u64) -> Result<Outcome, Moved> {
        self.change(hash, limit, now, |debt, _| gcra::charge(limit, debt, cost))
    }

    /// What the client owes, or would owe to begin with.
    pub(crate) fn peek(&self, hash: u64, limit: Limit, now: u64) -> Result<Outcome, Moved> {
        self.change(hash, limit, now, |_, _| None)
    }

    /// Charges without asking, up to the capacity.
    pub(crate) fn penalise(&self, hash: u64, limit: Limit, now: u64, cost: u64) -> Result<Outcome, Moved> {
        self.change(hash, limit, now, |debt, _| Some(gcra::penalise(limit, debt, cost)))
    }

    /// Gives back what a request of `cost` was charged. A client without a slot was pushed out: whoever pushed it out
    /// has its debt, and nothing is given back.
    pub(crate) fn refund(&self, hash: u64, limit: Limit, now: u64, cost: u64) -> Result<Outcome, Moved> {
        self.change(hash, limit, now, |debt, present| (present && debt > 0).then(|| gcra::refund(limit, debt, cost)))
    }

    /// Makes the client owe this much.
    pub(crate) fn set(&self, hash: u64, limit: Limit, now: u64, owed: u64) -> Result<Outcome, Moved> {
        self.change(hash, limit, now, |debt, _| (debt != owed).then_some(owed))
    }

    /// Changes the client's debt to what `step` makes of it, if anything. `step` is told whether the client has a slot.
    fn change(
        &self,
        hash: u64,
        limit: Limit,
        now: u64,
        step: impl Fn(u64, bool) -> Option<u64>,
    ) -> Result<Outcome, Moved> {
        let (index, tag) = (self.index(hash), Tag::of(hash));
        let bucket = self.bucket(index);
        loop {
            if let Some(outcome) = bucket.change(tag, limit, now, |debt| step(debt, true)) {
                return Ok(outcome);
            }
            let mut locked = self.lock(index)?;
            if let Some(outcome) = locked.insert(tag, limit, now, self.on_full, |debt| step(debt, false)) {
                return Ok(outcome);
            }
        }
    }

    fn index(&self, hash: u64) -> usize {
        // The low half of the hash, scaled to the number of buckets: any number will do, not only powers of two.
        let scaled = (u128::from(hash & u64::from(u32::MAX)) * self.buckets as u128) >> 32;
        usize::try_from(scaled).unwrap_or_default()
    }

    fn bucket(&self, index: usize) -> Bucket<'_> {
        Bucket::of(self.words.line(index))
    }

    /// The share of slots in use, by a sample of the buckets that these hashes choose.
    pub(crate) fn occupancy(&self, hashes: impl ExactSizeIterator<Item = u64>, now: u64) -> f64 {
        let slots = hashes.len() * WAYS;
        let used: usize = hashes.map(|hash| self.bucket(self.index(hash)).in_debt(now)).sum();
        #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
        let ratio = used as f64 / slots.max(1) as f64;
        ratio
    }
}
