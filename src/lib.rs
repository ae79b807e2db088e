//! Composable tower layers that let any hyper, axum or tonic service scale.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod body;
mod meter;
mod ready;
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
pub mod refusal;
#[cfg(feature = "telemetry")]
pub mod telemetry;
