//! One fetch per key: who runs it, who waits for it, and what they are told.
//!
//! Every change of a flight happens under the flight's own lock, so that "nobody waits any more" and "somebody has to
//! take over" cannot miss each other. The table only tells which flight to join; one that is over is joined by nobody,
//! even before it has left the table. A [`Seat`] that is dropped without a word has failed.
//!
//! Needs no runtime and, but for [`Ticket::changed_by`], no timer: `checked.rs` runs all of it under a checker.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;

use super::audience::{Audience, Listener};
use super::entry::{Entry, Head};
use super::key::{BuildPrehashed, Key};
use super::log::Log;
use super::markers::{Mark, Markers};
use super::metrics::Metrics;
use super::stripes::{STRIPES, Stripes, stripe};
use super::sync::{Mutex, lock};
use super::vary::VarySpec;
use super::wakers::{Watched, Watcher};

mod course;

use course::{Course, Offer};

/// Fetches under way, each with its key. Beyond: everybody goes alone.
const MAX_FLIGHTS: usize = 1024;

/// What those who wait see of a fetch.
#[derive(Clone)]
pub(super) enum Phase {
    /// Nothing is known yet.
    Running,
    /// It failed; the first to claim it runs it again.
    Vacant,
    /// The head is there and may be stored; the body is on its way.
    Streaming(Arc<Stream>),
    /// All of it is there.
    Complete(Arc<Landed>),
    /// The response is not for sharing: everybody goes alone.
    Released,
    /// It failed too often.
    Failed,
}

/// Where a URL's responses vary: by what, and the key of one of them.
pub(super) type Variant = (Arc<VarySpec>, Key);

/// A whole response.
pub(super) struct Landed {
    pub(super) entry: Arc<Entry>,
    pub(super) variant: Option<Variant>,
    /// As in [`Stream`].
    pub(super) voided: u64,
}

/// A response that is being collected.
pub(super) struct Stream {
    pub(super) head: Arc<Head>,
    pub(super) variant: Option<Variant>,
    pub(super) log: Arc<Log>,
    /// Where the length is known, the body can be shared while it grows, since it is known to fit.
    pub(super) length: Option<u64>,
    pub(super) since: Instant,
    /// [`Flights::voided`] of the URL, before the request was forwarded.
    pub(super) voided: u64,
}

/// All fetches under way in one cache.
pub(super) struct Flights {
    table: Mutex<HashMap<Key, Arc<Flight>, BuildPrehashed>>,
    metrics: Arc<Metrics>,
    /// Counts what was stored, per stripe of keys: a miss that is older than the last one has to look again.
    stored: Stripes,
    /// Counts invalidations: a fetch that is older than the last one must not be stored.
    voided: Arc<Stripes>,
    /// Taken to store or to invalidate, per stripe of URLs.
    orders: Box<[Mutex<()>]>,
    /// Held while a store that answers later is written or, alone, while a URL is removed from it, per stripe of URLs.
    writes: Box<[RwLock<()>]>,
    pub(super) markers: Markers,
}

struct Flight {
    key: Key,
    voided: u64,
    epoch: u64,
    course: Arc<Watched<Course>>,
    audience: Arc<Audience>,
}

/// What [`Flights::join`] found.
pub(super) enum Join {
    /// Nobody fetches this: you do.
    Lead(Seat),
    /// Somebody fetches this.
    Wait(Ticket),
    /// The last response was not for sharing: go alone, and store what comes if it may be.
    Unshared,
    /// Something was stored since you looked.
    LookAgain,
    /// Too many fetches, or too many who wait.
    Full,
}

impl Flights {
    pub(super) fn new(metrics: Arc<Metrics>, voided: Arc<Stripes>) -> Self {
        Self {
            table: Mutex::default(),
            metrics,
            stored: Stripes::new(),
            voided,
            orders: (0..STRIPES).map(|_| Mutex::default()).collect(),
            writes: (0..STRIPES).map(|_| RwLock::default()).collect(),
            markers: Markers::new(),
        }
    }

    /// To be read before a lookup, and handed to [`join`](Self::join) after it.
    pub(super) fn stored(&self, key: &Key) -> u64 {
        self.stored.read(key)
    }

    /// `is_fresh`: it can be used by all, without validation.
    pub(super) fn note_stored(&self, key: &Key, is_fresh: bool) {
        self.stored.bump(key);
        if is_fresh {
            self.markers.lift(key, Mark::Unshared);
            self.markers.lift(key, Mark::HoldOff);
        }
    }

    /// To be read before a request is forwarded, and compared before its response is stored.
    pub(super) fn voided(&self, primary: &Key) -> u64 {
        self.voided.read(primary)
    }

    pub(super) fn note_voided(&self, primary: &Key) {
        self.voided.bump(primary);
    }

    /// Runs `step` while no other store or invalidation of the URL begins.
    pub(super) fn in_order<T>(&self, primary: &Key, step: impl FnOnce() -> T) -> T {
        let _order = self.orders.get(stripe(primary)).map(lock);
        step()
    }

    /// To be held from before the first look at [`voided`](Self::voided) until what was written is known to stay, or
    /// is removed.
    pub(super) async fn writing(&self, primary: &Key) -> Option<RwLockReadGuard<'_, ()>> {
        Some(self.writes.get(stripe(primary))?.read().await)
    }

    /// To be held while the URL is removed from a store that answers later: what was being written is there by then,
    /// and nothing is written before the removal has been [noted](Self::note_voided).
    pub(super) async fn removing(&self, primary: &Key) -> Option<RwLockWriteGuard<'_, ()>> {
        Some(self.writes.get(stripe(primary))?.write().await)
    }

    /// Leads or joins the fetch of `key`, after a lookup that began when [`stored`](Self::stored) was `seen` and the
    /// last purge was `epoch`. A fetch that is older than that purge, or than the last invalidation of the URL, is left
    /// to those who wait for it already.
    pub(super) fn join(self: &Arc<Self>, key: &Key, primary: &Key, seen: u64, epoch: u64) -> Join {
        if self.markers.holds(key, Mark::Unshared, Instant::now()) {
            return Join::Unshared;
        }
        self.join_anyway(key, primary, seen, epoch)
    }

    /// As [`join`](Self::join), for a fetch whose client waits for nothing: also where the last response was not for
    /// sharing, since what is served stale is still to be renewed.
    pub(super) fn join_anyway(self: &Arc<Self>, key: &Key, primary: &Key, seen: u64, epoch: u64) -> Join {
        let mut table = lock(&self.table);
        let voided = self.voided(primary);
        if let Some(flight) = table.get(key).filter(|flight| flight.voided == voided && flight.epoch >= epoch) {
            match flight.course.adjust(Course::offer) {
                Offer::Lead => return Join::Lead(self.seat(flight.clone())),
                Offer::Wait => return Join::Wait(self.ticket(flight.clone())),
                Offer::Full => return Join::Full,
                Offer::Nothing => {}
            }
        }
        if self.stored(key) != seen {
            return Join::LookAgain;
        }
        if table.len() >= MAX_FLIGHTS {
            return Join::Full;
        }
        let flight = Arc::new(Flight {
            key: key.clone(),
            voided,
            epoch,
            course: Arc::new(Watched::new(Course::begin())),
            audience: Arc::default(),
        });
        let left = table.insert(key.clone(), flight.clone());
        drop(table);
        drop(left);
        Join::Lead(self.seat(flight))
    }

    fn seat(self: &Arc<Self>, flight: Arc<Flight>) -> Seat {
        Seat { flights: self.clone(), flight, taken: true }
    }

    fn ticket(self: &Arc<Self>, flight: Arc<Flight>) -> Ticket {
        self.metrics.waiter_came();
        let (course, listener) = (flight.course.watch(), flight.audience.listen());
        Ticket { course, heard: 0, flights: self.clone(), flight, _listener: listener }
    }

    fn remove(&self, flight: &Arc<Flight>) {
        let mut table = lock(&self.table);
        if table.get(&flight.key).is_some_and(|listed| Arc::ptr_eq(listed, flight)) {
            table.remove(&flight.key);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.table).len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The right, and the duty, to run a fetch.
pub(super) struct Seat {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    taken: bool,
}

impl Seat {
    pub(super) fn audience(&self) -> &Arc<Audience> {
        &self.flight.audience
    }

    /// The head is there, and may be stored.
    pub(super) fn stream(&self, stream: Arc<Stream>) {
        self.tell(Phase::Streaming(stream));
    }

    /// All of it is there. The flight stays until it is [stored](Self::land), so that nobody slips in between.
    pub(super) fn complete(&self, landed: Arc<Landed>) {
        self.tell(Phase::Complete(landed));
    }

    fn tell(&self, phase: Phase) {
        let _last = self.flight.course.change(|course| course.tell(phase));
    }

    /// It is stored, or could not be.
    pub(super) fn land(mut self) {
        self.taken = false;
        self.flights.remove(&self.flight);
    }

    /// The response is not for sharing: sends everybody on their own way, also those who come in the next while.
    pub(super) fn refuse(self) {
        let markers = &self.flights.markers;
        markers.clear(&self.flight.key);
        markers.mark(&self.flight.key, Mark::Unshared, Instant::now());
        self.release();
    }

    /// Sends everybody on their own way.
    pub(super) fn release(mut self) {
        self.taken = false;
        self.tell(Phase::Released);
        self.flights.remove(&self.flight);
    }

    /// Somebody else may try, if somebody waits.
    pub(super) fn fail(self) {}

    /// The response is that client's alone, since its request has credentials: somebody else may try, and in the end
    /// everybody goes alone.
    pub(super) fn decline(mut self) {
        self.flights.markers.lift(&self.flight.key, Mark::Permitted);
        self.taken = false;
        self.vacate(Course::decline);
    }

    fn vacate(&self, how: impl FnOnce(&mut Course) -> (bool, Option<Phase>)) {
        let (over, _last) = self.flight.course.change(how);
        if over {
            self.flights.remove(&self.flight);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.taken {
            self.vacate(Course::fail);
        }
    }
}

/// A place among those who wait.
pub(super) struct Ticket {
    course: Watcher<Course>,
    /// [`Course::told`] when the phase was last read.
    heard: u64,
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    _listener: Listener,
}

impl Ticket {
    pub(super) fn phase(&mut self) -> Phase {
        let (told, phase) = self.course.look(|course| (course.told, course.phase.clone()));
        self.heard = told;
        phase
    }

    /// Waits until there is news since [`phase`](Self::phase).
    pub(super) async fn changed(&mut self) {
        let heard = self.heard;
        self.course.find(|course| (course.told != heard).then_some(())).await;
    }

    /// As [`changed`](Self::changed). `false`: there was none by the deadline.
    pub(super) async fn changed_by(&mut self, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, self.changed()).await.is_ok()
    }

    /// Takes over a vacant fetch, unless another was first. Nobody is told: who waits was told of the vacancy.
    pub(super) fn claim(&self) -> Option<Seat> {
        let claimed = self.flight.course.adjust(Course::claim);
        claimed.then(|| self.flights.seat(self.flight.clone()))
    }

    pub(super) fn audience(&self) -> &Arc<Audience> {
        &self.flight.audience
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.flights.metrics.waiter_left();
        if self.flight.course.adjust(Course::leave) {
            self.flights.remove(&self.flight);
        }
    }
}

#[cfg(test)]
#[cfg(shuttle)]
mod checked;

#[cfg(test)]
mod tests;
