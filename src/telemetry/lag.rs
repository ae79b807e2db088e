//! The arithmetic of event-loop lag: readings in, lag samples out. No clock and no I/O.
//!
//! Time is cut into ticks, one per [`PERIOD`]; the lag of a tick is how long a task that became due then had to wait.
//! A stall of length L therefore counts as L, L−P, L−2P, …, as if a task had become due in every tick of it; one
//! sample per stall would hide it among hundreds of good ones (coordinated omission).

use std::cmp::Reverse;
use std::time::Duration;

use super::rolling::RollingMax;

/// Time between two ticks, and between two readings of a busy runtime.
pub(super) const PERIOD: Duration = Duration::from_millis(10);

/// A stall counts at most this many ticks (one minute), so that waking up from one stays cheap.
const MAX_TICKS: u32 = 6000;

/// What the probe's own wake-ups and its worker's search for more work add to the park counters.
const QUIET_PARKS: u64 = 4;

/// A worker's counters, as the runtime publishes them at every park and every `event_interval` polls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Worker {
    /// Parks plus unparks: odd while the worker is parked.
    pub(super) parks: u64,
    pub(super) busy: Duration,
}

/// The task that was last sent through the runtime, in times since the sampler's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    None,
    Outstanding { sent: Duration },
    Answered { sent: Duration, at: Duration },
}

/// One reading. `due` is when the sampler wanted to take it, `now` when it did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    pub(super) due: Duration,
    pub(super) now: Duration,
    pub(super) probe: Probe,
    pub(super) workers: &'a [Worker],
    /// Polls of requests, timed where they ran, that held a worker and ended since the last reading.
    pub(super) held: &'a [Stall],
}

/// What is known after a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The age of the longest stall in progress, else the delay of the last probe.
    pub(super) lag: Duration,
    pub(super) lag_max: Duration,
    /// Every worker is parked, and hardly anything but the probe has woken one.
    pub(super) quiet: bool,
}

/// Turns readings into lag samples.
///
/// A reading that comes late, because the OS did not run the sampler, is no evidence against the loop, which may not
/// have been run either (a frozen or throttled process). The probe's wait excludes such time. A worker's turn includes
/// it only if a reading in time saw the turn before or sees it after. A stall that fell between such readings is known
/// all the same if a request caused it, since its polls are timed where they run.
#[derive(Debug, Default)]
pub(super) struct LagMeter {
    workers: Vec<Track>,
    previous: Duration,
    /// How much of the outstanding probe's wait the sampler was late.
    excused: Duration,
    /// The last reading in time that found no worker stalled.
    clear: Duration,
    /// Ticks before this time have been recorded.
    covered: Duration,
    last_probe: Duration,
    ended: Vec<Stall>,
    max: RollingMax,
}

#[derive(Debug, Default)]
struct Track {
    last: Worker,
    turn: Option<Turn>,
}

/// A worker's turn: the polls between two updates of its counters.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// The last reading before it.
    after: Duration,
    /// The first reading inside it that counts.
    seen: Duration,
    /// Whether that was a late one, because the first was alone before it.
    excused: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Stall {
    pub(super) start: Duration,
    pub(super) end: Duration,
}

// === impl LagMeter ===

impl LagMeter {
    /// Takes a reading; every lag sample that it completes goes to `record`.
    pub(super) fn step(&mut self, reading: Reading<'_>, record: &mut dyn FnMut(Duration)) -> Step {
        let now = reading.now;
        let late = now.saturating_sub(reading.due) >= PERIOD;

        let quiet = self.observe_workers(reading.workers, now, late);
        let stalled_since = self.stalled_since(now);
        let waiting = self.observe_probe(reading, late, stalled_since, record);
        // A poll in `block_in_place` lets the worker go on: a reading inside it, after the first sight, was clear.
        let clear = self.clear;
        self.ended.extend(reading.held.iter().filter(|poll| clear < poll.start + 3 * PERIOD));
        if !late && stalled_since.is_none() {
            self.clear = now;
        }
        self.record_stalls(now, stalled_since, record);

        let stalled = stalled_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        let lag = stalled.max(waiting);
        self.max.record(now, lag);
        self.previous = now;
        Step { lag, lag_max: self.max.get(now), quiet }
    }

    /// Ends the turns whose worker has moved on and begins new ones. Returns whether the runtime is quiet.
    fn observe_workers(&mut self, workers: &[Worker], now: Duration, late: bool) -> bool {
        self.workers.resize_with(workers.len(), Track::default);
        let (mut all_parked, mut parks) = (true, 0);
        for (track, worker) in self.workers.iter_mut().zip(workers) {
            let running = worker.parks.is_multiple_of(2);
            all_parked &= !running;
            parks += worker.parks.saturating_sub(track.last.parks);
            if *worker == track.last && track.turn.is_some() == running {
                if let Some(turn) = track.turn.as_mut()
                    && late
                    && turn.seen == self.previous
                    && !turn.excused
                {
                    (turn.seen, turn.excused) = (now, true);
                }
                continue;
            }
            if let Some(turn) = track.turn.take().filter(|turn| turn.seen < self.previous) {
                let busy = worker.busy.saturating_sub(track.last.busy);
                self.ended.push(turn.ended(busy, self.previous, now));
            }
            track.last = *worker;
            track.turn = running.then_some(Turn { after: self.previous, seen: now, excused: false });
        }
        all_parked && parks <= QUIET_PARKS
    }

    /// Since when the worker that has been in one turn for longest has been in it, if that is a period at least.
    fn stalled_since(&self, now: Duration) -> Option<Duration> {
        let since = self.workers.iter().filter_map(|track| track.turn.map(|turn| turn.seen)).min()?;
        (now.saturating_sub(since) >= PERIOD).then_some(since)
    }

    /// Returns how long the probe has been, or was, waiting.
    fn observe_probe(
        &mut self,
        reading: Reading<'_>,
        late: bool,
        stalled_since: Option<Duration>,
        record: &mut dyn FnMut(Duration),
    ) -> Duration {
        let (sent, end) = match reading.probe {
            Probe::None => return self.last_probe,
            Probe::Outstanding { sent } => (sent, reading.now),
            Probe::Answered { sent, at } => (sent, at.min(reading.now)),
        };
        if late {
            self.excused += end.saturating_sub(sent.max(reading.due));
        }
        let wait = end.saturating_sub(sent).saturating_sub(self.excused);
        if matches!(reading.probe, Probe::Outstanding { .. }) {
            return wait;
        }
        self.excused = Duration::ZERO;
        self.last_probe = wait;
        let start = end.saturating_sub(wait);
        if wait >= PERIOD {
            self.ended.push(Stall { start, end });
        } else if stalled_since.is_none() && start >= self.covered {
            // Another worker answered at once; the ticks of a stalled one are recorded when its stall ends.
            (0..self.ticks_until(reading.due)).for_each(|_| record(wait));
        }
        wait
    }

    /// How many ticks the pause before this reading was meant to last: more than one if the runtime was quiet. Time by
    /// which the reading is late has no samples, as nobody knows what the loop did.
    fn ticks_until(&self, due: Duration) -> u128 {
        let pause = due.saturating_sub(self.previous) + PERIOD / 2;
        (pause.as_nanos() / PERIOD.as_nanos()).max(1)
    }

    /// Records the ticks of the stalls that ended, each tick once; ticks that a stall in progress covers wait for it.
    fn record_stalls(&mut self, now: Duration, stalled_since: Option<Duration>, record: &mut dyn FnMut(Duration)) {
        // Of stalls that began together (a turn, and the probe behind it) the longest speaks for all.
        self.ended.sort_unstable_by_key(|stall| (stall.start, Reverse(stall.end)));
        for stall in self.ended.drain(..) {
            self.max.record(now, stall.end.saturating_sub(stall.start));
            let until = stalled_since.map_or(stall.end, |since| since.min(stall.end));
            let mut tick = stall.start.max(self.covered);
            if tick > stall.start && until < tick + PERIOD {
                continue;
            }
            for _ in 0..MAX_TICKS {
                if tick >= until {
                    break;
                }
                record(stall.end.saturating_sub(tick));
                tick += PERIOD;
            }
            self.covered = self.covered.max(until);
        }
    }
}

impl Turn {
    /// A turn that was last seen at `last` and had ended by `now`, during which its worker was busy for `busy`.
    /// The readings bound its length; within them, the worker's own clock is exact (it may add what came after).
    fn ended(self, busy: Duration, last: Duration, now: Duration) -> Stall {
        let shortest = last.saturating_sub(self.seen);
        let longest = now.saturating_sub(self.after);
        let length = busy.clamp(shortest, longest.max(shortest));
        let end = now.min(self.seen + length);
        Stall { start: end.saturating_sub(length), end }
    }
}

#[cfg(test)]
#[path = "lag_tests.rs"]
mod tests;
