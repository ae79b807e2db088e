//! Flights under the checker, with a cache in small around them.

use shuttle::future::{JoinHandle, block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};

use super::course::MAX_SUCCESSORS;
use super::tests::{flights, key, response};
use super::*;
use crate::cache::audience::Presence;
use crate::cache::checked::check;
use crate::cache::sync::{AtomicU64, Ordering};

/// A cache in small: what is stored is the origin's version.
struct World {
    flights: Arc<Flights>,
    key: Key,
    store: Mutex<Option<u64>>,
    version: AtomicU64,
    /// The last purge.
    epoch: AtomicU64,
    calls: AtomicU64,
    /// What becomes of a fetch.
    fate: fn() -> Fate,
    /// Whether a fetch gives way at each step; where it never does, it is preempted only as the schedule has it.
    yields: bool,
    seen: std::sync::Mutex<Vec<Seen>>,
}

/// A flight, how often it was led, whether it is led now, and whether its response was complete.
struct Seen {
    flight: Arc<Flight>,
    runs: usize,
    led: bool,
    complete: bool,
}

#[derive(Clone, Copy)]
enum Fate {
    Store,
    /// Dropped at the first, second, or third step; the last is after it is complete.
    Drop(u8),
    Refuse,
    Release,
}

fn stores() -> Fate {
    Fate::Store
}

fn anything() -> Fate {
    match thread_rng().gen_range(0..8) {
        0 | 1 => Fate::Store,
        2 => Fate::Refuse,
        3 => Fate::Release,
        step => Fate::Drop(step % 3 + 1),
    }
}

/// How a request ended.
#[derive(Debug, PartialEq)]
enum Ended {
    Got(u64),
    /// Its own fetch brought nothing.
    Gone,
    Alone,
    Refused,
}

impl World {
    fn new(fate: fn() -> Fate) -> Arc<Self> {
        Arc::new(Self {
            flights: flights(),
            key: key("/"),
            store: Mutex::default(),
            version: AtomicU64::new(1),
            epoch: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            fate,
            yields: thread_rng().gen_bool(0.5),
            seen: std::sync::Mutex::default(),
        })
    }

    async fn ask(self: Arc<Self>) -> Ended {
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let seen = self.flights.stored(&self.key);
            if let Some(version) = *lock(&self.store) {
                return Ended::Got(version);
            }
            match self.flights.join(&self.key, &self.key, seen, epoch) {
                Join::Lead(seat) => return self.lead(seat).await,
                Join::Wait(ticket) => return self.follow(ticket).await,
                Join::Unshared => return Ended::Alone,
                Join::LookAgain => {}
                Join::Full => unreachable!("few ask"),
            }
        }
    }

    async fn follow(&self, mut ticket: Ticket) -> Ended {
        loop {
            match ticket.phase() {
                Phase::Running => {}
                Phase::Vacant => {
                    if let Some(seat) = ticket.claim() {
                        drop(ticket);
                        return self.lead(seat).await;
                    }
                }
                Phase::Streaming(stream) => return Ended::Got(stream.voided),
                Phase::Complete(landed) => return Ended::Got(landed.voided),
                Phase::Released => return Ended::Alone,
                Phase::Failed => {
                    assert_eq!(self.runs(&ticket.flight), MAX_SUCCESSORS + 1, "others were to try");
                    return Ended::Refused;
                }
            }
            ticket.changed().await;
        }
    }

    async fn lead(&self, seat: Seat) -> Ended {
        let (voided, epoch) = (self.flights.voided(&self.key), self.epoch.load(Ordering::SeqCst));
        let led = Led::new(self, seat);
        let fate = (self.fate)();
        self.calls.fetch_add(1, Ordering::SeqCst);
        let version = self.version.load(Ordering::SeqCst);
        self.step().await;
        match fate {
            Fate::Drop(1) => return Ended::Gone,
            Fate::Release => return led.end(Seat::release),
            Fate::Refuse => return led.end(Seat::refuse),
            _ => {}
        }
        let (stream, landed) = response_of(version);
        led.seat().stream(stream);
        self.step().await;
        if matches!(fate, Fate::Drop(2)) {
            return Ended::Gone;
        }
        led.seat().complete(landed);
        self.with(&led.seat().flight, |seen| seen.complete = true);
        self.step().await;
        if matches!(fate, Fate::Drop(3)) {
            return Ended::Got(version);
        }
        let stored = self.flights.in_order(&self.key, || {
            let valid = self.flights.voided(&self.key) == voided && self.epoch.load(Ordering::SeqCst) == epoch;
            if valid {
                *lock(&self.store) = Some(version);
            }
            valid
        });
        if stored {
            self.flights.note_stored(&self.key, true);
        }
        led.end(Seat::land);
        Ended::Got(version)
    }

    async fn step(&self) {
        if self.yields {
            yield_now().await;
        }
    }

    /// As after a request that changed the URL.
    fn invalidate(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.flights.in_order(&self.key, || {
            self.flights.note_voided(&self.key);
            *lock(&self.store) = None;
            self.flights.note_voided(&self.key);
        });
    }

    fn purge(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.flights.in_order(&self.key, || {
            self.epoch.fetch_add(1, Ordering::SeqCst);
            *lock(&self.store) = None;
        });
    }

    fn runs(&self, flight: &Arc<Flight>) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().find(|seen| Arc::ptr_eq(&seen.flight, flight)).map_or(0, |seen| seen.runs)
    }

    fn with<R>(&self, flight: &Arc<Flight>, step: impl FnOnce(&mut Seen) -> R) -> R {
        let mut seen = self.seen.lock().unwrap();
        let at = seen.iter().position(|seen| Arc::ptr_eq(&seen.flight, flight)).unwrap_or_else(|| {
            seen.push(Seen { flight: flight.clone(), runs: 0, led: false, complete: false });
            seen.len() - 1
        });
        step(&mut seen[at])
    }

    /// When everybody has gone, nothing is left.
    fn assert_still(&self) {
        assert!(self.flights.is_empty(), "a flight stays");
        for seen in &*self.seen.lock().unwrap() {
            assert!(!seen.led && seen.runs <= MAX_SUCCESSORS + 1);
            assert_eq!(seen.flight.course.look(|course| course.waiters), 0);
            assert!(seen.flight.audience.look(Presence::empty).is_some());
        }
    }
}

/// A seat, with the proof that there is no other.
struct Led<'a> {
    world: &'a World,
    seat: Option<Seat>,
}

impl<'a> Led<'a> {
    fn new(world: &'a World, seat: Seat) -> Self {
        let age = |flight: &Flight| (flight.voided, flight.epoch);
        let rival = |seen: &Seen| seen.led && age(&seen.flight) == age(&seat.flight);
        assert!(!world.seen.lock().unwrap().iter().any(rival), "two lead at once");
        world.with(&seat.flight, |seen| {
            assert!(!seen.complete, "the response was there");
            (seen.led, seen.runs) = (true, seen.runs + 1);
            assert!(seen.runs <= MAX_SUCCESSORS + 1, "a third successor");
        });
        Self { world, seat: Some(seat) }
    }

    fn seat(&self) -> &Seat {
        self.seat.as_ref().unwrap()
    }

    fn end(mut self, end: fn(Seat)) -> Ended {
        let seat = self.take().unwrap();
        end(seat);
        Ended::Gone
    }

    fn take(&mut self) -> Option<Seat> {
        let seat = self.seat.take()?;
        self.world.with(&seat.flight, |seen| seen.led = false);
        Some(seat)
    }
}

impl Drop for Led<'_> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

fn response_of(version: u64) -> (Arc<Stream>, Arc<Landed>) {
    let (stream, landed) = response();
    let Ok(landed) = Arc::try_unwrap(landed) else { unreachable!("nobody else has it") };
    let Ok(stream) = Arc::try_unwrap(stream) else { unreachable!("nobody else has it") };
    (Arc::new(Stream { voided: version, ..stream }), Arc::new(Landed { voided: version, ..landed }))
}

fn all_ask(world: &Arc<World>, requests: usize) -> Vec<JoinHandle<Ended>> {
    (0..requests).map(|_| spawn(world.clone().ask())).collect()
}

async fn join_all(requests: Vec<JoinHandle<Ended>>) -> Vec<Ended> {
    let mut ends = Vec::new();
    for request in requests {
        ends.extend(request.await.ok());
    }
    ends
}

#[test]
fn one_call_for_all() {
    check(|| {
        block_on(async {
            let world = World::new(stores);
            let ends = join_all(all_ask(&world, 4)).await;
            assert!(ends.iter().all(|end| *end == Ended::Got(1)), "{ends:?}");
            assert_eq!(world.calls.load(Ordering::SeqCst), 1);
            world.assert_still();
        });
    });
}

#[test]
fn whatever_becomes_of_a_fetch_nobody_is_stranded() {
    check(|| {
        block_on(async {
            let world = World::new(anything);
            join_all(all_ask(&world, 5)).await;
            world.assert_still();
        });
    });
}

#[test]
fn whoever_leaves_strands_nobody() {
    check(|| {
        block_on(async {
            let world = World::new(anything);
            let requests = all_ask(&world, 5);
            let changing = world.clone();
            let changed = spawn(async move { changing.invalidate() });
            for request in &requests {
                if thread_rng().gen_bool(0.5) {
                    yield_now().await;
                    request.abort();
                }
            }
            join_all(requests).await;
            changed.await.unwrap();
            world.assert_still();
        });
    });
}

#[test]
fn three_failures_are_the_end_and_all_hear_of_it() {
    check(|| {
        block_on(async {
            let world = World::new(|| Fate::Drop(1));
            let ends = join_all(all_ask(&world, 5)).await;
            assert!(ends.iter().all(|end| matches!(end, Ended::Gone | Ended::Refused)), "{ends:?}");
            world.assert_still();
        });
    });
}

/// After it nobody gets what is older, neither from the store nor from a fetch under way.
fn nothing_old_after(change: fn(&World)) {
    block_on(async {
        let world = World::new(stores);
        let requests = all_ask(&world, 3);
        let changing = world.clone();
        let changed = spawn(async move {
            change(&changing);
            changing.ask().await
        });
        assert_eq!(changed.await.unwrap(), Ended::Got(2));
        join_all(requests).await;
        assert_eq!(*lock(&world.store), Some(2));
        world.assert_still();
    });
}

#[test]
fn an_invalidation_ends_what_is_under_way() {
    check(|| nothing_old_after(World::invalidate));
}

#[test]
fn a_purge_ends_what_is_under_way() {
    check(|| nothing_old_after(World::purge));
}
