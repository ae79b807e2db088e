//! The layer.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tower_layer::Layer;

use super::fallback::Fallback;
use super::fields::Fields;
use super::gate::{Gate, Predicate};
use super::handle::RateLimitHandle;
use super::head::Head;
use super::local::Local;
use super::metrics::Metrics;
use super::outcome::Outcome;
use super::policy::Policy;
#[cfg(feature = "redis")]
use super::remote::{Lease, Remote};
use super::service::RateLimit;
use super::shared::{Cost, Counts, Shared};
use super::time::Time;
use crate::client_ip::{Networks, PeerAlarm, TrustAlarm};
use crate::refusal::{Refusal, Refuse};

/// Limits how often each client may call; see the [module page](super).
///
/// What clients owe is in the layer: every service that the same layer value, or a clone of it, wraps counts together.
/// Two layers made by two calls of [`new`](Self::new) count apart, and so does a clone that is changed afterwards.
#[derive(Clone)]
pub struct RateLimitLayer {
    settings: Settings,
    /// Made when the first service is wrapped, or the first handle asked for.
    shared: Arc<OnceLock<Arc<Shared>>>,
}

#[derive(Clone)]
struct Settings {
    /// Those with a condition, in order.
    conditional: Vec<(Predicate, Policy)>,
    base: Policy,
    skip: Vec<Predicate>,
    cost: Option<Cost>,
    counts: Option<Counts>,
    refund_abandoned: bool,
    shadow: bool,
    fields: Fields,
    fallback: Fallback,
    time: Option<Arc<dyn Fn() -> Duration + Send + Sync>>,
    refuse: Refuse,
    #[cfg(feature = "redis")]
    redis: Option<crate::redis::Redis>,
    #[cfg(feature = "redis")]
    lease: Option<Lease>,
}

impl RateLimitLayer {
    /// Limits each client to a [`Quota`](super::Quota), to several of them (`[a, b]`), or to a [`Policy`], in this process.
    ///
    /// # Panics
    /// As [`Policy::new`].
    #[must_use]
    #[track_caller]
    pub fn new(policy: impl Into<Policy>) -> Self {
        let settings = Settings {
            conditional: Vec::new(),
            base: policy.into(),
            skip: Vec::new(),
            cost: None,
            counts: None,
            refund_abandoned: false,
            shadow: false,
            fields: Fields::default(),
            fallback: Fallback::default(),
            time: None,
            refuse: Refuse::default(),
            #[cfg(feature = "redis")]
            redis: None,
            #[cfg(feature = "redis")]
            lease: None,
        };
        Self { settings, shared: Arc::default() }
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.shared = Arc::default();
        self
    }

    /// Another policy, for the requests of which `condition` is true. The first that concerns a request decides it, in
    /// the order of these calls; the policy of [`new`](Self::new) is for the rest.
    ///
    /// ```
    /// use tower_scale::rate_limit::{Key, Policy, Quota, RateLimitLayer, Secret};
    ///
    /// #[derive(Clone)]
    /// struct Member(u64); // an outer layer has checked the token
    ///
    /// let by_member = Key::by(Secret::random(), |head| head.extensions().get().map(|member: &Member| member.0.to_be_bytes()));
    /// let layer = RateLimitLayer::new(Quota::per_minute(30)).when(
    ///     |head| head.extensions().get::<Member>().is_some(),
    ///     Policy::new(Quota::per_minute(600)).named("member").key(by_member),
    /// );
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    /// The layer has a policy of the same [name](Policy::named): it could not be told from this one, and through Redis
    /// both might be one limit.
    #[must_use]
    #[track_caller]
    pub fn when(
        self,
        condition: impl Fn(&Head<'_>) -> bool + Send + Sync + 'static,
        policy: impl Into<Policy>,
    ) -> Self {
        let policy = policy.into();
        assert!(!self.settings.policies().any(|other| other.name == policy.name), "{} is named already", policy.name);
        self.with(|settings| settings.conditional.push((Arc::new(condition), policy)))
    }

    /// Lets requests through uncounted, without fields, of which `condition` is true. Several add up.
    #[must_use]
    pub fn skip(self, condition: impl Fn(&Head<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.skip.push(Arc::new(condition)))
    }

    /// Lets clients of these networks through uncounted, without fields.
    #[must_use]
    pub fn allow(self, networks: Networks) -> Self {
        self.skip(move |head| head.client_ip().is_some_and(|address| networks.contains(address)))
    }

    /// What a request costs: 1 by default. One that costs 0 is let through uncounted. One that costs more than a quota's
    /// burst is charged the burst, since it could never be admitted otherwise.
    #[must_use]
    pub fn cost(self, cost: impl Fn(&Head<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.cost = Some(Arc::new(cost)))
    }

    /// Counts only requests with an outcome of which `condition` is true, such as failed logins. Every request is
    /// charged before it is passed on, so that many at once cannot slip through, and given back its charge, once, when
    /// it turns out not to count.
    ///
    /// A request without an outcome, since its client left or the handler panicked, counts, unless
    /// [`refund_abandoned`](Self::refund_abandoned) says otherwise.
    #[must_use]
    pub fn count_when(self, condition: impl Fn(&Outcome<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.counts = Some(Arc::new(condition)))
    }

    /// Gives back the charge of requests whose client left before the response, or whose handler panicked.
    ///
    /// Then whoever always leaves early is not limited.
    #[must_use]
    pub fn refund_abandoned(self) -> Self {
        self.with(|settings| settings.refund_abandoned = true)
    }

    /// Counts and charges as always, but refuses nobody and adds no field: to see what a quota would do.
    #[must_use]
    pub fn shadow(self) -> Self {
        self.with(|settings| settings.shadow = true)
    }

    /// In which fields responses tell clients of their quotas.
    #[must_use]
    pub fn fields(self, fields: Fields) -> Self {
        self.with(|settings| settings.fields = fields)
    }

    /// Replaces the clock, for tests: `elapsed` is the time since any fixed moment, and must never go back. Without it,
    /// time passes even where tokio's is paused; tests that pause that give the elapsed time of a `tokio::time::Instant`.
    #[must_use]
    pub fn clock(self, elapsed: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.time = Some(Arc::new(elapsed)))
    }

    /// Replaces the response for refused requests. The `RateLimit` fields are added to it. See
    /// [`refusal`](crate::refusal).
    #[must_use]
    pub fn refusal(self, hook: impl Fn(&Refusal) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.refuse = Refuse::with(hook))
    }

    /// Counts in `redis`, together with every other instance that has the same policies on a handle with the same prefix.
    /// A policy is the same where its name and quotas are: two layers of one application that are to count apart need
    /// [names](Policy::named) of their own.
    ///
    /// While Redis does not answer, [`fallback`](Self::fallback) says who decides.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    #[must_use]
    pub fn redis(self, redis: crate::redis::Redis) -> Self {
        self.with(|settings| settings.redis = Some(redis))
    }

    /// Takes tokens of busy clients from Redis in advance; see [`Lease`]. Without [`redis`](Self::redis) it does nothing.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    #[must_use]
    pub fn lease(self, lease: Lease) -> Self {
        self.with(|settings| settings.lease = Some(lease))
    }

    /// Who decides while Redis does not: by default each instance by itself.
    #[must_use]
    pub fn fallback(self, fallback: Fallback) -> Self {
        self.with(|settings| settings.fallback = fallback)
    }

    /// Looks at clients and changes what they owe, and the quotas, while the service runs. For the policy of
    /// [`new`](Self::new).
    #[must_use]
    pub fn handle(&self) -> RateLimitHandle {
        RateLimitHandle::new(self.shared(), |shared| shared.gates.last())
    }

    /// The same for the policy of this [name](Policy::named).
    #[must_use]
    pub fn handle_of(&self, name: &str) -> Option<RateLimitHandle> {
        let shared = self.shared();
        let named = shared.gates.iter().any(|gate| gate.local.policy.name == name);
        named.then(|| {
            RateLimitHandle::new(shared, |shared| shared.gates.iter().find(|gate| gate.local.policy.name == name))
        })
    }

    fn shared(&self) -> Arc<Shared> {
        self.shared.get_or_init(|| Arc::new(self.settings.build())).clone()
    }
}

impl Settings {
    fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.conditional.iter().map(|(_, policy)| policy).chain([&self.base])
    }

    fn build(&self) -> Shared {
        let time = self.time();
        let metrics = Arc::new(Metrics::new());
        let gate = |when, policy| self.gate(when, policy, &time, &metrics);
        let conditional = self.conditional.iter().map(|(when, policy)| gate(Some(when.clone()), policy));
        Shared {
            gates: conditional.chain([gate(None, &self.base)]).collect(),
            skip: self.skip.clone(),
            cost: self.cost.clone(),
            counts: self.counts.clone(),
            refund_abandoned: self.refund_abandoned,
            shadow: self.shadow,
            fallback: self.fallback.0,
            time,
            metrics,
            refuse: self.refuse.clone(),
            alarm: PeerAlarm::default(),
            trust_alarm: TrustAlarm::default(),
        }
    }

    fn time(&self) -> Time {
        if let Some(given) = &self.time {
            return Time::given(given.clone());
        }
        #[cfg(feature = "redis")]
        if self.redis.is_some() {
            return Time::start();
        }
        let policies = self.conditional.iter().map(|(_, policy)| policy).chain([&self.base]);
        Time::start_for(policies.flat_map(|policy| &policy.rules).map(|rule| &rule.quota))
    }

    fn gate(&self, when: Option<Predicate>, policy: &Policy, time: &Time, metrics: &Arc<Metrics>) -> Arc<Gate> {
        #[cfg(feature = "redis")]
        let has_remote = self.redis.is_some();
        #[cfg(not(feature = "redis"))]
        let has_remote = false;
        let refunds = self.counts.is_some() || self.refund_abandoned;
        policy.assert_governor_can(refunds, has_remote);
        let local = Arc::new(Local::new(policy.clone(), self.fields));
        #[cfg(feature = "redis")]
        let remote = self
            .redis
            .clone()
            .map(|redis| Remote::new(redis, local.clone(), self.lease, refunds, self.fallback.0, time, metrics));
        #[cfg(not(feature = "redis"))]
        let _ = (time, metrics);
        Arc::new(Gate {
            when,
            local,
            #[cfg(feature = "redis")]
            remote,
        })
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit::new(inner, self.shared())
    }
}

impl fmt::Debug for RateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { base, conditional, fields, fallback, shadow, refuse, .. } = &self.settings;
        let mut debug = f.debug_struct("RateLimitLayer");
        debug.field("policy", base);
        debug.field("conditional", &conditional.iter().map(|(_, policy)| policy).collect::<Vec<_>>());
        debug.field("fields", fields).field("fallback", fallback).field("shadow", shadow);
        #[cfg(feature = "redis")]
        debug.field("redis", &self.settings.redis).field("lease", &self.settings.lease);
        debug.field("refusal", refuse).finish_non_exhaustive()
    }
}
