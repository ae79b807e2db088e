//! The form of a record as bytes: `magic and version, checksum, key, kind`, then the record; integers big-endian.
//!
//! The key is in it, whole: a store may look records up by any shorter name. The checksum covers everything after it.
//! Reading slices the input; only field names, tags and variants are copied, and no length that the input states makes
//! room for more than is there.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderName, HeaderValue, StatusCode};
use xxhash_rust::xxh3::xxh3_64;

use super::early::Cost;
use super::entry::{Entry, Head, Kind, Record};
use super::fields::Fields;
use super::key::Key;
use super::vary::VarySpec;

/// Raised with every change of the form: other versions' records are misses.
const MAGIC: [u8; 4] = *b"tsc3";
const HEADER: usize = MAGIC.len() + size_of::<u64>();

const RESPONSE: u8 = 0;
const VARY: u8 = 1;

const SHARED: u8 = 1;
const STRICT: u8 = 2;

/// Of a field: the length of its name, one letter, whether it is sensitive, the length of its value.
const SHORTEST_FIELD: usize = 2 + 1 + 1 + 4;

impl Record {
    /// The record as bytes, for stores outside of this process, with a checksum and the key.
    ///
    /// `None`: some part of it does not fit the form, such as a time before 1970. Then it cannot be stored; what is
    /// stored under the key must go all the same.
    #[must_use]
    pub fn encode(&self, key: &Key) -> Option<Bytes> {
        let mut out = Vec::with_capacity(key.as_bytes().len() + self.encoded_guess());
        out.put_slice(&MAGIC);
        out.put_u64(0);
        put_short(&mut out, key.as_bytes())?;
        match &self.0 {
            Kind::Response(entry) => encode_response(&mut out, entry)?,
            Kind::Vary(spec) => encode_vary(&mut out, spec)?,
        }
        let sum = xxh3_64(out.get(HEADER..)?);
        out.get_mut(MAGIC.len()..HEADER)?.copy_from_slice(&sum.to_be_bytes());
        Some(out.into())
    }

    /// The record that [`encode`](Self::encode) made `input` of. Its body shares the input's memory.
    ///
    /// `None`: it is none, was made by another version of this crate, is corrupt, or was put under another key. The
    /// checksum finds accidents; it is no defence against who can write to the store.
    #[must_use]
    pub fn decode(key: &Key, mut input: Bytes) -> Option<Self> {
        if input.len() < HEADER || input.split_to(MAGIC.len()) != MAGIC[..] {
            return None;
        }
        if input.try_get_u64().ok()? != xxh3_64(&input) || take_short(&mut input)? != key.as_bytes() {
            return None;
        }
        match input.try_get_u8().ok()? {
            RESPONSE => decode_response(input),
            VARY => decode_vary(input),
            _ => None,
        }
    }

    fn encoded_guess(&self) -> usize {
        match &self.0 {
            Kind::Response(entry) => 256 + 64 * entry.head.headers.len() + entry.body.len(),
            Kind::Vary(_) => 256,
        }
    }
}

fn encode_response(out: &mut Vec<u8>, entry: &Entry) -> Option<()> {
    // By name, so that no new field is forgotten.
    let Head {
        status,
        headers,
        born,
        fresh_until,
        revalidate_until,
        error_until,
        keep_until,
        shared,
        strict,
        stamp,
        tags,
        cost,
    } = &*entry.head;
    out.put_u8(RESPONSE);
    out.put_u16(status.as_u16());
    out.put_u8(if *shared { SHARED } else { 0 } | if *strict { STRICT } else { 0 });
    put_cost(out, cost.get())?;
    for time in [born, fresh_until, revalidate_until, error_until, keep_until] {
        put_time(out, *time)?;
    }
    out.put_u64(*stamp);
    out.put_u16(u16::try_from(tags.len()).ok()?);
    tags.iter().try_for_each(|tag| put_short(out, tag.as_bytes()))?;
    let headers = headers.plain();
    out.put_u16(u16::try_from(headers.len()).ok()?);
    for (name, value) in &headers {
        put_short(out, name.as_str().as_bytes())?;
        out.put_u8(value.is_sensitive().into());
        out.put_u32(u32::try_from(value.len()).ok()?);
        out.put_slice(value.as_bytes());
    }
    out.put_slice(&entry.body);
    Some(())
}

fn decode_response(mut input: Bytes) -> Option<Record> {
    let input = &mut input;
    let status = StatusCode::from_u16(input.try_get_u16().ok()?).ok()?;
    let flags = input.try_get_u8().ok()?;
    let took = take_cost(input)?;
    let mut head = Head {
        status,
        born: take_time(input)?,
        fresh_until: take_time(input)?,
        revalidate_until: take_time(input)?,
        error_until: take_time(input)?,
        keep_until: take_time(input)?,
        shared: flags & SHARED != 0,
        strict: flags & STRICT != 0,
        stamp: input.try_get_u64().ok()?,
        tags: take_tags(input)?,
        headers: take_fields(input)?,
        cost: OnceLock::new(),
    };
    head.cost = took.map_or_else(OnceLock::new, |took| Cost::new(took, head.fresh_until).into());
    let entry = Entry { head: Arc::new(head), body: std::mem::take(input) };
    Some(Record(Kind::Response(Arc::new(entry))))
}

fn take_tags(input: &mut Bytes) -> Option<Arc<[Box<str>]>> {
    let mut tags = Vec::new();
    for _ in 0..input.try_get_u16().ok()? {
        tags.push(std::str::from_utf8(&take_short(input)?).ok()?.into());
    }
    Some(tags.into())
}

fn take_fields(input: &mut Bytes) -> Option<Fields> {
    let count = usize::from(input.try_get_u16().ok()?);
    if count > input.len() / SHORTEST_FIELD {
        return None;
    }
    Fields::read(count, || {
        let name = take_name(input)?;
        let sensitive = input.try_get_u8().ok()? != 0;
        let length = usize::try_from(input.try_get_u32().ok()?).ok()?;
        let mut value = HeaderValue::from_maybe_shared(take(input, length)?).ok()?;
        value.set_sensitive(sensitive);
        Some((name, value))
    })
}

fn encode_vary(out: &mut Vec<u8>, spec: &VarySpec) -> Option<()> {
    let VarySpec { names, generation, until, variants, stamp: _ } = spec;
    out.put_u8(VARY);
    out.put_u64(*generation);
    put_time(out, *until)?;
    out.put_u16(u16::try_from(names.len()).ok()?);
    names.iter().try_for_each(|name| put_short(out, name.as_str().as_bytes()))?;
    out.put_u16(u16::try_from(variants.len()).ok()?);
    variants.iter().try_for_each(|variant| put_short(out, variant.as_bytes()))
}

fn decode_vary(mut input: Bytes) -> Option<Record> {
    let generation = input.try_get_u64().ok()?;
    let until = take_time(&mut input)?;
    let mut names = Vec::new();
    for _ in 0..input.try_get_u16().ok()? {
        names.push(take_name(&mut input)?);
    }
    let mut variants = Vec::new();
    for _ in 0..input.try_get_u16().ok()? {
        variants.push(Key::new(&take_short(&mut input)?)?);
    }
    let spec = VarySpec { names: names.into(), generation, until, variants, stamp: 0 };
    input.is_empty().then(|| Record(Kind::Vary(Arc::new(spec))))
}

fn put_short(out: &mut Vec<u8>, part: &[u8]) -> Option<()> {
    out.put_u16(u16::try_from(part.len()).ok()?);
    out.put_slice(part);
    Some(())
}

fn take_short(input: &mut Bytes) -> Option<Bytes> {
    let length = usize::from(input.try_get_u16().ok()?);
    take(input, length)
}

fn take(input: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= input.len()).then(|| input.split_to(length))
}

fn take_name(input: &mut Bytes) -> Option<HeaderName> {
    let length = usize::from(input.try_get_u16().ok()?);
    let name = HeaderName::from_bytes(input.get(..length)?).ok()?;
    input.advance(length);
    Some(name)
}

/// To the nanosecond: a record must come back equal.
fn put_time(out: &mut Vec<u8>, time: SystemTime) -> Option<()> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    out.put_u64(since.as_secs());
    out.put_u32(since.subsec_nanos());
    Some(())
}

fn take_time(input: &mut Bytes) -> Option<SystemTime> {
    let seconds = Duration::from_secs(input.try_get_u64().ok()?);
    let nanos = Duration::from_nanos(input.try_get_u32().ok()?.into());
    UNIX_EPOCH.checked_add(seconds.checked_add(nanos)?)
}

/// A byte that tells whether it is known, then nanoseconds.
fn put_cost(out: &mut Vec<u8>, cost: Option<&Cost>) -> Option<()> {
    out.put_u8(cost.is_some().into());
    out.put_u64(cost.map_or(Ok(0), |cost| u64::try_from(cost.took().as_nanos())).ok()?);
    Some(())
}

fn take_cost(input: &mut Bytes) -> Option<Option<Duration>> {
    let is_known = input.try_get_u8().ok()? != 0;
    let took = Duration::from_nanos(input.try_get_u64().ok()?);
    Some(is_known.then_some(took))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text.as_bytes()).unwrap()
    }

    fn at(nanos: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(nanos)
    }

    /// No two of its parts are alike.
    fn response(body: &[u8]) -> Record {
        let mut headers = HeaderMap::new();
        for (name, value) in [("link", "a"), ("link", "b"), ("etag", "\"x\""), ("x-empty", "")] {
            headers.append(name, value.parse().unwrap());
        }
        headers.append("x-bytes", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        let head = Head {
            status: StatusCode::NOT_FOUND,
            headers: headers.into(),
            born: at(1_700_000_000_123_456_789),
            fresh_until: at(1_700_000_060_000_000_001),
            revalidate_until: at(1_700_000_070_000_000_002),
            error_until: at(1_700_000_080_000_000_003),
            keep_until: at(1_700_000_090_000_000_004),
            shared: true,
            strict: false,
            stamp: 0x0123_4567_89ab_cdef,
            tags: ["a".into(), "".into(), "ü b".into()].into(),
            cost: Cost::new(Duration::from_nanos(1_234_567_891), at(1_700_000_060_000_000_001)).into(),
        };
        Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: Bytes::copy_from_slice(body) })))
    }

    fn spec(variants: usize) -> Record {
        let names = [HeaderName::from_static("accept"), HeaderName::from_static("x-shape")];
        let variants = (0..variants).map(|n| key(&format!("/\0{n}"))).collect();
        let spec = VarySpec { names: names.into(), generation: 7, until: at(5), variants, stamp: 0 };
        Record(Kind::Vary(Arc::new(spec)))
    }

    #[test]
    fn records_come_back_whole() {
        let strict =
            Head { strict: true, shared: false, tags: [].into(), cost: OnceLock::new(), ..head_of(&response(b"")) };
        let strict = Record(Kind::Response(Arc::new(Entry { head: Arc::new(strict), body: Bytes::new() })));
        for record in [response(b""), response(b"hello"), strict, spec(0), spec(32)] {
            let encoded = record.encode(&key("/")).unwrap();
            assert_eq!(Record::decode(&key("/other"), encoded.clone()), None);
            assert_eq!(Record::decode(&key("/"), encoded), Some(record));
        }
    }

    fn head_of(record: &Record) -> Head {
        match &record.0 {
            Kind::Response(entry) => (*entry.head).clone(),
            Kind::Vary(_) => panic!("a response"),
        }
    }

    #[test]
    fn secrets_stay_marked() {
        let mut head = head_of(&response(b""));
        let mut headers = head.headers.plain();
        headers.get_mut("etag").unwrap().set_sensitive(true);
        head.headers = headers.into();
        let record = Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: Bytes::new() })));
        let back = head_of(&Record::decode(&key("/"), record.encode(&key("/")).unwrap()).unwrap());
        assert!(back.headers["etag"].is_sensitive() && !back.headers["x-empty"].is_sensitive());
    }

    #[test]
    fn what_has_no_form_is_refused() {
        let early = Head { born: UNIX_EPOCH - Duration::from_nanos(1), ..head_of(&response(b"")) };
        let long = Head { tags: ["x".repeat(1 << 16).into()].into(), ..head_of(&response(b"")) };
        for head in [early, long] {
            let record = Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: Bytes::new() })));
            assert_eq!(record.encode(&key("/")), None);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for record in [response(b"hello"), spec(2)] {
            let encoded = record.encode(&key("/")).unwrap();
            for at in 0..encoded.len() {
                assert_eq!(Record::decode(&key("/"), encoded.slice(..at)), None, "cut at {at}");
                for bit in 0..8 {
                    let mut broken = BytesMut::from(&*encoded);
                    broken[at] ^= 1 << bit;
                    assert_eq!(Record::decode(&key("/"), broken.freeze()), None, "bit {bit} of byte {at}");
                }
            }
        }
    }

    /// With a checksum and a key that are right.
    fn sealed(payload: &[u8]) -> Bytes {
        let (mut body, mut out) = (Vec::new(), BytesMut::new());
        put_short(&mut body, key("/").as_bytes()).unwrap();
        body.put_slice(payload);
        out.put_slice(&MAGIC);
        out.put_u64(xxh3_64(&body));
        out.put_slice(&body);
        out.freeze()
    }

    proptest! {
        #[test]
        fn any_payload_is_read_without_a_panic(payload: Vec<u8>) {
            let _ = Record::decode(&key("/"), sealed(&payload));
        }

        /// Close to the form, so that every part of it is reached; what is read can be written again, and means the same.
        #[test]
        fn broken_payloads_are_read_without_a_panic(
            flips in proptest::collection::vec((0usize..400, any::<u8>()), 0..8), cut in 0usize..400, vary: bool
        ) {
            let record = if vary { spec(3) } else { response(b"hello") };
            let encoded = record.encode(&key("/")).unwrap();
            let mut payload = encoded[HEADER + 3..].to_vec();
            payload.truncate(cut);
            for (at, byte) in flips {
                if let Some(place) = payload.get_mut(at) {
                    *place = byte;
                }
            }
            if let Some(read) = Record::decode(&key("/"), sealed(&payload)) {
                let again = read.encode(&key("/")).unwrap();
                prop_assert_eq!(Record::decode(&key("/"), again), Some(read));
            }
        }
    }
}
