//! Floods of fresh clients, as share of the clients that the table has slots for, within the time that a debt lasts.
#![allow(clippy::unwrap_used, reason = "also outside the tests themselves")]

use std::hash::{BuildHasher, RandomState};

use super::*;

const LIMIT: Limit = Limit { interval: 1 << 20, capacity: 20 << 20 };
const SLOTS: usize = 2 * 448;
/// How long the flood lasts.
const INTERVALS: u64 = 20;

struct Flooded {
    /// What a client got that sends all the time, ten times as often as it may.
    abuser: u64,
    /// Of clients that send one request in the flood, per cent.
    admitted: u64,
}

/// `tenths`: how much of the table one interval's fresh clients would fill.
fn flood(on_full: OnFull, tenths: u64) -> Flooded {
    const ABUSER: u64 = u64::MAX;
    let (table, hasher) = (Table::new(SLOTS, on_full), RandomState::new());
    let ask = |client: u64, now| u64::from(table.charge(hasher.hash_one(client), LIMIT, now, 1).unwrap().changed);
    let clients = INTERVALS * SLOTS as u64 * tenths / 10;
    let time = |client: u64| 1 + INTERVALS * LIMIT.interval / clients * client;
    let (mut abuser, mut asked, mut seen, mut admitted) = (0, 0, 0, 0);
    for client in 0..clients {
        let now = time(client);
        while asked * LIMIT.interval / 10 < now {
            abuser += ask(ABUSER, now);
            asked += 1;
        }
        let answer = ask(client, now);
        // The first interval fills the table.
        if client > clients / INTERVALS && client.is_multiple_of(7) {
            (seen, admitted) = (seen + 1, admitted + answer);
        }
    }
    Flooded { abuser, admitted: admitted * 100 / seen }
}

#[test]
fn a_flood_washes_no_debt_out_and_refuses_few_newcomers_while_the_table_has_room() {
    for (tenths, at_least) in [(5, 99), (50, 10), (500, 1)] {
        let Flooded { abuser, admitted } = flood(OnFull::Inherit, tenths);
        println!(
            "flood of {}.{} × the slots: {admitted} % of newcomers admitted, abuser {abuser}",
            tenths / 10,
            tenths % 10
        );
        assert!(admitted >= at_least, "{admitted} % at {tenths}");
        let bound = 20 + INTERVALS;
        assert!(abuser <= bound, "{abuser} at {tenths}");
        assert!(tenths > 5 || abuser >= bound - 1, "{abuser}: it gets its quota");
    }
}

#[test]
fn with_admit_every_newcomer_is_admitted() {
    for tenths in [5, 50, 500] {
        let Flooded { abuser, admitted } = flood(OnFull::Admit, tenths);
        println!("the same with Admit: {admitted} %, abuser {abuser}");
        assert!(admitted >= 99, "{admitted} % at {tenths}");
    }
}

/// How many of a million newcomers, one after the other, find a full bucket, per 10 000: the sizing in the module page.
#[test]
fn how_many_newcomers_inherit_by_slots_per_client() {
    const CLIENTS: u64 = 1 << 15;
    let hasher = RandomState::new();
    // While the clients come, and with as many of them in debt all the time.
    for (slots, filling, later) in [(1, 1600, 8000), (2, 130, 1200), (4, 8, 60)] {
        let table = Table::new(usize::try_from(slots * CLIENTS).unwrap(), OnFull::Inherit);
        // Each pays within the time in which as many others come.
        let limit = Limit { interval: CLIENTS, capacity: CLIENTS * 1000 };
        let inherits = |clients: std::ops::Range<u64>| {
            let count = clients.end - clients.start;
            let inherited = clients
                .filter(|client| table.charge(hasher.hash_one(client), limit, 1 + client, 1).unwrap().inherited)
                .count() as u64;
            inherited * 10_000 / count
        };
        let (first, then) = (inherits(0..CLIENTS), inherits(CLIENTS..5 * CLIENTS));
        println!("{slots} slots per client: {first} of 10 000 while they come, {then} later");
        assert!(first <= filling && then <= later, "{slots}: {first}, {then}");
    }
}
