//! Generations of names: tokens that nobody can guess, that follow the time, and that never repeat.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Who made a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// A fill that needed one, where there was none.
    Fill,
    /// A purge or an invalidation.
    Purge,
}

const PURGE: u128 = 1 << 79;

/// 48 bits of milliseconds, one that tells the maker, 79 random ones. Never 0.
pub(super) fn token(maker: Maker, now: SystemTime) -> u128 {
    let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() & 0xffff_ffff_ffff;
    let random = u128::from(RandomState::new().hash_one(0)) << 64 | u128::from(RandomState::new().hash_one(1));
    let purge = if maker == Maker::Purge { PURGE } else { 0 };
    millis << 80 | purge | (random & (PURGE - 1)) | 1
}

/// Whether the name has certainly not been purged since `then`: no purge made the token, or one did well before, by
/// clocks that are less than a minute apart.
pub(super) fn is_older(token: u128, then: SystemTime) -> bool {
    const SKEW: Duration = Duration::from_secs(60);
    let made = u64::try_from(token >> 80).map(|millis| UNIX_EPOCH + Duration::from_millis(millis));
    token & PURGE == 0 || made.is_ok_and(|made| made + SKEW < then)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_follow_the_time_and_tell_their_maker() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let (one, other) = (token(Maker::Fill, now), token(Maker::Fill, now));
        assert_ne!(one, other);
        assert!(token(Maker::Purge, now) < token(Maker::Fill, now + Duration::from_millis(1)));
        assert!(is_older(one, now), "no purge made it");
        let purge = token(Maker::Purge, now);
        assert!(!is_older(purge, now) && !is_older(purge, now + Duration::from_secs(60)));
        assert!(is_older(purge, now + Duration::from_secs(61)));
    }
}
