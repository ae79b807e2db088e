//! What all parts of one store over Redis share.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::broad::Broad;
use super::channel::Channel;
use super::lease::Waiting;
use super::message::{Message, News};
use super::metrics::Metrics;
use super::names::Names;
use super::put::Writing;
use super::scripts::Scripts;
use super::tags::Tags;
use super::writes::Writes;
use crate::cache::entry::{Kind, Record};
use crate::cache::fleet::{Bearings, Claim, Control, End, Fence, Find, Fleet, Purging};
use crate::cache::key::Key;
use crate::cache::memory::MemoryStore;
use crate::cache::purge::Purge;
use crate::cache::purges::Purges;
use crate::cache::store::StoreFailure;
use crate::cache::stripes::Stripes;
use crate::redis::{Kind as Trouble, Redis, StoreError};

/// Larger bodies would hold up everything else on the connection.
const MAX_OBJECT_BYTES: usize = 1 << 20;
/// How long what memory holds is used after the channel was lost.
const DISCONNECTED_TTL: Duration = Duration::from_secs(5);
/// For what responses vary by, where there is no memory for the responses: a thousand URLs or so.
const SPEC_BYTES: u64 = 4 << 20;

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(super) struct Hub {
    pub(super) redis: Redis,
    pub(super) names: Names,
    pub(super) scripts: Scripts,
    /// Tells this store's messages from those of others.
    pub(super) sender: u64,
    /// What this process knows of purges, its own and others'; the cache asks it at every use.
    pub(super) purges: Arc<Purges>,
    /// Invalidations, likewise.
    pub(super) voided: Arc<Stripes>,
    /// Counts messages that concern a key: what was read before the last one is not kept in memory.
    pub(super) touched: Stripes,
    /// In front of Redis. Without a tier there, it holds only by what URLs' responses vary, so that a hit is one round trip.
    pub(super) memory: OnceLock<Arc<MemoryStore>>,
    pub(super) tags: Tags,
    pub(super) broad: Broad,
    pub(super) channel: Channel,
    pub(super) waiting: Waiting,
    pub(super) writes: Writes,
    /// What this process is changing in Redis, per stripe of keys.
    pub(super) writing: Writing,
    pub(super) metrics: Metrics,
    /// Memory holds responses too.
    pub(super) tiered: bool,
    max_object_bytes: AtomicUsize,
    disconnected_ttl: AtomicU64,
}

impl Hub {
    pub(super) fn new(redis: Redis) -> Arc<Self> {
        Self::with(redis, None)
    }

    /// With this memory in front.
    pub(super) fn tiered(redis: Redis, memory: Arc<MemoryStore>) -> Arc<Self> {
        Self::with(redis, Some(memory))
    }

    fn with(redis: Redis, memory: Option<Arc<MemoryStore>>) -> Arc<Self> {
        let root = redis.key("cache", b"");
        let prefix = std::str::from_utf8(root.strip_suffix(b"cache:").unwrap_or(&root)).unwrap_or_default();
        let (purges, voided) = (Arc::new(Purges::new()), Arc::new(Stripes::new()));
        Arc::new(Self {
            names: Names::new(prefix),
            redis,
            scripts: Scripts::new(),
            sender: RandomState::new().hash_one(0),
            tags: Tags::new(purges.clone()),
            purges,
            touched: Stripes::new(),
            tiered: memory.is_some(),
            memory: memory.map_or_else(OnceLock::new, OnceLock::from),
            broad: Broad::default(),
            channel: Channel::new(voided.clone()),
            voided,
            waiting: Waiting::new(),
            writes: Writes::new(),
            writing: Writing::new(),
            metrics: Metrics::new(),
            max_object_bytes: AtomicUsize::new(MAX_OBJECT_BYTES),
            disconnected_ttl: AtomicU64::new(micros(DISCONNECTED_TTL)),
        })
    }

    /// Where such a record is kept.
    pub(super) fn memory_for(&self, record: &Record) -> Option<&MemoryStore> {
        let kept = matches!(record.0, Kind::Vary(_)) || self.tiered;
        kept.then(|| &**self.memory.get_or_init(|| Arc::new(MemoryStore::new(SPEC_BYTES))))
    }

    pub(super) fn max_object_bytes(&self) -> usize {
        self.max_object_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn set_max_object_bytes(&self, bytes: usize) {
        self.max_object_bytes.store(bytes, Ordering::Relaxed);
    }

    /// How long what memory holds is used after the channel was lost.
    pub(super) fn disconnected_ttl(&self) -> Duration {
        Duration::from_micros(self.disconnected_ttl.load(Ordering::Relaxed))
    }

    pub(super) fn set_disconnected_ttl(&self, bound: Duration) {
        self.disconnected_ttl.store(micros(bound), Ordering::Relaxed);
    }

    pub(super) fn message(&self, news: News) -> Vec<u8> {
        Message { sender: self.sender, news }.encode()
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// In this crate's words.
pub(super) fn trouble(error: &StoreError) -> StoreFailure {
    if error.kind() == Trouble::Timeout { StoreFailure::timed_out() } else { StoreFailure::unavailable() }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("redis", &self.redis)
            .field("memory", &self.memory.get())
            .field("max_object_bytes", &self.max_object_bytes())
            .finish_non_exhaustive()
    }
}

impl Fleet for Arc<Hub> {
    fn bearings(&self) -> Bearings {
        Bearings { purges: self.purges.clone(), voided: self.voided.clone() }
    }

    fn recall(&self, key: &Key) -> Option<Record> {
        Hub::recall(self, key)
    }

    fn look(&self, key: &Key) -> Later<Result<Find, StoreFailure>> {
        Box::pin(Hub::look(self.clone(), key.clone()))
    }

    fn put(&self, key: &Key, record: Record, fence: Fence) -> Later<Result<bool, StoreFailure>> {
        Box::pin(Hub::put(self, key, record, Some(fence)))
    }

    fn invalidate(&self, primary: &Key) -> Later<Result<(), StoreFailure>> {
        Box::pin(Hub::invalidate(self, primary))
    }

    fn spread(&self, purge: &Purge, soft: bool) -> Purging {
        Purging::later(Channel::spread(self, purge.clone(), soft))
    }

    fn claim(&self, key: &Key, control: Control, patience: Duration) -> Later<Claim> {
        Box::pin(Hub::claim(self.clone(), key.clone(), control, patience))
    }

    fn end(&self, key: &Key, token: u128, how: End) {
        Hub::end(self, key, token, how);
    }

    fn longest(&self) -> usize {
        self.max_object_bytes()
    }

    fn remembers(&self) -> bool {
        self.tiered
    }
}
