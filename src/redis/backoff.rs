//! When to ask again. Pure: `now` and the jitter are arguments.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);
/// Trouble that returns sooner than this goes on where it stopped, so that a half-dead server is not asked ever anew.
const CALM: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempt: u32,
    ended: Option<Instant>,
}

impl Backoff {
    /// Trouble begins, or a connection is merely missing.
    pub(super) fn begin(&mut self, now: Instant) {
        let calm = self.ended.is_none_or(|ended| now.saturating_duration_since(ended) >= CALM);
        if calm {
            self.attempt = 0;
        }
    }

    /// Trouble is over: a breaker has closed.
    pub(super) fn end(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    /// How long to wait before the next attempt. `jitter` is any number, evenly distributed.
    pub(super) fn next(&mut self, jitter: u64) -> Duration {
        let attempt = self.attempt;
        self.attempt = attempt.saturating_add(1);
        if attempt == 0 {
            return Duration::ZERO;
        }
        let whole = FIRST.saturating_mul(1 << (attempt - 1).min(8)).min(LONGEST);
        let half = whole / 2;
        let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        half + Duration::from_micros(jitter % span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest(backoff: &mut Backoff) -> u128 {
        let shortest = Backoff { ..*backoff }.next(0);
        let longest = backoff.next(shortest.as_micros().try_into().unwrap());
        assert_eq!(longest, shortest * 2);
        longest.as_millis()
    }

    #[test]
    fn doubles_up_to_a_second() {
        let mut backoff = Backoff::default();
        assert_eq!([(); 7].map(|()| longest(&mut backoff)), [0, 100, 200, 400, 800, 1000, 1000]);
        backoff.attempt = u32::MAX;
        assert_eq!([(); 2].map(|()| longest(&mut backoff)), [1000, 1000]);
    }

    #[test]
    fn starts_anew_after_calm_only() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.begin(now);
        assert_eq!([(); 3].map(|()| longest(&mut backoff)), [0, 100, 200]);
        backoff.end(now);
        backoff.begin(now + CALM / 2);
        assert_eq!(longest(&mut backoff), 400);
        backoff.end(now);
        backoff.begin(now + CALM);
        assert_eq!(longest(&mut backoff), 0);
    }
}
