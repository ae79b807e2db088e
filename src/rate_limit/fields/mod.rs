//! What responses tell clients of their quotas.
//!
//! 1. [`Fields`] names the styles. [`Announced`] has what changes with the quotas only, ready to be copied; a [`Stamp`]
//!    has what one decision adds, and waits for the response.
//! 2. The styles that can state one quota only state the one that binds: the least remaining, then the longest wait.
//! 3. On a refusal no quota is said to give more later than `Retry-After` says; both are rounded up. To a client that is
//!    blocked none gives anything before.
//! 4. Fields are appended, never replaced: an inner service may have limits of its own.
//! 5. A response costs one allocation, for the standing, and touches no reference count that others share.
//!
//! It never states who a client is (`pk`).

mod announced;
mod digits;
mod lasting;
mod stamp;
mod style;

pub(crate) use announced::Announced;
pub(crate) use stamp::Stamp;
pub use style::Fields;
