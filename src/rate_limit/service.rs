//! The service.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

use super::body::ResponseBody;
use super::fields::Stamp;
use super::future::ResponseFuture;
#[cfg(feature = "redis")]
use super::future::Waiting;
use super::gate::Gate;
use super::head::Head;
use super::key::Client;
use super::metrics::Decision;
use super::partition::Partition;
#[cfg(feature = "redis")]
use super::remote::Asked;
use super::shared::{Judge, Ruling, Shared};
use super::ticket::Ticket;
use crate::client_ip;
use crate::ready;

/// Limits each client; made by [`RateLimitLayer`](super::RateLimitLayer). Always ready: the inner service is readied for
/// admitted requests.
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// Whom a request counts for, and how much.
#[derive(Clone, Copy)]
struct Charge<'a> {
    gate: &'a Arc<Gate>,
    client: Partition,
    cost: u32,
    now: u64,
}

impl<S> RateLimit<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
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
        let Self { inner, shared } = self;
        let ip = client_ip::client_ip(request.extensions_mut());
        let head = Head::of(&request, ip);
        let counted = if shared.skips(&head) { None } else { shared.gate(&head).zip(shared.cost(&head)) };
        let Some((gate, cost)) = counted else {
            shared.metrics.count(Decision::Skipped);
            return ResponseFuture::pass(ready::take(inner), request, Stamp::None, None);
        };
        let ruling = if let Some(governed) = &gate.local.policy.governed {
            let verdict = governed.take(&head, cost.get());
            verdict.map_or_else(
                || shared.rule_on_stranger(&request),
                |verdict| shared.rule(gate, &verdict, Judge::Process, &request),
            )
        } else if let Client::Known(client) = gate.local.policy.key.client(&head) {
            let now = shared.time.now();
            return decide(shared, inner, request, Charge { gate, client, cost: cost.get(), now });
        } else {
            shared.rule_on_stranger(&request)
        };
        match ruling {
            Ruling::Pass(stamp, _) => ResponseFuture::pass(ready::take(inner), request, stamp, None),
            Ruling::Refuse(response) => ResponseFuture::refuse(response),
        }
    }
}

fn decide<S, B>(shared: &Arc<Shared>, inner: &mut S, request: Request<B>, charge: Charge<'_>) -> ResponseFuture<S, B>
where
    S: Service<Request<B>> + Clone,
{
    let Charge { gate, client, cost, now } = charge;
    #[cfg(feature = "redis")]
    if let Some(remote) = gate.remote.as_ref().filter(|remote| !remote.is_spent(request.extensions())) {
        return match remote.ask(client, cost, now) {
            Asked::Known(verdict) => {
                let ruling = shared.rule(gate, &verdict, Judge::Redis, &request);
                carry_out(shared, inner, request, ruling, charge)
            }
            Asked::Pending(question) => {
                let (shared, gate, service) = (shared.clone(), gate.clone(), ready::take(inner));
                ResponseFuture::ask(question, Waiting { gate, client, cost, shared, service, request })
            }
        };
    }
    let ruling = shared.decide_here(gate, client, cost, now, &request);
    carry_out(shared, inner, request, ruling, charge)
}

fn carry_out<S, B>(
    shared: &Arc<Shared>,
    inner: &mut S,
    request: Request<B>,
    ruling: Ruling,
    charge: Charge<'_>,
) -> ResponseFuture<S, B>
where
    S: Service<Request<B>> + Clone,
{
    match ruling {
        Ruling::Pass(stamp, paid) => {
            let ticket = Ticket::new(shared, charge.gate, charge.client, charge.cost, paid);
            ResponseFuture::pass(ready::take(inner), request, stamp, ticket)
        }
        Ruling::Refuse(response) => ResponseFuture::refuse(response),
    }
}
