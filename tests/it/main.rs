//! The one integration binary. Redis tests start a real `redis-server`.

mod cache;
mod client_ip;
mod contract;
mod offload;
mod rate_limit;
mod redis;
mod support;
mod telemetry;
