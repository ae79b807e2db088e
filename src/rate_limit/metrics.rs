//! What the limiter counts.

use crate::meter::{Counter, Meter};

const DECISIONS: Meter = Meter::new(
    "rate_limit_decisions_total",
    "Requests by what the rate limiter decided; degraded: in process, because Redis did not answer",
);
const EVICTIONS: Meter = Meter::new(
    "rate_limit_table_evictions_total",
    "Clients that took the slot of one still in debt, and inherited that debt: the table is too small",
);

pub(crate) struct Metrics {
    admitted: Counter,
    refused: Counter,
    admitted_degraded: Counter,
    refused_degraded: Counter,
    pub(crate) peer_unknown: Counter,
    pub(crate) evictions: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let decision = |decision| Counter::labelled(DECISIONS, "decision", decision);
        Self {
            admitted: decision("admitted"),
            refused: decision("refused"),
            admitted_degraded: decision("admitted_degraded"),
            refused_degraded: decision("refused_degraded"),
            peer_unknown: decision("peer_unknown"),
            evictions: Counter::new(EVICTIONS),
        }
    }

    pub(crate) fn decided(&self, admitted: bool, degraded: bool) {
        let counter = match (admitted, degraded) {
            (true, false) => &self.admitted,
            (false, false) => &self.refused,
            (true, true) => &self.admitted_degraded,
            (false, true) => &self.refused_degraded,
        };
        counter.increment(1);
    }
}
