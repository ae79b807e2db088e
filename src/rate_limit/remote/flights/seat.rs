//! Who goes, and on whose behalf.
//!
//! A request that finds nobody under way asks for itself, as part of its own future: measured, that costs some 40 ns more
//! than without all this, and a task of its own some 600 ns. Those who come meanwhile are asked for by a task, one trip
//! after the other until nobody waits any more, so that no request's end can hold up others.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::super::super::question::Unanswered;
use super::super::lease::{Lease, Lot};
use super::board::{Board, Books, Key};
use super::flight::{Crew, Granted, Trip};
use super::sweep;
use super::waiter::{Answer, Waiter};
use crate::redis::Kind;

/// The duty to go for those who wait for a client's next trip. Where it is not fulfilled, since the runtime ends or the
/// task panics, they are told at once that nobody will.
pub(super) struct Seat<B: Books> {
    board: Arc<Board<B>>,
    key: Key,
    /// `None`: it is over.
    trip: Option<Trip>,
}

impl<B: Books> Seat<B> {
    pub(super) fn new(board: &Arc<Board<B>>, key: Key, trip: Trip) -> Self {
        Self { board: board.clone(), key, trip: Some(trip) }
    }

    /// For whoever has waited for `trip` in vain: so long takes none that is still being made. Its future is kept
    /// somewhere and not polled, or its event loop stands still.
    pub(super) fn take_over(board: &Arc<Board<B>>, key: Key, trip: Trip) {
        if let Some(next) = board.depose(key, trip) {
            Self::new(board, key, next).send();
        }
    }

    /// Sends a task on its way, if anybody waits.
    pub(super) fn send(mut self) {
        let Some(crew) = self.crew() else { return };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.drive(crew));
        }
    }

    async fn drive(mut self, mut crew: Crew<Waiter>) {
        loop {
            self.go(crew).await;
            crew = match self.crew() {
                Some(next) => next,
                None => return,
            };
        }
    }

    fn crew(&mut self) -> Option<Crew<Waiter>> {
        let crew = self.board.crew(self.key, self.trip?);
        self.trip = crew.as_ref().map(|crew| crew.trip);
        crew
    }

    /// One trip.
    async fn go(&self, crew: Crew<Waiter>) {
        let Self { board, key, .. } = self;
        let going = u32::try_from(crew.waiters.len()).unwrap_or(u32::MAX);
        let (seen, sent) = (board.seen(), board.time.now());
        let grant = match board.books.take(*key, going.saturating_add(crew.tokens)).await {
            Ok(grant) => grant,
            Err(kind) => {
                tell_all(crew.waiters, kind);
                return self.failed(kind);
            }
        };
        board.settle(*key, &grant, going, seen);
        for (nth, waiter) in (0..).zip(crew.waiters) {
            waiter.tell(Ok(grant.verdict(nth)));
        }
        let until = sent.saturating_add(board.lease.map_or(0, Lease::life));
        let end = grant.granted();
        if board.put(*key, Lot { grant, next: going, end, until }, seen) {
            sweep::start(board);
        }
    }

    /// A trip has failed. Where the next would fail as well, nobody goes for those who wait.
    pub(super) fn failed(&self, kind: Kind) {
        if let Some(trip) = self.trip.filter(|_| kind != Kind::Refused) {
            tell_all(self.board.disband(self.key, trip), kind);
        }
    }
}

impl<B: Books> Drop for Seat<B> {
    fn drop(&mut self) {
        if let Some(trip) = self.trip {
            drop(self.board.end(self.key, trip));
        }
    }
}

/// The seat of a request that asks for itself. When it ends, however it does, somebody goes on.
pub(super) struct Lead<B: Books>(pub(super) Option<Seat<B>>);

impl<B: Books> Lead<B> {
    pub(super) fn failed(&self, kind: Kind) {
        if let Some(seat) = &self.0 {
            seat.failed(kind);
        }
    }
}

impl<B: Books> Drop for Lead<B> {
    fn drop(&mut self) {
        if let Some(seat) = self.0.take() {
            seat.send();
        }
    }
}

fn tell_all(waiters: Vec<Waiter>, kind: Kind) {
    waiters.into_iter().for_each(|waiter| waiter.tell(unanswered(kind)));
}

pub(super) fn unanswered(kind: Kind) -> Answer {
    Err(Unanswered { timed_out: kind == Kind::Timeout })
}
