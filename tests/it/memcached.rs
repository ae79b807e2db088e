//! The store of `examples/memcached_store` against real servers, and the example itself.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::task::yield_now;
use tower::{Layer, ServiceExt, service_fn};
use tower_scale::cache::{CacheLayer, Key, Record, Reply, Store, StoreFailure, store_tests};

use crate::support::eventually;
use crate::support::example::Example;
use crate::support::memcached::Memcached;

#[path = "../../examples/memcached_store/store.rs"]
mod store;

use store::MemcachedStore;

/// Longer than any pause of a busy machine.
const LONG: Duration = Duration::from_secs(10);
/// What the store keeps for itself of memcached's 1 MiB.
const MAX_VALUE: usize = (1 << 20) - 512;

fn over(server: &Memcached) -> MemcachedStore {
    MemcachedStore::new(server.address(), 4, LONG)
}

/// Keeps the last record that the layer puts.
#[derive(Clone, Debug, Default)]
struct Tap(Arc<Mutex<Option<(Key, Record)>>>);

impl Store for Tap {
    fn get(&self, _: &Key) -> Reply<Result<Option<Record>, StoreFailure>> {
        Reply::Now(Ok(None))
    }

    fn put(&self, key: &Key, record: Record) -> Reply<Result<(), StoreFailure>> {
        *self.0.lock().unwrap() = Some((key.clone(), record));
        Reply::Now(Ok(()))
    }

    fn remove(&self, _: &Key) -> Reply<Result<(), StoreFailure>> {
        Reply::Now(Ok(()))
    }

    fn max_object_bytes(&self) -> usize {
        2 << 20
    }
}

/// What the layer stores of a response with so long a body, under the URL of `path`.
async fn sample(path: &str, length: usize, max_age: u32) -> (Key, Record) {
    let tap = Tap::default();
    let service = CacheLayer::new(tap.clone()).layer(service_fn(move |_: Request<Full<Bytes>>| async move {
        let response = Response::builder().header("cache-control", format!("max-age={max_age}"));
        Ok::<_, std::convert::Infallible>(response.body(Full::new(Bytes::from(vec![b'x'; length]))).unwrap())
    }));
    let request = Request::get(path).header("host", "shop.example").body(Full::default()).unwrap();
    service.oneshot(request).await.unwrap().into_body().collect().await.unwrap();
    eventually("the layer stores it", async || tap.0.lock().unwrap().is_some()).await;
    tap.0.lock().unwrap().take().unwrap()
}

async fn small(path: &str) -> (Key, Record) {
    sample(path, 100, 60).await
}

async fn get(store: &MemcachedStore, key: &Key) -> Result<Option<Record>, StoreFailure> {
    store.get(key).wait().await
}

async fn put(store: &MemcachedStore, key: &Key, record: &Record) -> Result<(), StoreFailure> {
    store.put(key, record.clone()).wait().await
}

async fn only_item(server: &Memcached) -> (String, SystemTime) {
    let found = Mutex::new(None);
    eventually("the server lists it", async || {
        *found.lock().unwrap() = server.items().pop();
        found.lock().unwrap().is_some()
    })
    .await;
    found.into_inner().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_passes_the_public_suite() {
    let server = Memcached::start();
    for connections in [1, 16] {
        store_tests::run(MemcachedStore::new(server.address(), connections, LONG)).await;
    }
}

#[tokio::test]
async fn what_one_has_put_all_have() {
    let server = Memcached::start();
    let (key, record) = small("/a").await;
    assert_eq!(put(&over(&server), &key, &record).await, Ok(()));
    assert_eq!(get(&over(&server), &key).await, Ok(Some(record)));
}

#[tokio::test]
async fn records_go_when_they_are_of_no_use_and_after_30_days() {
    const DAY: u64 = 24 * 60 * 60;
    let server = Memcached::start();
    let store = over(&server);
    for (max_age, most) in [(60, 60), (60 * 24 * 60 * 60, 30 * DAY)] {
        let (key, record) = sample("/a", 100, max_age).await;
        assert!(record.keep_for(SystemTime::now()).unwrap().as_secs() + 5 > most, "the layer stores it for less");
        let before = SystemTime::now();
        assert_eq!(put(&store, &key, &record).await, Ok(()));
        assert_eq!(get(&store, &key).await, Ok(Some(record)));
        let (name, expiry) = only_item(&server).await;
        let left = expiry.duration_since(before).unwrap().as_secs();
        assert!(name.len() <= 250 && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
        // Its clock ticks once a second.
        assert!((most - 3..=most + 3).contains(&left), "{left} s instead of {most}");
    }
}

#[tokio::test]
async fn what_is_too_large_replaces_what_was_there_with_nothing() {
    let server = Memcached::start();
    let store = over(&server);
    let (key, record) = sample("/a", 100, 60).await;
    let overhead = record.encode(&key).unwrap().len() - 100;
    let largest = MAX_VALUE - overhead;
    assert!(store.max_object_bytes() < largest);
    let (_, record) = sample("/a", largest, 60).await;
    assert_eq!(put(&store, &key, &record).await, Ok(()));
    assert_eq!(get(&store, &key).await, Ok(Some(record)));
    let (_, record) = sample("/a", largest + 1, 60).await;
    assert_eq!(put(&store, &key, &record).await, Ok(()));
    assert_eq!(get(&store, &key).await, Ok(None));
    assert_eq!(server.stat("cmd_set"), 1);
}

#[tokio::test]
async fn what_is_no_record_of_the_key_is_a_miss() {
    let server = Memcached::start();
    let store = over(&server);
    let ((key, record), (other, another)) = (small("/a").await, small("/b").await);
    assert_eq!(put(&store, &key, &record).await, Ok(()));
    let (name, _) = only_item(&server).await;
    let whole = server.read(&name);
    assert_eq!(whole, record.encode(&key).unwrap());
    let mut wrong =
        vec![Vec::new(), b"END\r\n".to_vec(), vec![0xff; 1 << 10], another.encode(&other).unwrap().to_vec()];
    wrong.extend((0..whole.len()).map(|length| whole[..length].to_vec()));
    for at in 0..whole.len() {
        wrong.push(whole.clone());
        wrong.last_mut().unwrap()[at] ^= 1;
    }
    for value in wrong {
        server.write(&name, &value);
        assert_eq!(get(&store, &key).await, Ok(None), "{value:?}");
    }
    assert_eq!(put(&store, &key, &record).await, Ok(()));
    assert_eq!(get(&store, &key).await, Ok(Some(record)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_kept_and_have_a_bound() {
    let server = Memcached::start();
    let store = over(&server);
    let (key, record) = small("/a").await;
    assert_eq!(put(&store, &key, &record).await, Ok(()));
    let before = server.stat("total_connections");
    for _ in 0..20 {
        let tasks = (0..50).map(|_| {
            let reply = store.get(&key);
            tokio::spawn(reply.wait())
        });
        for found in join_all(tasks).await {
            assert_eq!(found.unwrap(), Ok(Some(record.clone())));
        }
    }
    let opened = server.stat("total_connections") - before;
    // One is of the question, one was there.
    assert!(opened <= 4, "{opened}");
}

#[tokio::test]
async fn a_restart_while_nothing_is_asked_goes_unnoticed() {
    let mut server = Memcached::start();
    let store = over(&server);
    let (key, record) = small("/a").await;
    assert_eq!(put(&store, &key, &record).await, Ok(()));
    let found = join_all((0..4).map(|_| get(&store, &key))).await;
    assert_eq!(found, vec![Ok(Some(record.clone())); 4]);
    for _ in 0..3 {
        server.kill();
        server.launch();
        assert_eq!(get(&store, &key).await, Ok(None));
        server.kill();
        server.launch();
        assert_eq!(put(&store, &key, &record).await, Ok(()));
        assert_eq!(get(&store, &key).await, Ok(Some(record.clone())));
        server.kill();
        server.launch();
        assert_eq!(store.remove(&key).wait().await, Ok(()));
    }
}

#[tokio::test]
async fn without_a_server_it_fails_at_once_and_soon_finds_it() {
    let mut server = Memcached::absent();
    let store = over(&server);
    let (key, record) = small("/a").await;
    for _ in 0..50 {
        let started = Instant::now();
        assert_eq!(get(&store, &key).await, Err(StoreFailure::unavailable()));
        assert_eq!(put(&store, &key, &record).await, Err(StoreFailure::unavailable()));
        assert_eq!(store.remove(&key).wait().await, Err(StoreFailure::unavailable()));
        assert!(started.elapsed() < LONG / 10);
    }
    server.launch();
    // A removal is not held back, and its success ends the rest.
    assert_eq!(store.remove(&key).wait().await, Ok(()));
    assert_eq!(put(&store, &key, &record).await, Ok(()));
    assert_eq!(get(&store, &key).await, Ok(Some(record.clone())));
    server.kill();
    for _ in 0..20 {
        assert_eq!(get(&store, &key).await, Err(StoreFailure::unavailable()));
    }
    server.launch();
    eventually("lookups find it", async || get(&store, &key).await.is_ok()).await;
}

#[tokio::test]
async fn a_frozen_server_costs_each_operation_a_deadline_and_then_nothing() {
    let server = Memcached::start();
    let deadline = Duration::from_millis(100);
    let store = MemcachedStore::new(server.address(), 2, deadline);
    let (key, record) = small("/a").await;
    eventually("it is stored", async || put(&store, &key, &record).await.is_ok()).await;
    server.freeze();
    let started = Instant::now();
    // More than there are connections: those that wait for one have the same deadline.
    let failed = join_all((0..8).map(|_| get(&store, &key))).await;
    assert_eq!(failed, vec![Err(StoreFailure::timed_out()); 8]);
    assert!(started.elapsed() < 10 * deadline, "{:?}", started.elapsed());
    let started = Instant::now();
    let mut failed = 0;
    while started.elapsed() < deadline {
        assert_eq!(get(&store, &key).await, Err(StoreFailure::unavailable()));
        failed += 1;
    }
    assert!(failed > 20, "{failed}");
    server.thaw();
    eventually("it is found again", async || get(&store, &key).await == Ok(Some(record.clone()))).await;
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_nobodys() {
    let server = Memcached::start();
    let patient = over(&server);
    // One connection, so that whatever is left on it would meet the next question.
    let (hasty, single) = (
        MemcachedStore::new(server.address(), 1, Duration::from_millis(30)),
        MemcachedStore::new(server.address(), 1, LONG),
    );
    let ((a, of_a), (b, of_b)) = (small("/a").await, small("/b").await);
    assert_eq!(put(&patient, &a, &of_a).await, Ok(()));
    assert_eq!(put(&patient, &b, &of_b).await, Ok(()));
    for _ in 0..10 {
        eventually("it has a connection", async || get(&hasty, &a).await.is_ok()).await;
        assert_eq!(get(&single, &a).await, Ok(Some(of_a.clone())));
        server.freeze();
        assert_eq!(get(&hasty, &a).await, Err(StoreFailure::timed_out()));
        let Reply::Later(mut dropped) = single.get(&a) else { panic!("no round trip") };
        assert!(poll_fn(|cx| Poll::Ready(dropped.as_mut().poll(cx))).await.is_pending(), "frozen");
        drop(dropped);
        server.thaw();
        assert_eq!(get(&single, &b).await, Ok(Some(of_b.clone())));
        eventually("the hasty one is in time", async || match get(&hasty, &b).await {
            Ok(found) => {
                assert_eq!(found, Some(of_b.clone()));
                true
            }
            Err(_) => false,
        })
        .await;
    }
}

#[tokio::test]
async fn operations_that_are_dropped_halfway_leave_no_trace() {
    let server = Memcached::start();
    let store = MemcachedStore::new(server.address(), 1, LONG);
    let (b, of_b) = small("/b").await;
    let (large, of_large) = sample("/large", 900_000, 60).await;
    assert_eq!(put(&store, &b, &of_b).await, Ok(()));
    for polls in 0..100 {
        assert_eq!(put(&store, &large, &of_large).await, Ok(()));
        abandon(store.get(&large), polls).await;
        assert_eq!(get(&store, &b).await, Ok(Some(of_b.clone())), "a get after {polls} polls");
        abandon(store.put(&large, of_large.clone()), polls).await;
        assert_eq!(get(&store, &b).await, Ok(Some(of_b.clone())), "a put after {polls} polls");
        abandon(store.remove(&large), polls).await;
        assert_eq!(get(&store, &b).await, Ok(Some(of_b.clone())), "a remove after {polls} polls");
        let found = get(&store, &large).await.unwrap();
        assert!(found.is_none_or(|found| found == of_large));
    }
}

/// Polls a reply so often at most, whether or not there is anything new, and drops it.
async fn abandon<T>(reply: Reply<T>, polls: usize) {
    let Reply::Later(mut future) = reply else { return };
    for _ in 0..polls {
        if poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await.is_ready() {
            return;
        }
        yield_now().await;
    }
}

#[tokio::test]
async fn two_instances_of_the_example_share_what_they_make() {
    let mut server = Memcached::start();
    let environment = [("MEMCACHED", &*server.address())];
    let [one, two] = [(); 2].map(|()| Example::start("memcached_store", &environment));
    let host: &[(&str, &[u8])] = &[("host", b"shop.example")];
    let ask = async |at: &Example, path: &str| {
        let answer = at.try_get(path, host).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK);
        (answer.header("cache-status").starts_with("tower-scale; hit"), answer.body)
    };
    // A busy machine may exceed the deadline of 20 ms.
    let shared = async |path: &str| {
        eventually("what one made the other has", async || {
            let (_, made) = ask(&one, path).await;
            ask(&two, path).await == (true, made)
        })
        .await;
    };
    shared("/products/1").await;
    let (_, before) = ask(&one, "/products/1").await;
    let changed = two.send("DELETE", "/products/1", host, "").await.expect("an answer");
    assert_eq!(changed.status, StatusCode::NO_CONTENT);
    eventually("what one has changed the other makes anew", async || {
        let _ = two.send("DELETE", "/products/1", host, "").await;
        ask(&one, "/products/1").await.1 != before
    })
    .await;
    server.kill();
    for _ in 0..3 {
        assert!(!ask(&one, "/products/2").await.0);
    }
    server.launch();
    shared("/products/2").await;
    server.freeze();
    for _ in 0..3 {
        assert!(!ask(&one, "/products/2").await.0);
    }
    server.thaw();
    shared("/products/2").await;
}
