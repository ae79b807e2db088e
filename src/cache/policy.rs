//! How far a cache goes in what the RFCs leave open.

use std::sync::Arc;

use http::HeaderName;

/// What may be stored and reused where RFC 9111 leaves a choice.
///
/// Two presets, each of which can be changed option by option. Both keep every requirement of RFC 9111 for a shared cache.
#[derive(Clone, Debug)]
pub struct CachePolicy {
    /// A lifetime is guessed from `Last-Modified` (RFC 9111 §4.2.2).
    pub(super) heuristics: bool,
    /// Any final status that states its own freshness is stored, also 401, 403, 429 and their like.
    pub(super) any_status: bool,
    /// `Cookie` counts as `Authorization` does.
    pub(super) guard_cookies: bool,
    /// Responses with `Set-Cookie` that state their freshness are stored, cookie and all.
    pub(super) store_set_cookie: bool,
    /// 206 is stored, for requests with the very same `Range`.
    pub(super) store_partial: bool,
    /// A response to POST that states its freshness and names its own URL in `Content-Location` is stored for GET.
    pub(super) store_post: bool,
    /// The request's `Cache-Control` and `Pragma` are obeyed.
    pub(super) request_directives: bool,
    /// An explicit `stale-while-revalidate` or `stale-if-error` counts beside `s-maxage`.
    pub(super) stale_beside_s_maxage: bool,
    /// Targeted fields, the most specific first (RFC 9213).
    pub(super) targeted: Arc<[HeaderName]>,
}

impl CachePolicy {
    /// The default: nothing is stored that a careful operator would not have stored by hand.
    #[must_use]
    pub fn safe() -> Self {
        Self {
            heuristics: false,
            any_status: false,
            guard_cookies: true,
            store_set_cookie: false,
            store_partial: false,
            store_post: false,
            request_directives: false,
            stale_beside_s_maxage: false,
            targeted: [HeaderName::from_static("cdn-cache-control")].into(),
        }
    }

    /// Stores whatever RFC 9111 permits a shared cache to store.
    #[must_use]
    pub fn rfc9111() -> Self {
        Self {
            heuristics: true,
            any_status: true,
            guard_cookies: false,
            store_set_cookie: true,
            store_partial: true,
            store_post: true,
            ..Self::safe()
        }
    }

    /// Obeys the request's `Cache-Control` and, where there is none, `Pragma: no-cache` (RFC 9111 §5.2.1; default: no).
    ///
    /// It is advice that any client can give: with it, anybody can force misses.
    #[must_use]
    pub fn request_directives(mut self, obey: bool) -> Self {
        self.request_directives = obey;
        self
    }

    /// Lets an explicit `stale-while-revalidate` or `stale-if-error` count beside `s-maxage` (default: no).
    ///
    /// `s-maxage` forbids stale reuse (RFC 9111 §5.2.2.10), which surprises who writes both.
    #[must_use]
    pub fn stale_beside_s_maxage(mut self, allow: bool) -> Self {
        self.stale_beside_s_maxage = allow;
        self
    }

    /// The targeted fields that are read instead of `Cache-Control` and `Expires` (RFC 9213), the most specific first
    /// (default: `CDN-Cache-Control`).
    #[must_use]
    pub fn targeted_fields(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.targeted = names.into_iter().collect();
        self
    }
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self::safe()
    }
}
