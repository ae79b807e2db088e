//! All clients that are being asked for, or have tokens.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::super::metrics::{Answered, Metrics};
use super::super::super::partition::Partition;
use super::super::super::time::Time;
use super::super::super::verdict::Verdict;
use super::super::lease::{Lease, Lot};
use super::flight::{Crew, Flight, Granted, Trip, Turn};
use super::waiter::{Answer, Waiter, Waiting};
use crate::redis::Kind;

const SHARDS: usize = 64;
/// 4096 clients in all, at some 200 bytes.
const CLIENTS_PER_SHARD: usize = 64;

/// Who keeps the accounts: Redis, with the deny cache and the table of this process.
pub(super) trait Books: Send + Sync + 'static {
    type Grant: Granted + Send + 'static;

    /// No question waits longer.
    fn budget(&self) -> Duration;

    fn take(&self, key: Key, wanted: u32) -> impl Future<Output = Result<Self::Grant, Kind>> + Send;

    fn refund(&self, key: Key, times: u32) -> impl Future<Output = Result<(), Kind>> + Send;

    /// So many requests were admitted.
    fn admitted(&self, key: Key, times: u32, now: u64);

    fn refused(&self, key: Key, verdict: &Verdict, now: u64);

    /// What is refused without a trip.
    fn known_refusal(&self, key: Key, now: u64) -> Option<Verdict>;

    /// What was refused before no longer counts.
    fn forget(&self, client: Partition);
}

/// Whose checks go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) client: Partition,
    pub(super) cost: u32,
}

pub(super) struct Board<B: Books> {
    pub(super) books: B,
    pub(super) time: Time,
    pub(super) metrics: Arc<Metrics>,
    pub(super) lease: Option<Lease>,
    /// Whether a task is giving back tokens.
    pub(super) sweeping: AtomicBool,
    waiting: Waiting,
    /// How often handles have changed something: what a trip brings that began before is out of date.
    changes: AtomicU64,
    /// Keyed at random, so that nobody can choose addresses that meet in one shard.
    hasher: RandomState,
    shards: Vec<Mutex<Shard<B::Grant>>>,
}

struct Shard<G> {
    flights: HashMap<Key, Flight<Waiter, G>>,
    /// How many there have been.
    trips: u64,
}

/// What a request without a token is to do.
pub(super) enum Way {
    /// Ask by itself; too many others are under way.
    Alone,
    /// Ask by itself, and see that somebody goes on for those who came meanwhile.
    Lead(Trip),
    /// Send somebody, and wait.
    Send(Trip, oneshot::Receiver<Answer>),
    Wait(Trip, oneshot::Receiver<Answer>),
}

/// How many changes there had been when a trip began.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Seen(u64);

impl<B: Books> Board<B> {
    pub(super) fn new(books: B, lease: Option<Lease>, time: Time, metrics: Arc<Metrics>) -> Self {
        Self {
            books,
            time,
            metrics,
            lease,
            sweeping: AtomicBool::new(false),
            waiting: Waiting::default(),
            changes: AtomicU64::new(0),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::new(Shard { flights: HashMap::new(), trips: 0 })).collect(),
        }
    }

    /// Answers by a token, if there is one.
    pub(super) fn token(&self, key: Key, now: u64) -> Option<Verdict> {
        let lease = self.lease?;
        let mut shard = self.shard(key.client)?;
        let verdict = shard.flights.get_mut(&key)?.token(lease, now)?;
        drop(shard);
        self.books.admitted(key, 1, now);
        self.metrics.answered(Answered::Leased);
        Some(verdict)
    }

    /// Tokens are used, and taken, only where `trusted`.
    pub(super) fn join(&self, key: Key, trusted: bool) -> Way {
        let now = self.now();
        let Some(mut shard) = self.shard(key.client) else { return Way::Alone };
        let trip = shard.next_trip();
        let Some(flight) = self.entry(&mut shard, key, now) else { return Way::Alone };
        let turn = flight.join(trip, self.lease, trusted, now);
        if matches!(turn, Turn::Go) {
            return Way::Lead(trip);
        }
        match (turn, self.waiting.place()) {
            (Turn::Wait(_), None) => Way::Alone,
            (_, None) => Way::Lead(trip),
            (turn, Some((waiter, answer))) => {
                flight.wait(waiter);
                match turn {
                    Turn::Wait(away) => Way::Wait(away, answer),
                    _ => Way::Send(trip, answer),
                }
            }
        }
    }

    /// Those who go after `trip`. `None`: nobody waits, and no trip is under way any more; or others have taken over.
    pub(super) fn crew(&self, key: Key, mut trip: Trip) -> Option<Crew<Waiter>> {
        loop {
            let now = self.now();
            let mut shard = self.shard(key.client)?;
            let next = shard.next_trip();
            let flight = shard.flight(key, trip)?;
            let mut crew = flight.board(next, self.lease, now);
            if crew.waiters.is_empty() {
                if self.lease.is_none() {
                    shard.flights.remove(&key);
                }
                return None;
            }
            trip = next;
            drop(shard);
            crew.waiters.retain(|waiter| !waiter.is_gone());
            // The trip before may have spent the last of the quota.
            let known = crew.trusted.then(|| self.books.known_refusal(key, self.time.now())).flatten();
            match known {
                Some(verdict) => crew.waiters.into_iter().for_each(|waiter| waiter.tell(Ok(verdict))),
                None if crew.waiters.is_empty() => {}
                None => return Some(crew),
            }
        }
    }

    /// Takes over from whoever went on `trip`, if that is still under way.
    pub(super) fn depose(&self, key: Key, trip: Trip) -> Option<Trip> {
        let mut shard = self.shard(key.client)?;
        let next = shard.next_trip();
        shard.flight(key, trip)?.depose(next);
        Some(next)
    }

    /// Those who wait while `trip` is under way, because nobody will go for them.
    pub(super) fn disband(&self, key: Key, trip: Trip) -> Vec<Waiter> {
        let Some(mut shard) = self.shard(key.client) else { return Vec::new() };
        shard.flight(key, trip).map(Flight::disband).unwrap_or_default()
    }

    /// The same, and nobody goes for others any more.
    pub(super) fn end(&self, key: Key, trip: Trip) -> Vec<Waiter> {
        let Some(mut shard) = self.shard(key.client) else { return Vec::new() };
        let Some(left) = shard.flight(key, trip).map(Flight::end) else { return Vec::new() };
        if self.lease.is_none() {
            shard.flights.remove(&key);
        }
        left
    }

    pub(super) fn seen(&self) -> Seen {
        Seen(self.changes.load(Ordering::Acquire))
    }

    /// What the first `going` requests of a grant have meant for the accounts.
    pub(super) fn settle(&self, key: Key, grant: &B::Grant, going: u32, seen: Seen) {
        let now = self.time.now();
        let admitted = grant.granted().min(going);
        if admitted > 0 {
            self.books.admitted(key, admitted, now);
        }
        // Whoever has just spent its quota will be refused as well. But tokens in hand are worth asking for.
        let next = grant.verdict(grant.granted());
        let is_spent = grant.granted() <= going && !next.wait.is_zero();
        if is_spent && seen == self.seen() {
            self.books.refused(key, &next, now);
            // Whoever changes something says so here first, and then forgets what was refused.
            if seen != self.seen() {
                self.books.forget(key.client);
            }
        }
    }

    /// Keeps tokens, of which those who wait for the next trip get theirs. Whether there are any.
    pub(super) fn put(&self, key: Key, lot: Lot<B::Grant>, seen: Seen) -> bool {
        if lot.next >= lot.end {
            return false;
        }
        let now = self.time.now();
        let Some(mut shard) = self.shard(key.client) else { return false };
        if seen != self.seen() {
            return false;
        }
        let Some(flight) = shard.flights.get_mut(&key) else { return false };
        let served = flight.put(lot, now, Waiter::is_gone);
        drop(shard);
        let times = served.iter().filter(|(_, verdict)| verdict.is_some()).count();
        if times > 0 {
            self.books.admitted(key, u32::try_from(times).unwrap_or(u32::MAX), now);
        }
        for (waiter, verdict) in served {
            if let Some(verdict) = verdict {
                waiter.tell(Ok(verdict));
            }
        }
        true
    }

    pub(super) fn void(&self, client: Partition) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        let Some(mut shard) = self.shard(client) else { return };
        shard.flights.iter_mut().filter(|(key, _)| key.client == client).for_each(|(_, flight)| flight.void());
    }

    pub(super) fn void_all(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        for shard in &self.shards {
            lock(shard).flights.values_mut().for_each(Flight::void);
        }
    }

    /// Tokens to give back, which are then forgotten here; and so are clients that ask no more.
    pub(super) fn expired(&self, now: u64) -> Vec<(Key, u32)> {
        let mut expired = Vec::new();
        for shard in &self.shards {
            lock(shard).flights.retain(|key, flight| {
                let times = flight.expire(now);
                if times > 0 {
                    expired.push((*key, times));
                }
                !flight.is_idle(self.lease, now)
            });
        }
        expired
    }

    pub(super) fn holds_tokens(&self) -> bool {
        self.shards.iter().any(|shard| lock(shard).flights.values().any(Flight::holds_tokens))
    }

    /// Only demand and tokens ask for the time.
    fn now(&self) -> u64 {
        self.lease.map_or(0, |_| self.time.now())
    }

    fn shard(&self, client: Partition) -> Option<MutexGuard<'_, Shard<B::Grant>>> {
        let at = usize::try_from(self.hasher.hash_one(client) % (SHARDS as u64)).ok()?;
        self.shards.get(at).map(lock)
    }

    /// The client's entry. `None`: there are too many others.
    fn entry<'a>(
        &self,
        shard: &'a mut Shard<B::Grant>,
        key: Key,
        now: u64,
    ) -> Option<&'a mut Flight<Waiter, B::Grant>> {
        let flights = &mut shard.flights;
        if flights.len() >= CLIENTS_PER_SHARD && !flights.contains_key(&key) {
            let mut idle =
                flights.iter_mut().filter_map(|(key, flight)| flight.is_idle(self.lease, now).then_some(*key));
            let idle = idle.next()?;
            flights.remove(&idle);
        }
        Some(flights.entry(key).or_insert_with(Flight::new))
    }
}

impl<G: Granted> Shard<G> {
    fn next_trip(&mut self) -> Trip {
        self.trips += 1;
        Trip(self.trips)
    }

    /// The client that `trip` is under way for.
    fn flight(&mut self, key: Key, trip: Trip) -> Option<&mut Flight<Waiter, G>> {
        self.flights.get_mut(&key).filter(|flight| flight.is_away(trip))
    }
}

/// A panic elsewhere leaves nothing half done here.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
impl<B: Books> Board<B> {
    pub(super) fn clients(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).flights.len()).sum()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.count()
    }
}
