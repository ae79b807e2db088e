//! Scheme and host.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

use http::header::HOST;
use http::{Extensions, HeaderMap, Uri};

use super::layer::ConfigError;

/// Longer hosts are no domain names (RFC 1035 section 2.3.4), only cache keys that somebody inflates.
const MAX_HOST: usize = 255;

/// Request extension: scheme and host that the client asked for.
///
/// Parses from `http://host` or `https://host`, with a port where it is not the scheme's default, and nothing else:
///
/// ```
/// use tower_scale::client_ip::Origin;
///
/// let origin: Origin = "https://Shop.example:443".parse()?;
/// assert_eq!((origin.scheme(), origin.host()), ("https", "shop.example"));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: Scheme,
    host: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scheme {
    Http,
    Https,
}

// === impl Scheme ===

impl Scheme {
    fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme.as_str()))
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

// === impl Origin ===

impl Origin {
    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.scheme.as_str()
    }

    /// The host in lowercase, with the port unless it is the scheme's default. IPv6 addresses stand in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    fn new(scheme: Scheme, authority: &str) -> Option<Self> {
        Some(Self { scheme, host: normal_host(scheme, authority)?.into() })
    }
}

impl FromStr for Origin {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let parse = || {
            let (scheme, authority) = text.split_once("://")?;
            Self::new(Scheme::parse(scheme)?, authority)
        };
        parse().ok_or_else(|| ConfigError::Origin(text.to_owned()))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.host)
    }
}

/// Scheme and host: `ClientIpLayer`'s finding, else scheme of the URI (or `http`) and authority (or `Host`).
/// `None`: there is no host, several, or one that is not valid.
///
/// Nothing is copied where the request spells its host as [`Origin::host`] does.
#[cfg_attr(not(feature = "cache"), allow(dead_code))]
pub(crate) fn origin<'a>(
    uri: &'a Uri,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
) -> Option<(&'static str, Cow<'a, str>)> {
    let (scheme, host) = match extensions.get::<Origin>() {
        Some(origin) => (origin.scheme, Cow::Borrowed(&*origin.host)),
        None => stated(None, None, uri, headers)?,
    };
    Some((scheme.as_str(), host))
}

/// Whether two authorities name one host under this scheme. What is not valid names none.
#[cfg_attr(not(feature = "cache"), allow(dead_code))]
pub(crate) fn same_host(scheme: &str, left: &str, right: &str) -> bool {
    let host = |authority| normal_host(Scheme::parse(scheme)?, authority);
    host(left).is_some_and(|left| Some(left) == host(right))
}

/// What a request asks for, where a trusted proxy says otherwise with `proto` and `host`. What it says wrong counts as
/// not said.
pub(crate) fn requested(proto: Option<&str>, host: Option<&str>, uri: &Uri, headers: &HeaderMap) -> Option<Origin> {
    let (scheme, host) = stated(proto, host, uri, headers)?;
    Some(Origin { scheme, host: host.into() })
}

fn stated<'a>(
    proto: Option<&str>,
    host: Option<&'a str>,
    uri: &'a Uri,
    headers: &'a HeaderMap,
) -> Option<(Scheme, Cow<'a, str>)> {
    let mut fields = headers.get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return None;
    }
    let scheme = match (proto.and_then(Scheme::parse), uri.scheme_str()) {
        (Some(scheme), _) => scheme,
        (None, Some(scheme)) => Scheme::parse(scheme)?,
        (None, None) => Scheme::Http,
    };
    let host = host.and_then(|host| normal_host(scheme, host)).or_else(|| match uri.authority() {
        Some(authority) => normal_host(scheme, authority.as_str()),
        // Other bytes than ASCII are in no valid host.
        None => normal_host(scheme, str::from_utf8(field?.as_bytes()).ok()?),
    })?;
    Some((scheme, host))
}

/// A host in its one spelling: the name in lowercase, the port unless it is the scheme's default.
fn normal_host(scheme: Scheme, authority: &str) -> Option<Cow<'_, str>> {
    // Nearly always, and on the way of every cache hit.
    let plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    if (1..=MAX_HOST).contains(&authority.len()) && authority.bytes().all(plain) {
        return Some(Cow::Borrowed(authority));
    }
    let (name, port) = split_port(authority)?;
    let name = normal_name(name)?;
    let Some(port) = port.filter(|port| *port != scheme.default_port()) else { return Some(name) };
    let digits = usize::try_from(port.checked_ilog10().unwrap_or(0)).ok()? + 1;
    Some(match name {
        // No digit too many: the port has no leading zeros.
        Cow::Borrowed(name) if authority.len() == name.len() + 1 + digits => Cow::Borrowed(authority),
        name => Cow::Owned(format!("{name}:{port}")),
    })
}

/// Splits `host [ ":" port ]` (RFC 3986 section 3.2). An empty port is no port.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    if authority.len() > MAX_HOST {
        return None;
    }
    let end_of_literal = if authority.starts_with('[') { authority.find(']')? + 1 } else { 0 };
    let colon = authority.get(end_of_literal..)?.find(':').map_or(authority.len(), |at| at + end_of_literal);
    let (name, port) = authority.split_at_checked(colon)?;
    match port.strip_prefix(':') {
        None | Some("") => Some((name, None)),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some((name, Some(digits.parse().ok()?))),
        Some(_) => None,
    }
}

/// IPv6 literal, or registered name in lowercase.
fn normal_name(name: &str) -> Option<Cow<'_, str>> {
    if let Some(literal) = name.strip_prefix('[') {
        let address: Ipv6Addr = literal.strip_suffix(']')?.parse().ok()?;
        return Some(Cow::Owned(format!("[{address}]")));
    }
    if name.is_empty() || !is_registered_name(name) {
        return None;
    }
    let lower = !name.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if lower { Cow::Borrowed(name) } else { Cow::Owned(name.to_ascii_lowercase()) })
}

/// `*( unreserved / pct-encoded / sub-delims )` (RFC 3986 section 3.2.2).
fn is_registered_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        let valid = match byte {
            b'%' => [bytes.next(), bytes.next()].iter().all(|digit| digit.is_some_and(|d| d.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte),
        };
        if !valid {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str, hosts: &[&str]) -> Option<String> {
        forwarded(None, None, uri, hosts)
    }

    fn forwarded(proto: Option<&str>, host: Option<&str>, uri: &str, hosts: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, http::HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        Some(requested(proto, host, &uri.parse().unwrap(), &headers)?.to_string())
    }

    #[test]
    fn from_uri_and_host() {
        for (uri, hosts, expected) in [
            ("/", &["Shop.Example"][..], Some("http://shop.example")),
            ("/", &["shop.example:80"], Some("http://shop.example")),
            ("/", &["shop.example:080"], Some("http://shop.example")),
            ("/", &["shop.example:"], Some("http://shop.example")),
            ("/", &["shop.example:8080"], Some("http://shop.example:8080")),
            ("/", &["[2001:DB8:0::1]:81"], Some("http://[2001:db8::1]:81")),
            ("/", &["10.0.0.1"], Some("http://10.0.0.1")),
            ("https://a.example:443/x", &["b.example"], Some("https://a.example")),
            ("http://a.example/x", &[], Some("http://a.example")),
            ("/", &[], None),
            ("/", &[""], None),
            ("/", &[":80"], None),
            ("/", &["a.example", "a.example"], None),
            ("http://a.example/", &["a.example", "b.example"], None),
            ("ws://a.example/", &[], None),
            ("http://user@a.example/", &[], None),
            ("/", &["a b"], None),
            ("/", &["a/b"], None),
            ("/", &["a?b"], None),
            ("/", &["a@b"], None),
            ("/", &["a%2"], None),
            ("/", &["a%2G"], None),
            ("/", &["ä.example"], None),
            ("/", &["a:b"], None),
            ("/", &["a:65536"], None),
            ("/", &["a:+1"], None),
            ("/", &["a:1:2"], None),
            ("/", &["[::1"], None),
            ("/", &["[::1]x"], None),
            ("/", &["[fe80::1%eth0]"], None),
            ("/", &["::1"], None),
        ] {
            assert_eq!(of(uri, hosts).as_deref(), expected, "{uri} {hosts:?}");
        }
        assert_eq!(of("/", &[&"a".repeat(256)]), None);
        assert!(of("/", &[&"a".repeat(255)]).is_some());
    }

    #[test]
    fn a_proxy_s_word_counts_where_it_is_well_formed() {
        for (proto, host, expected) in [
            (Some("HTTPS"), Some("Shop.example:443"), "https://shop.example"),
            (Some("https"), None, "https://internal:8080"),
            (None, Some("shop.example"), "http://shop.example"),
            (Some("gopher"), Some("shop.example"), "http://shop.example"),
            (Some("https"), Some("a b"), "https://internal:8080"),
            (Some(""), Some(""), "http://internal:8080"),
        ] {
            assert_eq!(
                forwarded(proto, host, "/", &["internal:8080"]).as_deref(),
                Some(expected),
                "{proto:?} {host:?}"
            );
        }
        assert_eq!(forwarded(None, Some("shop.example"), "/", &[]).as_deref(), Some("http://shop.example"));
    }

    #[test]
    fn pinned_origins_parse_or_say_why() {
        for text in ["quickstart", "ftp://a", "http://", "http://a/", "http://a b", "http://a:x", "//a", ""] {
            let error = text.parse::<Origin>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("https://"), "{error}");
        }
        assert_eq!("http://quickstart".parse::<Origin>().unwrap().to_string(), "http://quickstart");
    }
}
