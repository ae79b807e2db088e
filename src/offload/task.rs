//! Work that moves to a thread of the pool: what follows it there, and what never escapes from it.
//!
//! 1. Every turn runs in the runtime and the scope of the request that it belongs to.
//! 2. A panic, in a turn or in a destructor, becomes a value: it neither ends a thread nor aborts the process.
//! 3. What the work held is gone, and counted as gone, before its caller sees the answer: async-task drops a future
//!    before it hands over its output.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use http::Extensions;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use super::shared::Seat;
use crate::scope::Scope;

/// Where the work comes from.
pub(super) struct Home {
    runtime: Option<Handle>,
    scope: Scope,
    turns: Turns,
}

#[derive(Clone, Copy)]
enum Turns {
    /// A closure has one turn, and may block.
    One,
    /// A future's turns end when tokio's budget is spent, as on a worker of the runtime.
    Budgeted,
}

impl Home {
    pub(super) fn of_closure() -> Self {
        Self::capture(&Extensions::new(), Turns::One)
    }

    pub(super) fn of_request(extensions: &Extensions) -> Self {
        Self::capture(extensions, Turns::Budgeted)
    }

    fn capture(extensions: &Extensions, turns: Turns) -> Self {
        Self { runtime: Handle::try_current().ok(), scope: Scope::capture(extensions), turns }
    }

    fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        let _runtime = self.runtime.as_ref().map(Handle::enter);
        self.scope.enter(f)
    }

    /// Like [`enter`](Self::enter), and with a budget where there is a runtime: `block_on` is the one public way to
    /// get one. The future that it is given is ready at once, so nothing blocks.
    fn turn<R>(&self, f: impl FnOnce() -> R) -> R {
        match (&self.runtime, self.turns) {
            (Some(runtime), Turns::Budgeted) => runtime.block_on(async { self.scope.enter(f) }),
            _ => self.enter(f),
        }
    }
}

pin_project! {
    /// A future on its way to, on, or on its way back from the pool.
    pub(super) struct Contained<F> {
        // Some until it is dropped, at home.
        #[pin]
        future: Option<F>,
        home: Home,
        log: Log,
    }

    impl<F> PinnedDrop for Contained<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            quietly(|| this.home.enter(|| this.future.set(None)));
        }
    }
}

impl<F> Contained<F> {
    pub(super) fn new(future: F, home: Home, seat: Seat) -> Self {
        Self { future: Some(future), home, log: Log::new(seat) }
    }
}

impl<F: Future> Future for Contained<F> {
    type Output = Answer<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<F::Output>> {
        let this = self.project();
        let Some(future) = this.future.as_pin_mut() else {
            return Poll::Pending;
        };
        let turn = this.log.begin_turn();
        let polled = catch_unwind(AssertUnwindSafe(|| this.home.turn(|| future.poll(cx))));
        this.log.end_turn(turn);
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Answer(Some(Ok(output)))),
            Err(panic) => Poll::Ready(Answer(Some(Err(panic)))),
        }
    }
}

/// The work's way so far.
struct Log {
    admitted: Instant,
    /// Time on a thread; `None` before the first turn.
    ran: Option<Duration>,
    seat: Seat,
}

impl Log {
    fn new(seat: Seat) -> Self {
        Self { admitted: Instant::now(), ran: None, seat }
    }

    fn begin_turn(&mut self) -> Instant {
        let now = Instant::now();
        if self.ran.is_none() {
            self.seat.metrics().begun(now.saturating_duration_since(self.admitted));
            self.ran = Some(Duration::ZERO);
        }
        now
    }

    fn end_turn(&mut self, began: Instant) {
        self.ran = self.ran.map(|ran| ran + began.elapsed());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(ran) = self.ran {
            self.seat.metrics().ended(ran);
        }
    }
}

/// What came of the work. Nobody may be left to take it; then a panic in its destructor ends here.
pub(super) struct Answer<T>(Option<thread::Result<T>>);

impl<T> Answer<T> {
    pub(super) fn take(mut self) -> Option<thread::Result<T>> {
        self.0.take()
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            quietly(|| drop(answer));
        }
    }
}

/// Runs a destructor. The panic hook has reported its panic, if any; there is no caller to tell.
fn quietly(destroy: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(destroy)) {
        // A payload's destructor may panic as well.
        std::mem::forget(panic);
    }
}
