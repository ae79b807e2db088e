//! How often each outcome was, counted on many threads that share no cache line.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::metrics::Outcome;

/// A thread keeps to one stripe; beyond this many, threads share.
const STRIPES: usize = 16;

/// Two cache lines: processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Stripe([AtomicU64; Outcome::COUNT]);

pub(super) struct Tally([Stripe; STRIPES]);

impl Tally {
    pub(super) fn new() -> Self {
        Self(Default::default())
    }

    pub(super) fn count(&self, outcome: Outcome) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: usize = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES;
        }
        if let Some(count) = OWN.with(|own| self.0.get(*own)).and_then(|stripe| stripe.0.get(outcome as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Never less than before, and all that has been counted before the call was made known to this thread.
    pub(super) fn counted(&self, outcome: Outcome) -> u64 {
        self.0
            .iter()
            .filter_map(|stripe| stripe.0.get(outcome as usize))
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_counts() {
        const THREADS: usize = 3 * STRIPES;
        let tally = Tally::new();
        let work = || (0..1_000).for_each(|_| tally.count(Outcome::Hit));
        std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
        tally.count(Outcome::Failed);
        assert_eq!(tally.counted(Outcome::Hit), 1_000 * THREADS as u64);
        assert_eq!((tally.counted(Outcome::Failed), tally.counted(Outcome::Miss)), (1, 0));
    }
}
