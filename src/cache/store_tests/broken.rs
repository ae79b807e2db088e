//! The suite passes right stores of several kinds, and notices each fault of wrong ones.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;

use super::run;
use crate::cache::entry::{Entry, Head, Kind, Record};
use crate::cache::key::Key;
use crate::cache::store::{Reply, Store, StoreFailure, Usage};
use crate::cache::{MemoryStore, store_tests};

/// What is wrong with a [`Faulty`] store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    None,
    /// Answers come later, in several polls.
    Slow,
    /// Loses some of what it has, now and then.
    Forgetful,
    /// Only bytes, under names that are hashes of 8 bits.
    Hashed,
    /// The same without the look at the key.
    HashedBlindly,
    /// Keys are text, in lower case.
    IgnoresCase,
    /// Keys end at 250 bytes.
    CutsKeys,
    /// Keys end at the first zero byte after the number of the run.
    EndsAtZero,
    IgnoresRemove,
    KeepsTheFirst,
    /// Like many a byte store: what cannot be encoded is not put, and that is all.
    LeavesTheOld,
    FlipsABit,
    CutsBodies,
    LosesLines,
    LosesTags,
    ForgetsDeadlines,
    StoresNothing,
    StoresNoSpecs,
    /// Answers before it replaces, which comes with the next write.
    WritesBehind,
    /// A local copy that a read fills with what it found some time ago.
    StaleCopy,
    DiscardBringsBack,
    ClearBringsBack,
    Fails,
    CountsNothing,
}

use Fault as F;

type Got = Result<Option<Record>, StoreFailure>;
type Put = Result<(), StoreFailure>;

#[derive(Clone, Debug)]
struct Faulty {
    fault: Fault,
    state: Arc<Mutex<State>>,
    calls: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<Vec<u8>, Record>,
    bytes: HashMap<Vec<u8>, Bytes>,
    behind: Option<(Vec<u8>, Record)>,
    copies: HashMap<Vec<u8>, Record>,
    first: Option<Record>,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self { fault, state: Arc::default(), calls: Arc::default() }
    }

    fn name(&self, key: &Key) -> Vec<u8> {
        let bytes = key.as_bytes();
        match self.fault {
            F::Hashed | F::HashedBlindly => {
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                hasher.finish().to_le_bytes()[..1].to_vec()
            }
            F::IgnoresCase => bytes.to_ascii_lowercase(),
            F::CutsKeys => bytes[..bytes.len().min(250)].to_vec(),
            // The number of the run may have zeros of its own, and so may that of a key.
            F::EndsAtZero if bytes.len() < 27 => {
                let (head, tail) = bytes.split_at(19);
                [head, tail.split(|byte| *byte == 0).next().unwrap_or_default()].concat()
            }
            _ => bytes.to_vec(),
        }
    }

    fn chance(&self, one_in: u64) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in)
    }

    fn read(&self, key: &Key) -> Got {
        let (name, mut state) = (self.name(key), self.state.lock().unwrap());
        let found = state.records.get(&name).cloned();
        Ok(match self.fault {
            F::Fails => return Err(StoreFailure::unavailable()),
            F::Forgetful if self.chance(3) => {
                state.records.remove(&name);
                None
            }
            F::Hashed => state.bytes.get(&name).cloned().and_then(|bytes| Record::decode(key, bytes)),
            F::FlipsABit => found.map(|record| edit(record, |_, body| *body = body.iter().map(|b| b ^ 1).collect())),
            F::CutsBodies => found.map(|record| edit(record, |_, body| body.truncate(1000))),
            F::LosesTags => found.map(|record| edit(record, |head, _| head.tags = [].into())),
            F::ForgetsDeadlines => found.map(|record| edit(record, |head, _| head.error_until = head.fresh_until)),
            F::LosesLines => found.map(|record| {
                edit(record, |head, _| {
                    let fields = head.headers.plain();
                    let last = |name| (name, fields.get_all(name).iter().next_back().unwrap());
                    let lines = fields.keys().map(last).map(|(name, line)| (name.clone(), line.clone()));
                    head.headers = http::HeaderMap::from_iter(lines).into();
                })
            }),
            _ => found,
        })
    }

    fn write(&self, key: &Key, record: Record) -> Put {
        let (name, mut state) = (self.name(key), self.state.lock().unwrap());
        state.first.get_or_insert_with(|| record.clone());
        let now = std::time::SystemTime::now();
        match self.fault {
            F::StoresNothing => {}
            F::StoresNoSpecs if matches!(record.0, Kind::Vary(_)) => {
                state.records.remove(&name);
            }
            F::LeavesTheOld if record.keep_for(now).is_none() || record.encode(key).is_none() => {}
            F::Hashed => {
                match record.encode(key).filter(|_| record.keep_for(now).is_some()) {
                    Some(bytes) => state.bytes.insert(name, bytes),
                    None => state.bytes.remove(&name),
                };
            }
            F::KeepsTheFirst => drop(state.records.entry(name).or_insert(record)),
            F::WritesBehind if state.records.contains_key(&name) => {
                if let Some((name, record)) = state.behind.replace((name, record)) {
                    state.records.insert(name, record);
                }
            }
            _ => drop(state.records.insert(name, record)),
        }
        Ok(())
    }

    fn erase(&self, key: &Key) -> Put {
        let (name, mut state) = (self.name(key), self.state.lock().unwrap());
        if self.fault != F::IgnoresRemove {
            state.records.remove(&name);
            state.bytes.remove(&name);
        }
        Ok(())
    }

    /// Reads the copy, else the record; and, some time later, makes a copy of that.
    async fn read_through(&self, key: &Key) -> Got {
        let name = key.as_bytes().to_vec();
        if let Some(copy) = self.state.lock().unwrap().copies.get(&name) {
            return Ok(Some(copy.clone()));
        }
        let found = self.read(key)?;
        tokio::task::yield_now().await;
        if let Some(record) = &found {
            self.state.lock().unwrap().copies.insert(name, record.clone());
        }
        Ok(found)
    }
}

fn edit(record: Record, change: impl FnOnce(&mut Head, &mut Vec<u8>)) -> Record {
    let Kind::Response(entry) = &record.0 else { return record };
    let (mut head, mut body) = ((*entry.head).clone(), entry.body.to_vec());
    change(&mut head, &mut body);
    Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: body.into() })))
}

impl Store for Faulty {
    fn get(&self, key: &Key) -> Reply<Got> {
        let (store, key) = (self.clone(), key.clone());
        match self.fault {
            F::Slow => Reply::later(async move {
                tokio::task::yield_now().await;
                let found = store.read(&key);
                tokio::task::yield_now().await;
                found
            }),
            F::StaleCopy => Reply::later(async move { store.read_through(&key).await }),
            _ => Reply::Now(self.read(&key)),
        }
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Put> {
        let (store, key) = (self.clone(), key.clone());
        match self.fault {
            F::Slow => Reply::later(async move {
                tokio::task::yield_now().await;
                store.write(&key, record)?;
                tokio::task::yield_now().await;
                Ok(())
            }),
            F::StaleCopy => {
                self.state.lock().unwrap().copies.remove(key.as_bytes());
                Reply::Now(self.write(&key, record))
            }
            _ => Reply::Now(self.write(&key, record)),
        }
    }

    fn remove(&self, key: &Key) -> Reply<Put> {
        self.state.lock().unwrap().copies.remove(key.as_bytes());
        Reply::Now(self.erase(key))
    }

    fn discard(&self, key: &Key, record: &Record) {
        if self.fault == F::DiscardBringsBack {
            let _ = self.write(key, record.clone());
        }
    }

    fn clear(&self) {
        let mut state = self.state.lock().unwrap();
        let first = state.first.clone();
        state.records.values_mut().for_each(|record| {
            if let (F::ClearBringsBack, Some(first)) = (self.fault, &first) {
                *record = first.clone();
            }
        });
    }

    fn usage(&self) -> Option<Usage> {
        (self.fault == F::CountsNothing).then(Usage::default)
    }

    fn max_object_bytes(&self) -> usize {
        1 << 20
    }
}

/// What the suite says of a store.
async fn verdict(store: impl Store) -> Result<(), String> {
    AssertUnwindSafe(run(store)).catch_unwind().await.map_err(|panic| *panic.downcast::<String>().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_stores_pass() {
    for fault in [F::None, F::Slow, F::Forgetful, F::Hashed] {
        assert_eq!(verdict(Faulty::new(fault)).await, Ok(()), "{fault:?}");
    }
    for bytes in [4 << 10, 64 << 10, 64 << 20] {
        // So little that it keeps next to nothing.
        let kept = verdict(MemoryStore::new(bytes)).await;
        assert!(kept.is_ok() || bytes < 1 << 20 && kept.unwrap_err().contains("never keeps"), "{bytes}");
    }
}

#[tokio::test]
async fn right_stores_pass_on_one_thread() {
    for fault in [F::None, F::Slow, F::Forgetful, F::Hashed] {
        assert_eq!(verdict(Faulty::new(fault)).await, Ok(()), "{fault:?}");
    }
}

#[tokio::test]
async fn every_fault_is_noticed_and_named() {
    for (fault, message) in [
        (F::HashedBlindly, "never put"),
        (F::IgnoresCase, "never put"),
        (F::CutsKeys, "never put"),
        (F::EndsAtZero, "never put"),
        (F::IgnoresRemove, "a remove must forget"),
        (F::KeepsTheFirst, "a put must replace"),
        (F::LeavesTheOld, "a put must replace what was there, also with what the store does not keep"),
        (F::FlipsABit, "a small response"),
        (F::CutsBodies, "a body of the longest length"),
        (F::LosesLines, "lines of one field"),
        (F::LosesTags, "tags"),
        (F::ForgetsDeadlines, "a small response"),
        (F::StoresNothing, "never keeps a small response"),
        (F::StoresNoSpecs, "never keeps a vary spec"),
        (F::WritesBehind, "a put must replace"),
        (F::StaleCopy, "a read found version"),
        (F::DiscardBringsBack, "a discard of what was replaced"),
        (F::ClearBringsBack, "after a clear"),
        (F::Fails, "the store must be up"),
        (F::CountsNothing, "the usage is"),
    ] {
        let noticed = verdict(Faulty::new(fault)).await.expect_err(&format!("{fault:?}"));
        assert!(noticed.contains(message), "{fault:?}: {noticed}");
    }
}

#[tokio::test]
async fn scripts_notice_faults_too() {
    let script: Vec<u8> = (0..4000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_be_bytes()).collect();
    store_tests::play(&Faulty::new(F::None), &script).await;
    for fault in [F::IgnoresRemove, F::KeepsTheFirst, F::FlipsABit, F::WritesBehind] {
        let store = Faulty::new(fault);
        let played = AssertUnwindSafe(store_tests::play(&store, &script)).catch_unwind().await;
        assert!(played.is_err(), "{fault:?}");
    }
}
