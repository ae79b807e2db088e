//! What can go wrong: while the pool is built, and when it is given work.

use std::num::NonZeroUsize;

use crate::refusal::Reason;

/// Why a pool could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The operating system refused a thread.
    #[error("the operating system refused a thread for the offload pool")]
    Thread(#[source] std::io::Error),
    /// More than 1024 threads.
    #[error("{0} threads for an offload pool, which has at most 1024")]
    TooManyThreads(NonZeroUsize),
}

/// Why the pool did not run what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// As many requests wait, or have begun and not ended, as the pool admits.
    #[error("the offload pool is full")]
    QueueFull,
    /// The pool was closed before the work began.
    #[error("the offload pool is closed")]
    Closed,
}

impl OffloadError {
    /// The same in the words of refusals, metrics and logs.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::QueueFull => Reason::QueueFull,
            Self::Closed => Reason::PoolClosed,
        }
    }
}
