//! Two caches over a model of the store that they share: what a server does in one step, it does here under one lock.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::sync::{Semaphore, broadcast};
use tower::{Layer, Service, ServiceExt};

use crate::cache::entry::Record;
use crate::cache::fleet::{Bearings, Claim, Control, End, Fence, Find, Fleet, Lease, Purging};
use crate::cache::key::Key;
use crate::cache::store::{Reply, Store, StoreFailure};
use crate::cache::{Cache, CacheLayer, Purge, ResponseBody};

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[derive(Default)]
struct State {
    records: HashMap<Vec<u8>, (Record, u128, u64)>,
    /// Hard generation, and whether its responses have been cacheable.
    url: Option<(u128, bool)>,
    leases: HashMap<Vec<u8>, u128>,
    last: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// One URL's worth of a server.
struct Server {
    state: Mutex<State>,
    told: broadcast::Sender<Option<End>>,
    processes: Mutex<Vec<Bearings>>,
}

impl Server {
    fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), told: broadcast::Sender::new(64), processes: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// One process's view of it, without a memory of its own.
struct Process {
    server: Arc<Server>,
    bearings: Bearings,
    own: Mutex<Option<Arc<dyn Fleet>>>,
    /// The next look's answer takes until there is a permit.
    slow: Mutex<Option<Arc<Semaphore>>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Process")
    }
}

impl Fleet for Process {
    fn bearings(&self) -> Bearings {
        self.bearings.clone()
    }

    fn recall(&self, _: &Key) -> Option<Record> {
        None
    }

    fn look(&self, key: &Key) -> Later<Result<Find, StoreFailure>> {
        let (server, key, slow) = (self.server.clone(), key.clone(), self.slow.lock().unwrap().take());
        Box::pin(async move {
            let find = {
                let mut state = server.state();
                let next = u128::from(state.next());
                let (hard, marked) = state.url.unwrap_or_default();
                let stored = state.records.get(key.as_bytes());
                let control = Control {
                    generations: state.url.map(|(hard, _)| (hard, 0)),
                    next,
                    broad: 0,
                    seen: stored.map_or(0, |(_, _, id)| *id),
                    marked,
                    known: true,
                };
                let record = stored.filter(|(_, made, _)| *made == hard).map(|(record, _, _)| record.clone());
                Find { record, control }
            };
            if let Some(slow) = slow {
                slow.acquire().await.unwrap().forget();
            }
            Ok(find)
        })
    }

    fn put(&self, key: &Key, record: Record, fence: Fence) -> Later<Result<bool, StoreFailure>> {
        let (server, key) = (self.server.clone(), key.clone());
        Box::pin(async move {
            let mut state = server.state();
            let expected = fence.control.generations.map_or(fence.control.next, |(hard, _)| hard);
            let now = state.url.get_or_insert((expected, true)).0;
            let mine = fence.lease.is_none() || fence.lease == state.leases.get(key.as_bytes()).copied();
            if now != expected || !mine {
                return Ok(false);
            }
            state.url = Some((now, true));
            let id = state.next();
            state.records.insert(key.as_bytes().to_vec(), (record, now, id));
            if fence.lease.is_some() {
                state.leases.remove(key.as_bytes());
            }
            let _ = server.told.send(None);
            Ok(true)
        })
    }

    fn invalidate(&self, _: &Key) -> Later<Result<(), StoreFailure>> {
        let server = self.server.clone();
        Box::pin(async move {
            let mut state = server.state();
            let next = state.next();
            state.url = state.url.map(|(_, marked)| (u128::from(next) << 64, marked));
            Ok(())
        })
    }

    fn spread(&self, purge: &Purge, soft: bool) -> Purging {
        let mut state = self.server.state();
        let next = state.next();
        state.url = state.url.map(|(_, marked)| (u128::from(next) << 64, marked));
        for process in self.server.processes.lock().unwrap().iter() {
            process.purges.purge(purge, soft, std::time::SystemTime::now());
        }
        Purging::done()
    }

    fn claim(&self, key: &Key, control: Control) -> Later<Claim> {
        let (server, key, own) = (self.server.clone(), key.clone(), self.own.lock().unwrap().clone().unwrap());
        Box::pin(async move {
            loop {
                let mut news = server.told.subscribe();
                {
                    let mut state = server.state();
                    if state.records.get(key.as_bytes()).map_or(0, |(_, _, id)| *id) != control.seen {
                        return Claim::LookAgain;
                    }
                    if !state.leases.contains_key(key.as_bytes()) {
                        let token = u128::from(state.next());
                        state.leases.insert(key.as_bytes().to_vec(), token);
                        return Claim::Granted(Lease::new(own, key.clone(), token));
                    }
                }
                match tokio::time::timeout(Duration::from_secs(5), news.recv()).await {
                    Ok(Ok(Some(End::Unshared))) => return Claim::Unshared,
                    Ok(_) => {}
                    Err(_) => return Claim::Alone,
                }
            }
        })
    }

    fn end(&self, key: &Key, token: u128, how: End) {
        let mut state = self.server.state();
        if state.leases.get(key.as_bytes()) == Some(&token) {
            state.leases.remove(key.as_bytes());
            if how == End::Unshared {
                state.url = state.url.map(|(hard, _)| (hard, false));
            }
            let _ = self.server.told.send(Some(how));
        }
    }

    fn longest(&self) -> usize {
        1000
    }
}

/// As a layer takes it.
#[derive(Debug)]
struct Handle(Arc<Process>);

impl Store for Handle {
    fn get(&self, _: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        Reply::later(async { Ok(None) })
    }

    fn put(&self, _: &Key, _: Record) -> Reply<Result<(), StoreFailure>> {
        Reply::Now(Ok(()))
    }

    fn remove(&self, key: &Key) -> Reply<Result<(), StoreFailure>> {
        self.0.server.state().records.remove(key.as_bytes());
        Reply::Now(Ok(()))
    }

    fn max_object_bytes(&self) -> usize {
        100_000
    }

    fn fleet(&self) -> Option<Arc<dyn Fleet>> {
        Some(self.0.clone())
    }
}

/// A handler that counts and waits for a permit; every answer is a script's next line.
#[derive(Clone)]
struct Origin {
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    script: fn(usize) -> http::response::Builder,
}

impl Origin {
    fn new(script: fn(usize) -> http::response::Builder) -> Self {
        Self { calls: Arc::default(), gate: Arc::new(Semaphore::new(0)), script }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service<Request<Full<Bytes>>> for Origin {
    type Response = Response<Full<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = Later<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        let n = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let (gate, script) = (self.gate.clone(), self.script);
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Ok(script(n).body(Full::from(format!("version {n}"))).unwrap())
        })
    }
}

struct Instance {
    cache: Cache<Origin>,
    layer: CacheLayer,
    process: Arc<Process>,
}

fn process(server: &Arc<Server>, origin: &Origin) -> Instance {
    let bearings = Bearings::default();
    server.processes.lock().unwrap().push(bearings.clone());
    let process = Arc::new(Process { server: server.clone(), bearings, own: Mutex::default(), slow: Mutex::default() });
    *process.own.lock().unwrap() = Some(process.clone());
    let layer = CacheLayer::new(Handle(process.clone()));
    Instance { cache: layer.layer(origin.clone()), layer, process }
}

type Sent = tokio::task::JoinHandle<(String, String)>;

impl Instance {
    fn get(&self) -> Sent {
        let request = Request::get("/").header("host", "h").body(Full::default()).unwrap();
        let cache = self.cache.clone();
        tokio::spawn(async move {
            let response: Response<ResponseBody<Full<Bytes>>> = cache.oneshot(request).await.unwrap();
            let status = response.headers()["cache-status"].to_str().unwrap().to_owned();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, String::from_utf8(body.to_vec()).unwrap())
        })
    }
}

/// All that can happen without a permit has happened.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn fresh(_: usize) -> http::response::Builder {
    Response::builder().header("cache-control", "max-age=60")
}

/// Two processes, and a URL that has been cacheable and is purged.
async fn purged(script: fn(usize) -> http::response::Builder) -> (Origin, [Instance; 2]) {
    let (server, origin) = (Server::new(), Origin::new(script));
    let two = [process(&server, &origin), process(&server, &origin)];
    origin.gate.add_permits(1);
    assert_eq!(two[0].get().await.unwrap().1, "version 1");
    settle().await;
    assert!(two[1].get().await.unwrap().0.starts_with("tower-scale; hit"));
    purge(&two[0]).await;
    (origin, two)
}

#[tokio::test(start_paused = true)]
async fn who_has_looked_before_another_process_stored_looks_again() {
    let (server, origin) = (Server::new(), Origin::new(fresh));
    let [one, two] = [process(&server, &origin), process(&server, &origin)];
    let fetches = [one.get(), two.get()];
    settle().await;
    assert_eq!(origin.calls(), 2, "each on its own, as it was never seen");
    let slow = Arc::new(Semaphore::new(0));
    *two.process.slow.lock().unwrap() = Some(slow.clone());
    let late = two.get();
    settle().await;
    origin.gate.add_permits(10);
    for fetch in fetches {
        fetch.await.unwrap();
    }
    settle().await;
    // What the second process fetched was not stored: the first one's was there.
    slow.add_permits(1);
    let (status, body) = late.await.unwrap();
    assert!(status.starts_with("tower-scale; hit"), "{status}: {body}");
    assert_eq!(origin.calls(), 2);
}

async fn purge(instance: &Instance) {
    instance.layer.handle().purge(&Purge::url("http://h/").unwrap()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_process_fetches_for_both() {
    let (origin, two) = purged(fresh).await;
    let waiting = [two[0].get(), two[0].get(), two[1].get(), two[1].get()];
    settle().await;
    assert_eq!(origin.calls(), 2);
    origin.gate.add_permits(1);
    for sent in waiting {
        assert_eq!(sent.await.unwrap().1, "version 2");
    }
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_for_sharing_is_waited_for_by_nobody() {
    let (origin, two) = purged(|n| if n == 1 { fresh(n) } else { Response::builder() }).await;
    let first = two[0].get();
    settle().await;
    let others = [two[1].get(), two[1].get()];
    settle().await;
    assert_eq!(origin.calls(), 2, "they wait");
    origin.gate.add_permits(1);
    first.await.unwrap();
    settle().await;
    assert_eq!(origin.calls(), 4, "each for itself, at once");
    let third = two[0].get();
    settle().await;
    assert_eq!(origin.calls(), 5);
    origin.gate.add_permits(3);
    for sent in others.into_iter().chain([third]) {
        sent.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_for_all_is_waited_for_by_nobody() {
    let long = |n: usize| fresh(n).header("x-n", n);
    let (origin, two) = purged(long).await;
    let long = two[0].layer.clone().max_object_bytes(5).layer(origin.clone());
    let request = Request::get("/").header("host", "h").body(Full::default()).unwrap();
    let first = tokio::spawn(long.oneshot(request));
    settle().await;
    let other = two[1].get();
    settle().await;
    assert_eq!(origin.calls(), 2);
    origin.gate.add_permits(1);
    first.await.unwrap().unwrap();
    settle().await;
    assert_eq!(origin.calls(), 3);
    origin.gate.add_permits(1);
    other.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_nobody_wants_any_more_hands_its_lease_on() {
    let (origin, two) = purged(fresh).await;
    let (leaves, stays) = (two[0].get(), two[1].get());
    settle().await;
    assert_eq!(origin.calls(), 2);
    leaves.abort();
    let began = tokio::time::Instant::now();
    settle().await;
    while origin.calls() == 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() < Duration::from_millis(1_200), "{:?}", began.elapsed());
    origin.gate.add_permits(1);
    assert_eq!(stays.await.unwrap().1, "version 3");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_lease_is_not_bound_to_its_client() {
    let (origin, two) = purged(fresh).await;
    let holds = two[0].get();
    settle().await;
    let (leaves, stays) = (two[1].get(), two[1].get());
    settle().await;
    leaves.abort();
    settle().await;
    origin.gate.add_permits(1);
    assert_eq!(holds.await.unwrap().1, "version 2");
    let (status, body) = stays.await.unwrap();
    assert_eq!((status.as_str(), body.as_str()), ("tower-scale; fwd=uri-miss; collapsed", "version 2"));
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_five_seconds() {
    let (origin, two) = purged(fresh).await;
    let (holds, waits) = (two[0].get(), two[1].get());
    settle().await;
    assert_eq!(origin.calls(), 2);
    let began = tokio::time::Instant::now();
    while origin.calls() == 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(4) && waited < Duration::from_millis(5_200), "{waited:?}");
    origin.gate.add_permits(2);
    holds.await.unwrap();
    waits.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_purge_voids_what_is_being_fetched_and_not_what_still_waits() {
    let (origin, two) = purged(fresh).await;
    let holds = two[0].get();
    settle().await;
    let waits = two[1].get();
    settle().await;
    purge(&two[1]).await;
    origin.gate.add_permits(1);
    assert_eq!(holds.await.unwrap().1, "version 2", "its client asked before the purge");
    settle().await;
    assert_eq!(origin.calls(), 3, "what was fetched before the purge is not stored");
    origin.gate.add_permits(1);
    assert_eq!(waits.await.unwrap().1, "version 3");
    settle().await;
    let (status, body) = two[0].get().await.unwrap();
    assert!(status.starts_with("tower-scale; hit") && body == "version 3", "{status} {body}");
    assert_eq!(origin.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_url_that_was_never_seen_is_fetched_once_by_each() {
    let (server, origin) = (Server::new(), Origin::new(fresh));
    let two = [process(&server, &origin), process(&server, &origin)];
    let sent = [two[0].get(), two[0].get(), two[1].get(), two[1].get()];
    settle().await;
    assert_eq!(origin.calls(), 2);
    origin.gate.add_permits(2);
    for sent in sent {
        sent.await.unwrap();
    }
}
