//! The service.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::body::ResponseBody;
use super::future::ResponseFuture;
use super::pool::OffloadPool;
use super::queue::Lane;
use super::task::Home;
use crate::ready::{self, CallWhenReady};
use crate::refusal::{Caller, Refuse};

/// The service that [`OffloadLayer`](super::OffloadLayer) makes.
#[derive(Clone, Debug)]
pub struct Offload<S> {
    inner: S,
    pool: OffloadPool,
    refuse: Refuse,
}

impl<S> Offload<S> {
    pub(super) fn new(inner: S, pool: OffloadPool, refuse: Refuse) -> Self {
        Self { inner, pool, refuse }
    }
}

impl<S, B, ResBody> Service<Request<B>> for Offload<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<ResBody, S::Error>;

    /// Always ready: the inner service is readied on the pool, once the request has been admitted.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let caller = Caller::of(&request);
        let home = Home::of_request(request.extensions());
        let inner = ready::take(&mut self.inner);
        let response = self.pool.submit(Lane::Serial, home, CallWhenReady::new(inner, request));
        ResponseFuture::new(response, caller, self.refuse.clone())
    }
}
