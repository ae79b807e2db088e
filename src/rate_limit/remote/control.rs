//! What handles change, told to every instance.
//!
//! 1. A change is made where it counts, in the client's own key, and then noted in the policy's record: one hash in
//!    Redis with the newest 128 changes and the quotas that were set at run time. If the note fails, the caller gets an
//!    error; until what the others know runs out by itself, they do not notice.
//! 2. Every instance asks for what is new, in the background: when a request comes and the last answer is 750 ms old.
//!    Nobody asks while there is no traffic. Requests read one number: when the instance last knew of everything.
//!    950 ms later it trusts nothing of what it knows of clients. Between the two there is time for a question that fails,
//!    and another. More often would cost a client that is far above its quota more trips than its own requests do.
//! 3. Each change, and each record when it begins, has a mark that nothing else has, and an instance names the last one
//!    that it has seen. If Redis does not know it (128 changes since, a flush, a failover to a replica that lagged), the
//!    instance may have missed something, and forgets all refusals, leases, debts and blocks of its own. Redis's debts are
//!    what they are, so while it answers this forgives only what a flush has forgiven already; without it, every client
//!    begins anew in this instance.
//! 4. A quota that the record does not have is as it was built. So after a flush, or a restart of a Redis that keeps
//!    nothing, all instances are back at the quotas of their source within a second, also those that start later. While
//!    Redis is away they stay as they are.
//! 5. Instances compare times by Redis's clock only: a block is told by its age, and a charge that is told more than a
//!    second late is left to Redis, which has charged it in time.
//!
//! It never waits on a request's way, and never applies an instance's own changes twice.

mod entry;
mod record;
mod refunds;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use self::entry::Entry;
use self::record::{News, Record, Seen};
use self::refunds::Refunds;
use super::super::handle::Change;
use super::super::metrics::CHANGES_MISSED;
use super::super::partition::Partition;
use super::super::policy::Scope;
use super::super::quota::Quota;
use super::super::time::Time;
use super::deny::Denied;
use super::flights::Flights;
use super::ledger::Ledger;
use crate::meter::Counter;
use crate::redis::StoreError;

const ASK_AFTER: Duration = Duration::from_millis(750);
/// Between the beginnings of two questions, where one got no answer.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Beyond twice the time budget, which no question takes.
const OVERDUE: Duration = Duration::from_secs(1);
/// From the beginning of a question on: less than a second, whatever its answer took.
const TRUSTED_FOR: Duration = Duration::from_millis(950);
const NEVER: u64 = u64::MAX;

pub(super) struct Control {
    ledger: Arc<Ledger>,
    denied: Arc<Denied>,
    flights: Arc<Flights>,
    refunds: Arc<Refunds>,
    time: Time,
    record: Record,
    /// Tells this instance's changes from all others.
    instance: u64,
    /// How many changes this instance has made.
    changes: AtomicU64,
    quotas: Mutex<Quotas>,
    seen: Mutex<Seen>,
    /// All changes up to then are known here.
    confirmed: AtomicU64,
    asked: AtomicU64,
    asking: AtomicBool,
    following: AtomicBool,
    missed: Counter,
}

/// By which Redis is asked. The tables of this process follow.
struct Quotas {
    all: Vec<Quota>,
    /// How often this instance has set one.
    set: u64,
}

impl Control {
    pub(super) fn new(ledger: Arc<Ledger>, denied: Arc<Denied>, flights: Arc<Flights>, time: Time) -> Self {
        Self {
            refunds: Arc::new(Refunds::new(ledger.clone(), denied.clone())),
            record: Record::new(&ledger),
            quotas: Mutex::new(Quotas { all: ledger.local.limiter.quotas(), set: 0 }),
            ledger,
            denied,
            flights,
            time,
            instance: RandomState::new().hash_one(0),
            changes: AtomicU64::new(0),
            seen: Mutex::default(),
            confirmed: AtomicU64::new(NEVER),
            asked: AtomicU64::new(NEVER),
            asking: AtomicBool::new(false),
            following: AtomicBool::new(false),
            missed: Counter::new(CHANGES_MISSED),
        }
    }

    /// Whether all changes up to 950 ms before `now` are known here. Asks for them, in the background, where it was last
    /// confirmed 750 ms ago.
    pub(super) fn is_current(self: &Arc<Self>, now: u64) -> bool {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let is_due = is_past(confirmed, ASK_AFTER, now);
        // A service may be called before its future is anywhere near a runtime.
        if let Some(runtime) = Handle::try_current().ok().filter(|_| is_due && self.may_ask(now)) {
            let asking = Turn(self.clone(), |control| &control.asking);
            runtime.spawn(async move {
                asking.0.ask(now).await;
                let control = asking.0.clone();
                drop(asking);
                control.follow_quotas().await;
            });
        }
        !is_past(confirmed, TRUSTED_FOR, now)
    }

    /// One at a time, and not too often. Whoever is long past any deadline is not waited for: nobody may be driving its
    /// runtime any more.
    fn may_ask(&self, now: u64) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        let overdue = self.ledger.redis.budget().saturating_mul(2).saturating_add(OVERDUE);
        is_past(asked, ASK_AGAIN_AFTER, now)
            && (!self.asking.load(Ordering::Acquire) || is_past(asked, overdue, now))
            && self.asked.compare_exchange(asked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && {
                self.asking.store(true, Ordering::Relaxed);
                true
            }
    }

    async fn ask(&self, asked: u64) {
        let (begun, set) = (self.time.exactly(), lock(&self.quotas).set);
        let seen = lock(&self.seen).clone();
        // Whatever is wrong with Redis, its breaker tells of it.
        let Ok(Some(news)) = self.record.read(&self.ledger, &seen).await else { return };
        if self.asked.load(Ordering::Relaxed) != asked {
            return; // Another has asked since, and knows more.
        }
        if news.is_incomplete && seen.is_some() {
            self.forget_everything();
        }
        self.follow(&news);
        self.adopt(&news, set);
        *lock(&self.seen) = news.seen;
        self.confirmed.store(begun, Ordering::Release);
    }

    /// Applies what others have changed.
    fn follow(&self, news: &News) {
        for entry in &news.entries {
            match Entry::parse(entry) {
                Some(entry) if entry.instance == self.instance => {}
                Some(entry) => {
                    let change = entry.change_at(news.now);
                    if let Some(change) = change {
                        self.ledger.local.limiter.change(entry.client, change, self.time.exactly());
                    }
                    self.forget(entry.client, change);
                }
                // A later version's: it may concern anybody.
                None => self.forget_everything(),
            }
        }
    }

    /// Asks by other quotas from now on, if they are others, unless one was set here since the question.
    fn adopt(&self, news: &News, set: u64) {
        let mut quotas = lock(&self.quotas);
        let rules = &self.ledger.local.policy.rules;
        let wanted: Vec<_> = rules.iter().zip(&news.quotas).map(|(rule, set)| set.unwrap_or(rule.quota)).collect();
        let is_other = !wanted.iter().zip(&quotas.all).all(|(wanted, present)| wanted.is_as(present));
        if is_other && quotas.set == set {
            self.ask_by(&wanted);
            quotas.all = wanted;
        }
    }

    /// The tables of this process follow: in the background, since a large one takes a while.
    async fn follow_quotas(self: Arc<Self>) {
        if self.following.swap(true, Ordering::Acquire) {
            return;
        }
        let _following = Turn(self.clone(), |control| &control.following);
        let present = self.ledger.local.limiter.quotas();
        let wanted = lock(&self.quotas).all.clone();
        for (index, (wanted, present)) in wanted.into_iter().zip(present).enumerate() {
            if !wanted.is_as(&present) {
                self.take_over(index, wanted).await;
            }
        }
    }

    /// Gives back what a request of `cost` was charged; in the background, with a bound on how many wait.
    pub(super) fn refund(&self, client: Partition, cost: u32) {
        self.refunds.begin(client, cost);
    }

    pub(super) async fn change(&self, client: Partition, change: Change) -> Result<(), StoreError> {
        self.ledger.change(client, change).await?;
        self.ledger.local.limiter.change(client, change, self.time.exactly());
        self.forget(client, Some(change));
        let number = self.changes.fetch_add(1, Ordering::Relaxed);
        self.record.append(&self.ledger, &Entry::text(self.instance, number, client, change)).await
    }

    pub(super) async fn set_quota(&self, index: usize, quota: Quota) -> Result<(), StoreError> {
        self.record.set_quota(&self.ledger, index, quota).await?;
        self.ask_by_one(index, quota);
        self.take_over(index, quota).await;
        Ok(())
    }

    fn ask_by_one(&self, index: usize, quota: Quota) {
        let mut quotas = lock(&self.quotas);
        quotas.set += 1;
        if let Some(own) = quotas.all.get_mut(index) {
            *own = quota;
        }
        self.ask_by(&quotas.all);
    }

    fn ask_by(&self, quotas: &[Quota]) {
        self.ledger.limits().set(quotas);
        self.flights.void_all();
        self.denied.forget_all();
    }

    async fn take_over(&self, index: usize, quota: Quota) {
        // A quota that could be built can be set.
        let _ = self.ledger.local.set_quota(index, quota, self.time.exactly()).await;
    }

    /// Leases first: an answer that is under way then counts for neither.
    fn forget(&self, client: Partition, change: Option<Change>) {
        self.flights.void(client);
        let mut rules = self.ledger.local.policy.rules.iter();
        if matches!(change, Some(Change::Reward(_))) && rules.any(|rule| rule.scope != Scope::Key) {
            // What its tiers owe less, anybody in them may spend.
            self.denied.forget_all();
        } else {
            self.denied.forget(client);
        }
    }

    fn forget_everything(&self) {
        self.missed.increment(1);
        self.ledger.local.limiter.clear();
        self.flights.void_all();
        self.denied.forget_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether it was so long ago.
fn is_past(then: u64, age: Duration, now: u64) -> bool {
    then == NEVER || u128::from(now.saturating_sub(then)) >= age.as_nanos()
}

/// What only one does at a time, until it ends or is dropped.
struct Turn(Arc<Control>, fn(&Control) -> &AtomicBool);

impl Drop for Turn {
    fn drop(&mut self) {
        (self.1)(&self.0).store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_is_long_ago() {
        let millis = |millis: u64| millis * 1_000_000;
        for (then, now, is) in [
            (NEVER, 0, true),
            (NEVER, NEVER, true),
            (0, millis(750) - 1, false),
            (0, millis(750), true),
            (millis(500), millis(1249), false),
            (millis(500), millis(1250), true),
            (millis(500), 0, false),
        ] {
            assert_eq!(is_past(then, ASK_AFTER, now), is, "{then} {now}");
        }
    }
}
