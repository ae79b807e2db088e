//! What the memory store costs: resident memory under churn, and allocations of a lookup. A binary of its own: it counts
//! allocations, and each measurement of memory is a process of its own.
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
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::cache::{CacheLayer, Key, MemoryStore, Record, Reply, ResponseBody, Store, StoreFailure, Usage};

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

type Cached = BoxCloneSyncService<Request<Empty<Bytes>>, Response<ResponseBody<axum::body::Body>>, Infallible>;

/// A cache over `store` whose inner service gives each path the body and the fields that `make` says.
fn cache(store: impl Store, make: fn(usize) -> Response<axum::body::Body>) -> Cached {
    let inner = service_fn(move |request: Request<Empty<Bytes>>| {
        let number = request.uri().path().rsplit('/').next().unwrap().parse().unwrap();
        std::future::ready(Ok::<_, Infallible>(make(number)))
    });
    BoxCloneSyncService::new(CacheLayer::new(store).layer(inner))
}

async fn get(cache: &Cached, path: String) -> (bool, usize) {
    let request = Request::get(path).header("host", "shop.example").body(Empty::new()).unwrap();
    let response = cache.clone().oneshot(request).await.unwrap();
    let hit = response.headers()["cache-status"].as_bytes().starts_with(b"tower-scale; hit");
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().unwrap().len();
    }
    (hit, length)
}

// === a lookup ===

/// Counts what the store's own `get` allocates.
#[derive(Debug)]
struct Watched {
    store: MemoryStore,
    lookups: Arc<AtomicUsize>,
    allocated: Arc<AtomicUsize>,
}

impl Store for Watched {
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        let before = allocations();
        let found = self.store.get(key);
        self.allocated.fetch_add(allocations() - before, Ordering::Relaxed);
        self.lookups.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        self.store.put(key, record)
    }

    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
        self.store.remove(key)
    }

    fn max_object_bytes(&self) -> usize {
        self.store.max_object_bytes()
    }

    fn usage(&self) -> Option<Usage> {
        self.store.usage()
    }
}

#[tokio::test]
async fn a_lookup_allocates_nothing() {
    let (lookups, allocated) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let store = Watched { store: MemoryStore::new(4 << 20), lookups: lookups.clone(), allocated: allocated.clone() };
    let cache = cache(store, tiny);
    let before = allocations();
    let mut hits = 0;
    for n in 0..1000 {
        hits += usize::from(get(&cache, format!("/{}", n % 100)).await.0);
    }
    assert!(allocations() > before, "the counter counts");
    assert!(hits == 900 && lookups.load(Ordering::Relaxed) >= 1000);
    assert_eq!(allocated.load(Ordering::Relaxed), 0);
}

// === resident memory ===

fn tiny(number: usize) -> Response<axum::body::Body> {
    let response = Response::builder().header("cache-control", "max-age=3600").header("x-number", number);
    response.body(axum::body::Body::from(vec![b'x'; 100])).unwrap()
}

/// 0 B to 256 KiB, most of them small; some with no stated length, and in pieces.
fn mixed(number: usize) -> Response<axum::body::Body> {
    let spread = number.wrapping_mul(0x9e37_79b9) >> 4;
    let length = (spread % (256 << 10)) >> ((spread >> 20) % 8);
    fielded(number, length)
}

fn large(number: usize) -> Response<axum::body::Body> {
    fielded(number, (256 << 10) - number % 1000)
}

fn fielded(number: usize, length: usize) -> Response<axum::body::Body> {
    let mut response = Response::builder().header("cache-control", "max-age=3600");
    for n in 0..number % 30 {
        response = response.header(format!("x-field-{n}"), "v".repeat((number + n * 7) % 90));
    }
    let body = vec![b'x'; length];
    let body = if number.is_multiple_of(3) {
        let pieces: Vec<_> =
            body.chunks(16 << 10).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
        axum::body::Body::from_stream(futures_util::stream::iter(pieces))
    } else {
        axum::body::Body::from(body)
    };
    response.body(body).unwrap()
}

#[cfg(target_os = "linux")]
mod resident {
    use std::process::Command;
    use std::time::Duration;

    use futures_util::StreamExt;

    use super::*;

    const CHILD: &str = "TOWER_SCALE_TEST_CHILD";
    const THREADS: usize = 4;

    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// Runs `body` in a process that does nothing else.
    fn alone(name: &str, body: impl Future<Output = ()>) {
        if std::env::var_os(CHILD).is_some() {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            return runtime.worker_threads(THREADS).enable_all().build().unwrap().block_on(body);
        }
        let name = format!("resident::{name}");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        eprintln!("{said}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{name} did not run");
    }

    /// Fetches `urls` URLs from several tasks at once, each thrice in a while so that some are hits. The most that was
    /// resident meanwhile.
    async fn churn(cache: &Cached, first: usize, urls: usize) -> usize {
        let tasks = (0..2 * THREADS).map(|task| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let mut most = 0;
                for n in (task..urls).step_by(2 * THREADS) {
                    get(&cache, format!("/{}", first + n)).await;
                    if n % 5 == 0 {
                        get(&cache, format!("/{}", first + n / 2)).await;
                    }
                    if n % 256 < 2 * THREADS {
                        most = most.max(resident());
                    }
                }
                most
            })
        });
        let mut most = 0;
        for task in tasks.collect::<Vec<_>>() {
            most = most.max(task.await.unwrap());
        }
        most
    }

    /// The code is read in, and every thread has its arena, before anything is measured.
    async fn warm_up() -> usize {
        churn(&cache(MemoryStore::new(1 << 20), tiny), 0, 2000).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        resident()
    }

    fn check(what: &str, budget: usize, before: usize, most: usize) {
        let grown = most.saturating_sub(before);
        let tenths = grown * 1000 / budget;
        eprintln!("{what}: {} KiB over {} KiB, {tenths} per mille of the budget", grown >> 10, before >> 10);
        assert!(grown * 4 <= budget * 5, "{what}: {grown} B for a budget of {budget} B");
    }

    async fn one(what: &str, budget: usize, urls: usize, make: fn(usize) -> Response<axum::body::Body>) {
        let before = warm_up().await;
        let store = MemoryStore::new(budget as u64);
        let most = churn(&cache(store, make), 0, urls).await;
        check(what, budget, before, most);
    }

    #[test]
    fn mixed_bodies_16() {
        alone("mixed_bodies_16", one("mixed, 16 MiB", 16 << 20, 8_000, mixed));
    }

    #[test]
    fn mixed_bodies_64() {
        alone("mixed_bodies_64", one("mixed, 64 MiB", 64 << 20, 20_000, mixed));
    }

    #[test]
    fn tiny_bodies_16() {
        alone("tiny_bodies_16", one("tiny, 16 MiB", 16 << 20, 40_000, tiny));
    }

    #[test]
    fn tiny_bodies_64() {
        alone("tiny_bodies_64", one("tiny, 64 MiB", 64 << 20, 60_000, tiny));
    }

    #[test]
    fn large_bodies_16() {
        alone("large_bodies_16", one("large, 16 MiB", 16 << 20, 2_000, large));
    }

    /// Half a MiB that comes, and then nothing more.
    fn unfinished() -> Response<axum::body::Body> {
        let pieces = futures_util::stream::iter(0..8).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 64 << 10])));
        let body = axum::body::Body::from_stream(pieces.chain(futures_util::stream::pending()));
        Response::builder().header("cache-control", "max-age=3600").body(body).unwrap()
    }

    /// A full store, and two hundred copies that would be 100 MiB by themselves.
    #[test]
    fn unfinished_bodies_16() {
        alone("unfinished_bodies_16", async {
            let (before, budget) = (warm_up().await, 16 << 20);
            let make = |number| if number < 1_000_000 { mixed(number) } else { unfinished() };
            let cache = cache(MemoryStore::new(budget as u64), make);
            churn(&cache, 0, 4_000).await;
            let mut held = Vec::new();
            for n in 0..200 {
                let request = Request::get(format!("/{}", 1_000_000 + n)).header("host", "shop.example");
                let response = cache.clone().oneshot(request.body(Empty::new()).unwrap()).await.unwrap();
                let mut body = response.into_body();
                let mut read = 0;
                while read < 512 << 10 {
                    read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
                }
                held.push(body);
            }
            check("unfinished, 16 MiB", budget, before, resident());
        });
    }

    /// What the tables have grown to is not given back, and neither is what lies between small objects.
    #[test]
    fn tiny_then_large_bodies_then_mixed() {
        alone("tiny_then_large_bodies_then_mixed", async {
            let (before, budget) = (warm_up().await, 32 << 20);
            let cache = cache(MemoryStore::new(budget as u64), |number| match number / 1_000_000 {
                0 => tiny(number),
                1 => large(number),
                _ => mixed(number),
            });
            let mut most = 0;
            for (phase, urls) in [(0, 25_000), (1_000_000, 2_000), (2_000_000, 6_000), (0, 25_000)] {
                most = most.max(churn(&cache, phase, urls).await);
                eprintln!("after {phase}: {} KiB", (resident() - before) >> 10);
            }
            check("tiny, large, mixed, 32 MiB", budget, before, most);
        });
    }
}
