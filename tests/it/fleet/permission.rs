//! What may still be answered, by what is known of purges and troubles: pure, over times in microseconds.
//!
//! 1. **A lifetime.** A response that was made at `made` may be answered to a request that began until
//!    `made + lifetime + grace`; the grace is the time in which it may be served stale while it is renewed.
//! 2. **An order** is a purge, or an unsafe request. It takes back the permission of what was made before the order was
//!    issued: in the process that carried it out as soon as that said so; in the others once Redis has it, within
//!    [`Bounds::near`]. A soft order leaves what may be served stale to rule 1.
//! 3. **A trouble** is a time in which Redis is away, or comes back. What was ordered around it counts after
//!    [`Bounds::away`]; where Redis did not take it, or may have lost it to a failover, once it is back and as long as the
//!    process lives that keeps telling. An unsafe request is told once: a failover may forget it.
//! 4. **One's own.** Nobody gets what was made for another user, or in another language.

/// Microseconds since the test began.
pub(super) type Time = u64;

#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// From Redis to all processes that are connected.
    pub(super) near: Time,
    /// How long memory is used after Redis has gone, the time to notice included.
    pub(super) away: Time,
    /// From the end of a trouble until what was kept back has been told.
    pub(super) told: Time,
    /// Between what the test sees and what a process sees; processes wait for their turn.
    pub(super) slack: Time,
}

/// Whether Redis has an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Yes,
    No,
    /// Nobody said so; it has, if it was there.
    Presumed,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) issued: Time,
    pub(super) done: Time,
    pub(super) process: u32,
    pub(super) told: Told,
    pub(super) soft: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Trouble {
    pub(super) from: Time,
    /// `None`: it goes on.
    pub(super) to: Option<Time>,
    /// A replica takes over: what came last may be lost.
    pub(super) loses: bool,
}

/// One answer, as its client saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) process: u32,
    /// When the request began.
    pub(super) asked: Time,
    pub(super) made: Time,
    pub(super) lifetime: Time,
    pub(super) grace: Time,
    /// `Age`, in seconds.
    pub(super) age: Option<u64>,
    /// For whom it was made, if for somebody, and in which language; and who asked.
    pub(super) content: (Option<String>, String),
    pub(super) reader: (Option<String>, String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// So much longer than its lifetime.
    Expired(Time),
    /// So long after it should have been void.
    Purged(Time),
    Foreign,
    /// It says that it is younger than it is.
    Young,
}

/// Everything that troubled the fleet, and which processes ended when.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) troubles: Vec<Trouble>,
    pub(super) ended: Vec<(u32, Time)>,
}

impl Trouble {
    fn meets(&self, from: Time, to: Time) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }
}

impl History {
    fn meets(&self, from: Time, to: Time) -> impl Iterator<Item = &Trouble> {
        self.troubles.iter().filter(move |trouble| trouble.meets(from, to))
    }

    /// From when on `order` counts in `process`. `None`: nobody can tell yet, or it may be lost.
    fn deadline(&self, order: &Order, process: u32, bounds: Bounds) -> Option<Time> {
        if order.process == process {
            return Some(order.done);
        }
        let (from, to) = (order.issued.saturating_sub(bounds.near), order.done + bounds.near);
        let calm = self.meets(from, to).next().is_none();
        let lost = self.meets(from, to).any(|trouble| trouble.loses);
        match order.told {
            Told::Yes | Told::Presumed if calm => return Some(order.done + bounds.near),
            Told::Yes if !lost => return Some(order.done + bounds.away),
            Told::Presumed if lost => return None,
            Told::Yes | Told::No | Told::Presumed => {}
        }
        let mut back = order.done;
        while let Some(trouble) = self.meets(back, back + bounds.told).next() {
            back = back.max(trouble.to?) + 1;
        }
        let deadline = back + bounds.told;
        let lives = self.ended.iter().all(|(ended, at)| *ended != order.process || *at > deadline);
        lives.then_some(deadline.max(order.done + bounds.away))
    }

    /// `orders`: those that name what was seen, in the order of their issue.
    pub(super) fn judge(&self, seen: &Seen, orders: &[Order], bounds: Bounds) -> Result<(), Wrong> {
        let foreign = |made_for: &str| seen.reader.0.as_deref() != Some(made_for);
        if seen.content.0.as_deref().is_some_and(foreign) || seen.content.1 != seen.reader.1 {
            return Err(Wrong::Foreign);
        }
        let until = seen.made + seen.lifetime + seen.grace + bounds.slack;
        if seen.asked > until {
            return Err(Wrong::Expired(seen.asked - until));
        }
        // An age is in whole seconds.
        if seen.age.is_some_and(|age| (age + 1) * 1_000_000 + bounds.slack < seen.asked.saturating_sub(seen.made)) {
            return Err(Wrong::Young);
        }
        let later = orders.iter().rev().take_while(|order| order.issued > seen.made);
        for order in later.filter(|order| !order.soft || seen.grace == 0) {
            if let Some(deadline) = self.deadline(order, seen.process, bounds)
                && seen.asked > deadline
            {
                return Err(Wrong::Purged(seen.asked - deadline));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { near: 100, away: 6_000, told: 3_000, slack: 10 };
    const ORDER: Order = Order { issued: 1_000, done: 1_010, process: 0, told: Told::Yes, soft: false };

    fn seen(process: u32, made: Time, asked: Time) -> Seen {
        let nobody = (None, "en".to_owned());
        Seen {
            process,
            asked,
            made,
            lifetime: 50_000,
            grace: 0,
            age: None,
            content: nobody.clone(),
            reader: (Some("alice".to_owned()), nobody.1),
        }
    }

    fn trouble(from: Time, to: Option<Time>) -> Trouble {
        Trouble { from, to, loses: false }
    }

    #[test]
    fn a_lifetime_ends() {
        let history = History::default();
        for (asked, grace, expected) in [
            (50_900, 0, Ok(())),
            (50_910, 0, Ok(())),
            (50_911, 0, Err(Wrong::Expired(1))),
            (51_911, 1_000, Err(Wrong::Expired(1))),
            (51_910, 1_000, Ok(())),
        ] {
            let seen = Seen { grace, ..seen(1, 900, asked) };
            assert_eq!(history.judge(&seen, &[], BOUNDS), expected, "{asked} {grace}");
        }
    }

    #[test]
    fn an_order_counts_here_at_once_and_there_soon() {
        let history = History::default();
        for (process, made, asked, soft, grace, expected) in [
            (0, 999, 1_010, false, 0, Ok(())),
            (0, 999, 1_011, false, 0, Err(Wrong::Purged(1))),
            (1, 999, 1_011, false, 0, Ok(())),
            (1, 999, 1_110, false, 0, Ok(())),
            (1, 999, 1_111, false, 0, Err(Wrong::Purged(1))),
            // What was made since is not meant.
            (1, 1_000, 1_111, false, 0, Ok(())),
            // Stale is not gone.
            (1, 999, 1_311, true, 200, Ok(())),
            (1, 999, 1_111, true, 0, Err(Wrong::Purged(1))),
            (1, 999, 1_111, false, 200, Err(Wrong::Purged(1))),
        ] {
            let (seen, order) = (Seen { grace, ..seen(process, made, asked) }, Order { soft, ..ORDER });
            assert_eq!(history.judge(&seen, &[order], BOUNDS), expected, "{seen:?} {soft}");
        }
    }

    #[test]
    fn all_later_orders_count() {
        let late = Order { issued: 5_000, done: 5_010, ..ORDER };
        let history = History::default();
        assert_eq!(history.judge(&seen(1, 999, 5_050), &[ORDER, late], BOUNDS), Err(Wrong::Purged(3_940)));
        assert_eq!(history.judge(&seen(1, 1_001, 5_050), &[ORDER, late], BOUNDS), Ok(()));
        assert_eq!(history.judge(&seen(1, 1_001, 5_111), &[ORDER, late], BOUNDS), Err(Wrong::Purged(1)));
    }

    #[test]
    fn troubles_give_time() {
        let deadline = |told, troubles: &[Trouble], ended: &[(u32, Time)], process| {
            let history = History { troubles: troubles.to_vec(), ended: ended.to_vec() };
            history.deadline(&Order { told, ..ORDER }, process, BOUNDS)
        };
        for (told, troubles, ended, expected) in [
            (Told::Yes, &[][..], &[][..], Some(1_110)),
            (Told::Presumed, &[], &[], Some(1_110)),
            (Told::No, &[], &[], Some(7_010)),
            // One that is over, or comes later, changes nothing.
            (Told::Yes, &[trouble(0, Some(899))], &[], Some(1_110)),
            (Told::Yes, &[trouble(1_111, None)], &[], Some(1_110)),
            (Told::Yes, &[trouble(0, Some(900))], &[], Some(7_010)),
            (Told::Yes, &[trouble(1_110, None)], &[], Some(7_010)),
            (Told::No, &[trouble(500, None)], &[], None),
            (Told::Presumed, &[trouble(500, None)], &[], None),
            (Told::No, &[trouble(500, Some(20_000))], &[], Some(23_001)),
            (Told::No, &[trouble(500, Some(20_000)), trouble(22_000, Some(30_000))], &[], Some(33_001)),
            // Who was to tell is gone.
            (Told::No, &[trouble(500, Some(20_000))], &[(0, 23_001)], None),
            (Told::No, &[trouble(500, Some(20_000))], &[(1, 23_001)], Some(23_001)),
            (Told::Yes, &[], &[(0, 1_011)], Some(1_110)),
        ] {
            assert_eq!(deadline(told, troubles, ended, 1), expected, "{told:?} {troubles:?} {ended:?}");
            assert_eq!(deadline(told, troubles, ended, 0), Some(1_010), "{told:?} {troubles:?} {ended:?}");
        }
        let lost = Trouble { from: 1_100, to: Some(9_000), loses: true };
        let later = Trouble { from: 2_000, ..lost };
        assert_eq!(deadline(Told::Yes, &[lost], &[], 1), Some(12_001));
        assert_eq!(deadline(Told::Yes, &[lost], &[(0, 12_001)], 1), None);
        assert_eq!(deadline(Told::Yes, &[later], &[(0, 12_001)], 1), Some(1_110));
        assert_eq!(deadline(Told::Presumed, &[lost], &[], 1), None);
        assert_eq!(deadline(Told::Presumed, &[later], &[], 1), Some(1_110));
    }

    #[test]
    fn one_gets_ones_own() {
        let history = History::default();
        let own = |user: Option<&str>, language: &str| {
            let content = (user.map(str::to_owned), language.to_owned());
            history.judge(&Seen { content, ..seen(1, 999, 1_000) }, &[], BOUNDS)
        };
        assert_eq!(own(None, "en"), Ok(()));
        assert_eq!(own(Some("alice"), "en"), Ok(()));
        assert_eq!(own(Some("bob"), "en"), Err(Wrong::Foreign));
        assert_eq!(own(None, "fr"), Err(Wrong::Foreign));
        let stranger =
            Seen { reader: (None, "en".to_owned()), content: (Some("bob".into()), "en".into()), ..seen(1, 9, 9) };
        assert_eq!(history.judge(&stranger, &[], BOUNDS), Err(Wrong::Foreign));
    }

    #[test]
    fn nothing_is_younger_than_it_is() {
        let history = History::default();
        let aged = |age, asked| {
            let seen = Seen { age, lifetime: 60_000_000, ..seen(1, 0, asked) };
            history.judge(&seen, &[], BOUNDS)
        };
        assert_eq!(aged(None, 5_000_000), Ok(()));
        assert_eq!(aged(Some(5), 5_900_000), Ok(()));
        assert_eq!(aged(Some(5), 6_000_011), Err(Wrong::Young));
    }
}
