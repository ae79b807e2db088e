//! The layer.

use bytes::Bytes;
use http::Response;
use tower_layer::Layer;

use super::pool::OffloadPool;
use super::service::Offload;
use crate::refusal::{Refusal, Refuse};

/// Runs the inner service on an [`OffloadPool`]. See the [module page](super).
#[derive(Clone, Debug)]
pub struct OffloadLayer {
    pool: OffloadPool,
    refuse: Refuse,
}

impl OffloadLayer {
    /// A layer over `pool`. Layers and closures that should share threads and queue share a pool.
    #[must_use]
    pub fn new(pool: OffloadPool) -> Self {
        Self { pool, refuse: Refuse::default() }
    }

    /// Replaces the response to a request that the pool does not admit.
    #[must_use]
    pub fn refusal(mut self, hook: impl Fn(&Refusal) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.refuse = Refuse::with(hook);
        self
    }
}

impl<S> Layer<S> for OffloadLayer {
    type Service = Offload<S>;

    fn layer(&self, inner: S) -> Offload<S> {
        Offload::new(inner, self.pool.clone(), self.refuse.clone())
    }
}
