//! The OS thread that watches one runtime from outside.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeMetrics};

use super::lag::{LagMeter, PERIOD, Probe, Reading, Stall, Worker};
use super::{Memory, metrics};

/// Time between two readings of a quiet runtime: half the wake-ups; a stall that begins in between is seen all the same.
const QUIET_PERIOD: Duration = Duration::from_millis(20);

/// A poll that is shorter than this is left to the probe.
const HELD: Duration = Duration::from_millis(20);

/// Polls remembered between two readings; more than there are workers, unless readings are very late.
const MAX_HELD: usize = 256;

const COLLECT_PERIOD: Duration = Duration::from_secs(1);

/// What the sampler last read, shared by a layer, its services and its [`Vitals`](super::Vitals).
#[derive(Debug)]
pub(super) struct Readings {
    sampled: AtomicBool,
    lag: AtomicU64,
    lag_max: AtomicU64,
    memory: Mutex<Memory>,
    held: Mutex<Vec<(Instant, Instant)>>,
}

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
    /// Starts the sampler for the current runtime, if there is one and no other is being sampled.
    pub(super) fn sample_here(self: &Arc<Self>) {
        if self.sampled.load(Ordering::Relaxed) {
            return;
        }
        let Ok(handle) = Handle::try_current() else { return };
        if self.sampled.swap(true, Ordering::AcqRel) {
            return;
        }
        // Made here, since its time begins now: the thread may be run much later.
        let (sampler, readings) = (Sampler::new(handle), Arc::downgrade(self));
        let spawned = std::thread::Builder::new().name("telemetry".into()).spawn(move || sampler.run(&readings));
        if let Err(_error) = spawned {
            #[cfg(feature = "tracing")]
            tracing::error!(error = %_error, "no thread for the event-loop sampler: lag and memory are not measured");
        }
    }

    pub(super) fn lag(&self) -> Duration {
        Duration::from_nanos(self.lag.load(Ordering::Relaxed))
    }

    pub(super) fn lag_max(&self) -> Duration {
        Duration::from_nanos(self.lag_max.load(Ordering::Relaxed))
    }

    pub(super) fn memory(&self) -> Memory {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the sampler of a poll that ran from `start` to `end`. Short ones do not matter to it.
    pub(super) fn held(&self, start: Instant, end: Instant) {
        if end - start >= HELD {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.len() < MAX_HELD {
                held.push((start, end));
            }
        }
    }

    fn set_lag(&self, lag: Duration, max: Duration) {
        self.lag.store(nanos(lag), Ordering::Relaxed);
        self.lag_max.store(nanos(max), Ordering::Relaxed);
    }

    fn set_memory(&self, memory: Memory) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    /// The sampled runtime is gone; the next request's runtime is sampled instead.
    fn release(&self) {
        self.set_lag(Duration::ZERO, Duration::ZERO);
        self.sampled.store(false, Ordering::Release);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A task that does nothing but say when it ran: `None` if the runtime dropped it instead, since it has shut down.
struct ProbeTask(Arc<OnceLock<Option<Instant>>>);

impl ProbeTask {
    fn run(&self) {
        let _ = self.0.set(Some(Instant::now()));
    }
}

impl Drop for ProbeTask {
    fn drop(&mut self) {
        let _ = self.0.set(None);
    }
}

/// A probe on its way through the runtime.
struct Sent {
    at: Instant,
    answer: Arc<OnceLock<Option<Instant>>>,
}

struct Sampler {
    handle: Handle,
    runtime: RuntimeMetrics,
    epoch: Instant,
    meter: LagMeter,
    workers: Vec<Worker>,
    sent: Option<Sent>,
    collect_due: Instant,
    #[cfg(feature = "metrics")]
    exporter: super::export::Exporter,
}

/// The sampled runtime has shut down.
struct Gone;

// === impl Sampler ===

impl Sampler {
    fn new(handle: Handle) -> Self {
        let now = Instant::now();
        Self {
            runtime: handle.metrics(),
            handle,
            epoch: now,
            meter: LagMeter::default(),
            workers: Vec::new(),
            sent: None,
            collect_due: now,
            #[cfg(feature = "metrics")]
            exporter: super::export::Exporter::default(),
        }
    }

    /// Samples until the runtime, or the last owner of `readings`, is gone.
    fn run(mut self, readings: &Weak<Readings>) {
        let mut due = self.epoch;
        while let Some(readings) = readings.upgrade() {
            // Due is counted from before a reading and the pause from after it: if this thread is preempted anywhere
            // between, the next reading knows that it is late, and two readings are never closer than a period.
            let begun = Instant::now();
            let Ok(pause) = self.sample(due, &readings) else {
                return readings.release();
            };
            drop(readings);
            due = begun + pause;
            #[allow(clippy::disallowed_methods, reason = "a thread of our own, whose work is to wait")]
            std::thread::sleep(pause);
        }
    }

    /// Takes one reading and returns the pause before the next.
    fn sample(&mut self, due: Instant, readings: &Readings) -> Result<Duration, Gone> {
        self.read_workers();
        let probe = self.read_probe()?;
        let now = Instant::now();
        let held = self.read_held(readings);
        let (due, at) = (self.since_epoch(due), self.since_epoch(now));
        let reading = Reading { due, now: at, probe, workers: &self.workers, held: &held };
        let step = self.meter.step(reading, &mut metrics::lag);
        readings.set_lag(step.lag, step.lag_max);
        metrics::lag_max(step.lag_max);
        #[cfg(feature = "tracing")]
        super::watch::warn_of_stuck(now);
        if now >= self.collect_due {
            self.collect(now, readings);
        }
        if self.sent.is_none() {
            self.send_probe();
        }
        Ok(if step.quiet { QUIET_PERIOD } else { PERIOD })
    }

    fn since_epoch(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.epoch)
    }

    fn read_workers(&mut self) {
        let workers = (0..self.runtime.num_workers()).map(|index| Worker {
            parks: self.runtime.worker_park_unpark_count(index),
            busy: self.runtime.worker_total_busy_duration(index),
        });
        self.workers.clear();
        self.workers.extend(workers);
    }

    fn read_probe(&mut self) -> Result<Probe, Gone> {
        let Some(probe) = &self.sent else { return Ok(Probe::None) };
        let sent = self.since_epoch(probe.at);
        match probe.answer.get() {
            None => Ok(Probe::Outstanding { sent }),
            Some(None) => Err(Gone),
            Some(Some(at)) => {
                let at = self.since_epoch(*at);
                self.sent = None;
                Ok(Probe::Answered { sent, at })
            }
        }
    }

    fn read_held(&self, readings: &Readings) -> Vec<Stall> {
        let held = std::mem::take(&mut *readings.held.lock().unwrap_or_else(PoisonError::into_inner));
        let stall = |(start, end)| Stall { start: self.since_epoch(start), end: self.since_epoch(end) };
        held.into_iter().map(stall).collect()
    }

    fn send_probe(&mut self) {
        let answer = Arc::new(OnceLock::new());
        let task = ProbeTask(answer.clone());
        self.sent = Some(Sent { at: Instant::now(), answer });
        self.handle.spawn(async move { task.run() });
    }

    /// Reads memory and exports the slow figures: once a second, and for at most one per cent of the time.
    fn collect(&mut self, now: Instant, readings: &Readings) {
        let memory = Memory::now();
        readings.set_memory(memory);
        #[cfg(feature = "metrics")]
        self.exporter.export(now, memory, &self.runtime);
        self.collect_due = now + COLLECT_PERIOD.max(now.elapsed() * 100);
    }
}
