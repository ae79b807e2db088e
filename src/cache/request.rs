//! What a request asks of a cache.

use http::{HeaderMap, Method, Request, Version};
use http_body::Body;

use super::directives::RequestControl;
use super::layer::Config;
use super::status::Forward;

/// A request that a stored response could answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) head: bool,
    /// A GET of the whole, whatever the client holds: neither `Range` nor a condition.
    pub(super) plain: bool,
    pub(super) credentials: bool,
    /// It wants a part of the content only.
    pub(super) range: bool,
    /// And only as long as the whole has not changed.
    pub(super) if_range: bool,
    /// Its own directives, where the policy obeys them.
    pub(super) control: Option<RequestControl>,
}

/// The fields that matter, found in one pass.
#[derive(Default)]
struct Fields {
    range: bool,
    condition: bool,
    if_range: bool,
    authorization: bool,
    cookie: bool,
    content: bool,
    only_the_handler_can: bool,
}

impl Fields {
    fn of(headers: &HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in headers {
            match name.as_str() {
                "range" => fields.range = true,
                "if-range" => fields.if_range = true,
                "if-none-match" | "if-modified-since" => fields.condition = true,
                "authorization" => fields.authorization = true,
                "cookie" => fields.cookie = true,
                "transfer-encoding" => fields.content = true,
                "content-length" => fields.content |= value.as_bytes() != b"0",
                "if-match" | "if-unmodified-since" | "upgrade" => fields.only_the_handler_can = true,
                _ => {}
            }
        }
        fields
    }

    fn credentials(&self, headers: &HeaderMap, config: &Config) -> bool {
        self.authorization || self.cookie && config.guards_cookies() && config.intake.has_cookies(headers)
    }
}

impl Asked {
    /// # Errors
    /// Why the cache is not asked.
    pub(super) fn of<B: Body>(request: &Request<B>, config: &Config) -> Result<Self, Forward> {
        let head = *request.method() == Method::HEAD;
        if !head && *request.method() != Method::GET {
            return Err(Forward::Method);
        }
        let fields = Fields::of(request.headers());
        if fields.only_the_handler_can || fields.content || streams_content(request) {
            return Err(Forward::Bypass);
        }
        let control = config.policy.request_directives.then(|| RequestControl::of(request.headers()));
        if control.as_ref().is_some_and(|control| control.no_store) {
            return Err(Forward::Request);
        }
        let credentials = fields.credentials(request.headers(), config);
        let plain = !head && !fields.range && !fields.condition;
        Ok(Self { head, plain, credentials, range: fields.range && !head, if_range: fields.if_range, control })
    }

    /// Of a request that changes its URL: its response might answer later ones.
    pub(super) fn by_change(headers: &HeaderMap, config: &Config) -> Self {
        let credentials = Fields::of(headers).credentials(headers, config);
        Self { head: false, plain: false, credentials, range: false, if_range: false, control: None }
    }
}

/// Content could change the answer, but is no part of the key. In HTTP/1 the fields tell; later versions need none.
fn streams_content<B: Body>(request: &Request<B>) -> bool {
    request.version() > Version::HTTP_11
        && !request.body().is_end_stream()
        && request.body().size_hint().exact() != Some(0)
}
