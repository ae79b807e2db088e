//! A decision that somebody else makes.

use std::future::Future;
use std::pin::Pin;

use super::verdict::Verdict;

/// A question on its way to Redis. Boxed, because the round trip has no name; next to it, the box costs nothing.
pub(crate) type Question = Pin<Box<dyn Future<Output = Result<Verdict, Unanswered>> + Send>>;

/// Redis did not decide.
pub(crate) struct Unanswered {
    /// It may still decide, later: this request must not wait for it a second time.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(crate) timed_out: bool,
}
