//! Shared fetches where things go wrong: refused responses, failures, clients that leave, stores that take their time.

use std::collections::HashMap;
use std::sync::Mutex;

use tower_scale::cache::{CachePolicy, Key, Record, Reply, Store, StoreFailure};

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

/// Paused time. What is stored is stale from the start, and may be served instead of errors.
#[tokio::test(start_paused = true)]
async fn who_goes_alone_has_the_stale_response_instead_of_an_error_too() {
    for fail in 0..4 {
        let origin = Origin::new(move |n, request| async move {
            let answer = Response::builder();
            match (n, fail) {
                // The first is stored, the second releases those who wait for it.
                (1 | 2, _) => tokio::time::sleep(Duration::from_secs(1)).await,
                (_, 0) => std::future::pending().await,
                (_, 1) => return Err(Broken(n)),
                (_, 2) => return Ok(answer.status(503).body(text("busy")).unwrap()),
                _ => panic!("the handler panics"),
            }
            let fields = answer.header("cache-control", "max-age=0, stale-if-error=60").header("etag", "\"a\"");
            let is_second = request.headers().contains_key("if-none-match");
            Ok(fields.status(if is_second { 304 } else { 200 }).body(text("1")).unwrap())
        });
        let layer = layer().fetch_timeout(Duration::from_secs(2));
        let (handle, cache) = (layer.handle(), layer.layer(origin.clone()));
        send(&cache, get("/")).await;
        tokio::time::advance(Duration::from_secs(121)).await;
        // The first asks for all; the others wait, and then go alone, as do those who come when it is known to be useless.
        let waiting: Vec<_> = (0..3).map(|_| spawn(&cache, get("/"))).collect();
        settle().await;
        assert_eq!(origin.calls(), 2);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let alone: Vec<_> = (0..2).map(|_| spawn(&cache, get("/"))).collect();
        let answers = tokio::time::timeout(Duration::from_secs(10), join_all(waiting.into_iter().chain(alone))).await;
        let answers = answers.expect("in time").into_iter().map(|answer| answer.expect("no panic").unwrap());
        let statuses: Vec<_> = answers
            .map(|answer| {
                assert_eq!((answer.status, answer.text()), (StatusCode::OK, "1"), "{fail}");
                answer.cache_status().to_owned()
            })
            .collect();
        assert_eq!(origin.calls(), 6);
        assert!(statuses[0].contains("fwd-status=304"), "{}", statuses[0]);
        assert!(statuses[1..].iter().all(|status| status.contains("stale-if-error")), "{fail}: {statuses:?}");
        let stats = handle.stats();
        assert_eq!((stats.stale, stats.misses, stats.revalidated), (4, 1, 1));
    }
}

/// A map that answers later: each write takes effect when it has a permit.
#[derive(Debug, Clone)]
struct Remote {
    map: Arc<Mutex<HashMap<Key, Record>>>,
    puts: Arc<Semaphore>,
    removals: Arc<Semaphore>,
    /// Whether a write goes on whose reply is dropped.
    persistent: bool,
}

impl Remote {
    fn new(puts: usize, removals: usize) -> Self {
        let gate = |permits| Arc::new(Semaphore::new(permits));
        Self { map: Arc::default(), puts: gate(puts), removals: gate(removals), persistent: false }
    }

    fn write(
        &self,
        gate: &Arc<Semaphore>,
        write: impl FnOnce(&mut HashMap<Key, Record>) + Send + 'static,
    ) -> Reply<Result<(), StoreFailure>> {
        let (map, gate) = (self.map.clone(), gate.clone());
        let writing = async move {
            gate.acquire().await.unwrap().forget();
            write(&mut map.lock().unwrap());
        };
        if self.persistent {
            let writing = tokio::spawn(writing);
            return Reply::later(async move { writing.await.map_err(|_| StoreFailure::unavailable()) });
        }
        Reply::later(writing.map(Ok))
    }
}

impl Store for Remote {
    fn get(&self, key: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        let (map, key) = (self.map.clone(), key.clone());
        Reply::later(async move {
            tokio::task::yield_now().await;
            Ok(map.lock().unwrap().get(&key).cloned())
        })
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        let key = key.clone();
        self.write(&self.puts, move |map| drop(map.insert(key, record)))
    }

    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
        let key = key.clone();
        self.write(&self.removals, move |map| drop(map.remove(&key)))
    }

    fn max_object_bytes(&self) -> usize {
        1 << 20
    }
}

#[tokio::test]
async fn a_client_that_leaves_after_its_change_does_not_keep_the_old_response_alive() {
    let origin = Origin::answering(|n, request| match *request.method() {
        Method::POST => Response::builder().status(201).header("location", "/other"),
        _ => fresh().header("x-call", n),
    });
    let store = Remote::new(100, 0);
    let cache = CacheLayer::new(store.clone()).layer(origin.clone());
    for path in ["/", "/other"] {
        send(&cache, get(path)).await;
        settle().await;
        assert!(send(&cache, get(path)).await.is_hit());
    }
    let post = spawn(&cache, request(Method::POST, "/", &[]));
    settle().await;
    assert_eq!(origin.calls(), 3);
    post.abort();
    settle().await;
    store.removals.add_permits(100);
    settle().await;
    for path in ["/", "/other"] {
        assert!(!send(&cache, get(path)).await.is_hit(), "{path}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_its_response_is_stored_brings_nothing_void_back() {
    for head in [false, true] {
        let origin = Origin::answering(move |n, request| match (request.method(), n) {
            (&Method::POST, _) => Response::builder(),
            (_, 1) if !head => Response::builder().header("cache-control", "max-age=0").header("etag", "\"a\""),
            (_, 1) => Response::builder().header("cache-control", "max-age=1").header("etag", "\"a\""),
            (&Method::HEAD, _) => fresh().header("etag", "\"a\""),
            (_, 2) => fresh().status(304).header("etag", "\"a\""),
            _ => fresh(),
        });
        let store = Remote { persistent: true, ..Remote::new(1, 100) };
        let began = std::time::SystemTime::now();
        let late = Arc::new(AtomicBool::new(false));
        let is_late = late.clone();
        let clock = move || began + Duration::from_secs(if is_late.load(Ordering::SeqCst) { 10 } else { 0 });
        let cache = CacheLayer::new(store.clone()).clock(clock).layer(origin.clone());
        send(&cache, get("/")).await;
        settle().await;
        late.store(true, Ordering::SeqCst);
        let again = spawn(&cache, request(if head { Method::HEAD } else { Method::GET }, "/", &[]));
        settle().await;
        assert_eq!(origin.calls(), 2);
        let post = spawn(&cache, request(Method::POST, "/", &[]));
        settle().await;
        again.abort();
        settle().await;
        store.puts.add_permits(100);
        post.await.unwrap().unwrap();
        settle().await;
        assert!(!send(&cache, get("/")).await.is_hit(), "{head}");
    }
}

#[tokio::test]
async fn who_leaves_while_it_waits_is_counted_once() {
    let (origin, gate) = gated(&[("cache-control", "max-age=60")]);
    let layer = layer();
    let (handle, cache) = (layer.handle(), layer.layer(origin));
    let [leads, waits, leaves] = [(); 3].map(|()| spawn(&cache, get("/")));
    settle().await;
    leaves.abort();
    settle().await;
    gate.add_permits(1);
    leads.await.unwrap().unwrap();
    waits.await.unwrap().unwrap();
    assert_eq!((handle.stats().misses, handle.stats().collapsed), (1, 2));
}

#[tokio::test]
async fn a_change_is_answered_when_nothing_older_can_get_into_the_store_any_more() {
    let origin = Origin::answering(|_, request| match *request.method() {
        Method::POST => Response::builder(),
        _ => fresh(),
    });
    let store = Remote::new(0, 100);
    let cache = CacheLayer::new(store.clone()).layer(origin.clone());
    send(&cache, get("/")).await;
    let post = spawn(&cache, request(Method::POST, "/", &[]));
    settle().await;
    assert!(origin.calls() == 2 && !post.is_finished(), "what was fetched before it is still being written");
    store.puts.add_permits(1);
    post.await.unwrap().unwrap();
    assert!(!send(&cache, get("/")).await.is_hit());
}

/// The handler takes back what it had allowed: its client does not wait for that, and it goes all the same.
#[tokio::test]
async fn nobody_waits_while_what_is_outdated_is_removed() {
    for status in [200, 304] {
        let origin = Origin::answering(move |n, _| match n {
            1 => Response::builder().header("cache-control", "max-age=1, stale-if-error=600").header("etag", "\"a\""),
            2 => Response::builder().status(status).header("cache-control", "no-store").header("etag", "\"a\""),
            _ => Response::builder().status(500),
        });
        let store = Remote::new(100, 0);
        let began = std::time::SystemTime::now();
        let late = Arc::new(AtomicBool::new(false));
        let is_late = late.clone();
        let clock = move || began + Duration::from_secs(if is_late.load(Ordering::SeqCst) { 10 } else { 0 });
        let policy = CachePolicy::safe().request_directives(true);
        let cache = CacheLayer::new(store.clone()).policy(policy).clock(clock).layer(origin.clone());
        send(&cache, get("/")).await;
        settle().await;
        // Goes alone, since it wants something fresher than what others fetch.
        let alone = spawn(&cache, request(Method::GET, "/", &[("cache-control", "no-cache")]));
        settle().await;
        assert!(origin.calls() == 2 && alone.is_finished(), "{status}: what is outdated is being removed");
        late.store(true, Ordering::SeqCst);
        store.removals.add_permits(100);
        settle().await;
        assert_eq!(send(&cache, get("/")).await.status, 500, "{status}");
    }
}

#[tokio::test]
async fn the_oldest_of_many_variants_goes_also_from_a_store_that_answers_later() {
    let origin = Origin::with(&[("cache-control", "max-age=60"), ("vary", "accept-language")]);
    let store = Remote::new(1000, 1000);
    let cache = CacheLayer::new(store.clone()).layer(origin.clone());
    for language in 0..40 {
        send(&cache, request(Method::GET, "/", &[("accept-language", &language.to_string())])).await;
        settle().await;
    }
    assert_eq!(store.map.lock().unwrap().len(), 1 + 32, "what tells them apart, and the latest");
}
