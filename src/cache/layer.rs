//! The layer and what its clones share.

use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Response};
use tower_layer::Layer;

use super::Store;
use super::flight::Flights;
use super::log::Budget;
use super::metrics::Metrics;
use super::service::Cache;
use super::store::sealed::Backend;
use crate::refusal::{Refusal, Refuse};

const DEFAULT_MAX_OBJECT_BYTES: usize = 1 << 20;
/// Bytes of all unfinished copies together. Beyond: bodies stream past the cache.
const MAX_COLLECTED_BYTES: usize = 64 << 20;

/// Puts a response cache in front of a service.
///
/// The same layer value and its clones are one cache; build two to keep two apart. Clones may be configured
/// differently: `layer.clone().ttl(..)` still shares the entries.
///
/// # Panics
/// Requests that wait for others panic on a tokio runtime whose timer is not enabled.
#[derive(Clone)]
pub struct CacheLayer {
    shared: Arc<Shared>,
    config: Config,
}

/// What all clones of a layer share.
pub(super) struct Shared {
    pub(super) store: Box<dyn Backend>,
    pub(super) flights: Arc<Flights>,
    pub(super) budget: Arc<Budget>,
    pub(super) fills: AtomicUsize,
    pub(super) metrics: Arc<Metrics>,
}

/// Request extension: the caches that are fetching with this request. One that meets it again would wait for itself.
#[derive(Clone, Default)]
pub(super) struct Fetching(Vec<Weak<Shared>>);

impl Fetching {
    pub(super) fn note(shared: &Arc<Shared>, extensions: &mut Extensions) {
        extensions.get_or_insert_default::<Self>().0.push(Arc::downgrade(shared));
    }

    pub(super) fn is_for(shared: &Arc<Shared>, extensions: &Extensions) -> bool {
        extensions.get::<Self>().is_some_and(|own| own.0.iter().any(|one| one.as_ptr() == Arc::as_ptr(shared)))
    }
}

/// What a layer is told.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) ttl: Option<Duration>,
    pub(super) max_object_bytes: usize,
    pub(super) refuse: Refuse,
}

impl CacheLayer {
    /// A cache over `store` that stores what states its own freshness.
    pub fn new(store: impl Store) -> Self {
        let metrics = Arc::new(Metrics::new());
        let shared = Shared {
            store: Box::new(store),
            flights: Arc::new(Flights::new(metrics.clone())),
            budget: Arc::new(Budget::new(MAX_COLLECTED_BYTES)),
            fills: AtomicUsize::new(0),
            metrics,
        };
        let config = Config { ttl: None, max_object_bytes: DEFAULT_MAX_OBJECT_BYTES, refuse: Refuse::default() };
        Self { shared: Arc::new(shared), config }
    }

    /// Stores responses for `ttl` that say nothing of freshness themselves, where their status is 200, 203, 204, 300,
    /// 301 or 308. Without it, only responses with explicit freshness are stored.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.config.ttl = Some(ttl);
        self
    }

    /// Stores bodies of at most `bytes` bytes (default: 1 MiB), and no larger than the store takes.
    ///
    /// Larger ones stream past the cache. A body of unknown length is held in memory up to this size while it streams.
    #[must_use]
    pub fn max_object_bytes(mut self, bytes: usize) -> Self {
        self.config.max_object_bytes = bytes;
        self
    }

    /// Replaces the response to a request whose shared fetch failed three times (default: a 502 problem document).
    #[must_use]
    pub fn refusal(mut self, hook: impl Fn(&Refusal) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.config.refuse = Refuse::with(hook);
        self
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Cache<S> {
        Cache::new(inner, self.shared.clone(), self.config.clone())
    }
}

impl fmt::Debug for CacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheLayer").field("store", &self.shared.store).field("config", &self.config).finish()
    }
}
