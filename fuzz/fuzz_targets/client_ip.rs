//! Forwarding fields: no panic, and whatever a client prepends to a proxied chain, its address stays the same.
#![no_main]

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use libfuzzer_sys::fuzz_target;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::client_ip::{ClientIp, ClientIpLayer, Header, PeerAddr};

/// Client and status. `None`: these are no field lines.
fn ask(layer: &ClientIpLayer, name: &'static str, lines: &[&[u8]]) -> Option<(Option<IpAddr>, u16)> {
    let mut request = Request::new(());
    for line in lines {
        request.headers_mut().append(name, HeaderValue::from_bytes(line).ok()?);
    }
    for (name, line) in ["x-forwarded-host", "x-forwarded-proto", "host"].iter().zip(lines) {
        request.headers_mut().append(*name, HeaderValue::from_bytes(line).ok()?);
    }
    request.extensions_mut().insert(PeerAddr(SocketAddr::from(([10, 0, 0, 1], 80))));
    let handler = service_fn(async |request: Request<()>| {
        let client = request.extensions().get::<ClientIp>().expect("the layer found one").0;
        let mut response = Response::new(Full::new(Bytes::new()));
        response.extensions_mut().insert(client);
        Ok::<_, Infallible>(response)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let response = runtime.block_on(layer.layer(handler).oneshot(request)).expect("infallible");
    Some((response.extensions().get().copied(), response.status().as_u16()))
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let proxies = ClientIpLayer::new().trusted_proxies("10.0.0.0/8".parse().expect("a network"));
    let hops = ClientIpLayer::new().trusted_hops(2);
    let single = Header::Single(http::HeaderName::from_static("x-real-ip"));
    let (list, element): (&[u8], &[u8]) =
        (b"203.0.113.7, 10.0.0.2", b"for=\"203.0.113.7:80\";host=\"a\\\"b,\", for=10.0.0.2;proto=https");
    for layer in [proxies, hops] {
        for strict in [layer.clone(), layer.strict()] {
            ask(&strict.clone().header(single.clone()), "x-real-ip", &[&input.0, &input.1]);
            let element_layer = strict.clone().header(Header::Forwarded);
            for (layer, name, honest) in [(strict, "x-forwarded-for", list), (element_layer, "forwarded", element)] {
                ask(&layer, name, &[&input.0, &input.1]);
                let expected = Some((Some(IpAddr::from([203, 0, 113, 7])), 200));
                if HeaderValue::from_bytes(&input.0).is_ok() {
                    assert_eq!(ask(&layer, name, &[&input.0, honest]), expected, "on a line of its own");
                    let line = [&input.0, b", ".as_slice(), honest].concat();
                    assert_eq!(ask(&layer, name, &[&line]), expected, "on the proxy's line");
                }
            }
        }
    }
});
