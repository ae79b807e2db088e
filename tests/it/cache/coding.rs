//! tower-http's compression and CORS, outside and inside of the cache: `docs/ordering.md` says what each order does.

use tower::util::{BoxCloneService, MapResponse};
use tower_http::compression::Compression;
use tower_http::cors::{AllowOrigin, Cors, CorsLayer};
use tower_http::decompression::Decompression;

use super::time::{moving, pass, seconds};
use super::*;

type Stack = BoxCloneService<Request<ReqBody>, Response<Body>, Broken>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    Inside,
    Outside,
}

use Order::{Inside, Outside};

fn plain() -> String {
    "so compressible ".repeat(100)
}

fn compressed(order: Order, layer: &CacheLayer, origin: Origin) -> Stack {
    match order {
        Outside => {
            let cache = MapResponse::new(layer.layer(origin), |response: Response<_>| response.map(Body::new));
            BoxCloneService::new(MapResponse::new(Compression::new(cache), |response: Response<_>| {
                response.map(Body::new)
            }))
        }
        Inside => {
            BoxCloneService::new(MapResponse::new(layer.layer(Compression::new(origin)), |response: Response<_>| {
                response.map(Body::new)
            }))
        }
    }
}

async fn ask(stack: &Stack, fields: &[(&str, &str)]) -> (http::response::Parts, Bytes) {
    let (parts, body) = stack.clone().oneshot(request(Method::GET, "/", fields)).await.unwrap().into_parts();
    (parts, body.collect().await.unwrap().to_bytes())
}

async fn gunzip(bytes: Bytes) -> String {
    let response = Response::builder().header("content-encoding", "gzip").body(Full::new(bytes)).unwrap();
    let service = tower::service_fn(move |_: Request<Empty<Bytes>>| {
        let response = response.clone();
        async move { Ok::<_, Infallible>(response) }
    });
    let body = Decompression::new(service).oneshot(Request::new(Empty::new())).await.unwrap().into_body();
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// The right bytes, under the name of their coding, for whoever asks first.
async fn check(stack: &Stack, accept: &str) {
    let (parts, body) = ask(stack, &[("accept-encoding", accept)]).await;
    assert_eq!(parts.status, 200);
    assert!(parts.headers["vary"].to_str().unwrap().eq_ignore_ascii_case("accept-encoding"));
    let wants = accept.to_ascii_lowercase();
    if wants.contains("gzip") && wants != "gzip;q=0" {
        assert_eq!(parts.headers["content-encoding"], "gzip", "{accept}");
        assert_eq!(gunzip(body).await, plain(), "{accept}");
    } else {
        assert!(!parts.headers.contains_key("content-encoding"), "{accept}");
        assert_eq!(body, plain(), "{accept}");
    }
}

/// tower-http-cache 0.6.1 stores gzip, and hands it to all without `Content-Encoding`.
#[tokio::test]
async fn compressed_bytes_say_so_in_both_orders() {
    let spellings = ["gzip", "identity", "", "gzip, br", "GZIP;q=0.5", "gzip;q=0", "br", "deflate, gzip;q=1.0"];
    for (order, calls) in [(Outside, 1), (Inside, 5)] {
        for turn in 0..spellings.len() {
            let origin = Origin::new(|_, _| async { Ok(fresh().body(text(&plain())).unwrap()) });
            let stack = compressed(order, &layer(), origin.clone());
            for round in 0..2 {
                for accept in spellings.iter().cycle().skip(turn).take(spellings.len()) {
                    check(&stack, accept).await;
                    settle().await;
                }
                // Inside: one per set of codings that a client accepts, not one per spelling.
                assert_eq!(origin.calls(), calls, "{order:?} round {round}");
            }
        }
    }
}

/// tower-http leaves the entity tag as it is: both codings have the same one. No validation takes one for the other.
#[tokio::test(start_paused = true)]
async fn an_entity_tag_of_two_codings_confuses_nobody() {
    for tag in ["\"1\"", "W/\"1\""] {
        for order in [Outside, Inside] {
            for turn in 0..2 {
                let origin = Origin::new(move |_, request| async move {
                    let holds = request
                        .headers()
                        .get("if-none-match")
                        .is_some_and(|tags| tags.to_str().unwrap().split(", ").any(|held| held == tag));
                    let response = Response::builder().header("cache-control", "max-age=10").header("etag", tag);
                    let (status, body) = if holds { (304, String::new()) } else { (200, plain()) };
                    Ok(response.status(status).header("vary", "accept-encoding").body(text(&body)).unwrap())
                });
                let stack = compressed(order, &moving(layer()), origin);
                let accepts = ["gzip", "identity"];
                for accept in [accepts[turn], accepts[1 - turn], accepts[turn], accepts[1 - turn]] {
                    check(&stack, accept).await;
                    pass(seconds(4)).await;
                }
                for accept in accepts {
                    let (parts, body) = ask(&stack, &[("accept-encoding", accept), ("if-none-match", tag)]).await;
                    assert_eq!((parts.status.as_u16(), body.len()), (304, 0), "{order:?} {accept}");
                    assert_eq!(parts.headers["etag"], tag);
                }
            }
        }
    }
}

#[tokio::test]
async fn ranges_are_of_the_bytes_that_were_sent() {
    for (order, coded) in [(Outside, false), (Inside, true)] {
        let origin = Origin::new(|_, _| async { Ok(fresh().header("etag", "\"1\"").body(text(&plain())).unwrap()) });
        let stack = compressed(order, &layer(), origin.clone());
        for _ in 0..2 {
            check(&stack, "gzip").await;
        }
        let (whole, full) = ask(&stack, &[("accept-encoding", if coded { "gzip" } else { "identity" })]).await;
        assert_eq!(whole.headers.contains_key("content-encoding"), coded);
        let mut joined = Vec::new();
        for range in ["bytes=0-9", "bytes=10-"] {
            let (parts, part) = ask(&stack, &[("accept-encoding", "gzip"), ("range", range)]).await;
            assert_eq!(
                (parts.status.as_u16(), parts.headers.contains_key("content-encoding")),
                (206, coded),
                "{order:?}"
            );
            assert!(parts.headers["content-range"].to_str().unwrap().ends_with(&format!("/{}", full.len())));
            joined.extend_from_slice(&part);
        }
        assert_eq!(joined, full, "{order:?}");
        assert_eq!(origin.calls(), 1, "{order:?}");
    }
}

/// A part is never joined to what a weak tag stands for.
#[tokio::test]
async fn no_part_for_a_weak_tag() {
    for order in [Outside, Inside] {
        let origin = Origin::new(|_, _| async { Ok(fresh().header("etag", "W/\"1\"").body(text(&plain())).unwrap()) });
        let stack = compressed(order, &layer(), origin);
        check(&stack, "gzip").await;
        let resumed = [("accept-encoding", "gzip"), ("range", "bytes=10-"), ("if-range", "W/\"1\"")];
        assert_eq!(ask(&stack, &resumed).await.0.status, 200, "{order:?}");
    }
}

fn with_cors(order: Order, layer: &CacheLayer, origin: Origin) -> Stack {
    let cors = CorsLayer::new()
        .allow_credentials(true)
        .allow_origin(AllowOrigin::predicate(|origin, _| origin.as_bytes().ends_with(b".friend")));
    match order {
        Outside => {
            let cache = MapResponse::new(layer.layer(origin), |response: Response<_>| response.map(Body::new));
            BoxCloneService::new(cors.layer(cache))
        }
        Inside => {
            let inner: Cors<Origin> = cors.layer(origin);
            BoxCloneService::new(MapResponse::new(layer.layer(inner), |response: Response<_>| response.map(Body::new)))
        }
    }
}

/// One origin's permission is never another's, whoever asks first.
#[tokio::test]
async fn cors_permissions_stay_with_their_origin_in_both_orders() {
    for (order, calls) in [(Outside, 1), (Inside, 4)] {
        let origin = Origin::with(&[("cache-control", "max-age=60")]);
        let stack = with_cors(order, &layer(), origin.clone());
        for _ in 0..2 {
            for site in [Some("https://a.friend"), Some("https://evil.example"), Some("https://b.friend"), None] {
                let fields: Vec<_> = site.map(|site| ("origin", site)).into_iter().collect();
                let (parts, _) = ask(&stack, &fields).await;
                let allowed = parts.headers.get("access-control-allow-origin").map(|site| site.to_str().unwrap());
                assert_eq!(allowed, site.filter(|site| site.ends_with(".friend")), "{order:?}");
                let vary: Vec<_> = parts.headers.get_all("vary").iter().map(|line| line.to_str().unwrap()).collect();
                assert!(vary.iter().any(|line| line.contains("origin")), "{order:?}: {vary:?}");
            }
        }
        assert_eq!(origin.calls(), calls, "{order:?}");
        // A preflight is answered by the layer, or passes; it changes nothing.
        let preflight =
            request(Method::OPTIONS, "/", &[("origin", "https://a.friend"), ("access-control-request-method", "PUT")]);
        stack.clone().oneshot(preflight).await.unwrap();
        ask(&stack, &[]).await;
        assert_eq!(origin.calls(), calls, "{order:?}");
    }
}
