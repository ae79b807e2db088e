//! Memory for stored bodies, exactly as much as they need.
//!
//! Bodies come and go in all sizes, and a general-purpose allocator keeps what lies between them: with glibc's, a store
//! of 16 MiB grew to 29 MiB. So long bodies are mapped: their pages come from the system and go back to it.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use memmap2::{MmapMut, MmapOptions};

/// The largest pages in use on the architecture.
const PAGE: usize = if cfg!(any(target_arch = "x86", target_arch = "x86_64")) { 4 << 10 } else { 64 << 10 };
/// From here on bodies are mapped: the end of the last page, which is lost, is then an eighth at most.
const MAPPED: usize = 8 * PAGE;
/// In the process. Linux allows 65530, which stacks and the allocator need too; beyond, bodies go to the allocator.
const MAX_MAPS: usize = 16 << 10;

static MAPS: AtomicUsize = AtomicUsize::new(0);

/// What a body of `length` bytes takes, beside what `Bytes` itself allocates.
pub(super) fn cost(length: usize) -> usize {
    if length < MAPPED { length } else { length.next_multiple_of(PAGE) }
}

/// The parts as one, in memory of its own. They are `length` bytes in all.
pub(super) fn copy<'a>(length: usize, parts: impl Iterator<Item = &'a Bytes>) -> Bytes {
    match Mapped::new(length) {
        Some(mut mapped) => {
            mapped.fill(parts);
            Bytes::from_owner(mapped)
        }
        None => {
            let mut body = Vec::with_capacity(length);
            parts.for_each(|part| body.extend_from_slice(part));
            body.into()
        }
    }
}

/// A place among the maps.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let add = |maps: usize| (maps < MAX_MAPS).then_some(maps + 1);
        MAPS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        MAPS.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Mapped {
    map: MmapMut,
    _place: Place,
}

impl Mapped {
    /// `None`: not worth a map, or none to be had.
    fn new(length: usize) -> Option<Self> {
        if length < MAPPED {
            return None;
        }
        let place = Place::take()?;
        // Populated: all of it is written at once, and a page fault each would take longer than the copy.
        let map = MmapOptions::new().len(length).populate().map_anon().ok()?;
        Some(Self { map, _place: place })
    }

    fn fill<'a>(&mut self, parts: impl Iterator<Item = &'a Bytes>) {
        let mut rest = &mut *self.map;
        for part in parts {
            let Some((place, behind)) = rest.split_at_mut_checked(part.len()) else { return };
            place.copy_from_slice(part);
            rest = behind;
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_one_on_either_side_of_the_limit() {
        for length in [0, 1, MAPPED - 1, MAPPED, MAPPED + 1, 3 * MAPPED + 7] {
            let whole: Bytes = (0..length).map(|n| n.to_le_bytes()[0]).collect();
            for size in [1000, MAPPED, 10 * MAPPED] {
                let parts: Vec<_> = whole.chunks(size).map(Bytes::copy_from_slice).collect();
                assert_eq!(copy(length, parts.iter()), whole, "{length} in parts of {size}");
            }
            assert!((length..length + length / 8 + 1).contains(&cost(length)), "{length}");
        }
    }

    #[test]
    fn maps_are_counted_until_the_last_reader_has_gone() {
        // Other tests map, too: only this one maps so many.
        let part = Bytes::from(vec![0; MAPPED]);
        let held: Vec<_> = (0..100).map(|_| copy(MAPPED, [&part].into_iter())).collect();
        assert!(MAPS.load(Ordering::Relaxed) >= 100);
        let slice = held.first().unwrap().slice(..1);
        drop(held);
        assert!((1..100).contains(&MAPS.load(Ordering::Relaxed)));
        drop(slice);
    }
}
