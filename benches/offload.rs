//! The cost of a hop: `OffloadPool::run` beside tokio's `spawn_blocking`, for nothing and for fixed work.
//!
//! `cargo bench --features full --bench offload`
#![allow(missing_docs, clippy::disallowed_methods, clippy::unwrap_used)]

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use tokio::runtime::{Builder, Runtime};
use tower_scale::offload::OffloadPool;

fn work(steps: u64) -> u64 {
    (0..steps).fold(1, |x, step| black_box(x ^ step).wrapping_mul(31))
}

/// As many threads for the one as for the other.
fn runtime() -> Runtime {
    Builder::new_current_thread().max_blocking_threads(1).build().unwrap()
}

fn hop(criterion: &mut Criterion) {
    let runtime = runtime();
    let pool = OffloadPool::builder().threads(NonZeroUsize::MIN).build().unwrap();
    for (name, concurrent) in [("alone", 1_usize), ("64 at once", 64)] {
        for (size, steps) in [("empty", 0), ("20k steps", 20_000)] {
            let mut group = criterion.benchmark_group(format!("{name}, {size}"));
            group.throughput(Throughput::Elements(concurrent as u64));
            group.bench_function("pool.run", |bencher| {
                bencher.iter(|| runtime.block_on(join_all((0..concurrent).map(|_| pool.run(move || work(steps))))));
            });
            group.bench_function("spawn_blocking", |bencher| {
                bencher.iter(|| {
                    runtime.block_on(async {
                        join_all((0..concurrent).map(|_| tokio::task::spawn_blocking(move || work(steps)))).await
                    })
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, hop);
criterion_main!(benches);
