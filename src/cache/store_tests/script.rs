//! Operations that bytes choose, against a model.

use super::samples::{Samples, response, vary};
use super::{get, put, remove};
use crate::cache::entry::Record;
use crate::cache::store::Store;

const KEYS: u8 = 16;

/// Does what `script` says, two bytes an operation, and checks every answer: for fuzzing and property tests, where the
/// script is what they vary.
///
/// # Panics
/// Where the store breaks the contract of [`Store`].
pub async fn play(store: &impl Store, script: &[u8]) {
    let samples = Samples::new();
    let mut model: [Option<Record>; KEYS as usize] = Default::default();
    for (at, step) in script.chunks_exact(2).enumerate() {
        let &[operation, argument] = step else { continue };
        let key = samples.key_with(&[argument % KEYS]);
        let Some(known) = model.get_mut(usize::from(argument % KEYS)) else { continue };
        let what = format!("step {at} of the script ({operation}, {argument})");
        match operation % 8 {
            0..=2 => {
                let most = store.max_object_bytes().min(1 << 16);
                // Mostly small, now and then as long as it gets.
                let body = if operation % 8 == 0 { most } else { usize::from(argument) << (operation >> 5) };
                let record = response(samples.number(), body.min(most));
                put(store, &key, &record).await;
                *known = Some(record);
            }
            3 => {
                let record = vary(samples.number(), std::slice::from_ref(&key));
                put(store, &key, &record).await;
                *known = Some(record);
            }
            4 => {
                remove(store, &key).await;
                *known = None;
            }
            5 => {
                // With what was found, which may not be there any more; what is there must be right all the same.
                if let Some(record) = get(store, &key).await {
                    store.discard(&key, &record);
                }
            }
            6 if argument == u8::MAX => store.clear(),
            _ => {}
        }
        let found = get(store, &key).await;
        assert!(found.is_none() || found == *known, "{what}: found {found:?} instead of {known:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::MemoryStore;

    proptest! {
        #[test]
        fn memory_stores_of_any_size_agree_with_the_model(
            bytes in 0u64..400_000, script in proptest::collection::vec(any::<u8>(), 0..600)
        ) {
            let store = MemoryStore::new(bytes);
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(play(&store, &script));
            let held = store.usage().unwrap().bytes + store.in_flight_bytes() as u64;
            prop_assert!(held <= bytes);
        }
    }
}
