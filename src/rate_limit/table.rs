//! What every client owes, in a fixed number of slots.
//!
//! One slot is one word: 20 bits of the client's hash (the tag) and the 44-bit TAT. Eight slots, one cache line, form the
//! bucket that the rest of the hash chooses. A request changes at most one slot, with one compare-and-swap.
//!
//! A client that is not in its bucket takes the slot with the smallest TAT. Where that debt is paid, the slot was free.
//! Where it is not, the bucket is full of debtors, and the newcomer *inherits* the debt. So the smallest TAT of a bucket
//! never falls: a client that was pushed out and comes back inherits at least what it owed. A flood of fresh clients can
//! make the limiter too strict for its like, but never wash out anybody's debt, and never take more memory.
//!
//! No client ever has two slots. A slot's TAT only grows, so a reader that sees an older word of a slot sees a smaller
//! TAT. Suppose B inserts a client into slot i without having seen A's insertion of it into slot j. Then A saw at most
//! the TAT of i that B replaces, and B at most the TAT of j that A replaced; each chose the smaller one, so all four are
//! equal, and then both chose the same slot, the leftmost: one of the two swaps failed and that thread looked again.
//! The argument needs only the order of changes to each single word, so relaxed atomics are enough. It also needs the
//! tag to be matched before anybody looks at the time, for threads differ in what time they think it is.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::clock::{LAST_TICK, TIME_BITS};
use super::gcra::{self, Decision, Limit};

const WAYS: usize = 8;
/// A chunk of buckets fills a page of memory.
const BUCKETS_PER_CHUNK: usize = 64;
const SLOTS_PER_CHUNK: usize = BUCKETS_PER_CHUNK * WAYS;

#[derive(Default)]
#[repr(align(64))]
struct Bucket([AtomicU64; WAYS]);

/// The slots, in chunks that are allocated when they are first used: a table of which little is used takes little.
pub(crate) struct Table {
    chunks: Box<[OnceLock<Box<[Bucket; BUCKETS_PER_CHUNK]>>]>,
}

/// What became of a request, and of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) admitted: bool,
    /// What the client owes now.
    pub(crate) debt: u64,
    /// Whether a slot was taken from a client that still owed something.
    pub(crate) evicted: bool,
}

impl Table {
    /// At least `slots` slots, rounded up to whole pages of 512.
    pub(crate) fn new(slots: usize) -> Self {
        let chunks = slots.div_ceil(SLOTS_PER_CHUNK).max(1);
        Self { chunks: std::iter::repeat_with(OnceLock::new).take(chunks).collect() }
    }

    /// How many clients fit.
    pub(crate) fn slots(&self) -> usize {
        self.chunks.len() * SLOTS_PER_CHUNK
    }

    /// Charges the client with this hash for a request of `cost`, if `limit` allows it.
    pub(crate) fn charge(&self, hash: u64, limit: Limit, now: u64, cost: u64) -> Outcome {
        let Bucket(slots) = self.bucket(hash);
        let tag = tag(hash);
        loop {
            let (slot, word) = find(slots, tag);
            let tat = word & LAST_TICK;
            let Decision::Admitted { tat: next } = gcra::decide(limit, tat, now, cost) else {
                return Outcome { admitted: false, debt: gcra::debt(limit, tat, now), evicted: false };
            };
            let next = next.min(LAST_TICK);
            if slot.compare_exchange_weak(word, (tag << TIME_BITS) | next, Relaxed, Relaxed).is_ok() {
                let evicted = word >> TIME_BITS != tag && tat > now;
                return Outcome { admitted: true, debt: gcra::debt(limit, next, now), evicted };
            }
        }
    }

    #[allow(clippy::indexing_slicing, reason = "both indices are below the length that they are scaled or reduced to")]
    fn bucket(&self, hash: u64) -> &Bucket {
        // The low half of the hash, scaled to the number of buckets: any number will do, not only powers of two.
        let scaled = (u128::from(hash & u64::from(u32::MAX)) * (self.chunks.len() * BUCKETS_PER_CHUNK) as u128) >> 32;
        let index = usize::try_from(scaled).unwrap_or_default();
        let chunk =
            self.chunks[index / BUCKETS_PER_CHUNK].get_or_init(|| Box::new(std::array::from_fn(|_| Bucket::default())));
        &chunk[index % BUCKETS_PER_CHUNK]
    }
}

/// The high bits, which the choice of the bucket leaves alone. Zero marks slots that nobody ever used.
fn tag(hash: u64) -> u64 {
    (hash >> TIME_BITS).max(1)
}

/// The client's slot, else the leftmost of those with the smallest TAT.
fn find(slots: &[AtomicU64; WAYS], tag: u64) -> (&AtomicU64, u64) {
    let [first, others @ ..] = slots;
    let mut found = (first, first.load(Relaxed));
    for slot in others {
        if found.1 >> TIME_BITS == tag {
            break;
        }
        let word = slot.load(Relaxed);
        if word >> TIME_BITS == tag || word & LAST_TICK < found.1 & LAST_TICK {
            found = (slot, word);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::hash::{BuildHasher, RandomState};
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: Limit = Limit { interval: 10, capacity: 50 };

    /// Hashes that all choose the first bucket.
    fn in_one_bucket(client: u64) -> u64 {
        (client + 1) << TIME_BITS
    }

    #[test]
    fn a_table_takes_memory_only_where_it_is_used() {
        let table = Table::new(1 << 20);
        assert_eq!(table.slots(), 1 << 20);
        for client in 0..100 {
            table.charge(in_one_bucket(client), LIMIT, 1, 1);
        }
        assert_eq!(table.chunks.iter().filter(|chunk| chunk.get().is_some()).count(), 1);
        assert_eq!(size_of::<Bucket>(), 64);
        assert_eq!(Table::new(0).slots(), 512);
        assert_eq!(Table::new(513).slots(), 1024);
    }

    #[test]
    fn every_hash_has_a_bucket_and_every_bucket_is_chosen() {
        for slots in [512, 1024 * 3, 1 << 16] {
            let table = Table::new(slots);
            let hasher = RandomState::new();
            for hash in (0..slots as u64 * 4).map(|n| hasher.hash_one(n)).chain([0, u64::MAX]) {
                table.charge(hash, LIMIT, 1, 1);
            }
            let used = table.chunks.iter().flat_map(|chunk| chunk.get().unwrap().iter());
            let empty = used.filter(|bucket| bucket.0.iter().all(|slot| slot.load(Relaxed) == 0)).count();
            assert_eq!(empty, 0, "of {slots} slots");
        }
    }

    #[test]
    fn a_newcomer_to_a_full_bucket_inherits_the_smallest_debt() {
        let table = Table::new(0);
        for client in 0..8 {
            for _ in 0..=client.min(4) {
                assert!(table.charge(in_one_bucket(client), LIMIT, 100, 1).admitted);
            }
        }
        let newcomer = table.charge(in_one_bucket(8), LIMIT, 100, 1);
        assert_eq!(newcomer, Outcome { admitted: true, debt: 20, evicted: true });
        let evicted = table.charge(in_one_bucket(0), LIMIT, 100, 1);
        assert_eq!(evicted, Outcome { admitted: true, debt: 30, evicted: true }, "it comes back owing no less");
        let free = table.charge(in_one_bucket(9), LIMIT, 1000, 1);
        assert_eq!(free, Outcome { admitted: true, debt: 10, evicted: false });
    }

    #[test]
    fn a_refused_newcomer_pushes_nobody_out() {
        let table = Table::new(0);
        for client in 0..8 {
            for _ in 0..5 {
                table.charge(in_one_bucket(client), LIMIT, 100, 1);
            }
        }
        assert_eq!(
            table.charge(in_one_bucket(8), LIMIT, 100, 1),
            Outcome { admitted: false, debt: 50, evicted: false }
        );
        assert!(table.charge(in_one_bucket(0), LIMIT, 110, 1).admitted);
    }

    #[test]
    fn time_beyond_the_last_tick_does_no_harm() {
        let table = Table::new(0);
        for _ in 0..20 {
            assert!(table.charge(in_one_bucket(0), LIMIT, LAST_TICK, 1).admitted);
        }
    }

    proptest! {
        /// With any number of clients in one bucket, nobody gets what exact GCRA denies it; with few, all get all.
        #[test]
        fn never_admits_what_exact_gcra_denies(
            clients in 1_u64..30,
            trace in prop::collection::vec((any::<u64>(), 0_u64..2), 1..400),
        ) {
            let table = Table::new(0);
            let mut exact: HashMap<u64, u64> = HashMap::new();
            let mut now = 0;
            for (client, pause) in trace {
                now += pause;
                let hash = in_one_bucket(client % clients);
                let tat = exact.entry(hash).or_default();
                let outcome = table.charge(hash, LIMIT, now, 1);
                match gcra::decide(LIMIT, *tat, now, 1) {
                    Decision::Admitted { tat: next } if outcome.admitted => *tat = next,
                    Decision::Admitted { .. } => prop_assert!(clients > 8, "refused without need"),
                    Decision::Refused => prop_assert!(!outcome.admitted, "admitted what exact GCRA denies"),
                }
            }
        }
    }

    /// Runs `body` on 16 threads that start together.
    fn on_16_threads(body: impl Fn(u64) + Sync) {
        let start = Barrier::new(16);
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let (start, body) = (&start, &body);
                scope.spawn(move || {
                    start.wait();
                    body(thread);
                });
            }
        });
    }

    #[test]
    fn sixteen_threads_on_one_client_admit_the_burst_exactly() {
        let limit = Limit { interval: 10, capacity: 10 * 1000 };
        for round in 0..20 {
            let (table, admitted) = (Table::new(0), AtomicUsize::new(0));
            on_16_threads(|_| {
                for _ in 0..200 {
                    if table.charge(in_one_bucket(round), limit, 1, 1).admitted {
                        admitted.fetch_add(1, Relaxed);
                    }
                }
            });
            assert_eq!(admitted.into_inner(), 1000);
        }
    }

    #[test]
    fn sixteen_threads_that_push_each_other_out_admit_no_client_more_than_its_burst() {
        let limit = Limit { interval: 10, capacity: 10 * 100 };
        for _ in 0..20 {
            let table = Table::new(0);
            let admitted: Vec<AtomicUsize> = (0..24).map(|_| AtomicUsize::new(0)).collect();
            on_16_threads(|thread| {
                let mut random = thread + 1;
                for _ in 0..400 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let client = (random >> 33) % 24;
                    // Threads that read the clock at different times disagree about it.
                    if table.charge(in_one_bucket(client), limit, 1 + thread % 3, 1).admitted {
                        admitted[usize::try_from(client).unwrap()].fetch_add(1, Relaxed);
                    }
                }
            });
            let most = admitted.into_iter().map(AtomicUsize::into_inner).max().unwrap();
            assert!(most <= 100, "{most}");
        }
    }
}
