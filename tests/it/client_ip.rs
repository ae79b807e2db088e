//! Who the layer says is calling, for every kind of server and every kind of header.

mod lines;
mod servers;

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::client_ip::{ClientIp, ClientIpLayer, Header, Origin, PeerAddr};
use tower_scale::refusal::Reason;

type Body = Full<Bytes>;

fn address(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 4711)
}

fn request(peer: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().extension(PeerAddr(address(peer)));
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request.body(Body::default()).unwrap()
}

/// What the layer left for the inner service: client and origin, or the layer's own response.
async fn found(layer: &ClientIpLayer, request: Request<Body>) -> Result<(String, String), Response<Bytes>> {
    let inner = service_fn(|request: Request<Body>| async move {
        let mut response = Response::new(Body::default());
        *response.extensions_mut() = request.extensions().clone();
        Ok::<_, Infallible>(response)
    });
    let response = layer.layer(inner).oneshot(request).await.unwrap();
    let Some(client) = response.extensions().get::<ClientIp>() else {
        let (parts, body) = response.into_parts();
        return Err(Response::from_parts(parts, body.collect().await.unwrap().to_bytes()));
    };
    let origin = response.extensions().get::<Origin>();
    Ok((client.0.to_string(), origin.map(ToString::to_string).unwrap_or_default()))
}

fn behind_proxies() -> ClientIpLayer {
    ClientIpLayer::new().trusted_proxies("10.0.0.0/8, fd00::/8".parse().unwrap())
}

fn single(name: &'static str) -> Header {
    Header::Single(HeaderName::from_static(name))
}

#[tokio::test]
async fn forwarding_headers_of_an_untrusted_peer_are_ignored() {
    let forged = [
        ("host", "shop.example"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.example"),
        ("forwarded", "for=6.6.6.6;proto=https;host=evil.example"),
        ("cf-connecting-ip", "6.6.6.6"),
    ];
    for layer in [ClientIpLayer::new(), behind_proxies()] {
        for header in [Header::XForwardedFor, Header::Forwarded, single("cf-connecting-ip")] {
            let layer = layer.clone().header(header);
            let found = found(&layer, request("203.0.113.9", &forged)).await.unwrap();
            assert_eq!(found, ("203.0.113.9".into(), "http://shop.example".into()), "{layer:?}");
        }
    }
}

#[tokio::test]
async fn x_forwarded_for() {
    for (lines, expected) in [
        (&["203.0.113.9"][..], "203.0.113.9"),
        (&["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (&["6.6.6.6, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        (&["6.6.6.6", "203.0.113.9,10.0.0.2", "fd00::3"], "203.0.113.9"),
        (&["6.6.6.6,203.0.113.9:5555"], "203.0.113.9"),
        (&["[2001:db8::1]:5555"], "2001:db8::1"),
        (&["::ffff:203.0.113.9"], "203.0.113.9"),
        (&["6.6.6.6, unknown"], "10.0.0.1"),
        (&["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        (&["6.6.6.6,"], "10.0.0.1"),
        (&["6.6.6.6", ""], "10.0.0.1"),
        (&["6.6.6.6", "\u{fc}"], "10.0.0.1"),
        // A client's odd byte hides nothing that the proxy appends to its line.
        (&["\u{fc}, 203.0.113.9"], "203.0.113.9"),
        (&["10.0.0.3,10.0.0.2"], "10.0.0.3"),
        (&[], "10.0.0.1"),
    ] {
        let headers: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
        let (client, _) = found(&behind_proxies(), request("10.0.0.1", &headers)).await.unwrap();
        assert_eq!(client, expected, "{lines:?}");
    }
    let huge = format!("{},203.0.113.9", "6.6.6.6,".repeat(8192));
    let (client, _) = found(&behind_proxies(), request("10.0.0.1", &[("x-forwarded-for", &huge)])).await.unwrap();
    assert_eq!(client, "203.0.113.9");
}

#[tokio::test]
async fn forwarded() {
    for (lines, expected, origin) in [
        (&["for=203.0.113.9;proto=https;host=shop.example"][..], "203.0.113.9", "https://shop.example"),
        (&["for=6.6.6.6;host=evil.example, for=\"[2001:db8::1]:5\""], "2001:db8::1", "http://internal"),
        (
            &[
                "for=6.6.6.6;host=evil.example,for=203.0.113.9;proto=https;host=shop.example",
                "for=10.0.0.2;proto=http;host=lb",
            ],
            "203.0.113.9",
            "https://shop.example",
        ),
        (&["for=6.6.6.6, for=unknown;proto=https"], "10.0.0.1", "https://internal"),
        (&["for=6.6.6.6;host=evil.example, for=1.2.3.4;for=1.2.3.4"], "10.0.0.1", "http://internal"),
        (&["for=\"6.6.6.6, for=203.0.113.9;host=shop.example"], "203.0.113.9", "http://shop.example"),
        (&["for=203.0.113.9;host=\"a b\";proto=gopher"], "203.0.113.9", "http://internal"),
        (&["for=\u{fc}, for=203.0.113.9;proto=https;host=shop.example"], "203.0.113.9", "https://shop.example"),
    ] {
        let mut headers: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
        headers.push(("host", "internal"));
        // A client could add these, as the proxy writes `Forwarded` only.
        headers.extend([("x-forwarded-for", "6.6.6.6"), ("x-forwarded-host", "evil.example")]);
        let layer = behind_proxies().header(Header::Forwarded);
        let found = found(&layer, request("10.0.0.1", &headers)).await.unwrap();
        assert_eq!(found, (expected.into(), origin.into()), "{lines:?}");
    }
}

#[tokio::test]
async fn a_provider_s_header_occurs_once() {
    let layer = behind_proxies().header(single("cf-connecting-ip"));
    for (values, expected) in [
        (&["203.0.113.9"][..], "203.0.113.9"),
        (&["203.0.113.9", "203.0.113.9"], "10.0.0.1"),
        (&["6.6.6.6, 203.0.113.9"], "10.0.0.1"),
        (&["unknown"], "10.0.0.1"),
        (&[], "10.0.0.1"),
    ] {
        let mut headers: Vec<_> = values.iter().map(|value| ("cf-connecting-ip", *value)).collect();
        headers.push(("x-forwarded-for", "6.6.6.6"));
        assert_eq!(found(&layer, request("10.0.0.1", &headers)).await.unwrap().0, expected, "{values:?}");
    }
}

#[tokio::test]
async fn a_number_of_hops_is_trusted_whatever_their_addresses() {
    for (hops, lines, expected) in [
        (1, &["6.6.6.6, 203.0.113.9"][..], "203.0.113.9"),
        (2, &["6.6.6.6, 203.0.113.9, 198.51.100.2"], "203.0.113.9"),
        (2, &["6.6.6.6", "203.0.113.9:80", "198.51.100.2"], "203.0.113.9"),
        (3, &["6.6.6.6, 203.0.113.9, unknown, 198.51.100.2"], "203.0.113.9"),
        (2, &["6.6.6.6, unknown, 198.51.100.2"], "198.51.100.2"),
        (2, &["203.0.113.9"], "203.0.113.9"),
        (2, &[], "192.0.2.1"),
    ] {
        let headers: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
        let layer = ClientIpLayer::new().trusted_hops(hops);
        assert_eq!(found(&layer, request("192.0.2.1", &headers)).await.unwrap().0, expected, "{hops} {lines:?}");
    }

    let headers = [
        ("forwarded", "for=6.6.6.6;host=evil.example"),
        ("forwarded", "for=203.0.113.9;host=shop.example;proto=https, for=_lb;host=internal"),
        ("x-forwarded-for", "6.6.6.6"),
    ];
    let layer = ClientIpLayer::new().header(Header::Forwarded).trusted_hops(2);
    let expected = ("203.0.113.9".to_owned(), "https://shop.example".to_owned());
    assert_eq!(found(&layer, request("192.0.2.1", &headers)).await.unwrap(), expected);

    let layer = ClientIpLayer::new().header(single("x-real-ip")).trusted_hops(2);
    assert_eq!(found(&layer, request("192.0.2.1", &[("x-real-ip", "203.0.113.9")])).await.unwrap().0, "203.0.113.9");
}

#[tokio::test]
async fn addresses_or_a_number_of_hops_whichever_is_set_last() {
    let headers = [("x-forwarded-for", "6.6.6.6, 203.0.113.9")];
    let hops_last = behind_proxies().trusted_hops(1);
    assert_eq!(found(&hops_last, request("192.0.2.1", &headers)).await.unwrap().0, "203.0.113.9");
    let addresses_last = ClientIpLayer::new().trusted_hops(2).trusted_proxies("10.0.0.0/8".parse().unwrap());
    assert_eq!(found(&addresses_last, request("192.0.2.1", &headers)).await.unwrap().0, "192.0.2.1");
    assert_eq!(found(&addresses_last, request("10.0.0.1", &headers)).await.unwrap().0, "203.0.113.9");
    for wrong in [0, 33] {
        assert!(std::panic::catch_unwind(|| ClientIpLayer::new().trusted_hops(wrong)).is_err());
    }
}

#[tokio::test]
async fn strict_refuses_what_names_no_client() {
    let proxies = behind_proxies().strict();
    let hops = ClientIpLayer::new().trusted_hops(2).strict();
    let forwarded = proxies.clone().header(Header::Forwarded);
    let provider = proxies.clone().header(single("cf-connecting-ip"));
    for (layer, name, lines) in [
        (&proxies, "x-forwarded-for", &[][..]),
        (&proxies, "x-forwarded-for", &[""]),
        (&proxies, "x-forwarded-for", &["203.0.113.9, unknown"]),
        (&proxies, "x-forwarded-for", &["203.0.113.9, nonsense, 10.0.0.2"]),
        (&hops, "x-forwarded-for", &["203.0.113.9"]),
        (&hops, "x-forwarded-for", &["203.0.113.9, unknown, 198.51.100.1"]),
        (&forwarded, "forwarded", &["for=203.0.113.9, for=_hidden"]),
        (&forwarded, "forwarded", &["for=203.0.113.9, for=10.0.0.2;for=10.0.0.2"]),
        (&forwarded, "forwarded", &["proto=https"]),
        (&forwarded, "x-forwarded-for", &["203.0.113.9"]),
        (&provider, "cf-connecting-ip", &[]),
        (&provider, "cf-connecting-ip", &["203.0.113.9", "203.0.113.9"]),
        (&provider, "cf-connecting-ip", &["203.0.113.9, 203.0.113.9"]),
    ] {
        let headers: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
        let refused = found(layer, request("10.0.0.1", &headers)).await.unwrap_err();
        assert_eq!(refused.status(), 400, "{lines:?}");
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
        assert_eq!(refused.extensions().get(), Some(&Reason::ForwardingInvalid));
    }
    for (layer, peer, name, line, expected) in [
        (&proxies, "203.0.113.9", "x-forwarded-for", "nonsense", "203.0.113.9"), // its header does not count at all
        (&proxies, "10.0.0.1", "x-forwarded-for", "nonsense, 203.0.113.9", "203.0.113.9"),
        (&proxies, "10.0.0.1", "x-forwarded-for", "10.0.0.3, 10.0.0.2", "10.0.0.3"), // a client among the proxies
        (&hops, "192.0.2.1", "x-forwarded-for", "203.0.113.9, unknown", "203.0.113.9"),
        (&forwarded, "10.0.0.1", "forwarded", "for=unknown, for=203.0.113.9", "203.0.113.9"),
        (&provider, "10.0.0.1", "cf-connecting-ip", "203.0.113.9", "203.0.113.9"),
    ] {
        assert_eq!(found(layer, request(peer, &[(name, line)])).await.unwrap().0, expected, "{line}");
    }
}

#[tokio::test]
async fn a_unix_peer_is_a_trusted_proxy_only_where_that_is_asked_for() {
    let from_unix = |headers: &[(&str, &str)]| {
        let mut request = request("192.0.2.1", headers);
        request.extensions_mut().remove::<PeerAddr>();
        request
    };
    let headers = [("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-forwarded-proto", "https"), ("host", "a.example")];
    let layer = ClientIpLayer::new();
    assert_eq!(found(&layer, from_unix(&headers)).await.unwrap_err().status(), 500);
    let layer = layer.trusted_unix_peers();
    let expected = ("203.0.113.9".to_owned(), "https://a.example".to_owned());
    assert_eq!(found(&layer, from_unix(&headers)).await.unwrap(), expected);
    assert_eq!(found(&layer, from_unix(&[])).await.unwrap().0, "127.0.0.1");
    assert_eq!(found(&layer, request("192.0.2.1", &headers)).await.unwrap().0, "192.0.2.1", "TCP peers are as before");
    assert_eq!(found(&layer.clone().strict(), from_unix(&[])).await.unwrap_err().status(), 400);

    let headers = [("x-forwarded-for", "6.6.6.6, 203.0.113.9, 10.0.0.2")];
    for layer in [layer.clone().trusted_proxies("10.0.0.0/8".parse().unwrap()), layer.trusted_hops(2)] {
        assert_eq!(found(&layer, from_unix(&headers)).await.unwrap().0, "203.0.113.9");
    }
}

#[tokio::test]
async fn x_forwarded_proto_and_host_count_as_the_nearest_proxy_states_them() {
    for (headers, origin) in [
        (&[("x-forwarded-proto", "https"), ("x-forwarded-host", "Shop.Example:443")][..], "https://shop.example"),
        (
            &[("x-forwarded-proto", "http, https"), ("x-forwarded-host", "evil.example,shop.example")],
            "https://shop.example",
        ),
        (&[("x-forwarded-host", "evil.example"), ("x-forwarded-host", "shop.example")], "http://shop.example"),
        (
            &[("x-forwarded-proto", "\u{fc}, https"), ("x-forwarded-host", "\u{fc}, shop.example")],
            "https://shop.example",
        ),
        (&[("x-forwarded-proto", "https,nonsense"), ("x-forwarded-host", "a/b")], "http://internal"),
        (&[("forwarded", "for=6.6.6.6;host=evil.example")], "http://internal"),
    ] {
        let mut headers = headers.to_vec();
        headers.push(("host", "internal"));
        assert_eq!(found(&behind_proxies(), request("10.0.0.1", &headers)).await.unwrap().1, origin, "{headers:?}");
    }
}

#[tokio::test]
async fn a_pinned_origin_is_every_request_s_origin() {
    let layer = behind_proxies().origin("http://quickstart".parse().unwrap());
    for headers in [&[("host", "evil.example")][..], &[("x-forwarded-host", "evil.example")], &[("host", "a b")], &[]] {
        assert_eq!(found(&layer, request("10.0.0.1", headers)).await.unwrap().1, "http://quickstart");
    }
}

#[tokio::test]
async fn a_bad_host_leaves_no_origin_not_even_an_outer_layer_s() {
    for headers in [&[("host", "a b")][..], &[("host", "a"), ("host", "b")], &[]] {
        let mut request = request("203.0.113.9", headers);
        request.extensions_mut().insert("http://outer".parse::<Origin>().unwrap());
        assert_eq!(found(&ClientIpLayer::new(), request).await.unwrap().1, "");
    }
}

fn found_now(layer: &ClientIpLayer, name: &str, lines: &[&str]) -> (String, String) {
    let headers: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(found(layer, request("10.0.0.1", &headers))).unwrap()
}

/// So many more hops than one.
fn numbered(more: usize) -> ClientIpLayer {
    ClientIpLayer::new().trusted_hops(u8::try_from(more).unwrap() + 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a client writes in front of what the proxies append, on the same line or on lines of its own, the
    /// finding is the same.
    #[test]
    fn a_forged_chain_changes_nothing(
        forged_lines in prop::collection::vec("[ -~]{0,40}", 0..4),
        forged_start in "([ -~]{0,30}|for=\"[a-z0-9.\\\\\", ]{0,20}|10\\.0\\.0\\.1)",
        hops in 0_usize..4,
    ) {
        for (layer, name, client, hop) in [
            (behind_proxies(), "x-forwarded-for", "203.0.113.9", ", 10.0.0.2"),
            (
                behind_proxies().header(Header::Forwarded),
                "forwarded",
                "for=\"203.0.113.9:80\";host=shop.example;proto=https",
                ", for=10.0.0.2;host=internal",
            ),
            (numbered(hops), "x-forwarded-for", "203.0.113.9", ", unknown"),
            (
                numbered(hops).header(Header::Forwarded).strict(),
                "forwarded",
                "for=\"[2001:db8::1]:80\";host=\"shop.example\"",
                ", for=_lb;host=\"a\\\"b,\"",
            ),
        ] {
            let honest = format!("{client}{}", hop.repeat(hops));
            let forged = format!("{forged_start},{honest}");
            let lines: Vec<&str> = forged_lines.iter().map(String::as_str).chain([forged.as_str()]).collect();
            prop_assert_eq!(found_now(&layer, name, &lines), found_now(&layer, name, &[&honest]));
        }
    }

    #[test]
    fn garbage_is_the_peer_s_or_an_address_but_never_an_error(lines in prop::collection::vec("[ -~]{0,60}", 0..4)) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        for layer in [behind_proxies(), behind_proxies().header(Header::Forwarded), numbered(1)] {
            for name in ["x-forwarded-for", "forwarded", "x-forwarded-host", "x-forwarded-proto", "host"] {
                found_now(&layer, name, &lines);
            }
        }
    }
}
