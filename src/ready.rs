//! Readies a service and calls it, inside one future.
//!
//! 1. A layer that can answer alone is always ready itself; the inner service is readied here, when its answer is
//!    known to be needed. So a never-ready inner service still gets hits and refusals answered.
//! 2. The service that became ready is the one that is called, never a clone of it: readiness may hold a permit.
//! 3. Dropping the future at any point drops that service, and with it what its readiness holds.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

/// Takes the service out of `slot` and leaves a clone for the next call.
pub(crate) fn take<S: Clone>(slot: &mut S) -> S {
    let clone = slot.clone();
    std::mem::replace(slot, clone)
}

pin_project! {
    /// Polls `service` until it is ready, then calls it with `request`.
    pub(crate) struct CallWhenReady<S: Service<R>, R> {
        #[pin]
        state: State<S, R, S::Future>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, R, F> {
        Readying { service: S, request: Option<R> },
        Called { #[pin] future: F },
    }
}

impl<S: Service<R>, R> CallWhenReady<S, R> {
    pub(crate) fn new(service: S, request: R) -> Self {
        Self { state: State::Readying { service, request: Some(request) } }
    }
}

impl<S: Service<R>, R> Future for CallWhenReady<S, R> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProjection::Readying { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    let Some(request) = request.take() else {
                        // Only a panic in `call` leaves an empty slot behind; such a future never ends.
                        return Poll::Pending;
                    };
                    let future = service.call(request);
                    state.set(State::Called { future });
                }
                StateProjection::Called { future } => return future.poll(cx),
            }
        }
    }
}
