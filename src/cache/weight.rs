//! What stored things cost in memory: an upper estimate from the sizes of the structures and of the blocks that a
//! general-purpose allocator hands out.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::entry::{Entry, Head, Kind, Record};
use super::key::Key;
use super::vary::VarySpec;

/// The counts in front of what an `Arc` holds.
const ARC: usize = 2 * size_of::<usize>();
/// `Bytes` allocates this when it is cloned first, beside the bytes.
const SHARED: usize = block(3 * size_of::<usize>());
/// A field's place in a `HeaderMap`: name, value, hash, links.
const FIELD: usize = size_of::<HeaderName>() + size_of::<HeaderValue>() + 4 * size_of::<usize>();
/// Its place in the index, which is at most three quarters full and 4 bytes wide.
const PLACE: usize = 6;
/// A further line's: value and two links.
const LINE: usize = size_of::<HeaderValue>() + 4 * size_of::<usize>();

/// What an allocation of `bytes` takes: a word before it, and steps of two words.
const fn block(bytes: usize) -> usize {
    const WORD: usize = size_of::<usize>();
    if bytes == 0 {
        return 0;
    }
    let rounded = (bytes + WORD).next_multiple_of(2 * WORD);
    if rounded < 4 * WORD { 4 * WORD } else { rounded }
}

/// A `Bytes` of its own; its handle counts where it lies.
fn bytes(length: usize) -> usize {
    if length == 0 { 0 } else { block(length) + SHARED }
}

impl Record {
    /// About how many bytes of memory it takes, its body included.
    #[must_use]
    pub fn weight(&self) -> usize {
        match &self.0 {
            Kind::Response(entry) => {
                block(ARC + size_of::<Entry>()) + bytes(super::block::cost(entry.body.len())) + head(&entry.head)
            }
            Kind::Vary(spec) => vary(spec),
        }
    }
}

/// A key's bytes, without its handle.
pub(super) fn key(key: &Key) -> usize {
    bytes(key.as_bytes().len())
}

fn head(head: &Head) -> usize {
    let tags: usize = head.tags.iter().map(|tag| size_of::<Box<str>>() + block(tag.len())).sum();
    block(ARC + size_of::<Head>()) + block(ARC + tags) + fields(&head.headers)
}

fn fields(headers: &HeaderMap) -> usize {
    let names = headers.keys_len();
    let lines = headers.len() - names;
    let text: usize = headers.keys().map(|name| bytes(name.as_str().len())).sum::<usize>()
        + headers.values().map(|value| bytes(value.len())).sum::<usize>();
    block(names * FIELD) + block(headers.capacity() * PLACE) + block(lines * LINE) + text
}

fn vary(spec: &VarySpec) -> usize {
    let names: usize = spec.names.iter().map(|name| size_of::<HeaderName>() + bytes(name.as_str().len())).sum();
    let variants: usize = spec.variants.iter().map(key).sum();
    block(ARC + size_of::<VarySpec>())
        + block(ARC + names)
        + block(spec.variants.capacity() * size_of::<Key>())
        + variants
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;

    fn response(headers: HeaderMap, body: usize, tags: &[&str]) -> Record {
        let now = SystemTime::now();
        let tags = tags.iter().map(|tag| Box::from(*tag)).collect();
        let head = Head { headers: headers.into(), tags, ..super::super::entry::tests::head(now, now) };
        Record(Kind::Response(Arc::new(Entry { head: Arc::new(head), body: vec![0; body].into() })))
    }

    #[test]
    fn everything_counts() {
        let plain = response(HeaderMap::new(), 0, &[]).weight();
        assert!(plain >= size_of::<Entry>() + size_of::<Head>());
        assert!(response(HeaderMap::new(), 1000, &[]).weight() >= plain + 1000);
        assert!(response(HeaderMap::new(), 0, &["abc", "def"]).weight() >= plain + 2 * (16 + 8));
        let field = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("0123456789"))]);
        assert!(response(field, 0, &[]).weight() >= plain + FIELD + 10);
        let mut lines = HeaderMap::new();
        for _ in 0..100 {
            lines.append(http::header::LINK, HeaderValue::from_static("0123456789"));
        }
        assert!(response(lines, 0, &[]).weight() >= plain + 100 * (LINE + 10));
        assert_eq!(response(HeaderMap::with_capacity(1000), 0, &[]).weight(), plain, "no room is kept");
    }

    #[test]
    fn variants_count_with_their_keys() {
        let names = [HeaderName::from_static("accept")];
        let until = SystemTime::now();
        let empty = VarySpec { names: names.into(), generation: 0, until, variants: Vec::new(), stamp: 0 };
        let variants = (0..32).map(|_| Key::new(&[7; 1000]).unwrap()).collect();
        let full = VarySpec { variants, ..empty.clone() };
        assert!(vary(&full) >= vary(&empty) + 32 * (1000 + size_of::<Key>()));
    }

    #[test]
    fn blocks_are_never_smaller_than_what_they_hold() {
        for bytes in 1..200 {
            assert!(block(bytes) >= bytes + size_of::<usize>() && block(bytes) <= bytes + 4 * size_of::<usize>());
        }
        assert_eq!(block(0), 0);
    }
}
