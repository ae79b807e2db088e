//! What a decision says.

use std::time::Duration;

use super::policy::MAX_QUOTAS;

/// Whether a request is admitted, and what its client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) decision: Decision,
    /// How long until the same request would be admitted; zero if it is.
    pub(crate) wait: Duration,
    standings: [Standing; MAX_QUOTAS],
    /// How many of these there are.
    quotas: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Admitted,
    /// The client has spent its quota.
    Refused,
    /// What the client owes, it may have inherited: the table is full.
    Inherited,
    /// Somebody blocked it.
    Blocked,
}

/// Where a client stands with one quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Which quota of the policy.
    pub(crate) quota: u8,
    /// How many more requests would be admitted now.
    pub(crate) remaining: u32,
    /// Seconds until that is one more, rounded up. Not zero.
    pub(crate) seconds: u32,
}

impl Verdict {
    pub(crate) fn new(decision: Decision) -> Self {
        Self { decision, wait: Duration::ZERO, standings: [Standing::default(); MAX_QUOTAS], quotas: 0 }
    }

    pub(crate) fn admitted(&self) -> bool {
        self.decision == Decision::Admitted
    }

    /// Adds a quota's standing, in the policy's order.
    pub(crate) fn push(&mut self, standing: Standing) {
        if let Some(slot) = self.standings.get_mut(usize::from(self.quotas)) {
            *slot = standing;
            self.quotas += 1;
        }
    }

    /// One for each quota that concerns the client.
    pub(crate) fn standings(&self) -> &[Standing] {
        self.standings.get(..usize::from(self.quotas)).unwrap_or_default()
    }
}
