//! One limit over several processes, proven from outside: four processes with wrong wall clocks, and real Redis, as one
//! server, as a cluster of three masters, and behind a sentinel.
//!
//! One test at a time: they look at times, and each starts many processes.

mod bound;
mod instance;
mod process;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;

use self::bound::Bound;
use self::instance::{Command, Made, Settings, clock};
use self::process::{Process, SKEWS, let_run};
use crate::fleet::TURN;
use crate::support::fleet::{Servers, Setup};

const SECOND: Duration = Duration::from_secs(1);
const INSTANCES: usize = SKEWS.len();
/// Of the fallback: one of four.
const SHARE: f64 = 0.25;
const RATE: u32 = 50;
const BURST: u32 = 20;
const BOUND: Bound = Bound { burst: 20.0, rate: 50.0 };
/// Several, so that a cluster has some of them on each master.
const CLIENTS: u8 = 4;
/// No busy machine is as late as that: what Redis should decide, it decides.
const PATIENT: Duration = Duration::from_secs(5);
/// What users get.
const BUDGET: Duration = Duration::from_millis(20);
/// Every process makes a request of every client that often: all together 4 times as many as the quota allows.
const EVERY: Duration = Duration::from_millis(20);

fn settings(budget: Duration) -> Settings {
    Settings { quota: (RATE, BURST), budget, share: Some(SHARE), lease: None }
}

fn client(number: u8) -> IpAddr {
    [203, 0, 113, number].into()
}

struct Fleet {
    processes: Vec<Process>,
    servers: Servers,
    _turn: MutexGuard<'static, ()>,
}

impl Fleet {
    fn start(setup: Setup, settings: &Settings) -> Self {
        let turn = TURN.blocking_lock();
        let servers = Servers::start(setup);
        let processes = SKEWS.iter().map(|skew| Process::start(&servers, settings, *skew)).collect();
        Self { processes, servers, _turn: turn }
    }

    /// Requests of all clients, through all processes.
    fn load(&mut self) {
        let clients = (0..CLIENTS).map(client).collect();
        self.all(&Command::Load { clients, every: EVERY });
    }

    fn all(&mut self, command: &Command) {
        self.processes.iter_mut().for_each(|process| process.begin(command));
        assert!(self.processes.iter_mut().all(Process::is_done), "{command:?}");
    }

    fn one(&mut self, number: usize, command: &Command) {
        self.processes[number].begin(command);
        assert!(self.processes[number].is_done(), "{command:?}");
    }

    /// What each process has made.
    fn stop(&mut self) -> Vec<Vec<Made>> {
        self.processes.iter_mut().for_each(|process| process.begin(&Command::Stop));
        self.processes.iter_mut().map(Process::made).collect()
    }
}

/// Those that were admitted, by client.
fn admitted(made: &[Made]) -> BTreeMap<IpAddr, Vec<Made>> {
    let mut admitted = BTreeMap::new();
    for made in made {
        let of_client: &mut Vec<_> = admitted.entry(made.client).or_default();
        if made.status == 200 {
            of_client.push(*made);
        }
    }
    admitted
}

fn count(made: &[Made]) -> f64 {
    u32::try_from(made.len()).unwrap().into()
}

fn within(made: &[Made], from: u64, to: u64) -> Vec<Made> {
    made.iter().filter(|made| made.begun >= from && made.ended <= to).copied().collect()
}

fn assert_statuses(made: &[Made], allowed: &[u16]) {
    let wrong = made.iter().find(|made| !allowed.contains(&made.status));
    assert!(wrong.is_none(), "{wrong:?}");
}

fn percentile(of: impl Iterator<Item = u64>, percent: usize) -> Duration {
    let mut sorted: Vec<_> = of.collect();
    sorted.sort_unstable();
    Duration::from_micros(sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)])
}

/// What the layer adds to a request stays within the budget. By how much a process is late on this machine comes on top,
/// twice: by that much it notices late that the budget is over, and that much longer it waits then, since an answer may
/// have come meanwhile.
fn assert_fast(made: &[Made]) {
    let added = percentile(made.iter().map(|made| made.ended - made.begun), 99);
    let late = percentile(made.iter().map(|made| made.late), 99);
    eprintln!("{} requests: added {added:?} (p99), while the process was late by {late:?} (p99)", made.len());
    assert!(added <= BUDGET + Duration::from_millis(5) + 2 * late, "{added:?}, late by {late:?}");
}

/// All four count together, to the request, whatever they take for the time of day, and whatever scripts Redis forgets.
fn all_count_together(setup: Setup, lease: Option<(u32, Duration)>) {
    let mut fleet = Fleet::start(setup, &Settings { lease, ..settings(PATIENT) });
    let started = Instant::now();
    fleet.load();
    while started.elapsed() < 3 * SECOND {
        let_run(SECOND / 4);
        for master in fleet.servers.masters() {
            assert!(master.command(&["SCRIPT", "FLUSH"]).starts_with("+OK"));
        }
    }
    let made = fleet.stop().concat();
    assert_statuses(&made, &[200, 429]);
    assert!(!made.iter().any(|made| made.degraded), "Redis decides");
    let life = lease.map_or(Duration::ZERO, |(_, life)| life);
    let least = BOUND.over(3 * SECOND * 8 / 10);
    for (client, admitted) in admitted(&made) {
        assert_eq!(BOUND.exceeded_with(&admitted, life), None, "{client}");
        assert!(count(&admitted) > least, "{client}: {}", admitted.len());
    }
}

#[test]
fn all_count_together_on_one_server() {
    all_count_together(Setup::Standalone, None);
}

#[test]
fn all_count_together_on_a_cluster() {
    all_count_together(Setup::Cluster, None);
}

#[test]
fn leases_exceed_a_quota_by_their_life_only() {
    all_count_together(Setup::Standalone, Some((10, SECOND / 4)));
}

/// While Redis stands still, each process has its share, and nobody waits for long.
fn a_frozen_redis_costs_a_share_each(setup: Setup) {
    let mut fleet = Fleet::start(setup, &settings(BUDGET));
    fleet.load();
    let_run(SECOND);
    fleet.servers.freeze();
    let frozen = clock();
    let_run(2 * SECOND);
    let thawed = clock();
    fleet.servers.thaw();
    let_run(3 * SECOND);
    let made = fleet.stop().concat();
    assert_statuses(&made, &[200, 429]);
    let away = within(&made, frozen, thawed);
    assert_fast(&away);
    assert!(away.iter().any(|made| made.degraded));
    // The breakers are closed again within a second or so.
    let back = within(&made, thawed + 2_000_000, u64::MAX);
    let away_bound = 4.0 * SHARE * BOUND.over(Duration::from_micros(thawed - frozen));
    let (away, back) = (admitted(&away), admitted(&back));
    for (client, admitted) in &away {
        eprintln!("{client}: {} admitted without Redis, of {away_bound:.1}", admitted.len());
        assert!(count(admitted) <= away_bound, "{client}: {}", admitted.len());
        assert!(count(admitted) >= away_bound / 4.0, "{client}: {}", admitted.len());
    }
    for (client, admitted) in &back {
        assert_eq!(BOUND.exceeded_by(admitted), None, "{client}");
    }
}

#[test]
fn a_frozen_server_costs_a_share_each() {
    a_frozen_redis_costs_a_share_each(Setup::Standalone);
}

#[test]
fn a_frozen_cluster_costs_a_share_each() {
    a_frozen_redis_costs_a_share_each(Setup::Cluster);
}

/// One master of three stands still: its clients are limited by shares, the others as ever.
#[test]
fn a_frozen_master_concerns_its_own_clients() {
    let mut fleet = Fleet::start(Setup::Cluster, &settings(BUDGET));
    fleet.load();
    let_run(SECOND);
    fleet.servers.masters()[1].freeze();
    let frozen = clock();
    let_run(2 * SECOND);
    let thawed = clock();
    fleet.servers.masters()[1].thaw();
    let made = fleet.stop().concat();
    assert_statuses(&made, &[200, 429]);
    let away = within(&made, frozen, thawed);
    assert_fast(&away);
    let bound = BOUND.over(Duration::from_micros(thawed - frozen));
    for (client, admitted) in admitted(&away) {
        assert!(count(&admitted) <= 2.0 * bound, "{client}: {}", admitted.len());
    }
}

/// For logins: whom Redis does not admit nobody admits.
#[test]
fn a_fallback_that_refuses_admits_nobody() {
    let mut fleet = Fleet::start(Setup::Standalone, &Settings { share: None, ..settings(BUDGET) });
    fleet.load();
    let_run(SECOND);
    fleet.servers.freeze();
    let frozen = clock();
    let_run(SECOND);
    let thawed = clock();
    fleet.servers.thaw();
    let_run(2 * SECOND);
    let made = fleet.stop().concat();
    assert_statuses(&made, &[200, 429, 503]);
    let away = within(&made, frozen, thawed);
    assert_statuses(&away, &[429, 503]);
    assert!(away.iter().any(|made| made.status == 503));
    assert_fast(&away);
    for (client, admitted) in admitted(&made) {
        assert_eq!(BOUND.exceeded_by(&admitted), None, "{client}");
    }
}

/// A replica takes over. What it had not heard of is forgiven: a burst at most.
#[test]
fn a_failover_costs_a_share_each_and_a_burst() {
    let mut fleet = Fleet::start(Setup::Sentinel, &settings(BUDGET));
    fleet.load();
    let_run(SECOND);
    let killed = clock();
    let Servers::Sentinel(servers) = &mut fleet.servers else { panic!("no sentinel") };
    servers.fail_over();
    let over = clock();
    let_run(3 * SECOND);
    let made = fleet.stop();
    let end = clock();
    for made in &made {
        let last = made.iter().filter(|made| made.degraded).map(|made| made.ended).max().expect("some are degraded");
        assert!(last < end - 500_000, "it has not found the new master");
        eprintln!("Redis decides again {} ms after the failover", last.saturating_sub(over) / 1000);
    }
    let made = made.concat();
    assert_statuses(&made, &[200, 429]);
    let (degraded, all) = made.iter().fold((killed, u64::MAX), |(last, first), made| {
        (if made.degraded { last.max(made.ended) } else { last }, first.min(made.begun))
    });
    assert_fast(&within(&made, killed, degraded));
    let outage = Duration::from_micros(degraded - killed);
    let most = BOUND.over(Duration::from_micros(end - all)) + BOUND.over(outage) + BOUND.burst;
    for (client, admitted) in admitted(&made) {
        eprintln!("{client}: {} admitted, of {most:.1}", admitted.len());
        assert!(count(&admitted) <= most, "{client}: {}", admitted.len());
        assert_eq!(BOUND.exceeded_by(&within(&admitted, degraded + 1, u64::MAX)), None, "{client}");
    }
}

/// What one process changes of a client counts in all others a second later, whatever the machine is busy with.
fn changes_reach_all(setup: Setup) {
    let mut fleet = Fleet::start(setup, &Settings { quota: (1, 3), ..settings(PATIENT) });
    fleet.load();
    let_run(SECOND);
    let changes = [
        Command::SetQuota(1000, 1000),
        Command::Block(client(0), 60 * SECOND),
        Command::Block(client(1), 60 * SECOND),
        Command::Reset(client(0)),
        Command::SetQuota(2000, 2000),
    ];
    let mut spans = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        fleet.one(number % INSTANCES, change);
        // Who is late to hear of a quota still asks by the old one, and here all are late sometimes.
        let seconds = if matches!(change, Command::SetQuota(..)) { 2 } else { 1 };
        let counts = clock() + seconds * 1_000_000;
        let_run(SECOND / 4 + Duration::from_secs(seconds));
        spans.push((counts, clock()));
    }
    let blocked: [&[u8]; 5] = [&[], &[0], &[0, 1], &[1], &[1]];
    for made in fleet.stop() {
        for (number, (from, to)) in spans.iter().enumerate() {
            let made = within(&made, *from, *to);
            assert!(made.len() > usize::from(CLIENTS), "{}", made.len());
            for made in made {
                let is_blocked = blocked[number].iter().any(|blocked| client(*blocked) == made.client);
                assert_eq!(
                    made.status,
                    if is_blocked { 429 } else { 200 },
                    "{} us into {number}: {made:?}",
                    made.begun - from
                );
                let quota = if number < 4 { 1000 } else { 2000 };
                assert!(made.announced.is_none_or(|announced| announced == quota), "after change {number}: {made:?}");
            }
        }
    }
}

#[test]
fn changes_reach_all_on_one_server() {
    changes_reach_all(Setup::Standalone);
}

#[test]
fn changes_reach_all_on_a_cluster() {
    changes_reach_all(Setup::Cluster);
}
