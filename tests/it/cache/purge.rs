//! Purges and statistics, through the layer.

use tower_scale::cache::{CacheTags, NoStore, Purge};

use super::*;

fn url(path: &str) -> Purge {
    Purge::url(&format!("http://shop.example{path}")).unwrap()
}

/// Which of the paths are answered from the store.
async fn hits<'a>(cache: &Cache<Origin>, paths: &[&'a str]) -> Vec<&'a str> {
    let mut hits = Vec::new();
    for path in paths {
        if send(cache, get(path)).await.is_hit() {
            hits.push(*path);
        }
    }
    hits
}

#[tokio::test]
async fn a_purge_takes_what_it_names_and_nothing_else() {
    const PATHS: &[&str] = &["/a", "/a?b", "/about", "/b", "/"];
    let tags = |path: &str| match path {
        "/a" | "/b" => CacheTags::new(["x", "y"]),
        "/about" => CacheTags::new(["y"]),
        _ => CacheTags::new::<&str>([]),
    };
    for (purge, kept) in [
        (url("/a"), &["/a?b", "/about", "/b", "/"] as &[_]),
        (url("/c"), PATHS),
        (Purge::url("https://shop.example/a").unwrap(), PATHS),
        (Purge::prefix("http://shop.example/a").unwrap(), &["/b", "/"]),
        (Purge::prefix("http://shop.example").unwrap(), &[]),
        (Purge::prefix("http://other.example").unwrap(), PATHS),
        (Purge::tag("x").unwrap(), &["/a?b", "/about", "/"]),
        (Purge::tag("y").unwrap(), &["/a?b", "/"]),
        (Purge::everything(), &[]),
    ] {
        for soft in [false, true] {
            let origin = Origin::answering(move |_, request| fresh().extension(tags(&request.uri().to_string())));
            let layer = layer();
            let (handle, cache) = (layer.handle(), layer.layer(origin));
            assert!(hits(&cache, PATHS).await.is_empty());
            assert_eq!(hits(&cache, PATHS).await, PATHS);
            if soft {
                handle.soft_purge(&purge);
            } else {
                handle.purge(&purge);
            }
            assert_eq!(hits(&cache, PATHS).await, kept, "{purge:?}");
            assert_eq!(hits(&cache, PATHS).await, PATHS, "what was fetched after the purge is not touched by it");
        }
    }
}

#[tokio::test]
async fn all_variants_of_a_url_go() {
    let origin = Origin::with(&[("cache-control", "max-age=60"), ("vary", "accept-language")]);
    let layer = layer();
    let cache = layer.layer(origin.clone());
    let ask = |language| request(Method::GET, "/", &[("accept-language", language)]);
    for round in 1..=2 {
        for language in ["de", "en", "fr"] {
            assert!(!send(&cache, ask(language)).await.is_hit(), "{language} {round}");
            assert!(send(&cache, ask(language)).await.is_hit(), "{language} {round}");
        }
        layer.handle().purge(&url("/"));
    }
    assert_eq!(origin.calls(), 6);
}

#[tokio::test]
async fn under_a_nested_router_the_client_s_url_is_purged() {
    use axum::routing::get as route;
    let layer = layer();
    let item = axum::Router::new().route("/item", route(|| async { [("cache-control", "max-age=60")] }));
    let app = axum::Router::new().nest("/v1", item.clone().layer(layer.clone())).nest("/v2", item.layer(layer.clone()));
    let ask = async |path: &str| {
        let request = Request::builder().uri(path).header("host", "shop.example").body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        response.headers()["cache-status"].to_str().unwrap().starts_with("tower-scale; hit")
    };
    assert!(!ask("/v1/item").await && !ask("/v2/item").await);
    layer.handle().purge(&url("/item"));
    assert!(ask("/v1/item").await && ask("/v2/item").await);
    layer.handle().purge(&url("/v1/item"));
    assert!(!ask("/v1/item").await && ask("/v2/item").await);
}

#[tokio::test]
async fn a_fetch_that_a_purge_has_overtaken_is_neither_stored_nor_joined() {
    for purge in [url("/"), Purge::prefix("http://shop.example/").unwrap(), Purge::everything()] {
        let (origin, gate) = gated(&[("cache-control", "max-age=60")]);
        let layer = layer();
        let (handle, cache) = (layer.handle(), layer.layer(origin.clone()));
        let before = spawn(&cache, get("/"));
        eventually("forwarded", async || origin.calls() == 1).await;
        handle.purge(&purge);
        let after = spawn(&cache, get("/"));
        settle().await;
        gate.add_permits(10);
        assert_eq!(before.await.unwrap().unwrap().text(), "1");
        assert_eq!(after.await.unwrap().unwrap().text(), "2", "{purge:?}");
        eventually("stored", async || send(&cache, get("/")).await.is_hit()).await;
        assert_ne!(send(&cache, get("/")).await.text(), "1");
    }
}

#[tokio::test]
async fn a_response_with_a_purged_tag_is_not_stored_by_a_fetch_that_began_before() {
    let gate = Arc::new(Semaphore::new(0));
    let origin = {
        let gate = gate.clone();
        Origin::new(move |n, _| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(fresh().extension(CacheTags::new(["x"])).body(text(&n.to_string())).unwrap())
            }
        })
    };
    let layer = layer();
    let cache = layer.layer(origin.clone());
    let before = spawn(&cache, get("/"));
    eventually("forwarded", async || origin.calls() == 1).await;
    layer.handle().purge(&Purge::tag("x").unwrap());
    gate.add_permits(10);
    assert_eq!(before.await.unwrap().unwrap().text(), "1");
    assert_eq!(send(&cache, get("/")).await.text(), "2");
    assert!(send(&cache, get("/")).await.is_hit());
}

#[tokio::test]
async fn what_the_handler_keeps_from_the_cache_is_not_stored() {
    let ttl = CacheTtl(Duration::from_secs(60));
    for (fields, stored) in [
        (http::Extensions::new(), true),
        (with(NoStore), false),
        (with(CacheTags::new(["t"; 64])), true),
        (with(CacheTags::new(["t"; 65])), false),
        (with(CacheTags::new(["t".repeat(257)])), false),
    ] {
        let origin = Origin::answering(move |_, _| {
            let mut response = fresh().extension(ttl);
            response.extensions_mut().unwrap().extend(fields.clone());
            response
        });
        let cache = layer().layer(origin);
        send(&cache, get("/")).await;
        assert_eq!(send(&cache, get("/")).await.is_hit(), stored);
    }
}

fn with<T: Clone + Send + Sync + 'static>(value: T) -> http::Extensions {
    let mut extensions = http::Extensions::new();
    extensions.insert(value);
    extensions
}

#[tokio::test]
async fn every_request_counts_once() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60")]);
    let layer = layer();
    let (handle, cache) = (layer.handle(), layer.layer(origin.clone()));
    let waiting: Vec<_> = (0..3).map(|_| spawn(&cache, get("/"))).collect();
    eventually("forwarded", async || origin.calls() == 1).await;
    settle().await;
    gate.add_permits(10);
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    send(&cache, get("/")).await;
    send(&cache, request(Method::POST, "/other", &[])).await;
    // Handles, clones and services are one cache.
    let stats = layer.clone().handle().stats();
    assert_eq!((stats.hits, stats.misses, stats.collapsed, stats.bypassed), (1, 1, 2, 1));
    assert_eq!((stats.stale, stats.revalidated, stats.failed), (0, 0, 0));
    assert_eq!(stats, handle.stats());
    assert_eq!(super::layer().handle().stats().hits, 0);
}
