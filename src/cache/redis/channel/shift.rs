//! Who runs the channel.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::super::hub::Hub;
use super::Bells;

/// A task that has not stirred for so long sits on a runtime that nobody drives: another takes over.
const ABANDONED: Duration = Duration::from_secs(10);

/// Which task is the one, and when it last stirred.
pub(super) struct Shift {
    /// Its number; 0: none.
    holder: AtomicU64,
    numbers: AtomicU64,
    /// In milliseconds of this process.
    stirred: AtomicU64,
}

impl Shift {
    pub(super) fn new() -> Self {
        Self { holder: AtomicU64::new(0), numbers: AtomicU64::new(0), stirred: AtomicU64::new(0) }
    }

    fn claim(&self, now: u64) -> Option<u64> {
        let holder = self.holder.load(Ordering::Acquire);
        let silence = now.saturating_sub(self.stirred.load(Ordering::Acquire));
        if holder != 0 && u128::from(silence) < ABANDONED.as_millis() {
            return None;
        }
        let number = self.numbers.fetch_add(1, Ordering::AcqRel) + 1;
        let claimed = self.holder.compare_exchange(holder, number, Ordering::AcqRel, Ordering::Acquire);
        self.stirred.fetch_max(now, Ordering::AcqRel);
        claimed.is_ok().then_some(number)
    }

    /// `false`: another has taken over.
    fn stir(&self, number: u64, now: u64) -> bool {
        let holds = self.holder.load(Ordering::Acquire) == number;
        if holds {
            self.stirred.fetch_max(now, Ordering::AcqRel);
        }
        holds
    }

    fn release(&self, number: u64) {
        let _ = self.holder.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Acquire);
    }
}

fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The task. Dropped with its runtime, it leaves the shift to another.
pub(super) struct Task {
    hub: Weak<Hub>,
    pub(super) bells: Arc<Bells>,
    number: u64,
}

impl Task {
    /// Starts it, unless it runs, or there is no runtime.
    pub(super) fn start(hub: &Arc<Hub>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if let Some(number) = hub.channel.shift.claim(now()) {
            let task = Self { hub: Arc::downgrade(hub), bells: hub.channel.bells.clone(), number };
            // A runtime that shuts down drops the task at once.
            runtime.spawn(task.run());
        }
    }

    async fn run(self) {
        tokio::select! {
            () = self.bells.gone.notified() => {}
            () = self.listen() => {}
            () = self.send() => {}
        }
    }

    /// The store, unless it is gone, or another task has taken over.
    pub(super) fn hub(&self) -> Option<Arc<Hub>> {
        self.hub.upgrade().filter(|hub| hub.channel.shift.stir(self.number, now()))
    }
}

impl Task {
    pub(super) fn weak(&self) -> Weak<Hub> {
        self.hub.clone()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.channel.shift.release(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let (shift, abandoned) = (Shift::new(), u64::try_from(ABANDONED.as_millis()).unwrap());
        assert_eq!((shift.claim(1), shift.claim(1)), (Some(1), None));
        assert!(shift.stir(1, 5000));
        assert_eq!(shift.claim(4999 + abandoned), None);
        assert_eq!(shift.claim(5000 + abandoned), Some(2), "it stands still");
        assert_eq!(shift.claim(5000 + abandoned), None);
        assert!(!shift.stir(1, 6000 + abandoned), "it ends when it wakes");
        shift.release(1);
        assert_eq!(shift.claim(5000 + abandoned), None, "and leaves the other alone");
        shift.release(2);
        assert_eq!(shift.claim(5000 + abandoned), Some(3));
    }
}
