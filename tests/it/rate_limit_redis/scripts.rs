//! The scripts, with a clock of the test's own: a model in Rust, on gcra.rs, must say and store the same.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use governor::clock::FakeRelativeClock;
use governor::{Quota, RateLimiter};
use proptest::prelude::*;
use redis::{Connection, FromRedisValue, Pipeline, Value};

use crate::support::redis_server::RedisServer;

#[allow(dead_code, reason = "not all of it has a mirror image")]
#[path = "../../../src/rate_limit/gcra.rs"]
mod gcra;

use gcra::Limit;

const STATE: &str = include_str!("../../../src/rate_limit/remote/state.lua");
const TAKE: &str = include_str!("../../../src/rate_limit/remote/take.lua");
const SETTLE: &str = include_str!("../../../src/rate_limit/remote/settle.lua");

struct Bench {
    server: RedisServer,
    connection: Connection,
    take: String,
    settle: String,
    keys: u32,
}

impl Bench {
    fn start() -> Self {
        let server = RedisServer::start();
        let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let mut load = |script: &str| {
            let clocked = STATE.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}");
            assert_ne!(clocked, STATE);
            redis::cmd("SCRIPT").arg("LOAD").arg(clocked + script).query(&mut connection).unwrap()
        };
        let (take, settle) = (load(TAKE), load(SETTLE));
        Self { server, connection, take, settle, keys: 0 }
    }

    fn key(&mut self) -> String {
        self.keys += 1;
        format!("key{}", self.keys)
    }

    fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        redis::cmd(words[0]).arg(&words[1..]).query(&mut self.connection).unwrap()
    }

    fn run(&mut self, pipeline: &Pipeline) -> Vec<Value> {
        pipeline.query(&mut self.connection).unwrap()
    }
}

/// A year ahead, so that no key expires meanwhile.
fn start() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_secs(365 * 86_400);
    u64::try_from(now.as_micros()).unwrap()
}

/// One key, its quotas, and what they are to be told.
type Words = Vec<(String, Vec<(Limit, i64)>)>;

fn add(pipeline: &mut Pipeline, script: &str, first: &str, records: &Words, now: u64) {
    pipeline.cmd("EVALSHA").arg(script).arg(records.len());
    for (key, _) in records {
        pipeline.arg(key);
    }
    pipeline.arg(first);
    for (_, quotas) in records {
        pipeline.arg(quotas.len());
        for (limit, step) in quotas {
            pipeline.arg(limit.capacity).arg(step);
        }
    }
    pipeline.arg(now / 1_000_000).arg(now % 1_000_000);
}

fn numbers(answer: &Value) -> Vec<u64> {
    Vec::<u64>::from_redis_value_ref(answer).unwrap()
}

#[test]
fn the_script_and_governor_and_the_table_agree() {
    let bench = RefCell::new(Bench::start());
    let strategy = (1_u64..50, 1_u32..20, prop::collection::vec((0_u64..60, 1_u32..4), 1..120));
    proptest!(ProptestConfig::with_cases(100), |((interval, burst, trace) in strategy)| {
        let bench = &mut *bench.borrow_mut();
        let quota = Quota::with_period(Duration::from_micros(interval)).unwrap();
        let clock = FakeRelativeClock::default();
        let governor =
            RateLimiter::direct_with_clock(quota.allow_burst(NonZeroU32::new(burst).unwrap()), clock.clone());
        let limit = Limit { interval, capacity: interval * u64::from(burst) };
        let (key, mut pipeline, mut expected) = (bench.key(), redis::pipe(), Vec::new());
        let (mut now, mut tat) = (start(), 0);
        for (pause, cost) in trace {
            clock.advance(Duration::from_micros(pause));
            now += pause;
            let cost = cost.min(burst);
            let admitted = matches!(governor.check_n(NonZeroU32::new(cost).unwrap()), Ok(Ok(_)));
            let charged = gcra::charge(limit, gcra::debt(limit, tat, now), cost.into());
            prop_assert_eq!(charged.is_some(), admitted);
            tat = charged.map_or(tat, |debt| now + debt);
            let step = i64::try_from(interval).unwrap() * i64::from(cost);
            add(&mut pipeline, &bench.take, "1", &vec![(key.clone(), vec![(limit, step)])], now);
            expected.push(vec![u64::from(admitted), 0, gcra::debt(limit, tat, now)]);
        }
        let answers: Vec<_> = bench.run(&pipeline).iter().map(numbers).collect();
        prop_assert_eq!(answers, expected);
    });
}

/// What the scripts should do, said in Rust.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Of the client's own key and of its tier's: the TATs; nothing if there is no such key.
    keys: [Option<Vec<u64>>; 2],
    /// Until when, and for how long.
    blocked: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
enum Step {
    Take { cost: u64, wanted: u64 },
    Settle { charge: i64 },
    Block(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1_u64..5, 0_u64..6).prop_map(|(cost, wanted)| Step::Take { cost, wanted }),
        3 => (-4_i64..5).prop_map(|charge| Step::Settle { charge }),
        1 => (0_u64..3000).prop_map(Step::Block),
    ]
}

impl Model {
    fn debts(&self, limits: &[Vec<Limit>; 2], now: u64) -> [Vec<u64>; 2] {
        [0, 1].map(|key| {
            let tat = |quota: usize| self.keys[key].as_ref().map_or(0, |tats| tats[quota]);
            limits[key].iter().enumerate().map(|(quota, limit)| gcra::debt(*limit, tat(quota), now)).collect()
        })
    }

    fn block(&self, now: u64) -> u64 {
        self.blocked.map_or(0, |(until, length)| until.saturating_sub(now).min(length))
    }

    fn store(&mut self, key: usize, debts: &[u64], now: u64) {
        let block = if key == 0 { self.block(now) } else { 0 };
        if key == 0 {
            self.blocked = self.blocked.filter(|_| block > 0).map(|(_, length)| (now + block, length));
        }
        let owes = block > 0 || debts.iter().any(|debt| *debt > 0);
        self.keys[key] = owes.then(|| debts.iter().map(|debt| now + debt).collect());
    }

    /// Whether something lies further ahead than it ever can: the clock went back, or a quota was cut.
    fn ahead(&self, key: usize, limits: &[Limit], now: u64) -> bool {
        let tats = self.keys[key].iter().flatten();
        let blocked = self.blocked.filter(|_| key == 0).is_some_and(|(until, length)| until > now + length);
        blocked || tats.zip(limits).any(|(tat, limit)| *tat > now + limit.capacity)
    }

    fn take(&mut self, limits: &[Vec<Limit>; 2], cost: u64, wanted: u64, now: u64) -> Vec<u64> {
        let mut debts = self.debts(limits, now);
        let mut granted = 0;
        // One by one, as the script does not.
        while granted < wanted && self.block(now) == 0 {
            let charged = [0, 1].map(|key| {
                let charge = |(limit, debt): (&Limit, &u64)| gcra::charge(*limit, *debt, cost);
                limits[key].iter().zip(&debts[key]).map(charge).collect::<Option<Vec<_>>>()
            });
            let [Some(own), Some(tier)] = charged else { break };
            debts = [own, tier];
            granted += 1;
        }
        let answer = [vec![granted, self.block(now)], debts.concat()].concat();
        for key in [0, 1] {
            if wanted > 0 && (granted > 0 || self.ahead(key, &limits[key], now)) {
                self.store(key, &debts[key], now);
            }
        }
        answer
    }

    fn settle(&mut self, limits: &[Vec<Limit>; 2], keys: usize, charge: i64, now: u64) {
        let debts = self.debts(limits, now);
        for key in 0..keys {
            let settle = if charge < 0 { gcra::refund } else { gcra::penalise };
            let settled = |(limit, debt): (&Limit, &u64)| settle(*limit, *debt, charge.unsigned_abs());
            let debts: Vec<_> = limits[key].iter().zip(&debts[key]).map(settled).collect();
            self.store(key, &debts, now);
        }
    }

    /// The values as they are in Redis, and when their keys expire.
    fn stored(&self) -> Vec<(Option<String>, i64)> {
        let stored = |key: usize| {
            let Some(tats) = &self.keys[key] else { return (None, -2) };
            let (mut numbers, mut last) = (tats.clone(), *tats.iter().max().unwrap());
            if let Some((until, length)) = self.blocked.filter(|_| key == 0) {
                numbers.extend([until, length]);
                last = last.max(until);
            }
            let words: Vec<_> = numbers.iter().map(u64::to_string).collect();
            (Some(words.join(",")), i64::try_from(last.div_ceil(1000)).unwrap())
        };
        [0, 1].map(stored).to_vec()
    }
}

/// Several quotas and a tier, any number of requests at once, gifts and penalties, blocks, cut quotas, and a clock that
/// goes back.
#[test]
fn the_scripts_do_what_the_model_does() {
    let bench = RefCell::new(Bench::start());
    let quotas = |most| prop::collection::vec((1_u64..600, 1_u64..12), 1..most);
    let quotas = (quotas(4), quotas(3));
    let trace = prop::collection::vec((-300_i64..900, step(), prop::bool::weighted(0.1)), 1..60);
    proptest!(ProptestConfig::with_cases(150), |((own, tier) in quotas, trace in trace)| {
        let bench = &mut *bench.borrow_mut();
        let limit = |(interval, burst): &(u64, u64)| Limit { interval: *interval, capacity: interval * burst };
        let mut limits = [&own, &tier].map(|quotas| quotas.iter().map(limit).collect::<Vec<_>>());
        let keys = [bench.key(), bench.key()];
        let (mut model, mut pipeline, mut expected, mut now) = (Model::default(), redis::pipe(), Vec::new(), start());
        for (pause, step, cut) in trace {
            now = now.checked_add_signed(pause).unwrap();
            if cut {
                let quota = &mut limits[0][0];
                quota.capacity = (quota.capacity / quota.interval).div_ceil(2) * quota.interval;
            }
            let words = |count: usize, step: &dyn Fn(&Limit) -> i64| {
                let record = |key: usize| {
                    (keys[key].clone(), limits[key].iter().map(|limit| (*limit, step(limit))).collect())
                };
                (0..count).map(record).collect::<Words>()
            };
            let charge = |limit: &Limit, cost: u64| i64::try_from(gcra::price(*limit, cost)).unwrap();
            match step {
                Step::Take { cost, wanted } => {
                    let records = words(2, &|limit| charge(limit, cost));
                    add(&mut pipeline, &bench.take, &wanted.to_string(), &records, now);
                    expected.push(model.take(&limits, cost, wanted, now));
                }
                Step::Settle { charge: cost } => {
                    let records = words(2, &|limit| cost.signum() * charge(limit, cost.unsigned_abs()));
                    add(&mut pipeline, &bench.settle, "", &records, now);
                    model.settle(&limits, 2, cost, now);
                    expected.push(vec![]);
                }
                Step::Block(length) => {
                    add(&mut pipeline, &bench.settle, &length.to_string(), &words(1, &|_| 0), now);
                    model.blocked = Some((now + length, length));
                    model.settle(&limits, 1, 0, now);
                    expected.push(vec![]);
                }
            }
        }
        for key in &keys {
            pipeline.cmd("GET").arg(key).cmd("PEXPIRETIME").arg(key);
        }
        let mut answers = bench.run(&pipeline);
        let stored = answers.split_off(expected.len());
        let answers: Vec<_> = answers.iter().map(|answer| if *answer == Value::Nil { vec![] } else { numbers(answer) }).collect();
        prop_assert_eq!(answers, expected);
        let stored: Vec<_> = stored.chunks(2).map(|pair| {
            (Option::<String>::from_redis_value_ref(&pair[0]).unwrap(), i64::from_redis_value_ref(&pair[1]).unwrap())
        }).collect();
        prop_assert_eq!(stored, model.stored());
    });
}

/// A capacity of 142 years, and all of the debts that the scripts can meet on the way there.
#[test]
fn large_numbers_are_exact() {
    let mut bench = Bench::start();
    let limit = Limit { interval: (1 << 52) / 3, capacity: 1 << 52 };
    let records = vec![(bench.key(), vec![(limit, 1)])];
    let (now, mut pipeline) = (start(), redis::pipe());
    add(&mut pipeline, &bench.take, "4294967295", &records, now);
    let all =
        vec![(records[0].0.clone(), vec![(limit, i64::try_from(limit.capacity - u64::from(u32::MAX) - 1).unwrap())])];
    for wanted in ["1", "1"] {
        add(&mut pipeline, &bench.take, wanted, &all, now);
    }
    add(&mut pipeline, &bench.take, "9", &records, now);
    add(&mut pipeline, &bench.settle, "", &vec![(records[0].0.clone(), vec![(limit, -7)])], now);
    pipeline.cmd("GET").arg(&records[0].0);
    let answers = bench.run(&pipeline);
    let most = limit.capacity;
    let expected = [[u64::from(u32::MAX), 0, u32::MAX.into()], [1, 0, most - 1], [0, 0, most - 1], [1, 0, most]];
    for (answer, expected) in answers.iter().zip(expected) {
        assert_eq!(numbers(answer), expected);
    }
    assert_eq!(answers[5], Value::BulkString((now + most - 7).to_string().into_bytes()));
}

#[test]
fn one_quota_is_one_integer_and_a_key_takes_little() {
    const KEYS: u64 = 20_000;
    let mut bench = Bench::start();
    let used = |bench: &mut Bench| -> u64 {
        let info: String = bench.ask(&["INFO", "memory"]);
        info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().parse().unwrap()
    };
    let limit = Limit { interval: 600_000, capacity: 60_000_000 };
    for (quotas, most) in [(1, 200), (2, 260)] {
        bench.ask::<()>(&["FLUSHALL"]);
        let before = used(&mut bench);
        let key = |n: u64| format!("ts:rl:default:01234567:203.{}.{}.{}", quotas, n / 250, n % 250);
        for batch in 0..KEYS / 1000 {
            let mut pipeline = redis::pipe();
            for n in batch * 1000..(batch + 1) * 1000 {
                let records = vec![(key(n), vec![(limit, 600_000); quotas])];
                add(&mut pipeline, &bench.take, "1", &records, start());
            }
            bench.run(&pipeline);
        }
        assert_eq!(bench.ask::<String>(&["OBJECT", "ENCODING", &key(0)]), ["int", "embstr"][quotas - 1]);
        let each = (used(&mut bench) - before) / KEYS;
        println!("{each} bytes per key with {quotas} quotas");
        assert!(each < most, "{each}");
    }
}

#[test]
fn a_refund_of_what_is_paid_leaves_nothing() {
    let mut bench = Bench::start();
    let limit = Limit { interval: 1000, capacity: 5000 };
    let (own, tier) = (bench.key(), bench.key());
    let mut pipeline = redis::pipe();
    let records = |step| vec![(own.clone(), vec![(limit, step), (limit, step)]), (tier.clone(), vec![(limit, step)])];
    add(&mut pipeline, &bench.settle, "", &records(-1000), start());
    add(&mut pipeline, &bench.take, "1", &records(1000), start());
    add(&mut pipeline, &bench.settle, "", &records(-1000), start() + 500);
    add(&mut pipeline, &bench.settle, "", &records(-1000), start() + 500);
    bench.run(&pipeline);
    assert_eq!(bench.ask::<u32>(&["DBSIZE"]), 0);
    assert_eq!(bench.server.calls("persist"), 0);
}

/// Whatever else has come to be under a key of ours, it is not worth an error for each request of a client.
#[test]
fn what_nobody_of_us_wrote_is_overcome() {
    let mut bench = Bench::start();
    let limit = Limit { interval: 1000, capacity: 5000 };
    let key = bench.key();
    for value in ["-1", "", "nonsense", "1e400", "99999999999999999999999999", "1,2,3,4,5,6,7", ",,,"] {
        bench.ask::<()>(&["SET", &key, value]);
        let (records, mut pipeline) = (vec![(key.clone(), vec![(limit, 1000)])], redis::pipe());
        for pause in [0, 6000] {
            add(&mut pipeline, &bench.take, "1", &records, start() + pause);
        }
        pipeline.cmd("PEXPIRETIME").arg(&key);
        let answers = bench.run(&pipeline);
        assert_eq!(numbers(&answers[1])[..2], [1, 0], "{value}");
        assert!(matches!(answers[2], Value::Int(1..)), "{value}");
    }
}
