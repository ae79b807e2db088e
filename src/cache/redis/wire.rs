//! Numbers and purges as bytes, the same in messages and in lists.

use crate::cache::control::MAX_TAG;
use crate::cache::key::MAX_KEY_BYTES;
use crate::cache::purge::{MAX_PREFIX, Purge, Url, What};

const URL: u8 = 1;
const PREFIX: u8 = 2;
const TAG: u8 = 3;
const EVERYTHING: u8 = 4;

/// What has a greater path and query is stored nowhere.
const MAX_TARGET: usize = MAX_KEY_BYTES;
/// `https://`, and a host as long as hosts may be, with a port.
const MAX_ORIGIN: usize = 300;

/// Whether anything can be stored that it names.
pub(super) fn is_findable(Purge(what): &Purge) -> bool {
    !matches!(what, What::Url(url) if url.target.len() > MAX_TARGET)
}

/// Needs no length behind it: its own are within.
pub(super) fn put_purge(out: &mut Vec<u8>, Purge(what): &Purge) {
    match what {
        What::Url(url) => put_url(out, URL, url),
        What::Prefix(url) => put_url(out, PREFIX, url),
        What::Tag(tag) => {
            out.push(TAG);
            put_text(out, tag);
        }
        What::Everything => out.push(EVERYTHING),
    }
}

fn put_url(out: &mut Vec<u8>, kind: u8, Url { origin, target }: &Url) {
    out.push(kind);
    put_text(out, &origin.to_string());
    put_text(out, target);
}

/// A length that does not fit is greater than any that is read.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Takes bytes from the front; `None` where there are too few, or none that mean anything.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.chunk().map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_be_bytes)
    }

    pub(super) fn token(&mut self) -> Option<u128> {
        self.chunk().map(u128::from_be_bytes)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn purge(&mut self) -> Option<Purge> {
        Some(Purge(match self.byte()? {
            URL => What::Url(self.url(MAX_TARGET)?),
            PREFIX => What::Prefix(self.url(MAX_PREFIX)?),
            TAG => What::Tag(self.text(MAX_TAG)?.into()),
            EVERYTHING => What::Everything,
            _ => return None,
        }))
    }

    fn url(&mut self, longest: usize) -> Option<Url> {
        Some(Url { origin: self.text(MAX_ORIGIN)?.parse().ok()?, target: self.text(longest)?.into() })
    }

    fn text(&mut self, longest: usize) -> Option<&'a str> {
        let length = usize::from(u16::from_be_bytes(self.chunk()?));
        let (text, rest) = self.0.split_at_checked(length).filter(|_| length <= longest)?;
        self.0 = rest;
        str::from_utf8(text).ok()
    }
}
