//! One bucket of two slots under loom, which tries every order of steps, and every value that a relaxed load may see.
//!
//! `RUSTFLAGS="--cfg loom_table" cargo test --lib --features rate-limit --target-dir target/loom table::checked`

use loom::thread::{self, JoinHandle};

use super::super::clock::{Clock, LAST_TICK};
use super::super::quota::Quota;
use super::*;

/// A burst of two.
const LIMIT: Limit = Limit { interval: 10, capacity: 20 };
const NOW: u64 = 100;
const A: u64 = 1 << 45;
const B: u64 = 2 << 45;
const C: u64 = 3 << 45;

fn table(charged: &[u64]) -> Arc<Table> {
    let table = Table::new(0, OnFull::Inherit);
    for client in charged {
        assert_eq!(charge(&table, *client), 1);
    }
    Arc::new(table)
}

fn charge(table: &Table, client: u64) -> u64 {
    let Ok(outcome) = table.charge(client, LIMIT, NOW, 1) else { unreachable!("no other table") };
    outcome.changed.into()
}

fn refund(table: &Table, client: u64) {
    assert!(table.refund(client, LIMIT, NOW, 1).is_ok());
}

fn owes(table: &Table, client: u64) -> u64 {
    let Ok(outcome) = table.peek(client, LIMIT, NOW) else { unreachable!("no other table") };
    outcome.debt
}

fn slots_of(table: &Table, client: u64) -> usize {
    table.bucket(0).count(Tag::of(client))
}

/// Two threads, and what the first of them counted.
fn race<T: 'static>(table: &Arc<Table>, first: fn(&Table) -> T, second: fn(&Table)) -> T {
    let run = {
        let table = table.clone();
        thread::spawn(move || second(&table))
    };
    let counted = first(table);
    join(run);
    counted
}

fn join<T>(thread: JoinHandle<T>) -> T {
    let Ok(result) = thread.join() else { unreachable!("it panicked") };
    result
}

#[test]
fn two_insertions_of_a_client_make_one_slot() {
    loom::model(|| {
        let table = table(&[B]);
        race(&table, |table| assert_eq!(charge(table, A), 1), |table| assert_eq!(charge(table, A), 1));
        assert_eq!((slots_of(&table, A), owes(&table, A), charge(&table, A)), (1, 20, 0));
    });
}

#[test]
fn a_refund_while_the_client_comes_back_makes_no_second_slot() {
    loom::model(|| {
        // A owes most, B is the next to be pushed out.
        let table = table(&[A, B]);
        race(
            &table,
            |table| {
                charge(table, C);
                charge(table, B);
            },
            |table| {
                refund(table, B);
                charge(table, B);
            },
        );
        assert!(slots_of(&table, A) + slots_of(&table, B) + slots_of(&table, C) == 2);
        assert!([A, B, C].iter().all(|client| slots_of(&table, *client) <= 1));
    });
}

#[test]
fn who_is_pushed_out_and_comes_back_has_its_debt() {
    loom::model(|| {
        let table = table(&[A, B]);
        let admitted = race(
            &table,
            |table| charge(table, A) + charge(table, A),
            |table| {
                charge(table, C);
                refund(table, C);
            },
        );
        assert!(admitted <= 1, "one of the burst was used before");
        assert!(admitted + charge(&table, A) <= 1);
    });
}

#[test]
fn newcomers_that_are_given_back_wash_nothing_out() {
    loom::model(|| {
        let table = table(&[A, A, B, B]);
        race(
            &table,
            |table| {
                table.penalise(C, LIMIT, NOW, 1).ok();
                refund(table, C);
            },
            |table| {
                table.penalise(4 << 45, LIMIT, NOW, 1).ok();
                refund(table, 4 << 45);
            },
        );
        assert_eq!((charge(&table, A), charge(&table, B)), (0, 0));
    });
}

#[test]
fn a_charge_and_a_refund_of_one_client_both_count() {
    loom::model(|| {
        let table = table(&[A]);
        let admitted = race(&table, |table| charge(table, A), |table| refund(table, A));
        assert_eq!((admitted, owes(&table, A)), (1, 10));
    });
}

#[test]
fn a_table_that_is_taken_over_loses_no_charge() {
    loom::model(|| {
        let (clock, _) = Clock::for_quota(&Quota::per_second(1 << 16));
        let old = table(&[B]);
        let new = Arc::new(Table::after(&old, Scale { from: clock, to: clock, latest: LAST_TICK }));
        let late = {
            let (old, new) = (old.clone(), new.clone());
            // It found the old table before the new one was put in its place.
            thread::spawn(move || match old.charge(A, LIMIT, NOW, 1) {
                Ok(outcome) => u64::from(outcome.changed),
                Err(Moved) => charge(&new, A),
            })
        };
        let admitted = charge(&new, A) + charge(&new, B);
        assert_eq!(admitted + join(late), 3);
        assert_eq!((slots_of(&new, A), slots_of(&new, B), charge(&new, A), charge(&new, B)), (1, 1, 0, 0));
    });
}
