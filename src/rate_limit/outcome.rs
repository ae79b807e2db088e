//! How a request ended, for limits that count only some outcomes.

use std::fmt;

use http::{Extensions, HeaderMap, Response, StatusCode};

/// What the inner service made of a request: the head of its response.
///
/// A gRPC call's status is in it only where there is no message; otherwise it comes after the body, which is not awaited.
#[derive(Clone, Copy)]
pub struct Outcome<'a>(Option<(StatusCode, &'a HeaderMap, &'a Extensions)>);

impl<'a> Outcome<'a> {
    pub(crate) fn answered<B>(response: &'a Response<B>) -> Self {
        Self(Some((response.status(), response.headers(), response.extensions())))
    }

    pub(crate) const FAILED: Self = Self(None);

    /// The response's status; `None` where the inner service returned an error.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.0.map(|(status, ..)| status)
    }

    /// The response's fields.
    #[must_use]
    pub fn headers(&self) -> Option<&'a HeaderMap> {
        self.0.map(|(_, headers, _)| headers)
    }

    /// The response's extensions, where a handler may say what its status does not.
    #[must_use]
    pub fn extensions(&self) -> Option<&'a Extensions> {
        self.0.map(|(.., extensions)| extensions)
    }
}

/// Without the fields, which may set cookies.
impl fmt::Debug for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome").field("status", &self.status()).finish_non_exhaustive()
    }
}
