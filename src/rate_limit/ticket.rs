//! What an admitted request was charged, until its outcome is known.

use std::sync::Arc;

use super::gate::Gate;
use super::limiter::Share;
use super::outcome::Outcome;
use super::partition::Partition;
use super::shared::Shared;

/// Where a request was charged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Paid {
    /// With a part of the quota, of which everything costs more.
    Here(Share),
    /// And here, where the debt is known for the time that Redis is not.
    Redis,
}

/// Given back at most once: when the outcome is one that does not count, or, if the layer says so, when there is none.
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    client: Partition,
    cost: u32,
    paid: Paid,
    open: bool,
}

impl Ticket {
    /// `None`: nothing was charged, or every outcome counts, so nothing will be given back.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        gate: &Arc<Gate>,
        client: Partition,
        cost: u32,
        paid: Option<Paid>,
    ) -> Option<Self> {
        let paid = paid.filter(|_| shared.counts.is_some() || shared.refund_abandoned)?;
        Some(Self { shared: shared.clone(), gate: gate.clone(), client, cost, paid, open: true })
    }

    /// The inner service has answered, or failed.
    pub(crate) fn settle(mut self, outcome: &Outcome<'_>) {
        self.open = false;
        let counts = self.shared.counts.as_ref().is_none_or(|counts| counts(outcome));
        if !counts {
            self.give_back();
        }
    }

    fn give_back(&self) {
        self.gate.refund(self.client, self.cost, self.paid, self.shared.time.now());
    }
}

/// The client left, or the handler panicked.
impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open && self.shared.refund_abandoned {
            self.give_back();
        }
    }
}
