//! The one header that names the client.

use http::{HeaderMap, HeaderName, Uri};

use std::net::IpAddr;

use super::address;
use super::forwarded::{self, Element};
use super::origin::{self, Origin};
use super::trust::Trust;
use super::walk::{End, walk};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED: HeaderName = http::header::FORWARDED;

/// Where a trusted proxy names the client. Exactly one source is read: with two, a client could fill in the one that
/// the proxy does not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Header {
    /// `X-Forwarded-For`: addresses in a row, each proxy appends.
    #[default]
    XForwardedFor,
    /// `Forwarded` ([RFC 7239](https://www.rfc-editor.org/rfc/rfc7239)), which names the scheme and the host too.
    Forwarded,
    /// A provider's header with one address (`CF-Connecting-IP`, `X-Real-IP`, `True-Client-IP`). It must occur once;
    /// otherwise the peer is the client.
    Single(HeaderName),
}

/// What a request that a trusted peer has passed on says of its client.
pub(crate) struct Found {
    pub(crate) client: IpAddr,
    /// Whether the header names it. If not, it is the last trusted hop.
    pub(crate) named: bool,
    pub(crate) origin: Option<Origin>,
}

impl Header {
    /// Reads what the trusted `peer` says.
    pub(crate) fn read(&self, peer: IpAddr, trust: &Trust, uri: &Uri, headers: &HeaderMap) -> Found {
        match self {
            Self::XForwardedFor => {
                let End { client, named, .. } = walk(peer, trust, addresses(headers));
                Found { client, named, origin: x_forwarded_origin(uri, headers) }
            }
            Self::Single(name) => {
                let address = single(headers, name);
                let client = address.unwrap_or(peer.to_canonical());
                Found { client, named: address.is_some(), origin: x_forwarded_origin(uri, headers) }
            }
            Self::Forwarded => {
                let End { client, named, vouched } = walk(peer, trust, elements(headers));
                let Element { proto, host, .. } = vouched.unwrap_or_default();
                let origin = origin::requested(proto.as_deref(), host.as_deref(), uri, headers);
                Found { client, named, origin }
            }
        }
    }
}

/// All `X-Forwarded-For` lines as one chain, nearest hop first.
fn addresses(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    lines(headers, &X_FORWARDED_FOR)
        .flat_map(|line| line.rsplit(|byte| *byte == b',').map(|entry| address::parse(str::from_utf8(entry).ok()?)))
}

/// All `Forwarded` lines as one chain, nearest hop first.
fn elements(headers: &HeaderMap) -> impl Iterator<Item = Element<'_>> {
    lines(headers, &FORWARDED).flat_map(forwarded::elements_from_the_right)
}

/// The field lines, last one first: bytes, for what a client wrote in a line must not hide what a proxy appended to it.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    headers.get_all(name).iter().rev().map(http::HeaderValue::as_bytes)
}

fn single(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    address::parse(line.to_str().ok()?)
}

fn x_forwarded_origin(uri: &Uri, headers: &HeaderMap) -> Option<Origin> {
    let nearest = |name| {
        let value = lines(headers, name).next()?.rsplit(|byte| *byte == b',').next()?;
        Some(str::from_utf8(value).ok()?.trim_matches([' ', '\t']))
    };
    origin::requested(nearest(&X_FORWARDED_PROTO), nearest(&X_FORWARDED_HOST), uri, headers)
}
