//! Those who wait for a trip.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;

use super::super::super::question::Unanswered;
use super::super::super::verdict::Verdict;

/// As many requests as a process can sensibly hold; some 3 MB.
const MAX_WAITING: usize = 16_384;

pub(super) type Answer = Result<Verdict, Unanswered>;

/// How many wait.
#[derive(Default)]
pub(super) struct Waiting(Arc<AtomicUsize>);

/// Somebody who waits.
pub(super) struct Waiter {
    answer: oneshot::Sender<Answer>,
    _place: Place,
}

/// One of the [`MAX_WAITING`].
struct Place(Arc<AtomicUsize>);

impl Waiting {
    /// `None`: too many wait already.
    pub(super) fn place(&self) -> Option<(Waiter, oneshot::Receiver<Answer>)> {
        let place = Place(self.0.clone());
        (self.0.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then(|| {
            let (answer, receiver) = oneshot::channel();
            (Waiter { answer, _place: place }, receiver)
        })
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Waiter {
    pub(super) fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }

    /// Who has left stays charged, as somebody does who leaves while asking alone.
    pub(super) fn tell(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
