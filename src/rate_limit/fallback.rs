//! What happens while Redis does not decide.

use super::limiter::Share;

/// Who decides while Redis is slow, gone, or was asked in vain.
///
/// With [`local`](Self::local) and [`share`](Self::share), N instances then admit at most
/// `N × share × (burst + rate × outage)` requests of one client, and what Redis had forgotten when it came back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fallback(pub(crate) Choice);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Choice {
    Local(Share),
    Admit,
    Refuse,
}

impl Fallback {
    /// Each instance by itself, with the whole quota: the default.
    #[must_use]
    pub const fn local() -> Self {
        Self(Choice::Local(Share::WHOLE))
    }

    /// Each instance by itself, with this part of every quota: with 4 instances 0.25 keeps the total.
    ///
    /// A request then costs `1 / share` times as much, in this process only and until Redis is back; should Redis be
    /// away again before that is paid, it still counts.
    ///
    /// # Panics
    /// `share` is not above 0, or above 1.
    #[must_use]
    #[track_caller]
    pub const fn share(share: f64) -> Self {
        assert!(share > 0.0 && share <= 1.0, "a share is above 0 and at most 1");
        Self(Choice::Local(Share(share)))
    }

    /// Everything is admitted, also clients that somebody [blocked](super::RateLimitHandle::block).
    #[must_use]
    pub const fn admit() -> Self {
        Self(Choice::Admit)
    }

    /// Everything is refused with a 503 ([`Reason::LimiterUnavailable`](crate::refusal::Reason::LimiterUnavailable)):
    /// for logins, where a guess too many is worse than an outage.
    #[must_use]
    pub const fn refuse() -> Self {
        Self(Choice::Refuse)
    }
}

impl Default for Fallback {
    fn default() -> Self {
        Self::local()
    }
}
