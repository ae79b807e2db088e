//! One bucket: its slots, its lock, its floor.

use super::super::clock::LAST_TICK;
use super::super::gcra::{self, Limit};
use super::super::policy::OnFull;
use super::sync::AtomicU64;
use super::sync::Ordering::{Acquire, Relaxed, Release};
use super::word::{Tag, Word};
use super::{Moved, Outcome, WAYS};

/// A cache line. Under loom, two slots have all the races that seven have.
pub(super) const WORDS: usize = if cfg!(all(test, loom_table)) { 3 } else { 8 };

/// Flags of the control word, beside the floor's 44 bits.
const LOCKED: u64 = 1 << 63;
/// The bucket has its clients from the table that this one takes over, if there is one.
const SETTLED: u64 = 1 << 62;
/// The bucket's clients are in another table, for good.
const MOVED: u64 = 1 << 61;

#[derive(Clone, Copy)]
pub(super) struct Bucket<'a> {
    control: &'a AtomicU64,
    slots: &'a [AtomicU64; WAYS],
}

/// The right to change tags and the floor, until it is dropped.
pub(super) struct Locked<'a> {
    bucket: Bucket<'a>,
    control: u64,
}

impl<'a> Bucket<'a> {
    pub(super) fn of([control, slots @ ..]: &'a [AtomicU64; WORDS]) -> Self {
        Self { control, slots }
    }

    fn find(self, tag: Tag) -> Option<(&'a AtomicU64, Word)> {
        self.words().find(|(_, word)| word.is_of(tag))
    }

    fn words(self) -> impl Iterator<Item = (&'a AtomicU64, Word)> {
        self.slots.iter().map(|slot| (slot, Word(slot.load(Relaxed))))
    }

    /// Changes the debt of a client that has a slot. `None`: it has none.
    pub(super) fn change(self, tag: Tag, limit: Limit, now: u64, step: impl Fn(u64) -> Option<u64>) -> Option<Outcome> {
        loop {
            let (slot, word) = self.find(tag)?;
            let debt = gcra::debt(limit, word.tat(), now);
            let inherited = word.inherited() && debt > 0;
            let Some(owed) = step(debt) else {
                return Some(Outcome { changed: false, debt, inherited, evicted: false });
            };
            let next = Word::new(tag, inherited, now.saturating_add(owed));
            if slot.compare_exchange_weak(word.0, next.0, Relaxed, Relaxed).is_ok() {
                return Some(Outcome { changed: true, debt: owed, inherited, evicted: false });
            }
        }
    }

    pub(super) fn lock(self) -> Result<Locked<'a>, Moved> {
        let mut tries = 0;
        loop {
            let control = self.control.load(Acquire);
            if control & MOVED != 0 {
                return Err(Moved);
            }
            let free = control & LOCKED == 0;
            if free && self.control.compare_exchange_weak(control, control | LOCKED, Acquire, Relaxed).is_ok() {
                return Ok(Locked { bucket: self, control });
            }
            super::sync::pause(&mut tries);
        }
    }

    pub(super) fn is_settled(self) -> bool {
        self.control.load(Relaxed) & SETTLED != 0
    }

    /// How many slots the client has.
    #[cfg(all(test, loom_table))]
    pub(super) fn count(self, tag: Tag) -> usize {
        self.words().filter(|(_, word)| word.is_of(tag)).count()
    }

    pub(super) fn in_debt(self, now: u64) -> usize {
        self.words().filter(|(_, word)| word.tat() > now).count()
    }
}

impl Locked<'_> {
    /// Gives a client a slot, with the debt that `step` makes of what it inherits. `None`: it has one.
    pub(super) fn insert(
        &mut self,
        tag: Tag,
        limit: Limit,
        now: u64,
        on_full: OnFull,
        step: impl Fn(u64) -> Option<u64>,
    ) -> Option<Outcome> {
        if self.bucket.find(tag).is_some() {
            return None;
        }
        loop {
            let (slot, word) = self.bucket.words().min_by_key(|(_, word)| word.tat())?;
            let floor = match on_full {
                OnFull::Inherit => self.floor().max(word.tat()),
                OnFull::Admit => 0,
            };
            let debt = gcra::debt(limit, floor, now);
            let inherited = debt > 0;
            let Some(owed) = step(debt) else {
                return Some(Outcome { changed: false, debt, inherited, evicted: false });
            };
            let next = Word::new(tag, inherited, now.saturating_add(owed));
            // It fails where the slot's client was charged meanwhile; then another slot may be the smallest.
            if slot.compare_exchange(word.0, next.0, Relaxed, Relaxed).is_ok() {
                self.set_floor(floor);
                return Some(Outcome { changed: true, debt: owed, inherited, evicted: word.tat() > now });
            }
        }
    }

    fn floor(&self) -> u64 {
        self.control & LAST_TICK
    }

    fn set_floor(&mut self, floor: u64) {
        self.control = self.control & !LAST_TICK | floor.min(LAST_TICK);
    }

    pub(super) fn is_settled(&self) -> bool {
        self.control & SETTLED != 0
    }

    pub(super) fn settle(&mut self) {
        self.control |= SETTLED;
    }

    /// Takes all clients and the floor out of the bucket, for good.
    pub(super) fn take(&mut self) -> (u64, [Word; WAYS]) {
        self.control |= MOVED;
        (self.floor(), self.bucket.slots.each_ref().map(|slot| Word(slot.swap(Word::MOVED.0, Relaxed))))
    }

    /// Puts clients and a floor into a bucket that nobody has used.
    pub(super) fn fill(&mut self, floor: u64, words: [Word; WAYS]) {
        self.set_floor(floor);
        for (slot, word) in self.bucket.slots.iter().zip(words) {
            slot.store(word.0, Relaxed);
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.bucket.control.store(self.control, Release);
    }
}
