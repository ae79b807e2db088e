//! One fetch per key: who runs it, who waits for it, and what they are told.
//!
//! Every change of a flight happens under the table's lock, so that "nobody waits any more" and "somebody has to take
//! over" cannot miss each other. A [`Seat`] that is dropped without a word has failed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::audience::{Audience, Listener};
use super::entry::{Entry, Head};
use super::key::{BuildPrehashed, Key};
use super::log::Log;
use super::markers::Markers;
use super::metrics::Metrics;
use super::stripes::{STRIPES, Stripes, stripe};
use super::vary::VarySpec;

/// Fetches under way, each with its key. Beyond: everybody goes alone.
const MAX_FLIGHTS: usize = 1024;
/// Requests that wait for one fetch. Beyond: they go alone.
const MAX_WAITERS: usize = 4096;
/// How often a failed fetch is tried again, by one of those who wait, before all of them get an error.
const MAX_SUCCESSORS: usize = 2;

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
    Complete(Arc<Stream>, Arc<Entry>),
    /// The response is not for sharing: everybody goes alone.
    Released,
    /// It failed too often.
    Failed,
}

/// A response that is being collected.
pub(super) struct Stream {
    pub(super) head: Arc<Head>,
    /// Where the URL's responses vary: by what, and the key of this one.
    pub(super) variant: Option<(Arc<VarySpec>, Key)>,
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
    voided: Stripes,
    /// Taken to store or to invalidate, per stripe of URLs.
    orders: Box<[Mutex<()>]>,
    /// Keys whose last response was not for sharing: nobody waits for the next one in vain.
    unshared: Markers,
}

struct Flight {
    key: Key,
    voided: u64,
    phase: watch::Sender<Phase>,
    waiters: AtomicUsize,
    failures: AtomicUsize,
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
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            table: Mutex::default(),
            metrics,
            stored: Stripes::new(),
            voided: Stripes::new(),
            orders: (0..STRIPES).map(|_| Mutex::default()).collect(),
            unshared: Markers::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>, BuildPrehashed>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be read before a lookup, and handed to [`join`](Self::join) after it.
    pub(super) fn stored(&self, key: &Key) -> u64 {
        self.stored.read(key)
    }

    pub(super) fn note_stored(&self, key: &Key) {
        self.stored.bump(key);
        self.unshared.clear(key);
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
        let _order = self.orders.get(stripe(primary)).map(|order| order.lock().unwrap_or_else(PoisonError::into_inner));
        step()
    }

    /// Leads or joins the fetch of `key`, after a lookup that began when [`stored`](Self::stored) was `seen`. A fetch
    /// that is older than the last invalidation of the URL is left to those who wait for it already.
    pub(super) fn join(self: &Arc<Self>, key: &Key, primary: &Key, seen: u64) -> Join {
        if self.unshared.holds(key, Instant::now()) {
            return Join::Unshared;
        }
        let mut table = self.lock();
        let voided = self.voided(primary);
        if let Some(flight) = table.get(key).filter(|flight| flight.voided == voided) {
            if matches!(*flight.phase.borrow(), Phase::Vacant) {
                return Join::Lead(self.seat(flight));
            }
            if flight.waiters.load(Ordering::Relaxed) >= MAX_WAITERS {
                return Join::Full;
            }
            return Join::Wait(self.ticket(flight));
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
            phase: watch::Sender::new(Phase::Running),
            waiters: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            audience: Arc::default(),
        });
        table.insert(key.clone(), flight.clone());
        Join::Lead(self.seat(&flight))
    }

    fn seat(self: &Arc<Self>, flight: &Arc<Flight>) -> Seat {
        flight.phase.send_replace(Phase::Running);
        Seat { flights: self.clone(), flight: flight.clone(), taken: true }
    }

    fn ticket(self: &Arc<Self>, flight: &Arc<Flight>) -> Ticket {
        flight.waiters.fetch_add(1, Ordering::Relaxed);
        self.metrics.waiter_came();
        let listener = flight.audience.listen();
        Ticket { phase: flight.phase.subscribe(), flights: self.clone(), flight: flight.clone(), listener }
    }
}

impl Flight {
    fn leave_table(self: &Arc<Self>, table: &mut HashMap<Key, Arc<Self>, BuildPrehashed>) {
        if table.get(&self.key).is_some_and(|listed| Arc::ptr_eq(listed, self)) {
            table.remove(&self.key);
        }
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
        self.flight.phase.send_replace(Phase::Streaming(stream));
    }

    /// All of it is there. The flight stays until it is [stored](Self::land), so that nobody slips in between.
    pub(super) fn complete(&self, stream: Arc<Stream>, entry: Arc<Entry>) {
        self.flight.phase.send_replace(Phase::Complete(stream, entry));
    }

    /// It is stored, or could not be.
    pub(super) fn land(mut self) {
        self.taken = false;
        self.flight.leave_table(&mut self.flights.lock());
    }

    /// The response is not for sharing: sends everybody on their own way, also those who come in the next while.
    pub(super) fn refuse(self) {
        self.flights.unshared.mark(&self.flight.key, Instant::now());
        self.release();
    }

    /// Sends everybody on their own way.
    pub(super) fn release(mut self) {
        self.taken = false;
        let mut table = self.flights.lock();
        self.flight.leave_table(&mut table);
        self.flight.phase.send_replace(Phase::Released);
    }

    /// Somebody else may try, if somebody waits.
    pub(super) fn fail(self) {}
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.taken {
            return;
        }
        let mut table = self.flights.lock();
        if matches!(*self.flight.phase.borrow(), Phase::Complete(..)) {
            // Everybody has the response; only storing it was given up.
            return self.flight.leave_table(&mut table);
        }
        let failures = self.flight.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let last = failures > MAX_SUCCESSORS || self.flight.waiters.load(Ordering::Relaxed) == 0;
        if last {
            self.flight.leave_table(&mut table);
        }
        self.flight.phase.send_replace(if last { Phase::Failed } else { Phase::Vacant });
    }
}

/// A place among those who wait.
pub(super) struct Ticket {
    phase: watch::Receiver<Phase>,
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    listener: Listener,
}

impl Ticket {
    pub(super) fn phase(&mut self) -> Phase {
        self.phase.borrow_and_update().clone()
    }

    /// Waits for the next phase. `false`: it did not come by the deadline.
    pub(super) async fn changed_by(&mut self, deadline: Instant) -> bool {
        matches!(tokio::time::timeout_at(deadline, self.phase.changed()).await, Ok(Ok(())))
    }

    /// Takes over a vacant fetch, unless another was first.
    pub(super) fn claim(&self) -> Option<Seat> {
        let _table = self.flights.lock();
        let vacant = matches!(*self.flight.phase.borrow(), Phase::Vacant);
        vacant.then(|| self.flights.seat(&self.flight))
    }

    pub(super) fn listener(&self) -> Listener {
        self.listener.another()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.flights.metrics.waiter_left();
        let mut table = self.flights.lock();
        let last = self.flight.waiters.fetch_sub(1, Ordering::Relaxed) == 1;
        if last && matches!(*self.flight.phase.borrow(), Phase::Vacant) {
            self.flight.leave_table(&mut table);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Extensions, HeaderMap};

    use super::*;

    fn flights() -> Arc<Flights> {
        Arc::new(Flights::new(Arc::new(Metrics::new())))
    }

    fn key(path: &str) -> Key {
        let headers = HeaderMap::from_iter([(http::header::HOST, "a".parse().unwrap())]);
        Key::primary(&path.parse().unwrap(), &headers, &Extensions::new()).unwrap()
    }

    fn lead(flights: &Arc<Flights>, key: &Key) -> Seat {
        match flights.join(key, key, flights.stored(key)) {
            Join::Lead(seat) => seat,
            _ => panic!("nobody else is there"),
        }
    }

    fn response() -> (Arc<Stream>, Arc<Entry>) {
        let now = std::time::SystemTime::now();
        let head = Arc::new(crate::cache::entry::tests::head(now, now));
        let budget = Arc::new(crate::cache::log::Budget::new(0));
        let log = crate::cache::log::Writer::new(budget.reserve(0).unwrap(), 0).log().clone();
        let entry = Entry { head: head.clone(), body: bytes::Bytes::new() };
        (Arc::new(Stream { head, variant: None, log, length: None, since: Instant::now(), voided: 0 }), Arc::new(entry))
    }

    fn wait(flights: &Arc<Flights>, key: &Key) -> Ticket {
        match flights.join(key, key, flights.stored(key)) {
            Join::Wait(ticket) => ticket,
            _ => panic!("somebody leads"),
        }
    }

    #[test]
    fn a_lookup_older_than_the_last_store_is_repeated() {
        let (flights, key) = (flights(), key("/"));
        let seen = flights.stored(&key);
        let seat = lead(&flights, &key);
        flights.note_stored(&key);
        seat.land();
        assert!(matches!(flights.join(&key, &key, seen), Join::LookAgain));
        assert!(flights.lock().is_empty());
    }

    #[test]
    fn nothing_stays_when_everybody_leaves() {
        let (flights, key) = (flights(), key("/"));
        lead(&flights, &key).fail();
        assert!(flights.lock().is_empty(), "a failure that nobody waits for");
        let seat = lead(&flights, &key);
        let (first, second) = (wait(&flights, &key), wait(&flights, &key));
        drop(seat);
        drop(first);
        assert_eq!(flights.lock().len(), 1);
        drop(second);
        assert!(flights.lock().is_empty(), "a vacancy that nobody waits for");
    }

    #[test]
    fn who_waits_for_a_complete_response_keeps_it_when_storing_is_given_up() {
        let (flights, key) = (flights(), key("/"));
        let seat = lead(&flights, &key);
        let mut ticket = wait(&flights, &key);
        let (stream, entry) = response();
        seat.complete(stream, entry);
        drop(seat);
        assert!(matches!(ticket.phase(), Phase::Complete(..)));
        assert!(flights.lock().is_empty());
    }

    #[test]
    fn one_successor_is_elected_twice_at_most() {
        let (flights, key) = (flights(), key("/"));
        let mut seat = lead(&flights, &key);
        let mut waiting = [wait(&flights, &key), wait(&flights, &key)];
        for _ in 0..MAX_SUCCESSORS {
            drop(seat);
            assert!(waiting.iter_mut().all(|ticket| matches!(ticket.phase(), Phase::Vacant)));
            seat = waiting[0].claim().unwrap();
            assert!(waiting[1].claim().is_none());
        }
        drop(seat);
        assert!(waiting.iter_mut().all(|ticket| matches!(ticket.phase(), Phase::Failed)));
        assert!(flights.lock().is_empty());
    }

    #[test]
    fn flights_and_waiters_are_bounded() {
        let flights = flights();
        let seats: Vec<_> = (0..MAX_FLIGHTS).map(|n| lead(&flights, &key(&format!("/{n}")))).collect();
        assert!(matches!(flights.join(&key("/x"), &key("/x"), flights.stored(&key("/x"))), Join::Full));
        let popular = key("/0");
        let tickets: Vec<_> = (0..MAX_WAITERS).map(|_| wait(&flights, &popular)).collect();
        assert!(matches!(flights.join(&popular, &popular, flights.stored(&popular)), Join::Full));
        drop((seats, tickets));
        assert!(flights.lock().is_empty());
    }
}
