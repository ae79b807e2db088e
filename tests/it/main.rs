//! The one integration binary. Redis tests start a real `redis-server`.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may fail loudly; helpers outside of `#[test]` functions are tests too"
)]

mod cache;
mod cache_example;
mod cache_intake;
mod client_ip;
mod contract;
mod docs;
mod fleet;
mod imports;
mod memcached;
mod offload;
mod quickstart;
mod rate_limit;
mod rate_limit_example;
mod rate_limit_fields;
mod rate_limit_fleet;
mod rate_limit_flights;
mod rate_limit_governor;
mod rate_limit_handle;
mod rate_limit_layer;
mod rate_limit_redis;
mod redis;
mod reverse_proxy;
mod support;
mod telemetry;
