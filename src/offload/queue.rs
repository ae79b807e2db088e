//! Who is next: the pool's lanes as plain values, without locks, threads or clocks.
//!
//! 1. Two lanes wait for admission, each first in, first out: requests and closures, and data-parallel jobs. One bound
//!    counts both.
//! 2. What was woken after a suspension is served before what has not begun, and is never refused: it has been
//!    admitted once. But after so many turns of this kind in a row, one that has not begun is served: entries that
//!    wake themselves as soon as they are suspended would otherwise keep it waiting for as long as they live.
//! 3. Data-parallel jobs run one at a time.
//! 4. Every entry has a ticket, by which it leaves from any place in its lane, in O(log n).

use std::collections::BTreeMap;

use super::error::OffloadError;

/// So many resumed entries are served in a row at most, while others wait to begin.
const RESUMED_IN_A_ROW: u32 = 16;

/// Where an admitted entry waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// For one of the pool's own threads.
    Serial,
    /// For all of the data-parallel threads together.
    Parallel,
}

/// Whether the entry that was pushed needs somebody to fetch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    /// Somebody who is busy now will find it.
    Later,
    /// An idle thread should be woken.
    WakeThread,
    /// Nobody drains the parallel lane yet.
    DrainParallel,
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    resumed: BTreeMap<u64, T>,
    serial: BTreeMap<u64, T>,
    parallel: BTreeMap<u64, T>,
    resumed_in_a_row: u32,
    last_ticket: u64,
    bound: usize,
    idle: usize,
    /// Of the idle threads, those already on their way: a burst wakes each thread once.
    woken: usize,
    draining: bool,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            resumed: BTreeMap::new(),
            serial: BTreeMap::new(),
            parallel: BTreeMap::new(),
            resumed_in_a_row: 0,
            last_ticket: 0,
            bound,
            idle: 0,
            woken: 0,
            draining: false,
            closed: false,
        }
    }

    /// Entries that have not begun.
    pub(super) fn depth(&self) -> usize {
        self.serial.len() + self.parallel.len()
    }

    /// Threads that sleep, or have just been woken.
    pub(super) fn idle(&self) -> usize {
        self.idle
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether one more entry may wait.
    pub(super) fn admit(&self) -> Result<(), OffloadError> {
        if self.closed {
            Err(OffloadError::Closed)
        } else if self.depth() >= self.bound {
            Err(OffloadError::QueueFull)
        } else {
            Ok(())
        }
    }

    /// The next entry's ticket.
    pub(super) fn ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Lets an admitted entry wait for its first turn.
    pub(super) fn push(&mut self, lane: Lane, ticket: u64, entry: T) -> Fetch {
        match lane {
            Lane::Serial => {
                self.serial.insert(ticket, entry);
                self.fetch_serial()
            }
            Lane::Parallel => {
                self.parallel.insert(ticket, entry);
                if std::mem::replace(&mut self.draining, true) { Fetch::Later } else { Fetch::DrainParallel }
            }
        }
    }

    /// Lets a woken entry wait for its next turn.
    pub(super) fn resume(&mut self, ticket: u64, entry: T) -> Fetch {
        self.resumed.insert(ticket, entry);
        self.fetch_serial()
    }

    fn fetch_serial(&mut self) -> Fetch {
        if self.idle > self.woken {
            self.woken += 1;
            Fetch::WakeThread
        } else {
            Fetch::Later
        }
    }

    /// What a pool thread runs next, and whether this is its first turn.
    pub(super) fn next(&mut self) -> Option<(T, bool)> {
        let overdue = self.resumed_in_a_row >= RESUMED_IN_A_ROW && !self.serial.is_empty();
        if !overdue && let Some((_, entry)) = self.resumed.pop_first() {
            self.resumed_in_a_row = self.resumed_in_a_row.saturating_add(1);
            return Some((entry, false));
        }
        self.resumed_in_a_row = 0;
        self.serial.pop_first().map(|(_, entry)| (entry, true))
    }

    /// The next data-parallel job. `None` ends the drain: the next `push` asks for a new one.
    pub(super) fn next_parallel(&mut self) -> Option<T> {
        let next = self.parallel.pop_first().map(|(_, entry)| entry);
        self.draining = next.is_some();
        next
    }

    /// Takes out an entry, wherever it waits, and tells whether it had not begun.
    pub(super) fn remove(&mut self, ticket: u64) -> Option<(T, bool)> {
        if let Some(entry) = self.resumed.remove(&ticket) {
            return Some((entry, false));
        }
        self.serial.remove(&ticket).or_else(|| self.parallel.remove(&ticket)).map(|entry| (entry, true))
    }

    /// Admits nothing from now on, and takes out all that has not begun.
    pub(super) fn close(&mut self) -> Vec<T> {
        self.closed = true;
        let serial = std::mem::take(&mut self.serial);
        serial.into_values().chain(std::mem::take(&mut self.parallel).into_values()).collect()
    }

    /// A thread found nothing, and goes to sleep.
    pub(super) fn rests(&mut self) {
        self.idle += 1;
    }

    /// A thread is back, woken for an entry or for no reason; in any case it looks for one next.
    pub(super) fn returns(&mut self) {
        self.idle -= 1;
        self.woken = self.woken.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(queue: &mut Queue<u64>, lane: Lane) -> Result<u64, OffloadError> {
        queue.admit()?;
        let ticket = queue.ticket();
        queue.push(lane, ticket, ticket);
        Ok(ticket)
    }

    #[test]
    fn resumed_entries_go_first_and_count_against_no_bound() {
        let mut queue = Queue::new(1);
        let first = push(&mut queue, Lane::Serial).unwrap();
        assert_eq!(push(&mut queue, Lane::Serial), Err(OffloadError::QueueFull));
        for _ in 0..3 {
            let ticket = queue.ticket();
            queue.resume(ticket, ticket);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(order, [(first + 1, false), (first + 2, false), (first + 3, false), (first, true)]);
    }

    #[test]
    fn both_lanes_share_the_bound() {
        let mut queue = Queue::new(2);
        push(&mut queue, Lane::Serial).unwrap();
        push(&mut queue, Lane::Parallel).unwrap();
        assert_eq!(push(&mut queue, Lane::Serial), Err(OffloadError::QueueFull));
        assert!(queue.next_parallel().is_some());
        push(&mut queue, Lane::Serial).unwrap();
    }

    #[test]
    fn one_drain_at_a_time() {
        let mut queue = Queue::new(9);
        assert_eq!(queue.push(Lane::Parallel, 1, 1), Fetch::DrainParallel);
        assert_eq!(queue.push(Lane::Parallel, 2, 2), Fetch::Later);
        assert_eq!((queue.next_parallel(), queue.next_parallel()), (Some(1), Some(2)));
        assert_eq!(queue.push(Lane::Parallel, 3, 3), Fetch::Later, "the second job still runs");
        assert_eq!((queue.next_parallel(), queue.next_parallel()), (Some(3), None));
        assert_eq!(queue.push(Lane::Parallel, 4, 4), Fetch::DrainParallel);
    }

    #[test]
    fn every_idle_thread_is_woken_once() {
        let mut queue = Queue::new(9);
        assert_eq!(queue.push(Lane::Serial, 1, 1), Fetch::Later, "nobody sleeps");
        queue.rests();
        queue.rests();
        assert_eq!(queue.push(Lane::Serial, 2, 2), Fetch::WakeThread);
        assert_eq!(queue.resume(3, 3), Fetch::WakeThread);
        assert_eq!(queue.resume(4, 4), Fetch::Later, "both are on their way");
        queue.returns();
        assert_eq!(queue.push(Lane::Serial, 5, 5), Fetch::Later, "one is, and one is here");
        queue.rests();
        assert_eq!(queue.push(Lane::Serial, 6, 6), Fetch::WakeThread, "one sleeps again");
    }

    #[test]
    fn closing_keeps_what_has_begun() {
        let mut queue = Queue::new(9);
        let one = push(&mut queue, Lane::Serial).unwrap();
        let two = push(&mut queue, Lane::Parallel).unwrap();
        queue.resume(9, 9);
        assert_eq!(queue.close(), [one, two]);
        assert_eq!(push(&mut queue, Lane::Serial), Err(OffloadError::Closed));
        assert_eq!(queue.next(), Some((9, false)));
        queue.resume(10, 10);
        assert_eq!(queue.next(), Some((10, false)));
    }

    proptest! {
        /// However many are resumed, before and between: whoever is at the head of its lane is served after at most
        /// so many of them, and takes no more than one turn from as many.
        #[test]
        fn neither_starves(before in 0_usize..40, turns in prop::collection::vec(0_usize..3, 1..400)) {
            let mut queue = Queue::new(1);
            let resume = |queue: &mut Queue<u64>| {
                let ticket = queue.ticket();
                queue.resume(ticket, ticket);
            };
            resume(&mut queue);
            for _ in 0..before {
                prop_assert!(!queue.next().unwrap().1);
                resume(&mut queue);
            }
            push(&mut queue, Lane::Serial).unwrap();
            let (mut in_a_row, mut admitted) = (0, 0);
            for more in turns {
                if queue.next().unwrap().1 {
                    prop_assert!(in_a_row == RESUMED_IN_A_ROW || admitted == 0);
                    (in_a_row, admitted) = (0, admitted + 1);
                    push(&mut queue, Lane::Serial).unwrap();
                } else {
                    in_a_row += 1;
                    prop_assert!(in_a_row <= RESUMED_IN_A_ROW);
                    (0..=more).for_each(|_| resume(&mut queue));
                }
            }
        }

        /// Against two plain lists: order, bound and removal, whatever happens.
        #[test]
        fn behaves_like_lists(bound in 1_usize..6, steps in prop::collection::vec((0_u8..5, 0_usize..8), 0..80)) {
            let mut queue = Queue::new(bound);
            let (mut resumed, mut serial, mut in_a_row) = (Vec::new(), Vec::new(), 0);
            for (step, pick) in steps {
                match step {
                    0 | 1 => match push(&mut queue, Lane::Serial) {
                        Ok(ticket) => serial.push(ticket),
                        Err(_) => prop_assert_eq!(serial.len(), bound),
                    },
                    2 => {
                        let ticket = queue.ticket();
                        queue.resume(ticket, ticket);
                        resumed.push(ticket);
                    }
                    3 => {
                        let overdue = in_a_row >= RESUMED_IN_A_ROW && !serial.is_empty();
                        let expected = if resumed.is_empty() || overdue {
                            in_a_row = 0;
                            (!serial.is_empty()).then(|| (serial.remove(0), true))
                        } else {
                            in_a_row += 1;
                            Some((resumed.remove(0), false))
                        };
                        prop_assert_eq!(queue.next(), expected);
                    }
                    _ => {
                        let list = if pick % 2 == 0 { &mut resumed } else { &mut serial };
                        let Some(index) = (!list.is_empty()).then(|| pick % list.len()) else { continue };
                        let ticket = list.remove(index);
                        prop_assert_eq!(queue.remove(ticket), Some((ticket, pick % 2 == 1)));
                        prop_assert_eq!(queue.remove(ticket), None);
                    }
                }
                prop_assert_eq!(queue.depth(), serial.len());
                prop_assert!(queue.depth() <= bound);
            }
        }
    }
}
