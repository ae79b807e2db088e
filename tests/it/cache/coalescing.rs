//! Shared fetches where things go wrong: refused responses, failures, clients that leave, stores that take their time.

use std::collections::HashMap;
use std::sync::Mutex;

use tower_scale::cache::{Key, Record, Reply, Store, StoreFailure};

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
        send(&cache, request(Method::POST, "/", &[])).await;
        again.abort();
        settle().await;
        store.puts.add_permits(100);
        settle().await;
        assert!(!send(&cache, get("/")).await.is_hit(), "{head}");
    }
}
