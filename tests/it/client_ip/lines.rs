//! What the operator reads, once.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tower::ServiceBuilder;
use tower_scale::rate_limit::{Key, Policy, Quota, RateLimitLayer};

use super::*;

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

/// What `subscriber` writes while `requests` run.
async fn lines_of(requests: impl Future<Output = ()>) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    requests.await;
    let lines = lines.0.lock().unwrap().clone();
    String::from_utf8(lines).unwrap()
}

#[tokio::test]
async fn one_line_says_that_nobody_is_trusted() {
    for name in ["x-forwarded-for", "forwarded", "x-real-ip", "cf-connecting-ip", "true-client-ip"] {
        let layer = ClientIpLayer::new();
        let lines = lines_of(async {
            for _ in 0..3 {
                found(&layer.clone(), request("192.0.2.1", &[(name, "6.6.6.6")])).await.unwrap();
            }
        });
        let lines = lines.await;
        assert_eq!(lines.lines().count(), 1, "{name}: {lines}");
        assert!(lines.contains("trusted_proxies(") && !lines.contains("6.6.6.6") && !lines.contains("192.0.2.1"));
    }

    let late = ClientIpLayer::new();
    let lines = lines_of(async {
        found(&late, request("192.0.2.1", &[])).await.unwrap();
        for _ in 0..300 {
            found(&late, request("192.0.2.1", &[("x-forwarded-for", "6.6.6.6")])).await.unwrap();
        }
    });
    assert_eq!(lines.await.lines().count(), 1, "within 256 requests");

    let lines = lines_of(async {
        let headers = [("x-forwarded-for", "6.6.6.6")];
        for layer in [behind_proxies(), ClientIpLayer::new().trusted_hops(1), ClientIpLayer::new().trusted_unix_peers()]
        {
            found(&layer, request("192.0.2.1", &headers)).await.unwrap();
        }
        found(&ClientIpLayer::new(), request("192.0.2.1", &[("accept", "*/*")])).await.unwrap();
    });
    assert_eq!(lines.await, "", "somebody is trusted, or nothing is forwarded");
}

#[tokio::test]
async fn a_limiter_alone_says_it_too_when_it_refuses() {
    let ask = |layer: &RateLimitLayer, headers: &[(&str, &str)]| {
        let inner = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::default())) });
        let answer = layer.layer(inner).oneshot(request("192.0.2.1", headers));
        async move { answer.await.unwrap().status().as_u16() }
    };
    let forwarded = [("x-forwarded-for", "6.6.6.6")];
    let layer = RateLimitLayer::new(Quota::per_hour(1));
    let lines = lines_of(async {
        assert_eq!(ask(&layer, &forwarded).await, 200);
    });
    assert_eq!(lines.await, "", "a look at every request would cost too much");
    let lines = lines_of(async {
        for _ in 0..3 {
            assert_eq!(ask(&layer, &forwarded).await, 429);
        }
    });
    let lines = lines.await;
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains("trusted_proxies("), "{lines}");

    let inner = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::default())) });
    let known =
        ServiceBuilder::new().layer(behind_proxies()).layer(RateLimitLayer::new(Quota::per_hour(1))).service(inner);
    let lines = lines_of(async {
        for status in [200, 429] {
            assert_eq!(known.clone().oneshot(request("192.0.2.1", &forwarded)).await.unwrap().status(), status);
        }
    });
    assert_eq!(lines.await, "", "a layer outside of it knows");

    let layer = RateLimitLayer::new(Policy::new(Quota::per_hour(1)).key(Key::global()));
    let lines = lines_of(async {
        assert_eq!((ask(&layer, &forwarded).await, ask(&layer, &forwarded).await), (200, 429));
    });
    assert_eq!(lines.await, "", "addresses do not matter to it");
}

#[tokio::test]
async fn without_a_peer_every_answer_is_500_and_one_line_says_what_to_add() {
    let layer = ClientIpLayer::new();
    let lines = lines_of(async {
        for _ in 0..3 {
            let refused = found(&layer, Request::new(Body::default())).await.unwrap_err();
            assert_eq!(refused.status(), 500);
            assert_eq!(refused.headers()["content-type"], "application/problem+json");
            assert_eq!(refused.extensions().get(), Some(&Reason::PeerUnknown));
        }
    });
    let lines = lines.await;
    assert_eq!(lines.lines().count(), 1, "{lines}");
    for remedy in
        ["into_make_service_with_connect_info::<SocketAddr>()", "feature `axum`", "`PeerAddr`", "trusted_unix_peers"]
    {
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
