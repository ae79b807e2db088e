//! Who calls what: the client's address and the origin it asked, through trusted proxies only.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{Extensions, HeaderMap, Uri};

/// Request extension: the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

/// Request extension for plain hyper: the socket's peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// Request extension: scheme and host the client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: Scheme,
    host: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scheme {
    Http,
    Https,
}

impl Origin {
    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// Lowercase host, with the port unless it is the scheme's default.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// The client's address: `ClientIpLayer`'s finding, else the socket peer. `None`: nobody left a peer.
#[cfg_attr(not(feature = "rate-limit"), allow(dead_code))]
pub(crate) fn client_ip(extensions: &mut Extensions) -> Option<IpAddr> {
    extensions.get::<ClientIp>().map(|ip| ip.0).or_else(|| extensions.get::<PeerAddr>().map(|peer| peer.0.ip()))
}

/// The origin: `ClientIpLayer`'s finding, else scheme of the URI (or `http`) and authority (or `Host`).
/// `None`: there is no host, several, or one that is not valid.
#[cfg_attr(not(feature = "cache"), allow(dead_code))]
pub(crate) fn origin(uri: &Uri, headers: &HeaderMap, extensions: &Extensions) -> Option<Origin> {
    if let Some(origin) = extensions.get::<Origin>() {
        return Some(origin.clone());
    }
    let _ = uri;
    let host = headers.get(http::header::HOST)?.to_str().ok()?;
    Some(Origin { scheme: Scheme::Http, host: host.to_ascii_lowercase().into() })
}
