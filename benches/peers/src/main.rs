//! Service-level nanoseconds per request, beside the peers, in one run.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! Every subject serves the same request with the same 1 KiB answer on one current-thread runtime. A round runs every
//! subject once, in a rotating order, with a fixed number of requests; the figures are medians over rounds with a
//! 95 % interval, and ratios are taken within a round. `--smoke` runs a few requests of each, to see that they run.

mod loads;
mod measure;
mod subjects;

use measure::Plan;

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    let plan = if smoke { Plan { rounds: 3, requests: 50 } } else { Plan { rounds: 41, requests: 20_000 } };
    plan.run("a cache hit in process, 1 KiB body", "tower-scale", subjects::cache_hits());
    plan.run("the first byte of a miss of known length", "bare service", loads::first_bytes());
    loads::threads(if smoke { 1 } else { 9 }, if smoke { 50 } else { 200_000 });
    loads::zipf(if smoke { 1_000 } else { 2_000_000 });
    loads::herd(if smoke { 1 } else { 15 });
    plan.run("an admitted request of one client", "tower-scale", subjects::one_client());
}
