//! The layer and its configuration.

use std::net::IpAddr;

use bytes::Bytes;
use http::{Request, Response};
use tower_layer::Layer;

use super::header::Header;
use super::origin::Origin;
use super::peer::{self, ClientIp, PeerAlarm};
use super::service::ClientIpService;
use super::trusted::TrustedProxies;
use crate::refusal::{Refusal, Refuse};

/// Puts [`ClientIp`] and [`Origin`] into every request's extensions; see the [module page](super).
#[derive(Clone, Debug, Default)]
pub struct ClientIpLayer {
    trusted: TrustedProxies,
    header: Header,
    pinned: Option<Origin>,
    pub(crate) refuse: Refuse,
    pub(crate) alarm: PeerAlarm,
}

/// Why a setting of this module cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An entry of a list of proxies is neither an address nor a network.
    #[error("{0:?} is not an IP network: expected addresses or networks such as 10.0.0.0/8, separated by commas")]
    Network(String),
    /// The proxies cover every address there is, so that any client could choose its own.
    #[error("the trusted proxies cover the whole of IPv4 or IPv6: list only the proxies' own networks")]
    TrustsEverybody,
    /// This is no origin.
    #[error("{0:?} is not an origin: expected http://host or https://host, with :port if need be, and nothing else")]
    Origin(String),
}

impl ClientIpLayer {
    /// Trusts no proxy: the client is the socket's peer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The networks whose forwarding headers are believed.
    #[must_use]
    pub fn trusted_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.trusted = proxies;
        self
    }

    /// The one header in which a trusted proxy names the client: [`Header::XForwardedFor`] by default.
    #[must_use]
    pub fn header(mut self, header: Header) -> Self {
        self.header = header;
        self
    }

    /// Pins the origin of every request, whatever it asks for: `.origin("https://shop.example".parse()?)`.
    ///
    /// Right for an application that is one site: a varying `Host` can then neither split nor flush its cache.
    #[must_use]
    pub fn origin(mut self, origin: Origin) -> Self {
        self.pinned = Some(origin);
        self
    }

    /// Replaces the response for requests without a peer. See [`refusal`](crate::refusal).
    #[must_use]
    pub fn refusal(mut self, hook: impl Fn(&Refusal) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.refuse = Refuse::with(hook);
        self
    }

    /// Leaves the findings in `request`'s extensions. `None`, and nothing left: there is no peer.
    pub(crate) fn identify<B>(&self, request: &mut Request<B>) -> Option<()> {
        let peer: IpAddr = peer::peer(request.extensions_mut())?;
        let (client, requested) = self.header.resolve(peer, &self.trusted, request.uri(), request.headers());
        let extensions = request.extensions_mut();
        extensions.insert(ClientIp(client));
        match self.pinned.clone().or(requested) {
            Some(origin) => extensions.insert(origin),
            None => extensions.remove::<Origin>(),
        };
        Some(())
    }
}

impl<S> Layer<S> for ClientIpLayer {
    type Service = ClientIpService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ClientIpService::new(inner, self.clone())
    }
}
