//! The response of a layer that says no.
//!
//! A layer's own refusal is a *response*, never an error, so a layer adds to an axum `Router`, a hyper service or a tonic
//! server without any error handling.
//!
//! 1. The default is a problem document ([RFC 9457]) with `Cache-Control: no-store`. Its `type` is one from the
//!    [IANA registry] where one fits, else `about:blank`; the member `reason` always holds [`Reason::as_str`].
//! 2. `Retry-After` is in whole seconds, rounded up and at least 1, so a client that obeys it is never early. Where a
//!    crowd was turned away together (a full queue), up to 2 s of jitter spreads its return.
//! 3. A gRPC or gRPC-Web request (`Content-Type: application/grpc…`) gets its answer in gRPC's trailers-only form: HTTP
//!    200 with `grpc-status` and `grpc-message` among the fields.
//! 4. Every layer takes a hook, `.refusal(|r: &Refusal| -> Response<Bytes>)`, which replaces 1 to 3. A hook that
//!    leaves out `Cache-Control` gets `no-store` all the same, and one that leaves out `Retry-After` gets that of 2.
//! 5. The [`Reason`] is in the response's extensions, for outer layers (logs, metrics, error pages).
//!
//! It never tells a client anything about another, and never echoes any part of the request.
//!
//! | reason | status | `type` | gRPC status |
//! |---|---|---|---|
//! | `quota_exceeded` | 429 | `…http-problem-types#quota-exceeded` | 8 `RESOURCE_EXHAUSTED` |
//! | `debt_inherited` | 429 | `…http-problem-types#quota-exceeded` | 8 `RESOURCE_EXHAUSTED` |
//! | `blocked` | 429 | `…http-problem-types#quota-exceeded` | 8 `RESOURCE_EXHAUSTED` |
//! | `limiter_unavailable` | 503 | `…http-problem-types#temporary-reduced-capacity` | 14 `UNAVAILABLE` |
//! | `forwarding_invalid` | 400 | `about:blank` | 3 `INVALID_ARGUMENT` |
//! | `peer_unknown` | 500 | `about:blank` | 13 `INTERNAL` |
//! | `queue_full` | 503 | `…http-problem-types#temporary-reduced-capacity` | 14 `UNAVAILABLE` |
//! | `pool_closed` | 503 | `…http-problem-types#temporary-reduced-capacity` | 14 `UNAVAILABLE` |
//! | `fill_failed` | 502 | `about:blank` | 14 `UNAVAILABLE` |
//! | `not_stored` | 504 | `about:blank` | 14 `UNAVAILABLE` |
//!
//! ```
//! use bytes::Bytes;
//! use http::{Response, StatusCode};
//! use tower_scale::refusal::{Reason, Refusal};
//!
//! // What `.refusal(page)` on a layer takes.
//! fn page(refusal: &Refusal) -> Response<Bytes> {
//!     let mut response = Response::new(Bytes::from_static(b"Please come back in a moment.\n"));
//!     *response.status_mut() = refusal.status();
//!     response
//! }
//!
//! assert_eq!(Reason::QuotaExceeded.status(), StatusCode::TOO_MANY_REQUESTS);
//! assert_eq!(Reason::QuotaExceeded.as_str(), "quota_exceeded");
//! # let _: fn(&Refusal) -> Response<Bytes> = page;
//! ```
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
//! [IANA registry]: https://www.iana.org/assignments/http-problem-types

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{Extensions, HeaderMap, HeaderValue, Request, Response, StatusCode};

use crate::scope::Route;

/// Why a layer refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The client has spent its quota (429).
    QuotaExceeded,
    /// The table of debts is full, and the client has inherited the debt of another (429).
    DebtInherited,
    /// The application has blocked the client for a while (429).
    Blocked,
    /// Redis could not be asked, and the limit must not be decided without it (503).
    LimiterUnavailable,
    /// A trusted proxy's forwarding header names no client (400).
    ForwardingInvalid,
    /// Nothing tells where the request came from: the server was built without connect info (500).
    PeerUnknown,
    /// The offload pool's admission queue is full (503).
    QueueFull,
    /// The offload pool has been shut down (503).
    PoolClosed,
    /// The shared request that this one waited for failed (502).
    FillFailed,
    /// The request asked for a stored response only, and there is none (504).
    NotStored,
}

impl Reason {
    /// The reason's one name, in problem documents, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QuotaExceeded => "quota_exceeded",
            Self::DebtInherited => "debt_inherited",
            Self::Blocked => "blocked",
            Self::LimiterUnavailable => "limiter_unavailable",
            Self::ForwardingInvalid => "forwarding_invalid",
            Self::PeerUnknown => "peer_unknown",
            Self::QueueFull => "queue_full",
            Self::PoolClosed => "pool_closed",
            Self::FillFailed => "fill_failed",
            Self::NotStored => "not_stored",
        }
    }

    /// The HTTP status of the default response.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::QuotaExceeded | Self::DebtInherited | Self::Blocked => StatusCode::TOO_MANY_REQUESTS,
            Self::ForwardingInvalid => StatusCode::BAD_REQUEST,
            Self::PeerUnknown => StatusCode::INTERNAL_SERVER_ERROR,
            Self::QueueFull | Self::PoolClosed | Self::LimiterUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::FillFailed => StatusCode::BAD_GATEWAY,
            Self::NotStored => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn problem_type(self) -> &'static str {
        match self {
            Self::QuotaExceeded | Self::DebtInherited | Self::Blocked => {
                "https://iana.org/assignments/http-problem-types#quota-exceeded"
            }
            Self::QueueFull | Self::PoolClosed | Self::LimiterUnavailable => {
                "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
            }
            Self::ForwardingInvalid | Self::PeerUnknown | Self::FillFailed | Self::NotStored => "about:blank",
        }
    }

    fn detail(self) -> &'static str {
        match self {
            Self::QuotaExceeded => "Too many requests; retry after the given time.",
            Self::DebtInherited => "Too many clients; retry after the given time.",
            Self::Blocked => "Blocked for now; retry after the given time.",
            Self::LimiterUnavailable => "The limit cannot be checked now; retry after the given time.",
            Self::ForwardingInvalid => "The forwarding header names no client.",
            Self::PeerUnknown => "The server does not know the address of its peer.",
            Self::QueueFull => "The server is busy; retry after the given time.",
            Self::PoolClosed => "The server is shutting down.",
            Self::FillFailed => "The request that this one waited for failed.",
            Self::NotStored => "No stored response, and the request asks for nothing else.",
        }
    }

    fn grpc_status(self) -> &'static str {
        match self {
            Self::QuotaExceeded | Self::DebtInherited | Self::Blocked => "8",
            Self::ForwardingInvalid => "3",
            Self::PeerUnknown => "13",
            Self::QueueFull | Self::PoolClosed | Self::LimiterUnavailable | Self::FillFailed | Self::NotStored => "14",
        }
    }

    /// Whether many clients are refused at the same moment, so that their return should be spread.
    fn strikes_a_crowd(self) -> bool {
        matches!(self, Self::QueueFull | Self::PoolClosed | Self::LimiterUnavailable)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The protocol of a gRPC request, by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grpc {
    Plain,
    Web,
    WebText,
}

impl Grpc {
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        if !value.get(..16)?.eq_ignore_ascii_case("application/grpc") {
            return None;
        }
        // The message format follows a plus sign, parameters a semicolon.
        match value.to_ascii_lowercase().split(['+', ';']).next()?.trim_end() {
            "application/grpc" => Some(Self::Plain),
            "application/grpc-web" => Some(Self::Web),
            "application/grpc-web-text" => Some(Self::WebText),
            _ => None,
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "application/grpc",
            Self::Web => "application/grpc-web+proto",
            Self::WebText => "application/grpc-web-text+proto",
        }
    }
}

/// What is known of the caller when a layer refuses: taken before the request moves on.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    route: Route,
    grpc: Option<Grpc>,
    accept: Option<HeaderValue>,
}

impl Caller {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self::of_parts(request.headers(), request.extensions())
    }

    pub(crate) fn of_parts(headers: &HeaderMap, extensions: &Extensions) -> Self {
        Self { route: Route::of(extensions), grpc: Grpc::of(headers), accept: headers.get(ACCEPT).cloned() }
    }
}

/// A refused request, as a refusal hook sees it.
pub struct Refusal {
    reason: Reason,
    retry_after: Option<Duration>,
    caller: Caller,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, caller: Caller) -> Self {
        Self { reason, retry_after: None, caller }
    }

    /// Tells the client to stay away for `wait`: rounded up to whole seconds, at least 1, jittered for crowds.
    pub(crate) fn retry_after_at_least(mut self, wait: Duration) -> Self {
        let whole = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        let jitter = if self.reason.strikes_a_crowd() { RandomState::new().hash_one(0) % 3 } else { 0 };
        self.retry_after = Some(Duration::from_secs(whole.max(1).saturating_add(jitter)));
        self
    }

    /// Why the layer refused.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The HTTP status that the default response has.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.reason.status()
    }

    /// How long the client should wait: whole seconds, at least one, as `Retry-After` states them.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The request's route pattern (`/products/{id}`), where the router left one.
    #[must_use]
    pub fn route(&self) -> Option<&str> {
        self.caller.route.as_str()
    }

    /// Whether the request was a gRPC or gRPC-Web call.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.caller.grpc.is_some()
    }

    /// The request's (first) `Accept` field.
    #[must_use]
    pub fn accept(&self) -> Option<&HeaderValue> {
        self.caller.accept.as_ref()
    }

    fn default_response(&self) -> Response<Bytes> {
        self.caller.grpc.map_or_else(|| self.problem(), |grpc| self.trailers_only(grpc))
    }

    fn problem(&self) -> Response<Bytes> {
        let status = self.status();
        let body = format!(
            r#"{{"type":"{}","title":"{}","status":{},"detail":"{}","reason":"{}"}}"#,
            self.reason.problem_type(),
            status.canonical_reason().unwrap_or_default(),
            status.as_u16(),
            self.reason.detail(),
            self.reason,
        );
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }

    fn trailers_only(&self, grpc: Grpc) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(grpc.content_type()));
        headers.insert("grpc-status", HeaderValue::from_static(self.reason.grpc_status()));
        headers.insert("grpc-message", HeaderValue::from_static(self.reason.as_str()));
        response
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal")
            .field("reason", &self.reason)
            .field("retry_after", &self.retry_after)
            .field("route", &self.route())
            .field("is_grpc", &self.is_grpc())
            .finish_non_exhaustive()
    }
}

type Hook = dyn Fn(&Refusal) -> Response<Bytes> + Send + Sync;

/// How a layer turns its refusals into responses: the default, or the user's hook.
#[derive(Clone, Default)]
pub(crate) struct Refuse(Option<Arc<Hook>>);

impl Refuse {
    pub(crate) fn with(hook: impl Fn(&Refusal) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(crate) fn respond(&self, refusal: &Refusal) -> Response<Bytes> {
        let mut response = self.0.as_ref().map_or_else(|| refusal.default_response(), |hook| hook(refusal));
        response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        if let Some(wait) = refusal.retry_after {
            response.headers_mut().entry(RETRY_AFTER).or_insert_with(|| HeaderValue::from(wait.as_secs()));
        }
        response.extensions_mut().insert(refusal.reason);
        response
    }
}

impl fmt::Debug for Refuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "custom" } else { "default" })
    }
}

#[cfg(test)]
mod tests;
