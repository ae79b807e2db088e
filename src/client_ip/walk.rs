//! The walk along a forwarding chain.

use std::net::IpAddr;

use super::trusted::TrustedProxies;

/// How many hops are read. Nobody's chain of proxies is longer; a longer header is somebody's attempt to cost time.
const MAX_HOPS: usize = 32;

/// One entry of a chain: what a hop says of the hop before it.
pub(crate) trait Hop {
    /// `None`: it names no address.
    fn address(&self) -> Option<IpAddr>;
}

impl Hop for Option<IpAddr> {
    fn address(&self) -> Option<IpAddr> {
        *self
    }
}

/// The client, and the last entry that a trusted hop vouches for.
///
/// `chain` is read from the nearest hop to the farthest. An entry counts only while the hop that wrote it is trusted, so
/// what stands behind the first untrusted address, or behind one that cannot be read, has no influence.
pub(crate) fn walk<H: Hop>(
    peer: IpAddr,
    trusted: &TrustedProxies,
    chain: impl IntoIterator<Item = H>,
) -> (IpAddr, Option<H>) {
    let (mut client, mut vouched) = (peer.to_canonical(), None);
    let mut chain = chain.into_iter().take(MAX_HOPS);
    while trusted.contains(client) {
        let Some(hop) = chain.next() else { break };
        let address = hop.address();
        vouched = Some(hop);
        let Some(address) = address else { break };
        client = address.to_canonical();
    }
    (client, vouched)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(peer: &str, chain: &[&str]) -> IpAddr {
        let trusted = "10.0.0.0/8,fd00::/8".parse().unwrap();
        walk(ip(peer), &trusted, chain.iter().map(|entry| entry.parse().ok())).0
    }

    #[test]
    fn table() {
        for (peer, chain, expected) in [
            ("203.0.113.9", &["6.6.6.6"][..], "203.0.113.9"),
            ("::ffff:203.0.113.9", &["6.6.6.6"], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9", "6.6.6.6"], "203.0.113.9"),
            ("10.0.0.1", &["10.0.0.2", "203.0.113.9", "6.6.6.6"], "203.0.113.9"),
            ("10.0.0.1", &["fd00::2", "::ffff:10.0.0.3", "203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["10.0.0.2", "10.0.0.3"], "10.0.0.3"),
            ("10.0.0.1", &["unknown", "6.6.6.6"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.2", "_hidden", "6.6.6.6"], "10.0.0.2"),
            ("10.0.0.1", &["10.0.0.2", "", "6.6.6.6"], "10.0.0.2"),
        ] {
            assert_eq!(client(peer, chain), ip(expected), "{peer} {chain:?}");
        }
    }

    #[test]
    fn at_most_32_hops() {
        let chain: Vec<String> = (0..40).map(|hop| format!("10.0.1.{hop}")).collect();
        let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
        assert_eq!(client("10.0.0.1", &chain), ip("10.0.1.31"));
    }

    proptest! {
        #[test]
        fn what_stands_behind_an_untrusted_hop_has_no_influence(
            near in prop::collection::vec("10\\.0\\.0\\.[1-9]", 0..40),
            end in "(203\\.0\\.113\\.[1-9]|unknown|_x|)",
            forged in prop::collection::vec(".{0,12}|10\\.0\\.0\\.[1-9]|6\\.6\\.6\\.[1-9]", 0..40),
        ) {
            let honest: Vec<&str> = near.iter().map(String::as_str).chain([end.as_str()]).collect();
            let spoofed: Vec<&str> = honest.iter().copied().chain(forged.iter().map(String::as_str)).collect();
            prop_assert_eq!(client("10.0.0.1", &honest), client("10.0.0.1", &spoofed));
        }
    }
}
