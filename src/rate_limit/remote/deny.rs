//! Whom Redis has refused, and until when.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::gcra;
use super::super::partition::Partition;
use super::super::verdict::{Standing, Verdict};
use super::ledger::Limits;

const BUCKETS: usize = 4096;
const WAYS: usize = 4;

/// A fixed number of refused clients, 16 384 in about 2 MiB; the one that could be admitted soonest makes room.
///
/// What Redis has refused stays refused until time has paid for it, for otherwise debts only grow. Whoever forgives says
/// so. Who gives back what it was charged says so here, and not to other instances, nor to others in its tiers: where that
/// may happen, a refusal is remembered for `longest` at most.
pub(super) struct Denied {
    /// Each allocates when it is first used.
    buckets: Box<[Mutex<Vec<Entry>>]>,
    /// Keyed at random, so that nobody can choose clients that meet in one bucket.
    hasher: RandomState,
    limits: Arc<Limits>,
    /// In nanoseconds.
    longest: u64,
    /// Entries of an earlier one are void.
    epoch: AtomicU32,
}

#[derive(Clone, Copy)]
struct Entry {
    client: [u64; 3],
    /// When the request could be admitted, in nanoseconds of the layer's time.
    until: u64,
    epoch: u32,
    cost: u32,
    /// As it was when Redis answered.
    verdict: Verdict,
}

impl Denied {
    pub(super) fn new(limits: Arc<Limits>, longest: Option<Duration>) -> Self {
        let buckets = std::iter::repeat_with(Mutex::default).take(BUCKETS).collect();
        Self {
            buckets,
            hasher: RandomState::new(),
            limits,
            longest: longest.map_or(u64::MAX, nanos),
            epoch: AtomicU32::new(0),
        }
    }

    /// The refusal of a request of `cost`, as it stands at `now`.
    ///
    /// A smaller cost than was refused is another question; and as it may be admitted, nothing is known any more.
    pub(super) fn get(&self, client: Partition, cost: u32, now: u64) -> Option<Verdict> {
        let client = client.words();
        let mut bucket = self.bucket(&client)?;
        let at = bucket.iter().position(|entry| entry.client == client)?;
        let entry = *bucket.get(at)?;
        if entry.cost > cost {
            bucket.swap_remove(at);
            return None;
        }
        drop(bucket);
        if entry.epoch != self.epoch.load(Relaxed) || entry.until <= now || entry.age(now) >= self.longest {
            return None;
        }
        let wait = if entry.cost == cost { entry.until - now } else { self.longer_wait(&entry, cost, now) };
        Some(entry.count_down(wait, now))
    }

    /// Redis refused a request of `cost`; the answer is of `now`.
    pub(super) fn put(&self, client: Partition, cost: u32, now: u64, verdict: &Verdict) {
        let client = client.words();
        let epoch = self.epoch.load(Relaxed);
        let until = now.saturating_add(nanos(verdict.wait));
        let Some(mut bucket) = self.bucket(&client).filter(|_| until > now) else { return };
        let new = Entry { client, until, epoch, cost, verdict: *verdict };
        if let Some(own) = bucket.iter_mut().find(|entry| entry.client == client) {
            *own = new;
        } else if bucket.len() < WAYS {
            let room = WAYS - bucket.len();
            bucket.reserve_exact(room);
            bucket.push(new);
        } else {
            let until = |entry: &Entry| if entry.epoch == epoch { entry.until } else { 0 };
            let soonest = bucket.iter_mut().min_by_key(|entry| until(entry));
            if let Some(soonest) = soonest.filter(|entry| until(entry) < new.until) {
                *soonest = new;
            }
        }
    }

    pub(super) fn forget(&self, client: Partition) {
        let client = client.words();
        if let Some(mut bucket) = self.bucket(&client) {
            bucket.retain(|entry| entry.client != client);
        }
    }

    pub(super) fn forget_all(&self) {
        self.epoch.fetch_add(1, Relaxed);
    }

    fn bucket(&self, client: &[u64; 3]) -> Option<MutexGuard<'_, Vec<Entry>>> {
        let at = self.hasher.hash_one(client) % BUCKETS as u64;
        let bucket = self.buckets.get(usize::try_from(at).ok()?)?;
        Some(bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For a higher cost than was refused: long enough.
    fn longer_wait(&self, entry: &Entry, cost: u32, now: u64) -> u64 {
        let limits = self.limits.now();
        let wait = |standing: &Standing| {
            let limit = *limits.get(usize::from(standing.quota))?;
            // It takes `seconds` at most until one more than `remaining` are possible; and how much more is this?
            let next = limit.interval.saturating_mul(u64::from(standing.remaining).saturating_add(1));
            let micros = (u64::from(standing.seconds) * 1_000_000).saturating_add(gcra::price(limit, cost.into()));
            Some(micros.saturating_sub(next).saturating_mul(1000))
        };
        let waits = entry.verdict.standings().iter().filter_map(wait);
        let wait = waits.max().unwrap_or_default().saturating_sub(entry.age(now));
        wait.max(entry.until - now)
    }
}

impl Entry {
    /// How long ago Redis answered.
    fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.until.saturating_sub(nanos(self.verdict.wait)))
    }

    fn count_down(&self, wait: u64, now: u64) -> Verdict {
        let passed = u32::try_from(self.age(now) / 1_000_000_000).unwrap_or(u32::MAX);
        let most = u32::try_from(wait.div_ceil(1_000_000_000)).unwrap_or(u32::MAX);
        let mut verdict = Verdict::new(self.verdict.decision);
        verdict.wait = Duration::from_nanos(wait);
        for standing in self.verdict.standings() {
            let seconds = standing.seconds.saturating_sub(passed).max(1);
            // Whoever has nothing left gets one request no later than this one.
            let seconds = if standing.remaining == 0 { seconds.min(most) } else { seconds };
            verdict.push(Standing { seconds, ..*standing });
        }
        verdict
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::quota::Quota;
    use super::super::super::verdict::Decision;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Three at once, one per 10 s; and 100 at once, one per minute.
    fn denied() -> Denied {
        Denied::new(Arc::new(Limits::new(&[Quota::per_minute(6).burst(3), Quota::per_hour(60).burst(100)])), None)
    }

    fn refusal(millis: u64) -> Verdict {
        let seconds = u32::try_from(millis.div_ceil(1000)).unwrap();
        let mut verdict = Verdict::new(Decision::Refused);
        verdict.wait = Duration::from_millis(millis);
        verdict.push(Standing { quota: 0, remaining: 0, seconds });
        verdict.push(Standing { quota: 1, remaining: 7, seconds: 60 });
        verdict
    }

    fn client(number: u128) -> Partition {
        Partition::digest(number)
    }

    #[test]
    fn a_refusal_counts_down_to_the_moment_of_admission() {
        let denied = denied();
        assert_eq!(denied.get(client(1), 1, 0), None);
        denied.put(client(1), 1, 100 * SECOND, &refusal(2500));
        let told = |now: u64| {
            let verdict = denied.get(client(1), 1, now)?;
            assert_eq!(verdict.decision, Decision::Refused);
            let standings: Vec<_> = verdict.standings().iter().map(|of| (of.quota, of.remaining, of.seconds)).collect();
            Some((verdict.wait, standings))
        };
        let millis = |millis: u64| 100 * SECOND + millis * 1_000_000;
        assert_eq!(told(millis(0)), Some((Duration::from_millis(2500), vec![(0, 0, 3), (1, 7, 60)])));
        assert_eq!(told(millis(600)), Some((Duration::from_millis(1900), vec![(0, 0, 2), (1, 7, 60)])));
        assert_eq!(told(millis(2000)), Some((Duration::from_millis(500), vec![(0, 0, 1), (1, 7, 58)])));
        assert_eq!(told(millis(2500) - 1), Some((Duration::from_nanos(1), vec![(0, 0, 1), (1, 7, 58)])));
        assert_eq!(told(millis(2500)), None);
        assert_eq!(denied.get(client(2), 1, millis(0)), None);
    }

    #[test]
    fn a_higher_cost_waits_longer_and_a_smaller_one_is_another_question() {
        let denied = denied();
        denied.put(client(1), 2, 0, &refusal(5000));
        // The verdict says that one is possible in 5 s; as the wait was for two, this is on the safe side.
        for (cost, now, wait) in [(2, 0, 5), (3, 0, 25), (3, 1, 24), (4, 1, 24), (10, 1, 180 - 1), (11, 1, 240 - 1)] {
            let wait = Duration::from_secs(wait);
            assert_eq!(denied.get(client(1), cost, now * SECOND).unwrap().wait, wait, "{cost} at {now}");
        }
        assert_eq!(denied.get(client(1), 1, 0), None);
        assert_eq!(denied.get(client(1), 2, 0), None, "as one may have been admitted");
    }

    #[test]
    fn the_last_refusal_counts() {
        let denied = denied();
        denied.put(client(1), 1, 0, &refusal(5000));
        denied.put(client(1), 1, SECOND, &refusal(1000));
        assert_eq!(denied.get(client(1), 1, SECOND).unwrap().wait, Duration::from_secs(1));
        assert_eq!(denied.get(client(1), 1, 2 * SECOND), None);
    }

    #[test]
    fn nobody_is_refused_by_what_was_forgotten() {
        let denied = denied();
        for number in 0..3 {
            denied.put(client(number), 1, 0, &refusal(5000));
        }
        denied.forget(client(1));
        let known = || [0, 1, 2].map(|number| denied.get(client(number), 1, 0).is_some());
        assert_eq!(known(), [true, false, true]);
        denied.forget_all();
        assert_eq!(known(), [false; 3]);
        denied.put(client(2), 1, 0, &refusal(5000));
        assert_eq!(known(), [false, false, true]);
    }

    #[test]
    fn who_could_be_admitted_soonest_makes_room() {
        let denied = denied();
        let in_one = |denied: &Denied| {
            let bucket = |number: u128| denied.hasher.hash_one(client(number).words()) % BUCKETS as u64;
            (0..).filter(|number| bucket(*number) == bucket(0)).take(WAYS + 3).collect::<Vec<_>>()
        };
        let clients = in_one(&denied);
        let put = |at: usize, millis| denied.put(client(clients[at]), 1, 0, &refusal(millis));
        let known = || {
            let known = |at: &usize| denied.get(client(clients[*at]), 1, 0).is_some();
            (0..clients.len()).filter(known).collect::<Vec<_>>()
        };
        for (at, millis) in [(0, 3000), (1, 1000), (2, 4000), (3, 2000), (4, 2000)] {
            put(at, millis);
        }
        assert_eq!(known(), [0, 2, 3, 4]);
        put(5, 1000);
        assert_eq!(known(), [0, 2, 3, 4], "it is the soonest itself");
        denied.forget_all();
        put(6, 500);
        assert_eq!(known(), [6]);
    }

    #[test]
    fn it_takes_two_mebibytes() {
        let bytes = BUCKETS * (size_of::<Mutex<Vec<Entry>>>() + WAYS * size_of::<Entry>());
        assert!(bytes < (5 << 20) / 2, "{bytes}");
        let denied = denied();
        for number in 0..100_000 {
            denied.put(client(number), 1, 0, &refusal(5000));
        }
        let capacity: usize = denied.buckets.iter().map(|bucket| bucket.lock().unwrap().capacity()).sum();
        assert_eq!(capacity, BUCKETS * WAYS);
    }

    #[test]
    fn extremes_do_no_harm() {
        let denied = denied();
        let mut endless = refusal(1);
        endless.wait = Duration::MAX;
        denied.put(client(1), 1, u64::MAX - 1, &endless);
        denied.put(client(2), 1, 5, &endless);
        assert_eq!(denied.get(client(1), u32::MAX, u64::MAX), None);
        assert!(denied.get(client(2), u32::MAX, u64::MAX - 1).is_some());
        denied.put(client(3), 1, 0, &Verdict::new(Decision::Refused));
        assert_eq!(denied.get(client(3), 1, 0), None);
    }

    proptest! {
        /// Whom it refuses, Redis would refuse; who waits as told, is admitted, unless others have come meanwhile.
        #[test]
        fn it_refuses_what_redis_would_refuse(
            trace in prop::collection::vec((0_u64..9_000, 1_u32..6, prop::bool::weighted(0.02)), 1..300),
        ) {
            let denied = denied();
            let limits = denied.limits.now();
            let (mut now, mut tats) = (0, [0; 2]);
            for (pause, cost, forgotten) in trace {
                now += pause * 1_003_000;
                let micros = now / 1000;
                let debts = || limits.iter().zip(tats).map(|(limit, tat)| (*limit, gcra::debt(*limit, tat, micros)));
                let wait = debts().map(|(limit, debt)| gcra::wait(limit, debt, cost.into())).max().unwrap();
                if forgotten {
                    denied.forget(client(1));
                } else if let Some(verdict) = denied.get(client(1), cost, now) {
                    prop_assert!(wait > 0, "{cost} at {now}");
                    prop_assert!(verdict.wait >= Duration::from_micros(wait));
                    prop_assert!(verdict.wait <= Duration::from_micros(wait + 1_000_000));
                    for (standing, (limit, debt)) in verdict.standings().iter().zip(debts()) {
                        let (remaining, more) = gcra::standing(limit, debt);
                        prop_assert!(u64::from(standing.remaining) <= remaining && standing.seconds > 0);
                        // Where there is more already, or never will be, the seconds say nothing.
                        let moot = remaining > standing.remaining.into() || debt == 0;
                        prop_assert!(moot || u64::from(standing.seconds) >= more.div_ceil(1_000_000));
                    }
                    continue;
                }
                if wait == 0 {
                    let charged: Vec<_> = debts().map(|(limit, debt)| gcra::charge(limit, debt, cost.into()).unwrap()).collect();
                    tats = [micros + charged[0], micros + charged[1]];
                } else {
                    let mut verdict = Verdict::new(Decision::Refused);
                    verdict.wait = Duration::from_micros(wait);
                    for (quota, (limit, debt)) in (0..).zip(debts()) {
                        let (remaining, more) = gcra::standing(limit, debt);
                        let (remaining, seconds) = (remaining.try_into().unwrap(), more.div_ceil(1_000_000).try_into().unwrap());
                        verdict.push(Standing { quota, remaining, seconds });
                    }
                    denied.put(client(1), cost, now, &verdict);
                }
            }
        }
    }
}
