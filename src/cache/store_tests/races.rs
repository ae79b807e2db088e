//! Several tasks at one key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::{JoinHandle, yield_now};

use super::samples::{is_whole, number_of, response};
use super::{Suite, get, put, remove};
use crate::cache::key::Key;
use crate::cache::store::Store;

const WRITES: u64 = 200;
const READERS: usize = 3;
const ROUNDS: usize = 50;

/// One writer's versions of a key, numbered in order.
struct Register {
    store: Arc<dyn Store>,
    key: Key,
    /// Before this all writes of the writer have begun, resp. ended.
    begun: AtomicU64,
    ended: AtomicU64,
    /// The latest version that any read has found.
    seen: AtomicU64,
    done: AtomicBool,
}

impl Register {
    /// Every fifth version is none.
    async fn write(self: Arc<Self>) {
        for version in 1..=WRITES {
            self.begun.store(version, Ordering::SeqCst);
            if version % 5 == 0 {
                remove(&*self.store, &self.key).await;
            } else {
                put(&*self.store, &self.key, &response(version, 300)).await;
            }
            self.ended.store(version, Ordering::SeqCst);
            if version % 3 == 0 {
                yield_now().await;
            }
        }
        self.done.store(true, Ordering::SeqCst);
    }

    async fn read(self: Arc<Self>) {
        while !self.done.load(Ordering::SeqCst) {
            self.look().await;
            yield_now().await;
        }
        self.look().await;
    }

    async fn look(&self) {
        let (ended, seen) = (self.ended.load(Ordering::SeqCst), self.seen.load(Ordering::SeqCst));
        let Some(record) = get(&*self.store, &self.key).await else { return };
        let begun = self.begun.load(Ordering::SeqCst);
        let version = number_of(&record).unwrap_or(u64::MAX);
        assert!(version <= begun, "a read found version {version} of a key, but only {begun} had been written");
        assert!(
            version >= ended.max(seen),
            "a read found version {version} of a key, after version {ended} was written and {seen} was read",
        );
        assert!(is_whole(&record), "a read found a mixture of records: {record:?}");
        self.seen.fetch_max(version, Ordering::SeqCst);
    }
}

pub(super) async fn reads_never_go_back(suite: &Suite) {
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let register = Arc::new(Register {
            store: suite.store.clone(),
            key: suite.samples.key(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            done: AtomicBool::new(false),
        });
        tasks.extend((0..READERS).map(|_| tokio::spawn(register.clone().read())));
        tasks.push(tokio::spawn(register.write()));
    }
    join(tasks).await;
}

/// Which of the two is free, but once both have answered it stays.
pub(super) async fn two_writers_leave_one_record(suite: &Suite) {
    for _ in 0..ROUNDS {
        let key = suite.samples.key();
        let write = |number: u64| {
            let (store, key) = (suite.store.clone(), key.clone());
            tokio::spawn(async move { put(&*store, &key, &response(number, 100)).await })
        };
        join([write(1), write(2)]).await;
        let mut first = None;
        for _ in 0..4 {
            let found = suite.get(&key).await;
            assert!(
                first.is_none() || found.is_none() || first == found,
                "two reads without a write between them differ: {first:?} and {found:?}",
            );
            first = first.or(found);
            yield_now().await;
        }
        suite.remove(&key).await;
        suite.expect_nothing(&key, "a remove after two concurrent puts").await;
    }
}

async fn join(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    for task in tasks {
        if let Err(failed) = task.await
            && failed.is_panic()
        {
            std::panic::resume_unwind(failed.into_panic());
        }
    }
}
