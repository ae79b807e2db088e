//! The response cache in an application: who decides how long what is kept, and how it goes before its time.
//!
//! ```text
//! cargo run --release --example cache --features full
//! ```
//!
//! Environment: `ADDR` (127.0.0.1:3000), `REDIS_URL` (none: responses are kept in this process), `RUST_LOG`. Every
//! response takes 100 ms to make and says how many were made before it; `Cache-Status` says where it came from.
//!
//! ```text
//! # The handler's fields: fresh for 2 s, then 30 s more while one request in the background renews it.
//! curl -i http://127.0.0.1:3000/articles/1
//! # The handler's typed TTL, which only this cache sees: clients ask each time.
//! curl -i http://127.0.0.1:3000/articles
//! # Neither: the layer's TTL.
//! curl -i http://127.0.0.1:3000/about
//! # One variant per language.
//! curl -i http://127.0.0.1:3000/greeting -H 'Accept-Language: fr'
//! # With credentials: never shared, though the handler says max-age. Public: shared.
//! curl -i http://127.0.0.1:3000/me -H 'Authorization: Bearer alice'
//! curl -i http://127.0.0.1:3000/prices -H 'Authorization: Bearer alice'
//! # Never kept here.
//! curl -i http://127.0.0.1:3000/draft
//! # A cache of its own.
//! curl -i 'http://127.0.0.1:3000/search?q=tea'
//!
//! # Everything fails from now on; what was asked before is served all the same, for a minute after it expires.
//! curl -i -X POST http://127.0.0.1:3000/outage/on
//! curl -i http://127.0.0.1:3000/articles/1
//! curl -i -X POST http://127.0.0.1:3000/outage/off
//!
//! # An edit: the article's URL goes by itself, the list because it has the article's tag.
//! curl -i -X POST http://127.0.0.1:3000/articles/1
//! curl -i http://127.0.0.1:3000/articles
//!
//! # Purges by hand: url, prefix, tag, everything. Soft: from now on stale, so that it still stands in for an error.
//! # With Redis, a purge by any process counts in all of them.
//! curl -i http://127.0.0.1:3000/admin/purge/url -d http://127.0.0.1:3000/about
//! curl -i http://127.0.0.1:3000/admin/purge/prefix -d http://127.0.0.1:3000/art
//! curl -i http://127.0.0.1:3000/admin/soft-purge/tag -d article-1
//! curl -i -X POST http://127.0.0.1:3000/admin/purge/everything
//! curl -i http://127.0.0.1:3000/admin/stats
//! ```
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program may print")]

use std::error::Error;
use std::fmt::Display;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tower_scale::cache::{CacheHandle, CacheLayer, CacheTags, CacheTtl, MemoryStore, NoStore, Purge, RedisStore};
use tower_scale::redis::Redis;
use tracing_subscriber::EnvFilter;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("cache: {error}");
            return ExitCode::from(2);
        }
    };
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cache: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(settings.log).with_writer(std::io::stderr).init();
    let cache = match settings.redis {
        None => CacheLayer::new(MemoryStore::new(64 << 20)),
        Some(redis) => CacheLayer::new(RedisStore::new(redis)?),
    };
    let listener = TcpListener::bind(settings.addr).await.map_err(|error| format!("{}: {error}", settings.addr))?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(&cache)).await?;
    Ok(())
}

fn app(cache: &CacheLayer) -> Router {
    let shop = Shop { made: Arc::default(), outage: Arc::default(), cache: cache.handle() };
    // One layer value is one cache, whichever routes it is on, and so is each clone of it, however configured: these
    // routes share the store's room and the handle.
    let cache = cache.clone().stale_if_error(MINUTE);
    // Its own store: a flood of searches pushes nothing else out, and no purge above reaches it.
    let searches = CacheLayer::new(MemoryStore::new(1 << 20)).ttl(MINUTE / 6);
    Router::new()
        .route("/articles/{id}", get(article).post(edit_article))
        .route("/articles", get(articles))
        .route("/greeting", get(greeting))
        .route("/me", get(me))
        .route("/prices", get(prices))
        .route("/draft", get(draft))
        .layer(cache.clone())
        // `Router::layer` is around the routes above it, and these choose for themselves.
        .route("/about", get(about).layer(cache.ttl(MINUTE / 2)))
        .route("/search", get(search).layer(searches))
        .route("/outage/{state}", post(outage))
        // Not for the public: whoever may purge may make the handlers do all the work again.
        .route("/admin/purge/{kind}", post(purge))
        .route("/admin/soft-purge/{kind}", post(soft_purge))
        .route("/admin/stats", get(stats))
        .with_state(shop)
}

#[derive(Clone)]
struct Shop {
    made: Arc<AtomicU64>,
    outage: Arc<AtomicBool>,
    cache: CacheHandle,
}

impl Shop {
    /// The work behind every response.
    async fn make(&self, what: &str) -> Result<String, StatusCode> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if self.outage.load(Ordering::Relaxed) {
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        }
        Ok(format!("{what} ({} made before)\n", self.made.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The handler's fields, which browsers and other caches read as well.
async fn article(State(shop): State<Shop>, Path(id): Path<u32>) -> Result<impl IntoResponse, StatusCode> {
    let text = shop.make(&format!("article {id}")).await?;
    let tags = Extension(CacheTags::new([format!("article-{id}")]));
    Ok((tags, [(header::CACHE_CONTROL, "max-age=2, stale-while-revalidate=30")], text))
}

/// Success of an unsafe method invalidates its own URL (RFC 9111 §4.4). The tag finds what else shows the article.
async fn edit_article(State(shop): State<Shop>, Path(id): Path<u32>) -> Result<StatusCode, (StatusCode, String)> {
    shop.cache.purge(&Purge::tag(&format!("article-{id}")).map_err(bad_request)?);
    Ok(StatusCode::NO_CONTENT)
}

/// The handler's typed TTL, for this cache alone: an edit purges it here, and could not purge a browser.
async fn articles(State(shop): State<Shop>) -> Result<impl IntoResponse, StatusCode> {
    let text = shop.make("articles 1 to 3").await?;
    let tags = CacheTags::new(["article-1", "article-2", "article-3"]);
    Ok((Extension(tags), Extension(CacheTtl(MINUTE)), text))
}

/// Says nothing of caching; its layer has a TTL.
async fn about(State(shop): State<Shop>) -> Result<impl IntoResponse, StatusCode> {
    shop.make("about us").await
}

/// Whatever a handler reads from a request, and the URL does not hold, belongs in `Vary`.
async fn greeting(State(shop): State<Shop>, headers: HeaderMap) -> Result<impl IntoResponse, StatusCode> {
    let french = headers.get(header::ACCEPT_LANGUAGE).is_some_and(|language| language.as_bytes().starts_with(b"fr"));
    let text = shop.make(if french { "bonjour" } else { "hello" }).await?;
    Ok(([(header::CACHE_CONTROL, "max-age=60"), (header::VARY, "accept-language")], text))
}

/// For one user. Without `public` and the like, no response to `Authorization` or `Cookie` is kept (RFC 9111 §3.5).
async fn me(State(shop): State<Shop>, headers: HeaderMap) -> Result<impl IntoResponse, StatusCode> {
    let user = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let text = shop.make(user.ok_or(StatusCode::UNAUTHORIZED)?).await?;
    Ok(([(header::CACHE_CONTROL, "max-age=60")], text))
}

/// The same for all users, so it says `public`.
async fn prices(State(shop): State<Shop>) -> Result<impl IntoResponse, StatusCode> {
    let text = shop.make("prices").await?;
    Ok(([(header::CACHE_CONTROL, "public, max-age=60")], text))
}

/// For browsers to keep, and not for this cache.
async fn draft(State(shop): State<Shop>) -> Result<impl IntoResponse, StatusCode> {
    let text = shop.make("a draft").await?;
    Ok((Extension(NoStore), [(header::CACHE_CONTROL, "max-age=60")], text))
}

async fn search(State(shop): State<Shop>, uri: Uri) -> Result<impl IntoResponse, StatusCode> {
    shop.make(&format!("found for {}", uri.query().unwrap_or_default())).await
}

async fn outage(State(shop): State<Shop>, Path(state): Path<String>) -> StatusCode {
    shop.outage.store(state == "on", Ordering::Relaxed);
    StatusCode::NO_CONTENT
}

async fn purge(
    State(shop): State<Shop>,
    Path(kind): Path<String>,
    name: String,
) -> Result<StatusCode, (StatusCode, String)> {
    shop.cache.purge(&named(&kind, &name)?);
    Ok(StatusCode::NO_CONTENT)
}

async fn soft_purge(
    State(shop): State<Shop>,
    Path(kind): Path<String>,
    name: String,
) -> Result<StatusCode, (StatusCode, String)> {
    shop.cache.soft_purge(&named(&kind, &name)?);
    Ok(StatusCode::NO_CONTENT)
}

fn named(kind: &str, name: &str) -> Result<Purge, (StatusCode, String)> {
    match kind {
        "url" => Purge::url(name).map_err(bad_request),
        "prefix" => Purge::prefix(name).map_err(bad_request),
        "tag" => Purge::tag(name).map_err(bad_request),
        "everything" => Ok(Purge::everything()),
        _ => Err(bad_request("not one of url, prefix, tag, everything")),
    }
}

fn bad_request(error: impl Display) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, format!("{error}\n"))
}

async fn stats(State(shop): State<Shop>) -> String {
    format!("{:#?}\n", shop.cache.stats())
}

struct Settings {
    addr: SocketAddr,
    redis: Option<Redis>,
    log: EnvFilter,
}

impl Settings {
    fn from_env() -> Result<Self, String> {
        Ok(Self {
            addr: variable("ADDR", "an address and port such as 127.0.0.1:3000", str::parse)?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000))),
            redis: variable("REDIS_URL", "a URL such as redis://127.0.0.1:6379", Redis::connect)?,
            log: variable("RUST_LOG", "a filter such as info or tower_scale=debug", |filter| {
                EnvFilter::try_new(filter)
            })?
            .unwrap_or_else(|| EnvFilter::new("info")),
        })
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
