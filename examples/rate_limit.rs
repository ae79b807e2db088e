//! Limits in an application: one in three lines, then tiers of clients, then all instances together.
//!
//! ```text
//! cargo run --release --example rate_limit --features full
//! ```
//!
//! Environment: `ADDR` (127.0.0.1:3000), `REDIS_URL` (none: this instance counts by itself), `TRUSTED_PROXIES` (CIDR list
//! whose `X-Forwarded-For` is read), `ALLOW` (CIDR list of clients that are never limited), `RUST_LOG`.
//!
//! ```text
//! # 100 requests per 15 minutes and address; `RateLimit` says how many are left.
//! curl -i http://127.0.0.1:3000/
//!
//! # Two quotas at once, 5 per second and 500 per day; whoever shows a token gets ten times as much, wherever it is.
//! curl -i http://127.0.0.1:3000/api/search
//! curl -i http://127.0.0.1:3000/api/search -H 'Authorization: Bearer alice-token'
//! # An export costs as much as ten searches.
//! curl -i http://127.0.0.1:3000/api/export
//!
//! # Five failed logins per 15 minutes; those that succeed are given back. The sixth wrong guess is a 429.
//! curl -i http://127.0.0.1:3000/login -d wrong
//! curl -i http://127.0.0.1:3000/login -d 'correct horse'
//!
//! # A busy route: with Redis, most of its requests need no round trip.
//! curl -i http://127.0.0.1:3000/hot
//!
//! # Somebody looks at a client, locks it out for a minute, and forgives it. Not limited, and not for everybody: in an
//! # application of yours, something asks who is calling.
//! curl -i http://127.0.0.1:3000/admin/127.0.0.1
//! curl -i -X POST http://127.0.0.1:3000/admin/127.0.0.1/block
//! curl -i -X POST http://127.0.0.1:3000/admin/127.0.0.1/reset
//! ```
//!
//! With `REDIS_URL=redis://127.0.0.1:6379` start it twice, the second time with `ADDR=127.0.0.1:3001`, and ask both.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program may print")]

use std::error::Error;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{Response, StatusCode};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tower_scale::client_ip::{ClientIpLayer, Networks, TrustedProxies};
use tower_scale::rate_limit::{
    Fallback, HandleError, Head, Key, Lease, Policy, Quota, RateLimitHandle, RateLimitLayer, Secret, Subject,
};
use tower_scale::redis::Redis;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("rate_limit: {error}");
            return ExitCode::from(2);
        }
    };
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rate_limit: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(settings.log.clone()).with_writer(std::io::stderr).init();
    let app = app(&settings)?;
    let listener = TcpListener::bind(settings.addr).await.map_err(|error| format!("{}: {error}", settings.addr))?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

fn app(settings: &Settings) -> Result<Router, Box<dyn Error>> {
    let login = settings.shared(login_limit());
    let handle = login.handle();
    let api = Router::new()
        .route("/api/search", get(async || "found\n"))
        .route("/api/export", get(async || "exported\n"))
        .layer(settings.shared(tiers(&settings.allow)?))
        // Outside of the limit: it puts the member where the limit looks for it.
        .layer(middleware::from_fn(authenticate));
    let app = Router::new()
        .merge(recipe()?)
        .merge(api)
        .merge(Router::new().route("/login", post(log_in)).layer(login))
        .merge(Router::new().route("/hot", get(async || "hot\n")).layer(settings.hot()))
        .merge(admin(handle))
        .layer(ClientIpLayer::new().trusted_proxies(settings.trusted_proxies.clone()));
    Ok(app)
}

/// What express-rate-limit's front page shows: 100 per 15 minutes and address, standard fields, a message of one's own.
fn recipe() -> Result<Router, Box<dyn Error>> {
    let quota = Quota::new("100".parse()?, Duration::from_secs(15 * 60))?;
    let limit = RateLimitLayer::new(quota).refusal(|_| too_many("Too many requests, please try again later.\n"));
    Ok(Router::new().route("/", get(async || "hello\n")).layer(limit))
}

/// `Retry-After` and `RateLimit` are added to it.
fn too_many(message: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(message.as_bytes()));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    response
}

/// Anonymous clients by address: not more than 5 at once, and not all day long. A whole /48 gets as much as sixteen
/// addresses, however many networks it has. Members by who they are, wherever they are.
fn tiers(allow: &Networks) -> Result<RateLimitLayer, Box<dyn Error>> {
    let anonymous = Policy::new([Quota::per_second(5).named("burst"), Quota::per_day(500).named("day")])
        .ipv6_tier(48, Quota::per_day(8_000).named("site"))
        .named("anonymous");
    // With Redis, all instances need the same secret: from a vault, not from the source.
    let secret = Secret::new("replace me: 16 bytes or more")?;
    let member = Policy::new([Quota::per_second(50).named("burst"), Quota::per_day(5_000).named("day")])
        .key(Key::by(secret, |head| Some(member_of(head)?.0)))
        .named("member");
    Ok(RateLimitLayer::new(anonymous)
        .when(|head| member_of(head).is_some(), member)
        .cost(|head| if head.uri().path() == "/api/export" { 10 } else { 1 })
        .allow(allow.clone()))
}

/// Counts failures only, and a request before its outcome is known: many guesses at once get no further. While Redis is
/// away, nobody may guess.
fn login_limit() -> RateLimitLayer {
    RateLimitLayer::new(Policy::new(Quota::per_hour(20).burst(5)).named("login"))
        .count_when(|outcome| outcome.status() == Some(StatusCode::UNAUTHORIZED))
        .fallback(Fallback::refuse())
}

/// Who has shown a valid token.
#[derive(Clone, Copy)]
struct Member(&'static str);

fn member_of(head: &Head<'_>) -> Option<Member> {
    head.extensions().get().copied()
}

/// Checks tokens, as something in front of the limit must: a key that anybody can make up limits nobody.
async fn authenticate(mut request: Request, next: Next) -> axum::response::Response {
    let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let member = match token {
        Some("alice-token") => Some(Member("alice")),
        Some("bob-token") => Some(Member("bob")),
        _ => None,
    };
    if let Some(member) = member {
        request.extensions_mut().insert(member);
    }
    next.run(request).await
}

async fn log_in(password: String) -> (StatusCode, &'static str) {
    if password == "correct horse" { (StatusCode::OK, "welcome\n") } else { (StatusCode::UNAUTHORIZED, "wrong\n") }
}

/// What operators may do to the clients of the login route.
fn admin(handle: RateLimitHandle) -> Router {
    Router::new()
        .route("/admin/{ip}", get(look_at))
        .route("/admin/{ip}/block", post(block))
        .route("/admin/{ip}/reset", post(reset))
        .with_state(handle)
}

async fn look_at(State(handle): State<RateLimitHandle>, Path(ip): Path<IpAddr>) -> Result<String, Failure> {
    Ok(format!("{:#?}\n", handle.peek(&Subject::ip(ip)).await?))
}

async fn block(State(handle): State<RateLimitHandle>, Path(ip): Path<IpAddr>) -> Result<(), Failure> {
    Ok(handle.block(&Subject::ip(ip), Duration::from_secs(60)).await?)
}

async fn reset(State(handle): State<RateLimitHandle>, Path(ip): Path<IpAddr>) -> Result<(), Failure> {
    Ok(handle.reset(&Subject::ip(ip)).await?)
}

/// Redis did not answer in time.
struct Failure(HandleError);

impl From<HandleError> for Failure {
    fn from(error: HandleError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", self.0)).into_response()
    }
}

struct Settings {
    addr: SocketAddr,
    redis: Option<Redis>,
    trusted_proxies: TrustedProxies,
    allow: Networks,
    log: EnvFilter,
}

impl Settings {
    /// With all other instances, if there is a Redis.
    fn shared(&self, limit: RateLimitLayer) -> RateLimitLayer {
        match &self.redis {
            Some(redis) => limit.redis(redis.clone()),
            None => limit,
        }
    }

    /// 1000 per second for each client. Up to 100 of them are taken from Redis at once and used within half a second, so
    /// that a client may get 500 more than its quota in some second, and most requests need no round trip.
    fn hot(&self) -> RateLimitLayer {
        let limit = RateLimitLayer::new(Policy::new(Quota::per_second(1_000)).named("hot"));
        self.shared(limit).lease(Lease::new(100, Duration::from_millis(500)))
    }

    fn from_env() -> Result<Self, String> {
        Ok(Self {
            addr: variable("ADDR", "an address and port such as 127.0.0.1:3000", str::parse)?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000))),
            redis: variable("REDIS_URL", "a URL such as redis://127.0.0.1:6379", Redis::connect)?,
            trusted_proxies: variable("TRUSTED_PROXIES", "a list such as 10.0.0.0/8,fd00::/8", str::parse)?
                .unwrap_or_default(),
            allow: variable("ALLOW", "a list such as 192.0.2.7,2001:db8::/32", str::parse)?.unwrap_or_default(),
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
