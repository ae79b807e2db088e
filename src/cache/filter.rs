//! A Bloom filter with stamps for bits: when a name was last noted, or later.
//!
//! Names can share slots, so an answer may be too late a stamp, never too early a one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::purge::Purged;

/// Of 16 bytes: 4 MiB.
const SLOTS: u64 = 1 << 18;
const PROBES: u64 = 4;

pub(super) struct Filter(Box<[Newest]>);

impl Filter {
    pub(super) fn new() -> Self {
        Self((0..SLOTS).map(|_| Newest::default()).collect())
    }

    pub(super) fn note(&self, name: Name, stamp: u64, soft: bool) {
        self.slots(name).for_each(|newest| newest.raise(stamp, soft));
    }

    /// What the purges of this name did to a response of this stamp.
    pub(super) fn verdict(&self, name: Name, stamp: u64) -> Purged {
        let mut least = Purged::Hard;
        for newest in self.slots(name) {
            least = least.min(newest.verdict(stamp));
            if least == Purged::No {
                break;
            }
        }
        least
    }

    fn slots(&self, name: Name) -> impl Iterator<Item = &Newest> {
        let (first, step) = name.spread();
        let slot = move |n: u64| first.wrapping_add(n.wrapping_mul(step)) % SLOTS;
        (0..PROBES).filter_map(move |n| self.0.get(usize::try_from(slot(n)).ok()?))
    }
}

/// The stamps of the newest purges, hard and soft; 0 if there was none.
#[derive(Default)]
pub(super) struct Newest {
    hard: AtomicU64,
    soft: AtomicU64,
}

impl Newest {
    /// Two purges at once leave the newer.
    pub(super) fn raise(&self, stamp: u64, soft: bool) {
        let newest = if soft { &self.soft } else { &self.hard };
        newest.fetch_max(stamp, Ordering::Relaxed);
    }

    pub(super) fn verdict(&self, stamp: u64) -> Purged {
        if self.hard.load(Ordering::Relaxed) >= stamp {
            Purged::Hard
        } else if self.soft.load(Ordering::Relaxed) >= stamp {
            Purged::Soft
        } else {
            Purged::No
        }
    }
}

/// A running hash (FNV-1a): one walk over a text names all its prefixes.
#[derive(Clone, Copy)]
pub(super) struct Name(u64);

impl Name {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn feed(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// The first slot, and the way to the next: FNV leaves neighbours close to each other, so its bits are mixed first
    /// (the end of MurmurHash3). An odd step meets no slot twice.
    fn spread(self) -> (u64, u64) {
        let mut hash = self.0;
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
        }
        hash ^= hash >> 33;
        (hash, (hash >> 32) | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_filter_forgets_nothing_and_spares_what_is_newer() {
        let (filter, name) = (Filter::new(), |n: u64| Name::new(7).feed(&n.to_be_bytes()));
        for n in 0..SLOTS {
            filter.note(name(n), 10 + n, false);
        }
        assert!((0..SLOTS).all(|n| filter.verdict(name(n), 10 + n) == Purged::Hard));
        assert!((0..1_000).all(|n| filter.verdict(name(n), 10 + SLOTS) == Purged::No));
    }

    #[test]
    fn a_late_note_does_not_hide_a_newer_one() {
        let (filter, name) = (Filter::new(), Name::new(7));
        for (stamp, soft) in [(20, true), (19, true), (10, false), (9, false)] {
            filter.note(name, stamp, soft);
        }
        let verdicts = [10, 11, 20, 21].map(|stamp| filter.verdict(name, stamp));
        assert_eq!(verdicts, [Purged::Hard, Purged::Soft, Purged::Soft, Purged::No]);
    }

    #[test]
    fn strangers_meet_as_rarely_as_promised() {
        let (filter, name) = (Filter::new(), |n: u64| Name::new(7).feed(&n.to_be_bytes()));
        (0..10_000).for_each(|n| filter.note(name(n), 1, n % 2 == 0));
        let lost = (10_000..110_000).filter(|n| filter.verdict(name(*n), 1) != Purged::No).count();
        // One in 2 500.
        assert!((20..70).contains(&lost), "{lost}");
    }
}
