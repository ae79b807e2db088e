//! A deadline that does not blame the server for this process's own delays.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// At least one turn of the event loop, in which the connection's task can read the socket.
const TURN: Duration = Duration::from_millis(1);

pin_project! {
    /// Resolves to `None` when `work` is not done within `budget`.
    ///
    /// When the deadline is noticed late, the loop was busy with something else, and the reply may well lie in the
    /// socket's buffer. So the deadline moves once, by as much as it was late: at least a turn, at most a budget.
    pub(crate) struct Within<F> {
        #[pin]
        work: F,
        #[pin]
        deadline: Sleep,
        budget: Duration,
        extended: bool,
    }
}

impl<F> Within<F> {
    pub(crate) fn new(budget: Duration, work: F) -> Self {
        Self::since(Instant::now(), budget, work)
    }

    /// The same, where the clock has just been read.
    pub(super) fn since(begun: Instant, budget: Duration, work: F) -> Self {
        let deadline = match begun.checked_add(budget) {
            Some(deadline) => sleep_until(deadline),
            None => sleep(budget),
        };
        Self { work, deadline, budget, extended: false }
    }
}

impl<F: Future> Future for Within<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(output) = this.work.poll(cx) {
            return Poll::Ready(Some(output));
        }
        while this.deadline.as_mut().poll(cx).is_ready() {
            if std::mem::replace(this.extended, true) {
                return Poll::Ready(None);
            }
            let now = Instant::now();
            let late = now.saturating_duration_since(this.deadline.deadline());
            let more = late.min(*this.budget).max(TURN);
            this.deadline.as_mut().reset(now + more);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const BUDGET: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn ends_after_the_budget() {
        let start = Instant::now();
        assert_eq!(Within::new(BUDGET, std::future::pending::<()>()).await, None);
        assert!(start.elapsed() >= BUDGET && start.elapsed() <= BUDGET + 3 * TURN, "{:?}", start.elapsed());
        assert_eq!(Within::new(BUDGET, sleep(BUDGET - TURN)).await, Some(()));
    }

    /// The loop stands still before the request is even sent: answered within its budget afterwards, it is no timeout.
    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "blocks the loop on purpose")]
    async fn a_stalled_loop_is_not_the_servers_fault() {
        let (send, receive) = oneshot::channel();
        let server = tokio::spawn(async move {
            std::thread::sleep(4 * BUDGET);
            sleep(BUDGET / 2).await;
            let _ = send.send(());
        });
        assert!(Within::new(BUDGET, receive).await.is_some());
        server.await.unwrap();
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "blocks the loop on purpose")]
    async fn the_extension_is_bounded() {
        let stall = tokio::spawn(async { std::thread::sleep(10 * BUDGET) });
        let start = Instant::now();
        assert!(Within::new(BUDGET, std::future::pending::<()>()).await.is_none());
        assert!(start.elapsed() < 15 * BUDGET, "{:?}", start.elapsed());
        stall.await.unwrap();
    }
}
