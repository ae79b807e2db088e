//! Composable [tower](https://docs.rs/tower) layers that let any hyper, axum or tonic service scale.
//!
//! The parts that every guide to "scaling" lists, done once: cache responses, limit each client, keep CPU-heavy work off
//! the event loop, watch its lag and the process's memory. Add the crate, wrap the service you have, keep its handlers.
//!
//! ```
//! # #[cfg(feature = "full")]
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::net::SocketAddr;
//!
//! use axum::{Router, http::header, routing::get};
//! use tower_scale::cache::{CacheLayer, MemoryStore};
//! use tower_scale::offload::{OffloadLayer, OffloadPool};
//! use tower_scale::rate_limit::{Quota, RateLimitLayer};
//! use tower_scale::telemetry::TelemetryLayer;
//!
//! let product = async || ([(header::CACHE_CONTROL, "max-age=60")], "a product");
//! let report = async || "a report that takes a while to compute";
//! let app = Router::new()
//!     .route("/products/{id}", get(product).layer(CacheLayer::new(MemoryStore::new(64 << 20))))
//!     // CPU-bound handlers leave the event loop, unchanged.
//!     .route("/report", get(report).layer(OffloadLayer::new(OffloadPool::new()?)))
//!     .layer(RateLimitLayer::new(Quota::per_minute(100).burst(20)))
//!     .layer(TelemetryLayer::new());
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?;
//! let server = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>());
//! tokio::spawn(server.into_future());
//! #
//! # let get = async |path: &str| {
//! #     use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! #     let mut stream = tokio::net::TcpStream::connect(address).await?;
//! #     let request = format!("GET {path} HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n");
//! #     stream.write_all(request.as_bytes()).await?;
//! #     let mut answer = String::new();
//! #     stream.read_to_string(&mut answer).await?;
//! #     std::io::Result::Ok(answer)
//! # };
//!
//! let first = get("/products/1").await?;
//! assert!(first.contains("cache-status: ") && first.contains("fwd=uri-miss"));
//! let second = get("/products/1").await?;
//! assert!(second.contains("; hit") && second.contains("age: 0"));
//! assert!(second.contains("ratelimit: ") && second.ends_with("a product"));
//! assert!(get("/report").await?.contains("200 OK"));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "full"))]
//! # fn main() {}
//! ```
//!
//! | module | layer | what it is for | feature |
//! |---|---|---|---|
//! | `cache` | `CacheLayer` | an RFC 9111 shared cache inside the server, in memory or on Redis | `cache` |
//! | `rate_limit` | `RateLimitLayer` | per-client limits, in process or cluster-wide | `rate-limit` |
//! | `client_ip` | `ClientIpLayer` | who calls what, through trusted proxies only | `client-ip` |
//! | `offload` | `OffloadLayer`, `OffloadPool` | CPU-bound work off the event loop | `offload` |
//! | `telemetry` | `TelemetryLayer` | event-loop lag, memory, the route that blocked | `telemetry` |
//! | `redis` | | one handle to Redis, shared by all layers | `redis`, `redis-tls` |
//! | `refusal` | | the response of a layer that says no | always |
//!
//! Further features: `metrics` (every number, through the [`metrics`](https://docs.rs/metrics) facade), `tracing` (log lines
//! on state changes; spans follow requests), `axum` and `tonic` (read their connect info), `governor` (an application's own
//! limiter decides a policy), `full` (all of these). A feature only adds; it never changes behaviour.
//!
//! What every layer keeps, and `tests/it/contract.rs` holds:
//!
//! 1. A refusal is a response (400, 429, 500, 502, 503), with its [`Reason`](refusal::Reason) in the response's
//!    extensions; the service's error type stays what it was. No `HandleErrorLayer`, no boxing.
//! 2. The same layer value, or a clone of it, is the same state: build two values for two caches or two limits.
//! 3. Dropping a request or a response body at any point leaks nothing and strands nobody.
//! 4. Everything is bounded, and says so in its metrics.
//! 5. Redis slow, frozen or gone never becomes an error for a client.
//!
//! Services must be `Send`; layers that may answer alone or outlive a caller also need `Clone` (and `'static`) of the service
//! they wrap, which axum, hyper and tonic services are.
#![cfg_attr(docsrs, feature(doc_cfg))]

// Each feature uses its own part of the foundations; with all of them, nothing may be unused.
#[cfg_attr(not(feature = "full"), allow(dead_code, unused_imports, unused_macros))]
mod body;
#[cfg_attr(not(feature = "full"), allow(dead_code))]
mod meter;
#[cfg_attr(not(feature = "full"), allow(dead_code))]
mod ready;
#[cfg_attr(not(feature = "full"), allow(dead_code))]
mod scope;

#[cfg(feature = "cache")]
pub mod cache;
#[cfg(feature = "client-ip")]
pub mod client_ip;
#[cfg(feature = "offload")]
pub mod offload;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg_attr(not(feature = "full"), allow(dead_code))]
pub mod refusal;
#[cfg(feature = "telemetry")]
pub mod telemetry;
