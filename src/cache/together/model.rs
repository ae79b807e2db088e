//! Two caches over a model of the store that they share: what a server does in one step, it does here under one lock.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::sync::{Semaphore, broadcast};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};

use crate::cache::entry::Record;
use crate::cache::fleet::{Bearings, Claim, Control, End, Fence, Find, Fleet, Lease, Purging};
use crate::cache::key::Key;
use crate::cache::purge::Purge;
use crate::cache::store::{Reply, Store, StoreFailure};
use crate::cache::{Cache, CacheLayer, ResponseBody};

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
pub(super) struct Server {
    state: Mutex<State>,
    told: broadcast::Sender<Option<End>>,
    processes: Mutex<Vec<Bearings>>,
    began: (SystemTime, Instant),
    asked: AtomicU64,
}

impl Server {
    pub(super) fn new() -> Arc<Self> {
        let began = (SystemTime::now(), Instant::now());
        Arc::new(Self {
            state: Mutex::default(),
            told: broadcast::Sender::new(64),
            processes: Mutex::default(),
            began,
            asked: AtomicU64::new(0),
        })
    }

    /// Time is the runtime's, and never stands still.
    fn now(&self) -> SystemTime {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        self.began.0 + self.began.1.elapsed() + Duration::from_micros(asked)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// One process's view of it, without a memory of its own unless it is given one.
pub(super) struct Process {
    server: Arc<Server>,
    bearings: Bearings,
    own: Mutex<Option<Arc<dyn Fleet>>>,
    pub(super) memory: Mutex<Option<HashMap<Vec<u8>, Record>>>,
    /// The next look's answer takes until there is a permit.
    pub(super) slow: Mutex<Option<Arc<Semaphore>>>,
    pub(super) looks: AtomicUsize,
    pub(super) broken: AtomicBool,
    pub(super) spent: AtomicBool,
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

    fn recall(&self, key: &Key) -> Option<Record> {
        self.memory.lock().unwrap().as_ref()?.get(key.as_bytes()).cloned()
    }

    fn look(&self, key: &Key) -> Later<Result<Find, StoreFailure>> {
        let (server, key, slow) = (self.server.clone(), key.clone(), self.slow.lock().unwrap().take());
        self.looks.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Box::pin(async { Err(StoreFailure::unavailable()) });
        }
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
        if let Some(memory) = self.memory.lock().unwrap().as_mut() {
            memory.insert(key.as_bytes().to_vec(), record.clone());
        }
        Box::pin(async move {
            if !fence.control.known {
                return Ok(false);
            }
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
            process.purges.purge(purge, soft, self.server.now());
        }
        Purging::done()
    }

    fn claim(&self, key: &Key, control: Control, patience: Duration) -> Later<Claim> {
        let (server, key, own) = (self.server.clone(), key.clone(), self.own.lock().unwrap().clone().unwrap());
        Box::pin(async move {
            let deadline = Instant::now() + patience;
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
                match tokio::time::timeout_at(deadline, news.recv()).await {
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

    fn remembers(&self) -> bool {
        self.memory.lock().unwrap().is_some()
    }
}

/// As a layer takes it.
#[derive(Debug)]
pub(super) struct Handle(Arc<Process>);

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

    fn is_spent(&self, _: &http::Extensions) -> bool {
        self.0.spent.load(Ordering::SeqCst)
    }

    fn fleet(&self) -> Option<Arc<dyn Fleet>> {
        Some(self.0.clone())
    }
}

/// A handler that counts and waits for a permit; every answer is a script's next line.
#[derive(Clone)]
pub(super) struct Origin {
    calls: Arc<AtomicUsize>,
    running: Arc<()>,
    pub(super) gate: Arc<Semaphore>,
    script: fn(usize) -> http::response::Builder,
}

impl Origin {
    pub(super) fn new(script: fn(usize) -> http::response::Builder) -> Self {
        Self { calls: Arc::default(), running: Arc::default(), gate: Arc::new(Semaphore::new(0)), script }
    }

    /// Calls that have neither ended nor been given up.
    pub(super) fn running(&self) -> usize {
        Arc::weak_count(&self.running)
    }

    pub(super) fn calls(&self) -> usize {
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
        let (gate, script, running) = (self.gate.clone(), self.script, Arc::downgrade(&self.running));
        Box::pin(async move {
            let _running = running;
            gate.acquire().await.unwrap().forget();
            Ok(script(n).body(Full::from(format!("version {n}"))).unwrap())
        })
    }
}

pub(super) struct Instance {
    pub(super) cache: Cache<Origin>,
    pub(super) layer: CacheLayer,
    pub(super) process: Arc<Process>,
}

pub(super) fn process(server: &Arc<Server>, origin: &Origin) -> Instance {
    let bearings = Bearings::default();
    server.processes.lock().unwrap().push(bearings.clone());
    let process = Arc::new(Process {
        server: server.clone(),
        bearings,
        own: Mutex::default(),
        memory: Mutex::default(),
        slow: Mutex::default(),
        looks: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
        spent: AtomicBool::new(false),
    });
    *process.own.lock().unwrap() = Some(process.clone());
    let clock = server.clone();
    let layer = CacheLayer::new(Handle(process.clone())).clock(move || clock.now());
    Instance { cache: layer.layer(origin.clone()), layer, process }
}

pub(super) type Sent = tokio::task::JoinHandle<(String, String)>;

impl Instance {
    pub(super) fn get(&self) -> Sent {
        self.send(Request::get("/"))
    }

    pub(super) fn send(&self, request: http::request::Builder) -> Sent {
        let request = request.header("host", "h").body(Full::default()).unwrap();
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
pub(super) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

pub(super) fn fresh(_: usize) -> http::response::Builder {
    Response::builder().header("cache-control", "max-age=60")
}
