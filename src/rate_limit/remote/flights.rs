//! Questions that go together, and tokens on lease.
//!
//! 1. For each client and cost one trip is under way. Those who come meanwhile wait, and go together in the next one, in
//!    the order in which they came; who has left before it starts is left out, and who leaves on the way stays charged.
//! 2. Nobody waits longer than the handle's time budget, waiting for the trip before included. A failure that the next
//!    trip would share ends the wait at once. Who has waited in vain for the same trip all the time takes over from
//!    whoever went: a future that is kept and not polled, or a blocked event loop, costs others one time budget.
//! 3. At most 4096 clients are told apart and 16 384 requests wait; others ask each by itself, so that nothing but a
//!    saving is lost.
//! 4. With a [`Lease`], a trip for a busy client brings tokens for later requests. It is made by a task that nobody can
//!    cancel: whoever asked may leave, and the tokens are there. Handles void tokens, and what a trip brings that began
//!    before they did.

mod board;
mod flight;
mod seat;
mod sweep;
mod waiter;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use self::board::{Board, Books, Key, Way};
use self::flight::{Granted, Trip};
use self::seat::{Lead, Seat, unanswered};
use self::waiter::Answer;
use super::super::metrics::{Answered, Metrics};
use super::super::partition::Partition;
use super::super::question::{Question, Unanswered};
use super::super::time::Time;
use super::super::verdict::Verdict;
use super::deny::Denied;
use super::lease::Lease;
use super::ledger::{Grant, Ledger};
use crate::redis::{Kind, Within};

pub(super) struct Flights(Arc<Board<Accounts>>);

impl Flights {
    pub(super) fn new(
        ledger: Arc<Ledger>,
        denied: Arc<Denied>,
        lease: Option<Lease>,
        time: Time,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Board::new(Accounts { ledger, denied }, lease, time, metrics)))
    }

    /// Answers by a token on lease, if there is one.
    pub(super) fn token(&self, client: Partition, cost: u32, now: u64) -> Option<Verdict> {
        self.0.token(Key { client, cost }, now)
    }

    /// Asks Redis on behalf of a request, with others of its client if there are any. Tokens are taken only where
    /// `trusted`.
    pub(super) fn ask(&self, client: Partition, cost: u32, trusted: bool) -> Question {
        Box::pin(ask(self.0.clone(), Key { client, cost }, trusted))
    }

    /// Tokens on lease for this client are void: they are not used, and not given back. Call it before the deny cache
    /// forgets the client: a refusal that is under way is then not remembered.
    pub(super) fn void(&self, client: Partition) {
        self.0.void(client);
    }

    /// The same for all clients.
    pub(super) fn void_all(&self) {
        self.0.void_all();
    }
}

/// Asks by a trip, within the time budget. May be dropped at any point.
async fn ask<B: Books>(board: Arc<Board<B>>, key: Key, trusted: bool) -> Answer {
    let mut how = Answered::Asked;
    let answer = match board.join(key, trusted) {
        Way::Alone => alone(&board, key).await.or_else(unanswered),
        Way::Lead(trip) => {
            let lead = Lead(Some(Seat::new(&board, key, trip)));
            let answer = alone(&board, key).await;
            answer.or_else(|kind| {
                lead.failed(kind);
                unanswered(kind)
            })
        }
        Way::Send(trip, answer) => {
            Seat::new(&board, key, trip).send();
            wait(&board, key, trip, answer).await
        }
        Way::Wait(trip, answer) => {
            how = Answered::Merged;
            wait(&board, key, trip, answer).await
        }
    };
    board.metrics.answered(if answer.is_ok() { how } else { Answered::Unanswered });
    answer
}

async fn alone<B: Books>(board: &Board<B>, key: Key) -> Result<Verdict, Kind> {
    let seen = board.seen();
    let grant = board.books.take(key, 1).await?;
    board.settle(key, &grant, 1, seen);
    Ok(grant.verdict(0))
}

async fn wait<B: Books>(board: &Arc<Board<B>>, key: Key, trip: Trip, answer: oneshot::Receiver<Answer>) -> Answer {
    match Within::new(board.books.budget(), answer).await {
        Some(Ok(answer)) => answer,
        // Nobody went: the runtime of whoever was to go has ended.
        Some(Err(_)) => Err(Unanswered { timed_out: false }),
        None => {
            Seat::take_over(board, key, trip);
            unanswered(Kind::Timeout)
        }
    }
}

/// Redis, and what is known of it here.
struct Accounts {
    ledger: Arc<Ledger>,
    denied: Arc<Denied>,
}

impl Books for Accounts {
    type Grant = Grant;

    fn budget(&self) -> Duration {
        self.ledger.redis.budget()
    }

    async fn take(&self, key: Key, wanted: u32) -> Result<Grant, Kind> {
        self.ledger.take(key.client, key.cost, wanted).await.map_err(|error| error.kind())
    }

    async fn refund(&self, key: Key, times: u32) -> Result<(), Kind> {
        self.ledger.refund(key.client, key.cost, times).await.map_err(|error| error.kind())
    }

    fn admitted(&self, key: Key, times: u32, now: u64) {
        self.ledger.local.limiter.owe(key.client, key.cost.saturating_mul(times), now);
    }

    fn refused(&self, key: Key, verdict: &Verdict, now: u64) {
        self.denied.put(key.client, key.cost, now, verdict);
    }

    fn known_refusal(&self, key: Key, now: u64) -> Option<Verdict> {
        self.denied.get(key.client, key.cost, now)
    }

    fn forget(&self, client: Partition) {
        self.denied.forget(client);
    }
}

impl Granted for Grant {
    fn granted(&self) -> u32 {
        self.granted
    }

    fn verdict(&self, nth: u32) -> Verdict {
        self.verdict(nth)
    }
}
