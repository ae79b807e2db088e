//! Tokens taken in advance.

use std::time::Duration;

/// How many requests of one busy client an instance may take from Redis in advance, and for how long.
///
/// They are charged before they are used, and given back, within a quarter of `life`, when they are not used. So in any
/// stretch of time `w` all instances together admit at most `burst + rate × (w + life)` requests of a client, and an
/// instance keeps at most `tokens` from the others, for `life`.
///
/// A client takes as many as it has needed in the `life` before, and none if that was one. Tokens in hand are used while
/// Redis does not answer, too. They are lost, and stay charged, when the runtime or the process ends before they are
/// given back, when Redis does not answer then, and when a handle changes what the client owes. If another instance's
/// handle forgives the client while tokens are on their way back, they are given back on top of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub(crate) tokens: u32,
    pub(crate) life: Duration,
}

impl Lease {
    /// At most `tokens` at once, each to be used within `life`.
    ///
    /// # Panics
    /// `tokens` is 0, or `life` is zero or above 10 s.
    #[must_use]
    #[track_caller]
    pub const fn new(tokens: u32, life: Duration) -> Self {
        assert!(tokens > 0, "a lease has at least one token");
        assert!(!life.is_zero() && life.as_millis() <= 10_000, "a lease lives for more than 0 and at most 10 s");
        Self { tokens, life }
    }

    /// In nanoseconds.
    pub(super) fn life(self) -> u64 {
        u64::try_from(self.life.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The tokens in hand for one client, and how many it needs.
pub(super) struct Holding<G> {
    lot: Option<Lot<G>>,
    /// Not used in time, and not yet given back.
    unused: u32,
    demand: Demand,
}

/// What one trip brought in advance: the requests from `next` to `end` of its grant.
pub(super) struct Lot<G> {
    pub(super) grant: G,
    pub(super) next: u32,
    pub(super) end: u32,
    /// Before this moment.
    pub(super) until: u64,
}

/// How often a client has asked: since when, in this period, and in the one before.
#[derive(Default)]
struct Demand {
    since: u64,
    count: u32,
    before: u32,
}

impl<G> Holding<G> {
    pub(super) fn new() -> Self {
        Self { lot: None, unused: 0, demand: Demand::default() }
    }

    /// The client has asked, whoever answers.
    pub(super) fn note(&mut self, lease: Lease, now: u64) {
        self.demand.roll(lease.life(), now);
        self.demand.count = self.demand.count.saturating_add(1);
    }

    /// How many tokens are worth taking, beside those that `going` requests use at once.
    pub(super) fn wanted(&mut self, lease: Lease, going: u32, now: u64) -> u32 {
        self.demand.roll(lease.life(), now);
        self.demand.expected().saturating_sub(going).min(lease.tokens)
    }

    /// The next token that may be used at `now`: its place in its grant.
    pub(super) fn token(&mut self, now: u64) -> Option<(&G, u32)> {
        let lot = self.lot.as_mut().filter(|lot| now < lot.until && lot.next < lot.end)?;
        lot.next += 1;
        Some((&lot.grant, lot.next - 1))
    }

    pub(super) fn put(&mut self, lot: Lot<G>) {
        self.retire();
        self.lot = Some(lot);
    }

    /// Tokens in hand are no longer worth anything, nor to be given back.
    pub(super) fn void(&mut self) {
        self.lot = None;
        self.unused = 0;
    }

    /// How many tokens are to be given back at `now`. They are then forgotten here.
    pub(super) fn expire(&mut self, now: u64) -> u32 {
        if self.lot.as_ref().is_some_and(|lot| now >= lot.until || lot.next == lot.end) {
            self.retire();
        }
        std::mem::take(&mut self.unused)
    }

    fn retire(&mut self) {
        if let Some(lot) = self.lot.take() {
            self.unused = self.unused.saturating_add(lot.end.saturating_sub(lot.next));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lot.is_none() && self.unused == 0
    }

    /// Nothing is lost with it.
    pub(super) fn is_cold(&mut self, lease: Lease, now: u64) -> bool {
        self.demand.roll(lease.life(), now);
        self.is_empty() && self.demand.expected() == 0
    }
}

impl Demand {
    fn roll(&mut self, life: u64, now: u64) {
        match now.saturating_sub(self.since).checked_div(life) {
            None | Some(0) => return,
            Some(1) => self.before = self.count,
            Some(_) => self.before = 0,
        }
        self.count = 0;
        self.since = now - (now - self.since) % life;
    }

    /// Requests per life; 0 for a client that is not busy.
    fn expected(&self) -> u32 {
        let most = self.before.max(self.count);
        if most > 1 { most } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFE: u64 = 100;

    fn lease(tokens: u32) -> Lease {
        Lease::new(tokens, Duration::from_nanos(LIFE))
    }

    fn lot(tokens: u32, until: u64) -> Lot<u64> {
        Lot { grant: until, next: 0, end: tokens, until }
    }

    #[test]
    fn a_busy_client_takes_what_it_needed_in_the_life_before() {
        // Asked at these times; how many tokens would be taken at the last of them.
        for (asked, wanted) in [
            (&[1000][..], 0),
            (&[1000, 1100, 1200, 1300], 0),
            (&[1000, 1001], 1),
            (&[1000, 1001, 1002, 1003], 3),
            (&[1000, 1001, 1002, 1100], 2),
            (&[1000, 1001, 1002, 1200], 0),
            (&[1000, 1001, 1002, 1003, 1004, 1005, 1006, 1100, 1101], 5),
        ] {
            let mut holding = Holding::<()>::new();
            asked.iter().for_each(|now| holding.note(lease(5), *now));
            assert_eq!(holding.wanted(lease(5), 1, *asked.last().unwrap()), wanted, "{asked:?}");
        }
    }

    #[test]
    fn those_who_go_anyway_need_no_token() {
        let mut holding = Holding::<()>::new();
        (0..10).for_each(|_| holding.note(lease(100), 0));
        for (going, wanted) in [(1, 9), (9, 1), (10, 0), (11, 0)] {
            assert_eq!(holding.wanted(lease(100), going, 0), wanted);
        }
    }

    #[test]
    fn tokens_are_used_in_order_until_their_life_ends() {
        let mut holding = Holding::new();
        holding.put(Lot { grant: 'g', next: 3, end: 6, until: 50 });
        assert_eq!(holding.token(0), Some((&'g', 3)));
        assert_eq!(holding.token(49), Some((&'g', 4)));
        assert_eq!(holding.token(50), None);
        assert_eq!((holding.expire(49), holding.expire(50), holding.expire(51)), (0, 1, 0));
        assert!(holding.is_empty());
    }

    #[test]
    fn void_tokens_are_neither_used_nor_given_back() {
        let mut holding = Holding::new();
        holding.put(lot(3, 50));
        holding.put(lot(3, 60));
        holding.void();
        assert_eq!(holding.token(0), None);
        assert_eq!(holding.expire(100), 0);
    }

    #[test]
    fn a_life_is_above_zero_and_at_most_ten_seconds() {
        assert_eq!(Lease::new(1, Duration::from_secs(10)).life(), 10_000_000_000);
        for (tokens, life) in [(0, Duration::from_secs(1)), (1, Duration::ZERO), (1, Duration::from_millis(10_001))] {
            assert!(std::panic::catch_unwind(|| Lease::new(tokens, life)).is_err());
        }
    }

    proptest! {
        /// Every token is used once before its life ends, or given back once, or still in hand.
        #[test]
        fn no_token_is_lost_or_used_twice(steps in prop::collection::vec((0_u64..40, 0_u8..4, 0_u32..6), 1..100)) {
            let (mut holding, mut now) = (Holding::new(), 0);
            let (mut put, mut used, mut back) = (0, std::collections::HashSet::new(), 0);
            for (pause, what, tokens) in steps {
                now += pause;
                match what {
                    0 => {
                        put += tokens;
                        // Told apart by when it ends.
                        holding.put(Lot { grant: (put, now + LIFE), next: 0, end: tokens, until: now + LIFE });
                    }
                    1 => back += holding.expire(now),
                    _ => {
                        if let Some((&(lot, until), nth)) = holding.token(now) {
                            prop_assert!(now < until);
                            prop_assert!(used.insert((lot, nth)));
                        }
                    }
                }
            }
            back += holding.expire(now + LIFE);
            prop_assert_eq!(put, back + u32::try_from(used.len()).unwrap());
            prop_assert!(holding.is_empty());
        }
    }
}
