//! One of several instances of a service that share one cache: memory in front of Redis, and purges that reach all.
//!
//! ```text
//! redis-server --save '' --maxmemory 1gb --maxmemory-policy allkeys-lru &
//! # Any service on port 8000 that says how long its responses are good for: `Cache-Control: max-age=60`.
//! export ORIGIN=http://127.0.0.1:8000 REDIS_URL=redis://127.0.0.1:6379
//! ADDR=127.0.0.1:3000 cargo run --release --example fleet --features full &
//! ADDR=127.0.0.1:3001 cargo run --release --example fleet --features full &
//!
//! # What one has fetched the other has, and after that from its own memory.
//! curl -i http://127.0.0.1:3000/articles/1 http://127.0.0.1:3001/articles/1
//! # Purges: url, prefix, tag, or everything; with `&soft` stale from now on, instead of gone. URLs are those of `SITE`
//! # below, percent-encoded where they hold `&`, `%`, `+` or `#`.
//! curl -i -X POST 'http://127.0.0.1:3000/-/purge?url=http://fleet/articles/1'
//! curl -i -X POST 'http://127.0.0.1:3001/-/purge?tag=article-1&soft'
//! curl -i http://127.0.0.1:3001/-/stats
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `ORIGIN` | whose responses are cached, `http://host:port`; required |
//! | `REDIS_URL`, or | one server: `redis://host:port` |
//! | `REDIS_CLUSTER`, or | nodes of a cluster, separated by commas |
//! | `REDIS_SENTINEL` | sentinels that know the master called `REDIS_SERVICE`; `REDIS_SERVERS`: it and its replicas |
//! | `REDIS_BUDGET_MS` | milliseconds until an operation in Redis is given up, 20 |
//! | `STORE` | `tiered`: each instance also keeps up to `MEMORY_BYTES` (64 MiB); `redis`: it keeps nothing itself |
//! | `ADDR`, `RUST_LOG` | 127.0.0.1:3000, info |
//!
//! `POST /-/purge` says 204 once Redis has the purge: within 100 ms it counts in every instance. 202: it counts here, and
//! is told to the others as soon as Redis can be reached. An origin names the tags of a response in `Cache-Tag`, separated
//! by commas or spaces; clients do not see them. Nothing below `/-/`, nor `/metrics`, is for the public: let only your
//! own network have it, since whoever may purge may make the origin do all the work again.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program may print")]

use std::error::Error;
use std::fmt::Display;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::uri::{Authority, Scheme};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tower_scale::cache::{CacheHandle, CacheLayer, CacheTags, MemoryStore, Purge, RedisStore, TieredStore};
use tower_scale::client_ip::ClientIpLayer;
use tower_scale::redis::Redis;
use tracing_subscriber::EnvFilter;

/// One name for all instances: what one stores another finds, and a client's `Host` can neither split nor flush it.
const SITE: &str = "http://fleet";

#[tokio::main]
async fn main() -> ExitCode {
    let (code, error) = match Settings::from_env() {
        Err(error) => (2, error),
        Ok(settings) => match run(settings).await {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => (1, error.to_string()),
        },
    };
    eprintln!("fleet: {error}");
    ExitCode::from(code)
}

async fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(settings.log).with_writer(std::io::stderr).init();
    let prometheus = PrometheusBuilder::new().install_recorder()?;
    tokio::spawn(upkeep(prometheus.clone()));
    let cache = cache(settings.redis, settings.memory)?;
    let admin = Router::new()
        .route("/-/purge", post(purge))
        .route("/-/stats", get(stats))
        .with_state(cache.handle())
        .route("/metrics", get(metrics).with_state(prometheus));
    let pages = Router::new()
        .fallback(forward)
        .with_state(Origin::new(settings.origin))
        .layer(cache)
        .layer(ClientIpLayer::new().origin(SITE.parse()?));
    let listener = TcpListener::bind(settings.addr).await.map_err(|error| format!("{}: {error}", settings.addr))?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, admin.merge(pages).into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// The cache of this instance. `memory` is in bytes; none: all that is kept is in Redis.
fn cache(redis: Redis, memory: Option<u64>) -> Result<CacheLayer, Box<dyn Error>> {
    let shared = RedisStore::new(redis)?;
    Ok(match memory {
        None => CacheLayer::new(shared),
        Some(bytes) => CacheLayer::new(TieredStore::new(MemoryStore::new(bytes), shared)),
    })
}

// === The origin ===

#[derive(Clone)]
struct Origin {
    authority: Authority,
    client: Client<HttpConnector, Body>,
}

impl Origin {
    fn new(authority: Authority) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(3)));
        let mut client = Client::builder(TokioExecutor::new());
        // Most origins close an idle connection after 5 s.
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(4));
        Self { authority, client: client.build(connector) }
    }
}

/// What the cache does not answer. See `reverse_proxy.rs` for what a proxy in front of any origin has to mind.
async fn forward(State(origin): State<Origin>, mut request: Request) -> Response {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let url = Uri::builder().scheme(Scheme::HTTP).authority(origin.authority).path_and_query(target).build();
    let Ok(url) = url else { return StatusCode::BAD_REQUEST.into_response() };
    *request.uri_mut() = url;
    drop_connection_fields(request.headers_mut());
    match origin.client.request(request).await {
        Ok(mut response) => {
            drop_connection_fields(response.headers_mut());
            let tags = take_tags(response.headers_mut());
            (Extension(tags), response.map(Body::new)).into_response()
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn Error, "the origin does not answer");
            (StatusCode::BAD_GATEWAY, "the origin does not answer\n").into_response()
        }
    }
}

/// RFC 9110 §7.6.1
fn drop_connection_fields(headers: &mut HeaderMap) {
    for name in ["connection", "keep-alive", "te", "transfer-encoding", "upgrade"] {
        headers.remove(name);
    }
}

fn take_tags(headers: &mut HeaderMap) -> CacheTags {
    let text = |line: &HeaderValue| String::from_utf8_lossy(line.as_bytes()).into_owned();
    let lines: Vec<_> = headers.get_all("cache-tag").iter().map(text).collect();
    headers.remove("cache-tag");
    CacheTags::new(lines.iter().flat_map(|line| line.split([',', ' '])).filter(|tag| !tag.is_empty()))
}

// === Administration ===

async fn purge(
    State(cache): State<CacheHandle>,
    RawQuery(query): RawQuery,
) -> Result<StatusCode, (StatusCode, String)> {
    let (purge, soft) = named(&query.unwrap_or_default()).map_err(|error| (StatusCode::BAD_REQUEST, error))?;
    let told = if soft { cache.soft_purge(&purge) } else { cache.purge(&purge) };
    Ok(if told.await.is_ok() { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED })
}

/// The purge that a query names, and whether it is a soft one.
fn named(query: &str) -> Result<(Purge, bool), String> {
    let (mut purges, mut soft) = (Vec::new(), false);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "url" => purges.push(Purge::url(&value)),
            "prefix" => purges.push(Purge::prefix(&value)),
            "tag" => purges.push(Purge::tag(&value)),
            "everything" => purges.push(Ok(Purge::everything())),
            "soft" => soft = true,
            name => return Err(format!("{name:?} is none of url, prefix, tag, everything, soft\n")),
        }
    }
    let [purge] = <[_; 1]>::try_from(purges).map_err(|_| "one of url, prefix, tag, everything is needed\n")?;
    Ok((purge.map_err(|error| format!("{error}\n"))?, soft))
}

async fn stats(State(cache): State<CacheHandle>) -> impl IntoResponse {
    let stats = cache.stats();
    let json = serde_json::json!({
        "entries": stats.entries, "bytes": stats.bytes,
        "hits": stats.hits, "stale": stats.stale, "revalidated": stats.revalidated,
        "misses": stats.misses, "collapsed": stats.collapsed, "bypassed": stats.bypassed, "failed": stats.failed,
    });
    ([(header::CONTENT_TYPE, "application/json")], format!("{json}\n"))
}

/// Histograms would grow between scrapes.
async fn upkeep(prometheus: PrometheusHandle) {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    loop {
        every.tick().await;
        prometheus.run_upkeep();
    }
}

async fn metrics(State(prometheus): State<PrometheusHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], prometheus.render())
}

// === Settings ===

struct Settings {
    addr: SocketAddr,
    origin: Authority,
    redis: Redis,
    memory: Option<u64>,
    log: EnvFilter,
}

impl Settings {
    fn from_env() -> Result<Self, String> {
        const ORIGIN: &str = "the origin as http://host:port";
        let bytes = variable("MEMORY_BYTES", "a number of bytes", str::parse)?.unwrap_or(64 << 20);
        let tiered = variable("STORE", "tiered or redis", |store| match store {
            "tiered" => Ok(true),
            "redis" => Ok(false),
            _ => Err("no such store"),
        })?;
        Ok(Self {
            addr: variable("ADDR", "an address and port such as 127.0.0.1:3000", str::parse)?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000))),
            origin: variable("ORIGIN", ORIGIN, authority)?
                .ok_or_else(|| format!("ORIGIN is not set; expected {ORIGIN}"))?,
            redis: redis()?,
            memory: tiered.unwrap_or(true).then_some(bytes),
            log: variable("RUST_LOG", "a filter such as tower_scale=debug", |filter| EnvFilter::try_new(filter))?
                .unwrap_or_else(|| EnvFilter::new("info")),
        })
    }
}

/// One server, a cluster, or whom sentinels name.
fn redis() -> Result<Redis, String> {
    const URLS: &str = "URLs such as redis://127.0.0.1:6379, separated by commas";
    let found = [
        variable("REDIS_URL", "a URL such as redis://127.0.0.1:6379", Redis::connect)?,
        variable("REDIS_CLUSTER", URLS, cluster)?,
        variable("REDIS_SENTINEL", URLS, sentinel)?,
    ];
    let redis = found.into_iter().flatten().collect::<Vec<_>>();
    let [redis] =
        <[Redis; 1]>::try_from(redis).map_err(|_| "expected one of REDIS_URL, REDIS_CLUSTER and REDIS_SENTINEL")?;
    let budget = variable("REDIS_BUDGET_MS", "a number of milliseconds", str::parse)?.unwrap_or(20);
    Ok(redis.time_budget(Duration::from_millis(budget)))
}

/// A pool gives no connection that listens, so the handle is told where to make one.
fn cluster(urls: &str) -> Result<Redis, Box<dyn Error>> {
    use deadpool_redis::cluster::{Manager, Pool};
    let manager = Manager::new(list(urls), false)?;
    Ok(Redis::from_cluster_pool(Pool::builder(manager).max_size(2).build()?)?.invalidation_urls(list(urls))?)
}

fn sentinel(urls: &str) -> Result<Redis, Box<dyn Error>> {
    use deadpool_redis::sentinel::{Manager, Pool, SentinelServerType};
    let needed = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let (service, servers) = (needed("REDIS_SERVICE")?, needed("REDIS_SERVERS")?);
    let manager = Manager::new(list(urls), service, None, SentinelServerType::Master)?;
    Ok(Redis::from_sentinel_pool(Pool::builder(manager).max_size(2).build()?)?.invalidation_urls(list(&servers))?)
}

fn list(urls: &str) -> Vec<String> {
    urls.split(',').map(str::trim).map(str::to_owned).collect()
}

fn authority(url: &str) -> Result<Authority, Box<dyn Error>> {
    let url: Uri = url.parse()?;
    match url.authority() {
        Some(authority) if url.scheme() == Some(&Scheme::HTTP) && url.path() == "/" => Ok(authority.clone()),
        _ => Err("it is not http://host:port".into()),
    }
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
        // What stands before the `@` of a URL may be a password.
        let shown = value.rsplit_once('@').map_or_else(|| value.clone(), |(_, host)| format!("…@{host}"));
        format!("{name}={shown:?} cannot be used: {error}; expected {expected}")
    })
}
