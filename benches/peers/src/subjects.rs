//! What is measured: a bare service, ours, and the peers', each as its own documentation says.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_scale::cache::{CacheLayer, MemoryStore};

use crate::measure::Subject;

type Plain = Full<Bytes>;

pub static BODY: [u8; 1024] = [b'x'; 1024];

/// The answer that every subject serves, in whatever body type it wants.
pub async fn handler<R, B: From<Bytes>>(_: Request<R>) -> Result<Response<B>, Infallible> {
    let mut response = Response::new(B::from(Bytes::from_static(&BODY)));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    Ok(response)
}

fn request<R: Default>() -> Request<R> {
    Request::get("/products/1").header(header::HOST, "example.com").body(R::default()).expect("valid")
}

fn subject<S, R, B>(name: &'static str, service: S) -> Subject
where
    S: Service<Request<R>, Response = Response<B>> + 'static,
    S::Error: std::fmt::Debug,
    R: Default + 'static,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut service = service;
    let serve = move |requests: u32| {
        runtime.block_on(async {
            let started = Instant::now();
            for _ in 0..requests {
                let response = service.ready().await.expect("ready").call(request()).await.expect("an answer");
                assert_eq!(response.status(), 200);
                let body = response.into_body().collect().await.expect("a whole body").to_bytes();
                assert_eq!(body.len(), BODY.len());
            }
            started.elapsed()
        })
    };
    Subject { name, serve: Box::new(serve) }
}

fn bare<T>() -> Subject
where
    T: http_body::Body<Data = Bytes> + Default + From<Bytes> + 'static,
    T::Error: std::fmt::Debug,
{
    subject("bare service", service_fn(handler::<T, T>))
}

pub fn cache_hits() -> Vec<Subject> {
    let ours = CacheLayer::new(MemoryStore::new(64 << 20));
    let backend = tower_http_cache::backend::memory::InMemoryBackend::new(10_000);
    let tower_http_cache = tower_http_cache::layer::CacheLayer::builder(backend).ttl(Duration::from_secs(3600)).build();
    let axum_response_cache = axum_response_cache::CacheLayer::with_lifespan(Duration::from_secs(3600));
    vec![
        bare::<Plain>(),
        subject("tower-scale", ServiceBuilder::new().layer(ours.clone()).service(service_fn(handler::<Plain, Plain>))),
        subject(
            "tower-http-cache 0.6.1",
            ServiceBuilder::new().layer(tower_http_cache).service(service_fn(handler::<Plain, Plain>)),
        ),
        // Made for axum's body types only.
        subject(
            "axum-response-cache 0.5.0, axum body",
            ServiceBuilder::new().layer(axum_response_cache).service(service_fn(handler::<Body, Body>)),
        ),
        subject("tower-scale, axum body", ServiceBuilder::new().layer(ours).service(service_fn(handler::<Body, Body>))),
    ]
}
