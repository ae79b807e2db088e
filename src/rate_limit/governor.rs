//! An application's own `governor::RateLimiter` as the store of a policy.
//!
//! 1. Its keys are the application's: a closure names the key of a request.
//! 2. It decides alone, by its own clock; the layer adds skipping, costs, shadow mode, fields, refusals and metrics.
//! 3. It can neither look without charging nor give back, and it knows one quota, which never changes. What needs any of
//!    these is refused: when the policy or the layer is built, or by the handle.
//! 4. A cost is at most the burst: `check_key_n` multiplies unchecked, and a higher one could wrap around and pass.

#[cfg(not(feature = "governor"))]
use std::convert::Infallible;
use std::fmt;
#[cfg(feature = "governor")]
use std::sync::Arc;

use super::handle::HandleError;
use super::head::Head;
use super::policy::Policy;
use super::verdict::Verdict;

#[cfg(feature = "governor")]
type Take = dyn Fn(&Head<'_>, u32) -> Option<Verdict> + Send + Sync;

/// Whoever decides in place of the limiter of this module. Without the feature `governor` there is nobody.
#[derive(Clone)]
pub(crate) struct Governed {
    #[cfg(feature = "governor")]
    take: Arc<Take>,
    #[cfg(not(feature = "governor"))]
    nobody: Infallible,
}

impl Governed {
    /// Charges the client of a request. `None`: it has no key.
    pub(crate) fn take(&self, head: &Head<'_>, cost: u32) -> Option<Verdict> {
        #[cfg(feature = "governor")]
        return (self.take)(head, cost);
        #[cfg(not(feature = "governor"))]
        match (self.nobody, head, cost) {}
    }
}

impl fmt::Debug for Governed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("governor")
    }
}

impl Policy {
    pub(crate) fn assert_governor_can(&self, gives_back: bool, remote: bool) {
        let own = self.governed.is_none();
        assert!(own || !gives_back, "governor cannot give back what `count_when` or `refund_abandoned` does not count");
        assert!(own || !remote, "a policy is counted by governor or in Redis: use two layers");
    }

    /// A handle can do nothing where governor decides.
    pub(crate) fn handled(&self) -> Result<(), HandleError> {
        match &self.governed {
            None => Ok(()),
            #[cfg(feature = "governor")]
            Some(_) => Err(HandleError::Governor),
            #[cfg(not(feature = "governor"))]
            Some(governed) => match governed.nobody {},
        }
    }
}

#[cfg(feature = "governor")]
mod adapter {
    use std::hash::Hash;
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use std::time::Duration;

    use ::governor::clock::Clock;
    use ::governor::middleware::{RateLimitingMiddleware, StateSnapshot};
    use ::governor::state::keyed::KeyedStateStore;
    use ::governor::{InsufficientCapacity, NotUntil, RateLimiter};

    use super::Governed;
    use crate::rate_limit::head::Head;
    use crate::rate_limit::policy::Policy;
    use crate::rate_limit::quota::{ConfigError, Quota};
    use crate::rate_limit::verdict::{Decision, Standing, Verdict};

    /// What governor says of a request that it admits.
    pub trait Admission {
        /// How many more it would admit now, where it knows.
        fn remaining(&self) -> Option<u32>;
    }

    /// With `NoOpMiddleware`.
    impl Admission for () {
        fn remaining(&self) -> Option<u32> {
            None
        }
    }

    /// With `StateInformationMiddleware`.
    impl Admission for StateSnapshot {
        fn remaining(&self) -> Option<u32> {
            Some(self.remaining_burst_capacity())
        }
    }

    impl Policy {
        /// Lets a keyed [`governor::RateLimiter`](::governor::RateLimiter) that the application has anyway decide, and
        /// count together with whatever else asks it. `quota` must be the limiter's own. `key` names the key of a
        /// request; where it names none, the answer is the 500 for requests without a peer.
        ///
        /// ```
        /// use std::net::{IpAddr, Ipv6Addr};
        /// use std::num::NonZeroU32;
        /// use std::sync::Arc;
        ///
        /// use governor::middleware::StateInformationMiddleware;
        /// use governor::{Quota, RateLimiter};
        /// use tower_scale::client_ip::PeerAddr;
        /// use tower_scale::rate_limit::{Head, Policy, RateLimitLayer};
        /// # use bytes::Bytes;
        /// # use http::{Request, Response};
        /// # use http_body_util::Full;
        /// # use tower::{ServiceBuilder, ServiceExt};
        ///
        /// /// A single host has a whole /64 of IPv6 addresses.
        /// fn network(head: &Head<'_>) -> Option<IpAddr> {
        ///     Some(match head.client_ip()? {
        ///         IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        ///         v4 => v4,
        ///     })
        /// }
        ///
        /// # #[tokio::main(flavor = "current_thread")]
        /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
        /// let quota = Quota::per_minute(NonZeroU32::new(2).unwrap());
        /// let limiter = Arc::new(RateLimiter::keyed(quota).with_middleware::<StateInformationMiddleware>());
        /// let policy = Policy::governor(quota, limiter.clone(), network)?;
        /// let service = ServiceBuilder::new().layer(RateLimitLayer::new(policy)).service_fn(hello);
        ///
        /// # async fn hello(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
        /// #     Ok(Response::default())
        /// # }
        /// # let peer = PeerAddr("203.0.113.9:4711".parse()?);
        /// # let request = || Request::builder().extension(peer).body(Full::default()).unwrap();
        /// let first = service.clone().oneshot(request()).await?;
        /// assert_eq!(first.headers()["ratelimit"], r#""default";r=1;t=30"#);
        /// assert!(limiter.check_key(&"203.0.113.9".parse()?).is_ok()); // the application counts something else
        /// assert_eq!(service.oneshot(request()).await?.status(), 429);
        /// # Ok(())
        /// # }
        /// ```
        ///
        /// The fields state the burst per time in which it is regained. `r` and `t` of an admitted request are stated
        /// with `StateInformationMiddleware` only, and `t` is then the whole interval: governor does not tell the rest of
        /// it. A refused one always has them, with `r` 0. A request that costs more than the burst is charged the burst.
        ///
        /// governor reads its own clock, and its memory grows with each new key until the application calls its
        /// `retain_recent`. [`slots`](Self::slots) and [`on_full`](Self::on_full) mean nothing to it.
        ///
        /// # Errors
        /// The quota is above 65 536 per second, or takes 136 years.
        ///
        /// # Panics
        /// Not here, but when governor cannot do what is asked of the policy: at a [key](Self::key) or a
        /// [tier](Self::ipv6_tier), and when a layer is applied that
        /// [counts some outcomes](super::super::RateLimitLayer::count_when),
        /// [gives back](super::super::RateLimitLayer::refund_abandoned) or counts in Redis. A handle's methods are errors.
        #[cfg_attr(docsrs, doc(cfg(feature = "governor")))]
        pub fn governor<K, S, C, M>(
            quota: ::governor::Quota,
            limiter: Arc<RateLimiter<K, S, C, M>>,
            key: impl Fn(&Head<'_>) -> Option<K> + Send + Sync + 'static,
        ) -> Result<Self, ConfigError>
        where
            K: Hash + 'static,
            S: KeyedStateStore<K> + Send + Sync + 'static,
            C: Clock + Send + Sync + 'static,
            M: RateLimitingMiddleware<C::Instant, NegativeOutcome = NotUntil<C::Instant>> + Send + Sync + 'static,
            M::PositiveOutcome: Admission,
        {
            let stated = Quota::new(quota.burst_size(), quota.burst_size_replenished_in())?;
            let take = move |head: &Head<'_>, cost: u32| Some(take(&limiter, quota, &key(head)?, cost));
            Ok(Self { governed: Some(Governed { take: Arc::new(take) }), ..Self::from(stated).slots(0) })
        }
    }

    fn take<K, S, C, M>(limiter: &RateLimiter<K, S, C, M>, quota: ::governor::Quota, key: &K, cost: u32) -> Verdict
    where
        K: Hash,
        S: KeyedStateStore<K>,
        C: Clock,
        M: RateLimitingMiddleware<C::Instant, NegativeOutcome = NotUntil<C::Instant>>,
        M::PositiveOutcome: Admission,
    {
        let cost = NonZeroU32::new(cost).unwrap_or(NonZeroU32::MIN).min(quota.burst_size());
        let answer = limiter.check_key_n(key, cost).or_else(|InsufficientCapacity(burst)| {
            // The quota is not the limiter's.
            limiter.check_key_n(key, NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN))
        });
        match answer {
            Ok(Ok(admission)) => {
                let mut verdict = Verdict::new(Decision::Admitted);
                if let Some(remaining) = admission.remaining() {
                    verdict.push(standing(remaining, quota.replenish_interval()));
                }
                verdict
            }
            Ok(Err(until)) => refused(until.wait_time_from(limiter.clock().now())),
            Err(_) => refused(quota.replenish_interval()),
        }
    }

    fn refused(wait: Duration) -> Verdict {
        let mut verdict = Verdict::new(Decision::Refused);
        verdict.wait = wait;
        verdict.push(standing(0, wait));
        verdict
    }

    fn standing(remaining: u32, wait: Duration) -> Standing {
        let seconds = wait.as_nanos().div_ceil(1_000_000_000).max(1);
        Standing { quota: 0, remaining, seconds: u32::try_from(seconds).unwrap_or(u32::MAX) }
    }
}
