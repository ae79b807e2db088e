//! A response store of your own: the cache over memcached.
//!
//! ```text
//! memcached -l 127.0.0.1 &
//! cargo run --release --example memcached_store --features full
//! ```
//!
//! Environment: `ADDR` (127.0.0.1:3000), `MEMCACHED` (127.0.0.1:11211; an IPv4 address or a name, with a port, or
//! `unix:///path`), `RUST_LOG`. Start several, with one `MEMCACHED` and an `ADDR` each: what one has made, all have.
//!
//! ```text
//! # 100 ms, then under one: Cache-Status says where it came from. The name, since by their addresses two are two sites.
//! curl -i http://127.0.0.1:3000/products/1 -H 'Host: shop.example'
//! # Success of an unsafe method on a URL forgets its response.
//! curl -i -X DELETE http://127.0.0.1:3000/products/1 -H 'Host: shop.example'
//! # Stop memcached: every response is made anew, and none fails. Start it: within a second they are kept again.
//! ```
//!
//! `store.rs` is the store, about 200 lines to take along. `tests/it/memcached.rs` runs `cache::store_tests` over it, and
//! stops, freezes and restarts the server meanwhile.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program may print")]

mod store;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tower_scale::cache::CacheLayer;
use tracing_subscriber::EnvFilter;

use store::MemcachedStore;

/// At most; one is enough for some thousand requests a second.
const CONNECTIONS: usize = 16;
/// What a lookup may cost a request when memcached is slow.
const DEADLINE: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memcached_store: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let log = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(log).with_writer(std::io::stderr).init();
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let address: SocketAddr = address.parse().map_err(|error| format!("ADDR={address}: {error}"))?;
    let server = std::env::var("MEMCACHED").unwrap_or_else(|_| "127.0.0.1:11211".to_owned());

    let cache = CacheLayer::new(MemcachedStore::new(server, CONNECTIONS, DEADLINE));
    let app = Router::new()
        .route("/products/{id}", get(product).delete(StatusCode::NO_CONTENT))
        .layer(cache)
        .with_state(Arc::default());

    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

async fn product(State(made): State<Arc<AtomicU64>>, Path(id): Path<u32>) -> impl IntoResponse {
    tokio::time::sleep(Duration::from_millis(100)).await;
    let made = made.fetch_add(1, Ordering::Relaxed);
    ([(header::CACHE_CONTROL, "max-age=60")], format!("product {id} ({made} made before)\n"))
}
