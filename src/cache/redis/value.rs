//! The form of a response in Redis: what it was stored under, then the record. Integers are big-endian.
//!
//! No checksum but the record's: whatever is wrong with the rest makes a miss, or a stale response.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Buf, BufMut, Bytes};

use super::tags::Generations;
use crate::cache::entry::{Entry, Head, Kind, Record};
use crate::cache::key::Key;

/// Where a value's identity stands; the scripts know it too.
const SEEN: std::ops::Range<usize> = 32..40;

/// What a response was stored under, and the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// Of the URL.
    pub(super) generations: Generations,
    /// The newest broad purge that was known when its request was forwarded.
    pub(super) broad: u128,
    /// In the order of the response's tags.
    pub(super) tags: Vec<Generations>,
    pub(super) record: Record,
}

/// Identifies what stands under a key. 0: nothing, or nothing of ours.
pub(super) fn seen(value: &[u8]) -> u64 {
    value.get(SEEN).and_then(|id| id.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// All of a value behind the URL's generations, which the script that stores it puts in front.
pub(super) fn rest(id: u64, broad: u128, tags: &[Generations], record: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(8 + 16 + 2 + 32 * tags.len() + record.len());
    out.put_u64(id);
    out.put_u128(broad);
    out.put_u16(u16::try_from(tags.len()).ok()?);
    tags.iter().for_each(|pair| out.extend_from_slice(&pack(*pair)));
    out.extend_from_slice(record);
    Some(out)
}

/// `None`: not one of ours, or another key's.
pub(super) fn decode(key: &Key, mut input: Bytes) -> Option<Value> {
    let generations = take(&mut input)?;
    let _id = input.try_get_u64().ok()?;
    let broad = input.try_get_u128().ok()?;
    let count = input.try_get_u16().ok()?;
    let mut tags = Vec::new();
    for _ in 0..count {
        tags.push(take(&mut input)?);
    }
    let record = Record::decode(key, input)?;
    (tags.len() == tags_of(&record).len()).then_some(Value { generations, broad, tags, record })
}

/// Both, as they stand in Redis.
pub(super) fn pack((hard, soft): Generations) -> [u8; 32] {
    let mut out = [0; 32];
    let (front, back) = out.split_at_mut(16);
    front.copy_from_slice(&hard.to_be_bytes());
    back.copy_from_slice(&soft.to_be_bytes());
    out
}

/// What [`pack`] made of them, and nothing behind.
pub(super) fn unpack(mut input: &[u8]) -> Option<Generations> {
    let pair = take(&mut input)?;
    input.is_empty().then_some(pair)
}

/// A URL's generations, and whether its responses have been cacheable.
pub(super) fn unpack_marked(input: &[u8]) -> Option<(Generations, bool)> {
    let (marked, pair) = input.split_last()?;
    Some((unpack(pair)?, *marked != 0))
}

fn take(input: &mut impl Buf) -> Option<Generations> {
    Some((input.try_get_u128().ok()?, input.try_get_u128().ok()?))
}

pub(super) fn tags_of(record: &Record) -> &[Box<str>] {
    match &record.0 {
        Kind::Response(entry) => &entry.head.tags,
        Kind::Vary(_) => &[],
    }
}

/// The response as this process has it: dated by its own clock of purges, and stale from `stale` on.
pub(super) fn adopt(mut record: Record, stamp: u64, stale: Option<SystemTime>) -> Record {
    let change = |head: &mut Head| {
        head.stamp = stamp;
        if let Some(now) = stale.filter(|now| *now < head.fresh_until) {
            // What may not be served stale may not for having become so earlier.
            let expired = |until: SystemTime| if until > head.fresh_until { until } else { now };
            (head.revalidate_until, head.error_until) = (expired(head.revalidate_until), expired(head.error_until));
            head.fresh_until = now;
        }
    };
    match &mut record.0 {
        // It has just been decoded: nobody else has it.
        Kind::Response(entry) => match Arc::get_mut(entry).and_then(|entry| Arc::get_mut(&mut entry.head)) {
            Some(head) => change(head),
            None => {
                let mut head = Head::clone(&entry.head);
                change(&mut head);
                *entry = Arc::new(Entry::new(Arc::new(head), entry.body.clone()));
            }
        },
        Kind::Vary(spec) => Arc::make_mut(spec).stamp = stamp,
    }
    record
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::cache::entry::tests::head;
    use crate::cache::vary::VarySpec;

    fn key() -> Key {
        Key::new(b"/").unwrap()
    }

    fn response(tags: &[&str]) -> Record {
        let now = SystemTime::now();
        let tags = tags.iter().map(|tag| Box::from(*tag)).collect();
        let head = Head { tags, ..head(now, now + Duration::from_secs(60)) };
        Record(Kind::Response(Arc::new(Entry::new(Arc::new(head), Bytes::from_static(b"hello")))))
    }

    fn spec() -> Record {
        let until = SystemTime::now();
        Record(Kind::Vary(Arc::new(VarySpec {
            names: [].into(),
            generation: 1,
            until,
            variants: Vec::new(),
            stamp: 0,
        })))
    }

    fn encode(pair: Generations, id: u64, broad: u128, tags: &[Generations], record: &Record) -> Bytes {
        let rest = rest(id, broad, tags, &record.encode(&key()).unwrap()).unwrap();
        [&pack(pair)[..], &rest].concat().into()
    }

    proptest! {
        #[test]
        fn values_come_back_and_cut_ones_do_not(
            pair: (u128, u128), id: u64, broad: u128, tags in proptest::collection::vec(any::<(u128, u128)>(), 0..4),
            part in 0.0..1.0,
        ) {
            let names = ["a", "b", "c"];
            for record in [response(&names[..tags.len()]), spec()] {
                let tags = if matches!(record.0, Kind::Vary(_)) { Vec::new() } else { tags.clone() };
                let encoded = encode(pair, id, broad, &tags, &record);
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
                let cut = encoded.slice(..(encoded.len() as f64 * part) as usize);
                prop_assert_eq!(decode(&key(), cut), None);
                prop_assert_eq!(seen(&encoded), id);
                prop_assert_eq!(decode(&Key::new(b"/other").unwrap(), encoded.clone()), None);
                let value = Value { generations: pair, broad, tags, record };
                prop_assert_eq!(decode(&key(), encoded), Some(value));
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&key(), bytes.clone().into()), None);
            let _ = (seen(&bytes), unpack(&bytes), unpack_marked(&bytes));
        }

        #[test]
        fn a_flipped_bit_in_front_changes_no_response(bit in 0usize..(32 + 8 + 16 + 2 + 32) * 8) {
            let record = response(&["a"]);
            let mut bytes = encode((1, 2), 3, 4, &[(5, 6)], &record).to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = decode(&key(), bytes.into());
            prop_assert!(read.is_none_or(|read| read.record == record && read.tags.len() == 1));
        }
    }

    #[test]
    fn a_value_has_as_many_generations_as_its_response_has_tags() {
        assert_eq!(decode(&key(), encode((1, 2), 3, 4, &[(5, 6)], &response(&[]))), None);
        assert_eq!(decode(&key(), encode((1, 2), 3, 4, &[], &response(&["a"]))), None);
        assert_eq!(decode(&key(), encode((1, 2), 3, 4, &[(5, 6)], &spec())), None);
        assert_eq!((seen(b""), seen(&[1; 39]), seen(&[1; 40])), (0, 0, 0x0101_0101_0101_0101));
    }

    #[test]
    fn generations_have_exactly_their_length() {
        let packed = pack((7, 9));
        assert_eq!(unpack(&packed), Some((7, 9)));
        assert_eq!((unpack(&packed[1..]), unpack(&[&packed[..], b"x"].concat()), unpack(b"")), (None, None, None));
        let marked = |byte: &[u8]| unpack_marked(&[&packed[..], byte].concat());
        assert_eq!((marked(b"\0"), marked(b"\x01")), (Some(((7, 9), false)), Some(((7, 9), true))));
        assert_eq!((marked(b""), marked(b"xx"), unpack_marked(b"")), (None, None, None));
    }

    #[test]
    fn what_is_adopted_is_dated_anew_also_while_others_hold_it() {
        let now = SystemTime::now();
        let head_of = |record: &Record| match &record.0 {
            Kind::Response(entry) => (*entry.head).clone(),
            Kind::Vary(_) => panic!("a response"),
        };
        for held in [None, Some(response(&["a"]))] {
            let record = held.clone().unwrap_or_else(|| response(&["a"]));
            let fresh = head_of(&record);
            let adopted = head_of(&adopt(record.clone(), 77, None));
            assert_eq!(adopted, Head { stamp: 77, ..fresh.clone() });
            let stale = head_of(&adopt(record, 78, Some(now)));
            let without = Head { fresh_until: now, revalidate_until: now, error_until: now, ..fresh };
            assert_eq!(stale, Head { stamp: 78, ..without });
            assert!(held.is_none_or(|held| head_of(&held).stamp < 77));
        }
        let (spec, stamp_of) = (spec(), |record: &Record| match &record.0 {
            Kind::Response(_) => panic!("a spec"),
            Kind::Vary(spec) => spec.stamp,
        });
        assert_eq!((stamp_of(&adopt(spec.clone(), 5, None)), stamp_of(&spec)), (5, 0));
    }

    #[test]
    fn being_stale_permits_nothing_that_was_not_permitted() {
        let now = SystemTime::now();
        let at = |seconds: i64| match seconds {
            0.. => now + Duration::from_secs(seconds.unsigned_abs()),
            _ => now - Duration::from_secs(seconds.unsigned_abs()),
        };
        for (times, expected) in [
            // Fresh until, stale while it is renewed until, instead of an error until.
            ((60, 60, 60), (0, 0, 0)),
            ((60, 70, 60), (0, 70, 0)),
            ((60, 60, 80), (0, 0, 80)),
            ((60, 0, 0), (0, 0, 0)),
            ((-5, -5, -5), (-5, -5, -5)),
            ((-5, 5, 5), (-5, 5, 5)),
        ] {
            let head = Head { revalidate_until: at(times.1), error_until: at(times.2), ..head(at(-100), at(times.0)) };
            let record = Record(Kind::Response(Arc::new(Entry::new(Arc::new(head), Default::default()))));
            let Kind::Response(entry) = adopt(record, 1, Some(now)).0 else { panic!("a response") };
            let found = (entry.head.fresh_until, entry.head.revalidate_until, entry.head.error_until);
            assert_eq!(found, (at(expected.0), at(expected.1), at(expected.2)), "{times:?}");
        }
    }
}
