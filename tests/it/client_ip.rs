//! Who the layer says is calling, for every kind of server and every kind of header.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::ConnectInfo;
use axum::extract::connect_info::MockConnectInfo;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tonic::transport::server::TcpConnectInfo;
use tower::{Layer, Service, ServiceExt, service_fn};
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

fn with<T: Clone + Send + Sync + 'static>(peer: T) -> Request<Body> {
    Request::builder().extension(peer).body(Body::default()).unwrap()
}

#[tokio::test]
async fn every_server_s_peer_is_found() {
    let tcp = |remote_addr| TcpConnectInfo { local_addr: None, remote_addr };
    let mut served = with(ConnectInfo(address("203.0.113.5")));
    served.extensions_mut().insert(MockConnectInfo(address("203.0.113.3")));
    for (request, expected) in [
        (with(PeerAddr(address("203.0.113.1"))), "203.0.113.1"),
        (with(ConnectInfo(address("::ffff:203.0.113.2"))), "203.0.113.2"),
        (with(MockConnectInfo(address("203.0.113.3"))), "203.0.113.3"),
        (with(tcp(Some(address("203.0.113.4")))), "203.0.113.4"),
        (served, "203.0.113.5"),
    ] {
        assert_eq!(found(&ClientIpLayer::new(), request).await.unwrap().0, expected);
    }
    assert_eq!(found(&ClientIpLayer::new(), with(tcp(None))).await.unwrap_err().status(), 500);
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn without_a_peer_every_answer_is_500_and_one_line_says_what_to_add() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let layer = ClientIpLayer::new();
    for _ in 0..3 {
        let refused = found(&layer, Request::new(Body::default())).await.unwrap_err();
        assert_eq!(refused.status(), 500);
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
        assert_eq!(refused.extensions().get(), Some(&Reason::PeerUnknown));
    }
    let lines = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    for remedy in ["into_make_service_with_connect_info::<SocketAddr>()", "feature `axum`", "`PeerAddr`"] {
        assert!(lines.contains(remedy), "{lines}");
    }

    let layer = ClientIpLayer::new().refusal(|refusal| {
        let mut response = Response::new(Bytes::from_static(refusal.reason().as_str().as_bytes()));
        *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
        response
    });
    let refused = found(&layer, Request::new(Body::default())).await.unwrap_err();
    assert_eq!((refused.status().as_u16(), refused.body().as_ref()), (418, b"peer_unknown".as_slice()));
}

#[tokio::test]
async fn a_real_axum_server_behind_a_proxy() {
    async fn who(ClientIp(ip): ClientIp, Extension(origin): Extension<Origin>) -> String {
        format!("{ip} {origin}")
    }
    let layer = ClientIpLayer::new().trusted_proxies("127.0.0.0/8".parse().unwrap());
    let app = Router::new().route("/", get(who)).layer(layer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).into_future());

    let stream = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(address).await.unwrap());
    let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for (headers, expected) in [
        (&[][..], "127.0.0.1 http://shop.example"),
        (
            &[("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-forwarded-proto", "https")],
            "203.0.113.9 https://shop.example",
        ),
    ] {
        let mut request = Request::builder().header("host", "shop.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        client.ready().await.unwrap();
        let response = client.send_request(request.body(Body::default()).unwrap()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), expected);
    }
}

#[tokio::test]
async fn the_extractor_works_alone_and_says_what_is_missing() {
    let app = Router::new().route("/", get(|ClientIp(ip): ClientIp| async move { ip.to_string() }));
    let ask = || Request::builder().header("x-forwarded-for", "6.6.6.6").body(axum::body::Body::empty()).unwrap();
    let response = app.clone().layer(MockConnectInfo(address("::ffff:203.0.113.9"))).oneshot(ask()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "203.0.113.9");
    let response = app.oneshot(ask()).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.extensions().get(), Some(&Reason::PeerUnknown));
}

#[tokio::test]
async fn the_layer_is_ready_before_its_inner_service_is_and_passes_errors_on() {
    let (inner, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    handle.allow(0);
    let mut service = ClientIpLayer::new().layer(inner);
    let refused = service.ready().await.unwrap().call(Request::new(Body::default())).await.unwrap();
    assert_eq!(refused.status(), 500);

    let waiting = tokio::spawn(service.ready().await.unwrap().call(request("203.0.113.9", &[])));
    handle.allow(1);
    handle.next_request().await.unwrap().1.send_error("broken");
    assert_eq!(waiting.await.unwrap().unwrap_err().to_string(), "broken");
}

fn found_now(layer: &ClientIpLayer, name: &str, lines: &[&str]) -> (String, String) {
    let headers: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(found(layer, request("10.0.0.1", &headers))).unwrap()
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
        for layer in [behind_proxies(), behind_proxies().header(Header::Forwarded)] {
            for name in ["x-forwarded-for", "forwarded", "x-forwarded-host", "x-forwarded-proto", "host"] {
                found_now(&layer, name, &lines);
            }
        }
    }
}
