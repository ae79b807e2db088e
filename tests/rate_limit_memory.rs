//! What a flood of new clients does to the limiter: nothing to its memory, nothing for an abuser, little to the others. A
//! binary of its own: it counts allocations, and each flood is a process of its own.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::Ready;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::{Fields, Policy, Quota, RateLimitLayer};

/// The system's allocator; counts what each thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: hands every call to `System` as it is.
#[allow(unsafe_code, reason = "only an allocator sees allocations")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

type Empty = http_body_util::Empty<bytes::Bytes>;

fn page(_: Request<Empty>) -> Ready<Result<Response<Empty>, Infallible>> {
    std::future::ready(Ok(Response::new(Empty::new())))
}

fn from(client: IpAddr) -> Request<Empty> {
    let mut request = Request::new(Empty::new());
    request.extensions_mut().insert(PeerAddr(SocketAddr::new(client, 4711)));
    request
}

/// A /64 of its own for each number.
fn client(number: u64) -> IpAddr {
    Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number) << 64).into()
}

#[test]
fn an_admitted_request_allocates_nothing_more() {
    let mut bare = service_fn(page);
    let quotas = [Quota::per_second(60_000).named("a"), Quota::per_day(60_000_000).named("b")];
    let policy = Policy::new(quotas).ipv6_tier(48, Quota::per_second(65_000).named("c")).slots(1 << 12);
    let mut limited = RateLimitLayer::new(policy).fields(Fields::None).layer(bare);
    limited.call(from(client(0))).now_or_never().unwrap().unwrap();
    let before = allocations();
    for n in 0..1000 {
        bare.call(from(client(n))).now_or_never().unwrap().unwrap();
    }
    let floor = allocations() - before;
    assert!(floor >= 1000, "the counter counts");
    let before = allocations();
    // Pages of the table are allocated when they are first used.
    for n in 0..1000 {
        assert_eq!(limited.call(from(client(n))).now_or_never().unwrap().unwrap().status(), 200);
    }
    let first = allocations() - before;
    let before = allocations();
    for n in 0..1000 {
        assert_eq!(limited.call(from(client(n))).now_or_never().unwrap().unwrap().status(), 200);
    }
    assert_eq!(allocations() - before, floor);
    assert!(first < floor + 100, "{first} over {floor}");
}

#[cfg(target_os = "linux")]
mod flood {
    use std::process::Command;

    use super::*;

    const CHILD: &str = "TOWER_SCALE_TEST_CHILD";
    const SLOTS: u32 = 1024;
    const BURST: u32 = 20;
    /// One request is regained every 600 ms: so long a client of one request needs its slot.
    const INTERVAL: Duration = Duration::from_millis(600);
    const INTERVALS: u32 = 25;
    /// An interval in steps.
    const STEPS: u32 = 40;
    const LEGITIMATE: u32 = 400;

    /// Without what is mapped from files: the program's own code is read when it is first run.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// Runs `body` in a process that does nothing else.
    fn alone(name: &str, body: impl FnOnce()) {
        if std::env::var_os(CHILD).is_some() {
            return body();
        }
        let name = format!("flood::{name}");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        eprint!("{said}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{name} did not run");
    }

    struct Tally {
        /// Of requests of the legitimate clients, each of which stays far below its quota.
        legitimate: (u32, u32),
        abuser: u32,
        flood: (u64, u64),
        /// Resident since the second interval, when all of the table has been used.
        grown: usize,
    }

    /// New clients, each seen once, at `percent` of what the table holds per interval. Beside them an abuser who never
    /// stops, and 400 clients who come every fourth interval.
    fn flood(percent: u32) -> Tally {
        let time = Arc::new(AtomicU64::new(0));
        let clock = time.clone();
        let policy = Policy::new(Quota::per_minute(100).burst(BURST)).slots(SLOTS as usize);
        let layer = RateLimitLayer::new(policy).clock(move || Duration::from_nanos(clock.load(Ordering::Relaxed)));
        let mut service = layer.layer(service_fn(page));
        let mut passes =
            |number: u64| service.call(from(client(number))).now_or_never().unwrap().unwrap().status() == 200;
        let mut tally = Tally { legitimate: (0, 0), abuser: 0, flood: (0, 0), grown: 0 };
        let mut before = 0;
        let per_step = u64::from(SLOTS * percent / 100 / STEPS).max(1);
        let mut new = 1_u64 << 20;
        for step in 0..INTERVALS * STEPS {
            if step == 2 * STEPS {
                before = resident();
            }
            for n in 0..per_step {
                new += 1;
                tally.flood = (tally.flood.0 + u64::from(passes(new)), tally.flood.1 + 1);
                if n % (per_step / 2).max(1) == 0 {
                    tally.abuser += u32::from(passes(1));
                }
            }
            for legitimate in (0..LEGITIMATE).filter(|n| (n + step) % (4 * STEPS) == 0) {
                let passed = passes(1000 + u64::from(legitimate));
                tally.legitimate = (tally.legitimate.0 + u32::from(passed), tally.legitimate.1 + 1);
            }
            time.fetch_add(u64::try_from(INTERVAL.as_nanos()).unwrap() / u64::from(STEPS), Ordering::Relaxed);
        }
        tally.grown = resident().saturating_sub(before);
        tally
    }

    fn check(percent: u32, legitimate_at_least: f64) {
        let Tally { legitimate: (admitted, asked), abuser, flood: (passed, new), grown } = flood(percent);
        let share = f64::from(admitted) / f64::from(asked);
        eprintln!(
            "{new} new clients, {percent} % of what {SLOTS} slots hold: {} KiB more resident; abuser {abuser} of at most \
             {}; legitimate {admitted} of {asked}, {:.1} %; flood {passed} of {new}",
            grown >> 10,
            BURST + INTERVALS,
            share * 100.0,
        );
        assert!(grown < 256 << 10, "{grown} B for {new} clients");
        assert!((BURST..=BURST + INTERVALS).contains(&abuser), "{abuser}");
        assert!(share >= legitimate_at_least, "{share}");
    }

    #[test]
    fn at_half_of_the_capacity() {
        alone("at_half_of_the_capacity", || check(50, 0.99));
    }

    #[test]
    fn at_five_times_the_capacity() {
        alone("at_five_times_the_capacity", || check(500, 0.0));
    }

    #[test]
    fn at_fifty_times_the_capacity() {
        alone("at_fifty_times_the_capacity", || check(5000, 0.0));
    }
}
