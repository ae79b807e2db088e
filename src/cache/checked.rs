//! The coalescing core under shuttle, which chooses who runs next at every lock, counter and `await`, and which fails
//! where nobody can run although somebody waits: a lost wake-up. It knows no weaker memory than sequential consistency;
//! all that the core decides is behind locks, but for the counters of [`Stripes`](super::stripes::Stripes), which are
//! read and raised by acquiring and releasing.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --lib --features cache --target-dir target/shuttle checked`. A failure prints
//! its schedule and its seed; `SHUTTLE_RANDOM_SEED` sets another seed for all.

use std::sync::Arc;

use bytes::Bytes;
use shuttle::future::{block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

use super::audience::{Audience, Presence};
use super::log::{Budget, End, Next, Reader, Writer};
use super::wakers::Watched;

const SEED: u64 = 0x7573_6572;
/// Of each of two kinds: every step by chance, and few preemptions at places chosen by chance.
const RUNS: usize = 3_000;
const PREEMPTIONS: usize = 3;

fn config() -> Config {
    let mut config = Config::new();
    config.silence_warnings = true;
    config
}

pub(super) fn check(test: fn()) {
    Runner::new(RandomScheduler::new_from_seed(SEED, RUNS), config()).run(test);
    Runner::new(PctScheduler::new_from_seed(SEED, PREEMPTIONS, RUNS), config()).run(test);
}

/// Every schedule there is.
fn check_all(test: fn()) {
    Runner::new(DfsScheduler::new(None, false), config()).run(test);
}

#[test]
fn who_watches_misses_no_change() {
    check_all(|| {
        block_on(async {
            let watched = Arc::new(Watched::new(0));
            let mut watcher = watched.watch();
            let changes = [(); 2].map(|()| {
                let watched = watched.clone();
                spawn(async move { watched.change(|count| *count += 1) })
            });
            watcher.find(|count| (*count == 2).then_some(())).await;
            for change in changes {
                change.await.unwrap();
            }
        });
    });
}

#[test]
fn the_last_who_leaves_is_noticed() {
    check_all(|| {
        block_on(async {
            let audience: Arc<Audience> = Arc::default();
            let listener = audience.listen();
            let own = audience.clone();
            let leaving = spawn(async move {
                let another = own.listen();
                drop(listener);
                drop(another);
            });
            let departures = audience.watch().find(Presence::empty).await;
            assert_eq!(departures, 1, "somebody was there all the time");
            leaving.await.unwrap();
        });
    });
}

async fn read(mut reader: Reader) -> (Vec<u8>, End) {
    let mut read = Vec::new();
    loop {
        match std::future::poll_fn(|cx| reader.poll_next(cx)).await {
            Next::Chunk(chunk) => read.extend_from_slice(&chunk),
            Next::End(end) => return (read, end),
        }
    }
}

#[test]
fn readers_get_the_whole_or_know_that_it_is_cut() {
    check(|| {
        block_on(async {
            let mut writer = Writer::new(Arc::new(Budget::new(1 << 20)).reserve(0).unwrap(), 100);
            let readers = [(); 3].map(|()| {
                let log = writer.log().clone();
                spawn(async move { read(Reader::new(&log)).await })
            });
            writer.push(Bytes::from_static(b"a")).unwrap();
            yield_now().await;
            writer.push(Bytes::from_static(b"b")).unwrap();
            let whole = thread_rng().gen_bool(0.5);
            if whole {
                writer.complete();
            } else {
                drop(writer);
            }
            for reader in readers {
                let end = if whole { End::Complete } else { End::Cut };
                assert_eq!(reader.await.unwrap(), (b"ab".to_vec(), end));
            }
        });
    });
}
