//! A policy in this process: what clients owe, and what they are told.

use super::fields::{Announced, Fields, Stamp};
use super::limiter::Limiter;
use super::policy::Policy;
use super::quota::{ConfigError, Quota};
use super::swap::Swap;
use super::verdict::Verdict;

pub(crate) struct Local {
    /// As it was built; `limiter` knows its quotas as they are now.
    pub(crate) policy: Policy,
    pub(crate) limiter: Limiter,
    style: Fields,
    /// Changes with the quotas.
    announced: Swap<Announced>,
}

impl Local {
    pub(crate) fn new(policy: Policy, style: Fields) -> Self {
        let limiter = Limiter::new(&policy, style != Fields::None);
        let quotas: Vec<_> = policy.rules.iter().map(|rule| rule.quota).collect();
        let announced = Swap::new(Announced::new(style, &policy, &quotas));
        Self { policy, limiter, style, announced }
    }

    /// The fields of a response to this verdict.
    pub(crate) fn stamp(&self, verdict: &Verdict) -> Stamp {
        if self.style == Fields::None { Stamp::None } else { self.announced.load().stamp(verdict) }
    }

    /// Replaces the quota at `index`; nobody's debt is lost.
    pub(crate) async fn set_quota(&self, index: usize, quota: Quota, now: u64) -> Result<(), ConfigError> {
        let announce = || self.announced.update(|_| Announced::new(self.style, &self.policy, &self.limiter.quotas()));
        self.limiter.set_quota(index, quota, now, announce).await
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::super::limiter::Share;
    use super::super::partition::Partition;
    use super::super::verdict::Decision;
    use super::*;

    fn announced(local: &Local) -> String {
        let verdict = local.limiter.take(Partition::EVERYBODY, 1, Share::WHOLE, 0);
        assert_eq!(verdict.decision, Decision::Admitted);
        let mut headers = HeaderMap::new();
        local.stamp(&verdict).append(&mut headers);
        headers["ratelimit-policy"].to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn what_is_announced_is_in_force() {
        let local = Local::new(Policy::new(Quota::per_hour(100)).slots(1 << 16), Fields::Draft);
        let (first, second) = (Quota::per_hour(200), Quota::per_hour(400));
        {
            let first = std::pin::pin!(local.set_quota(0, first, 0));
            assert!(futures_util::poll!(first).is_pending());
            assert_eq!(announced(&local), r#""default";q=200;w=3600"#, "at once");
            let second = std::pin::pin!(local.set_quota(0, second, 0));
            assert!(futures_util::poll!(second).is_pending());
            assert_eq!(announced(&local), r#""default";q=200;w=3600"#, "the second waits for the first");
        }
        // Both were dropped.
        assert_eq!(local.limiter.quotas(), [first]);
        assert_eq!(announced(&local), r#""default";q=200;w=3600"#);
        local.set_quota(0, second, 0).await.unwrap();
        assert_eq!(announced(&local), r#""default";q=400;w=3600"#);
    }
}
