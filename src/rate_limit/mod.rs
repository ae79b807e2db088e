//! Limits how often each client may call, in this process or together with all other instances through Redis.
//!
//! # What it decides
//!
//! 1. A [`Policy`] is one or more [`Quota`]s and a [`Key`]. A layer has one for everybody and, by
//!    [`when`](RateLimitLayer::when), others for classes of requests; the first that concerns a request decides it. All
//!    quotas of a policy must allow a request, and what one of them refuses is charged to none.
//! 2. A client is what the key says: its network (an IPv4 address, or an IPv6 /64, since a single host can choose among
//!    2⁶⁴ addresses of its own, both as [`client_ip`](crate::client_ip) finds them), a value hashed with a [`Secret`],
//!    or everybody together. A [tier](Policy::ipv6_tier) counts the /64s of a /48 together, beside each of them. No
//!    address at all is a configuration error: a 500 problem and one log line, never one shared key.
//! 3. The algorithm is GCRA, in integers: a client may send its [burst](Quota::burst) at once and regains one request
//!    every `period / count`. There is no window at whose edge twice the quota would pass. A refused request costs
//!    nothing. A request may [cost](RateLimitLayer::cost) more than one, or nothing.
//! 4. What should only count when it ends in a certain way ([`count_when`](RateLimitLayer::count_when)) is charged
//!    before and given back after, once: many guesses at the same moment get no further than as many one by one. A
//!    request without an outcome counts: its client left, before or during the handler's work, or the handler panicked.
//!    [`refund_abandoned`](RateLimitLayer::refund_abandoned) gives back those.
//! 5. In process, debts are in one fixed table per quota. Nothing is allocated per request, nothing is swept. Where a
//!    bucket of the table is full of clients in debt, a new client takes the place of the least indebted one *and its
//!    debt* ([`OnFull`]). So a flood of fresh clients neither grows memory nor washes out what anybody owes; some of the
//!    flood, and of those who come new during it, is limited too early, and told so
//!    ([`Reason::DebtInherited`]).
//! 6. With [`RateLimitLayer::redis`] one script on one key per client decides for all instances, by Redis's clock; the
//!    key lives as long as the debt. A client that Redis refused is refused here until it could be admitted, checks of one
//!    client that come together go together, and [leases](Lease) save most round trips of a busy one.
//! 7. Where Redis does not answer within its time budget, [`Fallback`] says who decides: this process, with what it knows
//!    of the debts and a share of the quota; nobody; or a 503 for all. A request waits for Redis once at most, and what
//!    has timed out is never sent again.
//! 8. A refusal is a 429 ([`Reason::QuotaExceeded`], [`Reason::DebtInherited`], [`Reason::Blocked`]) with `Retry-After`,
//!    rounded up, never zero, and long enough that the same request then is admitted if its client sent no other (but
//!    who inherits a debt may find a larger one then, while a flood goes on). The inner service never sees the request.
//!    gRPC calls get `RESOURCE_EXHAUSTED`; [`refusal`](RateLimitLayer::refusal) makes it something else.
//! 9. [`RateLimitHandle`] looks at clients, charges and forgives them, blocks them for a while, and replaces quotas while
//!    the service runs; debts are kept. Through Redis, that reaches every instance within a second.
//! 10. In process, time is counted in ticks of 15 to 31 µs, so a decision may come that much early or late. Where bursts
//!     are regained slowly, the kernel's last tick (1 to 10 ms ago, less than a 64th of a burst) is good enough to admit
//!     by; refusals, and what clients are told to wait, are exact. Through Redis a tick is 1 µs, and an interval is
//!     rounded up to whole ones.
//!
//! It never delays a request, never logs or labels a client, never shows a token (keys are hashed, in Redis too; addresses
//! stand in Redis as they are), and never counts by what a client can choose, unless it is told to.
//!
//! # Where it stands
//!
//! Inside CORS, so that browsers may read refusals; inside [`ClientIpLayer`](crate::client_ip::ClientIpLayer) and whatever
//! checks tokens; outside the cache, offload and everything else that costs. A layer value is one limit: cloned or put
//! around several routes, it counts them together. Two values count apart, except through Redis, where policies of equal
//! name, quotas and key prefix are the same limit.
//!
//! ```
//! # use bytes::Bytes;
//! # use http::{Request, Response};
//! # use http_body_util::Full;
//! # use tower::{ServiceBuilder, ServiceExt};
//! use tower_scale::client_ip::PeerAddr;
//! use tower_scale::rate_limit::{Quota, RateLimitLayer};
//!
//! # async fn hello(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
//! #     Ok(Response::default())
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(Quota::per_minute(100).burst(2)))
//!     .service_fn(hello);
//!
//! # let peer = PeerAddr("203.0.113.9:4711".parse()?);
//! # let request = || Request::builder().extension(peer).body(Full::default()).unwrap();
//! let first = service.clone().oneshot(request()).await?;
//! assert_eq!(first.headers()["ratelimit-policy"], r#""default";q=100;w=60"#);
//! assert_eq!(first.headers()["ratelimit"], r#""default";r=1;t=1"#);
//!
//! let second = service.clone().oneshot(request()).await?;
//! let third = service.clone().oneshot(request()).await?;
//! assert_eq!((second.status().as_u16(), third.status().as_u16()), (200, 429));
//! assert_eq!(third.headers()["retry-after"], "1"); // 0.6 s, rounded up
//! # Ok(())
//! # }
//! ```
//!
//! A login route: failures count, and several quotas at once. `examples/rate_limit.rs` has more.
//!
//! ```
//! use tower_scale::rate_limit::{Fallback, Policy, Quota, RateLimitLayer};
//!
//! let guesses = [Quota::per_minute(5).named("minute"), Quota::per_day(50).named("day")];
//! let limit = RateLimitLayer::new(Policy::new(guesses).named("login"))
//!     .count_when(|outcome| outcome.status().is_some_and(|status| status == 401))
//!     .fallback(Fallback::refuse()); // with `.redis(…)`: while it is away, nobody may guess
//! # let _ = limit;
//! ```
//!
//! # How many get through
//!
//! | | in any stretch of time `w`, at most |
//! |---|---|
//! | one instance, or all through Redis | `burst + rate × w`; in process, `w` is longer by a tick of the clock |
//! | with leases | `burst + rate × (w + life)` |
//! | while Redis is away, N instances, [`share`](Fallback::share) `s` | `N × s × (burst + rate × outage)`, and what Redis had forgotten when it came back: a failover loses the last moments' debts, a flush all of them |
//! | with [`OnFull::Admit`] | the above, and a burst more each time that a flood washed a client's debt out |
//!
//! # Sizing
//!
//! A client needs a slot of each table while it is in debt: at most `burst × period / count` after its last request, and
//! `period / count` if that was its only one. Seven slots are a bucket of 64 bytes. A newcomer inherits a debt when seven
//! others of its bucket are in debt:
//!
//! | [`slots`](Policy::slots) per client in debt | newcomers that inherit |
//! |---|---|
//! | 1 | 67 in 100 |
//! | 2 | 7 in 100 |
//! | 4 | 2 in 1000 |
//!
//! What is inherited is the smallest of seven debts, so it makes a client wait only where bursts are short or the flood
//! is far beyond the table. At 100 per minute, 2²⁰ slots have four for each of 430 000 new clients per second.
//! `rate_limit_table_occupancy_ratio` above 0.5 says that a table is small.
//!
//! # Deployment caveats
//!
//! - Behind a proxy every client has the proxy's address, until
//!   [`ClientIpLayer`](crate::client_ip::ClientIpLayer) is told to trust it.
//! - A key that clients can make up, such as an unchecked token, limits nobody: see [`Key`].
//! - Redis must not evict keys that have an expiry time, or only those that expire soonest (`volatile-ttl`): an evicted
//!   debt is forgiven.
//! - All instances on one Redis need the same quotas and the same [`Secret`], or they count apart. Each needs its own
//!   share of the quota, if the whole may not be exceeded while Redis is away.
//! - [`shadow`](RateLimitLayer::shadow) shows what a new limit would do before it does it:
//!   `rate_limit_decisions_total{decision="shadowed"}`.
//!
//! # Fields
//!
//! | [`Fields`] | on | content |
//! |---|---|---|
//! | `Draft` (the default) | every response | `RateLimit-Policy: "minute";q=100;w=60`: the count `q` per `w` seconds; a period of part of a second is scaled to whole ones. `RateLimit: "minute";r=7;t=1`: `r` more requests would be admitted now (at most the burst), and `t` seconds on, rounded up, one more than that. One item for each quota that concerns the client |
//! | `Draft7`, `Draft6`, `Legacy` | every response | what earlier drafts and `X-RateLimit-*` say of the quota of which the least is left |
//! | `None` | | |
//! | any | 429, 503 | `Retry-After: 1`: seconds until the request will be admitted |
//!
//! `Draft` follows [draft-ietf-httpapi-ratelimit-headers-11]. All are appended to what the inner service states of limits
//! of its own. A response tells where its client stood when it was admitted, also if its charge is then given back.
//!
//! # Metrics
//!
//! | name | labels | counts |
//! |---|---|---|
//! | `rate_limit_decisions_total` | `decision`: `admitted`, `refused`, `refused_inherited`, `refused_blocked`; `shadowed` (would have been refused); `admitted_degraded`, `refused_degraded` where Redis should have decided and did not; `skipped` (not limited, or free); `peer_unknown` | requests |
//! | `rate_limit_table_occupancy_ratio` | `policy` | share of slots in use in the fullest table of the policy, sampled once a second while there are requests; policies of one name, in two layers, overwrite each other |
//! | `rate_limit_table_evictions_total` | | clients that lost their slot to another one while still in debt |
//! | `rate_limit_redis_requests_total` | `answered`: `denied`, `leased`, `merged`, `asked`, `unanswered` | requests that Redis is to decide on, by where the answer came from: known here, a token on lease, a trip that others had to make as well, a trip of its own, nowhere |
//! | `rate_limit_refunds_lost_total` | | charges that should have been given back in Redis and stay counted |
//! | `rate_limit_changes_missed_total` | | times that an instance had missed what handles changed elsewhere, and forgot what it knew of clients |
//!
//! # Coming from elsewhere
//!
//! | express-rate-limit | here |
//! |---|---|
//! | `windowMs`, `limit` | `Quota::per_minute(100)`, or `Quota::new(count, period)`. Requests are regained evenly, not all at once |
//! | `limit` as a function | [`when`](RateLimitLayer::when), a policy for each class |
//! | `standardHeaders: 'draft-6'` (or `true`), `'draft-7'`, `'draft-8'` | [`Fields::Draft6`], [`Fields::Draft7`], [`Fields::Draft`], the default; without a partition key `pk` |
//! | `legacyHeaders: true`, the default there | [`Fields::Legacy`]. One style at a time |
//! | `identifier` | [`Quota::named`] |
//! | `message`, `statusCode`, `handler` | [`refusal`](RateLimitLayer::refusal) |
//! | `skip` | [`skip`](RateLimitLayer::skip), [`allow`](RateLimitLayer::allow) |
//! | `skipSuccessfulRequests`, `skipFailedRequests`, `requestWasSuccessful` | [`count_when`](RateLimitLayer::count_when) |
//! | `requestPropertyName` | none: [`peek`](RateLimitHandle::peek) tells where a client stands |
//! | `keyGenerator` | [`Key::by`], [`Key::header`] |
//! | `ipv6Subnet: 56`, the default there | `Key::ip().ipv6_prefix(56)`; 64 here by default, and [`ipv6_tier`](Policy::ipv6_tier) beside it |
//! | `store: new RedisStore(…)` | [`redis`](RateLimitLayer::redis) |
//! | `passOnStoreError: true` | [`Fallback::admit`]; by default this process decides, and nobody gets a 500 |
//! | `validate`, Express's `trust proxy` | [`ClientIpLayer::trusted_proxies`](crate::client_ip::ClientIpLayer::trusted_proxies), which refuses to trust everybody |
//! | `resetKey`, `getKey` | [`reset`](RateLimitHandle::reset), [`peek`](RateLimitHandle::peek) |
//!
//! | tower_governor | here |
//! |---|---|
//! | a `governor::RateLimiter` of yours | `Policy::governor` (feature `governor`) |
//! | `per_second(5)`: one request per 5 s | `Quota::new(1, 5 s)`; `Quota::per_second(5)` is five per second |
//! | `burst_size(n)` | [`Quota::burst`]; by default the count |
//! | `PeerIpKeyExtractor` | the default; an IPv6 /64 is one client |
//! | `SmartIpKeyExtractor` | `ClientIpLayer::new().trusted_proxies(…)`; nobody else's headers are believed |
//! | `GlobalKeyExtractor`, a `KeyExtractor` | [`Key::global`], [`Key::by`] |
//! | `use_headers()` | [`Fields::Legacy`]; by default the standard fields. `x-ratelimit-after` is `Retry-After`, which is always there |
//! | `error_handler` | [`refusal`](RateLimitLayer::refusal) |
//! | `methods(vec![POST])` | `skip(\|head\| head.method() != Method::POST)` |
//! | a thread that calls `retain_recent()` | nothing: memory is fixed |
//!
//! [draft-ietf-httpapi-ratelimit-headers-11]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-11
//! [`Reason::QuotaExceeded`]: crate::refusal::Reason::QuotaExceeded
//! [`Reason::DebtInherited`]: crate::refusal::Reason::DebtInherited
//! [`Reason::Blocked`]: crate::refusal::Reason::Blocked

mod body;
mod clock;
mod fallback;
mod fields;
mod future;
mod gate;
mod gcra;
mod governor;
mod handle;
mod head;
mod key;
mod layer;
mod limiter;
mod local;
mod metrics;
mod outcome;
mod partition;
mod policy;
mod question;
mod quota;
#[cfg(feature = "redis")]
mod remote;
mod secret;
mod service;
mod shared;
mod subject;
mod swap;
mod table;
mod ticket;
mod time;
mod verdict;

pub use body::ResponseBody;
pub use fallback::Fallback;
pub use fields::Fields;
pub use future::ResponseFuture;
pub use handle::{HandleError, RateLimitHandle, Standing};
pub use head::Head;
pub use key::Key;
pub use layer::RateLimitLayer;
pub use outcome::Outcome;
pub use policy::{OnFull, Policy};
pub use quota::{ConfigError, Quota};
#[cfg(feature = "redis")]
pub use remote::Lease;
pub use secret::Secret;
pub use service::RateLimit;
pub use subject::Subject;
