//! What the limiter counts.

use crate::meter::{Counter, Counters, Meter};

const DECISIONS: Meter = Meter::new(
    "rate_limit_decisions_total",
    "Requests by what the rate limiter decided; degraded: in process, because Redis did not answer",
);
const EVICTIONS: Meter = Meter::new(
    "rate_limit_table_evictions_total",
    "Clients that took the slot of one still in debt, and inherited that debt: the table is too small",
);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Admitted,
    Refused,
    AdmittedDegraded,
    RefusedDegraded,
    PeerUnknown,
}

impl Decision {
    /// In the order of the variants.
    const WORDS: [&str; 5] = ["admitted", "refused", "admitted_degraded", "refused_degraded", "peer_unknown"];

    pub(crate) fn of(admitted: bool, degraded: bool) -> Self {
        match (admitted, degraded) {
            (true, false) => Self::Admitted,
            (false, false) => Self::Refused,
            (true, true) => Self::AdmittedDegraded,
            (false, true) => Self::RefusedDegraded,
        }
    }
}

pub(crate) struct Metrics {
    decisions: Counters<5>,
    pub(crate) evictions: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self { decisions: Counters::new(DECISIONS, "decision", Decision::WORDS), evictions: Counter::new(EVICTIONS) }
    }

    pub(crate) fn count(&self, decision: Decision) {
        self.decisions.count(decision as usize);
    }
}
