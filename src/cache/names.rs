//! When a name was last purged: exactly for the names that were purged last, for all older ones a time that is not
//! earlier.
//!
//! A table of buckets with ten places each. Where all are taken, the name whose purge is the oldest goes on to a second,
//! larger table, and from there into its bucket's floor: responses older than the floor count as purged, whatever they
//! are called. A hit on what is younger than the last 40 000 different purges looks at the first table only.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::purge::Purged;

const PLACES: usize = 10;
/// Of 256 bytes: 4 MiB, which are full somewhere after some 40 000 names, then 32 MiB more.
const BUCKETS: [u64; 2] = [1 << 14, 1 << 17];

/// Readers take no lock. A name moves in the direction of their search only, and stands in the next place before it
/// leaves the last one, so none is overlooked.
pub(super) struct Names {
    /// Made when there is something to put into them.
    tables: [OnceLock<Box<[Bucket]>>; 2],
    buckets: [u64; 2],
    /// The newest stamp that has gone on to the second table: what is newer need not be looked up there.
    gone_on: AtomicU64,
    writing: Mutex<()>,
}

#[derive(Default)]
struct Bucket {
    /// 0: free.
    names: [AtomicU64; PLACES],
    purges: [Newest; PLACES],
    floor: Newest,
}

impl Names {
    pub(super) fn new() -> Self {
        Self::of(BUCKETS)
    }

    fn of(buckets: [u64; 2]) -> Self {
        Self { tables: Default::default(), buckets, gone_on: AtomicU64::new(0), writing: Mutex::default() }
    }

    pub(super) fn note(&self, name: Name, stamp: u64, soft: bool) {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Newest::default();
        new.raise(stamp, soft);
        self.insert(0, name.mixed(), &new);
    }

    /// What the purges of this name did to a response of this stamp.
    pub(super) fn verdict(&self, name: Name, stamp: u64) -> Purged {
        let name = name.mixed();
        self.tables.iter().enumerate().fold(Purged::No, |verdict, (at, table)| {
            // After the first table: who has left it is seen here.
            if at > 0 && self.gone_on.load(Ordering::Acquire) < stamp {
                return verdict;
            }
            let Some(bucket) = table.get().and_then(|table| bucket(table, name)) else { return verdict };
            let own = bucket.place(name).map_or(Purged::No, |own| own.verdict(stamp));
            // After the places, for the same reason.
            verdict.max(own).max(bucket.floor.verdict(stamp))
        })
    }

    fn insert(&self, at: usize, name: u64, new: &Newest) {
        let (Some(table), Some(length)) = (self.tables.get(at), self.buckets.get(at)) else { return };
        let table = table.get_or_init(|| (0..*length).map(|_| Bucket::default()).collect());
        let Some(bucket) = bucket(table, name) else { return };
        if let Some(known) = bucket.place(name) {
            return known.raise_to(new);
        }
        let oldest = bucket.names.iter().zip(&bucket.purges).min_by_key(|(_, purges)| purges.last());
        let Some((place, purges)) = oldest else { return };
        let old = place.load(Ordering::Relaxed);
        if old != 0 {
            if at + 1 < self.tables.len() {
                self.gone_on.fetch_max(purges.last(), Ordering::AcqRel);
                self.insert(at + 1, old, purges);
            } else {
                bucket.floor.raise_to(purges);
            }
        }
        place.store(0, Ordering::Release);
        purges.set(new);
        place.store(name, Ordering::Release);
    }
}

fn bucket(table: &[Bucket], name: u64) -> Option<&Bucket> {
    table.get(usize::try_from(name % table.len() as u64).ok()?)
}

impl Bucket {
    fn place(&self, name: u64) -> Option<&Newest> {
        let place = self.names.iter().position(|place| place.load(Ordering::Acquire) == name)?;
        self.purges.get(place)
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
        newest.fetch_max(stamp, Ordering::AcqRel);
    }

    fn raise_to(&self, other: &Self) {
        self.raise(other.hard.load(Ordering::Relaxed), false);
        self.raise(other.soft.load(Ordering::Relaxed), true);
    }

    fn set(&self, other: &Self) {
        self.hard.store(other.hard.load(Ordering::Relaxed), Ordering::Release);
        self.soft.store(other.soft.load(Ordering::Relaxed), Ordering::Release);
    }

    fn last(&self) -> u64 {
        self.hard.load(Ordering::Relaxed).max(self.soft.load(Ordering::Relaxed))
    }

    pub(super) fn verdict(&self, stamp: u64) -> Purged {
        if self.hard.load(Ordering::Acquire) >= stamp {
            Purged::Hard
        } else if self.soft.load(Ordering::Acquire) >= stamp {
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

    /// FNV leaves neighbours close to each other: the end of MurmurHash3 mixes its bits. Never 0.
    fn mixed(self) -> u64 {
        let mut hash = self.0;
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
        }
        (hash ^ (hash >> 33)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn name(n: u64) -> Name {
        Name::new(7).feed(&n.to_be_bytes())
    }

    fn lost(names: &Names, strangers: std::ops::Range<u64>, stamp: u64) -> usize {
        strangers.filter(|n| names.verdict(name(*n), stamp) != Purged::No).count()
    }

    #[test]
    fn a_bucket_fills_whole_cache_lines() {
        assert_eq!(size_of::<Bucket>(), 256);
    }

    #[test]
    fn what_overflows_is_not_forgotten_and_spares_what_is_newer() {
        const MANY: u64 = 20_000;
        let names = Names::of([4, 32]);
        for n in 0..MANY {
            names.note(name(n), 10 + n, n % 2 == 0);
            for n in n.saturating_sub(500)..=n {
                let least = if n % 2 == 0 { Purged::Soft } else { Purged::Hard };
                assert!(names.verdict(name(n), 10 + n) >= least, "{n}");
            }
        }
        assert!((0..MANY).all(|n| names.verdict(name(n), 10 + n) >= Purged::Soft));
        assert_eq!(lost(&names, 0..10_000, 10 + MANY), 0);
        assert_eq!(lost(&names, MANY..MANY + 10_000, 10), 10_000, "older than all that is remembered");
    }

    /// A tag that is purged again and again takes one place.
    #[test]
    fn names_that_return_push_nobody_out() {
        let names = Names::new();
        for n in 0..1_000_000 {
            names.note(name(n % 30_000), 1 + n, n % 3 == 0);
        }
        assert_eq!(lost(&names, 30_000..130_000, 1), 0);
        assert!(names.tables[1].get().is_none(), "no need for more memory");
    }

    #[test]
    fn a_late_note_does_not_hide_a_newer_one() {
        let names = Names::new();
        for (stamp, soft) in [(20, true), (19, true), (10, false), (9, false)] {
            names.note(name(0), stamp, soft);
        }
        let verdicts = [10, 11, 20, 21].map(|stamp| names.verdict(name(0), stamp));
        assert_eq!(verdicts, [Purged::Hard, Purged::Soft, Purged::Soft, Purged::No]);
    }

    /// Ten purges a second, of as many different names, for a day; all in a sixteenth of the size.
    #[test]
    fn strangers_are_lost_as_rarely_as_promised() {
        let names = Names::of(BUCKETS.map(|buckets| buckets / 16));
        let strangers = 1_000_000_000..1_000_100_000;
        let mut next = 0;
        for (purges, most) in [(100_000 / 16, 0), (400_000 / 16, 40), (860_000 / 16, 3_500)] {
            for n in next..purges {
                names.note(name(n), 1 + n, false);
            }
            next = purges;
            let lost = lost(&names, strangers.clone(), 1);
            assert!(lost <= most, "{lost} of 100 000 after {purges}");
        }
    }

    #[test]
    fn readers_overlook_no_name_that_moves() {
        const MOVING: u64 = 20;
        for _ in 0..50 {
            let names = Names::of([1, 2]);
            (0..MOVING).for_each(|n| names.note(name(n), 1 + n, false));
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Soft: the hard stamps are those of the names that move.
                    (MOVING..5_000).for_each(|n| names.note(name(n), 1 + n, true));
                    done.store(true, Ordering::Release);
                });
                while !done.load(Ordering::Acquire) {
                    (0..MOVING).for_each(|n| assert_eq!(names.verdict(name(n), 1 + n), Purged::Hard, "{n}"));
                }
            });
        }
    }
}
