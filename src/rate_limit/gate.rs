//! A policy at work.

use std::fmt;
use std::sync::Arc;

use http::Extensions;

use super::head::Head;
use super::limiter::Share;
use super::local::Local;
use super::partition::Partition;
use super::question::Unanswered;
#[cfg(feature = "redis")]
use super::remote::Remote;
use super::ticket::Paid;

pub(crate) type Predicate = Arc<dyn Fn(&Head<'_>) -> bool + Send + Sync>;

/// One policy, whom it concerns, and who decides.
pub(crate) struct Gate {
    /// `None`: everybody whom no other policy concerns.
    pub(crate) when: Option<Predicate>,
    pub(crate) local: Arc<Local>,
    #[cfg(feature = "redis")]
    pub(crate) remote: Option<Arc<Remote>>,
}

impl Gate {
    /// Gives back what a request was charged that does not count.
    pub(crate) fn refund(&self, client: Partition, cost: u32, paid: Paid, now: u64) {
        let share = if let Paid::Here(share) = paid { share } else { Share::WHOLE };
        self.local.limiter.refund(client, cost, share, now);
        #[cfg(feature = "redis")]
        if let Some(remote) = self.remote.as_ref().filter(|_| paid == Paid::Redis) {
            remote.refund(client, cost);
        }
    }

    /// After a timeout nobody else on this request's way shall wait for Redis again.
    pub(crate) fn note(&self, failure: &Unanswered, extensions: &mut Extensions) {
        #[cfg(feature = "redis")]
        if let Some(remote) = self.remote.as_ref().filter(|_| failure.timed_out) {
            remote.mark_spent(extensions);
        }
        #[cfg(not(feature = "redis"))]
        let _ = (failure, extensions);
    }

    #[cfg(feature = "redis")]
    pub(crate) fn has_remote(&self) -> bool {
        self.remote.is_some()
    }

    #[cfg(not(feature = "redis"))]
    #[allow(clippy::unused_self, reason = "as with a Redis")]
    pub(crate) fn has_remote(&self) -> bool {
        false
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("policy", &self.local.policy).finish_non_exhaustive()
    }
}
