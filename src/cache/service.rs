//! The service: what can be answered at once, is.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tower_service::Service;

use super::body::{BoxError, ResponseBody};
use super::coalesce::{self, Looked};
use super::fill::{Case, Plan};
use super::future::{Change, Passage, ResponseFuture};
use super::key::Key;
use super::layer::{Config, Fetching, Shared};
use super::lookup::{Found, Search};
use super::metrics::Outcome;
use super::request::Asked;
use super::status::Forward;
use super::vary::Known;
use crate::ready::{self, CallWhenReady};
use crate::refusal::Grpc;
use crate::scope::Scope;

/// A service behind a response cache; made by [`CacheLayer`](super::CacheLayer).
#[derive(Clone)]
pub struct Cache<S> {
    inner: S,
    shared: Arc<Shared>,
    config: Config,
}

impl<S> Cache<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>, config: Config) -> Self {
        Self { inner, shared, config }
    }
}

impl<S, B, ResBody> Service<Request<B>> for Cache<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, ResBody>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if Fetching::is_for(&self.shared, request.extensions()) {
            return self.pass(request, Forward::Bypass, None);
        }
        let primary = Key::primary(request.uri(), request.headers(), request.extensions());
        let (primary, asked) = match (primary, Asked::of(&request)) {
            (Some(primary), Ok(asked)) => (primary, asked),
            (None, Ok(_)) => return self.pass(request, Forward::Bypass, None),
            (primary, Err(forward)) => {
                let spent = self.shared.store.is_spent(request.extensions());
                let changes = primary.filter(|_| changes_its_url(&request)).map(|primary| Change { primary, spent });
                return self.pass(request, forward, changes);
            }
        };
        let now = SystemTime::now();
        let looked = if self.shared.store.is_spent(request.extensions()) {
            None
        } else {
            let sources = self.shared.sources(&primary, request.headers());
            Some(Search::new(sources).now(sources, now))
        };
        if let Some(Ok(Found::Hit(entry, _))) = &looked
            && let Some(response) = self.shared.answer(asked, request.method(), request.headers(), entry, now)
        {
            return ResponseFuture::answered(response);
        }
        let case = Case { shared: self.shared.clone(), config: self.config.clone(), primary, asked };
        let Some(looked) = looked else { return self.detour(case, request, Looked::Not) };
        match looked {
            Ok(Found::Hit(_, known)) => self.alone(case, request, Forward::Request, known),
            Ok(Found::NoKey) => self.pass(request, Forward::Bypass, None),
            Ok(Found::Miss(miss)) if asked.may_share() && Handle::try_current().is_ok() => {
                self.detour(case, request, Looked::Missed(miss))
            }
            Ok(Found::Miss(miss)) => self.alone(case, request, miss.forward, miss.known),
            Err((search, step)) => self.detour(case, request, Looked::Asked(search, step)),
        }
    }
}

/// Whether success of the request outdates what is stored for its URL (RFC 9111 §4.4). A gRPC call never does: nobody
/// asks for its URL with GET. Nor does CONNECT, which names no resource.
fn changes_its_url<B>(request: &Request<B>) -> bool {
    !request.method().is_safe() && *request.method() != Method::CONNECT && Grpc::of(request.headers()).is_none()
}

impl<S: Clone> Cache<S> {
    /// Forwards what the cache has no business with.
    fn pass<B, ResBody>(
        &mut self,
        request: Request<B>,
        forward: Forward,
        changes: Option<Change>,
    ) -> ResponseFuture<S, B, ResBody>
    where
        S: Service<Request<B>, Response = Response<ResBody>>,
    {
        self.shared.metrics.count(Outcome::Bypass);
        let passage = Passage::Through { shared: self.shared.clone(), forward, changes };
        ResponseFuture::forwarded(CallWhenReady::new(ready::take(&mut self.inner), request), passage)
    }

    /// Forwards a request whose response is its own client's alone, until its head says otherwise.
    fn alone<B, ResBody>(
        &mut self,
        case: Case,
        request: Request<B>,
        forward: Forward,
        known: Option<Known>,
    ) -> ResponseFuture<S, B, ResBody>
    where
        S: Service<Request<B>, Response = Response<ResBody>>,
    {
        self.shared.metrics.count(Outcome::Miss);
        let passage = if case.asked.head {
            Passage::Through { shared: self.shared.clone(), forward, changes: None }
        } else {
            Passage::Storing {
                plan: Box::new(Plan::new(
                    case,
                    request.headers(),
                    Scope::capture(request.extensions()),
                    forward,
                    known,
                    true,
                )),
            }
        };
        ResponseFuture::forwarded(CallWhenReady::new(ready::take(&mut self.inner), request), passage)
    }

    /// Goes where waiting may be needed.
    fn detour<B, ResBody>(&mut self, case: Case, request: Request<B>, looked: Looked) -> ResponseFuture<S, B, ResBody>
    where
        S: Service<Request<B>, Response = Response<ResBody>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Send + 'static,
        ResBody: Body<Data = Bytes> + Send + 'static,
        ResBody::Error: Into<BoxError>,
    {
        ResponseFuture::detour(Box::pin(coalesce::run(case, ready::take(&mut self.inner), request, looked)))
    }
}

impl<S> fmt::Debug for Cache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("store", &self.shared.store).field("config", &self.config).finish_non_exhaustive()
    }
}
