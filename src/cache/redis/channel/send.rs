//! Brings purges to Redis, until it has taken them.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant as Deadline, sleep_until};

use super::super::hub::Hub;
use super::super::pending::Attempt;
use super::super::purging::purge;
use super::pause;
use super::shift::Task;

/// So many at once.
const BATCH: usize = 64;

impl Task {
    /// Ends when the store is gone, or when another task has taken over.
    pub(super) async fn send(&self) {
        let (mut failures, mut again) = (0_u32, Deadline::now());
        loop {
            let Some(hub) = self.hub() else { return };
            let all = Deadline::now() >= again;
            let batch = hub.channel.pending.batch(BATCH, all, SystemTime::now());
            if batch.is_empty() {
                let tried = hub.channel.pending.any_tried();
                drop(hub);
                tokio::select! {
                    () = self.bells.pending.notified() => {}
                    () = sleep_until(again), if tried => {}
                }
                continue;
            }
            if send_all(&hub, batch).await {
                failures = 0;
            } else {
                // What is new is tried at once all the same.
                if all {
                    again = Deadline::now() + pause(failures, RandomState::new().hash_one(failures));
                    failures = failures.saturating_add(1);
                }
            }
            hub.channel.changed();
        }
    }
}

/// Whether all of them arrived.
async fn send_all(hub: &Arc<Hub>, batch: Vec<Attempt>) -> bool {
    let mut sending = JoinSet::new();
    for attempt in batch {
        let hub = hub.clone();
        sending.spawn(async move {
            let outcome = purge(&hub, &attempt, SystemTime::now()).await;
            hub.channel.pending.settle(attempt.id, &outcome, Instant::now());
            outcome.is_ok()
        });
    }
    let mut all = true;
    while let Some(arrived) = sending.join_next().await {
        all &= arrived.unwrap_or(false);
    }
    all
}
