//! Which stored response a request asks for: an injective string of bytes, with its hash.

use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::HOST;
use http::{Extensions, HeaderMap, Uri};

use crate::client_ip::{self, Origin};

/// Longer keys are not looked up and not stored: nobody needs them, and they would fill the store.
pub(super) const MAX_KEY_BYTES: usize = 4 * 1024;

/// Raised whenever the layout below changes, so that an old key never names a new record.
const VERSION: u8 = 1;

/// One seed per process, so that clones and separate layers over one store agree on it.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The bytes of a key and their `SipHash`, which nobody outside can steer: computed once, used by every table.
#[derive(Clone, Debug)]
pub struct Key {
    hash: u64,
    bytes: Bytes,
}

impl Key {
    /// The key of a whole URL. `None`: it has no (valid) host, or two, or it is too long.
    ///
    /// `version, scheme, host, path and query as the handler sees them, path and query as the client sent them`; every
    /// part after the version with its length before it. The last part is empty unless a router has stripped a
    /// prefix: without it, `/v1/item` and `/v2/item` under one nested layer would be one key.
    pub(super) fn primary(uri: &Uri, headers: &HeaderMap, extensions: &Extensions) -> Option<Self> {
        let origin = client_ip::origin(uri, headers, extensions)?;
        if names_two_hosts(uri, headers, origin.scheme()) {
            return None;
        }
        let target = path_and_query(uri);
        let original = original_target(extensions).filter(|original| *original != target).unwrap_or_default();
        let parts = [origin.scheme(), origin.host(), target, original];
        let mut builder = Builder::with_capacity(1 + parts.iter().map(|part| LENGTH + part.len()).sum::<usize>());
        builder.bytes.push(VERSION);
        parts.iter().try_for_each(|part| builder.push(part.as_bytes()))?;
        builder.build()
    }

    /// This key with further parts behind it.
    pub(super) fn extend(&self) -> Builder {
        let mut builder = Builder::with_capacity(self.bytes.len() + 128);
        builder.bytes.extend_from_slice(&self.bytes);
        builder
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

/// Whether `Host` contradicts the URL's own authority: the key can hold one, and the handler may read the other.
fn names_two_hosts(uri: &Uri, headers: &HeaderMap, scheme: &str) -> bool {
    let (Some(authority), Some(host)) = (uri.authority(), headers.get(HOST)) else { return false };
    let origin = |host: &str| format!("{scheme}://{host}").parse::<Origin>().ok();
    let named = origin(authority.as_str());
    named.is_none() || host.to_str().ok().and_then(origin) != named
}

fn path_and_query(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

#[cfg(feature = "axum")]
fn original_target(extensions: &Extensions) -> Option<&str> {
    extensions.get::<axum::extract::OriginalUri>().map(|uri| path_and_query(&uri.0))
}

#[cfg(not(feature = "axum"))]
fn original_target(_: &Extensions) -> Option<&str> {
    None
}

const LENGTH: usize = size_of::<u16>();

/// Appends parts, each with its length before it: two different lists of parts never make the same bytes.
pub(super) struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    /// `None`: the part is too long for any key.
    pub(super) fn push(&mut self, part: &[u8]) -> Option<()> {
        if part.len() > MAX_KEY_BYTES {
            return None;
        }
        self.bytes.extend_from_slice(&u16::try_from(part.len()).ok()?.to_be_bytes());
        self.bytes.extend_from_slice(part);
        Some(())
    }

    /// `None`: the key is too long.
    pub(super) fn build(self) -> Option<Key> {
        if self.bytes.len() > MAX_KEY_BYTES {
            return None;
        }
        Some(Key { hash: SEED.hash_one(&self.bytes), bytes: self.bytes.into() })
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.bytes == other.bytes
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
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
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(host: &str, target: &str) -> Option<Key> {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        Key::primary(&target.parse().unwrap(), &headers, &Extensions::new())
    }

    #[test]
    fn host_path_and_query_all_count() {
        let keys = [
            key("a", "/p"),
            key("b", "/p"),
            key("a", "/p/"),
            key("a", "/p?"),
            key("a", "/p?q"),
            key("a", "/P"),
            key("ab", "/p"),
            key("a", "/%70"),
        ];
        for (i, left) in keys.iter().enumerate() {
            for (j, right) in keys.iter().enumerate() {
                assert_eq!(left == right, i == j, "{left:?} {right:?}");
            }
        }
    }

    #[test]
    fn no_host_and_endless_urls_have_no_key() {
        assert!(Key::primary(&"/p".parse().unwrap(), &HeaderMap::new(), &Extensions::new()).is_none());
        assert!(key("a", &format!("/{}", "x".repeat(3000))).is_some());
        assert!(key("a", &format!("/{}", "x".repeat(MAX_KEY_BYTES))).is_none());
    }

    #[test]
    fn an_authority_and_another_host_have_no_key() {
        let of = |uri: &str, host: &str, extensions: &Extensions| {
            let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
            Key::primary(&uri.parse().unwrap(), &headers, extensions)
        };
        for (uri, host, agree) in [
            ("http://a/p", "A:80", true),
            ("https://a:443/p", "a", true),
            ("https://a/p", "a:80", false),
            ("http://a/p", "b", false),
            ("http://a/p", "a b", false),
            ("http://a/p", "", false),
        ] {
            assert_eq!(of(uri, host, &Extensions::new()).is_some(), agree, "{uri} {host}");
        }
        let mut pinned = Extensions::new();
        pinned.insert("http://a".parse::<Origin>().unwrap());
        assert!(of("http://internal/p", "internal", &pinned).is_some());
        assert!(of("http://internal/p", "other", &pinned).is_none());
        assert!(of("/p", "any", &pinned).is_some(), "a proxy's name for us is no second name");
    }

    proptest! {
        #[test]
        fn lists_of_parts_never_collide(
            lists in proptest::collection::vec(proptest::collection::vec("[ab\0]{0,3}", 0..4), 2..60)
        ) {
            let mut seen: HashMap<Bytes, Vec<String>> = HashMap::new();
            for parts in lists {
                let mut builder = Builder::with_capacity(0);
                for part in &parts {
                    builder.push(part.as_bytes()).unwrap();
                }
                let key = builder.build().unwrap();
                let first = seen.entry(key.bytes.clone()).or_insert_with(|| parts.clone());
                prop_assert_eq!(first, &parts);
            }
        }
    }
}
