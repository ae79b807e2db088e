//! A value that many tasks wait to see change.
//!
//! Who waits looks and leaves its waker under one lock, and who changes the value takes the wakers under the same: no
//! change falls between. Wakers are woken and dropped outside the lock, since either may run foreign code.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::sync::{Mutex, MutexGuard, lock};

/// A value, and those who watch it.
#[derive(Default)]
pub(super) struct Watched<T>(Mutex<State<T>>);

#[derive(Default)]
struct State<T> {
    value: T,
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl<T> Watched<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Mutex::new(State { value, wakers: Vec::new(), free: Vec::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.0)
    }

    pub(super) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock().value)
    }

    /// Changes the value and wakes nobody.
    pub(super) fn adjust<R>(&self, adjust: impl FnOnce(&mut T) -> R) -> R {
        adjust(&mut self.lock().value)
    }

    /// Changes the value, then wakes all who watch it.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let (changed, wakers) = {
            let mut state = self.lock();
            let changed = change(&mut state.value);
            let wakers: Vec<Waker> = state.wakers.iter_mut().filter_map(Option::take).collect();
            (changed, wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        changed
    }

    /// Wakes all who watch the value.
    pub(super) fn wake(&self) {
        self.change(|_| ());
    }

    pub(super) fn watch(self: &Arc<Self>) -> Watcher<T> {
        let mut state = self.lock();
        let slot = state.free.pop().unwrap_or_else(|| {
            state.wakers.push(None);
            state.wakers.len() - 1
        });
        drop(state);
        Watcher { watched: self.clone(), slot }
    }
}

/// A task that watches. Coming and going cost the same however many there are.
pub(super) struct Watcher<T> {
    watched: Arc<Watched<T>>,
    slot: usize,
}

impl<T> Watcher<T> {
    pub(super) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        self.watched.look(look)
    }

    /// Looks for something. Where it is not there yet, the next change wakes the task.
    pub(super) fn poll<R>(&mut self, cx: &mut Context<'_>, look: impl FnOnce(&T) -> Option<R>) -> Poll<R> {
        let mut state = self.watched.lock();
        if let Some(found) = look(&state.value) {
            return Poll::Ready(found);
        }
        let Some(known) = state.wakers.get_mut(self.slot) else { return Poll::Pending };
        if known.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let replaced = known.replace(cx.waker().clone());
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// As [`poll`](Self::poll), to the end.
    pub(super) async fn find<R>(&mut self, mut look: impl FnMut(&T) -> Option<R>) -> R {
        std::future::poll_fn(|cx| self.poll(cx, &mut look)).await
    }
}

impl<T> Drop for Watcher<T> {
    fn drop(&mut self) {
        let mut state = self.watched.lock();
        let left = state.wakers.get_mut(self.slot).and_then(Option::take);
        state.free.push(self.slot);
        drop(state);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// A waker that is called or dropped under the lock counts a fault.
    struct Probe {
        watched: Arc<Watched<u32>>,
        faults: Arc<AtomicUsize>,
        wakes: Arc<AtomicUsize>,
    }

    impl Probe {
        fn assert_unlocked(&self) {
            self.faults.fetch_add(usize::from(self.watched.0.try_lock().is_err()), Ordering::Relaxed);
        }
    }

    impl Wake for Probe {
        fn wake(self: Arc<Self>) {
            self.assert_unlocked();
            self.wakes.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            self.assert_unlocked();
        }
    }

    #[test]
    fn wakers_are_woken_and_dropped_outside_the_lock() {
        let (faults, wakes) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let watched = Arc::new(Watched::new(0));
        let mut watcher = watched.watch();
        let mut wait = || {
            let probe = Probe { watched: watched.clone(), faults: faults.clone(), wakes: wakes.clone() };
            let waker = Waker::from(Arc::new(probe));
            watcher.poll(&mut Context::from_waker(&waker), |value| (*value > 1).then_some(())).is_ready()
        };
        assert!(!wait() && !wait());
        assert_eq!(wakes.load(Ordering::Relaxed), 0, "the second replaced the first");
        watched.change(|value| *value += 1);
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        assert!(!wait());
        watched.adjust(|value| *value += 1);
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        assert!(wait());
        drop(watcher);
        watched.wake();
        assert_eq!((wakes.load(Ordering::Relaxed), faults.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn who_comes_takes_the_place_of_one_who_has_left() {
        let watched = Arc::new(Watched::new(()));
        let stays = watched.watch();
        for _ in 0..1000 {
            drop((watched.watch(), watched.watch()));
        }
        drop(stays);
        assert_eq!(watched.lock().wakers.len(), 3);
    }
}
