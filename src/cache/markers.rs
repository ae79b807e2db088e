//! What is known of a key beyond its stored response, remembered for a while in tables of fixed size.
//!
//! A slot holds a part of its key's hash and when it lapses. Keys that share a slot overwrite each other, and one in four
//! billion of those is taken for the other. So a mark is a hint, never a permission: at the worst a request fetches for
//! itself what it could have shared, or waits for what it may not have, or a refresh comes a second late.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::key::Key;

/// Few under the checker, which makes them anew for each of its runs.
const SLOTS: u64 = if cfg!(all(test, shuttle)) { 16 } else { 4096 };

/// What is remembered of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Its last response was not for sharing: nobody waits for the next one in vain.
    Unshared,
    /// Its last response may be shared by requests with credentials (RFC 9111 §3.5): they may wait for the next one.
    Permitted,
    /// A refresh in the background failed: no other yet.
    HoldOff,
}

impl Mark {
    const ALL: [Self; 3] = [Self::Unshared, Self::Permitted, Self::HoldOff];

    fn lifetime(self) -> Duration {
        match self {
            // As Varnish's hit-for-miss. A storable response ends it sooner.
            Self::Unshared => Duration::from_secs(120),
            Self::Permitted => Duration::from_secs(3600),
            Self::HoldOff => Duration::from_secs(1),
        }
    }
}

/// A table for each kind of mark, so that none overwrites another.
pub(super) struct Markers {
    tables: [Box<[AtomicU64]>; 3],
    epoch: Instant,
}

impl Markers {
    pub(super) fn new() -> Self {
        let table = |_| (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self { tables: Mark::ALL.map(table), epoch: Instant::now() }
    }

    pub(super) fn mark(&self, key: &Key, mark: Mark, now: Instant) {
        if let Some(slot) = self.slot(key, mark) {
            // Rounded up: never shorter than its lifetime.
            slot.store(tag(key) | ((self.ticks(now + mark.lifetime()) + 1) & !TAG), Ordering::Relaxed);
        }
    }

    pub(super) fn holds(&self, key: &Key, mark: Mark, now: Instant) -> bool {
        let found = self.slot(key, mark).map_or(0, |slot| slot.load(Ordering::Relaxed));
        found & TAG == tag(key) && found & !TAG > self.ticks(now)
    }

    /// Takes one mark off.
    pub(super) fn lift(&self, key: &Key, mark: Mark) {
        if let Some(slot) = self.slot(key, mark)
            && slot.load(Ordering::Relaxed) & TAG == tag(key)
        {
            slot.store(0, Ordering::Relaxed);
        }
    }

    /// Takes every mark off.
    pub(super) fn clear(&self, key: &Key) {
        Mark::ALL.into_iter().for_each(|mark| self.lift(key, mark));
    }

    fn slot(&self, key: &Key, mark: Mark) -> Option<&AtomicU64> {
        self.tables.get(mark as usize)?.get(usize::try_from(key.hash() % SLOTS).unwrap_or(0))
    }

    /// Tenths of a second since the tables were made; 13 years fit.
    fn ticks(&self, at: Instant) -> u64 {
        let tenths = at.saturating_duration_since(self.epoch).as_millis() / 100;
        u64::try_from(tenths).unwrap_or(0) & !TAG
    }
}

const TAG: u64 = 0xffff_ffff << 32;

fn tag(key: &Key) -> u64 {
    key.hash() & TAG
}

#[cfg(test)]
mod tests {
    use http::Extensions;

    use super::super::intake::Intake;
    use super::*;

    fn key(path: &str) -> Key {
        let headers = [(http::header::HOST, http::HeaderValue::from_static("h"))].into_iter().collect();
        Key::primary(&Intake::default(), &path.parse().unwrap(), &headers, &Extensions::new()).unwrap()
    }

    #[test]
    fn a_mark_lapses_or_is_taken_off() {
        let (markers, now) = (Markers::new(), Instant::now());
        let (one, other) = (key("/1"), key("/2"));
        for mark in Mark::ALL {
            assert!(!markers.holds(&one, mark, now));
            markers.mark(&one, mark, now);
            assert!(markers.holds(&one, mark, now) && !markers.holds(&other, mark, now));
            assert!(markers.holds(&one, mark, now + mark.lifetime()));
            assert!(!markers.holds(&one, mark, now + mark.lifetime() + Duration::from_millis(200)));
            markers.clear(&other);
            assert!(markers.holds(&one, mark, now));
            markers.lift(&one, mark);
            assert!(!markers.holds(&one, mark, now));
        }
    }

    #[test]
    fn marks_of_one_key_do_not_touch_each_other() {
        let (markers, now, key) = (Markers::new(), Instant::now(), key("/"));
        let held = || Mark::ALL.map(|mark| markers.holds(&key, mark, now));
        Mark::ALL.iter().for_each(|mark| markers.mark(&key, *mark, now));
        markers.lift(&key, Mark::HoldOff);
        assert_eq!(held(), [true, true, false]);
        markers.clear(&key);
        assert_eq!(held(), [false; 3]);
    }
}
