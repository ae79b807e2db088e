//! Replies that nobody waits for.

use std::future::poll_fn;
use std::task::Poll;

use tokio::task::yield_now;

use super::Suite;
use crate::cache::store::Reply;

/// Dropped before the first poll, after it, and after others could run.
const STAGES: usize = 4;

pub(super) async fn a_dropped_reply_holds_up_nobody(suite: &Suite) {
    for _ in 0..20 {
        let key = suite.samples.key();
        let (dropped, new) = (suite.samples.small(), suite.samples.small());
        for stage in 0..STAGES {
            abandon(suite.store.put(&key, dropped.clone()), stage).await;
            abandon(suite.store.get(&key), stage).await;
            abandon(suite.store.remove(&key), stage).await;
        }
        suite.put(&key, &new).await;
        // The dropped put may come as late as it likes.
        let found = suite.get(&key).await;
        let right = found.as_ref().is_none_or(|found| *found == new || *found == dropped);
        assert!(right, "after dropped replies a key has a record that it never had: {found:?}");
        let other = suite.samples.key();
        suite.put(&other, &new).await;
        suite.expect(&other, &new, "after dropped replies of another key").await;
    }
}

async fn abandon<T>(reply: Reply<T>, stage: usize) {
    let Reply::Later(mut future) = reply else { return };
    for n in 0..stage {
        if poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await.is_ready() {
            return;
        }
        if n > 0 {
            yield_now().await;
        }
    }
}
