//! The checks of one client and cost: who goes, who waits, who gets what. No I/O, no clock.

use super::super::super::verdict::Verdict;
use super::super::lease::{Holding, Lease, Lot};

/// What a trip brought.
pub(super) trait Granted {
    /// How many of the wanted requests are admitted, and charged.
    fn granted(&self) -> u32;

    /// What the `nth` of them is told.
    fn verdict(&self, nth: u32) -> Verdict;
}

/// `W` is somebody who waits.
pub(super) struct Flight<W, G> {
    /// The trip that is under way.
    away: Option<Trip>,
    /// Those who came meanwhile, in order.
    waiting: Vec<W>,
    /// Whether what is known here may be used, as the last who came was told.
    trusted: bool,
    holding: Holding<G>,
}

/// No other trip of the client has the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trip(pub(super) u64);

/// What somebody who comes is to do.
pub(super) enum Turn {
    /// Go, for itself alone.
    Go,
    /// Wait with others, and send somebody: there are tokens to bring, whatever becomes of those who asked.
    Send,
    /// Wait until after this trip.
    Wait(Trip),
}

/// Those who go together.
pub(super) struct Crew<W> {
    pub(super) trip: Trip,
    pub(super) waiters: Vec<W>,
    /// How many tokens to bring for others.
    pub(super) tokens: u32,
    /// Whether what is known here may be used.
    pub(super) trusted: bool,
}

impl<W, G: Granted> Flight<W, G> {
    pub(super) fn new() -> Self {
        Self { away: None, waiting: Vec::new(), trusted: false, holding: Holding::new() }
    }

    /// Uses a token at `now`, if there is one.
    pub(super) fn token(&mut self, lease: Lease, now: u64) -> Option<Verdict> {
        let (grant, nth) = self.holding.token(now)?;
        let verdict = grant.verdict(nth);
        self.holding.note(lease, now);
        Some(verdict)
    }

    /// A request without a token. Unless it is to [`Turn::Wait`], `trip` is now under way.
    pub(super) fn join(&mut self, trip: Trip, lease: Option<Lease>, trusted: bool, now: u64) -> Turn {
        self.trusted = trusted;
        if let Some(lease) = lease {
            self.holding.note(lease, now);
        }
        if let Some(away) = self.away {
            return Turn::Wait(away);
        }
        self.away = Some(trip);
        if self.wanted(lease, 1, now) > 0 { Turn::Send } else { Turn::Go }
    }

    pub(super) fn wait(&mut self, waiter: W) {
        self.waiting.push(waiter);
    }

    /// Those who wait, for the `next` trip. With nobody there, none is under way any more.
    pub(super) fn board(&mut self, next: Trip, lease: Option<Lease>, now: u64) -> Crew<W> {
        let waiters = std::mem::take(&mut self.waiting);
        self.away = (!waiters.is_empty()).then_some(next);
        let tokens = self.wanted(lease, u32::try_from(waiters.len()).unwrap_or(u32::MAX), now);
        Crew { trip: next, waiters, tokens, trusted: self.trusted }
    }

    fn wanted(&mut self, lease: Option<Lease>, going: u32, now: u64) -> u32 {
        lease.filter(|_| self.trusted).map_or(0, |lease| self.holding.wanted(lease, going, now))
    }

    /// Those who wait, because nobody will go for them.
    pub(super) fn disband(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiting)
    }

    /// No trip is under way any more, nor will be for those who wait.
    pub(super) fn end(&mut self) -> Vec<W> {
        self.away = None;
        self.disband()
    }

    /// Whoever is away is not waited for any longer, but for `next`.
    pub(super) fn depose(&mut self, next: Trip) {
        self.away = Some(next);
    }

    pub(super) fn is_away(&self, trip: Trip) -> bool {
        self.away == Some(trip)
    }

    /// A trip has brought tokens. Returns those who were waiting for the next one and need not go, or have left.
    pub(super) fn put(&mut self, lot: Lot<G>, now: u64, is_gone: impl Fn(&W) -> bool) -> Vec<(W, Option<Verdict>)> {
        self.holding.put(lot);
        let mut served = Vec::new();
        for waiter in std::mem::take(&mut self.waiting) {
            if is_gone(&waiter) {
                served.push((waiter, None));
                continue;
            }
            match if self.trusted { self.holding.token(now) } else { None } {
                Some((grant, nth)) => served.push((waiter, Some(grant.verdict(nth)))),
                None => self.waiting.push(waiter),
            }
        }
        served
    }

    pub(super) fn void(&mut self) {
        self.holding.void();
    }

    /// Tokens to give back.
    pub(super) fn expire(&mut self, now: u64) -> u32 {
        self.holding.expire(now)
    }

    /// Whether there are tokens in hand or to give back.
    pub(super) fn holds_tokens(&self) -> bool {
        !self.holding.is_empty()
    }

    /// Whether nothing is lost with it.
    pub(super) fn is_idle(&mut self, lease: Option<Lease>, now: u64) -> bool {
        self.away.is_none() && self.waiting.is_empty() && lease.is_none_or(|lease| self.holding.is_cold(lease, now))
    }
}
