//! The socket's peer, as whichever server there is left it.

use std::net::{IpAddr, SocketAddr};

use http::Extensions;

/// Request extension: the client's address, IPv4 where it was IPv4-mapped IPv6.
///
/// With feature `axum` also an extractor, which works without [`ClientIpLayer`](super::ClientIpLayer), trusting no
/// proxy. It rejects with the 500 problem of [`Reason::PeerUnknown`](crate::refusal::Reason::PeerUnknown) where the
/// server knows no peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

/// Request extension for servers of one's own, such as plain hyper: the socket's peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// The client's address: `ClientIpLayer`'s finding, else the socket peer. `None`: nobody left a peer.
#[cfg_attr(not(any(feature = "rate-limit", feature = "axum")), allow(dead_code))]
pub(crate) fn client_ip(extensions: &mut Extensions) -> Option<IpAddr> {
    extensions.get::<ClientIp>().map(|ip| ip.0).or_else(|| peer(extensions).map(|ip| ip.to_canonical()))
}

/// The socket's peer. Leaves `extensions` as they are; tonic's reader needs to hold them for a moment.
pub(crate) fn peer(extensions: &mut Extensions) -> Option<IpAddr> {
    let own = extensions.get::<PeerAddr>().map(|peer| peer.0);
    own.or_else(|| axum(extensions)).or_else(|| tonic(extensions)).or_else(|| mock(extensions)).map(|peer| peer.ip())
}

#[cfg(feature = "axum")]
fn axum(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<axum::extract::ConnectInfo<SocketAddr>>().map(|info| info.0)
}

#[cfg(feature = "axum")]
fn mock(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<axum::extract::connect_info::MockConnectInfo<SocketAddr>>().map(|info| info.0)
}

#[cfg(not(feature = "axum"))]
fn axum(_: &Extensions) -> Option<SocketAddr> {
    None
}

#[cfg(not(feature = "axum"))]
fn mock(_: &Extensions) -> Option<SocketAddr> {
    None
}

/// tonic names its TLS connect info only in some of its features, but its own request reads whichever there is.
#[cfg(feature = "tonic")]
fn tonic(extensions: &mut Extensions) -> Option<SocketAddr> {
    let request = tonic::Request::from_parts(tonic::metadata::MetadataMap::new(), std::mem::take(extensions), ());
    let peer = request.remote_addr();
    *extensions = request.into_parts().1;
    peer
}

#[cfg(not(feature = "tonic"))]
fn tonic(_: &mut Extensions) -> Option<SocketAddr> {
    None
}
