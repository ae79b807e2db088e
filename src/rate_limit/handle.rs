//! What an application may look at and change while the service runs.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::gate::Gate;
use super::partition::Partition;
use super::quota::{ConfigError, Quota};
use super::shared::Shared;
use super::subject::Subject;
use super::verdict::{Decision, Verdict};

/// Looks at the clients of one policy, and changes what they owe. From [`RateLimitLayer::handle`](super::RateLimitLayer::handle).
///
/// ```
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// use tower_scale::rate_limit::{Quota, RateLimitLayer, Subject};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layer = RateLimitLayer::new(Quota::per_hour(10));
/// let handle = layer.handle();
/// let client = Subject::ip("203.0.113.9".parse()?);
///
/// handle.penalise(&client, NonZeroU32::new(8).unwrap()).await?;
/// assert_eq!(handle.peek(&client).await?.remaining, 2);
///
/// handle.block(&client, Duration::from_secs(60)).await?;
/// let standing = handle.peek(&client).await?;
/// assert!(standing.blocked && !standing.admitted && standing.retry_after > Duration::from_secs(59));
///
/// handle.reset(&client).await?;
/// assert_eq!(handle.peek(&client).await?.remaining, 10);
///
/// handle.set_quota("default", Quota::per_hour(1000)).await?;
/// assert_eq!(handle.peek(&client).await?.remaining, 1000);
/// # Ok(())
/// # }
/// ```
///
/// # Over Redis
///
/// A change is made in Redis, then told to all: every instance acts on it, at the latest, in requests that begin a second
/// after the call's end. Of a new quota it hears in that time if it has traffic and Redis answers; the first request after
/// a pause is still decided by the old one. Where a call fails, the change may have been made, or made and not told. It
/// may be repeated: to block, to reset and to set a quota twice is as good as once, and to penalise or reward twice is to
/// do it twice. Without Redis nothing is changed, here neither.
///
/// Of quotas that were set, Redis is the only memory: instances that start later learn them, and one that loses its data
/// (`FLUSHALL`, a restart without persistence) brings all instances back to the quotas that they were built with.
///
/// # Cancellation
///
/// A future of this type that is dropped early is like a call that failed.
#[derive(Clone, Debug)]
pub struct RateLimitHandle {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
}

/// Where a client stands; from [`RateLimitHandle::peek`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// Whether a request that costs 1 would be admitted now.
    pub admitted: bool,
    /// Whether somebody has [blocked](RateLimitHandle::block) the client.
    pub blocked: bool,
    /// How long until a request that costs 1 would be admitted; zero if it would be now.
    pub retry_after: Duration,
    /// How many requests that cost 1 would be admitted now: the least of all quotas.
    pub remaining: u32,
}

/// Why a handle could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// The policy tells clients apart by something else than this subject names.
    #[error("the policy does not tell clients apart by what the subject names")]
    Subject,
    /// The quota cannot be set.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// governor decides this policy: it can neither be asked nor told.
    #[cfg(feature = "governor")]
    #[cfg_attr(docsrs, doc(cfg(feature = "governor")))]
    #[error("governor decides this policy, and has no such operation")]
    Governor,
    /// Redis did not do it, or not all of it, as far as is known.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    #[error(transparent)]
    Store(#[from] crate::redis::StoreError),
}

/// What is done to one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It owes this much more, up to the whole burst.
    Penalise(u32),
    /// It owes this much less.
    Reward(u32),
    /// It is refused for this long.
    Block(Duration),
    /// It owes nothing, and is not blocked.
    Reset,
}

impl RateLimitHandle {
    #[allow(clippy::expect_used, reason = "a layer always has a policy, and names are looked up before")]
    pub(crate) fn new(shared: Arc<Shared>, find: impl FnOnce(&Shared) -> Option<&Arc<Gate>>) -> Self {
        let gate = find(&shared).expect("a policy").clone();
        Self { shared, gate }
    }

    /// Where a client stands. Charges nothing.
    ///
    /// Over Redis this is what Redis knows; while it does not answer, nobody knows for all instances, and it is an error.
    ///
    /// # Errors
    /// The subject is of another kind than the policy's key, or Redis did not answer.
    pub async fn peek(&self, subject: &Subject) -> Result<Standing, HandleError> {
        let client = self.client(subject)?;
        #[cfg(feature = "redis")]
        if let Some(remote) = &self.gate.remote {
            return Ok(Standing::of(&remote.peek(client).await?));
        }
        Ok(Standing::of(&self.gate.local.limiter.peek(client, 1, self.shared.time.exactly())))
    }

    /// Charges a client for `cost` more, up to the whole burst of each quota, as if it had sent so many requests.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    pub async fn penalise(&self, subject: &Subject, cost: NonZeroU32) -> Result<(), HandleError> {
        self.change(subject, Change::Penalise(cost.get())).await
    }

    /// Gives a client back `cost`, as far as it owes anything.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    pub async fn reward(&self, subject: &Subject, cost: NonZeroU32) -> Result<(), HandleError> {
        self.change(subject, Change::Reward(cost.get())).await
    }

    /// Refuses a client for `duration`, whatever it owes, also while Redis is away. Replaces an earlier block of it; what
    /// it owes is paid off meanwhile. Zero ends a block.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    pub async fn block(&self, subject: &Subject, duration: Duration) -> Result<(), HandleError> {
        self.change(subject, Change::Block(duration)).await
    }

    /// Forgets what a client owes, and that it is blocked. What it shares with others in a wider tier stays.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    pub async fn reset(&self, subject: &Subject) -> Result<(), HandleError> {
        self.change(subject, Change::Reset).await
    }

    /// Replaces the policy's quota of this name; the name stays. Debts are kept as times: who would have been free of
    /// debt in 30 s, will be, and nobody owes more than the new burst.
    ///
    /// # Errors
    /// There is no such quota, or Redis did not answer. Then the quota stays as it was, unless Redis has it all the same.
    pub async fn set_quota(&self, name: &str, quota: Quota) -> Result<(), HandleError> {
        self.gate.local.policy.handled()?;
        let names = self.gate.local.policy.names();
        let index = names.iter().position(|own| own == name);
        let index = index.ok_or_else(|| ConfigError::NoSuchQuota(name.to_owned()))?;
        #[cfg(feature = "redis")]
        if let Some(remote) = &self.gate.remote {
            return Ok(remote.set_quota(index, quota).await?);
        }
        self.shared.time.suit(&quota);
        Ok(self.gate.local.set_quota(index, quota, self.shared.time.exactly()).await?)
    }

    async fn change(&self, subject: &Subject, change: Change) -> Result<(), HandleError> {
        let client = self.client(subject)?;
        #[cfg(feature = "redis")]
        if let Some(remote) = &self.gate.remote {
            return Ok(remote.change(client, change).await?);
        }
        self.gate.local.limiter.change(client, change, self.shared.time.exactly());
        Ok(())
    }

    fn client(&self, subject: &Subject) -> Result<Partition, HandleError> {
        self.gate.local.policy.handled()?;
        self.gate.local.policy.key.subject(subject).ok_or(HandleError::Subject)
    }
}

impl Standing {
    fn of(verdict: &Verdict) -> Self {
        Self {
            admitted: verdict.admitted(),
            blocked: verdict.decision == Decision::Blocked,
            retry_after: verdict.wait,
            remaining: verdict.standings().iter().map(|quota| quota.remaining).min().unwrap_or_default(),
        }
    }
}
