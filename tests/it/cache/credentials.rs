//! Requests with credentials (RFC 9111 §3.5): who may have what they bring, and what they may have, also where the
//! permission comes or goes between two responses.

use super::time::{moving, pass, seconds};
use super::*;

const NAMES: [&[(&str, &str)]; 3] =
    [&[("authorization", "alice")], &[("cookie", "alice")], &[("authorization", "alice"), ("cookie", "alice")]];

/// Answers call by call with these fields of `Cache-Control`, the last one for all that follow.
fn flipping(controls: &'static [&'static str]) -> Origin {
    Origin::answering(move |n, _| {
        let control = controls.get(n - 1).or(controls.last()).unwrap();
        Response::builder().header("cache-control", *control).header("etag", "\"1\"")
    })
}

fn with<'a>(fields: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [fields, more].concat()
}

#[tokio::test]
async fn nothing_a_user_brings_reaches_another_in_any_form() {
    for own in NAMES {
        for (method, more) in [
            (Method::GET, &[] as &[(&str, &str)]),
            (Method::HEAD, &[]),
            (Method::GET, &[("range", "bytes=0-0")]),
            (Method::GET, &[("range", "bytes=0-0"), ("if-range", "\"1\"")]),
            (Method::GET, &[("if-none-match", "\"2\"")]),
            (Method::GET, &[("cache-control", "only-if-cached")]),
        ] {
            // The layer's own lifetime is no permission either.
            for control in ["max-age=60", "no-cache", "private, max-age=60", ""] {
                let origin = flipping(match control {
                    "max-age=60" => &["max-age=60"],
                    "no-cache" => &["no-cache"],
                    "" => &[""],
                    _ => &["private, max-age=60"],
                });
                let layer = layer().ttl(seconds(60)).stale_while_revalidate(seconds(60)).stale_if_error(seconds(60));
                let cache = layer.layer(origin.clone());
                send(&cache, request(method.clone(), "/", &with(own, more))).await;
                settle().await;
                let calls = origin.calls();
                for other in [&[] as &[(&str, &str)], &[("authorization", "bob")], &[("cookie", "bob")]] {
                    for more in [&[] as &[_], &[("range", "bytes=0-0")], &[("if-none-match", "\"1\"")]] {
                        let answer = send(&cache, request(Method::GET, "/", &with(other, more))).await;
                        let what = format!("{own:?} {method} {control}, then {other:?} {more:?}: {answer:?}");
                        assert!(!answer.body.is_ok_and(|body| body == "1"), "{what}");
                    }
                }
                assert!(origin.calls() > calls);
            }
        }
    }
}

#[tokio::test]
async fn what_is_stored_for_all_answers_users_only_with_permission_in_every_form() {
    for (control, permitted) in [("max-age=60", false), ("public, max-age=60", true)] {
        let origin =
            Origin::answering(move |_, _| Response::builder().header("cache-control", control).header("etag", "\"1\""));
        let cache = origin.cached();
        send(&cache, get("/")).await;
        for own in NAMES {
            for (method, more, status) in [
                (Method::GET, &[] as &[(&str, &str)], 200),
                (Method::HEAD, &[], 200),
                (Method::GET, &[("range", "bytes=0-0")], 206),
                (Method::GET, &[("if-none-match", "\"1\"")], 304),
            ] {
                let calls = origin.calls();
                let answer = send(&cache, request(method.clone(), "/", &with(own, more))).await;
                assert_eq!(answer.is_hit(), permitted, "{control} {own:?} {method} {more:?}");
                assert_eq!(origin.calls() - calls, usize::from(!permitted), "{control} {own:?} {method} {more:?}");
                if permitted {
                    assert_eq!(answer.status, status);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn permission_ends_with_the_response_that_gave_it() {
    for own in NAMES {
        let origin = flipping(&["public, max-age=10", "private, max-age=10"]);
        let cache = moving(layer()).layer(origin.clone());
        let alice = || request(Method::GET, "/", own);
        assert_eq!(send(&cache, alice()).await.text(), "1");
        assert!(send(&cache, alice()).await.is_hit());
        pass(seconds(11)).await;
        assert_eq!(send(&cache, alice()).await.text(), "2", "{own:?}");
        assert_eq!(send(&cache, get("/")).await.text(), "3", "{own:?}");
        assert_eq!(send(&cache, alice()).await.text(), "4", "{own:?}");
    }
}

/// Ten users wait for what was public until now: none gets what another was told, and none is refused for it.
#[tokio::test]
async fn permission_that_ends_while_others_wait() {
    for control in ["private", "no-store", "max-age=60", "private, max-age=60"] {
        let gate = Arc::new(Semaphore::new(1));
        let waiting = gate.clone();
        let origin = Origin::new(move |n, request| {
            let gate = waiting.clone();
            let control = if n == 1 { "public, max-age=60" } else { control };
            let user = request.headers().get("cookie").map_or("", |user| user.to_str().unwrap()).to_owned();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(Response::builder().header("cache-control", control).body(text(&user)).unwrap())
            }
        });
        let layer = layer();
        let (handle, cache) = (layer.handle(), layer.layer(origin));
        send(&cache, request(Method::GET, "/", &[("cookie", "first")])).await;
        handle.purge(&tower_scale::cache::Purge::everything());
        let users: Vec<_> = (0..10).map(|n| format!("user{n}")).collect();
        let clients: Vec<_> =
            users.iter().map(|user| spawn(&cache, request(Method::GET, "/", &[("cookie", user)]))).collect();
        settle().await;
        gate.add_permits(100);
        for (client, user) in join_all(clients).await.into_iter().zip(&users) {
            let answer = client.unwrap().unwrap();
            assert_eq!((answer.status.as_u16(), answer.text()), (200, &**user), "{control}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_304_gives_and_takes_permission() {
    for (first, second, after) in
        [("max-age=10", "public, max-age=10", true), ("public, max-age=10", "max-age=10", false)]
    {
        let origin = Origin::answering(move |n, request| {
            let control = if n == 1 { first } else { second };
            let validated = request.headers().get("if-none-match").is_some_and(|tag| tag == "\"1\"");
            let status = if validated { 304 } else { 200 };
            Response::builder().status(status).header("cache-control", control).header("etag", "\"1\"")
        });
        for own in NAMES {
            let cache = moving(layer()).layer(origin.clone());
            origin.calls.store(0, Ordering::SeqCst);
            let alice = || request(Method::GET, "/", own);
            send(&cache, get("/")).await;
            pass(seconds(11)).await;
            // A stranger's validation.
            assert_eq!(send(&cache, get("/")).await.text(), "1");
            assert_eq!(origin.calls(), 2);
            assert_eq!(send(&cache, alice()).await.is_hit(), after, "{first} {second} {own:?}");
        }
    }
}

/// Alice validates what is stored for all; the 304 says that it is hers alone from now on.
#[tokio::test(start_paused = true)]
async fn a_304_for_one_user_that_takes_permission_leaves_nothing_for_others() {
    for control in ["private, max-age=10", "no-store", "max-age=10"] {
        let origin = Origin::answering(move |n, request| {
            let validated = request.headers().contains_key("if-none-match");
            let response = Response::builder().header("etag", "\"1\"");
            let response = if validated { response.status(304).header("x-user", "alice") } else { response };
            response.header("cache-control", if n == 1 { "public, max-age=10" } else { control })
        });
        let cache = moving(layer()).layer(origin.clone());
        send(&cache, get("/")).await;
        pass(seconds(11)).await;
        let alice = send(&cache, request(Method::GET, "/", &[("authorization", "alice")])).await;
        assert_eq!((alice.text(), alice.status.as_u16()), ("1", 200));
        let next = send(&cache, get("/")).await;
        assert!(!next.is_hit() && !next.headers.contains_key("x-user"), "{control}: {next:?}");
        assert_eq!(next.text(), "3");
    }
}

/// Stale copies are for the same requests as fresh ones.
#[tokio::test(start_paused = true)]
async fn stale_needs_the_same_permission() {
    for (control, permitted) in [("max-age=10", false), ("public, max-age=10", true)] {
        for own in NAMES {
            let origin = Origin::answering(move |n, request| {
                let status = if n > 1 && request.uri() == "/error" { 503 } else { 200 };
                let response = Response::builder().status(status);
                if status == 503 { response } else { response.header("cache-control", control) }
            });
            let layer = moving(layer()).stale_while_revalidate(seconds(30)).stale_if_error(seconds(60));
            let cache = layer.layer(origin.clone());
            send(&cache, get("/")).await;
            origin.calls.store(0, Ordering::SeqCst);
            send(&cache, get("/error")).await;
            pass(seconds(11)).await;
            let revalidated = send(&cache, request(Method::GET, "/", own)).await;
            assert_eq!(revalidated.is_hit(), permitted, "{control} {own:?}");
            pass(seconds(30)).await;
            let rescued = send(&cache, request(Method::GET, "/error", own)).await;
            assert_eq!(rescued.status == 200, permitted, "{control} {own:?}: {rescued:?}");
        }
    }
}

/// The refresh runs with the credentials of who asked: its private answer is nobody else's, and is asked for at most
/// once a second.
#[tokio::test(start_paused = true)]
async fn a_refresh_with_credentials_stores_nothing_private() {
    for control in ["private, max-age=60", "max-age=60", "no-store"] {
        let origin = Origin::answering(move |n, request| {
            let user = request.headers().get("cookie").map_or("nobody", |user| user.to_str().unwrap());
            let control = if n == 1 { "public, max-age=10, stale-while-revalidate=60" } else { control };
            Response::builder().header("cache-control", control).header("x-user", user)
        });
        let cache = moving(layer()).layer(origin.clone());
        send(&cache, get("/")).await;
        pass(seconds(11)).await;
        for n in 0..20 {
            let user = format!("user{n}");
            let answer = send(&cache, request(Method::GET, "/", &[("cookie", &user)])).await;
            assert_eq!((answer.text(), &answer.headers["x-user"]), ("1", &"nobody".parse().unwrap()), "{control}");
            settle().await;
        }
        assert_eq!(origin.calls(), 2, "{control}");
        let answer = send(&cache, get("/")).await;
        assert!(answer.headers["x-user"] == "nobody", "{control}: {answer:?}");
    }
}

/// Also where permission was given longer ago than the cache remembers it: what is stored says it still.
#[tokio::test(start_paused = true)]
async fn a_failed_fetch_for_users_counts_for_all_who_wait() {
    for (control, age, calls, status) in [
        ("public, max-age=10", 11, 4, 502),
        ("public, max-age=7200", 7201, 4, 502),
        ("public, max-age=10, stale-if-error=60", 11, 2, 200),
        ("public, max-age=7200, stale-if-error=60", 7201, 2, 200),
    ] {
        let origin = Origin::new(move |n, _| async move {
            if n > 1 {
                tokio::time::sleep(seconds(1)).await;
            }
            let response = Response::builder().status(if n == 1 { 200 } else { 503 });
            let response = if n == 1 { response.header("cache-control", control) } else { response };
            Ok(response.header("etag", "\"1\"").body(text(&n.to_string())).unwrap())
        });
        let cache = moving(layer()).layer(origin.clone());
        send(&cache, get("/")).await;
        pass(seconds(age)).await;
        let clients: Vec<_> =
            (0..10).map(|_| spawn(&cache, request(Method::GET, "/", &[("cookie", "alice")]))).collect();
        let answers = join_all(clients).await;
        let last = answers.into_iter().last().unwrap().unwrap().unwrap();
        assert_eq!((origin.calls(), last.status.as_u16()), (calls, status), "{control}");
    }
}
