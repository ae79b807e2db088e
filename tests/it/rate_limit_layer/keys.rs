//! By what clients are told apart.

use http::HeaderName;
use tower_scale::rate_limit::{Key, Policy, Quota, RateLimitLayer, Secret, Subject};

use super::*;

const TWO: Quota = Quota::per_hour(2);
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

fn by(key: Key) -> Limited {
    limited(&RateLimitLayer::new(Policy::new(TWO).key(key)))
}

#[test]
fn prefixes_decide_who_is_one_client() {
    let service = by(Key::ip().ipv4_prefix(24).ipv6_prefix(56));
    for (ip, expected) in [
        ("203.0.113.1", 200),
        ("203.0.113.254", 200),
        ("203.0.113.77", 429),
        ("::ffff:203.0.113.5", 429),
        ("203.0.114.1", 200),
        ("2001:db8:0:100::1", 200),
        ("2001:db8:0:1ff::1", 200),
        ("2001:db8:0:142::1", 429),
        ("2001:db8:0:200::1", 200),
    ] {
        assert_eq!(status(&service, ip), expected, "{ip}");
    }
    let everybody = by(Key::ip().ipv4_prefix(0));
    assert_eq!((status(&everybody, HOME), status(&everybody, "8.8.8.8"), status(&everybody, AWAY)).2, 429);
}

#[test]
fn rotation_inside_a_64_is_one_client() {
    let service = limited(&RateLimitLayer::new(Quota::per_hour(5)));
    let passed = (0..200).filter(|n| status(&service, &format!("2001:db8:1:2:{n:x}::{n:x}")) == 200).count();
    assert_eq!(passed, 5);
}

/// Who has a whole /48 has 65 536 networks; the tier counts them together.
#[test]
fn many_64s_of_a_48_meet_the_tier() {
    let policy = Policy::new(Quota::per_hour(10)).ipv6_tier(48, Quota::per_hour(160).named("site"));
    let service = limited(&RateLimitLayer::new(policy));
    let from = |site: usize, home: usize| status(&service, &format!("2001:db8:{site:x}:{home:x}::1")) == 200;
    assert_eq!((0..20).filter(|_| from(1, 0)).count(), 10, "one /64 meets its own quota first");
    let passed = (1..40).flat_map(|home| (0..10).map(move |_| home)).filter(|home| from(1, *home)).count();
    assert_eq!(passed, 150, "sixteen /64s have spent what the /48 has");
    assert!(from(2, 0), "another site");
    assert_eq!(admitted(&service, HOME, 20), 10, "no IPv4 client is concerned");

    let fields = send(&service, request("2001:db8:2::1")).headers()["ratelimit"].clone();
    assert_eq!(fields, r#""hour";r=8;t=360, "site";r=158;t=23"#);
    let fields = send(&service, request(AWAY)).headers()["ratelimit"].clone();
    assert_eq!(fields, r#""hour";r=9;t=360"#);
}

#[test]
fn a_field_tells_clients_apart_wherever_they_are() {
    let service = by(Key::header(API_KEY, Secret::random()));
    let with = |ip: &str, values: &[&str]| send(&service, with_field(ip, "x-api-key", values)).status();
    assert_eq!(with(HOME, &["alpha"]), 200);
    assert_eq!(with(AWAY, &["alpha"]), 200);
    assert_eq!(with("198.51.100.1", &["alpha"]), 429);
    assert_eq!(with(HOME, &["Alpha"]), 200, "the whole value, as it is");
    assert_eq!(send(&service, without_peer()).status(), 500);
    let mut nowhere = with_field(HOME, "x-api-key", &["beta"]);
    nowhere.extensions_mut().remove::<PeerAddr>();
    assert_eq!(send(&service, nowhere).status(), 200, "whoever has a key needs no address");

    // Without the field, or with two of them, the address counts.
    assert_eq!(with(HOME, &[]), 200);
    assert_eq!(with(HOME, &["alpha", "gamma"]), 200);
    assert_eq!(with(HOME, &["one", "two"]), 429);
    assert_eq!(with(HOME, &["delta"]), 200);
}

#[test]
fn a_closure_tells_clients_apart() {
    #[derive(Clone)]
    struct Tenant(u32);
    let key = Key::by(Secret::random(), |head| {
        assert!(head.client_ip().is_some());
        head.extensions().get().map(|tenant: &Tenant| tenant.0.to_be_bytes())
    });
    let service = by(key);
    let of = |ip: &str, tenant: u32| {
        let mut request = request(ip);
        request.extensions_mut().insert(Tenant(tenant));
        send(&service, request).status()
    };
    assert_eq!(
        [of(HOME, 1), of(AWAY, 1), of(HOME, 1), of(HOME, 2)].map(|status| status.as_u16()),
        [200, 200, 429, 200]
    );
    assert_eq!(admitted(&service, HOME, 5), 2, "the closure says nothing of those");
}

#[test]
fn everybody_together_needs_no_address() {
    let service = by(Key::global());
    assert_eq!(send(&service, without_peer()).status(), 200);
    assert_eq!(status(&service, HOME), 200);
    assert_eq!(status(&service, AWAY), 429);
}

#[test]
fn without_a_peer_nobody_shares_a_key() {
    let service = by(Key::ip());
    for _ in 0..3 {
        let response = send(&service, without_peer());
        assert_eq!((response.status().as_u16(), reason(&response)), (500, Some(Reason::PeerUnknown)));
        assert!(!response.headers().contains_key("ratelimit"));
    }
}

#[test]
fn neither_tokens_nor_secrets_nor_addresses_show() {
    let secret = Secret::new("a secret of the application").unwrap();
    let layer = RateLimitLayer::new(Policy::new(TWO).key(Key::header(API_KEY, secret.clone())))
        .skip(|head| {
            assert!(!format!("{head:?}").contains("t0ken") && !format!("{head:?}").contains("203.0"));
            false
        })
        .count_when(|outcome| {
            assert!(!format!("{outcome:?}").contains("s3ssion"));
            true
        });
    let inner = service_fn(|_: Request<Body>| async {
        Ok::<_, Infallible>(Response::builder().header("set-cookie", "s3ssion").body(Body::empty()).unwrap())
    });
    let service = boxed(&layer, inner);
    let response = send(&service, with_field(HOME, "x-api-key", &["t0ken"]));
    let subject = Subject::key("t0ken");
    let shown =
        format!("{layer:?} {:?} {secret:?} {subject:?} {:?}", layer.handle(), Subject::ip(HOME.parse().unwrap()));
    for hidden in ["t0ken", "a secret of", "203.0.113"] {
        assert!(!shown.contains(hidden), "{hidden} in {shown}");
    }
    assert_eq!(response.status(), 200);
}
