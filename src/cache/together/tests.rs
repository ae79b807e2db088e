//! Several caches over the model.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tower::{Layer, ServiceExt};

use super::model::*;
use crate::cache::{CachePolicy, Purge};

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

#[tokio::test(start_paused = true)]
async fn what_is_fetched_for_oneself_ends_soon_after_its_client_has_left() {
    let (origin, two) = purged(|n| if n == 1 { fresh(n) } else { Response::builder() }).await;
    let (first, other) = (two[0].get(), two[1].get());
    settle().await;
    origin.gate.add_permits(1);
    first.await.unwrap();
    settle().await;
    assert_eq!((origin.calls(), origin.running()), (3, 1), "the other fetches for itself");
    other.abort();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(origin.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_one_users_tells_others_nothing() {
    let public = |n| match n {
        2 => Response::builder().status(401),
        n => fresh(n).header("cache-control", "public"),
    };
    let (origin, two) = purged(public).await;
    let user = two[0].send(Request::get("/").header("authorization", "junk"));
    settle().await;
    let others = [two[1].get(), two[1].get(), two[1].get()];
    settle().await;
    assert_eq!(origin.calls(), 2, "they wait");
    origin.gate.add_permits(1);
    user.await.unwrap();
    settle().await;
    assert_eq!(origin.calls(), 3, "one of them tries");
    origin.gate.add_permits(1);
    for sent in others {
        assert_eq!(sent.await.unwrap().1, "version 3");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_for_another_here_has_less_patience_for_others() {
    let failing = |n| if n == 1 { fresh(n) } else { Response::builder().status(500) };
    let (origin, [one, two]) = purged(failing).await;
    let first = one.get();
    settle().await;
    let (leads, follows) = (two.get(), two.get());
    settle().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    origin.gate.add_permits(1);
    first.await.unwrap();
    settle().await;
    assert_eq!(origin.calls(), 3, "the one that leads has the lease");
    let competes = one.get();
    settle().await;
    origin.gate.add_permits(1);
    leads.await.unwrap();
    settle().await;
    assert_eq!(origin.calls(), 4, "one of two has the lease");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(origin.calls(), 5, "the other has waited five seconds in all");
    origin.gate.add_permits(9);
    follows.await.unwrap();
    competes.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_waited_for_in_vain_is_not_part_of_an_age() {
    let short = |_| Response::builder().header("cache-control", "max-age=4");
    let (origin, two) = purged(short).await;
    let (holds, waits) = (two[0].get(), two[1].get());
    settle().await;
    tokio::time::sleep(Duration::from_millis(5_100)).await;
    assert_eq!(origin.calls(), 3);
    origin.gate.add_permits(1);
    // Whose call came first gets the permit.
    holds.await.unwrap();
    origin.gate.add_permits(1);
    waits.await.unwrap();
    settle().await;
    let (status, body) = two[1].get().await.unwrap();
    assert!(status.starts_with("tower-scale; hit") && body == "version 3", "{status} {body}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_spent_its_time_is_answered_from_memory_and_asks_no_more() {
    let (server, origin) = (Server::new(), Origin::new(fresh));
    let one = process(&server, &origin);
    *one.process.memory.lock().unwrap() = Some(std::collections::HashMap::default());
    origin.gate.add_permits(2);
    one.get().await.unwrap();
    settle().await;
    one.process.spent.store(true, Ordering::SeqCst);
    let looks = || one.process.looks.load(Ordering::SeqCst);
    let before = looks();
    assert!(one.get().await.unwrap().0.starts_with("tower-scale; hit"));
    one.layer.handle().soft_purge(&Purge::everything()).await.unwrap();
    assert_eq!(one.get().await.unwrap().1, "version 2");
    assert_eq!(looks(), before);
}

#[tokio::test(start_paused = true)]
async fn of_each_variant_one_process_fetches_it_for_all() {
    let varying = |n| fresh(n).header("vary", "accept-language");
    let (server, origin) = (Server::new(), Origin::new(varying));
    let three = [0; 3].map(|_| process(&server, &origin));
    origin.gate.add_permits(1);
    three[0].get().await.unwrap();
    settle().await;
    purge(&three[0]).await;
    let get =
        |process: usize, language: &str| three[process].send(Request::get("/").header("accept-language", language));
    let english = get(0, "en");
    settle().await;
    let french = [get(1, "fr"), get(2, "fr"), get(1, "fr")];
    settle().await;
    assert_eq!(origin.calls(), 2, "nobody knows of variants yet");
    origin.gate.add_permits(1);
    english.await.unwrap();
    settle().await;
    assert_eq!(origin.calls(), 3, "one fetches the other variant");
    origin.gate.add_permits(1);
    for sent in french {
        assert_eq!(sent.await.unwrap().1, "version 3");
    }
    settle().await;
    for process in 0..3 {
        assert!(get(process, "fr").await.unwrap().0.starts_with("tower-scale; hit"), "{process}");
        assert!(get(process, "en").await.unwrap().0.starts_with("tower-scale; hit"), "{process}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_that_it_is_stored_where_nothing_can_be() {
    let (server, origin) = (Server::new(), Origin::new(fresh));
    let [bare, remembers] = [0; 2].map(|_| process(&server, &origin));
    *remembers.process.memory.lock().unwrap() = Some(std::collections::HashMap::default());
    origin.gate.add_permits(9);
    for (instance, broken, expected) in
        [(&bare, true, ""), (&remembers, true, "; stored"), (&bare, false, "; stored"), (&remembers, false, "; stored")]
    {
        purge(&bare).await;
        instance.process.memory.lock().unwrap().iter_mut().for_each(std::collections::HashMap::clear);
        instance.process.broken.store(broken, Ordering::SeqCst);
        let (status, _) = instance.get().await.unwrap();
        assert_eq!(status, format!("tower-scale; fwd=uri-miss{expected}"), "{broken}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_change_has_brought_is_for_all() {
    let names_itself = |n| fresh(n).header("content-location", "/");
    let (server, origin) = (Server::new(), Origin::new(names_itself));
    let [one, other] = [0; 2].map(|_| process(&server, &origin));
    let permissive = one.layer.clone().policy(CachePolicy::rfc9111()).layer(origin.clone());
    origin.gate.add_permits(9);
    let change = Request::post("/").header("host", "h").body(Full::<Bytes>::default()).unwrap();
    permissive.oneshot(change).await.unwrap();
    settle().await;
    let (status, body) = other.get().await.unwrap();
    assert!(status.starts_with("tower-scale; hit") && body == "version 1", "{status} {body}");
}
