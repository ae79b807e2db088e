//! What everything is called in Redis.

use xxhash_rust::xxh3::xxh3_128;

use crate::cache::key::Key;
use crate::cache::purge::Url;

#[derive(Clone, Debug)]
pub(super) struct Names {
    /// What all of them begin with.
    root: Box<[u8]>,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { root: [prefix.as_bytes(), b"cache:"].concat().into() }
    }

    pub(super) fn record(&self, key: &Key) -> Vec<u8> {
        self.of(key, &text(xxh3_128(key.as_bytes())), b"")
    }

    /// Of the response, and of its URL's generations.
    pub(super) fn lookup(&self, key: &Key) -> [Vec<u8>; 2] {
        let url = key.url();
        let url = hashed(url.scheme, url.host, url.asked());
        [self.name(&url, &text(xxh3_128(key.as_bytes())), b""), self.name(&url, b"g", b"")]
    }

    pub(super) fn lease(&self, key: &Key) -> Vec<u8> {
        self.of(key, &text(xxh3_128(key.as_bytes())), b"l")
    }

    /// The generations of the key's URL.
    pub(super) fn generations(&self, key: &Key) -> Vec<u8> {
        self.of(key, b"g", b"")
    }

    /// The same, for a purge.
    pub(super) fn generations_of(&self, url: &Url) -> Vec<u8> {
        let (scheme, host) = (url.origin.scheme().as_bytes(), url.origin.host().as_bytes());
        self.under(scheme, host, url.target.as_bytes(), b"g", b"")
    }

    pub(super) fn tag(&self, tag: &str) -> Vec<u8> {
        [&*self.root, b"{gens}t:", &text(xxh3_128(tag.as_bytes()))].concat()
    }

    pub(super) fn broad(&self) -> Vec<u8> {
        [&*self.root, b"{gens}broad"].concat()
    }

    pub(super) fn channel(&self) -> Vec<u8> {
        [&*self.root, b"inv"].concat()
    }

    /// What the store that sends as `sender` tells only itself, beside the channel.
    pub(super) fn echo(&self, sender: u64) -> Vec<u8> {
        [&*self.root, format!("inv:{sender:016x}").as_bytes()].concat()
    }

    fn of(&self, key: &Key, name: &[u8], suffix: &[u8]) -> Vec<u8> {
        let url = key.url();
        self.under(url.scheme, url.host, url.asked(), name, suffix)
    }

    /// A name of this URL: all of them are on one node of a cluster.
    fn under(&self, scheme: &[u8], host: &[u8], target: &[u8], name: &[u8], suffix: &[u8]) -> Vec<u8> {
        self.name(&hashed(scheme, host, target), name, suffix)
    }

    fn name(&self, url: &[u8], name: &[u8], suffix: &[u8]) -> Vec<u8> {
        [&*self.root, b"{", url, b"}", name, suffix].concat()
    }
}

/// What all names of a URL have in common.
fn hashed(scheme: &[u8], host: &[u8], target: &[u8]) -> [u8; 22] {
    text(xxh3_128(&[scheme, b"\0", host, b"\0", target].concat()))
}

/// 22 characters of the alphabet for URLs (RFC 4648 §5).
fn text(hash: u128) -> [u8; 22] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut rest = hash;
    [(); 22].map(|()| {
        let bits = rest >> (128 - 6);
        rest <<= 6;
        usize::try_from(bits).ok().and_then(|at| ALPHABET.get(at)).copied().unwrap_or(b'A')
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use http::{Extensions, HeaderMap};

    use super::*;
    use crate::cache::intake::Intake;
    use crate::cache::purge::{Purge, What};

    fn key(url: &str) -> Key {
        Key::primary(&Intake::default(), &url.parse().unwrap(), &HeaderMap::new(), &Extensions::new()).unwrap()
    }

    fn variant(key: &Key, value: &[u8]) -> Key {
        key.extend(|key| key.push(value)).unwrap()
    }

    fn text_of(name: Vec<u8>) -> String {
        String::from_utf8(name).unwrap()
    }

    #[test]
    fn hashes_become_22_different_characters() {
        assert_eq!(&text(0), b"AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(&text(u128::MAX), b"_____________________w");
        assert_eq!(&text(1), b"AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(&text(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef), b"ASNFZ4mrze8BI0VniavN7w");
    }

    #[test]
    fn all_of_one_url_has_one_hash_tag() {
        let names = Names::new("ts:");
        let (one, other) = (key("https://h/a?b"), key("https://h/a?c"));
        let of = |key: &Key| [names.record(key), names.lease(key), names.generations(key)].map(text_of);
        let all = [of(&one), of(&variant(&one, b"x")), of(&variant(&one, b"y"))];
        let slots: HashSet<_> = all.iter().flatten().map(|name| name.split('}').next().unwrap().to_owned()).collect();
        assert_eq!(slots.len(), 1, "{all:?}");
        assert!(!slots.contains(of(&other)[0].split('}').next().unwrap()));
        let distinct: HashSet<_> = all.iter().flatten().collect();
        assert_eq!(distinct.len(), 7, "three records, three leases, one for their generations");
        for key in [&one, &variant(&one, b"x")] {
            assert_eq!(names.lookup(key), [names.record(key), names.generations(key)]);
        }
        assert!(all.iter().flatten().all(|name| name.starts_with("ts:cache:{") && name.len() < 64), "{all:?}");
        assert!(!text_of(names.tag("a b")).contains(' '));
        assert_eq!(text_of(names.broad()), "ts:cache:{gens}broad");
        assert_eq!(text_of(names.channel()), "ts:cache:inv");
        assert_eq!(text_of(names.echo(0xabc)), "ts:cache:inv:0000000000000abc");
    }

    #[test]
    fn a_purge_finds_the_generations_of_its_url() {
        let names = Names::new("");
        for (purge, stored) in [("https://H:443/a?b#c", "https://h/a?b"), ("http://h:81", "http://h:81/")] {
            let Purge(What::Url(url)) = Purge::url(purge).unwrap() else { panic!("a URL") };
            assert_eq!(names.generations_of(&url), names.generations(&key(stored)));
            assert_eq!(names.generations_of(&url), names.generations(&variant(&key(stored), b"x")));
        }
    }
}
