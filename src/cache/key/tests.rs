use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::client_ip::Origin;

fn key(host: &str, target: &str) -> Option<Key> {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, host.parse().unwrap());
    Key::primary(&Intake::default(), &target.parse().unwrap(), &headers, &Extensions::new())
}

/// What caches have normalised to somebody's harm: path confusion and web cache deception live on it.
#[test]
fn every_byte_of_host_path_and_query_counts() {
    let targets = [
        "/p",
        "/p/",
        "/p//",
        "//p",
        "/./p",
        "/p/.",
        "/p/..",
        "/a/../p",
        "/%2e%2e/p",
        "/%2E%2E/p",
        "/..%2fp",
        "/%70",
        "/P",
        "/p.",
        "/p;",
        "/p;.css",
        "/p/.css",
        "/p.css",
        "/p%00.css",
        "/p%0a.css",
        "/p%23",
        "/p%3F",
        "/p%3f",
        "/p%2F",
        "/p\\",
        "/p?",
        "/p??",
        "/p?q",
        "/p?q=",
        "/p?Q",
        "/p?q&",
        "/p?&q",
        "/p?a&b",
        "/p?b&a",
        "/p?q;r",
        "/p?%71",
        "/p?q+r",
        "/p?q%20r",
    ];
    let hosts = ["a", "b", "ab", "a.", "a.b", "a:81", "a:443", "xn--4ca", "%61", "[::1]", "[::2]"];
    let all: Vec<_> =
        hosts.iter().flat_map(|host| targets.map(|target| (host, target, key(host, target).expect(target)))).collect();
    for (i, left) in all.iter().enumerate() {
        for right in &all[i + 1..] {
            assert_ne!(left.2, right.2, "{left:?} {right:?}");
        }
    }
}

#[test]
fn one_resource_has_one_key_however_its_url_is_written() {
    let of = |uri: &str, host: Option<&str>| {
        let headers = host.map(|host| (HOST, host.parse().unwrap())).into_iter().collect();
        Key::primary(&Intake::default(), &uri.parse().unwrap(), &headers, &Extensions::new())
    };
    let key = of("/p", Some("a")).unwrap();
    for (uri, host) in [
        ("/p", Some("A")),
        ("/p", Some("a:80")),
        ("/p", Some("a:")),
        ("/p", Some("a:0080")),
        ("/p#fragment", Some("a")),
        ("http://a/p", None),
        ("http://A:80/p", Some("a")),
        ("HTTP://a/p", None),
    ] {
        assert_eq!(of(uri, host).as_ref(), Some(&key), "{uri} {host:?}");
    }
    assert_eq!(of("http://a", None), of("/", Some("a")));
    assert_ne!(of("https://a/p", None).as_ref(), Some(&key));
    assert_ne!(of("http://a?q", None), of("/?q", Some("a")), "as they stand");
    for (uri, host) in [
        ("a:443", None),
        ("a", Some("a")),
        ("http://user@a/p", None),
        ("http://user@a/p", Some("a")),
        ("ftp://a/p", None),
        ("/p", Some("user@a")),
        ("/p", Some("a/p")),
        ("/p", Some("a?q")),
        ("/p", Some("a#")),
        ("/p", Some("a:65536")),
        ("/p", Some("a:-1")),
        ("/p", Some("")),
    ] {
        assert_eq!(of(uri, host), None, "{uri} {host:?}");
    }
}

#[test]
fn fields_in_the_key_count_and_never_pass_for_variants() {
    let mut intake = Intake::default();
    intake.key_header(http::HeaderName::from_static("x-tenant"));
    intake.key_header(http::HeaderName::from_static("accept-encoding"));
    intake.key_header(http::HeaderName::from_static("x-tenant"));
    let of = |lines: &[(&'static str, &str)]| {
        let lines = [&[("host", "a")], lines].concat();
        let headers =
            lines.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect();
        Key::primary(&intake, &"/".parse().unwrap(), &headers, &Extensions::new()).unwrap()
    };
    let keys = [
        of(&[]),
        of(&[("x-tenant", "")]),
        of(&[("x-tenant", "1")]),
        of(&[("x-tenant", "1,2")]),
        of(&[("accept-encoding", "1")]),
        of(&[("accept-encoding", "br")]),
        key("a", "/").unwrap(),
        key("a", "/").unwrap().extend(|key| key.push(b"x-tenant").and_then(|()| key.push_value(Some(b"1")))).unwrap(),
    ];
    for (i, left) in keys.iter().enumerate() {
        for (j, right) in keys.iter().enumerate() {
            assert_eq!(left == right, i == j, "{i} {j}");
        }
    }
    assert_eq!(of(&[("x-tenant", "1"), ("x-tenant", "2")]), keys[3]);
    assert_eq!(of(&[("accept-encoding", "BR;q=0.3")]), keys[5]);
}

fn text(url: KeyUrl<'_>) -> [&str; 4] {
    [url.scheme, url.host, url.target, url.original].map(|part| str::from_utf8(part).unwrap())
}

#[test]
fn a_key_tells_its_url() {
    let plain = key("A:81", "/p?q").unwrap();
    assert_eq!(text(plain.url()), ["http", "a:81", "/p?q", ""]);
    assert_eq!(plain.url().asked(), b"/p?q");
    let variant = plain.extend(|key| key.push(b"more")).unwrap();
    assert_eq!(variant.url(), plain.url());
    let long = format!("/{}", "x".repeat(2 * USUAL));
    assert_eq!(text(key("a", &long).unwrap().url()), ["http", "a", &long, ""]);
    let of = |url: &str| Key::of_url(&Intake::default(), &url.parse().unwrap(), None);
    assert_eq!(of("http://A:81/p?q"), Some(plain));
    assert_eq!(of("/p?q"), None);
}

#[cfg(feature = "axum")]
#[test]
fn urls_beside_a_nested_one_are_found_under_its_prefix() {
    let mut intake = Intake::default();
    intake.parameters = Some(vec!["q".to_owned()]);
    let nested = |original: &str, target: &str| {
        let mut extensions = Extensions::new();
        extensions.insert(axum::extract::OriginalUri(original.parse().unwrap()));
        let headers = HeaderMap::from_iter([(HOST, "a".parse().unwrap())]);
        Key::primary(&intake, &target.parse().unwrap(), &headers, &extensions).unwrap()
    };
    for (original, target, url, expected) in [
        ("/v1/x?q=1&r", "/x?q=1&r", "http://a/v1/y?q=2&s", Some(["http", "a", "/y?q=2", "/v1/y?q=2"])),
        ("/v1/x", "/x", "https://b/v1/y", Some(["https", "b", "/y", "/v1/y"])),
        ("/v1/x", "/x", "http://a/v1?q", Some(["http", "a", "/?q", "/v1?q"])),
        ("/v1", "/", "http://a/v1/y", Some(["http", "a", "/y", "/v1/y"])),
        ("/x?r", "/x", "http://a/y", Some(["http", "a", "/y", ""])),
        ("/v1/x", "/x", "http://a/v12/y", None),
        ("/v1/x", "/x", "http://a/y", None),
        ("/v1/x", "/other", "http://a/v1/y", None),
    ] {
        let like = nested(original, target);
        let found = Key::of_url(&intake, &url.parse().unwrap(), Some(&like));
        assert_eq!(found.as_ref().map(|key| text(key.url())), expected, "{original} {target} {url}");
    }
    assert_eq!(
        Key::of_url(&intake, &"http://a/v1/y".parse().unwrap(), Some(&nested("/v1/x", "/x"))),
        Some(nested("/v1/y", "/y"))
    );
}

#[test]
fn no_host_and_endless_urls_have_no_key() {
    assert!(Key::primary(&Intake::default(), &"/p".parse().unwrap(), &HeaderMap::new(), &Extensions::new()).is_none());
    assert!(key("a", &format!("/{}", "x".repeat(3000))).is_some());
    assert!(key("a", &format!("/{}", "x".repeat(MAX_KEY_BYTES))).is_none());
}

#[test]
fn an_authority_and_another_host_have_no_key() {
    let of = |uri: &str, host: &str, extensions: &Extensions| {
        let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
        Key::primary(&Intake::default(), &uri.parse().unwrap(), &headers, extensions)
    };
    for (uri, host, agree) in [
        ("http://a/p", "A:80", true),
        ("https://a:443/p", "a", true),
        ("https://a/p", "a:80", false),
        ("http://a/p", "b", false),
        ("http://a/p", "a b", false),
        ("http://a/p", "", false),
    ] {
        assert_eq!(of(uri, host, &Extensions::new()).is_some(), agree, "{uri} {host}");
    }
    let mut pinned = Extensions::new();
    pinned.insert("http://a".parse::<Origin>().unwrap());
    assert!(of("http://internal/p", "internal", &pinned).is_some());
    assert!(of("http://internal/p", "other", &pinned).is_none());
    assert!(of("/p", "any", &pinned).is_some(), "a proxy's name for us is no second name");
}

proptest! {
    #[test]
    fn lists_of_parts_never_collide(
        lists in proptest::collection::vec(proptest::collection::vec("[ab\0]{0,3}", 0..4), 2..60)
    ) {
        let mut seen: HashMap<Vec<u8>, Vec<String>> = HashMap::new();
        for parts in lists {
            let key = Builder::run(|key| parts.iter().try_for_each(|part| key.push(part.as_bytes()))).unwrap();
            let first = seen.entry(key.as_bytes().to_vec()).or_insert_with(|| parts.clone());
            prop_assert_eq!(first, &parts);
        }
    }
}

/// Where a key is held in place, where it is put together on the stack, and beyond.
#[test]
fn a_key_is_its_bytes_however_many() {
    for length in 0..600 {
        let made = key("h", &format!("/{}", "x".repeat(length))).unwrap();
        let read = Key::new(made.as_bytes()).unwrap();
        let (name, again) = (Name::from(&made), Name::from(&read));
        assert_eq!((&made, made.hash(), &name), (&read, read.hash(), &again), "{length}");
        assert!(made.equivalent(&again) && made.url().target.len() == length + 1, "{length}");
        let longer = made.extend(|builder| builder.push(b"")).unwrap();
        assert!(longer != made && longer.as_bytes().starts_with(made.as_bytes()), "{length}");
    }
}
