//! Who still wants what a fetch brings, and when nobody has for a while.

use std::sync::Arc;
use std::time::Duration;

use super::wakers::Watched;

/// Futures that wait for a fetch, and bodies that read it.
pub(super) type Audience = Watched<Presence>;

#[derive(Default)]
pub(super) struct Presence {
    listeners: usize,
    /// How often the last listener has left.
    departures: u64,
}

impl Presence {
    /// Where nobody is there: how often the last has left.
    pub(super) fn empty(&self) -> Option<u64> {
        (self.listeners == 0).then_some(self.departures)
    }
}

impl Audience {
    pub(super) fn listen(self: &Arc<Self>) -> Listener {
        self.adjust(|presence| presence.listeners += 1);
        Listener(self.clone())
    }

    /// Ends when nobody has listened for `patience`.
    pub(super) async fn abandoned_for(self: &Arc<Self>, patience: Duration) {
        let mut watcher = self.watch();
        loop {
            let since = watcher.find(Presence::empty).await;
            // Whoever comes and leaves meanwhile begins the patience again.
            let again = watcher.find(|presence| (presence.departures != since).then_some(()));
            if tokio::time::timeout(patience, again).await.is_err() && self.look(Presence::empty) == Some(since) {
                return;
            }
        }
    }
}

/// One of an [`Audience`].
pub(super) struct Listener(Arc<Audience>);

impl Drop for Listener {
    fn drop(&mut self) {
        let last = self.0.adjust(|presence| {
            presence.listeners -= 1;
            let last = presence.listeners == 0;
            presence.departures += u64::from(last);
            last
        });
        if last {
            self.0.wake();
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
