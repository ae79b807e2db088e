//! What the tests share.

pub(crate) mod example;
pub(crate) mod fleet;
pub(crate) mod inner;
pub(crate) mod memcached;
pub(crate) mod origin;
pub(crate) mod random;
pub(crate) mod redis_server;
pub(crate) mod shop;

use std::future::Future;
use std::time::Duration;

/// Polls `condition` until it holds; fails after ten seconds. For real-time tests, in place of bare sleeps.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
