//! How a slot's word is packed: `tag:19 | inherited:1 | tat:44`.

use super::super::clock::{LAST_TICK, TIME_BITS};

const INHERITED: u64 = 1 << TIME_BITS;
const TAG_SHIFT: u32 = TIME_BITS + 1;
const LAST_TAG: u64 = (1 << (64 - TAG_SHIFT)) - 1;

/// A slot's content. Zero: nobody ever used it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

/// The high bits of a hash, which the choice of the bucket leaves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

impl Tag {
    /// Neither that of empty slots nor that of slots whose client has moved.
    pub(super) fn of(hash: u64) -> Self {
        Self((hash >> TAG_SHIFT).clamp(1, LAST_TAG - 1))
    }
}

impl Word {
    /// The client is in another table. Belongs to no client, and is never the smallest TAT.
    pub(super) const MOVED: Self = Self(u64::MAX);

    pub(super) fn new(tag: Tag, inherited: bool, tat: u64) -> Self {
        Self(tag.0 << TAG_SHIFT | u64::from(inherited) << TIME_BITS | tat.min(LAST_TICK))
    }

    pub(super) fn is_of(self, tag: Tag) -> bool {
        self.0 >> TAG_SHIFT == tag.0
    }

    pub(super) fn tat(self) -> u64 {
        self.0 & LAST_TICK
    }

    pub(super) fn inherited(self) -> bool {
        self.0 & INHERITED != 0
    }

    /// The same client, with another TAT.
    pub(super) fn with_tat(self, tat: u64) -> Self {
        Self(self.0 & !LAST_TICK | tat.min(LAST_TICK))
    }
}
