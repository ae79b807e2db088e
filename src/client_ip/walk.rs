//! The walk along a forwarding chain.

use std::net::IpAddr;

use super::trust::Trust;

/// How many hops are read. Nobody's chain of proxies is longer; a longer header is somebody's attempt to cost time.
pub(crate) const MAX_HOPS: usize = 32;

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

/// Where a walk ended.
pub(crate) struct End<H> {
    pub(crate) client: IpAddr,
    /// The last entry that a trusted hop vouches for.
    pub(crate) vouched: Option<H>,
    /// Whether that entry names the client. If not, the client is the last trusted hop.
    pub(crate) named: bool,
}

/// Looks for the client of a request that a trusted `peer` has passed on.
///
/// `chain` is read from the nearest hop to the farthest. An entry counts only while the hop that wrote it is trusted, so
/// what stands behind the client, or behind an entry that should name a proxy and does not, has no influence.
pub(crate) fn walk<H: Hop>(peer: IpAddr, trust: &Trust, chain: impl IntoIterator<Item = H>) -> End<H> {
    let mut end = End { client: peer.to_canonical(), vouched: None, named: false };
    for (position, hop) in (1..).zip(chain.into_iter().take(MAX_HOPS)) {
        let address = hop.address().map(|address| address.to_canonical());
        end.client = address.unwrap_or(end.client);
        end.named = address.is_some() && trust.may_end_at(position);
        end.vouched = Some(hop);
        if !trust.goes_beyond(position, address) {
            break;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn proxies() -> Trust {
        Trust::Proxies("10.0.0.0/8,fd00::/8".parse().unwrap())
    }

    fn end(trust: &Trust, chain: &[&str]) -> (IpAddr, bool) {
        let end = walk(ip("10.0.0.1"), trust, chain.iter().map(|entry| entry.parse().ok()));
        (end.client, end.named)
    }

    #[test]
    fn trusted_addresses() {
        for (chain, client, named) in [
            (&[][..], "10.0.0.1", false),
            (&["203.0.113.9", "6.6.6.6"], "203.0.113.9", true),
            (&["10.0.0.2", "203.0.113.9", "6.6.6.6"], "203.0.113.9", true),
            (&["fd00::2", "::ffff:10.0.0.3", "203.0.113.9"], "203.0.113.9", true),
            (&["10.0.0.2", "10.0.0.3"], "10.0.0.3", true),
            (&["unknown", "6.6.6.6"], "10.0.0.1", false),
            (&["10.0.0.2", "_hidden", "6.6.6.6"], "10.0.0.2", false),
            (&["10.0.0.2", "", "6.6.6.6"], "10.0.0.2", false),
        ] {
            assert_eq!(end(&proxies(), chain), (ip(client), named), "{chain:?}");
        }
    }

    #[test]
    fn a_number_of_hops() {
        for (hops, chain, client, named) in [
            (1, &["203.0.113.9", "6.6.6.6"][..], "203.0.113.9", true),
            (2, &["198.51.100.1", "203.0.113.9", "6.6.6.6"], "203.0.113.9", true),
            (2, &["198.51.100.1", "::ffff:203.0.113.9"], "203.0.113.9", true),
            // Proxies need not say who they are.
            (3, &["unknown", "198.51.100.1", "203.0.113.9", "6.6.6.6"], "203.0.113.9", true),
            (3, &["198.51.100.1", "_hidden", "203.0.113.9"], "203.0.113.9", true),
            // The client must be named; else it is the last hop that is.
            (2, &["198.51.100.1", "unknown", "6.6.6.6"], "198.51.100.1", false),
            (1, &["unknown", "6.6.6.6"], "10.0.0.1", false),
            // Too few hops.
            (3, &["198.51.100.1", "203.0.113.9"], "203.0.113.9", false),
            (1, &[], "10.0.0.1", false),
        ] {
            assert_eq!(end(&Trust::Hops(hops), chain), (ip(client), named), "{hops} {chain:?}");
        }
    }

    #[test]
    fn at_most_32_hops() {
        let chain: Vec<String> = (0..40).map(|hop| format!("10.0.1.{hop}")).collect();
        let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
        for trust in [proxies(), Trust::Hops(32)] {
            assert_eq!(end(&trust, &chain), (ip("10.0.1.31"), true));
        }
    }

    proptest! {
        #[test]
        fn what_stands_behind_an_untrusted_hop_has_no_influence(
            near in prop::collection::vec("10\\.0\\.0\\.[1-9]", 0..40),
            end_of_chain in "(203\\.0\\.113\\.[1-9]|unknown|_x|)",
            forged in prop::collection::vec(".{0,12}|10\\.0\\.0\\.[1-9]|6\\.6\\.6\\.[1-9]", 0..40),
        ) {
            let honest: Vec<&str> = near.iter().map(String::as_str).chain([end_of_chain.as_str()]).collect();
            let spoofed: Vec<&str> = honest.iter().copied().chain(forged.iter().map(String::as_str)).collect();
            prop_assert_eq!(end(&proxies(), &honest), end(&proxies(), &spoofed));
        }

        #[test]
        fn what_stands_beyond_the_trusted_hops_has_no_influence(
            honest in prop::collection::vec("203\\.0\\.113\\.[1-9]|unknown|_x|", 1..=32),
            forged in prop::collection::vec(".{0,12}|6\\.6\\.6\\.[1-9]", 0..40),
        ) {
            let trust = Trust::Hops(u8::try_from(honest.len()).unwrap());
            let honest: Vec<&str> = honest.iter().map(String::as_str).collect();
            let spoofed: Vec<&str> = honest.iter().copied().chain(forged.iter().map(String::as_str)).collect();
            prop_assert_eq!(end(&trust, &honest), end(&trust, &spoofed));
        }
    }
}
