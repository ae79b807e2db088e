//! Which peers may speak for others.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::layer::ConfigError;

/// A list of IP networks; none by default.
///
/// Parsed from addresses and CIDR networks, separated by commas, so that it can be read from the environment as it is.
/// IPv4-mapped networks (`::ffff:10.0.0.0/104`) mean the IPv4 network.
///
/// ```
/// use tower_scale::client_ip::Networks;
///
/// let monitors: Networks = "10.0.0.0/8, 2001:db8::/32, 192.0.2.7".parse()?;
/// assert!(monitors.contains("10.1.2.3".parse()?));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Networks(Arc<[IpNet]>);

impl Networks {
    /// Whether one of the networks has this address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromStr for Networks {
    type Err = ConfigError;

    fn from_str(list: &str) -> Result<Self, ConfigError> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let networks = entries.map(network).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(IpNet::aggregate(&networks).into()))
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(ToString::to_string)).finish()
    }
}

/// The networks whose forwarding headers are believed; none by default.
///
/// Parsed from addresses and CIDR networks, separated by commas, so that it can be read from the environment as it is:
///
/// ```
/// use tower_scale::client_ip::TrustedProxies;
///
/// let proxies: TrustedProxies = "10.0.0.0/8, 2001:db8::/32, 192.0.2.7".parse()?;
/// assert!(proxies.contains("10.1.2.3".parse()?));
/// assert!("0.0.0.0/0".parse::<TrustedProxies>().is_err());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// Trusting everybody would let any client choose its address, so a list that covers all of IPv4 or all of IPv6 is an
/// error, however it is written. An empty list trusts nobody. IPv4-mapped networks (`::ffff:10.0.0.0/104`) mean the
/// IPv4 network.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Networks);

impl TrustedProxies {
    /// Whether `address` may speak for others.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }
}

impl FromStr for TrustedProxies {
    type Err = ConfigError;

    fn from_str(list: &str) -> Result<Self, ConfigError> {
        let networks: Networks = list.parse()?;
        // Two halves of the address space have merged into the whole.
        if networks.0.iter().any(|network| network.prefix_len() == 0) {
            return Err(ConfigError::TrustsEverybody);
        }
        Ok(Self(networks))
    }
}

fn network(entry: &str) -> Result<IpNet, ConfigError> {
    let network: IpNet = entry
        .parse()
        .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| ConfigError::Network(entry.to_owned()))?;
    Ok(unmapped(network))
}

/// Addresses are compared unmapped, so a mapped network would match nothing.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(network, IpNet::V4)
}

impl fmt::Debug for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(list: &str) -> TrustedProxies {
        list.parse().unwrap()
    }

    #[test]
    fn networks_and_addresses() {
        let proxies = proxies(" 10.0.0.0/8,192.0.2.7 ,2001:db8::/32,, ::ffff:172.16.0.0/108");
        for (address, trusted) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::1", false),
            ("172.31.0.1", true),
            ("172.32.0.1", false),
        ] {
            assert_eq!(proxies.contains(address.parse().unwrap()), trusted, "{address}");
        }
    }

    /// Unlike proxies: whoever wants to let all of IPv4 through may.
    #[test]
    fn networks_may_be_everything_or_nothing() {
        let address = |text: &str| text.parse().unwrap();
        let networks: Networks = "0.0.0.0/0".parse().unwrap();
        assert!(networks.contains(address("203.0.113.9")) && networks.contains(address("::ffff:203.0.113.9")));
        assert!(!networks.contains(address("2001:db8::1")));
        let networks: Networks = "2001:db8::/33,2001:db8:8000::/33, ::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(format!("{networks:?}"), r#"["192.0.2.7/32", "2001:db8::/32"]"#);
        assert!(networks.contains(address("192.0.2.7")) && networks.contains(address("2001:db8:ffff::1")));
        assert!(!networks.contains(address("192.0.2.8")) && !networks.contains(address("2001:db9::1")));
        assert_eq!("".parse(), Ok(Networks::default()));
        assert!(!Networks::default().contains(address("127.0.0.1")));
        assert_eq!("10.0.0.0/8,x".parse::<Networks>(), Err(ConfigError::Network("x".to_owned())));
    }

    #[test]
    fn nobody_by_default() {
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().unwrap()));
        assert_eq!(proxies(" "), TrustedProxies::default());
    }

    #[test]
    fn everybody_is_refused_however_it_is_written() {
        for list in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/0",
            "0.0.0.0/1, 128.0.0.0/1",
            "::/1,8000::/1",
            "::ffff:0:0/96",
            "10.0.0.1,::/0",
        ] {
            assert!(matches!(list.parse::<TrustedProxies>(), Err(ConfigError::TrustsEverybody)), "{list}");
        }
    }

    #[test]
    fn garbage_is_named() {
        for (list, entry) in
            [("10.0.0.0/8, proxy.local", "proxy.local"), ("10.0.0.0/33", "10.0.0.0/33"), ("10.0.0", "10.0.0")]
        {
            let error = list.parse::<TrustedProxies>().unwrap_err().to_string();
            assert!(error.contains(&format!("{entry:?}")) && error.contains("10.0.0.0/8"), "{error}");
        }
    }
}
