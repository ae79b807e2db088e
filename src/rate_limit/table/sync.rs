//! The words of a table: one zeroed allocation, and under `--cfg loom_table`, in unit tests, those of loom.

use super::bucket::WORDS;

#[cfg(not(all(test, loom_table)))]
pub(super) use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(all(test, loom_table))]
pub(super) use loom::sync::atomic::{AtomicU64, Ordering};

/// Whole cache lines.
pub(super) struct Words {
    words: Box<[AtomicU64]>,
    /// What stands before the first whole line.
    skipped: usize,
}

impl Words {
    /// The system brings zeroed pages when they are first used, so a table of which little is used takes little memory.
    #[cfg(not(all(test, loom_table)))]
    pub(super) fn zeroed(lines: usize) -> Self {
        // An allocation that asks for lines would be zeroed by hand, and so be used at once, everywhere.
        let words: Box<[AtomicU64]> = bytemuck::zeroed_slice_box((lines + 1) * WORDS);
        let skipped = words.as_ptr().align_offset(WORDS * size_of::<AtomicU64>()).min(WORDS);
        Self { words, skipped }
    }

    #[cfg(all(test, loom_table))]
    pub(super) fn zeroed(lines: usize) -> Self {
        Self { words: (0..lines * WORDS).map(|_| AtomicU64::new(0)).collect(), skipped: 0 }
    }

    #[allow(clippy::indexing_slicing, reason = "there are as many lines as the table has buckets")]
    pub(super) fn line(&self, index: usize) -> &[AtomicU64; WORDS] {
        let (lines, _) = self.words[self.skipped..].as_chunks();
        &lines[index]
    }
}

/// Waits for a lock that is held for some nanoseconds, unless its holder was descheduled.
#[cfg(not(all(test, loom_table)))]
pub(super) fn pause(tries: &mut u32) {
    *tries += 1;
    if *tries < 64 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(all(test, loom_table))]
pub(super) fn pause(_: &mut u32) {
    loom::thread::yield_now();
}
