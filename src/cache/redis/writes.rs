//! The bound on what waits to be written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const MAX_WRITES: usize = 256;
const MAX_BYTES: usize = 64 << 20;

#[derive(Default)]
pub(super) struct Writes(Arc<Waiting>);

#[derive(Default)]
struct Waiting {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place among the writes.
pub(super) struct Place {
    waiting: Arc<Waiting>,
    bytes: usize,
}

impl Writes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// `None`: Redis is behind.
    pub(super) fn reserve(&self, bytes: usize) -> Option<Place> {
        add(&self.0.count, 1, MAX_WRITES)?;
        let Some(()) = add(&self.0.bytes, bytes, MAX_BYTES) else {
            self.0.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        Some(Place { waiting: self.0.clone(), bytes })
    }
}

fn add(to: &AtomicUsize, more: usize, most: usize) -> Option<()> {
    let sum = |now: usize| now.checked_add(more).filter(|sum| *sum <= most);
    to.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).ok().map(|_| ())
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.count.fetch_sub(1, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_places_come_back() {
        let writes = Writes::new();
        let many: Vec<_> = (0..MAX_WRITES).map(|_| writes.reserve(1).unwrap()).collect();
        assert!(writes.reserve(0).is_none());
        drop(many);
        let half = writes.reserve(MAX_BYTES / 2).unwrap();
        assert!(writes.reserve(MAX_BYTES / 2 + 1).is_none());
        let other = writes.reserve(MAX_BYTES / 2).unwrap();
        assert!(writes.reserve(1).is_none() && writes.reserve(0).is_some());
        drop((half, other));
        assert!(writes.reserve(MAX_BYTES).is_some() && writes.reserve(MAX_BYTES + 1).is_none());
        assert_eq!((writes.0.count.load(Ordering::Relaxed), writes.0.bytes.load(Ordering::Relaxed)), (0, 0));
    }
}
