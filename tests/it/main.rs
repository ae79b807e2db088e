//! The one integration binary. Redis tests start a real `redis-server`.

mod cache;
mod client_ip;
mod contract;
mod docs;
mod imports;
mod offload;
mod quickstart;
mod rate_limit;
mod redis;
mod support;
mod telemetry;
