//! `ClientIp` as an axum extractor.

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::response::Response;
use http::request::Parts;

use super::peer::{ClientIp, client_ip};
use crate::refusal::{Caller, Reason, Refusal, Refuse};

impl<S: Sync> FromRequestParts<S> for ClientIp {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        client_ip(&mut parts.extensions).map(Self).ok_or_else(|| {
            let refusal = Refusal::new(Reason::PeerUnknown, Caller::of_parts(&parts.headers, &parts.extensions));
            Refuse::default().respond(&refusal).map(Body::from)
        })
    }
}
