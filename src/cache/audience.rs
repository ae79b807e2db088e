//! Who still wants what a fetch brings, and when nobody has for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Futures that wait for a fetch, and bodies that read it.
#[derive(Default)]
pub(super) struct Audience {
    listeners: AtomicUsize,
    left: Notify,
}

impl Audience {
    pub(super) fn listen(self: &Arc<Self>) -> Listener {
        self.listeners.fetch_add(1, Ordering::Relaxed);
        Listener(self.clone())
    }

    /// Ends when nobody has listened for `patience`.
    pub(super) async fn abandoned_for(&self, patience: Duration) {
        loop {
            let left = self.left.notified();
            if self.listeners.load(Ordering::Relaxed) > 0 {
                left.await;
                continue;
            }
            // Whoever came and left meanwhile has woken this: the patience begins again.
            if tokio::time::timeout(patience, left).await.is_err() && self.listeners.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }
}

/// One of an [`Audience`].
pub(super) struct Listener(Arc<Audience>);

impl Listener {
    pub(super) fn another(&self) -> Self {
        self.0.listen()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.0.listeners.fetch_sub(1, Ordering::Relaxed) == 1 {
            // All who wait: a fetch waits with more than one patience.
            self.0.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_patience_begins_with_the_last_departure() {
        let audience = Arc::new(Audience::default());
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(30));
        let first = audience.listen();
        let began = Instant::now();
        let listeners = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(first);
            tokio::time::sleep(Duration::from_millis(500)).await;
            let second = audience.listen();
            tokio::time::sleep(Duration::from_millis(1400)).await;
            drop(second);
        };
        let patient = async {
            tokio::select! {
                () = audience.abandoned_for(short) => began.elapsed(),
                () = audience.abandoned_for(long) => unreachable!("the longer one"),
            }
        };
        let (ended, ()) = tokio::join!(patient, listeners);
        assert_eq!(ended.as_millis(), 3000);
    }

    /// Paused time: who listens only during the patience starts it again.
    #[tokio::test(start_paused = true)]
    async fn patience_begins_when_the_last_listener_has_left() {
        let audience = Arc::new(Audience::default());
        let begun = Instant::now();
        let came = audience.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(900)).await;
            drop(came.listen());
        });
        audience.abandoned_for(Duration::from_secs(1)).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(1900));
    }
}
