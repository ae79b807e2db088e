//! What a request says of itself, for closures that decide by it.

use std::fmt;
use std::net::IpAddr;

use http::{Extensions, HeaderMap, Method, Request, Uri};

/// A request without its body, as the closures of this module see it.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
    client_ip: Option<IpAddr>,
}

impl<'a> Head<'a> {
    pub(crate) fn of<B>(request: &'a Request<B>, client_ip: Option<IpAddr>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
            client_ip,
        }
    }

    /// The request's method.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The request's target.
    #[must_use]
    pub fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// The request's fields. A client chooses them; see [`Key::header`](super::Key::header).
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// What outer layers have found out, such as who is logged in.
    #[must_use]
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }

    /// The client's address, as [`client_ip`](crate::client_ip) finds it; `None` where the server knows no peer.
    #[must_use]
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.client_ip
    }
}

/// Without the address, the target and the fields, so that none of them gets into a log by accident.
impl fmt::Debug for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head").field("method", self.method).finish_non_exhaustive()
    }
}
