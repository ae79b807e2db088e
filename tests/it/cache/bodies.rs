//! Bodies that end early, late, wrongly or never, as other caches have stumbled over them.

use tower_scale::cache::CachePolicy;

use super::time::{moving, pass, seconds};
use super::*;

type Sender = http_body_util::channel::Sender<Bytes, BoxError>;

fn spawn_open(cache: &Cache<Origin>) -> tokio::task::JoinHandle<Streamed> {
    let cache = cache.clone();
    tokio::spawn(async move { open(&cache).await })
}

/// tower-http-cache 0.6.1 (also on POST) and http-cache-tower-server 0.2.6 (also on no-store) wait for the end of an
/// endless body. Here the first byte comes at once to its own client, and to all who ask meanwhile.
#[tokio::test(start_paused = true)]
async fn an_endless_body_holds_up_nobody() {
    for fields in [
        &[("content-type", "text/event-stream")] as &'static [_],
        &[("content-type", "application/x-ndjson"), ("cache-control", "no-store")],
        &[("content-type", "application/x-ndjson"), ("cache-control", "no-cache")],
    ] {
        for method in [Method::GET, Method::POST] {
            let (origin, mut senders) = streaming(fields);
            let cache = layer().ttl(seconds(60)).layer(origin.clone());
            let mut held = Vec::new();
            let began = tokio::time::Instant::now();
            let clients: Vec<_> =
                (0..10).map(|_| tokio::spawn(cache.clone().oneshot(request(method.clone(), "/", &[])))).collect();
            for client in clients {
                let mut body = client.await.unwrap().unwrap().into_body();
                let mut sender = senders.recv().await.unwrap();
                sender.send_data("first".into()).await.unwrap();
                held.push(sender);
                while let Some(other) = senders.recv().now_or_never().flatten() {
                    let mut other: Sender = other;
                    other.send_data("first".into()).await.unwrap();
                    held.push(other);
                }
                assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "first", "{fields:?} {method}");
                if senders.is_empty() && held.len() == 10 {
                    break;
                }
            }
            assert_eq!((origin.calls(), began.elapsed()), (10, Duration::ZERO), "{fields:?} {method}");
        }
    }
}

/// An endless body that may be stored, for all one can tell: its own client has every byte at once, and whoever comes
/// goes alone after 5 s at most.
#[tokio::test(start_paused = true)]
async fn an_endless_body_that_looks_storable_costs_others_five_seconds_once() {
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=60")]);
    let cache = moving(layer()).layer(origin.clone());
    let began = tokio::time::Instant::now();
    let mut body = open(&cache).await;
    let mut sender = senders.recv().await.unwrap();
    for _ in 0..3 {
        sender.send_data("event".into()).await.unwrap();
        assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "event");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    let others: Vec<_> = (0..10).map(|_| spawn_open(&cache)).collect();
    join_all(others).await;
    assert!(began.elapsed() <= Duration::from_millis(5002), "{:?}", began.elapsed());
    pass(seconds(1)).await;
    let late = tokio::time::Instant::now();
    open(&cache).await;
    assert_eq!((late.elapsed(), origin.calls()), (Duration::ZERO, 12));
}

/// cache-handler#73, aspnetcore#66877: stored as if it were whole. pingora#932: read by others as a clean end.
#[tokio::test]
async fn what_breaks_off_is_whole_for_nobody() {
    for (length, breaks) in [(true, true), (true, false), (false, true)] {
        let fields: &'static [_] = if length {
            &[("cache-control", "max-age=60"), ("content-length", "6")]
        } else {
            &[("cache-control", "max-age=60")]
        };
        let (origin, mut senders) = streaming(fields);
        let cache = origin.cached();
        let mut leader = open(&cache).await;
        let mut sender = senders.recv().await.unwrap();
        let followers: Vec<_> = (0..5).map(|_| spawn_open(&cache)).collect();
        settle().await;
        sender.send_data("abc".into()).await.unwrap();
        assert_eq!(chunk(&mut leader).await.unwrap().unwrap(), "abc");
        if breaks {
            sender.abort("reset".into());
        } else {
            drop(sender);
        }
        if breaks {
            assert!(chunk(&mut leader).await.unwrap().is_err());
        }
        if length {
            for follower in followers {
                let mut body = follower.await.unwrap();
                assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "abc");
                assert!(chunk(&mut body).await.unwrap().is_err(), "never a clean end");
            }
        } else {
            // They wait for the whole; one of them fetches it.
            let mut second = senders.recv().await.unwrap();
            second.send_data("whole".into()).await.unwrap();
            drop(second);
            for follower in followers {
                assert_eq!(follower.await.unwrap().collect().await.unwrap().to_bytes(), "whole");
            }
            assert!(send(&cache, get("/")).await.is_hit());
            continue;
        }
        assert_eq!(origin.calls(), 1);
        open(&cache).await;
        assert_eq!(origin.calls(), 2, "nothing is stored");
    }
}

/// cache-handler#131 holds a file of 4 GiB. Here its length alone decides.
#[tokio::test]
async fn four_gibibytes_are_nobodys_but_the_clients() {
    for limit in [1 << 20, usize::MAX] {
        let (origin, mut senders) = streaming(&[("cache-control", "max-age=60"), ("content-length", "4294967296")]);
        let layer = layer().max_object_bytes(limit);
        let (handle, cache) = (layer.handle(), layer.layer(origin.clone()));
        let mut body = open(&cache).await;
        let mut sender = senders.recv().await.unwrap();
        for _ in 0..100 {
            sender.send_data(vec![b'x'; 16 << 10].into()).await.unwrap();
            assert_eq!(chunk(&mut body).await.unwrap().unwrap().len(), 16 << 10);
        }
        assert_eq!(handle.stats().bytes, Some(0));
        let other = open(&cache).await;
        assert_eq!(origin.calls(), 2, "nobody waits for it");
        drop(other);
    }
}

/// Who reads one byte and stops holds up neither the store nor the others.
#[tokio::test]
async fn a_client_that_stops_reading_holds_up_nobody() {
    for fields in [
        &[("cache-control", "max-age=60"), ("content-length", "300000")] as &'static [_],
        &[("cache-control", "max-age=60")],
    ] {
        let (origin, mut senders) = streaming(fields);
        let cache = CacheLayer::new(MemoryStore::new(64 << 20)).layer(origin.clone());
        let mut leader = open(&cache).await;
        let mut sender = senders.recv().await.unwrap();
        let follower = spawn_open(&cache);
        settle().await;
        sender.send_data("x".into()).await.unwrap();
        assert_eq!(chunk(&mut leader).await.unwrap().unwrap(), "x");
        let feed = async move {
            for _ in 0..3 {
                sender.send_data(vec![b'x'; 99_999].into()).await.unwrap();
            }
            sender.send_data("xx".into()).await.unwrap();
        };
        tokio::time::timeout(seconds(10), feed).await.expect("the body is read on");
        assert_eq!(follower.await.unwrap().collect().await.unwrap().to_bytes().len(), 300_000);
        assert_eq!(send(&cache, get("/")).await.text().len(), 300_000);
        assert_eq!(origin.calls(), 1);
        assert_eq!(leader.collect().await.unwrap().to_bytes().len(), 299_999, "still there");
    }
}

/// Trailers go to the client whose request was forwarded; who shares the data has all of it; nothing is stored.
#[tokio::test]
async fn trailers_are_neither_stored_nor_missed() {
    let (origin, mut senders) = streaming(&[("cache-control", "max-age=60"), ("content-length", "3")]);
    let cache = origin.cached();
    let leader = open(&cache).await;
    let mut sender = senders.recv().await.unwrap();
    let follower = open(&cache).await;
    sender.send_data("abc".into()).await.unwrap();
    sender.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "9".parse().unwrap())])).await.unwrap();
    drop(sender);
    let (leader, follower) = (leader.collect().await.unwrap(), follower.collect().await.unwrap());
    assert_eq!(leader.trailers().unwrap()["x-sum"], "9");
    assert_eq!((leader.to_bytes(), follower.to_bytes()), ("abc".into(), "abc".into()));
    open(&cache).await;
    assert_eq!(origin.calls(), 2);
}

/// A length that contradicts the body, or itself.
#[tokio::test]
async fn a_length_that_lies_is_stored_for_nobody() {
    for stated in [
        &["2"] as &[&str],
        &["4"],
        &["3", "4"],
        &["4", "3"],
        &["4, 3"],
        &["+3"],
        &["0x3"],
        &["-1"],
        &["99999999999999999999"],
        &["3 3"],
    ] {
        for known in [true, false] {
            let stated: Vec<_> = stated.to_vec();
            let lines = stated.clone();
            let origin = Origin::new(move |_, _| {
                let response = lines.iter().fold(fresh(), |response, line| response.header("content-length", *line));
                let body = if known {
                    text("abc")
                } else {
                    Body::from_stream(futures_util::stream::once(async { Ok::<_, Infallible>("abc") }))
                };
                async move { Ok(response.body(body).unwrap()) }
            });
            let cache = origin.cached();
            for n in 1..=2 {
                send(&cache, get("/")).await;
                settle().await;
                assert_eq!(origin.calls(), n, "{stated:?}");
            }
        }
    }
}

/// The whole is not known to be small, since only a part of it is stored.
#[tokio::test(start_paused = true)]
async fn a_stored_part_is_renewed_as_a_part() {
    for window in ["", ", stale-while-revalidate=60", ", stale-if-error=60"] {
        let origin = Origin::new(move |n, request| async move {
            let response = Response::builder().header("cache-control", format!("max-age=10{window}"));
            let response = response.header("etag", format!("\"{n}\""));
            let (status, body) = match request.headers().get("range") {
                Some(_) => (206, n.to_string()),
                None => (200, "the whole".to_owned()),
            };
            let response =
                if status == 206 { response.header("content-range", "bytes 0-0/10000000000") } else { response };
            Ok(response.status(status).body(text(&body)).unwrap())
        });
        let cache = moving(layer().policy(CachePolicy::rfc9111())).layer(origin.clone());
        let part = || request(Method::GET, "/", &[("range", "bytes=0-0")]);
        assert_eq!(send(&cache, part()).await.text(), "1");
        assert!(send(&cache, part()).await.is_hit());
        pass(seconds(11)).await;
        let answer = send(&cache, part()).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (206, if window.contains("while") { "1" } else { "2" }));
        settle().await;
        let answer = send(&cache, part()).await;
        assert!(answer.is_hit() && answer.text() == "2" && origin.calls() == 2, "{window}: {answer:?}");
    }
}
