//! The body.

crate::body::response_body! {
    /// The inner service's body, or a refusal.
    pub struct ResponseBody<B, ()>;
}
