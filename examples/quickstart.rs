//! Every layer around one axum service: cache, rate limit, CPU offload, telemetry.
//!
//! Run it, then open the URLs that it prints:
//!
//! ```text
//! cargo run --release --example quickstart --features full
//! ```
//!
//! Environment: `ADDR` (127.0.0.1:3000), `REDIS_URL` (none: everything stays in this process), `RATE_LIMIT` (requests
//! per minute per IP, 100), `TRUSTED_PROXIES` (CIDR list whose `X-Forwarded-For` is read), `OFFLOAD_THREADS`, `RUST_LOG`.
#![allow(clippy::indexing_slicing, clippy::print_stderr, clippy::print_stdout, reason = "a program may print")]

use std::error::Error;
use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tower_http::metrics::InFlightRequestsLayer;
use tower_http::metrics::in_flight_requests::InFlightRequestsCounter;
use tower_scale::cache::{CacheLayer, MemoryStore, RedisStore, Store, TieredStore};
use tower_scale::client_ip::{ClientIpLayer, TrustedProxies};
use tower_scale::offload::{OffloadLayer, OffloadPool};
use tower_scale::rate_limit::{Quota, RateLimitLayer};
use tower_scale::redis::Redis;
use tower_scale::telemetry::{self, TelemetryLayer};
use tracing_subscriber::EnvFilter;

const CACHE_BYTES: u64 = 64 << 20;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("quickstart: {error}");
            return ExitCode::from(2);
        }
    };
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(settings.log.clone()).with_writer(std::io::stderr).init();
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &telemetry::LAG_BUCKETS)?
        .build_recorder();
    let prometheus = recorder.handle();
    metrics::set_global_recorder(recorder)?;

    let (in_flight, in_flight_count) = InFlightRequestsLayer::pair();
    let draining = Arc::new(AtomicBool::new(false));
    let app = match settings.redis.clone() {
        None => pages(&settings, MemoryStore::new(CACHE_BYTES))?,
        Some(redis) => pages(&settings, TieredStore::new(MemoryStore::new(CACHE_BYTES), RedisStore::new(redis)?))?,
    };
    // Outermost: every request's polls are watched. The probes stand beside the pages, so they are never limited,
    // cached or offloaded.
    let app = app.layer(in_flight).merge(probes(prometheus, draining.clone())).layer(TelemetryLayer::new());

    let signals = Signals::listen()?;
    let listener = TcpListener::bind(settings.addr).await.map_err(|error| format!("{}: {error}", settings.addr))?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}");
    for path in ["/", "/products/1", "/primes/50000000", "/block/200", "/metrics", "/healthz", "/readyz"] {
        println!("  try  curl -i http://{address}{path}");
    }
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let (drained, stop) = oneshot::channel::<()>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async { drop(stop.await) });
    tokio::select! {
        result = server.into_future() => result?,
        () = drain(signals, draining, in_flight_count, drained) => {}
    }
    Ok(())
}

/// What clients come for. From the outside in: who calls, may they, and then, per route, is the answer known, or is it
/// to be computed off the event loop. The fallback is limited too: somebody who guesses paths is a client as well.
fn pages(settings: &Settings, store: impl Store) -> Result<Router, Box<dyn Error>> {
    let pool = match settings.offload_threads {
        None => OffloadPool::new()?,
        Some(threads) => OffloadPool::builder().threads(threads.into()).build()?,
    };
    let mut limit = RateLimitLayer::new(settings.quota);
    if let Some(redis) = &settings.redis {
        limit = limit.redis(redis.clone());
    }
    let client_ip = ClientIpLayer::new()
        .trusted_proxies(settings.trusted_proxies.clone())
        // One site, one name: a varying `Host` can neither split nor flush the cache.
        .origin("http://quickstart".parse()?);
    Ok(Router::new()
        .route("/", get(index))
        .route("/products/{id}", get(product).layer(CacheLayer::new(store)))
        .route("/primes/{n}", get(primes).layer(OffloadLayer::new(pool)))
        .route("/block/{ms}", get(block))
        .fallback(async || (StatusCode::NOT_FOUND, "nothing here\n"))
        .layer(limit)
        .layer(client_ip))
}

async fn index() -> impl IntoResponse {
    Html(
        "<h1>tower-scale quickstart</h1><ul>\
         <li><a href=\"/products/1\">/products/{id}</a>: a slow lookup, cached for a minute</li>\
         <li><a href=\"/primes/50000000\">/primes/{n}</a>: CPU-bound, offloaded, never cached</li>\
         <li><a href=\"/block/200\">/block/{ms}</a>: blocks the event loop on purpose</li>\
         <li><a href=\"/metrics\">/metrics</a>, <a href=\"/healthz\">/healthz</a>, <a href=\"/readyz\">/readyz</a></li>\
         </ul>",
    )
}

/// A slow lookup: 50 ms of a simulated database.
async fn product(Path(id): Path<u64>) -> impl IntoResponse {
    tokio::time::sleep(Duration::from_millis(50)).await;
    let json = format!("{{\"id\":{id},\"name\":\"Product {id}\"}}\n");
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "max-age=60")], json)
}

/// CPU-bound: runs on the offload pool, so it may compute as long as it likes.
async fn primes(Path(n): Path<usize>) -> impl IntoResponse {
    if n > 50_000_000 {
        return (StatusCode::BAD_REQUEST, NO_STORE, "n is at most 50000000\n".to_owned());
    }
    (StatusCode::OK, NO_STORE, format!("{{\"n\":{n},\"primes\":{}}}\n", count_primes(n)))
}

/// What never to do in a handler; here to be seen in `/metrics`.
async fn block(Path(ms): Path<u64>) -> impl IntoResponse {
    if ms > 2_000 {
        return (StatusCode::BAD_REQUEST, NO_STORE, "at most 2000 ms\n".to_owned());
    }
    #[allow(clippy::disallowed_methods, reason = "this route exists to block the event loop")]
    std::thread::sleep(Duration::from_millis(ms));
    (StatusCode::OK, NO_STORE, format!("blocked the event loop for {ms} ms\n"))
}

const NO_STORE: [(header::HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

/// The sieve of Eratosthenes over odd numbers, one bit each: 3 MiB for 50 million.
fn count_primes(n: usize) -> usize {
    if n < 2 {
        return 0;
    }
    // Bit i stands for 2i + 1; bit 0 (the number 1) is counted in place of 2.
    let odds = n.div_ceil(2);
    let mut composite = vec![0_u64; odds.div_ceil(64)];
    for i in 1.. {
        let p = 2 * i + 1;
        if p * p > n {
            break;
        }
        if composite[i / 64] >> (i % 64) & 1 == 0 {
            for multiple in (p * p / 2..odds).step_by(p) {
                composite[multiple / 64] |= 1 << (multiple % 64);
            }
        }
    }
    odds - composite.iter().map(|word| word.count_ones() as usize).sum::<usize>()
}

/// What the platform asks: metrics, liveness, readiness.
fn probes(prometheus: PrometheusHandle, draining: Arc<AtomicBool>) -> Router {
    let upkeep = prometheus.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(5));
        loop {
            every.tick().await;
            upkeep.run_upkeep();
        }
    });
    let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Router::new()
        .route("/metrics", get(async move || (text, prometheus.render())))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(draining))
}

/// Ready also while Redis is down: every layer goes on without it.
async fn readyz(State(draining): State<Arc<AtomicBool>>) -> impl IntoResponse {
    match draining.load(Ordering::Relaxed) {
        false => (StatusCode::OK, "ready\n"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

/// After SIGTERM or SIGINT: `/readyz` says 503 while the server still accepts, for at least one second and until
/// requests in flight have ended, ten seconds at most. A second signal exits at once.
async fn drain(
    mut signals: Signals,
    draining: Arc<AtomicBool>,
    in_flight: InFlightRequestsCounter,
    drained: oneshot::Sender<()>,
) {
    signals.next().await;
    draining.store(true, Ordering::Relaxed);
    tokio::spawn(async move {
        signals.next().await;
        std::process::exit(1);
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    tokio::time::sleep(Duration::from_secs(1)).await;
    while in_flight.get() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Stops accepting; what came in meanwhile still gets the rest of the ten seconds.
    let _ = drained.send(());
    tokio::time::sleep_until(deadline).await;
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on, neither signal ends the process by itself.
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

struct Settings {
    addr: SocketAddr,
    redis: Option<Redis>,
    quota: Quota,
    trusted_proxies: TrustedProxies,
    offload_threads: Option<NonZeroU8>,
    log: EnvFilter,
}

impl Settings {
    fn from_env() -> Result<Self, String> {
        Ok(Self {
            addr: variable("ADDR", "an address and port such as 127.0.0.1:3000", str::parse)?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000))),
            redis: variable("REDIS_URL", "a URL such as redis://127.0.0.1:6379", Redis::connect)?,
            quota: variable("RATE_LIMIT", "requests per minute, a whole number from 1", per_minute)?
                .unwrap_or(Quota::per_minute(100)),
            trusted_proxies: variable("TRUSTED_PROXIES", "a list such as 10.0.0.0/8,fd00::/8", str::parse)?
                .unwrap_or_default(),
            offload_threads: variable("OFFLOAD_THREADS", "a number of threads from 1 to 255", str::parse)?,
            log: variable("RUST_LOG", "a filter such as info or tower_scale=debug", |filter| {
                EnvFilter::try_new(filter)
            })?
            .unwrap_or_else(|| EnvFilter::new("info")),
        })
    }
}

/// What stands before the `@` of a URL may be a password.
fn without_credentials(value: &str) -> String {
    match (value.split_once("://"), value.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (None, Some((_, host))) => format!("…@{host}"),
        (_, None) => value.to_owned(),
    }
}

fn per_minute(count: &str) -> Result<Quota, Box<dyn Error>> {
    Ok(Quota::new(count.parse()?, Duration::from_secs(60))?)
}

/// Reads an environment variable; absent or empty is `None`.
fn variable<T, E: Display>(
    name: &str,
    expected: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    let value = match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        Ok(_) | Err(std::env::VarError::NotPresent) => return Ok(None),
        // Without the value: it may be a password.
        Err(std::env::VarError::NotUnicode(_)) => return Err(format!("{name} is not UTF-8; expected {expected}")),
    };
    parse(&value).map(Some).map_err(|error| {
        format!("{name}={:?} cannot be used: {error}; expected {expected}", without_credentials(&value))
    })
}
