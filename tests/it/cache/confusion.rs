//! Requests made to confuse: paths that a router and a cache read differently (web cache deception), pages provoked by
//! one client's odd request (cache poisoned denial of service), redirects, and `Vary`.

use tower_scale::cache::CachePolicy;
use tower_scale::client_ip::Origin as Place;

use super::time::{moving, pass, seconds};
use super::*;

/// Gil, "Web Cache Deception" (2017); Kettle, "Gotta Cache 'Em All" (2024): the router takes each of these for
/// `/account`, and no look of it makes the cache store what is not marked for all.
#[tokio::test]
async fn no_suffix_makes_an_account_static() {
    let paths = [
        "/account/x.css",
        "/account;x.css",
        "/account%00.css",
        "/account%0a.css",
        "/account%0A.js",
        "/account%23.png",
        "/account%3f.png",
        "/account%2fx.css",
        "/account%5cx.css",
        "/account//x.css",
        "//account",
        "/account?x.css",
        "/static/..%2faccount",
        "/static/%2e%2e/account",
        "/static/../account",
        "/./account",
        "/account.css",
        "/account$x.css",
        "/robots.txt/../account",
        "/account/%2e%2e%2frobots.txt",
        "/ACCOUNT/X.CSS",
        "/%61ccount",
    ];
    for who in [("authorization", "alice"), ("cookie", "session=alice")] {
        for rfc in [false, true] {
            let policy = if rfc { CachePolicy::rfc9111() } else { CachePolicy::safe() };
            if rfc && who.0 == "cookie" {
                continue;
            }
            let origin =
                Origin::with(&[("content-type", "text/css"), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
            let cache = layer().policy(policy).ttl(seconds(60)).layer(origin.clone());
            for (n, path) in paths.iter().enumerate() {
                send(&cache, request(Method::GET, path, &[who])).await;
                let other = send(&cache, get(path)).await;
                assert_eq!(other.text(), (2 * n + 2).to_string(), "{path} {who:?}: {}", other.cache_status());
            }
        }
    }
}

/// What is stored under one spelling answers none of the others, and each spelling of a host but case and default port
/// is another.
#[tokio::test]
async fn no_spelling_stands_for_another() {
    let origin = Origin::new(|_, request| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        Ok(fresh().body(text(&format!("{host}{}", request.uri()))).unwrap())
    });
    let cache = origin.cached();
    let paths = [
        "/a", "/A", "/a/", "//a", "/./a", "/x/../a", "/%61", "/a%0a", "/a%0A", "/a;", "/a?", "/a%3F", "/a%2f", "/a%2F",
    ];
    let hosts = ["h", "h.", "h:8080", "x.h"];
    for hit in [false, true] {
        for host in hosts {
            for path in paths {
                let answer = send(&cache, request(Method::GET, path, &[("host", host)])).await;
                assert_eq!((answer.text(), answer.is_hit()), (&*format!("{host}{path}"), hit));
            }
        }
    }
    let same = send(&cache, request(Method::GET, "/a", &[("host", "H:80")])).await;
    assert_eq!((same.text(), same.is_hit()), ("h/a", true));
}

/// A key of joined parts can be made to look like another ("cache-key injection").
#[tokio::test]
async fn nothing_in_a_request_passes_for_a_part_of_the_key() {
    let origin = Origin::answering(|_, _| fresh().header("vary", "x-a"));
    let cache = layer().key_header("x-k".parse().unwrap()).layer(origin.clone());
    let requests: [(&str, &[(&str, &str)]); 10] = [
        ("/a", &[("host", "h")]),
        ("/a", &[("host", "h"), ("x-k", "")]),
        ("/a", &[("host", "h"), ("x-k", "1")]),
        ("/a", &[("host", "h"), ("x-a", "1")]),
        ("/a", &[("host", "h"), ("x-k", "1"), ("x-a", "1")]),
        ("/a?x-k=1", &[("host", "h")]),
        ("/a?x-a=1", &[("host", "h")]),
        ("/a", &[("host", "h"), ("x-k", "1x-a=1")]),
        ("/a", &[("host", "h"), ("x-k", "=1")]),
        ("/a$x-k=1", &[("host", "h")]),
    ];
    for hit in [false, true] {
        for (n, (path, fields)) in requests.iter().enumerate() {
            let answer = send(&cache, request(Method::GET, path, fields)).await;
            assert_eq!((answer.text(), answer.is_hit()), (&*(n + 1).to_string(), hit), "{path} {fields:?}");
        }
    }
}

/// "Fat" GET: content that the handler reads and the key does not hold.
#[tokio::test]
async fn content_of_a_get_selects_nothing_for_others() {
    let origin = Origin::new(|_, request| async move {
        let content = request.into_body().collect().await.unwrap().to_bytes();
        Ok(fresh().body(Body::from(content)).unwrap())
    });
    let cache = origin.cached();
    for (name, value) in [("content-length", "6"), ("transfer-encoding", "chunked")] {
        let mut fat =
            request(Method::GET, "/", &[(name, value), ("content-type", "application/x-www-form-urlencoded")]);
        *fat.body_mut() = Full::new(Bytes::from_static(b"poison")).boxed_unsync();
        assert_eq!(send(&cache, fat).await.text(), "poison");
        assert_eq!(send(&cache, get("/")).await.text(), "");
    }
}

/// Nguyen, Lo Iacono, Federrath, "Your Cache Has Fallen" (2019): an odd request of one client provokes an error that all
/// others then get. Statuses that answer one request are stored by nobody's silence, with a default lifetime or without.
#[tokio::test]
async fn no_error_is_stored_by_default() {
    for default in [false, true] {
        for code in (400..=431).chain([451, 499]).chain(500..=511) {
            let origin = Origin::answering(move |_, request| {
                let odd = request.headers().keys().any(|name| name.as_str().starts_with("x-"));
                Response::builder().status(if odd { code } else { 200 })
            });
            let layer = if default { layer().ttl(seconds(60)) } else { layer() };
            let cache = layer.layer(origin.clone());
            // Too large a field, a field with a meta character, another method: what of it reaches the handler.
            for odd in [("x-oversized", &*"x".repeat(20 << 10)), ("x-meta", "a\tb"), ("x-http-method", "POST")] {
                send(&cache, request(Method::GET, "/", &[odd])).await;
                settle().await;
            }
            assert_eq!(send(&cache, get("/")).await.status, 200, "{code}");
        }
    }
}

/// The method override never reaches a handler whose response others may get. An error that a handler marks for all is
/// for all, unless it may answer one client's credentials, rate, connection or odd request.
#[tokio::test]
async fn errors_that_state_a_lifetime() {
    for (code, stored) in [
        (400, false),
        (401, false),
        (403, false),
        (404, true),
        (405, true),
        (406, false),
        (407, false),
        (413, false),
        (417, false),
        (421, false),
        (425, false),
        (429, false),
        (431, false),
        (500, true),
        (501, true),
    ] {
        let origin = Origin::answering(move |_, _| fresh().status(code));
        let cache = origin.cached();
        send(&cache, get("/")).await;
        assert_eq!(send(&cache, get("/")).await.is_hit(), stored, "{code}");
    }
    let origin = Origin::answering(|_, request| {
        let overridden = ["x-http-method-override", "x-http-method", "x-method-override"];
        let odd = overridden.iter().any(|name| request.headers().contains_key(*name));
        fresh().status(if odd { 404 } else { 200 })
    });
    let cache = origin.cached();
    for name in ["x-http-method-override", "x-http-method", "x-method-override", "X_HTTP_METHOD_OVERRIDE"] {
        assert_eq!(
            send(&cache, request(Method::GET, &format!("/{name}"), &[(name, "POST")])).await.status,
            200,
            "{name}"
        );
    }
}

/// A redirect that is made of the request's host and scheme is for that host and scheme alone; one that says nothing of
/// freshness is stored only if it is permanent.
#[tokio::test]
async fn redirects_cross_neither_hosts_nor_schemes() {
    let origin = Origin::new(|_, request| async move {
        let scheme = request.headers().get("x-forwarded-proto").map_or("none", |scheme| scheme.to_str().unwrap());
        let host =
            request.headers().get("x-forwarded-host").or(request.headers().get("host")).unwrap().to_str().unwrap();
        let status: u16 = request.uri().path().trim_matches('/').parse().unwrap();
        Ok(Response::builder().status(status).header("location", format!("{scheme}://{host}/")).body(text("")).unwrap())
    });
    let cache = layer().ttl(seconds(60)).layer(origin.clone());
    for (status, stored) in [(301, true), (308, true), (302, false), (303, false), (307, false)] {
        for round in 0..2 {
            for place in ["http://a.example", "https://a.example", "http://b.example", "http://a.example:8080"] {
                let evil =
                    [("x-forwarded-host", "evil.example"), ("x-forwarded-proto", "gopher"), ("host", "a.example")];
                let mut asked = request(Method::GET, &format!("/{status}"), &evil);
                asked.extensions_mut().insert(place.parse::<Place>().unwrap());
                let answer = send(&cache, asked).await;
                assert_eq!(answer.headers["location"].to_str().unwrap(), format!("{place}/"));
                assert_eq!(answer.is_hit(), stored && round == 1, "{status} {place}");
            }
        }
    }
}

/// `Vary` in any shape: many lines, many names, long values, names that are none, and one that comes and goes.
#[tokio::test]
async fn vary_in_every_shape() {
    let many = (0..17).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(", ");
    let long = format!("x-{}", "a".repeat(60 << 10));
    let shapes: [(&[&str], bool); 12] = [
        (&["x-a"], true),
        (&["X-A, x-a", "x-A"], true),
        (&["", ",", "x-a,,"], true),
        (&["x-b", "x-a"], true),
        (&["*"], false),
        (&["x-a", "*"], false),
        (&["x-a,*"], false),
        (&["x a"], false),
        (&["x-a; x-b"], false),
        (&["\"x-a\""], false),
        (&[&many], false),
        (&[&long], false),
    ];
    for (lines, stored) in shapes {
        let sent: Vec<_> = lines.iter().map(ToString::to_string).collect();
        let origin =
            Origin::answering(move |_, _| sent.iter().fold(fresh(), |response, line| response.header("vary", line)));
        let cache = origin.cached();
        let ask = |value: &str| request(Method::GET, "/", &[("x-a", value)]);
        send(&cache, ask("1")).await;
        assert_eq!(send(&cache, ask("1")).await.is_hit(), stored, "{lines:?}");
        assert!(!send(&cache, ask("2")).await.is_hit(), "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_varies_no_more_or_by_more_is_nobody_elses() {
    let origin = Origin::answering(|n, _| {
        let response = fresh();
        match n {
            1 => response,
            2 | 3 => response.header("vary", "x-a"),
            _ => response.header("vary", "x-a, x-b"),
        }
    });
    let cache = moving(layer()).layer(origin.clone());
    let ask = |a: &str, b: &str| request(Method::GET, "/", &[("x-a", a), ("x-b", b)]);
    assert_eq!(send(&cache, ask("1", "1")).await.text(), "1");
    assert_eq!(send(&cache, ask("2", "2")).await.text(), "1", "it does not vary");
    pass(seconds(61)).await;
    assert_eq!(send(&cache, ask("1", "1")).await.text(), "2");
    assert_eq!(send(&cache, ask("1", "2")).await.text(), "2");
    assert_eq!(send(&cache, ask("2", "1")).await.text(), "3");
    pass(seconds(61)).await;
    assert_eq!(send(&cache, ask("1", "1")).await.text(), "4");
    assert_eq!(send(&cache, ask("1", "2")).await.text(), "5");
    assert_eq!(send(&cache, ask("2", "1")).await.text(), "6");
    assert_eq!(send(&cache, ask("1", "1")).await.text(), "4");
}

/// Line ends cannot stand in a field, decoded or not: nothing of a request is decoded into a response.
#[tokio::test]
async fn nothing_splits_a_response() {
    let origin = Origin::with(&[("cache-control", "max-age=60"), ("etag", "\"1\""), ("vary", "x-a")]);
    let cache = origin.cached();
    for fields in [
        &[("x-a", "1%0d%0aset-cookie:%20a=b")] as &[(&str, &str)],
        &[("range", "bytes=0-0%0d%0ax: y")],
        &[("if-none-match", "\"%0d%0a\"")],
        &[("if-range", "\"%0d%0a\""), ("range", "bytes=0-0")],
    ] {
        for _ in 0..2 {
            let answer = send(&cache, request(Method::GET, "/%0d%0aset-cookie:%20a=b?%0d%0a", fields)).await;
            for (name, value) in &answer.headers {
                let value = value.as_bytes();
                assert!(!value.iter().any(u8::is_ascii_control), "{name}: {value:?}");
                assert!(!value.windows(3).any(|part| part.eq_ignore_ascii_case(b"%0d")), "{name}: {value:?}");
            }
        }
    }
    for value in [&b"a\r\nb"[..], b"a\nb", b"a\rb", b"a\0b"] {
        assert!(http::HeaderValue::from_bytes(value).is_err());
    }
}
