//! The same layers around a plain hyper service: no axum, no router.
//!
//! ```text
//! cargo run --release --example hyper_service --features full
//! curl -i http://127.0.0.1:3001/products/1
//! curl -i http://127.0.0.1:3001/fibonacci/40
//! ```
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program may print")]

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};
use tower_scale::cache::{CacheLayer, MemoryStore};
use tower_scale::client_ip::{ClientIpLayer, PeerAddr};
use tower_scale::offload::{OffloadLayer, OffloadPool};
use tower_scale::rate_limit::{Quota, RateLimitLayer};
use tower_scale::telemetry::TelemetryLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3001".to_owned());
    let address: SocketAddr = address.parse().map_err(|error| format!("ADDR={address}: {error}"))?;
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);

    // Built once: the layers hold the state that all connections share.
    let layers = ServiceBuilder::new()
        .layer(TelemetryLayer::new().route(route))
        .layer(ClientIpLayer::new())
        .layer(RateLimitLayer::new(Quota::per_minute(100)))
        .layer(CacheLayer::new(MemoryStore::new(64 << 20)))
        .layer(OffloadLayer::new(OffloadPool::new()?));
    let service = layers.service(service_fn(handle));

    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that ended in the queue: neither ends the server.
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            // hyper knows no peer: the connection tells its requests.
            let service = ServiceBuilder::new()
                .map_request(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(PeerAddr(peer));
                    request
                })
                .service(service);
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
            let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            // A broken connection is its client's affair.
            let _ = connection.await;
        });
    }
}

/// Names a request's route for metrics and logs; there is no router that would.
fn route(_: &Method, uri: &Uri) -> &'static str {
    let path = uri.path();
    if path.starts_with("/products/") {
        "/products/{id}"
    } else if path.starts_with("/fibonacci/") {
        "/fibonacci/{n}"
    } else {
        "other"
    }
}

async fn handle(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    if let Some(id) = path.strip_prefix("/products/") {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut response = text(StatusCode::OK, format!("product {id}\n"));
        response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("max-age=60"));
        return Ok(response);
    }
    if let Some(n) = path.strip_prefix("/fibonacci/").and_then(|n| n.parse().ok()).filter(|n| *n <= 42) {
        return Ok(text(StatusCode::OK, format!("{}\n", fibonacci(n))));
    }
    Ok(text(StatusCode::NOT_FOUND, "try /products/1 or /fibonacci/40 (42 at most)\n".to_owned()))
}

/// Slow on purpose: CPU-bound work that would stall an event loop.
fn fibonacci(n: u32) -> u64 {
    if n < 2 { u64::from(n) } else { fibonacci(n - 1) + fibonacci(n - 2) }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
