//! A maximum over the last minute.

use std::time::Duration;

const SECONDS: u8 = 60;

type Buckets = [Duration; SECONDS as usize];

/// The largest value of the last 60 s: one bucket per second, so a value is forgotten after 59 to 60 s.
#[derive(Debug)]
pub(super) struct RollingMax {
    buckets: Buckets,
    second: u64,
}

impl Default for RollingMax {
    fn default() -> Self {
        Self { buckets: [Duration::ZERO; SECONDS as usize], second: 0 }
    }
}

impl RollingMax {
    pub(super) fn record(&mut self, now: Duration, value: Duration) {
        self.advance(now.as_secs());
        if let Some(bucket) = self.bucket(self.second) {
            *bucket = value.max(*bucket);
        }
    }

    pub(super) fn get(&mut self, now: Duration) -> Duration {
        self.advance(now.as_secs());
        self.buckets.iter().copied().max().unwrap_or_default()
    }

    fn advance(&mut self, second: u64) {
        let passed = second.saturating_sub(self.second).min(u64::from(SECONDS));
        self.second = self.second.max(second);
        for back in 0..passed {
            if let Some(bucket) = self.bucket(self.second - back) {
                *bucket = Duration::ZERO;
            }
        }
    }

    fn bucket(&mut self, second: u64) -> Option<&mut Duration> {
        self.buckets.get_mut(usize::try_from(second % u64::from(SECONDS)).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forgets_after_a_minute() {
        let s = Duration::from_secs;
        let mut max = RollingMax::default();
        max.record(s(0), s(9));
        max.record(s(30), s(5));
        for (at, expected) in [(30, 9), (59, 9), (60, 5), (89, 5), (90, 0), (100_000, 0)] {
            assert_eq!(max.get(s(at)), s(expected), "at {at} s");
        }
    }

    proptest! {
        #[test]
        fn is_the_maximum_of_the_last_sixty_seconds(steps in prop::collection::vec((0_u64..40_000, 0_u64..1000), 1..80)) {
            let (mut max, mut seen, mut now) = (RollingMax::default(), Vec::new(), Duration::ZERO);
            for (pause, value) in steps {
                now += Duration::from_millis(pause);
                max.record(now, Duration::from_millis(value));
                seen.push((now.as_secs(), value));
                let expected = seen.iter().filter(|(at, _)| at + u64::from(SECONDS) > now.as_secs()).map(|(_, v)| *v).max();
                prop_assert_eq!(max.get(now), Duration::from_millis(expected.unwrap()));
            }
        }
    }
}
