//! Under servers and in front of services.

use axum::extract::ConnectInfo;
use axum::extract::connect_info::MockConnectInfo;
use axum::routing::get;
use axum::{Extension, Router};
use tonic::transport::server::TcpConnectInfo;
use tower::Service;

use super::*;

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

#[cfg(unix)]
#[tokio::test]
async fn a_real_axum_server_behind_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("tower-scale-client-ip-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let layer = ClientIpLayer::new().trusted_unix_peers();
    let app = Router::new().route("/", get(|ClientIp(ip): ClientIp| async move { ip.to_string() })).layer(layer);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());

    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().header("host", "a.example").header("x-forwarded-for", "6.6.6.6, 203.0.113.9");
    let response = client.send_request(request.body(Body::default()).unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "203.0.113.9");
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
