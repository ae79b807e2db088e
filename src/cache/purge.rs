//! What is to be purged, and what becomes of it.

use http::Uri;

use super::control::MAX_TAG;
use crate::client_ip::Origin;

/// In bytes of path and query. The check of a stored response walks this far at most.
pub(super) const MAX_PREFIX: usize = 1024;

/// What to forget: one URL, all URLs that begin alike, all responses with a tag, or everything.
///
/// URLs are the client's, whatever part of the path a router has taken off before the layer. Scheme and host are those
/// of [`Origin`]: where a proxy ends TLS, `https` only if a [`ClientIpLayer`](crate::client_ip::ClientIpLayer) knows it.
/// Host and default port may be spelled in any way; path and query count byte for byte, percent-encoding included.
///
/// ```
/// use tower_scale::cache::Purge;
///
/// assert_eq!(Purge::url("https://Shop.example:443")?, Purge::url("https://shop.example/#top")?);
/// assert!(Purge::url("/products/42").is_err());
/// # Ok::<_, tower_scale::cache::PurgeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Purge(pub(super) What);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Url(Url),
    /// Begins like this one.
    Prefix(Url),
    Tag(Box<str>),
    Everything,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Url {
    pub(super) origin: Origin,
    /// Path and query.
    pub(super) target: Box<str>,
}

/// What became of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purged {
    No,
    /// It is stale from now on.
    Soft,
    /// It is gone: not served even in place of an error.
    Hard,
}

/// It names nothing that could be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PurgeError {
    /// Not an absolute URL, or with a user, or with bytes that have to be percent-encoded.
    #[error("not an absolute http or https URL: {0:?}")]
    Url(String),
    /// A prefix whose path is beyond 1024 bytes, or a tag beyond 256.
    #[error("longer than {0} bytes")]
    TooLong(usize),
}

impl Purge {
    /// The responses to this absolute `http` or `https` URL, in all variants (RFC 9111 §4.1). A fragment is ignored.
    ///
    /// # Errors
    /// It is none.
    pub fn url(url: &str) -> Result<Self, PurgeError> {
        parse(url).map(|url| Self(What::Url(url)))
    }

    /// The responses to all URLs of one origin whose path and query begin with those of this URL, byte for byte:
    /// `https://shop.example/a` is a prefix of `/a`, `/a/b`, `/a?b` and `/about`. Without a path, the whole origin.
    ///
    /// # Errors
    /// It is no absolute URL, or its path and query are longer than 1024 bytes.
    pub fn prefix(url: &str) -> Result<Self, PurgeError> {
        let url = parse(url)?;
        if url.target.len() > MAX_PREFIX {
            return Err(PurgeError::TooLong(MAX_PREFIX));
        }
        Ok(Self(What::Prefix(url)))
    }

    /// All responses that were given this tag ([`CacheTags`](super::CacheTags)).
    ///
    /// # Errors
    /// It is longer than 256 bytes: no stored response has such a tag.
    pub fn tag(tag: &str) -> Result<Self, PurgeError> {
        if tag.len() > MAX_TAG { Err(PurgeError::TooLong(MAX_TAG)) } else { Ok(Self(What::Tag(tag.into()))) }
    }

    /// All that is stored.
    #[must_use]
    pub fn everything() -> Self {
        Self(What::Everything)
    }
}

fn parse(text: &str) -> Result<Url, PurgeError> {
    let parse = || {
        // No client sends other bytes: it encodes them, and a purge of them would find nothing.
        let uri: Uri = text.is_ascii().then(|| text.parse().ok()).flatten()?;
        let origin = format!("{}://{}", uri.scheme_str()?, uri.authority()?).parse().ok()?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        // On its way to a server, `https://a?q` becomes `/?q`.
        let target = if target.starts_with('/') { target.into() } else { format!("/{target}").into() };
        Some(Url { origin, target })
    };
    parse().ok_or_else(|| PurgeError::Url(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_absolute_and_spelled_as_a_client_sends_them() {
        for (text, expected) in [
            ("http://a", Some(("http://a", "/"))),
            ("HTTPS://A.example:443/B?c=%64", Some(("https://a.example", "/B?c=%64"))),
            ("https://a:8443/", Some(("https://a:8443", "/"))),
            ("https://a?q", Some(("https://a", "/?q"))),
            ("https://a/b#c", Some(("https://a", "/b"))),
            ("https://a/#", Some(("https://a", "/"))),
            ("https://[::0:1]/", Some(("https://[::1]", "/"))),
            ("https://a/b?", Some(("https://a", "/b?"))),
            ("", None),
            ("/b", None),
            ("a", None),
            ("//a/b", None),
            ("a/b", None),
            ("ftp://a/b", None),
            ("https://user@a/b", None),
            ("https:///b", None),
            ("https://a/ b", None),
            ("https://a/ü", None),
            ("https://a/\0", None),
        ] {
            let parsed = Purge::url(text);
            let expected =
                expected.map(|(origin, target)| Url { origin: origin.parse().unwrap(), target: target.into() });
            assert_eq!(parsed.clone().ok(), expected.clone().map(|url| Purge(What::Url(url))), "{text}");
            assert_eq!(Purge::prefix(text).ok(), expected.map(|url| Purge(What::Prefix(url))), "{text}");
            assert!(parsed.is_ok() || parsed == Err(PurgeError::Url(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_is_too_long_to_be_found_says_so() {
        let path = |length: usize| format!("http://a/{}", "b".repeat(length - 1));
        assert!(Purge::prefix(&path(MAX_PREFIX)).is_ok() && Purge::url(&path(MAX_PREFIX + 1)).is_ok());
        assert_eq!(Purge::prefix(&path(MAX_PREFIX + 1)), Err(PurgeError::TooLong(MAX_PREFIX)));
        assert!(Purge::tag(&"t".repeat(MAX_TAG)).is_ok());
        assert_eq!(Purge::tag(&"t".repeat(MAX_TAG + 1)), Err(PurgeError::TooLong(MAX_TAG)));
    }
}
