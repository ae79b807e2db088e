//! By what clients are told apart.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderName;

use super::head::Head;
use super::partition::Partition;
use super::secret::Secret;
use super::subject::{Name, Subject};

type Find = dyn Fn(&Head<'_>) -> Option<Partition> + Send + Sync;

/// By what a policy tells clients apart: their address, unless something else is named.
///
/// A key that a client chooses is none: whoever invents a new token for each request is a new client each time. Use
/// [`header`](Self::header) and [`by`](Self::by) only for what something outside of this layer has verified, or put the
/// limit per address around it.
#[derive(Clone)]
pub struct Key {
    source: Source,
    v4_prefix: u8,
    v6_prefix: u8,
}

#[derive(Clone)]
enum Source {
    Address,
    Everybody,
    Found(Arc<Find>, Secret),
}

/// Whom a policy counts a request for.
pub(crate) enum Client {
    Known(Partition),
    /// The server knows no peer, and nothing else tells.
    Unknown,
}

impl Key {
    /// The client's address, as [`client_ip`](crate::client_ip) finds it: an IPv4 address, or an IPv6 /64. What NAT64 has
    /// made of an IPv4 address (64:ff9b::/96) is that address: else all of IPv4 would be one client.
    #[must_use]
    pub fn ip() -> Self {
        Self { source: Source::Address, v4_prefix: 32, v6_prefix: 64 }
    }

    /// Everybody together.
    #[must_use]
    pub fn global() -> Self {
        Self { source: Source::Everybody, ..Self::ip() }
    }

    /// The value of a field, such as an API key, hashed with `secret`. Where the field does not occur exactly once, the
    /// client's address.
    ///
    /// The whole value counts: `Bearer a` and `bearer a` are two.
    #[must_use]
    pub fn header(name: HeaderName, secret: Secret) -> Self {
        Self::by(secret, move |head| {
            let mut lines = head.headers().get_all(&name).iter();
            lines.next().filter(|_| lines.next().is_none()).cloned()
        })
    }

    /// Whatever `find` says of a request, hashed with `secret`; the client's address where it says nothing.
    ///
    /// ```
    /// use tower_scale::rate_limit::{Key, Secret};
    ///
    /// #[derive(Clone)]
    /// struct Tenant(u64); // an outer layer has put it into the request's extensions
    ///
    /// let key = Key::by(Secret::random(), |head| head.extensions().get().map(|tenant: &Tenant| tenant.0.to_be_bytes()));
    /// # let _ = key;
    /// ```
    #[must_use]
    pub fn by<K: AsRef<[u8]>>(secret: Secret, find: impl Fn(&Head<'_>) -> Option<K> + Send + Sync + 'static) -> Self {
        let own = secret.clone();
        let find = move |head: &Head<'_>| Some(digest(&own, find(head)?.as_ref()));
        Self { source: Source::Found(Arc::new(find), secret), ..Self::ip() }
    }

    /// How many bits of an IPv4 address tell clients apart: 32 by default.
    ///
    /// # Panics
    /// `bits` is above 32.
    #[must_use]
    #[track_caller]
    pub fn ipv4_prefix(mut self, bits: u8) -> Self {
        assert!(bits <= 32, "an IPv4 prefix has at most 32 bits");
        self.v4_prefix = bits;
        self
    }

    /// How many bits of an IPv6 address tell clients apart: 64 by default, since a single host can choose among all
    /// addresses of its /64.
    ///
    /// # Panics
    /// `bits` is above 128.
    #[must_use]
    #[track_caller]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        assert!(bits <= 128, "an IPv6 prefix has at most 128 bits");
        self.v6_prefix = bits;
        self
    }

    pub(crate) fn ipv6_prefix_length(&self) -> u8 {
        self.v6_prefix
    }

    /// Whether clients are told apart by nothing but their addresses.
    pub(crate) fn is_address(&self) -> bool {
        matches!(self.source, Source::Address)
    }

    /// Whether an address may tell clients apart.
    pub(crate) fn may_be_address(&self) -> bool {
        !matches!(self.source, Source::Everybody)
    }

    pub(crate) fn client(&self, head: &Head<'_>) -> Client {
        let found = match &self.source {
            Source::Address => None,
            Source::Everybody => Some(Partition::EVERYBODY),
            Source::Found(find, _) => find(head),
        };
        let found = found.or_else(|| head.client_ip().map(|address| self.network(address)));
        found.map_or(Client::Unknown, Client::Known)
    }

    /// The client that an application means. `None`: the key tells clients apart by something else.
    pub(crate) fn subject(&self, subject: &Subject) -> Option<Partition> {
        match (&self.source, &subject.0) {
            (Source::Everybody, Name::Everybody) => Some(Partition::EVERYBODY),
            (Source::Found(_, secret), Name::Key(key)) => Some(digest(secret, key)),
            (Source::Address | Source::Found(..), Name::Address(address)) => Some(self.network(*address)),
            _ => None,
        }
    }

    fn network(&self, address: IpAddr) -> Partition {
        Partition::of(address, self.v4_prefix, self.v6_prefix)
    }
}

fn digest(secret: &Secret, key: &[u8]) -> Partition {
    Partition::digest(secret.digest(&[key]))
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Address => "address",
            Source::Everybody => "everybody",
            Source::Found(..) => "custom",
        };
        let Self { v4_prefix, v6_prefix, .. } = self;
        write!(f, "Key({source}, /{v4_prefix}, /{v6_prefix})")
    }
}
