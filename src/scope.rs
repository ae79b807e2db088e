//! What follows a request when it moves to another task or thread.
//!
//! 1. The scope of a request: its route pattern, the current tracing span and dispatcher, and who watches its polls.
//! 2. Whoever moves a request (a cache fill, the offload pool) captures the scope before and re-enters it on every
//!    poll there, through [`Scoped`]. So logs, metrics and the blame for a long poll are the same in any layer order.
//! 3. A thread that exists to be blocked (an offload thread) says so once: a long poll there stalls no event loop.
//! 4. The route is a pattern (`/products/{id}`), never a raw path: it is safe as a metric label.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Extensions;
use pin_project_lite::pin_project;

thread_local! {
    static OFF_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// Declares that this thread runs no event loop, for as long as it lives.
pub(crate) fn leave_event_loop() {
    OFF_LOOP.set(true);
}

/// Whether a long poll on this thread would keep other tasks waiting.
pub(crate) fn on_event_loop() -> bool {
    !OFF_LOOP.get()
}

/// A request's route pattern, where somebody knows it.
#[derive(Clone, Default)]
pub(crate) enum Route {
    #[default]
    Unknown,
    #[cfg(feature = "axum")]
    Matched(axum::extract::MatchedPath),
    Named(&'static str),
}

impl Route {
    pub(crate) fn of(extensions: &Extensions) -> Self {
        #[cfg(feature = "axum")]
        if let Some(path) = extensions.get::<axum::extract::MatchedPath>() {
            return Self::Matched(path.clone());
        }
        extensions.get::<NamedRoute>().map_or(Self::Unknown, |name| Self::Named(name.0))
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Unknown => None,
            #[cfg(feature = "axum")]
            Self::Matched(path) => Some(path.as_str()),
            Self::Named(name) => Some(name),
        }
    }
}

/// Request extension: a route's name where the router leaves none (plain hyper).
#[derive(Clone, Copy)]
pub(crate) struct NamedRoute(pub(crate) &'static str);

/// Observes every poll of the requests that it was attached to, on whichever thread it happens.
pub(crate) trait Watch: Send + Sync + 'static {
    /// Runs `poll` exactly once. Nested calls on one thread belong to one request.
    fn observe(&self, route: &Route, poll: &mut dyn FnMut());
}

/// Request extension: who watches this request's polls.
#[derive(Clone)]
pub(crate) struct Watcher(pub(crate) Arc<dyn Watch>);

/// Everything that follows a request.
#[derive(Clone, Default)]
pub(crate) struct Scope {
    route: Route,
    watcher: Option<Watcher>,
    #[cfg(feature = "tracing")]
    trace: Option<(tracing::Span, tracing::Dispatch)>,
}

impl Scope {
    pub(crate) fn capture(extensions: &Extensions) -> Self {
        Self {
            route: Route::of(extensions),
            watcher: extensions.get::<Watcher>().cloned(),
            #[cfg(feature = "tracing")]
            trace: Some((tracing::Span::current(), tracing::dispatcher::get_default(Clone::clone))),
        }
    }

    /// Runs `f` as if on the request's own task. A panic in `f` passes through.
    pub(crate) fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        self.traced(|| match &self.watcher {
            None => f(),
            Some(watcher) => {
                let (mut f, mut result) = (Some(f), None);
                watcher.0.observe(&self.route, &mut || result = f.take().map(|f| f()));
                #[allow(clippy::expect_used, reason = "`Watch::observe` runs its closure once, by contract")]
                result.expect("the poll was run")
            }
        })
    }

    #[cfg(feature = "tracing")]
    fn traced<R>(&self, f: impl FnOnce() -> R) -> R {
        match &self.trace {
            None => f(),
            Some((span, dispatch)) => tracing::dispatcher::with_default(dispatch, || span.in_scope(f)),
        }
    }

    #[cfg(not(feature = "tracing"))]
    fn traced<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

pin_project! {
    /// Polls a future inside a scope.
    pub(crate) struct Scoped<F> {
        scope: Scope,
        #[pin]
        future: F,
    }
}

impl<F> Scoped<F> {
    pub(crate) fn new(scope: Scope, future: F) -> Self {
        Self { scope, future }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.scope.enter(|| this.future.poll(cx))
    }
}
