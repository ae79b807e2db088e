//! The layer and its configuration.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use tower_layer::Layer;

use super::alarm::{PeerAlarm, TrustAlarm};
use super::header::{Found, Header};
use super::origin::{self, Origin};
use super::peer::{self, ClientIp};
use super::service::ClientIpService;
use super::trust::Trust;
use super::trusted::TrustedProxies;
use super::walk::MAX_HOPS;
use crate::refusal::{Caller, Reason, Refusal, Refuse};

/// Puts [`ClientIp`] and [`Origin`] into every request's extensions; see the [module page](super).
#[derive(Clone, Debug, Default)]
pub struct ClientIpLayer {
    trust: Trust,
    trust_unix: bool,
    header: Header,
    strict: bool,
    pinned: Option<Origin>,
    refuse: Refuse,
    peer_alarm: PeerAlarm,
    trust_alarm: TrustAlarm,
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

    /// The networks whose forwarding headers are believed. Replaces [`trusted_hops`](Self::trusted_hops).
    #[must_use]
    pub fn trusted_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.trust = Trust::Proxies(proxies);
        self
    }

    /// Believes that so many proxies stand in front, whatever addresses they have: the client is the `hops`-th entry of
    /// the header, counted from the right. Replaces [`trusted_proxies`](Self::trusted_proxies), which is safer.
    ///
    /// Only for a service that nobody can reach around these proxies, not even around some of them: any peer is believed,
    /// and who skips a proxy fills its place in the header. Each proxy must append exactly one entry. Where there are
    /// fewer entries, the client is the farthest hop that is named, or the answer is a 400 ([`strict`](Self::strict)).
    /// Of [`Header::Single`] the one value counts, whatever the number.
    ///
    /// # Panics
    /// `hops` is 0 or above 32.
    #[must_use]
    #[track_caller]
    pub fn trusted_hops(mut self, hops: u8) -> Self {
        assert!((1..=MAX_HOPS).contains(&usize::from(hops)), "1 to 32 trusted hops");
        self.trust = Trust::Hops(hops);
        self
    }

    /// Takes a request without a peer's address for one of a trusted proxy on this machine, as which it has the address
    /// 127.0.0.1 itself: for a service behind a Unix socket, where servers leave no address. Adds to
    /// [`trusted_proxies`](Self::trusted_proxies) and [`trusted_hops`](Self::trusted_hops), which tell the hops in front
    /// of that proxy.
    ///
    /// On a server that listens on TCP and was built without connect info, anybody could then choose their address:
    /// there the 500 without this option is right.
    #[must_use]
    pub fn trusted_unix_peers(mut self) -> Self {
        self.trust_unix = true;
        self
    }

    /// Answers 400 ([`Reason::ForwardingInvalid`]) to requests of a trusted proxy whose header does not name the client:
    /// it is missing, occurs twice where it must occur once, has too few entries, or an entry that is no address where
    /// the client should be (`unknown` is none). Otherwise the last trusted hop is taken for the client.
    ///
    /// A proxy's own health checks carry no header as a rule, and are refused too.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.strict = true;
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

    /// Replaces the response for requests without a peer, and for those that [`strict`](Self::strict) refuses. See [`refusal`](crate::refusal).
    #[must_use]
    pub fn refusal(mut self, hook: impl Fn(&Refusal) -> Response<Bytes> + Send + Sync + 'static) -> Self {
        self.refuse = Refuse::with(hook);
        self
    }

    /// Leaves the findings in `request`'s extensions, or nothing, if it is to be refused.
    pub(crate) fn identify<B>(&self, request: &mut Request<B>) -> Result<(), Reason> {
        let peer = peer::peer(request.extensions_mut());
        let Found { client, origin, .. } = self.find(peer, request.uri(), request.headers())?;
        let extensions = request.extensions_mut();
        extensions.insert(ClientIp(client));
        match self.pinned.clone().or(origin) {
            Some(origin) => extensions.insert(origin),
            None => extensions.remove::<Origin>(),
        };
        Ok(())
    }

    fn find(&self, peer: Option<IpAddr>, uri: &Uri, headers: &HeaderMap) -> Result<Found, Reason> {
        let (peer, trusted) = match peer {
            Some(peer) => (peer, self.trust.believes_peer(peer)),
            None if self.trust_unix => (Ipv4Addr::LOCALHOST.into(), true),
            None => return Err(Reason::PeerUnknown),
        };
        if !trusted {
            if self.trust.is_none() && !self.trust_unix {
                self.trust_alarm.notice(headers);
            }
            let origin = origin::requested(None, None, uri, headers);
            return Ok(Found { client: peer.to_canonical(), named: false, origin });
        }
        let found = self.header.read(peer, &self.trust, uri, headers);
        if self.strict && !found.named { Err(Reason::ForwardingInvalid) } else { Ok(found) }
    }

    pub(crate) fn refuse(&self, reason: Reason, caller: Caller) -> Response<Bytes> {
        if reason == Reason::PeerUnknown {
            self.peer_alarm.raise();
        }
        self.refuse.respond(&Refusal::new(reason, caller))
    }
}

impl<S> Layer<S> for ClientIpLayer {
    type Service = ClientIpService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ClientIpService::new(inner, self.clone())
    }
}
