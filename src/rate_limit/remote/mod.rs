//! The decision of a policy, through Redis, for all instances together.
//!
//! 1. The truth is one string per client (and one per tier that the client belongs to, in the same hash slot): the TATs of
//!    all quotas of the policy, packed, in whole microseconds of Redis's own clock. `take.lua` decides on all of them at
//!    once, all or nothing, line by line as `gcra.rs` does; `settle.lua` gives back, charges, blocks and forgets. A key
//!    expires when its debt is paid. The key names the policy and its quotas as they were built, so that other policies
//!    on the same Redis are apart; a client that is no address is named by its digest only.
//! 2. A trip is made once (`EVALSHA`, `EVAL` on `NOSCRIPT`) and never repeated: what timed out may still be charged later,
//!    and rightly so, since the fallback let its request through or refused it with good reason.
//! 3. What Redis admitted is owed in this process too (`Limiter::owe`): the fallback starts from there, and whoever makes
//!    Redis fail gets no second burst.
//! 4. Fewer trips, in this order: (a) tokens on lease (`lease.rs`) are used first, for they are charged already; (b) a
//!    client that Redis refused, or that has just spent its quota there, is refused here until it could be admitted, or
//!    others may have given back what it was charged (`deny.rs`, fixed size); (c) so is one that owes too much to this
//!    instance alone, unless a share of the quota makes requests dearer here while Redis is away; (d) checks of one
//!    client that come while one is under way go together in the next trip (`flights.rs`).
//! 5. (a), (b) and (c) are used only while this instance knows of all changes that handles made anywhere
//!    (`control.rs`): it asks for them every 750 ms while there is traffic, and what was not confirmed for 950 ms is not
//!    trusted. So a change reaches every instance within a second.
//!
//! It never waits longer than the handle's time budget per request, and never turns a failure of Redis into a refusal
//! unless the layer's fallback says so.

mod control;
mod deny;
mod flights;
mod lease;
mod ledger;

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

pub use lease::Lease;

use self::control::Control;
use self::deny::Denied;
use self::flights::Flights;
use self::ledger::Ledger;
use super::fallback::Choice;
use super::handle::Change;
use super::limiter::Share;
use super::local::Local;
use super::metrics::{Answered, Metrics};
use super::partition::Partition;
use super::question::Question;
use super::quota::Quota;
use super::time::Time;
use super::verdict::{Decision, Verdict};
use crate::redis::{Redis, StoreError};

/// For so long a refusal is remembered where other instances may give back what requests were charged.
const REFUNDED_AFTER: Duration = Duration::from_secs(1);

/// One policy, and the Redis that knows what every client owes of it.
pub(crate) struct Remote {
    ledger: Arc<Ledger>,
    denied: Arc<Denied>,
    flights: Arc<Flights>,
    control: Arc<Control>,
    /// Whether a request always costs here what it costs there.
    prices_agree: bool,
    metrics: Arc<Metrics>,
}

/// An answer, or the way to it.
pub(crate) enum Asked {
    /// Nobody has to be asked: this process knows.
    Known(Verdict),
    Pending(Question),
}

impl Remote {
    pub(crate) fn new(
        redis: Redis,
        local: Arc<Local>,
        lease: Option<Lease>,
        refunds: bool,
        fallback: Choice,
        time: &Time,
        metrics: &Arc<Metrics>,
    ) -> Arc<Self> {
        let ledger = Arc::new(Ledger::new(redis, local));
        let lives = [lease.map(|lease| lease.life), refunds.then_some(REFUNDED_AFTER)];
        let denied = Arc::new(Denied::new(ledger.limits().clone(), lives.into_iter().flatten().min()));
        let flights = Arc::new(Flights::new(ledger.clone(), denied.clone(), lease, time.clone(), metrics.clone()));
        let control = Arc::new(Control::new(ledger.clone(), denied.clone(), flights.clone(), time.clone()));
        let prices_agree = !matches!(fallback, Choice::Local(share) if share != Share::WHOLE);
        Arc::new(Self { ledger, denied, flights, control, prices_agree, metrics: metrics.clone() })
    }

    /// Whether this request has already waited for this Redis in vain.
    pub(crate) fn is_spent(&self, extensions: &Extensions) -> bool {
        self.ledger.redis.is_spent(extensions)
    }

    pub(crate) fn mark_spent(&self, extensions: &mut Extensions) {
        self.ledger.redis.mark_spent(extensions);
    }

    /// Charges `client` for a request of `cost`.
    pub(crate) fn ask(&self, client: Partition, cost: u32, now: u64) -> Asked {
        let trusted = self.control.is_current(now);
        if trusted {
            // What is charged already may be used, whatever the client owes.
            if let Some(verdict) = self.flights.token(client, cost, now) {
                return Asked::Known(verdict);
            }
            if let Some(verdict) = self.known_refusal(client, cost, now) {
                self.metrics.answered(Answered::Denied);
                return Asked::Known(verdict);
            }
        }
        Asked::Pending(self.flights.ask(client, cost, trusted))
    }

    fn known_refusal(&self, client: Partition, cost: u32, now: u64) -> Option<Verdict> {
        let here = || {
            let verdict = self.ledger.local.limiter.peek(client, cost, now);
            // An inherited debt is this table's business, not Redis's.
            (verdict.decision == Decision::Refused).then_some(verdict)
        };
        self.denied.get(client, cost, now).or_else(|| self.prices_agree.then(here).flatten())
    }

    /// Gives back what a request of `cost` was charged; in the background. The local debt is already given back.
    pub(crate) fn refund(&self, client: Partition, cost: u32) {
        self.control.refund(client, cost);
    }

    pub(crate) async fn peek(&self, client: Partition) -> Result<Verdict, StoreError> {
        Ok(self.ledger.take(client, 1, 0).await?.verdict(0))
    }

    /// Does to a client what a handle asks for, here and, within a second, everywhere.
    pub(crate) async fn change(&self, client: Partition, change: Change) -> Result<(), StoreError> {
        self.control.change(client, change).await
    }

    /// Replaces a quota here and, within a second, everywhere.
    pub(crate) async fn set_quota(&self, index: usize, quota: Quota) -> Result<(), StoreError> {
        self.control.set_quota(index, quota).await
    }
}
