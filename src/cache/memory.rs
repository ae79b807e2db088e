//! Responses in this process's memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use super::entry::Record;
use super::key::{BuildPrehashed, Key, Name};
use super::log;
use super::metrics::Usage as Gauges;
use super::store::{Reply, Store, StoreFailure, Usage};
use super::weight;

/// No shard is smaller than this, as long as the whole budget is not: an object has to fit into one shard.
const SHARD_BYTES: u64 = 8 << 20;
const MAX_SHARDS: u64 = 64;

/// The part of the budget that is kept free for bodies which are not complete yet: enough for many of the largest at
/// once, while most of the budget is what is already useful.
const IN_FLIGHT_PART: u64 = 4;
/// The part that is left to the allocator, for what it keeps between small blocks when large ones take their place.
const SPARE_PART: u64 = 8;
/// More would lie idle: the layer fetches 1024 responses at once at most, of 1 MiB each by default.
const MAX_IN_FLIGHT_BYTES: u64 = 256 << 20;

/// A guess of the usual weight; only sizes the table that remembers recently evicted keys.
const USUAL_WEIGHT: u64 = 4 << 10;

/// An entry's slot in `quick_cache`: itself, two links, state and counter. The tables grow by doubling, and keep the
/// slots of what has gone.
const SLOT: usize = 2 * (size_of::<Name>() + size_of::<Stored>() + 24);
/// Its share of the index: 5 bytes per place, never less than seven sixteenths full.
const INDEX: usize = 12;

/// A store in memory, bounded in bytes.
///
/// The budget covers everything: five eighths of it keys, header fields, bodies and tables of what is stored, held
/// exactly at every moment; a quarter (256 MiB at most) the copies of bodies that are not complete yet; an eighth what
/// the allocator keeps of what was freed. Long bodies are mapped and leave nothing behind. So resident memory grows by
/// about the budget, and by no more than 1.25 times that even where small objects make room for large ones (measured
/// with glibc). Not in it: bodies that slow clients are still reading after they have been evicted.
///
/// Eviction is scan-resistant (much like S3-FIFO): a crawler's one-time requests do not push out what is in use.
/// Expired responses go when they are asked for, or when room is needed. No background work. A lookup allocates
/// nothing; the key that the layer makes for it does if it has more than 78 bytes. Keys are hashed with `SipHash` and a
/// seed of the process, so nobody can aim at one place of the tables.
pub struct MemoryStore {
    cache: Cache<Name, Stored, Weigh, BuildPrehashed, Evicting>,
    in_flight: usize,
    gauges: Arc<Gauges>,
    bytes: AtomicU64,
    entries: AtomicU64,
}

/// A record, weighed once: eviction asks often.
#[derive(Clone)]
struct Stored {
    record: Record,
    weight: u64,
}

impl MemoryStore {
    /// A store that takes at most `bytes` bytes.
    ///
    /// Bodies may be as long as a fifth of it, up to 7 MiB; above 1 GiB, as 9 MiB for each GiB, up to 200 MiB.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let in_flight = (bytes / IN_FLIGHT_PART).min(MAX_IN_FLIGHT_BYTES);
        let capacity = bytes - in_flight - bytes / SPARE_PART;
        let shards = (capacity / SHARD_BYTES).clamp(1, MAX_SHARDS);
        // quick_cache rounds up to a power of two; a shard must not become smaller than meant.
        let shards = if shards.is_power_of_two() { shards } else { shards.next_power_of_two() / 2 };
        let items = usize::try_from(capacity / USUAL_WEIGHT).unwrap_or(usize::MAX).clamp(16, 1 << 24);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).unwrap_or(1))
            .estimated_items_capacity(items.max(32 * usize::try_from(shards).unwrap_or(1)))
            .weight_capacity(capacity)
            .build();
        #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "both required options are set above")]
        let options = options.expect("capacities are set");
        let gauges = Arc::new(Gauges::new());
        let cache = Cache::with_options(options, Weigh, BuildPrehashed::default(), Evicting(gauges.clone()));
        let in_flight = usize::try_from(in_flight).unwrap_or(usize::MAX);
        Self { cache, in_flight, gauges, bytes: AtomicU64::new(0), entries: AtomicU64::new(0) }
    }

    fn measure(&self) -> Usage {
        Usage { entries: self.cache.len() as u64, bytes: self.cache.weight() }
    }

    /// Several stores add up in the gauges: each reports how much it has changed.
    fn report(&self) {
        let Usage { entries, bytes } = self.measure();
        self.gauges.bytes.increment(change(self.bytes.swap(bytes, Ordering::Relaxed), bytes));
        self.gauges.entries.increment(change(self.entries.swap(entries, Ordering::Relaxed), entries));
    }
}

#[allow(clippy::cast_precision_loss, reason = "exact up to 2^53 bytes")]
fn change(before: u64, after: u64) -> f64 {
    after as f64 - before as f64
}

impl Store for MemoryStore {
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        Reply::Now(Ok(self.cache.get(key).map(|stored| stored.record)))
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        let weight = (SLOT + INDEX + weight::key(key) + record.weight()) as u64;
        self.cache.insert(Name::from(key), Stored { record, weight });
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
        if self.cache.remove_if(key, |stored| stored.record.is_same(record)).is_some() {
            self.report();
        }
    }

    fn clear(&self) {
        self.cache.clear();
        self.report();
    }

    fn usage(&self) -> Option<Usage> {
        Some(self.measure())
    }

    /// What fits into a shard and, while it is collected, into the part for that.
    fn max_object_bytes(&self) -> usize {
        // quick_cache admits at most 97 % of a shard; the rest is for key and fields.
        let fits = usize::try_from(self.cache.shard_capacity() / 100 * 97).unwrap_or(usize::MAX);
        fits.saturating_sub(fits / 64 + 1024).min(log::longest(self.in_flight))
    }

    fn in_flight_bytes(&self) -> usize {
        self.in_flight
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.gauges.bytes.increment(change(*self.bytes.get_mut(), 0));
        self.gauges.entries.increment(change(*self.entries.get_mut(), 0));
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage { entries, bytes } = self.measure();
        f.debug_struct("MemoryStore")
            .field("capacity", &self.cache.capacity())
            .field("bytes", &bytes)
            .field("entries", &entries)
            .finish()
    }
}

/// Counts what had to make room. It goes after the lock, since with it may go a body.
#[derive(Clone)]
struct Evicting(Arc<Gauges>);

impl Lifecycle<Name, Stored> for Evicting {
    type RequestState = Vec<(Name, Stored)>;

    fn on_evict(&self, gone: &mut Self::RequestState, key: Name, stored: Stored) {
        self.0.evictions.increment(1);
        gone.push((key, stored));
    }
}

#[derive(Clone, Copy, Debug)]
struct Weigh;

impl Weighter<Name, Stored> for Weigh {
    fn weight(&self, _: &Name, stored: &Stored) -> u64 {
        stored.weight
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::entry::tests::head;
    use super::super::entry::{Entry, Kind};
    use super::*;

    fn key(path: &str) -> Key {
        Key::new(path.as_bytes()).unwrap()
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
        for bytes in [64 << 10, 1 << 20, 8 << 20, 9 << 20, 16 << 20, 30 << 20, 47 << 20, 64 << 20, 1 << 30, 1 << 40] {
            let store = MemoryStore::new(bytes);
            let largest = store.max_object_bytes();
            assert!(
                largest as u64 >= (bytes / 5).min(7 << 20).max((bytes >> 30) * (9 << 20)).min(200 << 20),
                "{largest} of {bytes}"
            );
            assert!(log::cost_of(largest) <= store.in_flight_bytes());
            let _ = store.put(&key("/large"), record(largest));
            assert!(get(&store, &key("/large")).is_some(), "{largest} of {bytes}");
            assert!(store.in_flight_bytes() as u64 + store.cache.capacity() <= bytes + 64, "{bytes}");
        }
    }

    #[test]
    fn what_is_too_large_leaves_nothing_older_behind() {
        let store = MemoryStore::new(1 << 20);
        let _ = store.put(&key("/"), record(1));
        let _ = store.put(&key("/"), record(1 << 20));
        assert!(get(&store, &key("/")).is_none());
    }

    #[test]
    fn usage_counts_and_clear_forgets() {
        let store = MemoryStore::new(1 << 20);
        (0..3).for_each(|n| drop(store.put(&key(&format!("/{n}")), record(1000))));
        let usage = store.usage().unwrap();
        assert!(usage.entries == 3 && usage.bytes > 3000 && usage.bytes < 6500, "{usage:?}");
        store.clear();
        assert_eq!(store.usage().unwrap(), Usage::default());
        assert!(get(&store, &key("/0")).is_none());
    }

    /// Both while the store is only filling up, and once it is full.
    #[test]
    fn a_scan_of_ten_times_the_capacity_leaves_most_of_what_is_in_use() {
        const HOT: usize = 500;
        let store = MemoryStore::new(16 << 20);
        let capacity = usize::try_from(store.cache.capacity()).unwrap() / 8192;
        let hot: Vec<_> = (0..HOT).map(|n| key(&format!("/hot/{n}"))).collect();
        for round in 0..3 {
            for key in &hot {
                if get(&store, key).is_none() {
                    let _ = store.put(key, record(7000));
                }
            }
            for n in 0..10 * capacity {
                let key = key(&format!("/scan/{round}/{n}"));
                if get(&store, &key).is_none() {
                    let _ = store.put(&key, record(7000));
                }
            }
            let left = hot.iter().filter(|key| get(&store, key).is_some()).count();
            assert!(round == 0 || left > HOT * 9 / 10, "{left} of {HOT} in round {round}");
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
