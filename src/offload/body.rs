//! The response's body: the inner service's, or a refusal.

use crate::body::response_body;

response_body! {
    /// The body of an offloaded response, or of a refusal.
    ///
    /// The server polls it on its own event loop, not on the pool: what a body computes while it streams is not
    /// offloaded.
    pub struct ResponseBody<B, ()>;
}
