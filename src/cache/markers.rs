//! Keys that are not worth waiting for, remembered for a while in a table of fixed size.
//!
//! A slot holds a part of its key's hash and when it lapses. Keys that share a slot overwrite each other, and one in
//! four billion is taken for another: the worst is that a request fetches for itself what it could have shared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::key::Key;

const SLOTS: u64 = 4096;
/// As Varnish's hit-for-miss. A storable response ends it sooner.
const LIFETIME: Duration = Duration::from_secs(120);

pub(super) struct Markers {
    slots: Box<[AtomicU64]>,
    epoch: Instant,
}

impl Markers {
    pub(super) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(), epoch: Instant::now() }
    }

    pub(super) fn mark(&self, key: &Key, now: Instant) {
        if let Some(slot) = self.slot(key) {
            slot.store(tag(key) | self.seconds(now + LIFETIME), Ordering::Relaxed);
        }
    }

    pub(super) fn clear(&self, key: &Key) {
        if let Some(slot) = self.slot(key)
            && slot.load(Ordering::Relaxed) & TAG == tag(key)
        {
            slot.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn holds(&self, key: &Key, now: Instant) -> bool {
        let found = self.slot(key).map_or(0, |slot| slot.load(Ordering::Relaxed));
        found & TAG == tag(key) && found & !TAG > self.seconds(now)
    }

    fn slot(&self, key: &Key) -> Option<&AtomicU64> {
        self.slots.get(usize::try_from(key.hash() % SLOTS).unwrap_or(0))
    }

    /// Since the table was made; 136 years fit.
    fn seconds(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_secs() & !TAG
    }
}

const TAG: u64 = 0xffff_ffff << 32;

fn tag(key: &Key) -> u64 {
    key.hash() & TAG
}

#[cfg(test)]
mod tests {
    use http::Extensions;

    use super::*;

    fn key(path: &str) -> Key {
        let headers = [(http::header::HOST, http::HeaderValue::from_static("h"))].into_iter().collect();
        Key::primary(&path.parse().unwrap(), &headers, &Extensions::new()).unwrap()
    }

    #[test]
    fn a_mark_lapses_or_is_cleared() {
        let (markers, now) = (Markers::new(), Instant::now());
        let (one, other) = (key("/1"), key("/2"));
        assert!(!markers.holds(&one, now));
        markers.mark(&one, now);
        assert!(markers.holds(&one, now) && !markers.holds(&other, now));
        assert!(markers.holds(&one, now + LIFETIME - Duration::from_secs(2)));
        assert!(!markers.holds(&one, now + LIFETIME + Duration::from_secs(2)));
        markers.clear(&other);
        assert!(markers.holds(&one, now));
        markers.clear(&one);
        assert!(!markers.holds(&one, now));
    }
}
