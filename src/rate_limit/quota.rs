//! How much a client may ask.

use std::num::NonZeroU32;
use std::time::Duration;

/// No quota is faster, so that the clock of the in-process table lasts for years; see [`Clock`](super::clock::Clock).
pub(crate) const MAX_PER_SECOND: u64 = 1 << 16;

/// No period is longer: 2³² s, 136 years.
const MAX_PERIOD_SECONDS: u64 = 1 << 32;

/// So many requests per period, and how many of them at once.
///
/// ```
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// use tower_scale::rate_limit::Quota;
///
/// const PAGES: Quota = Quota::per_minute(100).burst(20); // a mistake here does not compile
///
/// // For numbers that are read at run time:
/// let count: NonZeroU32 = "100".parse()?;
/// assert_eq!(Quota::new(count, Duration::from_secs(60))?.burst(20), PAGES);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// `per_second(5)` means five per second. Requests are regained evenly, one every `period / count`, not all at the end
/// of a window, so no moment lets twice the quota pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    count: u32,
    period: Duration,
    burst: u32,
    name: Option<&'static str>,
}

/// Why a quota cannot be enforced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The period is zero, or longer than 136 years.
    #[error("a quota's period must be longer than 0 and at most 136 years, not {0:?}")]
    Period(Duration),
    /// More than 65 536 requests per second and client.
    #[error("a quota of {0} per {1:?} is more than 65536 per second")]
    TooFast(NonZeroU32, Duration),
    /// A policy has no quota, or more than six.
    #[error("a policy has 1 to 6 quotas, not {0}")]
    Quotas(usize),
    /// Two quotas of a policy have one name, so that a client could not tell them apart.
    #[error("two quotas of one policy are named {0:?}")]
    SameName(String),
    /// The policy has no quota of this name.
    #[error("no quota is named {0:?}")]
    NoSuchQuota(String),
    /// A secret of fewer than 16 bytes.
    #[error("a secret must have at least 16 bytes, not {0}")]
    ShortSecret(usize),
}

impl Quota {
    /// `count` requests per second; at most 65 536. The burst is the count.
    ///
    /// # Panics
    /// `count` is 0 or above the limit: a compile error in a `const`, else where the quota is written, when the
    /// application starts. [`Quota::new`] is for numbers that are not known before.
    #[must_use]
    #[track_caller]
    pub const fn per_second(count: u32) -> Self {
        Self::literal(count, 1)
    }

    /// `count` requests per minute. The burst is the count.
    ///
    /// # Panics
    /// As [`Quota::per_second`].
    #[must_use]
    #[track_caller]
    pub const fn per_minute(count: u32) -> Self {
        Self::literal(count, 60)
    }

    /// `count` requests per hour. The burst is the count.
    ///
    /// # Panics
    /// As [`Quota::per_second`].
    #[must_use]
    #[track_caller]
    pub const fn per_hour(count: u32) -> Self {
        Self::literal(count, 3600)
    }

    /// `count` requests per day. The burst is the count.
    ///
    /// # Panics
    /// As [`Quota::per_second`].
    #[must_use]
    #[track_caller]
    pub const fn per_day(count: u32) -> Self {
        Self::literal(count, 86_400)
    }

    #[track_caller]
    const fn literal(count: u32, seconds: u64) -> Self {
        assert!(count > 0, "a quota must allow at least one request");
        assert!(count as u64 <= seconds * MAX_PER_SECOND, "a quota allows at most 65536 requests per second");
        Self { count, period: Duration::from_secs(seconds), burst: count, name: None }
    }

    /// `count` requests per `period`. The burst is the count.
    ///
    /// # Errors
    /// The period is zero or longer than 136 years, or the quota is above 65 536 per second.
    pub fn new(count: NonZeroU32, period: Duration) -> Result<Self, ConfigError> {
        if period.is_zero() || period.as_secs() >= MAX_PERIOD_SECONDS {
            return Err(ConfigError::Period(period));
        }
        if u128::from(count.get()) * 1_000_000_000 > u128::from(MAX_PER_SECOND) * period.as_nanos() {
            return Err(ConfigError::TooFast(count, period));
        }
        Ok(Self { count: count.get(), period, burst: count.get(), name: None })
    }

    /// How many requests may come at once after a pause.
    ///
    /// # Panics
    /// `burst` is 0, which would admit nothing ever.
    #[must_use]
    #[track_caller]
    pub const fn burst(mut self, burst: u32) -> Self {
        assert!(burst > 0, "a quota's burst must allow at least one request");
        self.burst = burst;
        self
    }

    /// The quota's name in the `RateLimit` fields, and for [`RateLimitHandle`](super::RateLimitHandle). Without one, a
    /// policy's only quota has the policy's name, and one of several that of its period (`second`, `900s`).
    ///
    /// # Panics
    /// `name` is empty, longer than 64 bytes, or has other characters than letters, digits, `-`, `_` and `.`.
    #[must_use]
    #[track_caller]
    pub const fn named(mut self, name: &'static str) -> Self {
        assert!(is_name(name), "a name is 1 to 64 letters, digits, and -_.");
        self.name = Some(name);
        self
    }

    pub(crate) fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// Whether it allows just as much, whatever it is called.
    #[cfg(feature = "redis")]
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        Self { name: None, ..*self } == Self { name: None, ..*other }
    }

    /// The period as a name: `minute`, `900s`, `1500ms`.
    pub(crate) fn period_word(&self) -> String {
        let seconds = self.period.as_secs();
        match (self.period.subsec_nanos(), seconds) {
            (0, 1) => "second".to_owned(),
            (0, 60) => "minute".to_owned(),
            (0, 3600) => "hour".to_owned(),
            (0, 86_400) => "day".to_owned(),
            (0, _) => format!("{seconds}s"),
            (nanos, _) if nanos % 1_000_000 == 0 => format!("{}ms", self.period.as_millis()),
            _ => format!("{}ns", self.period.as_nanos()),
        }
    }

    pub(crate) fn burst_size(&self) -> u64 {
        self.burst.into()
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.into()
    }

    pub(crate) fn period_nanos(&self) -> u128 {
        self.period.as_nanos()
    }

    /// The period in whole seconds, rounded up, and the count that this rate gives in them, rounded down.
    pub(crate) fn in_whole_seconds(&self) -> (u64, u64) {
        let seconds = self.period_nanos().div_ceil(1_000_000_000).max(1);
        let count = u128::from(self.count) * seconds * 1_000_000_000 / self.period_nanos();
        (u64::try_from(count).unwrap_or(u64::MAX), u64::try_from(seconds).unwrap_or(u64::MAX))
    }
}

/// Whether this can stand in a structured field, a Redis key and a log line as it is.
#[allow(clippy::indexing_slicing, reason = "below the length; there are no iterators in constants")]
pub(crate) const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_alphanumeric() && !matches!(bytes[at], b'-' | b'_' | b'.') {
            return false;
        }
        at += 1;
    }
    !bytes.is_empty() && bytes.len() <= 64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(count: u32, period: Duration) -> Result<Quota, ConfigError> {
        Quota::new(NonZeroU32::new(count).unwrap(), period)
    }

    #[test]
    fn literals_and_computed_quotas_agree() {
        assert_eq!(new(7, Duration::from_secs(1)), Ok(Quota::per_second(7)));
        assert_eq!(new(7, Duration::from_secs(60)), Ok(Quota::per_minute(7).burst(7)));
        assert_eq!(new(7, Duration::from_secs(3600)), Ok(Quota::per_hour(7)));
        assert_eq!(new(65_536, Duration::from_secs(1)), Ok(Quota::per_second(65_536)));
    }

    #[test]
    fn what_cannot_be_enforced_is_an_error() {
        assert_eq!(new(1, Duration::ZERO), Err(ConfigError::Period(Duration::ZERO)));
        assert_eq!(new(1, Duration::MAX), Err(ConfigError::Period(Duration::MAX)));
        assert!(matches!(new(65_537, Duration::from_secs(1)), Err(ConfigError::TooFast(..))));
        assert!(matches!(new(1, Duration::from_nanos(15_258)), Err(ConfigError::TooFast(..))));
        assert!(new(1, Duration::from_nanos(15_259)).is_ok());
    }

    #[test]
    fn literals_that_cannot_be_enforced_panic() {
        let wrong: [fn() -> Quota; 4] = [
            || Quota::per_minute(0),
            || Quota::per_minute(1).burst(0),
            || Quota::per_second(65_537),
            || Quota::per_hour(u32::MAX),
        ];
        for make in wrong {
            assert!(std::panic::catch_unwind(make).is_err());
        }
    }

    #[test]
    fn whole_seconds() {
        for (count, millis, expected) in
            [(100, 60_000, (100, 60)), (10, 100, (100, 1)), (1, 1500, (1, 2)), (3, 2500, (3, 3)), (1, 400, (2, 1))]
        {
            assert_eq!(new(count, Duration::from_millis(millis)).unwrap().in_whole_seconds(), expected);
        }
    }
}
