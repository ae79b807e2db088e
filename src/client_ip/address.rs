//! One entry of a forwarding chain, as text.

use std::net::{IpAddr, Ipv6Addr};

/// Longer than any address with brackets, zone and port.
const MAX_LENGTH: usize = 128;

/// The address in `text`, without brackets, zone and port, IPv4 where it is IPv4-mapped.
/// `None` for `unknown`, obfuscated identifiers (RFC 7239 section 6) and everything else.
pub(crate) fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    if text.len() > MAX_LENGTH {
        return None;
    }
    let (host, port) = split_port(text)?;
    let address = match host {
        Host::Bracketed(v6) => parse_v6(v6)?.into(),
        Host::Bare(text) if text.contains(':') => parse_v6(text)?.into(),
        Host::Bare(text) => IpAddr::V4(text.parse().ok()?),
    };
    port.is_none_or(is_port).then(|| address.to_canonical())
}

enum Host<'a> {
    Bracketed(&'a str),
    Bare(&'a str),
}

fn split_port(text: &str) -> Option<(Host<'_>, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (v6, port) = rest.split_once(']')?;
        return match port.strip_prefix(':') {
            None if port.is_empty() => Some((Host::Bracketed(v6), None)),
            None => None,
            port => Some((Host::Bracketed(v6), port)),
        };
    }
    // A bare address with several colons is IPv6, which cannot carry a port without brackets.
    match text.split_once(':') {
        Some((v4, port)) if !port.contains(':') => Some((Host::Bare(v4), Some(port))),
        _ => Some((Host::Bare(text), None)),
    }
}

fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    match text.split_once('%') {
        Some((_, "")) => None,
        Some((address, _zone)) => address.parse().ok(),
        None => text.parse().ok(),
    }
}

/// A number, or an obfuscated port (RFC 7239 section 6.3).
fn is_port(port: &str) -> bool {
    match port.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
        None => !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, address) in [
            ("203.0.113.9", "203.0.113.9"),
            (" 203.0.113.9\t", "203.0.113.9"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:DB8::1]:443", "2001:db8::1"),
            ("[2001:db8::1]:_gazonk", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25eth0]:80", "fe80::1"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("[::ffff:cb00:7109]:1", "203.0.113.9"),
        ] {
            assert_eq!(parse(text), Some(address.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn everything_else_is_no_address() {
        for text in [
            "",
            " ",
            "unknown",
            "_hidden",
            "localhost",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "01.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:65536",
            "1.2.3.4:+80",
            "1.2.3.4:_",
            "[1.2.3.4]",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]443",
            "[2001:db8::1]:",
            "[]",
            "fe80::1%",
            "\"1.2.3.4\"",
            "1.2.3.4 5.6.7.8",
            "１.2.3.4",
            "0x7f.1",
            "::1::",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&format!("fe80::1%{}", "z".repeat(1 << 16))), None);
    }
}
