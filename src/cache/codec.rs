//! The form of a record in a shared store: `magic and version, checksum, kind`, then the record; integers big-endian.
//!
//! The checksum also covers the key, so a record under a key that is not its own is as unreadable as a corrupt one.
//! Reading slices the reply; only field names are looked up or copied.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use xxhash_rust::xxh3::Xxh3;

use super::entry::{Entry, Head, Kind, Record};
use super::key::Key;
use super::vary::VarySpec;

/// Raised with every change of the form: other versions' records are misses.
const MAGIC: [u8; 4] = *b"tsc1";
const HEADER: usize = MAGIC.len() + size_of::<u64>();

const RESPONSE: u8 = 0;
const VARY: u8 = 1;

/// `None`: some part is too long for the form.
pub(super) fn encode(key: &Key, record: &Record) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(match &record.0 {
        Kind::Response(entry) => 512 + entry.body.len(),
        Kind::Vary(_) => 256,
    });
    out.put_slice(&MAGIC);
    out.put_u64(0);
    match &record.0 {
        Kind::Response(entry) => encode_response(&mut out, entry)?,
        Kind::Vary(spec) => encode_vary(&mut out, spec)?,
    }
    let sum = checksum(key, out.get(HEADER..)?);
    out.get_mut(MAGIC.len()..HEADER)?.copy_from_slice(&sum.to_be_bytes());
    Some(out)
}

/// `None`: it is none of ours, of another version, corrupt, or stored under another key.
pub(super) fn decode(key: &Key, mut input: Bytes) -> Option<Record> {
    if input.len() < HEADER || input.split_to(MAGIC.len()) != MAGIC[..] {
        return None;
    }
    if input.try_get_u64().ok()? != checksum(key, &input) {
        return None;
    }
    match input.try_get_u8().ok()? {
        RESPONSE => decode_response(input),
        VARY => decode_vary(input),
        _ => None,
    }
}

fn checksum(key: &Key, payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(key.as_bytes());
    hash.update(payload);
    hash.digest()
}

fn encode_response(out: &mut Vec<u8>, entry: &Entry) -> Option<()> {
    let head = &*entry.head;
    out.put_u8(RESPONSE);
    out.put_u16(head.status.as_u16());
    out.put_u8(head.shared.into());
    out.put_u64(millis(head.born)?);
    out.put_u64(millis(head.fresh_until)?);
    out.put_u16(u16::try_from(head.headers.len()).ok()?);
    for (name, value) in &head.headers {
        out.put_u16(u16::try_from(name.as_str().len()).ok()?);
        out.put_slice(name.as_str().as_bytes());
        out.put_u32(u32::try_from(value.len()).ok()?);
        out.put_slice(value.as_bytes());
    }
    out.put_slice(&entry.body);
    Some(())
}

fn decode_response(mut input: Bytes) -> Option<Record> {
    let status = StatusCode::from_u16(input.try_get_u16().ok()?).ok()?;
    let shared = input.try_get_u8().ok()? == 1;
    let born = time(input.try_get_u64().ok()?)?;
    let fresh_until = time(input.try_get_u64().ok()?)?;
    let fields = usize::from(input.try_get_u16().ok()?);
    let mut headers = HeaderMap::new();
    for _ in 0..fields {
        let length = usize::from(input.try_get_u16().ok()?);
        let name = HeaderName::from_bytes(&take(&mut input, length)?).ok()?;
        let length = usize::try_from(input.try_get_u32().ok()?).ok()?;
        let value = HeaderValue::from_maybe_shared(take(&mut input, length)?).ok()?;
        headers.try_append(name, value).ok()?;
    }
    let head = Head {
        status,
        headers,
        born,
        fresh_until,
        revalidate_until: fresh_until,
        error_until: fresh_until,
        keep_until: fresh_until,
        shared,
        strict: true,
        stamp: 0,
        tags: [].into(),
    };
    Some(Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: input }))))
}

fn encode_vary(out: &mut Vec<u8>, spec: &VarySpec) -> Option<()> {
    out.put_u8(VARY);
    out.put_u64(spec.generation);
    out.put_u64(millis(spec.until)?);
    out.put_u16(u16::try_from(spec.names.len()).ok()?);
    for name in spec.names.iter() {
        out.put_u16(u16::try_from(name.as_str().len()).ok()?);
        out.put_slice(name.as_str().as_bytes());
    }
    Some(())
}

fn decode_vary(mut input: Bytes) -> Option<Record> {
    let generation = input.try_get_u64().ok()?;
    let until = time(input.try_get_u64().ok()?)?;
    let count = input.try_get_u16().ok()?;
    let names = (0..count).map(|_| {
        let length = usize::from(input.try_get_u16().ok()?);
        HeaderName::from_bytes(&take(&mut input, length)?).ok()
    });
    let names: Option<Vec<_>> = names.collect();
    let spec = VarySpec { names: names?.into(), generation, until, variants: Vec::new() };
    Some(Record(Kind::Vary(Arc::new(spec))))
}

fn take(input: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= input.len()).then(|| input.split_to(length))
}

fn millis(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

fn time(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use http::Extensions;
    use proptest::prelude::*;

    use super::*;

    fn key(path: &str) -> Key {
        let headers = HeaderMap::from_iter([(http::header::HOST, "a".parse().unwrap())]);
        Key::primary(&path.parse().unwrap(), &headers, &Extensions::new()).unwrap()
    }

    fn record(body: &[u8]) -> Record {
        let mut headers = HeaderMap::new();
        for (name, value) in [("link", "a"), ("link", "b"), ("etag", "\"x\""), ("x-empty", "")] {
            headers.append(name, value.parse().unwrap());
        }
        headers.append("x-bytes", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        let times = super::super::entry::tests::head(at(1_700_000_000_123), at(1_700_000_060_123));
        let head = Head { status: StatusCode::NOT_FOUND, headers, shared: true, strict: true, ..times };
        Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: Bytes::copy_from_slice(body) })))
    }

    fn spec() -> Record {
        let names = [HeaderName::from_static("accept"), HeaderName::from_static("x-shape")];
        let until = UNIX_EPOCH + Duration::from_millis(5);
        Record(Kind::Vary(Arc::new(VarySpec { names: names.into(), generation: 7, until, variants: Vec::new() })))
    }

    #[test]
    fn records_come_back_whole() {
        for record in [record(b""), record(b"hello"), spec()] {
            let encoded = encode(&key("/"), &record).unwrap();
            assert_eq!(decode(&key("/"), encoded.clone().into()), Some(record));
            assert_eq!(decode(&key("/other"), encoded.into()), None);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for record in [record(b"hello"), spec()] {
            let encoded = encode(&key("/"), &record).unwrap();
            for at in 0..encoded.len() {
                assert_eq!(decode(&key("/"), Bytes::copy_from_slice(&encoded[..at])), None, "cut at {at}");
                for bit in 0..8 {
                    let mut broken = encoded.clone();
                    broken[at] ^= 1 << bit;
                    assert_eq!(decode(&key("/"), broken.into()), None, "bit {bit} of byte {at}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_with_a_right_checksum_are_read_without_a_panic(payload: Vec<u8>) {
            let mut input = BytesMut::new();
            input.put_slice(&MAGIC);
            input.put_u64(checksum(&key("/"), &payload));
            input.put_slice(&payload);
            let _ = decode(&key("/"), input.freeze());
        }
    }
}
