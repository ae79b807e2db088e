//! The service: what can be answered at once, is.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use super::body::{BoxError, ResponseBody};
use super::case::Case;
use super::change::Change;
use super::coalesce::{self, Looked};
use super::early;
use super::entry::Entry;
use super::future::{Passage, ResponseFuture};
use super::key::Key;
use super::layer::{Config, Fetching, Shared};
use super::lookup::{Found, Miss, Search};
use super::metrics::{Outcome, Refresh};
use super::refresh;
use super::request::Asked;
use super::reuse::Use;
use super::status::Forward;
use super::update::Held;
use crate::ready::{self, CallWhenReady};
use crate::refusal::Grpc;

/// A service behind a response cache; made by [`CacheLayer`](super::CacheLayer).
#[derive(Clone)]
pub struct Cache<S> {
    inner: S,
    shared: Arc<Shared>,
    config: Arc<Config>,
}

impl<S> Cache<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>, config: Arc<Config>) -> Self {
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
        let primary = Key::primary(&self.config.intake, request.uri(), request.headers(), request.extensions());
        let (primary, asked) = match (primary, Asked::of(&request, &self.config)) {
            (Some(primary), Ok(asked)) => (primary, asked),
            (None, Ok(_)) => return self.pass(request, Forward::Bypass, None),
            (primary, Err(forward)) => {
                return match primary.filter(|_| changes_its_url(&request)) {
                    None => self.pass(request, forward, None),
                    Some(primary) => {
                        let (change, request) = Change::new(self.case(primary, &request), request);
                        self.pass(request, forward, Some(change))
                    }
                };
            }
        };
        let spent = self.shared.store.is_spent(request.extensions());
        let mut asked_store = None;
        let looked = if spent && self.shared.fleet.is_none() {
            Looked::Not
        } else {
            let now = self.config.clock.now();
            let sources = self.shared.sources(&self.config, &primary, request.headers());
            match Search::new(sources).now(sources, now) {
                Ok(Found::Entry(entry, search)) => {
                    if self.shared.judge(&self.config, &asked, &primary, &entry, now) == Use::Fresh {
                        let response = self.shared.answer(&asked, request.headers(), &entry, now);
                        if early::is_due(&entry.head, &self.config, &asked, now) {
                            self.renew_early(request, primary, asked, entry, &search);
                        }
                        return ResponseFuture::answered(response);
                    }
                    Looked::Found(Found::Entry(entry, search))
                }
                Ok(found) => Looked::Found(found),
                Err(_) if spent => Looked::Not,
                Err(asked) => {
                    asked_store = Some(asked);
                    Looked::Not
                }
            }
        };
        let case = Case { shared: self.shared.clone(), config: self.config.clone(), primary, asked };
        let inner = ready::take(&mut self.inner);
        ResponseFuture::detour(match asked_store {
            Some((search, step)) => Box::pin(coalesce::first(case, inner, request, search, step)),
            None => Box::pin(coalesce::run(case, inner, request, looked)),
        })
    }
}

/// Whether success of the request outdates what is stored for its URL (RFC 9111 §4.4): unless its method is known to be
/// safe, by the IANA registry. A gRPC call never does: nobody asks for its URL with GET. Nor does CONNECT, which names no
/// resource.
fn changes_its_url<B>(request: &Request<B>) -> bool {
    let method = request.method();
    let is_safe = method.is_safe() || matches!(method.as_str(), "PROPFIND" | "QUERY" | "REPORT" | "SEARCH");
    !is_safe && *request.method() != Method::CONNECT && Grpc::of(request.headers()).is_none()
}

impl<S: Clone> Cache<S> {
    fn case<B>(&self, primary: Key, request: &Request<B>) -> Case {
        let asked = Asked::by_change(request.headers(), &self.config);
        Case { shared: self.shared.clone(), config: self.config.clone(), primary, asked }
    }

    /// Renews in the background what was just given out fresh.
    #[cold]
    fn renew_early<B, ResBody>(
        &mut self,
        request: Request<B>,
        primary: Key,
        asked: Asked,
        entry: Arc<Entry>,
        search: &Search,
    ) where
        S: Service<Request<B>, Response = Response<ResBody>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Send + 'static,
        ResBody: Body<Data = Bytes> + Send + 'static,
        ResBody::Error: Into<BoxError>,
    {
        let case = Case { shared: self.shared.clone(), config: self.config.clone(), primary, asked };
        let (parts, body) = request.into_parts();
        let held = Held { own: Some(entry), others: Vec::new() };
        let miss = Miss { held, ..search.miss(case.sources(&parts.headers), Forward::Stale) };
        refresh::begin(case, ready::take(&mut self.inner), parts, body, miss, Refresh::Early);
    }

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
        let passage = Passage { forward, changes };
        ResponseFuture::forwarded(CallWhenReady::new(ready::take(&mut self.inner), request), passage)
    }
}

impl<S> fmt::Debug for Cache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("store", &self.shared.store).field("config", &self.config).finish_non_exhaustive()
    }
}
