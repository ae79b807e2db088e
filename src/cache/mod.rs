//! A shared response cache inside the server (RFC 9111), which asks the inner service once per key.
//!
//! 1. **GET and HEAD** are looked up. HEAD is answered from a stored GET and never stores anything. All other methods
//!    pass; after a 2xx or 3xx they invalidate their URL with all its variants, and fetches under way for it are
//!    neither stored nor joined any more (RFC 9111 §4.4). gRPC calls invalidate nothing.
//! 2. **The key** is scheme, host, path and query, byte for byte, each with its length before it: no two URLs share
//!    one. Scheme and host are those of [`client_ip::Origin`](crate::client_ip::Origin); a request without a valid
//!    host passes, and so does one whose `Host` contradicts the authority of its URL. Under axum the unstripped path
//!    counts too, so that one layer value may serve several nested routers. Keys above 4 KiB pass.
//! 3. **Stored** is what states its own freshness (`s-maxage`, else `max-age`, else `Expires`; less `Age`), what the
//!    handler gives a [`CacheTtl`], and, with [`CacheLayer::ttl`], whatever else has status 200, 203, 204, 300, 301 or
//!    308. In this order the first that speaks decides: `no-store` and its kin, the handler, the fields, the layer.
//!    Nothing is stored on a guess, and nothing is served stale.
//! 4. **Never stored**: `no-store`, `private` and `no-cache` in any form; a `Cache-Control` that breaks the grammar;
//!    `Set-Cookie`; `Vary: *`; partial content; bodies with trailers, with an error, or of another length than stated;
//!    status 1xx, 206, 304, 401, 403, 407, 416, 421, 425, 429; an event stream that does not state its own freshness.
//! 5. **Credentials** (`Authorization` and `Cookie` alike): such a request is answered from the store, and its response
//!    stored, only where the response says `public`, `s-maxage` or `must-revalidate` (RFC 9111 §3.5). It always
//!    fetches for itself alone.
//! 6. **Forwarded as they came**, without a lookup: `Range`, `If-Range`, `If-Match`, `If-Unmodified-Since`, `Upgrade`, and
//!    requests with content. `If-None-Match` and `If-Modified-Since` are answered from a fresh entry (304 or 200).
//! 7. **Request `Cache-Control` is ignored**: it is advice to a cache (RFC 9111 §5.2.1), and obeying it would let any
//!    client force misses.
//! 8. **`Vary`**: variants have keys of their own, made of all lines of the named fields. At most 16 names.
//! 9. **One fetch per key.** It runs in a task of its own, in the scope of the request that began it, and no client that
//!    leaves cancels it; one that nobody wants ends after 1 s without a head, after 30 s without a whole body. Who
//!    comes meanwhile waits, at most 5 s, then goes alone; a request waits with itself in hand, so it can take over.
//!    Between a lookup and a fetch no other fetch slips in: a lookup that is older than the last store of its key is
//!    repeated. A cache that meets a request with which it is fetching already (one layer value twice in a stack)
//!    passes it.
//! 10. **The head decides.** Not storable: everybody goes alone at once, and the forwarded request has the live
//!     response. For 120 s, or until something is stored, who asks for that key fetches for itself without waiting.
//!     Storable: the body is shared while it grows if its length is known, else when it is whole.
//! 11. **A failed fetch** (inner error, panic, broken body, 5xx that nobody asked to keep) is tried again by one of those
//!     who wait, twice at most; then the others get a 502. The request that ran has the inner error, panic or
//!     response itself.
//! 12. **Bodies stream** to the client while they are copied. A body beyond [`CacheLayer::max_object_bytes`], or beyond
//!     64 MiB of copies in all, goes on as it is, and its copy is dropped. A shared body ends complete or with an
//!     error, never in between. Once whole it is the store's, and slow readers cost the 64 MiB nothing. A response that is
//!     no longer fresh is joined by nobody.
//! 13. **A store that fails is a miss**, counted. After a timeout the same request asks and writes it no more.
//!
//! # It never
//!
//! stores or replays what one user's request brought to another without the permission of rule 5; revalidates, serves
//! stale or combines ranges; keeps more than its bounds (1024 fetches, 4096 waiters each, 64 MiB of copies, the store's
//! own); holds back the first byte of a body from the client whose request was forwarded.
//!
//! # Where it stands
//!
//! Inside of limits, outside of compression and whatever else depends on request fields without saying so in `Vary`.
//! With tower-http's compression inside, each encoding is a variant; with it outside, the plain body is stored and
//! compressed for each client. Needs a tokio runtime with its timer enabled; polled elsewhere, it forwards every miss
//! and stores nothing. `!Send` services are not supported.
//!
//! ```
//! use std::time::Duration;
//!
//! use tower_scale::cache::{CacheLayer, MemoryStore};
//! # use bytes::Bytes;
//! # use http::{Request, Response};
//! # use http_body_util::Full;
//! # use tower::{ServiceBuilder, ServiceExt};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! // The same layer value, or a clone, is one cache.
//! let layer = CacheLayer::new(MemoryStore::new(64 << 20)).ttl(Duration::from_secs(10));
//!
//! let service = ServiceBuilder::new().layer(layer).service_fn(|_: Request<Full<Bytes>>| async {
//!     Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
//! });
//! # let get = || Request::builder().uri("/").header("host", "example.com").body(Full::default()).unwrap();
//! let first = service.clone().oneshot(get()).await.unwrap();
//! assert_eq!(first.headers()["cache-status"], "tower-scale; fwd=uri-miss; stored");
//! let second = service.oneshot(get()).await.unwrap();
//! assert!(second.headers()["cache-status"].to_str().unwrap().starts_with("tower-scale; hit; ttl="));
//! assert_eq!(second.headers()["age"], "0");
//! # });
//! ```
//!
//! # Deployment caveat
//!
//! Whatever a handler reads from a request that is neither in the key (rule 2) nor named in its `Vary` lets one client
//! choose what others get. `X-Forwarded-Host` is the classic: read the host from [`client_ip::Origin`](crate::client_ip::Origin)
//! instead. So is `Host` where a `ClientIpLayer` tells (or pins) the origin: handlers must not read the field then.
//! Outside axum, put the layer outside of what strips path prefixes.
//! An invalidation (rule 1) is as good as its store: with Redis it does not reach a fetch under way in another process,
//! and is lost if Redis does not answer; the old response then lives until it expires.
//!
//! # Fields
//!
//! | response field | where |
//! |---|---|
//! | `Cache-Status: tower-scale; hit; ttl=57` | answered from the store, 57 s of freshness left |
//! | `Cache-Status: tower-scale; fwd=uri-miss; stored` | forwarded (reasons: `uri-miss`, `vary-miss`, `stale`); length known and accepted for storing. A body of unknown length may be stored without this mark |
//! | `Cache-Status: tower-scale; fwd=uri-miss; collapsed` | answered with another request's response |
//! | `Cache-Status: tower-scale; fwd=request` | stored, but not for requests with credentials |
//! | `Cache-Status: tower-scale; fwd=method`, `fwd=bypass` | not looked up |
//! | `Age` | on hits and collapsed responses |
//!
//! Ours is the last member (RFC 9211). Connection-specific fields are not stored; everything else is kept, line by line. A
//! stored response without `Date` gets that of its arrival (RFC 9110 §6.6.1).
//!
//! # Metrics
//!
//! | name | kind | meaning |
//! |---|---|---|
//! | `cache_requests_total{outcome}` | counter | `hit`, `miss`, `collapsed`, `bypass` (no lookup), `failed` (502 of rule 11) |
//! | `cache_fills_in_flight` | gauge | responses being fetched for all, or collected |
//! | `cache_waiters` | gauge | requests that wait for another's fetch |
//! | `cache_fill_seconds` | histogram | from forward to the end of the body, of stored responses |
//! | `cache_store_errors_total` | counter | failed store operations |
//! | `cache_entries`, `cache_bytes` | gauges | in memory stores, expired entries included until they go |

mod audience;
mod body;
mod clock;
mod coalesce;
#[cfg(feature = "redis")]
mod codec;
mod collect;
mod conditional;
mod directives;
mod entry;
mod fill;
mod flight;
mod future;
mod key;
mod layer;
mod log;
mod lookup;
mod markers;
mod memory;
mod metrics;
mod policy;
#[cfg(feature = "redis")]
mod redis;
mod request;
mod service;
mod status;
mod store;
mod storing;
mod stripes;
mod ttl;
mod vary;

pub use body::{BodyError, BoxError, ResponseBody};
pub use future::ResponseFuture;
pub use layer::CacheLayer;
pub use memory::MemoryStore;
pub use policy::CachePolicy;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
pub use service::Cache;
pub use store::{Key, Record, Reply, Store, StoreFailure};
pub use ttl::CacheTtl;
