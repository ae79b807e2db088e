//! Event-loop lag, memory, and which route held the event loop.

mod body;
#[cfg(feature = "metrics")]
mod export;
mod future;
mod lag;
mod layer;
mod memory;
mod metrics;
mod rolling;
mod sampler;
mod service;
mod watch;

pub use body::ResponseBody;
pub use future::ResponseFuture;
pub use layer::{TelemetryLayer, Vitals};
pub use memory::Memory;
pub use metrics::LAG_BUCKETS;
pub use service::Telemetry;
