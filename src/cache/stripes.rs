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
pub(super) struct Stripes(Box<[AtomicU64]>);

impl Stripes {
    pub(super) fn new() -> Self {
        Self((0..STRIPES).map(|_| AtomicU64::new(0)).collect())
    }

    fn of(&self, key: &Key) -> Option<&AtomicU64> {
        self.0.get(stripe(key))
    }

    pub(super) fn read(&self, key: &Key) -> u64 {
        self.of(key).map_or(0, |count| count.load(Ordering::Acquire))
    }

    pub(super) fn bump(&self, key: &Key) {
        if let Some(count) = self.of(key) {
            count.fetch_add(1, Ordering::Release);
        }
    }
}
