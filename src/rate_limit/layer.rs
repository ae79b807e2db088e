//! The layer.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response};
use tower_layer::Layer;

use super::fields;
use super::limiter::Limiter;
use super::quota::Quota;
#[cfg(feature = "redis")]
use super::remote::Remote;
use super::service::RateLimit;
use crate::client_ip::PeerAlarm;
use crate::refusal::{Refusal, Refuse};

/// 8 MiB, once all of it has been used.
const DEFAULT_SLOTS: usize = 1 << 20;

/// Limits how often each client may call; see the [module page](super).
///
/// What clients owe is in the layer: every service that the same layer value, or a clone of it, wraps counts together.
/// Two layers made by two calls of [`new`](Self::new) count apart.
#[derive(Clone)]
pub struct RateLimitLayer {
    quota: Quota,
    pub(crate) policy: HeaderValue,
    pub(crate) limiter: Arc<Limiter>,
    #[cfg(feature = "redis")]
    pub(crate) remote: Option<Arc<Remote>>,
    pub(crate) refuse: Refuse,
    pub(crate) alarm: PeerAlarm,
}

impl RateLimitLayer {
    /// Limits each client to `quota`, in this process.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self {
            quota,
            policy: fields::policy(&quota),
            limiter: Arc::new(Limiter::new(&quota, DEFAULT_SLOTS)),
            #[cfg(feature = "redis")]
            remote: None,
            refuse: Refuse::default(),
            alarm: PeerAlarm::default(),
        }
    }

    /// How many clients can be in debt at once, 8 bytes each: 2²⁰ by default. Rounded up to a multiple of 512.
    ///
    /// Starts a table of its own: a clone made before counts apart. For the right size see the
    /// [module page](super#sizing).
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.limiter = Arc::new(Limiter::new(&self.quota, slots));
        self
    }

    /// Counts in `redis`, together with every other instance that has the same quota on a handle with the same prefix.
    ///
    /// While Redis does not answer, each instance counts by itself.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    #[must_use]
    pub fn redis(mut self, redis: crate::redis::Redis) -> Self {
        self.remote = Some(Arc::new(Remote::new(redis, &self.quota)));
        self
    }

    /// Replaces the response for refused requests. The `RateLimit` fields are added to it. See
    /// [`refusal`](crate::refusal).
    #[must_use]
    pub fn refusal(mut self, hook: impl Fn(&Refusal) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.refuse = Refuse::with(hook);
        self
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit::new(inner, self.clone())
    }
}

impl fmt::Debug for RateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RateLimitLayer");
        debug.field("quota", &self.quota).field("slots", &self.limiter.slots());
        #[cfg(feature = "redis")]
        debug.field("redis", &self.remote.as_ref().map(|remote| &remote.redis));
        debug.field("refusal", &self.refuse).finish_non_exhaustive()
    }
}
