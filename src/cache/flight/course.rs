//! How one flight goes: pure, and under one lock.

use super::Phase;

/// Requests that wait for one fetch. Beyond: they go alone.
pub(super) const MAX_WAITERS: usize = 4096;
/// How often a failed fetch is tried again, by one of those who wait, before all of them get an error.
pub(super) const MAX_SUCCESSORS: usize = 2;

/// How far a flight has come.
pub(super) struct Course {
    pub(super) phase: Phase,
    /// How often those who wait have been told something.
    pub(super) told: u64,
    pub(super) waiters: usize,
    failures: usize,
}

/// What a flight offers to one more who asks for its key.
pub(super) enum Offer {
    Lead,
    Wait,
    Full,
    /// It is over.
    Nothing,
}

impl Course {
    pub(super) fn begin() -> Self {
        Self { phase: Phase::Running, told: 1, waiters: 0, failures: 0 }
    }

    pub(super) fn claim(&mut self) -> bool {
        let vacant = matches!(self.phase, Phase::Vacant);
        if vacant {
            self.phase = Phase::Running;
        }
        vacant
    }

    pub(super) fn offer(&mut self) -> Offer {
        if self.claim() {
            return Offer::Lead;
        }
        match self.phase {
            Phase::Released | Phase::Failed => Offer::Nothing,
            _ if self.waiters >= MAX_WAITERS => Offer::Full,
            _ => {
                self.waiters += 1;
                Offer::Wait
            }
        }
    }

    /// Returns the last phase, to be dropped outside the lock: with it may go a body.
    pub(super) fn tell(&mut self, phase: Phase) -> Phase {
        self.told += 1;
        std::mem::replace(&mut self.phase, phase)
    }

    /// The fetch has failed. Whether that was its end, and the last phase.
    pub(super) fn fail(&mut self) -> (bool, Option<Phase>) {
        self.vacate(Phase::Failed)
    }

    /// What it brought was its client's alone. As [`fail`](Self::fail), but that is nobody's error.
    pub(super) fn decline(&mut self) -> (bool, Option<Phase>) {
        self.vacate(Phase::Released)
    }

    /// Somebody else may run it; where nobody waits, or enough have tried, it is `over`.
    fn vacate(&mut self, at_the_end: Phase) -> (bool, Option<Phase>) {
        if matches!(self.phase, Phase::Complete(..)) {
            // Everybody has the response; only storing it was given up.
            return (true, None);
        }
        self.failures += 1;
        let over = self.failures > MAX_SUCCESSORS || self.waiters == 0;
        (over, Some(self.tell(if over { at_the_end } else { Phase::Vacant })))
    }

    /// One does not wait any more. Whether that was the end: it was the last, and nobody leads.
    pub(super) fn leave(&mut self) -> bool {
        self.waiters -= 1;
        let over = self.waiters == 0 && matches!(self.phase, Phase::Vacant);
        if over {
            self.phase = Phase::Failed;
        }
        over
    }
}
