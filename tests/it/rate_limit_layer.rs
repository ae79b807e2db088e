//! The limiter around services, as users see it, all in this process and by a clock that the tests turn.

mod answers;
mod keys;
mod onion;
mod outcomes;
mod policies;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_scale::client_ip::PeerAddr;
use tower_scale::rate_limit::RateLimitLayer;
use tower_scale::refusal::Reason;

type Limited = BoxCloneService<Request<Body>, Response<Body>, Infallible>;

const HOME: &str = "203.0.113.9";
const AWAY: &str = "203.0.113.10";

/// Stands still until it is told to go on.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn advance(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap(), Ordering::SeqCst);
    }

    fn times(&self, layer: RateLimitLayer) -> RateLimitLayer {
        let clock = self.0.clone();
        layer.clock(move || Duration::from_nanos(clock.load(Ordering::SeqCst)))
    }
}

fn request(ip: &str) -> Request<Body> {
    let peer = PeerAddr(SocketAddr::new(ip.parse().expect("an address"), 4711));
    Request::builder().extension(peer).body(Body::empty()).unwrap()
}

fn with_field(ip: &str, name: &str, values: &[&str]) -> Request<Body> {
    let mut request = request(ip);
    for value in values {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

fn without_peer() -> Request<Body> {
    Request::new(Body::empty())
}

fn boxed<S, B>(layer: &RateLimitLayer, inner: S) -> Limited
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    layer.layer(inner).map_response(|response| response.map(Body::new)).boxed_clone()
}

/// Answers with the status that the field `x-status` asks for.
fn limited(layer: &RateLimitLayer) -> Limited {
    boxed(
        layer,
        service_fn(|request: Request<Body>| async move {
            let status = request.headers().get("x-status").map_or("200", |status| status.to_str().unwrap());
            Ok(Response::builder().status(status).body(Body::from("hello")).unwrap())
        }),
    )
}

/// In this process nothing waits, neither the limiter nor this handler.
fn send(service: &Limited, request: Request<Body>) -> Response<Body> {
    service.clone().oneshot(request).now_or_never().expect("an answer at once").unwrap()
}

fn status(service: &Limited, ip: &str) -> StatusCode {
    send(service, request(ip)).status()
}

fn admitted(service: &Limited, ip: &str, requests: usize) -> usize {
    (0..requests).filter(|_| status(service, ip) == 200).count()
}

fn reason(response: &Response<Body>) -> Option<Reason> {
    response.extensions().get().copied()
}

fn seconds(response: &Response<Body>) -> u64 {
    response.headers()["retry-after"].to_str().unwrap().parse().unwrap()
}

/// The decisions that `body` led to.
fn decisions(body: impl FnOnce()) -> BTreeMap<String, u64> {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, body);
    let counted = snapshotter.snapshot().into_vec().into_iter().filter_map(|(key, .., value)| {
        let word = key.key().labels().find(|label| label.key() == "decision")?.value().to_owned();
        match value {
            metrics_util::debugging::DebugValue::Counter(count) if count > 0 => Some((word, count)),
            _ => None,
        }
    });
    counted.collect()
}
