//! The OS thread that watches one runtime from outside.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeMetrics};

use super::lag::{LagMeter, PERIOD, Probe, Reading, Stall, Worker};
use super::readings::{Readings, failed, readings_of, release};
use super::{Memory, metrics};

/// Time between two readings of a quiet runtime: half the wake-ups; a stall that begins in between is seen all the same.
const QUIET_PERIOD: Duration = Duration::from_millis(20);

const COLLECT_PERIOD: Duration = Duration::from_secs(1);

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

pub(super) struct Sampler {
    handle: Handle,
    runtime: RuntimeMetrics,
    epoch: Instant,
    meter: LagMeter,
    workers: Vec<Worker>,
    sent: Option<Sent>,
    collect_due: Instant,
    /// It ended as it should, neither before it ran nor by a panic.
    ended: bool,
    #[cfg(feature = "metrics")]
    exporter: super::export::Exporter,
}

/// The sampled runtime has shut down.
struct Gone;

// === impl Sampler ===

impl Sampler {
    /// Starts the thread that samples a runtime. Its time begins now: the thread may be run much later.
    pub(super) fn start(handle: Handle) {
        let sampler = Self::new(handle);
        let spawned = std::thread::Builder::new().name("telemetry".into()).spawn(move || sampler.run());
        if let Err(_error) = spawned {
            #[cfg(feature = "tracing")]
            tracing::error!(error = %_error, "no thread for the event-loop sampler: lag and memory are not measured");
        }
    }

    pub(super) fn new(handle: Handle) -> Self {
        let now = Instant::now();
        Self {
            runtime: handle.metrics(),
            handle,
            epoch: now,
            meter: LagMeter::default(),
            workers: Vec::new(),
            sent: None,
            collect_due: now,
            ended: false,
            #[cfg(feature = "metrics")]
            exporter: super::export::Exporter::default(),
        }
    }

    /// Samples until the runtime, or the last owner of its readings, is gone.
    fn run(mut self) {
        let mut due = self.epoch;
        loop {
            // Due is counted from before a reading and the pause from after it: if this thread is preempted anywhere
            // between, the next reading knows that it is late, and two readings are never closer than a period.
            let begun = Instant::now();
            let readings = readings_of(self.handle.id());
            if readings.is_empty() {
                break;
            }
            let Ok(pause) = self.sample(due, &readings) else {
                release(self.handle.id());
                break;
            };
            drop(readings);
            due = begun + pause;
            #[allow(clippy::disallowed_methods, reason = "a thread of our own, whose work is to wait")]
            std::thread::sleep(pause);
        }
        self.ended = true;
    }

    /// Takes one reading and returns the pause before the next.
    fn sample(&mut self, due: Instant, readings: &[Arc<Readings>]) -> Result<Duration, Gone> {
        self.read_workers();
        let probe = self.read_probe()?;
        let now = Instant::now();
        let held = self.read_held(readings);
        let (due, at) = (self.since_epoch(due), self.since_epoch(now));
        let reading = Reading { due, now: at, probe, workers: &self.workers, held: &held };
        let step = self.meter.step(reading, &mut metrics::lag);
        readings.iter().for_each(|readings| readings.set_lag(step.lag, step.lag_max));
        metrics::lag_max(Readings::lag_max_of_all());
        #[cfg(feature = "tracing")]
        super::seat::warn_of_stuck(now);
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

    fn read_held(&self, readings: &[Arc<Readings>]) -> Vec<Stall> {
        let stall = |(start, end)| Stall { start: self.since_epoch(start), end: self.since_epoch(end) };
        readings.iter().flat_map(|readings| readings.take_held()).map(stall).collect()
    }

    fn send_probe(&mut self) {
        let answer = Arc::new(OnceLock::new());
        let task = ProbeTask(answer.clone());
        self.sent = Some(Sent { at: Instant::now(), answer });
        self.handle.spawn(async move { task.run() });
    }

    /// Reads memory and exports the slow figures: once a second, and for at most one per cent of the time.
    fn collect(&mut self, now: Instant, readings: &[Arc<Readings>]) {
        let memory = Memory::now();
        readings.iter().for_each(|readings| readings.set_memory(memory));
        #[cfg(feature = "metrics")]
        self.exporter.export(now, memory, &self.runtime);
        self.collect_due = now + COLLECT_PERIOD.max(now.elapsed() * 100);
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if !self.ended {
            failed(self.handle.id());
        }
    }
}
