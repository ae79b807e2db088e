//! Responses in this process's memory.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::entry::{Entry, Kind, Record};
use super::key::{BuildPrehashed, Key};
use super::metrics::Usage;
use super::store::Store;
use super::store::{Reply, StoreFailure};

/// No shard is smaller than this, as long as the whole budget is not: an object has to fit into one shard.
const SHARD_BYTES: u64 = 8 << 20;
const MAX_SHARDS: u64 = 64;

/// A guess of the usual weight; only sizes the table that remembers recently evicted keys.
const USUAL_WEIGHT: u64 = 4 << 10;

/// Beside its own bytes, what one entry costs: table slots, shared pointers, the head.
const ENTRY_OVERHEAD: u64 = 384;
/// The same for one field: its slot in the header map and its share of the index.
const FIELD_OVERHEAD: u64 = 128;

/// A store in memory, bounded in bytes.
///
/// The bound covers keys, header fields, bodies and an allowance for the tables, and holds exactly, at every moment.
/// Eviction is scan-resistant (a Clock-PRO variant): a crawler's one-time requests do not push out what is in use.
/// Expired responses go when they are asked for, or when room is needed. No background work.
pub struct MemoryStore {
    cache: Cache<Key, Record, Weigh, BuildPrehashed>,
    usage: Usage,
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl MemoryStore {
    /// A store of at most `bytes` bytes.
    ///
    /// One object may take about a shard of it: everything up to 8 MiB, an equal part of 8 to 16 MiB up to 1 GiB, and
    /// a sixty-fourth beyond.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let shards = (bytes / SHARD_BYTES).clamp(1, MAX_SHARDS);
        // quick_cache rounds up to a power of two; a shard must not become smaller than meant.
        let shards = if shards.is_power_of_two() { shards } else { shards.next_power_of_two() / 2 };
        let items = usize::try_from(bytes / USUAL_WEIGHT).unwrap_or(usize::MAX).clamp(16, 1 << 24);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).unwrap_or(1))
            .estimated_items_capacity(items.max(32 * usize::try_from(shards).unwrap_or(1)))
            .weight_capacity(bytes)
            .build();
        #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "both required options are set above")]
        let options = options.expect("capacities are set");
        let cache = Cache::with_options(options, Weigh, BuildPrehashed::default(), DefaultLifecycle::default());
        Self { cache, usage: Usage::new(), bytes: AtomicU64::new(0), entries: AtomicU64::new(0) }
    }

    /// Several stores add up in the gauges: each reports how much it has changed.
    fn report(&self) {
        let (bytes, entries) = (self.cache.weight(), self.cache.len() as u64);
        self.usage.bytes.increment(change(self.bytes.swap(bytes, Ordering::Relaxed), bytes));
        self.usage.entries.increment(change(self.entries.swap(entries, Ordering::Relaxed), entries));
    }
}

#[allow(clippy::cast_precision_loss, reason = "exact up to 2^53 bytes")]
fn change(before: u64, after: u64) -> f64 {
    after as f64 - before as f64
}

impl Store for MemoryStore {
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        Reply::Now(Ok(self.cache.get(key)))
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        self.cache.insert(key.clone(), record);
        self.report();
        Reply::Now(Ok(()))
    }

    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
        if self.cache.remove(key).is_some() {
            self.report();
        }
        Reply::Now(Ok(()))
    }

    fn discard(&self, key: &Key, record: &Record) {
        // Only the very record that was seen to be expired: a fresh one may have come in between.
        if self.cache.remove_if(key, |stored| stored.is_same(record)).is_some() {
            self.report();
        }
    }

    fn max_object_bytes(&self) -> usize {
        // quick_cache admits at most 97 % of a shard; the rest is for key and fields.
        let fits = self.cache.shard_capacity() / 100 * 97;
        usize::try_from(fits.saturating_sub(fits / 64 + ENTRY_OVERHEAD)).unwrap_or(usize::MAX)
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.usage.bytes.increment(change(*self.bytes.get_mut(), 0));
        self.usage.entries.increment(change(*self.entries.get_mut(), 0));
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("capacity", &self.cache.capacity())
            .field("bytes", &self.cache.weight())
            .field("entries", &self.cache.len())
            .finish()
    }
}

#[derive(Clone, Copy, Debug)]
struct Weigh;

impl Weighter<Key, Record> for Weigh {
    fn weight(&self, key: &Key, record: &Record) -> u64 {
        let content = match &record.0 {
            Kind::Response(entry) => response_weight(entry),
            Kind::Vary(spec) => spec.names.iter().map(|name| 32 + name.as_str().len() as u64).sum(),
        };
        ENTRY_OVERHEAD + key.as_bytes().len() as u64 + content
    }
}

/// Stored bodies own exactly their bytes, so length is capacity.
fn response_weight(entry: &Entry) -> u64 {
    let fields: u64 = entry.head.headers.iter().map(|(name, value)| field_weight(name.as_str(), value.len())).sum();
    fields + entry.body.len() as u64
}

fn field_weight(name: &str, value: usize) -> u64 {
    FIELD_OVERHEAD + name.len() as u64 + value as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use bytes::Bytes;
    use http::{Extensions, HeaderMap};
    use proptest::prelude::*;

    use super::super::entry::tests::head;
    use super::*;

    fn key(path: &str) -> Key {
        let headers = HeaderMap::from_iter([(http::header::HOST, "a".parse().unwrap())]);
        Key::primary(&path.parse().unwrap(), &headers, &Extensions::new()).unwrap()
    }

    fn record(length: usize) -> Record {
        let now = SystemTime::now();
        let head = head(now, now + Duration::from_secs(60));
        Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: Bytes::from(vec![0; length]) })))
    }

    fn get(store: &MemoryStore, key: &Key) -> Option<Record> {
        match store.get(key) {
            Reply::Now(found) => found.unwrap(),
            Reply::Later(_) => panic!("memory never waits"),
        }
    }

    #[test]
    fn the_largest_object_fits_whatever_the_budget() {
        for bytes in [64 << 10, 1 << 20, 8 << 20, 9 << 20, 16 << 20, 47 << 20, 64 << 20] {
            let store = MemoryStore::new(bytes);
            let largest = store.max_object_bytes();
            assert!(largest as u64 * 100 >= bytes.min(SHARD_BYTES) * 90, "{largest} of {bytes}");
            let _ = store.put(&key("/large"), record(largest));
            assert!(get(&store, &key("/large")).is_some(), "{largest} of {bytes}");
        }
    }

    #[test]
    fn expired_records_go_only_if_they_are_still_there() {
        let store = MemoryStore::new(1 << 20);
        let (old, new) = (record(1), record(1));
        let _ = store.put(&key("/"), old.clone());
        let _ = store.put(&key("/"), new.clone());
        store.discard(&key("/"), &old);
        assert!(get(&store, &key("/")).is_some());
        store.discard(&key("/"), &new);
        assert!(get(&store, &key("/")).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn never_above_its_bound(
            bytes in 1u64..200_000,
            puts in proptest::collection::vec((0u8..40, 0usize..60_000), 1..200),
        ) {
            let store = MemoryStore::new(bytes);
            for (name, length) in puts {
                let _ = store.put(&key(&format!("/{name}")), record(length));
                prop_assert!(store.cache.weight() <= bytes);
            }
        }
    }
}
