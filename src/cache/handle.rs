//! A cache seen from outside of its requests.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::clock::Clock;
use super::fleet::Purging;
use super::intake::Intake;
use super::layer::Shared;
use super::metrics::Outcome;
use super::purge::{Purge, Url, What};

/// Purges a cache and counts what it does; made by [`CacheLayer::handle`](super::CacheLayer::handle).
///
/// Handles, layers and services that come from one layer value share one cache. A purge is remembered, not carried out: it
/// costs the same whatever is stored, and as soon as the call returns it counts for every later lookup of this cache, and
/// for fetches that were forwarded before the call: they are not stored, whenever they end. What is forwarded later
/// is not touched. Memory goes when purged entries are next asked for, or make room. The first purge allocates 4 MiB,
/// one after some 40 000 different names of URLs, prefixes and tags 32 MiB more; that is all.
///
/// With very many names a response can be purged by mistake, which costs one fetch: none that is younger than the last
/// 100 000 different names, of those older than 400 000 one in 5 000 for each of its tags, than 860 000 (ten a second for
/// a day) one in 40, than 2 million most. A name that is purged again and again counts once.
///
/// Over a store of this crate in Redis, a purge reaches every process that shares it, and outlasts all of them:
/// [`Purging`] tells when Redis has it. Over a store of your own it is this process's alone, and does not last.
///
/// ```
/// use std::time::Duration;
///
/// use tower_scale::cache::{CacheLayer, CacheTags, MemoryStore, Purge};
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use tower::{ServiceBuilder, ServiceExt};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let layer = CacheLayer::new(MemoryStore::new(64 << 20)).ttl(Duration::from_secs(60));
/// let cache = layer.handle();
/// let service = ServiceBuilder::new().layer(layer).service_fn(|_: Request<Full<Bytes>>| async {
///     let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
///     response.extensions_mut().insert(CacheTags::new(["product-42"]));
///     Ok::<_, std::convert::Infallible>(response)
/// });
/// # let get = |path: &str| {
/// #     let host = ("host", "shop.example");
/// #     service.clone().oneshot(Request::builder().uri(path).header(host.0, host.1).body(Full::default()).unwrap())
/// # };
/// get("/a").await?;
/// get("/a").await?;
/// get("/b").await?;
/// assert_eq!((cache.stats().hits, cache.stats().misses), (1, 2));
///
/// cache.purge(&Purge::url("http://shop.example/a")?);
/// get("/a").await?;
/// get("/b").await?;
/// assert_eq!((cache.stats().hits, cache.stats().misses), (2, 3));
///
/// cache.purge(&Purge::tag("product-42")?);
/// get("/a").await?;
/// get("/b").await?;
/// assert_eq!((cache.stats().hits, cache.stats().misses), (2, 5));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct CacheHandle {
    shared: Arc<Shared>,
    intake: Arc<Intake>,
    clock: Clock,
}

impl CacheHandle {
    pub(super) fn new(shared: Arc<Shared>, intake: Arc<Intake>, clock: Clock) -> Self {
        Self { shared, intake, clock }
    }

    /// Purges for good: what it names is never served again, not even in place of an error. A [soft](Self::soft_purge)
    /// purge after it changes nothing.
    #[allow(clippy::must_use_candidate, reason = "dropping it recalls nothing")]
    pub fn purge(&self, purge: &Purge) -> Purging {
        let purging = self.remember(purge, false);
        if purge.0 == What::Everything {
            // Nobody finds it any more: this is for the memory.
            self.shared.store.clear();
        }
        purging
    }

    /// Makes what it names stale, as of now: served only where a stale response may be, otherwise validated first.
    #[allow(clippy::must_use_candidate, reason = "dropping it recalls nothing")]
    pub fn soft_purge(&self, purge: &Purge) -> Purging {
        self.remember(purge, true)
    }

    fn remember(&self, purge: &Purge, soft: bool) -> Purging {
        self.shared.metrics.purge(&purge.0);
        let named = self.tell(purge, soft);
        // It is stored without the query parameters that do not count.
        if let What::Url(Url { origin, target }) = &purge.0
            && let Cow::Owned(kept) = self.intake.target(target)
        {
            let kept = self.tell(&Purge(What::Url(Url { origin: origin.clone(), target: kept.into() })), soft);
            return Purging::later(async { named.await.and(kept.await) });
        }
        named
    }

    fn tell(&self, purge: &Purge, soft: bool) -> Purging {
        self.shared.purges.purge(purge, soft, self.clock.now());
        self.shared.fleet.as_ref().map_or_else(Purging::done, |fleet| fleet.spread(purge, soft))
    }

    /// What the cache holds, and what it has done so far.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let (usage, counted) = (self.shared.store.usage(), |outcome| self.shared.metrics.counted(outcome));
        CacheStats {
            entries: usage.map(|usage| usage.entries),
            bytes: usage.map(|usage| usage.bytes),
            hits: counted(Outcome::Hit),
            stale: counted(Outcome::Stale),
            revalidated: counted(Outcome::Revalidated),
            misses: counted(Outcome::Miss),
            collapsed: counted(Outcome::Collapsed),
            bypassed: counted(Outcome::Bypass),
            failed: counted(Outcome::Failed),
        }
    }
}

impl fmt::Debug for CacheHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheHandle").field("store", &self.shared.store).field("stats", &self.stats()).finish()
    }
}

/// What a cache holds, and how many requests it has answered in which way: each request counts once.
///
/// Needs no feature `metrics`. Counts are read one after the other while requests go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Entries in the store, expired and purged ones included until they go. `None`: the store cannot tell.
    pub entries: Option<u64>,
    /// Bytes in the store, with keys and overhead. `None`: it cannot tell.
    pub bytes: Option<u64>,
    /// Answered from the store, fresh.
    pub hits: u64,
    /// Answered from the store with what had expired.
    pub stale: u64,
    /// Answered from the store after the inner service had confirmed it.
    pub revalidated: u64,
    /// Looked up in vain and forwarded.
    pub misses: u64,
    /// Answered with the response to another request.
    pub collapsed: u64,
    /// Forwarded without a look.
    pub bypassed: u64,
    /// Answered with a 502, because the requests that they waited for failed; or with a 504, because nothing stored would
    /// do and the request asked for nothing else (`only-if-cached`, where the policy obeys it).
    pub failed: u64,
}
