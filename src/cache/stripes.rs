//! A fixed number of places for any number of keys.

use super::key::Key;
use super::sync::{AtomicU64, Ordering};

/// Few under the checker, which makes them anew for each of its runs.
pub(super) const STRIPES: usize = if cfg!(all(test, shuttle)) { 4 } else { 1024 };

pub(super) fn stripe(key: &Key) -> usize {
    // The remainder fits whatever the width of `usize`.
    usize::try_from(key.hash() % STRIPES as u64).unwrap_or(0)
}

/// Counters that keys share by hash: a foreign key's count costs one needless lookup or one response not stored.
pub(super) struct Stripes {
    counts: Box<[AtomicU64]>,
    /// Counts for every key.
    all: AtomicU64,
}

impl Stripes {
    pub(super) fn new() -> Self {
        Self { counts: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(), all: AtomicU64::new(0) }
    }

    fn of(&self, key: &Key) -> Option<&AtomicU64> {
        self.counts.get(stripe(key))
    }

    /// Neither count ever falls: as long as their sum is the same, both are.
    pub(super) fn read(&self, key: &Key) -> u64 {
        self.of(key).map_or(0, |count| count.load(Ordering::Acquire)).wrapping_add(self.all.load(Ordering::Acquire))
    }

    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(super) fn bump_all(&self) {
        self.all.fetch_add(1, Ordering::Release);
    }

    pub(super) fn bump(&self, key: &Key) {
        if let Some(count) = self.of(key) {
            count.fetch_add(1, Ordering::Release);
        }
    }
}
