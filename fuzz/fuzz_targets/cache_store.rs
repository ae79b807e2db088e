//! Any operations on a memory store of any small size: it agrees with a model, and stays within its budget.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_scale::cache::{MemoryStore, Store, store_tests};

fuzz_target!(|input: (u32, Vec<u8>)| {
    let (size, script) = input;
    let budget = u64::from(size) % (4 << 20);
    let store = MemoryStore::new(budget);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(store_tests::play(&store, &script));
    let usage = store.usage().expect("memory can tell");
    assert!(usage.bytes + store.in_flight_bytes() as u64 <= budget, "{usage:?} of {budget}");
});
