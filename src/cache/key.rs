//! Which stored response a request asks for: an injective string of bytes, with its hash.

use std::borrow::Cow;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

use http::header::HOST;
use http::{Extensions, HeaderMap, Uri};
use quick_cache::Equivalent;

use super::intake::Intake;
use crate::client_ip;

/// Longer keys are not looked up and not stored: nobody needs them, and they would fill the store.
pub(super) const MAX_KEY_BYTES: usize = 4 * 1024;

/// Raised whenever the layout below changes, so that an old key never names a new record.
const VERSION: u8 = 2;

/// GET and HEAD, whose responses are one; no other method is looked up.
const GET_AND_HEAD: u8 = 0;

/// One seed per process, so that clones and separate layers over one store agree on it.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Under what a response is stored: scheme, host, path and query, and the request fields that it varies by.
///
/// Holds its bytes and their `SipHash`, which nobody outside can steer: computed once, used by every table.
// `version, methods, number of fields`, each a byte; then scheme, host, target, original target; then name and value of
// each field in the key; every one of these with its length before it. Variants append to it. Two different lists of
// parts never make the same bytes.
#[derive(Clone, Debug)]
pub struct Key {
    hash: u64,
    text: Text,
}

/// Most keys are short: a lookup allocates nothing for them.
#[derive(Clone, Debug)]
enum Text {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Arc<[u8]>),
}

const SHORT: usize = 78;

impl Text {
    #[inline]
    fn new(text: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(room), Ok(length)) => {
                room.copy_from_slice(text);
                Self::Short { length, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        }
    }
}

/// A key as a table holds it: no larger than its bytes.
#[derive(Clone, Debug)]
pub(super) struct Name {
    hash: u64,
    bytes: Arc<[u8]>,
}

impl From<&Key> for Name {
    fn from(key: &Key) -> Self {
        let bytes = match &key.text {
            Text::Long(bytes) => bytes.clone(),
            short @ Text::Short { .. } => short.as_bytes().into(),
        };
        Self { hash: key.hash, bytes }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.bytes == other.bytes
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Name> for Key {
    fn equivalent(&self, name: &Name) -> bool {
        self.hash == name.hash && *self.as_bytes() == *name.bytes
    }
}

/// What a key says of its URL, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyUrl<'a> {
    /// `http` or `https`.
    pub(super) scheme: &'a [u8],
    /// In lowercase, with the port unless it is the scheme's default.
    pub(super) host: &'a [u8],
    /// Path and query, less what the key ignores, as the handler gets them.
    pub(super) target: &'a [u8],
    /// The same as the client asked for them; empty unless that is something else.
    pub(super) original: &'a [u8],
}

impl<'a> KeyUrl<'a> {
    /// Path and query as the client asked for them.
    pub(super) fn asked(&self) -> &'a [u8] {
        if self.original.is_empty() { self.target } else { self.original }
    }
}

impl Key {
    /// The key of a request. `None`: it has no (valid) host, or two, or no path, or it is too long.
    ///
    /// The original target is empty unless a router has stripped a prefix: without it, `/v1/item` and `/v2/item` under
    /// one nested layer would be one key.
    pub(super) fn primary(intake: &Intake, uri: &Uri, headers: &HeaderMap, extensions: &Extensions) -> Option<Self> {
        let (scheme, host) = client_ip::origin(uri, headers, extensions)?;
        if names_two_hosts(uri, headers, scheme) {
            return None;
        }
        let target = intake.target(uri.path_and_query()?.as_str());
        let original = original_target(extensions).map(|original| intake.target(original));
        let original = original.as_deref().filter(|original| *original != target).unwrap_or_default();
        Builder::run(|builder| {
            builder.url(intake.keyed().len(), [scheme, &host, &target, original])?;
            intake.keyed().iter().try_for_each(|name| {
                builder.push(name.as_str().as_bytes())?;
                builder.push_value(intake.select(headers, name).as_deref())
            })
        })
    }

    /// The key of an absolute URL, asked for in the way of the request that made `like`: under the same stripped
    /// prefix, with the same values of the fields in the key. Without `like`: no prefix, none of the fields.
    ///
    /// `None`: it has no valid host, or lies outside of the prefix, or it is too long.
    pub(super) fn of_url(intake: &Intake, url: &Uri, like: Option<&Self>) -> Option<Self> {
        let (none, nothing) = (HeaderMap::new(), Extensions::new());
        url.authority()?;
        let (scheme, host) = client_ip::origin(url, &none, &nothing)?;
        let asked = intake.target(url.path_and_query()?.as_str());
        let Some(like) = like else {
            return Builder::run(|builder| {
                builder.url(intake.keyed().len(), [scheme, &host, &asked, ""])?;
                intake.keyed().iter().try_for_each(|name| {
                    builder.push(name.as_str().as_bytes())?;
                    builder.push_value(None)
                })
            });
        };
        let KeyUrl { target, original, .. } = like.url();
        let (target, original) = match stripped_prefix(original, target)? {
            [] => (Cow::Borrowed(&*asked), ""),
            prefix => (below(prefix, &asked)?, &*asked),
        };
        Builder::run(|builder| {
            builder.url(intake.keyed().len(), [scheme, &host, &target, original])?;
            like.parts().skip(4).take(2 * intake.keyed().len()).try_for_each(|part| builder.push(part))
        })
    }

    /// This key with further parts behind it.
    pub(super) fn extend(&self, write: impl FnOnce(&mut Builder) -> Option<()>) -> Option<Self> {
        Builder::run(|builder| {
            builder.raw(self.as_bytes());
            write(builder)
        })
    }

    /// What the key, or the key that it extends, says of its URL.
    pub(super) fn url(&self) -> KeyUrl<'_> {
        let mut parts = self.parts();
        let mut next = || parts.next().unwrap_or_default();
        KeyUrl { scheme: next(), host: next(), target: next(), original: next() }
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.as_bytes().get(PREAMBLE..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (length, behind) = rest.split_first_chunk::<LENGTH>()?;
            let (part, behind) = behind.split_at_checked(u16::from_be_bytes(*length).into())?;
            rest = behind;
            Some(part)
        })
    }

    /// A key of these bytes. `None`: too many.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MAX_KEY_BYTES).then(|| Self { hash: hash_of(bytes), text: Text::new(bytes) })
    }

    /// All that the key stands for, in a form that no other key has; at most 4 KiB. Not text: any byte may occur.
    ///
    /// Stable between processes of one version of this crate.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

/// Whether `Host` contradicts the URL's own authority: the key can hold one, and the handler may read the other.
fn names_two_hosts(uri: &Uri, headers: &HeaderMap, scheme: &str) -> bool {
    let Some(authority) = uri.authority() else { return false };
    let Some(host) = headers.get(HOST) else { return false };
    !host.to_str().is_ok_and(|host| client_ip::same_host(scheme, authority.as_str(), host))
}

#[cfg(feature = "axum")]
fn original_target(extensions: &Extensions) -> Option<&str> {
    extensions.get::<axum::extract::OriginalUri>()?.0.path_and_query().map(http::uri::PathAndQuery::as_str)
}

#[cfg(not(feature = "axum"))]
fn original_target(_: &Extensions) -> Option<&str> {
    None
}

/// What a router has taken from the front of a path. `None`: it has done something else to it.
fn stripped_prefix<'a>(original: &'a [u8], target: &[u8]) -> Option<&'a [u8]> {
    if original.is_empty() {
        return Some(b"");
    }
    let path = |target: &'_ [u8]| target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (whole, rest) = (original.get(..path(original))?, target.get(..path(target))?);
    whole.strip_suffix(rest).or_else(|| (rest == b"/").then_some(whole))
}

/// What a router leaves of a target below that prefix.
fn below<'a>(prefix: &[u8], target: &'a str) -> Option<Cow<'a, str>> {
    let rest = target.strip_prefix(str::from_utf8(prefix).ok()?)?;
    match rest.as_bytes().first() {
        Some(b'/') => Some(rest.into()),
        None | Some(b'?') => Some(format!("/{rest}").into()),
        Some(_) => None,
    }
}

const PREAMBLE: usize = 3;
const LENGTH: usize = size_of::<u16>();
/// Most keys are shorter.
const USUAL: usize = 256;

/// Puts a key together: on the stack, as long as it is short.
pub(super) struct Builder {
    stack: [u8; USUAL],
    length: usize,
    /// All of it, once it has outgrown the stack.
    heap: Vec<u8>,
}

impl Builder {
    /// Runs `write` on a builder that never moves. `None`: `write` gave up, or the key is too long.
    #[inline]
    fn run(write: impl FnOnce(&mut Self) -> Option<()>) -> Option<Key> {
        let mut builder = Self { stack: [0; USUAL], length: 0, heap: Vec::new() };
        write(&mut builder)?;
        let bytes = match builder.heap.as_slice() {
            [] => builder.stack.get(..builder.length)?,
            heap => heap,
        };
        (bytes.len() <= MAX_KEY_BYTES).then(|| Key { hash: hash_of(bytes), text: Text::new(bytes) })
    }

    fn url(&mut self, fields: usize, parts: [&str; 4]) -> Option<()> {
        self.raw(&[VERSION, GET_AND_HEAD, u8::try_from(fields).ok()?]);
        parts.into_iter().try_for_each(|part| self.push(part.as_bytes()))
    }

    /// `None`: the part is too long for any key.
    #[inline]
    pub(super) fn push(&mut self, part: &[u8]) -> Option<()> {
        let length = length_of(part.len())?;
        let end = self.length.saturating_add(LENGTH + part.len());
        let room = self.stack.get_mut(self.length..end).and_then(|room| room.split_first_chunk_mut::<LENGTH>());
        if let Some((front, room)) = room {
            *front = length;
            room.copy_from_slice(part);
            self.length = end;
        } else {
            self.raw(&length);
            self.raw(part);
        }
        Some(())
    }

    /// An absent value is not an empty one.
    pub(super) fn push_value(&mut self, value: Option<&[u8]>) -> Option<()> {
        let Some(value) = value else { return self.length(0) };
        self.length(1 + value.len())?;
        self.raw(b"=");
        self.raw(value);
        Some(())
    }

    fn length(&mut self, length: usize) -> Option<()> {
        self.raw(&length_of(length)?);
        Some(())
    }

    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        let end = self.length.saturating_add(bytes.len());
        if let Some(room) = self.stack.get_mut(self.length..end) {
            room.copy_from_slice(bytes);
        } else {
            self.spill(bytes);
        }
        self.length = end;
    }

    #[cold]
    fn spill(&mut self, bytes: &[u8]) {
        if self.heap.is_empty() {
            self.heap.extend_from_slice(self.stack.get(..self.length).unwrap_or_default());
        }
        self.heap.extend_from_slice(bytes);
    }
}

#[inline]
fn length_of(length: usize) -> Option<[u8; LENGTH]> {
    u16::try_from(length).ok().filter(|_| length <= MAX_KEY_BYTES).map(u16::to_be_bytes)
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// The hash function sees the length by itself.
fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = SEED.build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

/// Hands a key's own hash through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prehashed(u64);

/// Builds [`Prehashed`].
pub(super) type BuildPrehashed = BuildHasherDefault<Prehashed>;

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Never reached: a key hashes as one `u64`.
        self.0 = SEED.hash_one((self.0, bytes));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests;
