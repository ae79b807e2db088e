//! Shared fetches where things go wrong: refused responses, failures, clients that leave, stores that take their time.

use super::*;

fn credentials(path: &str) -> Request<ReqBody> {
    request(Method::GET, path, &[("authorization", "token")])
}

#[tokio::test]
async fn who_waits_for_a_response_that_is_its_clients_alone_gets_no_error() {
    let gate = Arc::new(Semaphore::new(0));
    let waiting = gate.clone();
    let origin = Origin::new(move |n, _| {
        let gate = waiting.clone();
        async move {
            if n == 1 {
                let public = Response::builder().header("cache-control", "public, max-age=9").header("etag", "\"1\"");
                return Ok(public.body(text("public")).unwrap());
            }
            gate.acquire().await.unwrap().forget();
            Ok(Response::builder().header("cache-control", "private").body(text(&n.to_string())).unwrap())
        }
    });
    let late = Arc::new(AtomicBool::new(false));
    let is_late = late.clone();
    let began = std::time::SystemTime::now();
    let clock = move || began + Duration::from_secs(if is_late.load(Ordering::SeqCst) { 10 } else { 0 });
    let cache = layer().clock(clock).layer(origin.clone());
    send(&cache, get("/")).await;
    late.store(true, Ordering::SeqCst);
    let clients: Vec<_> = (0..6).map(|_| spawn(&cache, credentials("/"))).collect();
    settle().await;
    gate.add_permits(6);
    for client in clients {
        let answer = client.await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.cache_status());
    }
    assert_eq!(origin.calls(), 7);
}

#[tokio::test]
async fn what_is_stale_from_the_start_is_renewed_in_the_background() {
    let origin = Origin::with(&[("cache-control", "max-age=0, stale-while-revalidate=60"), ("etag", "\"a\"")]);
    let cache = origin.cached();
    send(&cache, get("/")).await;
    for n in 1..5 {
        assert_eq!(send(&cache, get("/")).await.text(), n.to_string());
        settle().await;
        assert_eq!(origin.calls(), n + 1);
    }
}
