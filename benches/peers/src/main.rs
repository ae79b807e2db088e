//! Service-level nanoseconds per request, beside the peers, in one run.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! Every subject serves the same request with the same 1 KiB answer on one current-thread runtime. A round runs every
//! subject once, in a rotating order, with a fixed number of requests; the figures are medians over rounds with a
//! 95 % interval, and ratios are taken within a round. `--smoke` runs a few requests of each, to see that they run.
//! Other arguments name tables, all of them by default; `redis` and `tiered` need a `redis-server` to start. `flood` is
//! there by its name only: 50 million clients, each seen once, and what they leave resident.

mod admission;
mod loads;
mod measure;
mod redis_server;
mod shared;
mod subjects;

use std::process::ExitCode;
use std::rc::Rc;

use measure::Plan;
use redis_server::RedisServer;

const TABLES: [&str; 8] = ["hits", "first-byte", "threads", "zipf", "herd", "admission", "redis", "tiered"];

/// On demand.
const FLOOD: &str = "flood";

fn main() -> ExitCode {
    let (flags, named): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let smoke = flags.iter().any(|flag| flag == "--smoke");
    let known = |name: &&String| TABLES.contains(&name.as_str()) || *name == FLOOD;
    if let Some(unknown) = named.iter().find(|name| !known(name)) {
        eprintln!("no table {unknown}; there are {}", TABLES.join(", "));
        return ExitCode::FAILURE;
    }
    let wanted = |table: &str| named.is_empty() || named.iter().any(|name| name == table);
    let server = match (wanted("redis") || wanted("tiered")).then(RedisServer::start).transpose() {
        Ok(server) => server.map(Rc::new),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    run(smoke, &named, server.as_ref());
    ExitCode::SUCCESS
}

fn run(smoke: bool, named: &[String], server: Option<&Rc<RedisServer>>) {
    let wanted = |table: &str| named.is_empty() || named.iter().any(|name| name == table);
    let plan = |requests| if smoke { Plan { rounds: 3, requests: 50 } } else { Plan { rounds: 41, requests } };
    if wanted("hits") {
        plan(20_000).run("a cache hit in process, 1 KiB body", "tower-scale", subjects::cache_hits());
    }
    if wanted("first-byte") {
        plan(20_000).run("the first byte of a miss of known length", "bare service", loads::first_bytes());
    }
    if wanted("threads") {
        loads::threads(if smoke { 1 } else { 9 }, if smoke { 50 } else { 200_000 });
    }
    if wanted("zipf") {
        loads::zipf(if smoke { 1_000 } else { 2_000_000 });
    }
    if wanted("herd") {
        loads::herd(if smoke { 1 } else { 15 });
    }
    if wanted("admission") {
        admission::tables(&plan(20_000), if smoke { 1_000 } else { 1_000_000 });
    }
    if named.iter().any(|name| name == FLOOD) {
        admission::flood(if smoke { 10_000 } else { 50_000_000 });
    }
    let Some(server) = server else { return };
    println!("\nRedis {}", server.version());
    if wanted("redis") {
        shared::redis_hits(server, &plan(2_000), &plan(20_000));
    }
    if wanted("tiered") {
        shared::tiered_hits(server, &plan(20_000));
    }
}
