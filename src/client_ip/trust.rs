//! Which entries of a forwarding chain count.

use std::net::IpAddr;

use super::trusted::TrustedProxies;

/// Whom the walk along a chain believes.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// Whoever has one of these addresses.
    Proxies(TrustedProxies),
    /// The peer, and so many hops in all, whatever addresses they have.
    Hops(u8),
}

impl Default for Trust {
    fn default() -> Self {
        Self::Proxies(TrustedProxies::default())
    }
}

impl Trust {
    /// Whether nobody is believed.
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::Proxies(proxies) if *proxies == TrustedProxies::default())
    }

    /// Whether the socket's peer may name a client.
    pub(crate) fn believes_peer(&self, peer: IpAddr) -> bool {
        match self {
            Self::Proxies(proxies) => proxies.contains(peer),
            Self::Hops(_) => true,
        }
    }

    /// Whether the entry after the one at `position`, which names `address`, counts too. The nearest is at 1.
    pub(crate) fn goes_beyond(&self, position: usize, address: Option<IpAddr>) -> bool {
        match self {
            Self::Proxies(proxies) => address.is_some_and(|address| proxies.contains(address)),
            Self::Hops(hops) => position < usize::from(*hops),
        }
    }

    /// Whether the client may stand at `position`, where the chain ends: behind addresses that are all trusted the last
    /// one is the client, but a chain of too few hops says nothing of it.
    pub(crate) fn may_end_at(&self, position: usize) -> bool {
        match self {
            Self::Proxies(_) => true,
            Self::Hops(hops) => position == usize::from(*hops),
        }
    }
}
