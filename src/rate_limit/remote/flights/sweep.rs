//! Tokens that were not used.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;

use super::board::{Board, Books};
use crate::redis::Kind;

const SHORTEST: Duration = Duration::from_millis(10);

/// Sees that tokens are given back: one task, for as long as there are any.
pub(super) fn start<B: Books>(board: &Arc<Board<B>>) {
    let Ok(runtime) = Handle::try_current() else { return };
    if !board.sweeping.swap(true, Ordering::AcqRel) {
        let running = Running(board.clone());
        runtime.spawn(async move {
            let board = running.run().await;
            // Whoever put tokens there in the meantime saw this task still running.
            if board.holds_tokens() {
                start(&board);
            }
        });
    }
}

struct Running<B: Books>(Arc<Board<B>>);

impl<B: Books> Running<B> {
    async fn run(self) -> Arc<Board<B>> {
        let board = &self.0;
        let pause = board.lease.map_or(SHORTEST, |lease| (lease.life / 4).max(SHORTEST));
        while board.holds_tokens() {
            tokio::time::sleep(pause).await;
            give_back(board).await;
        }
        board.clone()
    }
}

impl<B: Books> Drop for Running<B> {
    fn drop(&mut self) {
        self.0.sweeping.swap(false, Ordering::AcqRel);
    }
}

/// Where Redis does not answer, the tokens are lost: they stay charged.
async fn give_back<B: Books>(board: &Board<B>) {
    for (key, times) in board.expired(board.time.now()) {
        match board.books.refund(key, times).await {
            Ok(()) => board.books.forget(key.client),
            Err(Kind::Refused) => {}
            Err(_) => return,
        }
    }
}
