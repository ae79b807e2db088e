//! Request fields that say, beside the URL, what resource is asked for, or how.

use http::HeaderName;

/// Frameworks, gateways and servers are known to read them, or attackers to try them, in place of the scheme, host,
/// port, path or method of the request. From James Kettle's work on web cache poisoning and the word list of his Param
/// Miner, and from the documents of Symfony, Rails, Django, Spring, ASP.NET, IIS, WSGI servers, Envoy, Traefik and the
/// large CDNs. Sorted, in lowercase.
///
/// Not here: fields that name the client or a user (`X-Forwarded-For`, `X-Real-IP`, `Via`, `X-Forwarded-User`).
const FIELDS: [&str; 91] = [
    "base-url",
    "cf-visitor",
    "cloudfront-forwarded-proto",
    "fastly-host",
    "fastly-orig-host",
    "fastly-ssl",
    "forwarded",
    "forwarded-host",
    "forwarded-proto",
    "front-end-https",
    "http-host",
    "http-url",
    "https",
    "orig-path-info",
    "path-info",
    "proxy-host",
    "proxy-url",
    "real-method",
    "request-method",
    "request-uri",
    "script-name",
    "server-name",
    "server-port",
    "ssl-offloaded",
    "unencoded-url",
    "wl-proxy-ssl",
    "x-ajax-real-method",
    "x-amzn-remapped-host",
    "x-appengine-https",
    "x-arr-ssl",
    "x-backend-host",
    "x-cf-url",
    "x-client-host",
    "x-client-scheme",
    "x-envoy-original-host",
    "x-envoy-original-method",
    "x-envoy-original-path",
    "x-forward-host",
    "x-forward-proto",
    "x-forwarded",
    "x-forwarded-base",
    "x-forwarded-context",
    "x-forwarded-host",
    "x-forwarded-https",
    "x-forwarded-method",
    "x-forwarded-path",
    "x-forwarded-pathbase",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-script-name",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-forwarded-url",
    "x-host",
    "x-http-destinationurl",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-http-path-override",
    "x-https",
    "x-method",
    "x-method-override",
    "x-nfsn-https",
    "x-ning-request-uri",
    "x-orchestra-scheme",
    "x-original-host",
    "x-original-http-command",
    "x-original-method",
    "x-original-path",
    "x-original-prefix",
    "x-original-proto",
    "x-original-uri",
    "x-original-url",
    "x-originally-forwarded-proto",
    "x-override-url",
    "x-proxy-url",
    "x-remote-protocol",
    "x-replaced-path",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-scheme",
    "x-script-name",
    "x-server-name",
    "x-server-port",
    "x-ssl",
    "x-url-scheme",
    "x-waws-unencoded-url",
];

/// Underscores count as hyphens: CGI and its heirs cannot tell them apart (RFC 3875 §4.1.18).
pub(super) fn names_the_resource(name: &HeaderName) -> bool {
    let spelled = || name.as_str().bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
    FIELDS.binary_search_by(|field| field.bytes().cmp(spelled())).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_searched() {
        assert!(FIELDS.is_sorted());
        for field in FIELDS {
            let twin = field.replace('-', "_").to_uppercase();
            for name in [field, &twin] {
                assert!(names_the_resource(&name.parse().unwrap()), "{name}");
            }
        }
        for other in
            ["host", "x-forwarded-for", "x-forwarded-user", "x-real-ip", "via", "x-forwarded-hos", "cookie", "origin"]
        {
            assert!(!names_the_resource(&other.parse().unwrap()), "{other}");
        }
    }
}
