//! Limits how often each client may call, in process or through Redis.
//!
//! # What it decides
//!
//! 1. A client is the address that [`client_ip`](crate::client_ip) finds: an IPv4 address, or an IPv6 /64, since a
//!    single host can choose among 2⁶⁴ addresses of its own. IPv4-mapped addresses are IPv4. No address at all is a
//!    configuration error: a 500 problem and one log line, never one shared key.
//! 2. The algorithm is GCRA, in integers: a client may send its [burst](Quota::burst) at once and regains one request
//!    every `period / count`. In any stretch of time it gets at most `burst + rate × time`. There is no window at whose
//!    edge twice the quota would pass. A refused request costs nothing.
//! 3. In process, debts are in a fixed table of 8-byte slots. One compare-and-swap per request, no lock, no
//!    allocation, no sweeper. Where a bucket of the table is full of clients in debt, a new client takes the place of
//!    the least indebted one *and its debt*. So a flood of fresh addresses neither grows memory nor washes out what
//!    anybody owes; some of the flood is limited too early.
//! 4. With [`RateLimitLayer::redis`] one script on one key decides for all instances, by Redis's clock; the key lives as
//!    long as the debt. Where Redis does not answer within its time budget, the table in this process decides:
//!    N instances then admit up to N times the quota, and nobody gets an error because of Redis.
//! 5. A refusal is a 429 ([`Reason::QuotaExceeded`]) with `Retry-After`: rounded up, never zero, and long enough that
//!    the next request then is admitted. The inner service never sees the request.
//! 6. In process, time is counted in ticks of 15 to 31 µs, so a decision may come that much early or late. Through Redis
//!    a tick is 1 µs, and an interval is rounded up to whole ones.
//!
//! It never delays a request, never logs or labels an address, and never counts by a header that a client can choose.
//! Redis keys do hold addresses.
//!
//! # Where it stands
//!
//! Inside CORS, so that browsers may read refusals; outside the cache, offload and everything else that costs. A layer
//! value is one limit: cloned or put around several routes, it counts them together. Two values count apart, except
//! through Redis, where equal quotas with equal key prefixes are the same limit.
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
//! # Sizing
//!
//! A client needs a slot while it is in debt, at most `burst × period / count` after its last request. Give the table
//! two [`slots`](RateLimitLayer::slots) per client that is in debt at the same time: with one, about 12 in 100 newcomers
//! inherit a debt, with two, fewer than 1 in 100. `rate_limit_table_evictions_total` counts them. A slot takes 8 bytes,
//! from the first time that its page is used.
//!
//! # Deployment caveats
//!
//! - Behind a proxy every client has the proxy's address, until
//!   [`ClientIpLayer`](crate::client_ip::ClientIpLayer) is told to trust it.
//! - Redis must not evict keys that have an expiry time, or only those that expire soonest (`volatile-ttl`): an evicted
//!   debt is forgiven.
//!
//! # Fields
//!
//! | field | on | content |
//! |---|---|---|
//! | `RateLimit-Policy: "default";q=100;w=60` | every response | the count `q` per `w` seconds; a period of part of a second is scaled to whole ones |
//! | `RateLimit: "default";r=7;t=1` | every response | `r` more requests would be admitted now (at most the burst), and `t` seconds on, rounded up, one more than that |
//! | `Retry-After: 1` | 429 | seconds until a request will be admitted: the same as `t` |
//!
//! They follow [draft-ietf-httpapi-ratelimit-headers-10] and are appended to what the inner service states of limits of
//! its own.
//!
//! # Metrics
//!
//! | name | labels | counts |
//! |---|---|---|
//! | `rate_limit_decisions_total` | `decision`: `admitted`, `refused`; `admitted_degraded`, `refused_degraded` where Redis should have decided and did not; `peer_unknown` | requests |
//! | `rate_limit_table_evictions_total` | | newcomers that inherited a debt |
//!
//! [draft-ietf-httpapi-ratelimit-headers-10]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-10
//! [`Reason::QuotaExceeded`]: crate::refusal::Reason::QuotaExceeded

mod body;
mod clock;
mod fields;
mod future;
mod gcra;
mod layer;
mod limiter;
mod metrics;
mod partition;
mod question;
mod quota;
#[cfg(feature = "redis")]
mod remote;
mod service;
mod table;

pub use body::ResponseBody;
pub use future::ResponseFuture;
pub use layer::RateLimitLayer;
pub use quota::{ConfigError, Quota};
pub use service::RateLimit;
