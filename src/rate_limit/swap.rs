//! Something that is read with every request and almost never changes.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};

/// As it was made until it changes, which nobody has to count references for. What it was first stays allocated.
pub(crate) struct Swap<T> {
    first: Arc<T>,
    changed: AtomicBool,
    present: ArcSwap<T>,
}

/// The content, for a short time.
pub(crate) enum Present<'a, T> {
    First(&'a T),
    Later(Guard<Arc<T>>),
}

impl<T> Swap<T> {
    pub(crate) fn new(content: T) -> Self {
        let first = Arc::new(content);
        Self { present: ArcSwap::new(first.clone()), first, changed: AtomicBool::new(false) }
    }

    #[inline]
    pub(crate) fn load(&self) -> Present<'_, T> {
        // Acquire: who sees the mark sees what was put in place before it.
        if self.changed.load(Ordering::Acquire) {
            Present::Later(self.present.load())
        } else {
            Present::First(&self.first)
        }
    }

    /// Replaces the content by what `change` makes of it; runs it again if somebody else was faster.
    pub(crate) fn update(&self, change: impl Fn(&T) -> T) {
        self.present.rcu(|present| change(present));
        self.changed.store(true, Ordering::Release);
    }
}

impl<T> Deref for Present<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        match self {
            Self::First(content) => content,
            Self::Later(content) => content,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_at_once_and_by_whoever_looks_later() {
        let swap = Swap::new(1);
        let before = swap.load();
        swap.update(|content| content + 1);
        assert_eq!((*before, *swap.load()), (1, 2));
        swap.update(|content| content * 10);
        assert_eq!(*swap.load(), 20);
    }
}
