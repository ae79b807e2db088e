//! A client, as an application names it.

use std::net::IpAddr;

/// Whom a [`RateLimitHandle`](super::RateLimitHandle) is to look at: named as the policy's [`Key`](super::Key) tells
/// clients apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(pub(crate) Name);

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Address(IpAddr),
    Key(Vec<u8>),
    Everybody,
}

impl Subject {
    /// The client with this address, and whoever shares its network.
    #[must_use]
    pub fn ip(address: IpAddr) -> Self {
        Self(Name::Address(address))
    }

    /// The client with this value of the header or of [`Key::by`](super::Key::by).
    #[must_use]
    pub fn key(value: impl AsRef<[u8]>) -> Self {
        Self(Name::Key(value.as_ref().to_vec()))
    }

    /// All clients of a policy that counts everybody together.
    #[must_use]
    pub fn everybody() -> Self {
        Self(Name::Everybody)
    }
}

/// Keys may be secrets.
impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Address(_) => "address",
            Self::Key(_) => "key",
            Self::Everybody => "everybody",
        })
    }
}
