//! The service.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use tower_service::Service;

use super::body::ResponseBody;
use super::fields;
use super::future::ResponseFuture;
#[cfg(feature = "redis")]
use super::future::Waiting;
use super::layer::RateLimitLayer;
use super::limiter::Verdict;
use super::metrics::Decision;
use super::partition::Partition;
use super::question::Unanswered;
use crate::client_ip;
use crate::ready;
use crate::refusal::{Caller, Reason, Refusal};

/// Limits each client; made by [`RateLimitLayer`]. Always ready: the inner service is readied for admitted requests.
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    layer: Arc<RateLimitLayer>,
}

impl<S> RateLimit<S> {
    pub(crate) fn new(inner: S, layer: RateLimitLayer) -> Self {
        Self { inner, layer: Arc::new(layer) }
    }
}

impl<S, B, ResBody> Service<Request<B>> for RateLimit<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
    ResBody: http_body::Body<Data = Bytes>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Some(ip) = client_ip::client_ip(request.extensions_mut()) else {
            return ResponseFuture::refuse(self.layer.refuse_stranger(&request));
        };
        let client = Partition::of(ip);
        #[cfg(feature = "redis")]
        if let Some(remote) = self.layer.remote.as_ref().filter(|remote| !remote.redis.is_spent(request.extensions())) {
            let question = remote.clone().check(client);
            let waiting = Waiting { client, layer: self.layer.clone(), service: ready::take(&mut self.inner), request };
            return ResponseFuture::ask(question, waiting);
        }
        let verdict = self.layer.decide_here(client);
        if verdict.admitted {
            ResponseFuture::pass(ready::take(&mut self.inner), request, self.layer.policy.clone(), verdict)
        } else {
            ResponseFuture::refuse(self.layer.refuse(&request, &verdict))
        }
    }
}

// === impl RateLimitLayer ===

impl RateLimitLayer {
    /// Decides in process, because there is no Redis, or because it did not.
    pub(crate) fn decide_here(&self, client: Partition) -> Verdict {
        let verdict = self.limiter.check(client);
        self.limiter.metrics.count(Decision::of(verdict.admitted, self.has_remote()));
        verdict
    }

    /// What Redis admits is owed here too: whoever makes Redis fail gets no second burst.
    pub(crate) fn decided_remotely(&self, client: Partition, verdict: Verdict) -> Verdict {
        if verdict.admitted {
            self.limiter.check(client);
        }
        self.limiter.metrics.count(Decision::of(verdict.admitted, false));
        verdict
    }

    pub(crate) fn refuse<B>(&self, request: &Request<B>, verdict: &Verdict) -> Response<Bytes> {
        let refusal = Refusal::new(Reason::QuotaExceeded, Caller::of(request)).retry_after_at_least(verdict.wait);
        let mut response = self.refuse.respond(&refusal);
        fields::append(response.headers_mut(), self.policy.clone(), verdict);
        response
    }

    /// A request without a peer. One key for all of those would let any of them lock out the rest.
    fn refuse_stranger<B>(&self, request: &Request<B>) -> Response<Bytes> {
        self.alarm.raise();
        self.limiter.metrics.count(Decision::PeerUnknown);
        self.refuse.respond(&Refusal::new(Reason::PeerUnknown, Caller::of(request)))
    }

    #[cfg(feature = "redis")]
    fn has_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// After a timeout nobody else on this request's way shall wait for Redis again.
    #[cfg(feature = "redis")]
    pub(crate) fn note(&self, failure: &Unanswered, extensions: &mut Extensions) {
        if let Some(remote) = self.remote.as_ref().filter(|_| failure.timed_out) {
            remote.redis.mark_spent(extensions);
        }
    }

    #[cfg(not(feature = "redis"))]
    #[allow(clippy::unused_self, reason = "as with a Redis")]
    fn has_remote(&self) -> bool {
        false
    }

    #[cfg(not(feature = "redis"))]
    #[allow(clippy::unused_self, reason = "as with a Redis")]
    pub(crate) fn note(&self, _: &Unanswered, _: &mut Extensions) {}
}
