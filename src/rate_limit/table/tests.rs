//! The table, by itself.
#![allow(clippy::unwrap_used, reason = "also outside the tests themselves")]

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Barrier;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use governor::{Quota, RateLimiter};
use proptest::prelude::*;

use super::super::clock::{Clock, LAST_TICK};
use super::*;

const LIMIT: Limit = Limit { interval: 10, capacity: 50 };

fn table() -> Table {
    Table::new(0, OnFull::Inherit)
}

/// Hashes that all choose the first bucket.
fn in_one_bucket(client: u64) -> u64 {
    (client + 1) << 45
}

fn charge(table: &Table, client: u64, now: u64) -> Outcome {
    table.charge(in_one_bucket(client), LIMIT, now, 1).unwrap()
}

fn outcome(changed: bool, debt: u64, inherited: bool, evicted: bool) -> Outcome {
    Outcome { changed, debt, inherited, evicted }
}

/// Seven clients; the first owes one request, the others up to `most`.
fn full(on_full: OnFull, now: u64, most: u64) -> Table {
    let table = Table::new(0, on_full);
    for client in 0..7 {
        for _ in 0..=client.min(most - 1) {
            assert!(charge(&table, client, now).changed);
        }
    }
    table
}

#[test]
fn a_bucket_is_a_cache_line_and_sizes_are_whole_pages() {
    for (slots, buckets) in [(0, 64), (448, 64), (449, 128), (1 << 20, 149_824)] {
        let table = Table::new(slots, OnFull::Inherit);
        assert_eq!(table.buckets, buckets);
        for index in [0, buckets - 1] {
            assert_eq!(table.words.line(index).as_ptr().align_offset(64), 0);
        }
    }
    let per_slot = (149_824 + 1) as f64 * 64.0 / f64::from(1 << 20);
    assert!(per_slot < 9.2, "{per_slot}");
}

#[test]
fn every_hash_has_a_bucket_and_every_bucket_is_chosen() {
    for slots in [448, 448 * 3, 1 << 16] {
        let table = Table::new(slots, OnFull::Inherit);
        let hasher = RandomState::new();
        for hash in (0..slots as u64 * 4).map(|n| hasher.hash_one(n)).chain([0, u64::MAX]) {
            table.charge(hash, LIMIT, 1, 1).unwrap();
        }
        let empty = (0..table.buckets).filter(|index| table.bucket(*index).in_debt(0) == 0).count();
        assert_eq!(empty, 0, "of {slots} slots");
        let all = table.occupancy((0..1000_u32).map(|n| u64::from(n) << 22 | 1), 0);
        assert!(all > 0.8, "{all}");
    }
}

#[test]
fn a_newcomer_to_a_full_bucket_inherits_the_smallest_debt() {
    let table = full(OnFull::Inherit, 100, 5);
    assert_eq!(charge(&table, 8, 100), outcome(true, 20, true, true));
    assert_eq!(charge(&table, 0, 100), outcome(true, 30, true, true), "it comes back owing no less");
    assert_eq!(charge(&table, 9, 1000), outcome(true, 10, false, false), "free");
    assert_eq!(charge(&table, 0, 1000), outcome(true, 10, false, false), "paid");
}

#[test]
fn a_newcomer_that_is_admitted_to_a_full_bucket_owes_nothing() {
    let table = full(OnFull::Admit, 100, 5);
    assert_eq!(charge(&table, 8, 100), outcome(true, 10, false, true));
    assert_eq!(charge(&table, 6, 100), outcome(false, 50, false, false));
    assert_eq!(charge(&table, 0, 100), outcome(true, 10, false, true), "it was forgotten");
}

#[test]
fn a_refused_newcomer_pushes_nobody_out() {
    let table = Table::new(0, OnFull::Inherit);
    for client in 0..7 {
        for _ in 0..5 {
            charge(&table, client, 100);
        }
    }
    assert_eq!(charge(&table, 8, 100), outcome(false, 50, true, false));
    assert_eq!(charge(&table, 0, 110), outcome(true, 50, false, false));
    assert_eq!(charge(&table, 8, 110), outcome(true, 50, true, true), "an interval later");
    assert_eq!(charge(&table, 8, 111), outcome(false, 49, true, false), "inherited until it is paid");
    assert_eq!(charge(&table, 8, 160), outcome(true, 10, false, false));
}

#[test]
fn refunds_wash_no_debt_out() {
    let table = full(OnFull::Inherit, 100, 1);
    let debtor = in_one_bucket(0);
    for _ in 0..4 {
        table.charge(debtor, LIMIT, 100, 1).unwrap();
    }
    // Newcomers that push out everybody with all they owe, and are then given back more than that.
    for client in 10..40 {
        table.penalise(in_one_bucket(client), LIMIT, 100, 5).unwrap();
        table.refund(in_one_bucket(client), LIMIT, 100, 5).unwrap();
    }
    assert!(!table.charge(debtor, LIMIT, 100, 1).unwrap().changed);
}

#[test]
fn a_refund_gives_back_what_is_owed_and_no_more() {
    let table = table();
    let client = in_one_bucket(0);
    assert_eq!(table.refund(client, LIMIT, 100, 1), Ok(outcome(false, 0, false, false)));
    assert_eq!(table.bucket(0).in_debt(0), 0, "nobody took a slot");
    table.charge(client, LIMIT, 100, 3).unwrap();
    assert_eq!(table.refund(client, LIMIT, 105, 1).unwrap().debt, 15);
    assert_eq!(table.refund(client, LIMIT, 105, 9).unwrap().debt, 0);
    assert_eq!(table.charge(client, LIMIT, 105, 9), Ok(outcome(true, 50, false, false)), "at most the burst");
    assert_eq!(table.penalise(client, LIMIT, 110, 1).unwrap().debt, 50);
    assert_eq!(table.peek(client, LIMIT, 115).unwrap().debt, 45);
}

#[test]
fn a_debt_can_be_set() {
    let table = full(OnFull::Inherit, 100, 5);
    let client = in_one_bucket(9);
    assert_eq!(table.peek(client, LIMIT, 100), Ok(outcome(false, 10, true, false)));
    assert_eq!(table.set(client, LIMIT, 100, 0), Ok(outcome(true, 0, true, true)));
    assert_eq!(table.charge(client, LIMIT, 100, 5), Ok(outcome(true, 50, false, false)));
}

#[test]
fn time_beyond_the_last_tick_does_no_harm() {
    let table = table();
    for _ in 0..20 {
        assert!(charge(&table, 0, LAST_TICK).changed);
    }
}

/// A clock of another quota: twice as many ticks.
fn scale(latest: u64) -> Scale {
    let (from, _) = Clock::for_quota(&super::super::quota::Quota::per_second(16).burst(u32::MAX));
    let (to, _) = Clock::for_quota(&super::super::quota::Quota::per_second(16));
    Scale { from, to, latest }
}

#[tokio::test]
async fn a_table_takes_over_another_one() {
    let old = Arc::new(full(OnFull::Inherit, 100, 5));
    charge(&old, 8, 100); // pushes out the first: the floor is 10, the smallest debt 20
    let new = Table::after(&old, scale(2 * 135));
    let doubled = Limit { interval: 20, capacity: 100 };
    assert_eq!(charge(&old, 1, 100), outcome(true, 30, false, false), "still in use");
    assert_eq!(new.peek(in_one_bucket(1), doubled, 200).unwrap().debt, 60);
    assert_eq!(old.charge(in_one_bucket(1), LIMIT, 100, 1), Err(Moved));
    assert_eq!(new.peek(in_one_bucket(6), doubled, 200).unwrap().debt, 70, "at most a whole burst of the new quota");
    assert!(new.peek(in_one_bucket(8), doubled, 200).unwrap().inherited);
    assert_eq!(new.peek(in_one_bucket(0), doubled, 200).unwrap(), outcome(false, 40, true, false));
    old.charge(1 << 31, LIMIT, 100, 1).unwrap();
    new.settle().await;
    assert_eq!(old.charge(1 << 31, LIMIT, 100, 1), Err(Moved));
    assert_eq!(new.peek(1 << 31, doubled, 200).unwrap().debt, 20);
    assert_eq!(Arc::strong_count(&old), 1, "it lets the old table go");
}

proptest! {
    /// With any number of clients in one bucket, and with refunds, nobody gets what exact GCRA denies it; with few, all
    /// get all.
    #[test]
    fn never_admits_what_exact_gcra_denies(
        clients in 1_u64..30,
        trace in prop::collection::vec((any::<u64>(), 0_u64..4, 1_u64..4, 0_u8..8), 1..400),
    ) {
        let table = table();
        let mut exact: HashMap<u64, u64> = HashMap::new();
        let mut now = 0;
        for (client, pause, cost, action) in trace {
            now += pause;
            let hash = in_one_bucket(client % clients);
            let tat = exact.entry(hash).or_default();
            let debt = gcra::debt(LIMIT, *tat, now);
            match action {
                0 => {
                    table.refund(hash, LIMIT, now, cost).unwrap();
                    *tat = now + gcra::refund(LIMIT, debt, cost);
                }
                1 => {
                    table.penalise(hash, LIMIT, now, cost).unwrap();
                    *tat = now + gcra::penalise(LIMIT, debt, cost);
                }
                _ => {
                    let seen = table.peek(hash, LIMIT, now).unwrap();
                    let outcome = table.charge(hash, LIMIT, now, cost).unwrap();
                    prop_assert_eq!(outcome.changed, gcra::charge(LIMIT, seen.debt, cost).is_some());
                    match gcra::charge(LIMIT, debt, cost) {
                        Some(owed) if outcome.changed => *tat = now + owed,
                        Some(_) => prop_assert!(clients > 7 && outcome.inherited, "refused without need"),
                        None => prop_assert!(!outcome.changed, "admitted what exact GCRA denies"),
                    }
                }
            }
        }
    }

    /// Through a quota's clock, on whole ticks, the table and governor agree.
    #[test]
    fn governor_is_the_oracle(
        interval in 1_u64..2000,
        burst in 1_u32..20,
        trace in prop::collection::vec((0_u64..200_000, 1_u32..4), 1..200),
    ) {
        // So that a tick is a whole number of nanoseconds.
        let interval = Duration::from_nanos(interval << 20);
        let quota = super::super::quota::Quota::new(NonZeroU32::MIN, interval).unwrap().burst(burst);
        let (clock, limit) = Clock::for_quota(&quota);
        let tick = clock.duration(1);
        let fake = FakeRelativeClock::default();
        let governors = Quota::with_period(interval).unwrap().allow_burst(NonZeroU32::new(burst).unwrap());
        let governor = RateLimiter::direct_with_clock(governors, fake.clone());
        let (table, mut now) = (table(), 0);
        for (pause, cost) in trace {
            let pause = tick * u32::try_from(pause % (2 * limit.interval)).unwrap();
            now += u64::try_from(pause.as_nanos()).unwrap();
            fake.advance(pause);
            let ours = table.charge(7, limit, clock.ticks(now), cost.into()).unwrap().changed;
            let governors = matches!(governor.check_n(NonZeroU32::new(cost.min(burst)).unwrap()), Ok(Ok(())));
            prop_assert_eq!(ours, governors);
        }
    }
}

/// Runs `body` on 16 threads that start together.
fn on_16_threads(body: impl Fn(u64) + Sync) {
    let start = Barrier::new(16);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (start, body) = (&start, &body);
            scope.spawn(move || {
                start.wait();
                body(thread);
            });
        }
    });
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn sixteen_threads_on_one_client_admit_the_burst_exactly() {
    let limit = Limit { interval: 10, capacity: 10 * 1000 };
    for round in 0..20 {
        let (table, admitted) = (table(), AtomicI64::new(0));
        on_16_threads(|thread| {
            let mut state = thread;
            for _ in 0..400 {
                let admitted_here = table.charge(in_one_bucket(round), limit, 1, 1).unwrap().changed;
                let give_back = admitted_here && random(&mut state).is_multiple_of(2);
                if give_back {
                    table.refund(in_one_bucket(round), limit, 1, 1).unwrap();
                }
                admitted.fetch_add(i64::from(admitted_here && !give_back), Relaxed);
            }
        });
        assert_eq!(admitted.into_inner(), 1000);
    }
}

#[test]
fn sixteen_threads_that_push_each_other_out_admit_no_client_more_than_its_burst() {
    let limit = Limit { interval: 10, capacity: 10 * 100 };
    for _ in 0..20 {
        let table = table();
        let admitted: Vec<AtomicI64> = (0..24).map(|_| AtomicI64::new(0)).collect();
        on_16_threads(|thread| {
            let mut state = thread + 1;
            for _ in 0..400 {
                let client = random(&mut state) % 24;
                // Threads that read the clock at different times disagree about it.
                let now = 1 + thread % 3;
                let admitted = &admitted[usize::try_from(client).unwrap()];
                if table.charge(in_one_bucket(client), limit, now, 1).unwrap().changed {
                    admitted.fetch_add(1, Relaxed);
                    if random(&mut state).is_multiple_of(4) {
                        admitted.fetch_sub(1, Relaxed);
                        table.refund(in_one_bucket(client), limit, now, 1).unwrap();
                    }
                }
            }
        });
        let most = admitted.into_iter().map(AtomicI64::into_inner).max().unwrap();
        assert!(most <= 100, "{most}");
    }
}

/// The same while tables take over from each other: what is admitted by all of them together is the burst.
#[test]
fn sixteen_threads_and_tables_that_move_admit_the_burst_exactly() {
    let limit = Limit { interval: 10, capacity: 10 * 1000 };
    let same = Scale { to: scale(0).from, ..scale(LAST_TICK) };
    for _ in 0..20 {
        let current = arc_swap::ArcSwap::from_pointee(table());
        let admitted: Vec<AtomicI64> = (0..3).map(|_| AtomicI64::new(0)).collect();
        on_16_threads(|thread| {
            if thread == 0 {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                for _ in 0..10 {
                    let next = Arc::new(Table::after(&current.load_full(), same));
                    current.store(next.clone());
                    runtime.block_on(next.settle());
                }
                return;
            }
            let mut state = thread;
            for _ in 0..800 {
                let client = random(&mut state) % 3;
                let outcome = loop {
                    if let Ok(outcome) = current.load().charge(in_one_bucket(client), limit, 1, 1) {
                        break outcome;
                    }
                };
                admitted[usize::try_from(client).unwrap()].fetch_add(i64::from(outcome.changed), Relaxed);
            }
        });
        assert_eq!(admitted.into_iter().map(AtomicI64::into_inner).collect::<Vec<_>>(), [1000; 3]);
    }
}
