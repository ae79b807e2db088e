//! What the layer adds to a request.
//!
//! `cargo bench --features full --bench telemetry`

use std::convert::Infallible;
use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, service_fn};
use tower_scale::telemetry::TelemetryLayer;

async fn inner(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"ok"))))
}

/// One request: `call`, one poll of the future, one of the body.
fn request<S, B>(service: &mut S)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error = Infallible>,
{
    let response = service.call(Request::new(())).now_or_never();
    let body = response.and_then(Result::ok).map(Response::into_body);
    black_box(body.and_then(|body| body.collect().now_or_never()).is_some());
}

fn bench(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
    let _entered = runtime.as_ref().ok().map(tokio::runtime::Runtime::enter);
    let mut group = c.benchmark_group("request");
    let mut bare = service_fn(inner);
    group.bench_function("bare", |b| b.iter(|| request(&mut bare)));
    let mut timed = TelemetryLayer::new().layer(service_fn(inner));
    group.bench_function("telemetry", |b| b.iter(|| request(&mut timed)));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
