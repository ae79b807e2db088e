//! Forwarding fields: no panic, and whatever a client prepends to a proxied chain, its address stays the same.
#![no_main]

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use libfuzzer_sys::fuzz_target;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::client_ip::{ClientIp, ClientIpLayer, PeerAddr};

fn client(layer: &ClientIpLayer, lines: &[&[u8]]) -> Option<IpAddr> {
    let mut request = Request::new(());
    for line in lines {
        request.headers_mut().append("x-forwarded-for", HeaderValue::from_bytes(line).ok()?);
    }
    for (name, line) in ["x-forwarded-host", "x-forwarded-proto", "forwarded", "host"].iter().zip(lines) {
        request.headers_mut().append(*name, HeaderValue::from_bytes(line).ok()?);
    }
    request.extensions_mut().insert(PeerAddr(SocketAddr::from(([10, 0, 0, 1], 80))));
    let handler = service_fn(async |request: Request<()>| {
        let client = request.extensions().get::<ClientIp>().expect("the layer found one").0;
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(client.to_string()))))
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let response = layer.layer(handler).oneshot(request).await.expect("infallible");
        let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("infallible").to_bytes();
        std::str::from_utf8(&body).ok()?.parse().ok()
    })
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let layer = ClientIpLayer::new().trusted_proxies("10.0.0.0/8".parse().expect("a network"));
    client(&layer, &[&input.0, &input.1]);
    let honest: &[u8] = b"203.0.113.7, 10.0.0.2";
    if HeaderValue::from_bytes(&input.0).is_ok() {
        let expected = Some(IpAddr::from([203, 0, 113, 7]));
        assert_eq!(client(&layer, &[&input.0, honest]), expected, "on a line of its own");
        assert_eq!(client(&layer, &[&[&input.0, b", ".as_slice(), honest].concat()]), expected, "on the proxy's line");
    }
});
