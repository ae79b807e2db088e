//! Time that tests move: for `#[tokio::test(start_paused = true)]`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

/// The layer's clock follows tokio's paused one, from 137 ms into a second: no test depends on when it is run.
pub(super) fn moving(layer: CacheLayer) -> CacheLayer {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (base, start) = (UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 137), tokio::time::Instant::now());
    layer.clock(move || base + start.elapsed())
}

/// Moves tokio's clock, and lets everything run that can.
pub(super) async fn pass(time: Duration) {
    tokio::time::advance(time).await;
    settle().await;
}

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
