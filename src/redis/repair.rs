//! The background task that opens lanes and closes breakers. It runs only while something is amiss.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::error::{Cause, Kind, Verdict};
use super::lane::{Connection, Lane};
use super::link::{Link, State};
use super::within::Within;

/// Opening a connection, with whatever timeouts an application's pool has or lacks.
const OPEN: Duration = Duration::from_secs(2);
/// Every so many attempts, a connection that does not answer is replaced: perhaps it leads nowhere.
const PATIENCE: u32 = 4;
/// A repair that has not stirred for so long sits on a runtime that nobody drives: another takes over.
const ABANDONED: Duration = Duration::from_secs(10);

/// Who repairs, and when it last stirred.
pub(super) struct Shift {
    number: u64,
    stirred: Instant,
}

impl State {
    fn claim(&mut self, now: Instant) -> Option<u64> {
        match &self.shift {
            None => self.backoff.begin(now),
            Some(shift) if now.saturating_duration_since(shift.stirred) < ABANDONED => return None,
            Some(_) => {}
        }
        self.shifts += 1;
        self.shift = Some(Shift { number: self.shifts, stirred: now });
        Some(self.shifts)
    }

    fn on_shift(&mut self, number: u64) -> Option<&mut Shift> {
        self.shift.as_mut().filter(|shift| shift.number == number)
    }
}

/// Starts the repair, unless it is under way.
pub(super) fn start(link: &Arc<Link>, budget: Duration) {
    let claim = link.state().claim(Instant::now());
    if let Some(number) = claim {
        // Spawned without holding the lock: a runtime that shuts down drops the task at once.
        tokio::spawn(Repair { link: Arc::downgrade(link), number, budget }.run());
    }
}

struct Repair {
    link: Weak<Link>,
    number: u64,
    budget: Duration,
}

impl Repair {
    /// Ends when all is well, when the last handle is gone, or when another repair has taken over.
    async fn run(self) {
        for round in 1.. {
            let Some(wait) = self.link.upgrade().and_then(|link| self.next_wait(&link)) else { return };
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let Some(link) = self.link.upgrade() else { return };
            if let Some(lane) = self.lane(&link, round).await {
                self.probe(&link, &lane).await;
            }
            if self.is_done(&link) {
                return;
            }
        }
    }

    fn next_wait(&self, link: &Link) -> Option<Duration> {
        let mut state = link.state();
        state.on_shift(self.number)?.stirred = Instant::now();
        let wait = state.backoff.next(RandomState::new().hash_one(self.number));
        let nothing_to_wait_for = state.lane.is_none() && !wait.is_zero();
        drop(state);
        if nothing_to_wait_for {
            link.trip(None);
        }
        Some(wait)
    }

    /// The current lane, or a fresh one where there is none or it is due.
    async fn lane(&self, link: &Link, round: u32) -> Option<Arc<Lane>> {
        let current = link.state().lane.clone().filter(|lane| !lane.is_orphaned());
        if let Some(current) = &current {
            if !round.is_multiple_of(PATIENCE) {
                return Some(Arc::clone(current));
            }
            // Detached but in use until its successor is there: the rest of a cluster may be well.
            current.detach();
        }
        match open(link).await {
            Ok(lane) => {
                let lane = Arc::new(lane);
                let before = link.state().lane.replace(Arc::clone(&lane));
                if before.is_some() {
                    link.metrics.replacements.increment(1);
                }
                link.changed.notify_waiters();
                self.chart(link, &lane).await;
                Some(lane)
            }
            Err(cause) => {
                if current.is_none() {
                    link.trip(Some(cause));
                }
                current
            }
        }
    }

    /// Asks the servers whose breakers are open.
    async fn probe(&self, link: &Link, lane: &Arc<Lane>) {
        let open = link.state().nodes.open();
        let any = !open.is_empty();
        for (node, key) in open {
            match Within::new(self.budget, lane.connection.ping(&key)).await {
                Some(Ok(_)) => link.close(node),
                Some(Err(error)) => match Verdict::from(&error) {
                    // Any answer is an answer, even "no permission".
                    Verdict { kind: Kind::Refused, .. } => link.close(node),
                    Verdict { broken: true, .. } if matches!(lane.connection, Connection::Single(_)) => {
                        link.give_up(lane);
                    }
                    _ => {}
                },
                None => {}
            }
        }
        if any {
            self.chart(link, lane).await;
        }
    }

    /// Learns which master owns which slots. Without an answer, what was known stays.
    async fn chart(&self, link: &Link, lane: &Lane) {
        if let Connection::Cluster(_) = lane.connection {
            let mut slots = ::redis::cmd("CLUSTER");
            slots.arg("SLOTS");
            if let Some(Ok(slots)) = Within::new(self.budget, lane.connection.send(&slots)).await {
                link.adopt(&slots);
            }
        }
    }

    fn is_done(&self, link: &Link) -> bool {
        let mut state = link.state();
        let well = state.lane.is_some() && state.nodes.open_count() == 0;
        let on_shift = state.on_shift(self.number).is_some();
        if well && on_shift {
            state.shift = None;
        }
        well || !on_shift
    }
}

impl Drop for Repair {
    /// The runtime was shut down, or the task ended: whoever still waits starts another.
    fn drop(&mut self) {
        if let Some(link) = self.link.upgrade() {
            let mut state = link.state();
            if state.on_shift(self.number).is_some() {
                state.shift = None;
            }
            drop(state);
            link.changed.notify_waiters();
        }
    }
}

async fn open(link: &Link) -> Result<Lane, Cause> {
    match tokio::time::timeout(OPEN, link.source.open()).await {
        Err(_) => Err(Cause::new("timed out")),
        Ok(Err(error)) => Err(Cause::from(&error)),
        Ok(Ok(held)) => Ok(Lane::new(held)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::*;

    #[test]
    fn a_repair_that_does_not_stir_is_succeeded() {
        let link = Link::new(Source::url("redis://h").unwrap());
        let mut state = link.state();
        let now = Instant::now();
        assert_eq!(state.claim(now), Some(1));
        assert_eq!(state.claim(now + ABANDONED / 2), None);
        state.on_shift(1).unwrap().stirred = now + ABANDONED / 2;
        assert_eq!(state.claim(now + ABANDONED), None, "it has stirred");
        let later = now + ABANDONED / 2 + ABANDONED;
        assert_eq!(state.claim(later), Some(2));
        assert!(state.on_shift(1).is_none() && state.on_shift(2).is_some(), "the first one ends when it wakes");
        assert_eq!(state.claim(later), None);
    }
}
