//! Whose requests are counted together.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use siphasher::sip::SipHasher13;

/// A client, as the limiter tells clients apart: a network, the keyed digest of a key, or everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Partition {
    kind: Kind,
    bits: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Everybody,
    /// With the length of the prefix.
    V4(u8),
    V6(u8),
    Digest,
}

impl Partition {
    pub(crate) const EVERYBODY: Self = Self { kind: Kind::Everybody, bits: 0 };

    /// The network of `address`, unmapped, with a prefix of this length.
    pub(crate) fn of(address: IpAddr, v4_prefix: u8, v6_prefix: u8) -> Self {
        match untranslated(address.to_canonical()) {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(v4_prefix.min(32))).unwrap_or(0);
                Self { kind: Kind::V4(v4_prefix), bits: u128::from(v4.to_bits() & mask) << 96 }
            }
            IpAddr::V6(v6) => Self { kind: Kind::V6(v6_prefix), bits: masked(v6.to_bits(), v6_prefix) },
        }
    }

    pub(crate) fn digest(bits: u128) -> Self {
        Self { kind: Kind::Digest, bits }
    }

    /// The network around an IPv6 client, where its own is smaller than that.
    pub(crate) fn wider(self, v6_prefix: u8) -> Option<Self> {
        match self.kind {
            Kind::V6(own) if v6_prefix < own => {
                Some(Self { kind: Kind::V6(v6_prefix), bits: masked(self.bits, v6_prefix) })
            }
            _ => None,
        }
    }

    /// Keyed, and different for what differs. IPv4 clients are one word, since that is what most are.
    #[inline]
    pub(crate) fn hash(self, hasher: &SipHasher13) -> u64 {
        let [kind, high, low] = self.words();
        match self.kind {
            Kind::V4(_) => hasher.hash(&(kind | high).to_ne_bytes()),
            _ => {
                let mut bytes = [0; 24];
                for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip([kind, high, low]) {
                    *bytes = u64::to_ne_bytes(word);
                }
                hasher.hash(&bytes)
            }
        }
    }

    /// What tells partitions apart: the same for equal ones only.
    #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
    pub(crate) fn words(self) -> [u64; 3] {
        let kind = match self.kind {
            Kind::Everybody => 0,
            Kind::V4(prefix) => 1 << 8 | u64::from(prefix),
            Kind::V6(prefix) => 2 << 8 | u64::from(prefix),
            Kind::Digest => 3 << 8,
        };
        [kind, (self.bits >> 64) as u64, self.bits as u64]
    }

    /// The partition of these [`words`](Self::words).
    #[cfg(feature = "redis")]
    pub(crate) fn from_words([kind, high, low]: [u64; 3]) -> Option<Self> {
        let bits = u128::from(high) << 64 | u128::from(low);
        let [first, prefix] = u16::try_from(kind).ok()?.to_be_bytes();
        let kind = match (first, prefix) {
            (0, 0) => Kind::Everybody,
            (1, 0..=32) => Kind::V4(prefix),
            (2, 0..=128) => Kind::V6(prefix),
            (3, 0) => Kind::Digest,
            _ => return None,
        };
        Some(Self { kind, bits })
    }
}

/// The IPv4 host behind an address that a translator has made of it (64:ff9b::/96, RFC 6052): within one /64, all of them
/// would be one client.
fn untranslated(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.octets() {
            [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, v4 @ ..] => v4.into(),
            _ => address,
        },
        IpAddr::V4(_) => address,
    }
}

fn masked(bits: u128, prefix: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0)
}

/// As it stands in Redis's keys.
impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Everybody => f.write_str("*"),
            Kind::V4(prefix) => {
                write!(f, "{}", Ipv4Addr::from_bits((self.bits >> 96) as u32))?;
                if prefix < 32 { write!(f, "/{prefix}") } else { Ok(()) }
            }
            Kind::V6(prefix) => write!(f, "{}/{prefix}", Ipv6Addr::from_bits(self.bits)),
            Kind::Digest => write!(f, "{:032x}", self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Partition {
        Partition::of(address.parse().unwrap(), 32, 64)
    }

    #[test]
    fn partitions() {
        for (address, partition) in [
            ("203.0.113.9", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::", "2001:db8:1:3::/64"),
            ("64:ff9b::203.0.113.9", "203.0.113.9"),
            ("64:ff9b:1::203.0.113.9", "64:ff9b:1::/64"),
            ("64:ff9b::1:203.0.113.9", "64:ff9b::/64"),
        ] {
            assert_eq!(of(address).to_string(), partition);
        }
        assert_ne!(of("0.0.0.1"), of("0:0:0:1::"));
    }

    #[test]
    fn prefixes() {
        for (address, v4, v6, partition) in [
            ("203.0.113.9", 24, 64, "203.0.113.0/24"),
            ("203.0.113.9", 0, 64, "0.0.0.0/0"),
            ("2001:db8:1:2:3:4:5:6", 32, 128, "2001:db8:1:2:3:4:5:6/128"),
            ("2001:db8:1:2:3:4:5:6", 32, 56, "2001:db8:1::/56"),
        ] {
            assert_eq!(Partition::of(address.parse().unwrap(), v4, v6).to_string(), partition);
        }
        let site = of("2001:db8:1:2::").wider(48).unwrap();
        assert_eq!(site.to_string(), "2001:db8:1::/48");
        assert_eq!(site, of("2001:db8:1:3::").wider(48).unwrap());
        assert_eq!((of("2001:db8::").wider(64), of("192.0.2.1").wider(48)), (None, None));
        assert_ne!(of("2001:db8::"), of("2001:db8::").wider(48).unwrap());
    }

    #[test]
    fn words_tell_partitions_apart() {
        let all = [
            Partition::EVERYBODY,
            Partition::digest(0),
            of("0.0.0.0"),
            of("::2"),
            of("::2").wider(48).unwrap(),
            of("0:0:0:1::"),
            Partition::digest(1),
        ];
        let words: std::collections::HashSet<_> = all.iter().map(|partition| partition.words()).collect();
        assert_eq!(words.len(), all.len());
    }
}
