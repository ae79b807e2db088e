//! A shared response cache inside the server (RFC 9111), which asks the inner service once per key.
//!
//! 1. **GET and HEAD** are looked up. HEAD is answered from a stored GET; it stores nothing, but the response to one that
//!    had to go on renews what is stored where it speaks of that (RFC 9111 §4.3.5). All other methods pass; after a 2xx or
//!    3xx they invalidate their URL with all its variants, and what `Location` and `Content-Location` name on the same
//!    origin; fetches under way for it are neither stored nor joined any more (RFC 9111 §4.4). gRPC calls invalidate
//!    nothing.
//! 2. **The key** is method class, scheme, host, path and query, byte for byte, each with its length before it: no two URLs
//!    share one. Scheme and host are those of [`client_ip::Origin`](crate::client_ip::Origin); a request without a valid
//!    host passes, and so does one whose `Host` contradicts the authority of its URL. Under axum the unstripped path
//!    counts too, so that one layer value may serve several nested routers. Keys above 4 KiB pass. A
//!    [list of query parameters](CacheLayer::query_parameters) shortens it, [fields](CacheLayer::key_header) lengthen it.
//! 3. **What the key does not hold, no handler sees** on a request whose response others may get: forwarding and override
//!    fields (`X-Forwarded-Host`, `X-Original-URL`, `X-HTTP-Method-Override`, …) are rewritten from the origin or removed,
//!    and so are ignored query parameters and cookies. `Accept-Encoding` comes in one spelling.
//! 4. **Stored** is what states its own freshness (`s-maxage`, else `max-age`, else `Expires`; less `Age`), what the
//!    handler gives a [`CacheTtl`], and, with [`CacheLayer::ttl`], whatever else has status 200, 203, 204, 300, 301 or
//!    308. In this order the first that speaks decides: `no-store` and its kin ([`NoStore`] too), the handler, the fields,
//!    the layer. A 200 that is stale from the start (`no-cache`, `max-age=0`) is stored if it can be validated.
//!    `CDN-Cache-Control` stands for all of the response's own fields (RFC 9213).
//! 5. **Never stored**: `no-store` and `private`; a `Cache-Control` that breaks the grammar; `Set-Cookie`; `Vary: *`; bodies
//!    with trailers, with an error, or of another length than stated; status 1xx, 206, 304, 416, and
//!    those that one client's credentials, rate or odd request can provoke (400, 401, 403, 406, 407, 408, 411, 412, 413,
//!    415, 417, 421, 425, 429, 431); an event stream that does not state its own freshness. `private` and `no-cache`
//!    with a list of fields keep those fields out. [`CachePolicy::rfc9111`] goes to the edge of what the RFC permits in
//!    both rules.
//! 6. **Credentials** (`Authorization` and `Cookie` alike): such a request is answered from the store, and its response
//!    stored, only where the response says `public`, `s-maxage` or `must-revalidate` (RFC 9111 §3.5). It fetches for
//!    others, and takes what others fetch, only where the key's last response said so, and the new one says it again.
//! 7. **Conditions and ranges** of a client are answered from what is stored, or from what is fetched for all: 304, 206 (one
//!    range, or up to 16 that do not overlap), 416. A range that finds nothing stored goes on as it came. So do
//!    `If-Match`, `If-Unmodified-Since`, `Upgrade`, and requests with content, without a lookup.
//! 8. **Request `Cache-Control` is ignored** unless the [policy](CachePolicy::request_directives) obeys it: it is advice to a
//!    cache (RFC 9111 §5.2.1), and obeying it lets any client force misses.
//! 9. **`Vary`**: variants have keys of their own, made of the combined lines of the named fields. At most 16 names, and 32
//!    variants of one URL: beyond, the oldest goes.
//! 10. **Validation**: what has expired is validated with its entity tag and date, a missing variant with the
//!     strong tag of the latest other one that has no content coding. A 304 renews the stored fields (RFC 9111 §3.2),
//!     but for the tag; a full response that is not stored itself outdates what was stored. What can be validated is
//!     kept beyond its time, for as long again, at least an hour and at most a day.
//! 11. **Stale** responses are served where the response (RFC 5861) or the layer allows it: at once, while one fetch renews
//!     them in the background ([`stale_while_revalidate`](CacheLayer::stale_while_revalidate); after one that
//!     stores nothing, none for 1 s), or instead of a 5xx, an inner error, a panic or a [timeout](CacheLayer::fetch_timeout)
//!     ([`stale_if_error`](CacheLayer::stale_if_error)). Never with `must-revalidate`, `proxy-revalidate`, `no-cache`, nor,
//!     unless the policy says so, `s-maxage`; nor, at once and by the layer's word alone, what was stale when it came.
//!     What is fresh, but asked for often, is renewed in the same way [shortly before it
//!     expires](CacheLayer::early_refresh), sooner the longer its fetch takes, and by chance (XFetch): at the end of
//!     its lifetime nobody waits.
//! 12. **One fetch per key.** It runs in a task of its own, in the scope of the request that began it, and no client that
//!     leaves cancels it; one that nobody wants ends after 1 s without a head, after 30 s without a whole body. Who
//!     comes meanwhile waits, at most 5 s, then goes alone; a request waits with itself in hand, so it can take over.
//!     Between a lookup and a fetch no other fetch slips in: a lookup that is older than the last store of its key is
//!     repeated. A cache that meets a request with which it is fetching already (one layer value twice in a stack)
//!     passes it.
//! 13. **The head decides.** Not storable: everybody goes alone at once, and the forwarded request has the live
//!     response. For 120 s, or until something fresh is stored, who asks for that key fetches for itself without waiting.
//!     Storable: the body is shared while it grows if its length is known, else when it is whole.
//! 14. **A failed fetch** (inner error, panic, broken body, 5xx that nobody asked to keep) is tried again by one of those
//!     who wait and may have nothing stale, twice at most; then the others get a 502. The request that ran has the inner
//!     error, panic or response itself.
//! 15. **Bodies stream** to the client while they are copied. A body beyond [`CacheLayer::max_object_bytes`], or beyond
//!     what the store sets aside for copies under way, goes on as it is, and its copy is dropped. A shared body ends
//!     complete or with an error, never in between. A response that is no longer fresh is joined by nobody.
//! 16. **A store that fails is a miss**, counted. After a timeout the same request asks and writes it no more. No client
//!     waits until something is written, but for an invalidation: who has changed a URL may rely on it.
//! 17. **Purges** ([`CacheHandle`]) name a URL with all variants, a prefix of URLs, a tag ([`CacheTags`]), or everything. They
//!     are remembered, not carried out: one costs the same whatever is stored, and voids fetches that were forwarded
//!     before it as well. A hard purge forgets for good; a soft one makes stale.
//! 18. **Several processes over one Redis** are one cache ([what that means](#across-machines)): purges and invalidations
//!     reach all of them, and one of them fetches for all.
//!
//! # It never
//!
//! stores or replays what one user's request brought to another without the permission of rule 6; combines parts of a
//! response; keeps more than its bounds (1024 fetches, 4096 waiters each, the store's own, also for
//! copies); holds back the first byte of a body from the client whose request was forwarded.
//!
//! # Across machines
//!
#![cfg_attr(
    feature = "redis",
    doc = "With a [`TieredStore`] (each process's memory in front of one Redis) or a [`RedisStore`] (Redis alone):"
)]
#![cfg_attr(
    not(feature = "redis"),
    doc = "With a `TieredStore` (each process's memory in front of one Redis) or a `RedisStore` (Redis alone), feature `redis`:"
)]
//!
//! - **A purge, an invalidation, or a newer response** counts in every process within 100 ms while Redis answers. The
//!   process that purges knows at once. One that cannot tell Redis tells it later, as long as it runs.
//! - **Nothing purged comes back**: what is stored carries random tokens of all it depends on, and holds only while each of
//!   them is still the same. One that was evicted, flushed or lost in a failover is a miss.
//! - **A process that hears nothing** of the others any more notices within two heartbeats of 500 ms. From then on each response in its
//!   memory is used for 5 s more at most (`disconnected_ttl`).
//! - **One fetch for all processes**, of what has been cacheable before: the others wait for it, 5 s at most, or serve what
//!   is stale where they may. Of what was never seen, one for each process. Without Redis too.
//! - **Redis decides nothing about availability**: slow, frozen, full, flushed or gone, it costs one time budget, then
//!   nothing. Requests go to memory, then to the handler.
//! - **Clocks** should agree to some seconds: freshness is counted by them. A response from more than a minute in the future
//!   is not used.
//!
//! `docs/operations/redis.md` tells how to size and run it.
//!
//! # What handlers see
//!
//! A request whose response may be stored reaches the handler without what its key ignores, so that no client can
//! choose by it what others get; all other requests pass as they came.
//!
//! | of the request | in the key | what the handler sees |
//! |---|---|---|
//! | `Host`, and the authority of an absolute URL | as in rule 2 | always the host of the key |
//! | query parameters that [`CacheLayer::query_parameters`] does not name | no | nothing, neither in the URL nor in axum's `OriginalUri` |
//! | cookies that [`CacheLayer::ignore_cookies`] names | no | nothing; other cookies as one line |
//! | `Accept-Encoding` | no | those of `zstd, br, gzip, deflate` that are acceptable, spelled alike ([unless told otherwise](CacheLayer::accept_encoding_as_is)) |
//! | `X-Forwarded-Host`, `X-Forwarded-Proto` | no | scheme and host of the key behind a [`ClientIpLayer`](crate::client_ip::ClientIpLayer), sent or not; nothing without one |
//! | `Forwarded`, `X-Forwarded-Port` and `-Prefix`, `X-Original-URL`, `X-HTTP-Method-Override`, and whatever else is known to stand in for scheme, host, port, path or method | no | nothing |
//! | a field that [`CacheLayer::key_header`] names, be it one of the above | yes | all lines as one |
//! | any other field | no | as it came: name it in `Vary`, or let nothing depend on it |
//!
//! Two things stay with the transport: the HTTP version, and whether the URL is absolute.
//! `X-Forwarded-For`, `X-Real-IP` and `Via` are other fields, and so is the address that
//! [`ClientIp`](crate::client_ip::ClientIp) names: what depends on them must vary by the field, or not be stored.
//!
//! # Where it stands
//!
//! Inside of limits and of `ClientIpLayer`, outside of whatever depends on request fields without saying so in `Vary`.
//! With tower-http's compression inside, each set of acceptable codings is a variant, compressed once; with it outside,
//! it chooses by the client's own `Accept-Encoding`, and the plain body is stored once and compressed for each client
//! (`docs/ordering.md`). Needs a tokio runtime with its timer enabled; polled elsewhere, it forwards every miss
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
//! Whatever a handler reads from a request that is neither in the key (rule 2) nor taken away (rule 3) nor named in its
//! `Vary` lets one client choose what others get: `X-Forwarded-For` and the address of the peer among them.
//! Behind a proxy that ends TLS, put a `ClientIpLayer` that trusts it outside: without one every request counts as
//! `http`, and handlers do not see `X-Forwarded-Proto`. One that mounts the service under a path tells it in
//! `X-Forwarded-Prefix`: put that in the key if handlers read it.
//! Outside axum, put the layer outside of what strips path prefixes.
//! A store of your own that several processes share keeps responses, no more: purges, invalidations of fetches under way,
//! and fetches are then each process's own.
//! hyper's server cannot send informational (1xx) responses, and none crosses a tower service.
//!
//! # Fields
//!
//! | response field | where |
//! |---|---|
//! | `Cache-Status: tower-scale; hit; ttl=57` | answered from the store, 57 s of freshness left |
//! | `Cache-Status: tower-scale; hit; ttl=-3` | expired 3 s ago, and being renewed |
//! | `Cache-Status: tower-scale; hit; ttl=0` | stale by a soft purge, and being renewed |
//! | `Cache-Status: tower-scale; fwd=stale; fwd-status=304; stored` | validated (`fwd-status`: where the status that came is not the one that goes out) |
//! | `Cache-Status: tower-scale; fwd=stale; fwd-status=503; detail=stale-if-error` | stored, instead of an error |
//! | `Cache-Status: tower-scale; fwd=uri-miss; stored` | forwarded (reasons: `uri-miss`, `vary-miss`, `stale`); length known and accepted for storing. A body of unknown length may be stored without this mark |
//! | `Cache-Status: tower-scale; fwd=uri-miss; collapsed` | answered with another request's response |
//! | `Cache-Status: tower-scale; fwd=request` | stored, but not for requests with credentials, or not as fresh as the request asks |
//! | `Cache-Status: tower-scale; detail=only-if-cached` | 504: nothing stored, and the request forbids to forward it |
//! | `Cache-Status: tower-scale; fwd=uri-miss; detail=credentials` | forwarded alone, since it has credentials |
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
//! | `cache_requests_total{outcome}` | counter | `hit`, `stale`, `revalidated`, `miss`, `collapsed`, `bypass` (no lookup), `failed` (502 of rule 14, 504 of `only-if-cached`); who leaves before it is answered or forwarded counts as `collapsed` |
//! | `cache_stale_served_total{reason}` | counter | `revalidate`, `error`, `request`: what permitted it |
//! | `cache_refreshes_total{reason}` | counter | fetches in the background: `stale` (what was served had expired), `early` (rule 11: it soon will) |
//! | `cache_purges_total{kind}` | counter | `url`, `prefix`, `tag`, `everything` |
//! | `cache_fills_in_flight` | gauge | responses being fetched for all, or collected |
//! | `cache_waiters` | gauge | requests that wait for another's fetch |
//! | `cache_fill_seconds` | histogram | from forward to the end of the body, of stored responses |
//! | `cache_store_errors_total` | counter | failed store operations |
//! | `cache_entries`, `cache_bytes` | gauges | in memory stores, expired entries included until they go |
//! | `cache_evictions_total` | counter | entries of memory stores that had to make room |
//!
//! Stores in Redis have more: `docs/metrics.md`.

mod alone;
mod audience;
mod block;
mod body;
mod case;
mod change;
#[cfg(test)]
#[cfg(shuttle)]
mod checked;
mod clock;
mod coalesce;
mod codec;
mod collect;
mod conditional;
mod control;
mod date;
mod directives;
mod early;
mod entry;
mod fields;
mod fill;
mod fleet;
mod flight;
mod future;
mod handle;
mod intake;
mod keep;
mod key;
mod layer;
mod lead;
mod log;
mod lookup;
mod markers;
mod memory;
mod metrics;
mod names;
mod partial;
mod plan;
mod policy;
mod purge;
mod purges;
mod range;
#[cfg(feature = "redis")]
mod redis;
mod refresh;
mod request;
mod request_control;
mod reuse;
mod service;
mod status;
mod store;
pub mod store_tests;
mod storing;
mod stripes;
mod structured;
mod sync;
mod tally;
mod together;
mod tokens;
mod update;
mod vary;
mod wakers;
mod weight;

pub use body::{BodyError, BoxError, ResponseBody};
pub use control::{CacheTags, CacheTtl, NoStore};
pub use fleet::Purging;
pub use future::ResponseFuture;
pub use handle::{CacheHandle, CacheStats};
pub use layer::CacheLayer;
pub use memory::MemoryStore;
pub use policy::CachePolicy;
pub use purge::{Purge, PurgeError};
#[cfg(feature = "redis")]
pub use redis::{RedisStore, TieredStore};
pub use service::Cache;
pub use store::{Key, Record, Reply, Store, StoreFailure, Usage};
