//! What the limiter counts.

use super::verdict;
use crate::meter::{Counter, Counters, Level, Meter};

const DECISIONS: Meter = Meter::new(
    "rate_limit_decisions_total",
    "Requests by what the rate limiter decided; degraded: in process, because Redis did not answer",
);

#[cfg(feature = "redis")]
const ANSWERS: Meter = Meter::new(
    "rate_limit_redis_requests_total",
    "Requests that a Redis is to decide on, by where the answer came from",
);

#[cfg(feature = "redis")]
pub(crate) const REFUNDS_LOST: Meter = Meter::new(
    "rate_limit_refunds_lost_total",
    "Charges that should have been given back in Redis and stay counted: too many at once, or Redis did not answer",
);

#[cfg(feature = "redis")]
pub(crate) const CHANGES_MISSED: Meter = Meter::new(
    "rate_limit_changes_missed_total",
    "Times that an instance had missed what handles changed elsewhere, and forgot what it knew of clients",
);

const EVICTIONS: Meter = Meter::new(
    "rate_limit_table_evictions_total",
    "Clients that lost their slot in the rate limiter's table to another one while still in debt",
);

const OCCUPANCY: Meter = Meter::new(
    "rate_limit_table_occupancy_ratio",
    "Share of slots in use in the fullest table of a policy, sampled while there are requests",
);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Admitted,
    Refused,
    RefusedInherited,
    RefusedBlocked,
    Shadowed,
    AdmittedDegraded,
    RefusedDegraded,
    Skipped,
    PeerUnknown,
}

impl Decision {
    /// In the order of the variants.
    const WORDS: [&str; 9] = [
        "admitted",
        "refused",
        "refused_inherited",
        "refused_blocked",
        "shadowed",
        "admitted_degraded",
        "refused_degraded",
        "skipped",
        "peer_unknown",
    ];

    pub(crate) fn of(decision: verdict::Decision, degraded: bool) -> Self {
        match (decision, degraded) {
            (verdict::Decision::Admitted, false) => Self::Admitted,
            (verdict::Decision::Admitted, true) => Self::AdmittedDegraded,
            (_, true) => Self::RefusedDegraded,
            (verdict::Decision::Refused, false) => Self::Refused,
            (verdict::Decision::Inherited, false) => Self::RefusedInherited,
            (verdict::Decision::Blocked, false) => Self::RefusedBlocked,
        }
    }
}

/// Where an answer came from that is Redis's to give.
#[cfg(feature = "redis")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// Known here: the client was refused before, or owes too much to this instance alone.
    Denied,
    /// By a token on lease.
    Leased,
    /// By a trip that others had to make as well.
    Merged,
    /// By a trip of its own.
    Asked,
    /// From nowhere.
    Unanswered,
}

#[cfg(feature = "redis")]
impl Answered {
    /// In the order of the variants.
    const WORDS: [&str; 5] = ["denied", "leased", "merged", "asked", "unanswered"];
}

pub(crate) struct Metrics {
    decisions: Counters<9>,
    #[cfg(feature = "redis")]
    answers: Counters<5>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            decisions: Counters::new(DECISIONS, "decision", Decision::WORDS),
            #[cfg(feature = "redis")]
            answers: Counters::new(ANSWERS, "answered", Answered::WORDS),
        }
    }

    pub(crate) fn count(&self, decision: Decision) {
        self.decisions.count(decision as usize);
    }

    #[cfg(feature = "redis")]
    pub(crate) fn answered(&self, answered: Answered) {
        self.answers.count(answered as usize);
    }
}

/// Of the tables of one policy.
pub(crate) struct TableMetrics {
    pub(crate) evictions: Counter,
    pub(crate) occupancy: Level,
}

impl TableMetrics {
    pub(crate) fn new(policy: &'static str) -> Self {
        Self { evictions: Counter::new(EVICTIONS), occupancy: Level::new(OCCUPANCY, "policy", policy) }
    }
}
