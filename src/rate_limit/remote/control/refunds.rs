//! Charges on their way back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use super::super::super::metrics::REFUNDS_LOST;
use super::super::super::partition::Partition;
use super::super::deny::Denied;
use super::super::ledger::Ledger;
use crate::meter::Counter;

/// So many clients (and costs) at most; more of one client go together.
const MOST: usize = 1024;

type Key = (Partition, u32);

pub(super) struct Refunds {
    ledger: Arc<Ledger>,
    denied: Arc<Denied>,
    /// Each key has a task; how many came since it left with the last ones.
    waiting: Mutex<HashMap<Key, u32>>,
    lost: Counter,
}

impl Refunds {
    pub(super) fn new(ledger: Arc<Ledger>, denied: Arc<Denied>) -> Self {
        Self { ledger, denied, waiting: Mutex::default(), lost: Counter::new(REFUNDS_LOST) }
    }

    /// Tells Redis, in the background, once. Where that fails, or too many wait, or there is no runtime any more, the
    /// request stays counted.
    pub(super) fn begin(self: &Arc<Self>, client: Partition, cost: u32) {
        let key = (client, cost);
        match self.add(key) {
            Added::Under => {}
            Added::Full => self.lost.increment(1),
            Added::First => {
                let task = Task { refunds: self.clone(), key, done: false };
                match Handle::try_current() {
                    Ok(runtime) => drop(runtime.spawn(task.run())),
                    Err(_) => drop(task),
                }
            }
        }
    }

    fn add(&self, key: Key) -> Added {
        let mut waiting = self.waiting();
        let is_full = waiting.len() >= MOST;
        match waiting.entry(key) {
            Entry::Occupied(mut entry) => {
                *entry.get_mut() = entry.get().saturating_add(1);
                Added::Under
            }
            Entry::Vacant(_) if is_full => Added::Full,
            Entry::Vacant(entry) => {
                entry.insert(1);
                Added::First
            }
        }
    }

    /// Those that came meanwhile. Ends the key where there are none.
    fn next(&self, key: Key) -> Option<u32> {
        let mut waiting = self.waiting();
        let count = waiting.get_mut(&key).map(std::mem::take).filter(|count| *count > 0);
        if count.is_none() {
            waiting.remove(&key);
        }
        count
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Key, u32>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Added {
    First,
    /// To those for which a task is under way.
    Under,
    Full,
}

struct Task {
    refunds: Arc<Refunds>,
    key: Key,
    done: bool,
}

impl Task {
    async fn run(mut self) {
        let (client, cost) = self.key;
        while let Some(times) = self.refunds.next(self.key) {
            match self.refunds.ledger.refund(client, cost, times).await {
                Ok(()) => self.refunds.denied.forget(client),
                Err(_) => self.refunds.lost.increment(times.into()),
            }
        }
        self.done = true;
    }
}

/// Its runtime may end before it does.
impl Drop for Task {
    fn drop(&mut self) {
        if !self.done {
            let waiting = self.refunds.waiting().remove(&self.key);
            self.refunds.lost.increment(waiting.unwrap_or_default().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::fields::Fields;
    use super::super::super::super::local::Local;
    use super::super::super::super::quota::Quota;
    use super::*;
    use crate::redis::Redis;

    fn refunds() -> Arc<Refunds> {
        // Nothing listens there.
        let redis = Redis::connect("redis://127.0.0.1:1").unwrap();
        let ledger = Arc::new(Ledger::new(redis, Arc::new(Local::new(Quota::per_hour(1).into(), Fields::None))));
        let denied = Arc::new(Denied::new(ledger.limits().clone(), None));
        Arc::new(Refunds::new(ledger, denied))
    }

    fn key(client: u128) -> Key {
        (Partition::digest(client), 1)
    }

    #[test]
    fn those_of_one_client_go_together() {
        let refunds = refunds();
        assert!(matches!(refunds.add(key(1)), Added::First));
        assert!(matches!(refunds.add(key(1)), Added::Under));
        assert!(matches!(refunds.add(key(2)), Added::First));
        assert_eq!(refunds.next(key(1)), Some(2));
        assert!(matches!(refunds.add(key(1)), Added::Under), "its task is under way");
        assert_eq!((refunds.next(key(1)), refunds.next(key(1))), (Some(1), None));
        assert!(matches!(refunds.add(key(1)), Added::First));
    }

    #[test]
    fn so_many_wait_at_most() {
        let refunds = refunds();
        for client in 0..MOST as u128 {
            assert!(matches!(refunds.add(key(client)), Added::First));
        }
        assert!(matches!(refunds.add(key(u128::MAX)), Added::Full));
        assert!(matches!(refunds.add(key(0)), Added::Under));
        assert_eq!((refunds.next(key(0)), refunds.next(key(0))), (Some(2), None));
        assert!(matches!(refunds.add(key(u128::MAX)), Added::First));
    }

    #[test]
    fn nothing_is_left_of_what_fails_or_is_dropped() {
        let refunds = refunds();
        refunds.begin(Partition::EVERYBODY, 1);
        assert!(refunds.waiting().is_empty(), "there is no runtime");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for _ in 0..5 {
                refunds.begin(Partition::EVERYBODY, 1);
            }
            assert_eq!(refunds.waiting().len(), 1);
            let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
            while !refunds.waiting().is_empty() {
                assert!(tokio::time::Instant::now() < deadline, "its failure ends it");
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            refunds.begin(Partition::EVERYBODY, 1);
        });
        drop(runtime);
        assert!(refunds.waiting().is_empty(), "its runtime has ended");
    }
}
