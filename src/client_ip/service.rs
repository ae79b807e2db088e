//! The service.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::body::ResponseBody;
use super::future::ResponseFuture;
use super::layer::ClientIpLayer;
use crate::ready;
use crate::refusal::Caller;

/// Knows its clients; made by [`ClientIpLayer`]. (The name `ClientIp` is the extension's.)
#[derive(Clone, Debug)]
pub struct ClientIpService<S> {
    inner: S,
    layer: Arc<ClientIpLayer>,
}

impl<S> ClientIpService<S> {
    pub(crate) fn new(inner: S, layer: ClientIpLayer) -> Self {
        Self { inner, layer: Arc::new(layer) }
    }
}

impl<S, B, ResBody> Service<Request<B>> for ClientIpService<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
    ResBody: http_body::Body<Data = bytes::Bytes>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.layer.identify(&mut request) {
            Ok(()) => ResponseFuture::pass(ready::take(&mut self.inner), request),
            Err(reason) => ResponseFuture::refuse(self.layer.refuse(reason, Caller::of(&request))),
        }
    }
}
