//! One handle to Redis for every layer: one connection, one time budget, one breaker.
//!
//! 1. [`Redis::connect`] takes a URL; [`Redis::from_pool`], [`Redis::from_cluster_pool`] and
//!    [`Redis::from_sentinel_pool`] take an application's own `deadpool_redis` pool, with whatever TLS, credentials and
//!    sizes it has. None of them touches the network: the first command does, in the background.
//! 2. One connection is checked out of the pool, held, and shared by all requests: the *lane*. A command costs exactly
//!    one round trip, and concurrent requests pipeline. (A checkout per command costs a `PING` and an `UNWATCH` each
//!    time: measured, a fifth of the throughput.) More lanes gain nothing, and a large value delays the others anyway.
//! 3. Every command has one time budget, 20 ms unless [`Redis::time_budget`] says otherwise, waiting for the connection
//!    included. Time in which this process did not get to run is not held against Redis: an operation that is looked
//!    at late gets as much more, at most one further budget.
//! 4. A breaker opens after 5 operations in a row without an answer, or when half of at least 20 within a second got
//!    none. Replies come in order, so operations timed out in a row are just those still in flight. Operations
//!    dropped before their budget is over count too: 64 without any answer in between open it once there has been
//!    none for a budget, 1024 open it at once. So at most 1024 abandoned commands, and those under way, can queue up in
//!    a connection that no answer comes out of. An open breaker fails at once, without sending. A cluster has one
//!    breaker per master.
//! 5. Only a background task asks whether Redis is back: at once, then after 100 ms, doubling up to 1 s, half of it
//!    random. It sends a `PING`; an answer within the budget closes the breaker. It takes a fresh connection when the
//!    old one broke, and after every few unanswered `PING`s. While all is well no such task runs.
//! 6. `READONLY` and `MOVED` (a failover moved the master) replace the connection, at most once a second.
//! 7. At most 4096 operations of one handle are under way; the next ones fail at once.
//! 8. A command is sent once and never repeated, except by the client of a cluster (see "Deployment"). One that timed out
//!    may still be carried out: make late writes harmless.
//! 9. Several runtimes may share a handle. If the one that owns the connection ends, another takes over.
//! 10. Who listens to a channel (the cache, for what other processes purge) has a connection of its own, to the URL of
//!     [`Redis::connect`] or to those of [`Redis::invalidation_urls`], as a pool cannot give one. Each new one begins at
//!     the next URL, and 2 s are all that its opening takes. Of what has arrived and is not yet taken, 8192 messages and
//!     8 MiB are kept: then the connection is closed, and its reader has to begin anew.
//!
//! It never: blocks a request longer than its budget, sends a request's command to find out whether Redis works, holds
//! more than one connection of an application's pool, shows a host, password or URL in `Debug`, errors or logs, logs
//! while it holds a lock that requests need.
//!
//! It is no layer: give clones of one handle to the limiter and the cache, and send your own commands with
//! [`Redis::query`]. Whatever fails is a [`StoreError`]; each layer decides what that
//! means, and by default it means "as if there were no Redis".
//!
//! ```
//! use std::time::Duration;
//! use tower_scale::redis::{Kind, Redis};
//!
//! # let runtime = tokio::runtime::Runtime::new().unwrap();
//! # runtime.block_on(async {
//! // Nothing listens on port 1: the service starts all the same, and finds out quickly.
//! let redis = Redis::connect("redis://:secret@127.0.0.1:1")?.time_budget(Duration::from_millis(10)).key_prefix("shop:");
//! let failure = redis.query(&redis::cmd("GET").arg("greeting")).await.unwrap_err();
//! assert!(matches!(failure.kind(), Kind::Unavailable | Kind::Timeout));
//! assert!(!format!("{redis:?} {failure} {failure:?}").contains("secret"));
//! # Ok::<(), tower_scale::redis::ConfigError>(())
//! # }).unwrap();
//! ```
//!
//! # Deployment
//!
//! Redis 6.2 or later, or Valkey. `rediss://` needs the feature `redis-tls` and trusts the system's root certificates;
//! a private authority goes into the system's store, or into the file that the environment variable `SSL_CERT_FILE`
//! names, or into a client of your own behind [`Redis::from_pool`]. Cryptography is rustls with the process's default
//! provider; if none is installed when the first connection is made, *ring* becomes it. A URL may also name a Unix
//! socket (`unix:///run/redis.sock`).
//!
//! A cluster is reached through [`Redis::from_cluster_pool`]; every command sent must have a key, and where it has
//! several, they must be of one hash slot. Its pool must not read from replicas, which may not have heard of a purge yet.
//! The client beneath it (`redis` 1.8) sends a command again when the connection breaks before the reply, also one that
//! was carried out, up to 16 times, though only while its caller waits. `deadpool_redis` builds that client itself and
//! has no setting for it: what must not happen twice (`INCR`, a limiter's spending) may, while a master goes down. Where
//! that matters, use [`Redis::connect`], [`Redis::from_pool`] or [`Redis::from_sentinel_pool`]. `MOVED` and `ASK` are
//! followed too; a server that answers so has not carried out the command.
//!
//! A pool must have room for two connections at least, since one of them is held. For a cache on a handle on a pool, say
//! where it may listen: with Sentinel the master and its replicas, of a cluster two or three of its nodes. A user of its
//! own (ACL) needs the keys `~ts:*` and, for a cache, the channels `&ts:cache:*`, with the prefix in place of `ts:`.
//!
//! ```
//! use tower_scale::redis::Redis;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nodes = ["redis://10.0.0.1", "redis://10.0.0.2", "redis://10.0.0.3"];
//! let manager = deadpool_redis::cluster::Manager::new(nodes.to_vec(), false)?;
//! let pool = deadpool_redis::cluster::Pool::builder(manager).build()?;
//! let redis = Redis::from_cluster_pool(pool)?.invalidation_urls(nodes)?;
//! # Ok(())
//! # }
//! ```
//!
//! A budget below the round trip to Redis keeps the breaker open: 20 ms is for a Redis in the same region.
//!
//! | metric | type | labels |
//! |---|---|---|
//! | `redis_operations_total` | counter | `outcome`: `ok`, `timeout`, `open`, `unavailable`, `error` |
//! | `redis_operation_seconds` | histogram, of operations that were sent | |
//! | `redis_breaker_open` | gauge: open breakers | |
//! | `redis_lane_replacements_total` | counter | |

mod backoff;
mod breaker;
mod error;
#[cfg_attr(not(feature = "cache"), allow(dead_code))]
mod everywhere;
mod handle;
mod lane;
mod link;
mod metrics;
mod nodes;
mod repair;
mod script;
mod source;
#[cfg_attr(not(feature = "cache"), allow(dead_code))]
mod subscription;
mod within;

pub use error::{ConfigError, Kind, StoreError};
pub use handle::Redis;
#[allow(unused_imports, reason = "without the limiter nobody runs scripts")]
pub(crate) use script::Script;
#[allow(unused_imports, reason = "only the cache listens")]
pub(crate) use subscription::Subscription;
#[cfg(feature = "rate-limit")]
pub(crate) use within::Within;

#[cfg(test)]
#[path = "../../tests/it/support/redis_server.rs"]
#[allow(dead_code, clippy::disallowed_methods, reason = "the integration tests' servers, of which these need some")]
pub(crate) mod redis_server;
