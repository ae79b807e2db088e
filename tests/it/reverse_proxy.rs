//! The reverse proxy's contract: the real process between a client and an origin that are scripted on the wire.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::eventually;
use crate::support::example::{Answer, Example, run_to_end};
use crate::support::origin::{Act, Origin, Seen, ok};

fn proxy(origin: &Origin) -> Example {
    Example::start("reverse_proxy", &[("UPSTREAM", &origin.url())])
}

/// An origin that says this to every request.
async fn saying(response: Vec<u8>) -> Origin {
    Origin::start(move |_| Act::Say(response.clone())).await
}

/// What comes back for these bytes until the proxy closes, in Latin-1.
async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await.expect("an end").unwrap();
    bytes.into_iter().map(char::from).collect()
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").starts_with("tower-scale; hit")
}

#[test]
fn unusable_settings_are_named() {
    let unset = run_to_end("reverse_proxy", &[]);
    let text = String::from_utf8_lossy(&unset.stderr);
    assert_eq!(unset.status.code(), Some(2), "{text}");
    assert!(text.contains("UPSTREAM is not set; expected"), "{text}");
    for (name, value) in [
        ("UPSTREAM", "nonsense"),
        ("UPSTREAM", "localhost:80"),
        ("UPSTREAM", "https://localhost"),
        ("UPSTREAM", "http://localhost/path"),
        ("UPSTREAM", "http://localhost?query"),
        ("UPSTREAM", "http://localhost:99999"),
        ("UPSTREAM", "http://"),
        ("UPSTREAM_TIMEOUT", "0"),
        ("UPSTREAM_TIMEOUT", "soon"),
        ("POLICY", "rfc2616"),
        ("ADDR", "nonsense"),
        ("RUST_LOG", "a=b=c"),
    ] {
        let output = run_to_end("reverse_proxy", &[("UPSTREAM", "http://127.0.0.1:1"), (name, value)]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {text}");
        assert!(text.contains(name) && text.contains(value) && text.contains("expected"), "{text}");
    }
    let secret = run_to_end("reverse_proxy", &[("UPSTREAM", "http://user:hunter2@localhost")]);
    let text = String::from_utf8_lossy(&secret.stderr);
    assert_eq!(secret.status.code(), Some(2), "{text}");
    assert!(!text.contains("hunter2") && text.contains("localhost"), "{text}");
}

#[tokio::test]
async fn first_a_miss_then_a_hit() {
    let origin = saying(ok("cache-control: max-age=60\r\n", "hello")).await;
    let proxy = proxy(&origin);
    let miss = proxy.get("/a?b=c").await;
    assert_eq!((miss.status, &*miss.body), (StatusCode::OK, "hello"));
    assert!(miss.header("cache-status").contains("fwd=uri-miss"), "{}", miss.header("cache-status"));
    let hit = proxy.get("/a?b=c").await;
    assert!(is_hit(&hit), "{}", hit.header("cache-status"));
    assert_eq!((hit.header("age"), &*hit.body), ("0", "hello"));
    assert_eq!(origin.seen().len(), 1);
    assert_eq!(origin.last().line(), "GET /a?b=c HTTP/1.1");
}

#[tokio::test]
async fn twenty_at_once_are_one_request() {
    let origin =
        Origin::start(|_| Act::SayAfter(Duration::from_millis(300), ok("cache-control: max-age=60\r\n", "hello")))
            .await;
    let proxy = proxy(&origin);
    let answers = join_all((0..20).map(|_| proxy.get("/"))).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK && answer.body == "hello"));
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn what_went_to_a_dying_connection_goes_once_more() {
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        let origin = ending_at_the_second().await;
        let proxy = proxy(&origin);
        eventually("a connection is used again", async || {
            let answer = proxy.send(method, "/", &[], "").await.expect("an answer");
            assert_eq!(answer.status, StatusCode::NO_CONTENT, "{method}");
            origin.seen().iter().any(|seen| seen.turn == 1)
        })
        .await;
        let seen = origin.seen();
        let [.., first, again] = &*seen else { panic!("{seen:?}") };
        assert_eq!((first.turn, again.turn), (1, 0));
        assert_ne!(first.connection, again.connection);
        assert_eq!(first.text, again.text);
    }
}

/// The second request of every connection meets its end.
async fn ending_at_the_second() -> Origin {
    Origin::start(|seen| match seen.turn {
        0 => Act::Say(b"HTTP/1.1 204 No Content\r\ncache-control: no-store\r\n\r\n".to_vec()),
        _ => Act::Last(Vec::new()),
    })
    .await
}

#[tokio::test]
async fn what_may_have_been_done_is_not_repeated() {
    for (method, body) in [("POST", "x"), ("POST", ""), ("PUT", "x"), ("M-SEARCH", ""), ("GET", "x")] {
        let origin = ending_at_the_second().await;
        let proxy = proxy(&origin);
        eventually("a connection is used again", async || {
            let answer = proxy.send(method, "/", &[], body).await.expect("an answer");
            let ended = origin.last().turn == 1;
            let status = if ended { StatusCode::BAD_GATEWAY } else { StatusCode::NO_CONTENT };
            assert_eq!(answer.status, status, "{method}");
            ended
        })
        .await;
    }
}

#[tokio::test]
async fn an_end_that_is_the_answer_is_not_repeated() {
    // A new connection that ends is no accident, nor is an answer that breaks.
    let origin = Origin::start(|seen| match (seen.turn, seen.line().contains("/new")) {
        (0, false) => Act::Say(ok("cache-control: no-store\r\n", "hello")),
        (0, true) => Act::Last(Vec::new()),
        _ => Act::Last(b"HTTP/1.1 200 OK\r\nx: ".to_vec()),
    })
    .await;
    let fresh = proxy(&origin);
    assert_eq!(fresh.get("/new").await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(origin.seen().len(), 1);
    let proxy = proxy(&origin);
    eventually("a connection is used again", async || {
        let answer = proxy.get("/").await;
        let ended = origin.last().turn == 1;
        assert_eq!(answer.status, if ended { StatusCode::BAD_GATEWAY } else { StatusCode::OK });
        ended
    })
    .await;
}

#[tokio::test]
async fn an_origin_that_is_not_there_is_a_502() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Example::start("reverse_proxy", &[("UPSTREAM", &format!("http://{closed}"))]);
    for method in ["GET", "HEAD", "POST", "M-SEARCH"] {
        let answer = proxy.send(method, "/", &[], "").await.expect("an answer");
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{method}");
        assert!(!answer.header("cache-status").is_empty());
    }
    assert_eq!(proxy.get("/").await.body, "the origin cannot be reached\n");
}

#[tokio::test]
async fn an_unusable_head_is_a_502() {
    for response in [
        "",
        "HTTP/1.1",
        "nonsense\r\n\r\n",
        "HTTP/1.1 9 What\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ] {
        let origin = Origin::start(|_| Act::Last(response.into())).await;
        let answer = proxy(&origin).get("/").await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{response:?}");
    }
}

#[tokio::test]
async fn a_silent_origin_is_a_504() {
    let origin = Origin::start(|_| Act::Silence).await;
    let proxy = Example::start("reverse_proxy", &[("UPSTREAM", &origin.url()), ("UPSTREAM_TIMEOUT", "1")]);
    for (method, body) in [("GET", ""), ("POST", "x")] {
        let answer = proxy.send(method, "/", &[], body).await.expect("an answer");
        assert_eq!((answer.status, &*answer.body), (StatusCode::GATEWAY_TIMEOUT, "the origin does not answer\n"));
        assert!(answer.took >= Duration::from_millis(900), "{:?}", answer.took);
    }
}

#[tokio::test]
async fn an_upload_that_moves_is_no_silence() {
    let origin = saying(ok("", "thanks")).await;
    let proxy = Example::start("reverse_proxy", &[("UPSTREAM", &origin.url()), ("UPSTREAM_TIMEOUT", "1")]);
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = "POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        stream.write_all(b"3\r\nabc\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("thanks"), "{answer}");
    let seen = origin.last();
    assert_eq!(seen.field("transfer-encoding").as_deref(), Some("chunked"));
    assert_eq!(seen.text.matches("abc").count(), 5);
}

#[tokio::test]
async fn a_body_that_breaks_is_never_whole() {
    for response in [
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n",
    ] {
        let origin = Origin::start(|_| Act::Last(response.into())).await;
        let proxy = proxy(&origin);
        for requests in 1..3 {
            let broken = proxy.try_get("/", &[]).await;
            assert!(broken.is_err(), "{response:?}: {broken:?}");
            assert!(origin.seen().len() >= requests, "it was stored");
        }
        let text = raw(proxy.address, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(!text.ends_with("0\r\n\r\n"), "{text}");
    }
}

#[tokio::test]
async fn fields_of_one_connection_end_there() {
    let origin = saying(ok(
        "connection: x-listed, keep-alive\r\nx-listed: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: x\r\n\
         upgrade: h2c\r\nx-kept: 1\r\ncache-control: max-age=60\r\n",
        "hello",
    ))
    .await;
    let proxy = proxy(&origin);
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close, X-Listed, host\r\nx-listed: 1\r\n\
        keep-alive: 5\r\nproxy-connection: x\r\nte: gzip, trailers;q=0.5\r\nupgrade: websocket\r\nx-kept: 1\r\n\r\n";
    for _ in 0..2 {
        let answer = raw(proxy.address, request).await.to_ascii_lowercase();
        for gone in ["x-listed", "keep-alive", "proxy-connection", "upgrade"] {
            assert!(!answer.contains(gone), "{gone} in {answer}");
        }
        assert!(answer.contains("x-kept: 1") && answer.ends_with("hello"), "{answer}");
    }
    assert_eq!(origin.seen().len(), 1, "an upgrade that is not passed on bypasses no cache");
    let seen = origin.last();
    for gone in ["x-listed", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(seen.field(gone), None, "{gone} in {}", seen.text);
    }
    assert_eq!(seen.field("te").as_deref(), Some("trailers"));
    assert_eq!(seen.field("connection").as_deref(), Some("te"));
    assert_eq!(seen.field("x-kept").as_deref(), Some("1"));
    assert_eq!(seen.field("host").as_deref(), Some("a"), "nobody lists it away");
}

/// Else the answer for nobody's language would be stored as the one for this client's.
#[tokio::test]
async fn a_field_that_is_listed_away_is_no_variant() {
    let origin = Origin::start(|seen| {
        let language = seen.field("accept-language").unwrap_or("none".into());
        Act::Say(ok("vary: accept-language\r\ncache-control: max-age=60\r\n", &language))
    })
    .await;
    let proxy = proxy(&origin);
    let head = "GET / HTTP/1.1\r\nhost: a\r\naccept-language: fr\r\nconnection: close";
    let listed = raw(proxy.address, format!("{head}, accept-language\r\n\r\n").as_bytes()).await;
    assert!(listed.ends_with("none"), "{listed}");
    let plain = raw(proxy.address, format!("{head}\r\n\r\n").as_bytes()).await;
    assert!(plain.ends_with("fr"), "{plain}");
}

#[tokio::test]
async fn who_asks_is_said_by_the_proxy_alone() {
    let origin = saying(ok("", "hello")).await;
    let claims: &[(&str, &[u8])] = &[
        ("forwarded", b"for=1.2.3.4"),
        ("x-forwarded-for", b"1.2.3.4"),
        ("x-forwarded-host", b"evil.example"),
        ("x-forwarded-proto", b"https"),
        ("x-forwarded-prefix", b"/evil"),
        ("x-real-ip", b"1.2.3.4"),
        ("via", b"1.1 other"),
    ];
    let proxy = proxy(&origin);
    proxy.send("POST", "/", claims, "x").await.expect("an answer");
    let seen = origin.last();
    assert_eq!(seen.field("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(seen.field("via").as_deref(), Some("1.1 other|1.1 tower-scale"));
    assert_eq!(seen.field("host"), Some(proxy.address.to_string()));
    for gone in ["forwarded", "x-forwarded-host", "x-forwarded-prefix", "x-real-ip"] {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
    proxy.try_get("/", claims).await.expect("an answer");
    assert_eq!(origin.last().field("x-forwarded-proto").as_deref(), Some("http"), "also where the cache stores");
    assert!(!origin.last().text.contains("evil") && !origin.last().text.contains("1.2.3.4"), "{}", origin.last().text);
}

#[tokio::test]
async fn each_name_is_a_site_and_a_request_has_one() {
    let origin =
        Origin::start(|seen| Act::Say(ok("cache-control: max-age=60\r\n", &seen.field("host").unwrap_or_default())))
            .await;
    let proxy = proxy(&origin);
    for host in ["a.example", "b.example:8080", "a.example"] {
        let answer = proxy.try_get("/", &[("host", host.as_bytes())]).await.expect("an answer");
        assert_eq!(answer.body, host);
    }
    assert_eq!(origin.seen().len(), 2);
    for (request, status, says) in [
        ("GET http://user@b/x HTTP/1.1\r\nhost: a", 200, "b"),
        ("GET http://b/y HTTP/1.1\r\nhost: b", 200, "b"),
        ("OPTIONS * HTTP/1.1\r\nhost: a", 200, "a"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b", 400, "exactly one Host is needed\n"),
        ("GET / HTTP/1.1", 400, "exactly one Host is needed\n"),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a:80", 501, "this proxy opens no tunnels\n"),
        ("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked", 501, "the only transfer coding is chunked\n"),
    ] {
        let text = raw(proxy.address, format!("{request}\r\nconnection: close\r\n\r\n").as_bytes()).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")) && text.ends_with(says), "{request}: {text}");
    }
    assert!(origin.seen().iter().any(|seen| seen.line() == "OPTIONS * HTTP/1.1"));
    let old = raw(proxy.address, b"GET /old HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 ") && old.ends_with(&origin.address.to_string()), "{old}");
}

#[tokio::test]
async fn methods_statuses_and_odd_bytes_pass() {
    let origin = Origin::start(|seen| {
        let status = seen.line().rsplit('/').nth(1).and_then(|tail| tail.split(' ').next()).unwrap_or_default();
        let content = if seen.line().starts_with("HEAD") { "" } else { "hello" };
        let mut response = format!("HTTP/1.1 {status} Odd\r\ncontent-length: 5\r\nx-twice: 1\r\nX-Twice: 2\r\nx-odd: ");
        response.push_str("\r\n\r\n");
        let mut response = response.into_bytes();
        let end = response.len() - 4;
        response.splice(end..end, *b"\xe9\xff\x80");
        response.extend(content.bytes());
        Act::Say(response)
    })
    .await;
    let proxy = proxy(&origin);
    let odd: &[(&str, &[u8])] = &[("x-odd", b"caf\xe9\xff")];
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "M-SEARCH", "X"] {
        for status in [200, 201, 206, 299, 301, 404, 418, 499, 500, 503, 599, 600, 999] {
            let answer = proxy.send(method, &format!("/{status}"), odd, "").await.expect("an answer");
            assert_eq!(answer.status.as_u16(), status, "{method}");
            assert_eq!(answer.body, if method == "HEAD" { "" } else { "hello" }, "{method} {status}");
            assert_eq!(answer.header("content-length"), "5", "{method} {status}");
            assert_eq!(answer.headers["x-odd"].as_bytes(), b"\xe9\xff\x80");
            assert_eq!(answer.headers.get_all("x-twice").iter().count(), 2);
            let seen = origin.last();
            assert_eq!(seen.line(), format!("{method} /{status} HTTP/1.1"));
            assert_eq!(seen.field("x-odd").as_deref(), Some("caf\u{e9}\u{ff}"));
        }
    }
}

#[tokio::test]
async fn bodies_of_every_framing_pass() {
    for (response, content) in [
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\n, w\r\n0\r\n\r\n", "hello, w"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
        ("HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n", ""),
        ("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok"),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", "until the end"),
    ] {
        let origin = Origin::start(|_| match response.starts_with("HTTP/1.0") {
            true => Act::Last(response.into()),
            false => Act::Say(response.into()),
        })
        .await;
        let proxy = proxy(&origin);
        for (method, body) in [("GET", ""), ("POST", ""), ("POST", "content")] {
            let answer = proxy.send(method, "/", &[], body).await.expect("an answer");
            assert_eq!(answer.body, content, "{response:?}");
            assert!(!answer.headers.contains_key("link"));
            let seen = origin.last();
            assert!(seen.text.ends_with(&format!("\r\n\r\n{body}")), "{}", seen.text);
        }
    }
}

/// Two framings: the origin gets the one that the proxy went by.
#[tokio::test]
async fn a_request_is_framed_anew() {
    let origin = saying(ok("cache-control: max-age=60\r\n", "thanks")).await;
    let proxy = proxy(&origin);
    for (method, framing) in [
        ("POST", "content-length: 3\r\ntransfer-encoding: chunked"),
        ("POST", "transfer-encoding: chunked\r\ncontent-length: 3"),
        ("POST", "transfer-encoding: chunked\r\nconnection: transfer-encoding, content-length"),
        ("GET", "transfer-encoding: chunked"),
        ("GET", "transfer-encoding: chunked\r\nconnection: transfer-encoding"),
    ] {
        let head = format!("{method} / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{framing}\r\n\r\n");
        let before = origin.seen().len();
        let answer = raw(proxy.address, format!("{head}5\r\nhello\r\n0\r\n\r\n").as_bytes()).await;
        if answer.starts_with("HTTP/1.1 400 ") {
            continue;
        }
        assert!(answer.ends_with("thanks"), "{framing}: {answer}");
        assert_eq!(origin.seen().len(), before + 1, "a request with content is no other's");
        let seen = origin.last();
        assert_eq!((seen.field("transfer-encoding"), seen.field("content-length")), (Some("chunked".into()), None));
        assert!(seen.text.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{}", seen.text);
    }
}

#[tokio::test]
async fn a_promise_to_send_is_kept_without_the_origin() {
    let origin = saying(ok("", "thanks")).await;
    let proxy = proxy(&origin);
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 25];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(origin.last().field("expect"), None);
}

#[tokio::test]
async fn an_expired_response_stands_in_for_a_dead_origin() {
    for death in ["gone", "closes", "500"] {
        let dead = Arc::new(AtomicBool::new(false));
        let dying = dead.clone();
        let origin = Origin::start(move |_: &Seen| match (dying.load(Ordering::Relaxed), death) {
            (false, _) => Act::Say(ok("cache-control: max-age=1\r\n", "hello")),
            (true, "500") => Act::Say(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_vec()),
            _ => Act::Last(Vec::new()),
        })
        .await;
        let proxy = proxy(&origin);
        assert_eq!(proxy.get("/").await.body, "hello");
        dead.store(true, Ordering::Relaxed);
        let kept = (death != "gone").then_some(origin);
        eventually("it expires", async || {
            let answer = proxy.get("/").await;
            assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "hello"), "{death}");
            !is_hit(&answer)
        })
        .await;
        drop(kept);
    }
}

#[tokio::test]
async fn the_policy_is_chosen_by_name() {
    for (policy, requests) in [("safe", 2), ("rfc9111", 1)] {
        let origin = saying(ok("cache-control: max-age=60\r\nset-cookie: a=b\r\n", "hello")).await;
        let proxy = Example::start("reverse_proxy", &[("UPSTREAM", &origin.url()), ("POLICY", policy)]);
        for _ in 0..2 {
            assert_eq!(proxy.get("/").await.header("set-cookie"), "a=b");
        }
        assert_eq!(origin.seen().len(), requests, "{policy}");
    }
}

#[tokio::test]
async fn http_2_is_spoken_too() {
    let origin = saying(ok("cache-control: max-age=60\r\n", "hello")).await;
    let proxy = proxy(&origin);
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    for hit in [false, true] {
        let uri = format!("http://{}/two", proxy.address);
        let response = client.request(Request::get(uri).body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!((response.status(), response.version()), (StatusCode::OK, http::Version::HTTP_2));
        assert_eq!(response.headers()["cache-status"].to_str().unwrap().contains("hit"), hit);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    let seen = origin.last();
    assert_eq!(seen.line(), "GET /two HTTP/1.1");
    assert_eq!(seen.field("host"), Some(proxy.address.to_string()));
    assert_eq!(seen.field("via").as_deref(), Some("2 tower-scale"));
    assert!(is_hit(&proxy.get("/two").await), "both versions share an entry");
}

#[tokio::test]
async fn a_terminated_proxy_answers_what_it_has() {
    let origin = Origin::start(|_| Act::SayAfter(Duration::from_millis(700), ok("", "hello"))).await;
    let mut proxy = proxy(&origin);
    let slow = proxy.get("/slow");
    let drain = async {
        eventually("it is under way", async || !origin.seen().is_empty()).await;
        proxy.terminate();
        eventually("nobody new", async || TcpStream::connect(proxy.address).await.is_err()).await;
    };
    let (slow, ()) = tokio::join!(slow, drain);
    assert_eq!((slow.status, &*slow.body), (StatusCode::OK, "hello"));
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        status = proxy.exited();
        tokio::task::yield_now().await;
    }
    assert_eq!(status.expect("it ends by itself").code(), Some(0));
}
