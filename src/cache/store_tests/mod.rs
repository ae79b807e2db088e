//! Checks of the [`Store`] contract, for stores of your own.
//!
//! ```
//! # use tower_scale::cache::{MemoryStore, store_tests};
//! # #[tokio::main(flavor = "multi_thread", worker_threads = 2)] async fn main() {
//! store_tests::run(MemoryStore::new(1 << 20)).await;
//! # }
//! ```
//!
//! [`run`] is for a test of yours, [`play`] for a fuzz target or a property test. Both work for stores whose answers come
//! later and for stores that forget; both expect one that is up: a [`StoreFailure`](super::StoreFailure) is reported
//! as what it is. Use long deadlines.

mod abandoned;
mod apart;
#[cfg(test)]
mod broken;
mod races;
mod samples;
mod script;
mod shapes;

use std::sync::Arc;

use samples::Samples;
pub use script::play;

use super::entry::Record;
use super::key::Key;
use super::store::Store;

/// Puts, gets and removes some thousands of records, and checks what comes back against the contract of [`Store`].
///
/// Uses keys of its own, new ones at every run, so the store need not be empty; does not tidy up: the records expire
/// within an hour, and the store is asked to [`clear`](Store::clear). Give it room for some MiB: a store that never keeps
/// a record of some shape fails.
///
/// Needs a tokio runtime; one with several threads finds more. Takes less than a second for a store in memory, some
/// thousand round trips for another.
///
/// # Panics
/// Where the store breaks the contract; the message says which part of it.
pub async fn run(store: impl Store) {
    let suite = Suite { store: Arc::new(store), samples: Samples::new() };
    shapes::every_shape_comes_back_equal(&suite).await;
    shapes::a_put_replaces(&suite).await;
    shapes::a_remove_forgets(&suite).await;
    shapes::a_discard_harms_nobody(&suite).await;
    apart::keys_are_apart(&suite).await;
    races::reads_never_go_back(&suite).await;
    races::two_writers_leave_one_record(&suite).await;
    abandoned::a_dropped_reply_holds_up_nobody(&suite).await;
    shapes::usage_and_clear_are_sane(&suite).await;
}

/// The store in question, and things to put into it.
struct Suite {
    store: Arc<dyn Store>,
    samples: Samples,
}

impl Suite {
    async fn get(&self, key: &Key) -> Option<Record> {
        get(&*self.store, key).await
    }

    async fn put(&self, key: &Key, record: &Record) {
        put(&*self.store, key, record).await;
    }

    async fn remove(&self, key: &Key) {
        remove(&*self.store, key).await;
    }

    /// What is under `key` is `expected`, or nothing. Returns whether it was there.
    async fn expect(&self, key: &Key, expected: &Record, rule: &str) -> bool {
        let found = self.get(key).await;
        assert!(found.is_none() || found.as_ref() == Some(expected), "{rule}: found {found:?} instead of {expected:?}");
        found.is_some()
    }

    async fn expect_nothing(&self, key: &Key, rule: &str) {
        let found = self.get(key).await;
        assert!(found.is_none(), "{rule}: found {found:?}");
    }
}

async fn get(store: &dyn Store, key: &Key) -> Option<Record> {
    let found = store.get(key).wait().await;
    assert!(found.is_ok(), "the store must be up for these tests, but get failed: {found:?}");
    let found = found.ok().flatten();
    if store.fleet().is_some() { found.map(samples::redated) } else { found }
}

async fn put(store: &dyn Store, key: &Key, record: &Record) {
    let stored = store.put(key, record.clone()).wait().await;
    assert!(stored.is_ok(), "the store must be up for these tests, but put failed: {stored:?}");
}

async fn remove(store: &dyn Store, key: &Key) {
    let removed = store.remove(key).wait().await;
    assert!(removed.is_ok(), "the store must be up for these tests, but remove failed: {removed:?}");
}
