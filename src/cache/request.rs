//! What a request asks of a cache.

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, COOKIE, IF_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method, Request, Version};
use http_body::Body;

use super::conditional;
use super::status::Forward;

/// A request that a stored response could answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) head: bool,
    pub(super) credentials: bool,
    pub(super) conditional: bool,
}

impl Asked {
    /// # Errors
    /// Why the cache is not asked.
    pub(super) fn of<B: Body>(request: &Request<B>) -> Result<Self, Forward> {
        let head = *request.method() == Method::HEAD;
        if !head && *request.method() != Method::GET {
            return Err(Forward::Method);
        }
        let headers = request.headers();
        let only_the_handler_can = [RANGE, IF_RANGE, IF_MATCH, IF_UNMODIFIED_SINCE, UPGRADE];
        if only_the_handler_can.iter().any(|name| headers.contains_key(name)) || has_content(request) {
            return Err(Forward::Bypass);
        }
        let credentials = headers.contains_key(AUTHORIZATION) || headers.contains_key(COOKIE);
        Ok(Self { head, credentials, conditional: conditional::is_conditional(headers) })
    }

    /// Whether it may fetch for others, and take what others fetch.
    pub(super) fn may_share(self) -> bool {
        !self.head && !self.credentials && !self.conditional
    }
}

/// Content could change the answer, but is no part of the key. In HTTP/1 the fields tell; later versions need none.
fn has_content<B: Body>(request: &Request<B>) -> bool {
    stated_content(request.headers())
        || (request.version() > Version::HTTP_11
            && !request.body().is_end_stream()
            && request.body().size_hint().exact() != Some(0))
}

fn stated_content(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get_all(CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0")
}
