//! What was last read of a runtime, and which layers share its sampler.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id};

use super::Memory;
use super::sampler::Sampler;

/// A poll that is shorter than this is left to the probe.
pub(super) const HELD: Duration = Duration::from_millis(20);

/// Polls remembered between two readings; more than there are workers, unless readings are very late.
const MAX_HELD: usize = 256;

/// After a sampler has failed, none is started for this long: the reason (no thread to be had) is hardly gone at once.
const RETRY: Duration = Duration::from_secs(10);

/// What the sampler last read, shared by a layer, its services and its [`Vitals`](super::Vitals).
#[derive(Debug)]
pub(super) struct Readings {
    sampled: AtomicBool,
    lag: AtomicU64,
    lag_max: AtomicU64,
    memory: Mutex<Memory>,
    held: Mutex<Vec<(Instant, Instant)>>,
}

/// The readings that each sampled runtime's one sampler keeps. A runtime that stands here has a sampler.
static SAMPLED: Mutex<Sampled> = Mutex::new(Sampled { readings: Vec::new(), retry: None });

struct Sampled {
    readings: Vec<(Id, Weak<Readings>)>,
    retry: Option<Instant>,
}

// === impl Readings ===

impl Default for Readings {
    fn default() -> Self {
        Self {
            sampled: AtomicBool::new(false),
            lag: AtomicU64::new(0),
            lag_max: AtomicU64::new(0),
            memory: Mutex::new(Memory::now()),
            held: Mutex::default(),
        }
    }
}

impl Readings {
    /// Has the current runtime sampled, if there is one and these readings are not of another.
    #[inline]
    pub(super) fn sample_here(self: &Arc<Self>) {
        if !self.sampled.load(Ordering::Relaxed) {
            self.join();
        }
    }

    #[cold]
    fn join(self: &Arc<Self>) {
        let Ok(handle) = Handle::try_current() else { return };
        if Sampled::lock().join(self, handle.id()) {
            Sampler::start(handle);
        }
    }

    pub(super) fn lag(&self) -> Duration {
        Duration::from_nanos(self.lag.load(Ordering::Relaxed))
    }

    pub(super) fn lag_max(&self) -> Duration {
        Duration::from_nanos(self.lag_max.load(Ordering::Relaxed))
    }

    /// Of all runtimes that are sampled: what one figure for the process has to show.
    pub(super) fn lag_max_of_all() -> Duration {
        let sampled = Sampled::lock();
        sampled.readings.iter().filter_map(|(_, one)| one.upgrade()).map(|one| one.lag_max()).max().unwrap_or_default()
    }

    pub(super) fn memory(&self) -> Memory {
        *lock(&self.memory)
    }

    /// Tells the sampler of a poll that ran from `start` to `end`, for [`HELD`] or longer.
    pub(super) fn held(&self, start: Instant, end: Instant) {
        let mut held = lock(&self.held);
        if held.len() < MAX_HELD {
            held.push((start, end));
        }
    }

    pub(super) fn take_held(&self) -> Vec<(Instant, Instant)> {
        std::mem::take(&mut *lock(&self.held))
    }

    pub(super) fn set_lag(&self, lag: Duration, max: Duration) {
        self.lag.store(nanos(lag), Ordering::Relaxed);
        self.lag_max.store(nanos(max), Ordering::Relaxed);
    }

    pub(super) fn set_memory(&self, memory: Memory) {
        *lock(&self.memory) = memory;
    }
}

/// Whose readings the sampler of `runtime` keeps. If there are none left, another sampler may start at once.
pub(super) fn readings_of(runtime: Id) -> Vec<Arc<Readings>> {
    let mut found = Vec::new();
    Sampled::lock().readings.retain(|(id, readings)| {
        let readings = if *id == runtime { readings.upgrade() } else { return true };
        let alive = readings.is_some();
        found.extend(readings);
        alive
    });
    found
}

/// The runtime is gone; the next request's runtime is sampled instead.
pub(super) fn release(runtime: Id) {
    Sampled::lock().release(runtime);
}

/// The sampler could not start, or panicked; another may start after a while.
pub(super) fn failed(runtime: Id) {
    let mut sampled = Sampled::lock();
    sampled.retry = Some(Instant::now() + RETRY);
    sampled.release(runtime);
}

// === impl Sampled ===

impl Sampled {
    fn lock() -> MutexGuard<'static, Self> {
        lock(&SAMPLED)
    }

    /// Returns whether a sampler is to be started.
    fn join(&mut self, readings: &Arc<Readings>, runtime: Id) -> bool {
        let starts = !self.readings.iter().any(|(id, _)| *id == runtime);
        let too_early = starts && self.retry.is_some_and(|retry| Instant::now() < retry);
        if too_early || readings.sampled.swap(true, Ordering::Relaxed) {
            return false;
        }
        self.readings.push((runtime, Arc::downgrade(readings)));
        starts
    }

    fn release(&mut self, runtime: Id) {
        for (_, readings) in self.readings.extract_if(.., |(id, _)| *id == runtime) {
            if let Some(readings) = readings.upgrade() {
                readings.set_lag(Duration::ZERO, Duration::ZERO);
                readings.sampled.store(false, Ordering::Relaxed);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_sampler_is_replaced_after_a_while() {
        let (readings, handle) = (Arc::<Readings>::default(), Handle::current());
        assert!(Sampled::lock().join(&readings, handle.id()));
        readings.set_lag(RETRY, RETRY);
        // As when no thread can be had, and as when it panics.
        drop(Sampler::new(handle.clone()));
        assert_eq!((readings.lag(), readings.lag_max()), (Duration::ZERO, Duration::ZERO));
        assert!(!Sampled::lock().join(&readings, handle.id()), "not at once");
        let mut sampled = Sampled::lock();
        sampled.retry = Some(Instant::now());
        assert!(sampled.join(&readings, handle.id()));
        sampled.release(handle.id());
        assert!(sampled.readings.iter().all(|(id, _)| *id != handle.id()));
    }
}
