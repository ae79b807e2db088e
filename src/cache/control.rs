//! What a handler says beside the fields: extensions of its response, which no client sees.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

const MAX_TAGS: usize = 64;
/// In bytes.
pub(super) const MAX_TAG: usize = 256;

/// Response extension: how long the layer may answer with this response, whatever `max-age`, `Expires` and `Age` say.
///
/// It does not overrule `no-store`, `no-cache`, `private`, `Set-Cookie` and the like, nor does it permit sharing with
/// requests that carry credentials. Zero: not stored. It is invisible to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheTtl(pub Duration);

/// Response extension: this cache keeps nothing of the response, whatever its fields and [`CacheTtl`] say.
///
/// It is for this cache alone: browsers and other caches obey the fields. It is invisible to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoStore;

/// Response extension: names by which the stored response can be [purged](super::Purge::tag) together with others.
///
/// At most 64 tags of at most 256 bytes each: a response with more, or a longer one, is not stored, because a purge could
/// miss it. It is invisible to clients.
///
/// ```
/// use tower_scale::cache::CacheTags;
///
/// # let mut response = http::Response::new(());
/// response.extensions_mut().insert(CacheTags::new(["product-42", "category-7"]));
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CacheTags(Result<Arc<[Box<str>]>, TooMany>);

/// Too many tags to store, or too long ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TooMany;

impl CacheTags {
    /// These tags, compared byte for byte; a tag that comes twice counts twice.
    pub fn new<T: Into<Box<str>>>(tags: impl IntoIterator<Item = T>) -> Self {
        let tags: Arc<[Box<str>]> = tags.into_iter().take(MAX_TAGS + 1).map(Into::into).collect();
        let fits = tags.len() <= MAX_TAGS && tags.iter().all(|tag| tag.len() <= MAX_TAG);
        Self(if fits { Ok(tags) } else { Err(TooMany) })
    }

    /// # Errors
    /// They are out of bounds: the response must not be stored.
    pub(super) fn bounded(&self) -> Result<Arc<[Box<str>]>, TooMany> {
        self.0.clone()
    }
}

impl fmt::Debug for CacheTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(tags) => f.debug_tuple("CacheTags").field(tags).finish(),
            Err(TooMany) => f.write_str("CacheTags(too many, or too long)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_out_of_bounds_are_none_at_all() {
        let many = |count: usize, length: usize| CacheTags::new(vec!["t".repeat(length); count]);
        for (tags, expected) in [
            (many(0, 0), Ok(0)),
            (many(1, 0), Ok(1)),
            (many(MAX_TAGS, MAX_TAG), Ok(MAX_TAGS)),
            (many(MAX_TAGS + 1, 1), Err(TooMany)),
            (many(1, MAX_TAG + 1), Err(TooMany)),
            (CacheTags::new(std::iter::repeat("endless")), Err(TooMany)),
        ] {
            assert_eq!(tags.bounded().map(|tags| tags.len()), expected, "{tags:?}");
        }
    }
}
