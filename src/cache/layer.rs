//! The layer and what its clones share.

use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Extensions, HeaderName, Response};
use tower_layer::Layer;

use super::clock::Clock;
use super::directives::MAX_DELTA_SECONDS;
use super::fleet::{Bearings, Fleet};
use super::flight::Flights;
use super::handle::CacheHandle;
use super::intake::Intake;
use super::log::Budget;
use super::metrics::Metrics;
use super::policy::CachePolicy;
use super::purges::Purges;
use super::service::Cache;
use super::status;
use super::store::Store;
use crate::refusal::{Refusal, Refuse};

const DEFAULT_MAX_OBJECT_BYTES: usize = 1 << 20;
/// What does not exist may soon.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// As good as for ever, and clocks can count it (RFC 9111 §1.2.2): 68 years.
const LONGEST: Duration = Duration::from_secs(MAX_DELTA_SECONDS);

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
    pub(super) store: Box<dyn Store>,
    /// What the store shares with other processes, if it does.
    pub(super) fleet: Option<Arc<dyn Fleet>>,
    pub(super) flights: Arc<Flights>,
    pub(super) purges: Arc<Purges>,
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
    pub(super) policy: CachePolicy,
    pub(super) intake: Arc<Intake>,
    pub(super) clock: Clock,
    pub(super) ttl: Option<Duration>,
    /// The largest part of a lifetime that is taken off at random.
    pub(super) jitter: f64,
    pub(super) negative_ttl: Option<Duration>,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
    /// XFetch's beta; 0 switches it off.
    pub(super) early_refresh: f64,
    pub(super) fetch_timeout: Option<Duration>,
    /// Cookies do not count as credentials.
    pub(super) share_despite_cookies: bool,
    pub(super) max_object_bytes: usize,
    pub(super) refuse: Refuse,
}

impl Config {
    /// Whether `Cookie` counts as `Authorization` does.
    pub(super) fn guards_cookies(&self) -> bool {
        self.policy.guard_cookies && !self.share_despite_cookies
    }
}

impl CacheLayer {
    /// A cache over `store` that stores what states its own freshness.
    pub fn new(store: impl Store) -> Self {
        status::prepare();
        let metrics = Arc::new(Metrics::new());
        let fleet = store.fleet();
        let Bearings { purges, voided } = fleet.as_ref().map_or_else(Bearings::default, |fleet| fleet.bearings());
        let shared = Shared {
            budget: Arc::new(Budget::new(store.in_flight_bytes())),
            store: Box::new(store),
            fleet,
            flights: Arc::new(Flights::new(metrics.clone(), voided)),
            purges,
            fills: AtomicUsize::new(0),
            metrics,
        };
        let config = Config {
            policy: CachePolicy::safe(),
            intake: Arc::default(),
            clock: Clock::default(),
            ttl: None,
            jitter: 0.0,
            negative_ttl: None,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            early_refresh: 1.0,
            fetch_timeout: None,
            share_despite_cookies: false,
            max_object_bytes: DEFAULT_MAX_OBJECT_BYTES,
            refuse: Refuse::default(),
        };
        Self { shared: Arc::new(shared), config }
    }

    /// What purges this cache and counts what it does: of this layer, its clones and their services.
    #[must_use]
    pub fn handle(&self) -> CacheHandle {
        CacheHandle::new(self.shared.clone(), self.config.intake.clone(), self.config.clock.clone())
    }

    /// Chooses what is stored and reused where RFC 9111 leaves a choice (default: [`CachePolicy::safe`]).
    #[must_use]
    pub fn policy(mut self, policy: CachePolicy) -> Self {
        self.config.policy = policy;
        self
    }

    /// Serves what has expired for this long, while one fetch renews it in the background (RFC 5861 §3), where the
    /// response does not say `stale-while-revalidate` itself (default: not at all).
    ///
    /// Never what says `must-revalidate`, `proxy-revalidate`, `s-maxage` or `no-cache`, nor what was stale when it came
    /// (`max-age=0`), nor what is stored by [`negative_ttl`](Self::negative_ttl).
    #[must_use]
    pub fn stale_while_revalidate(mut self, period: Duration) -> Self {
        self.config.stale_while_revalidate = period.min(LONGEST);
        self
    }

    /// Serves what has expired for this long instead of a 5xx, an error of the inner service or a
    /// [timeout](Self::fetch_timeout) (RFC 5861 §4), where the response does not say `stale-if-error` itself (default:
    /// not at all).
    ///
    /// Never what says `must-revalidate`, `proxy-revalidate`, `s-maxage` or `no-cache`, nor what is stored by
    /// [`negative_ttl`](Self::negative_ttl).
    #[must_use]
    pub fn stale_if_error(mut self, period: Duration) -> Self {
        self.config.stale_if_error = period.min(LONGEST);
        self
    }

    /// Renews what is asked for often shortly before it expires, in the background, so that nobody waits when it does
    /// (default: 1; 0 switches it off; less than 0, or what is no number, counts as 0).
    ///
    /// A hit at `now` begins a fetch if `now + cost * beta * -ln(random) >= fresh_until`: `cost` is the time that the
    /// stored response's own fetch took, from its request's forward to the end of its body, `random` a number from 0 to 1
    /// (XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015). By chance,
    /// so that of many hits at once, in many processes, few begin one; and so that what is hardly asked for just
    /// expires. With a beta of 1, a hit that comes as long before the end as a fetch takes begins one in 37 of 100 cases;
    /// more begins sooner, less later. Never sooner than 20 times the cost before the end.
    ///
    /// The hit is answered at once and like any other. There is one fetch per key at a time, none for 1 s after one that
    /// stored nothing, and one that fails leaves what is stored as it is. A response that takes longer to fetch than it
    /// lives (by a [`CacheTtl`](super::CacheTtl) or [`ttl`](Self::ttl); by `max-age` it is stale when it comes) and is asked
    /// for all the time is being fetched all the time, one fetch after the other.
    ///
    /// Only a plain GET without credentials begins one: no range, no condition. Errors and parts are left to expire.
    #[must_use]
    pub fn early_refresh(mut self, beta: f64) -> Self {
        self.config.early_refresh = if beta > 0.0 { beta } else { 0.0 };
        self
    }

    /// Counts a fetch whose head takes longer as failed, for those who may have a stale response instead (default: no
    /// limit). Nobody else gets an error by it: the fetch goes on, for 30 s at most, where its response may be stored and
    /// there is a place among the fetches; otherwise it ends, as if its client had left.
    #[must_use]
    pub fn fetch_timeout(mut self, timeout: Duration) -> Self {
        self.config.fetch_timeout = Some(timeout.min(LONGEST));
        self
    }

    /// Takes up to this part of every lifetime off at random (0 to 1; default: 0; what is no number counts as 0), so that
    /// what was stored together does not expire together.
    #[must_use]
    pub fn ttl_jitter(mut self, part: f64) -> Self {
        self.config.jitter = if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) };
        self
    }

    /// Stores 404 and 410 that say nothing of freshness themselves for `ttl`, at most 10 s (default: not at all).
    #[must_use]
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.config.negative_ttl = Some(ttl.min(MAX_NEGATIVE_TTL));
        self
    }

    /// Stores and reuses responses to requests with `Cookie` as if they had none (default: only with permission in the
    /// response).
    ///
    /// For routes whose handlers ignore cookies.
    #[must_use]
    pub fn share_despite_cookies(mut self) -> Self {
        self.config.share_despite_cookies = true;
        self
    }

    /// Ignores the cookies of these names, compared byte for byte: they are no credentials, they select nothing, and no
    /// handler whose response may be stored sees them. Adds up over calls.
    ///
    /// For cookies that only scripts read, as analytics sets them: `.ignore_cookies(["_ga", "_gid"])`.
    #[must_use]
    pub fn ignore_cookies(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Arc::make_mut(&mut self.config.intake).ignored_cookies.extend(names.into_iter().map(Into::into));
        self
    }

    /// Keeps only the query parameters of these names, in the key and in what a handler sees whose response may be
    /// stored (default: the whole query). Adds up over calls.
    ///
    /// Parameters are what stands between `&`; names are compared byte for byte, undecoded. What is kept keeps its
    /// bytes and its order, so `?a=1&b=2` and `?b=2&a=1` stay two keys. A purge of a URL by this layer's
    /// [handle](Self::handle) finds what is stored for it, whatever other parameters it names.
    #[must_use]
    pub fn query_parameters(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let parameters = &mut Arc::make_mut(&mut self.config.intake).parameters;
        parameters.get_or_insert_default().extend(names.into_iter().map(Into::into));
        self
    }

    /// Puts a request field into the key: it then reaches the handler also if it is one of those that are
    /// [taken out](super#what-handlers-see) by default. `Host` is in every key already.
    ///
    /// Unlike a field that `Vary` names, it makes two URLs of one: each value counts as another URL, a request with an
    /// unsafe method invalidates that of its own value only, and no bound on variants applies. A purge of the URL takes
    /// them all.
    #[must_use]
    pub fn key_header(mut self, name: HeaderName) -> Self {
        Arc::make_mut(&mut self.config.intake).key_header(name);
        self
    }

    /// Leaves `Accept-Encoding` to handlers as it came, for codings beside `zstd`, `br`, `gzip` and `deflate`, or for
    /// weights.
    ///
    /// By default it is reduced to those of the four that the client accepts, in that order (`identity` if none, and
    /// `identity;q=0` added where the client refuses the plain body): a response that varies by it has as many
    /// variants as there are sets of codings, not as there are spellings.
    #[must_use]
    pub fn accept_encoding_as_is(mut self) -> Self {
        Arc::make_mut(&mut self.config.intake).accept_encoding_as_is = true;
        self
    }

    /// Reckons freshness by this clock (default: the system's), for tests.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.config.clock = Clock::new(now);
        self
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

    /// Replaces the response to a request whose shared fetch failed three times (502), or that forbids to forward it and
    /// finds nothing stored (504; default: problem documents).
    #[must_use]
    pub fn refusal(mut self, hook: impl Fn(&Refusal) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.config.refuse = Refuse::with(hook);
        self
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Cache<S> {
        Cache::new(inner, self.shared.clone(), Arc::new(self.config.clone()))
    }
}

impl fmt::Debug for CacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheLayer").field("store", &self.shared.store).field("config", &self.config).finish()
    }
}
