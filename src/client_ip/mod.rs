//! Who calls what: the client's address and the origin it asked for, through trusted proxies only.
//!
//! [`ClientIpLayer`] leaves two request extensions, [`ClientIp`] and [`Origin`]. The rate limiter and the cache read
//! them. Without this layer both resolve them on their own, trusting no proxy.
//!
//! # What it decides
//!
//! 1. The peer is the socket's: [`PeerAddr`], else axum's `ConnectInfo<SocketAddr>` (feature `axum`), else tonic's
//!    connect info (feature `tonic`), else axum's `MockConnectInfo<SocketAddr>`, which tests use.
//! 2. A peer outside [`TrustedProxies`] is the client. Every forwarding header that it sends is ignored. A warning, once
//!    per layer, says so where such headers arrive and no proxy is trusted at all.
//! 3. A trusted peer names the client in exactly one configured [`Header`]. All its field lines are one chain, which is
//!    walked from the right, nearest hop first: trusted addresses are skipped, the first untrusted one is the client.
//!    With [`trusted_hops`](ClientIpLayer::trusted_hops) the client is the entry of that number instead. A chain that
//!    ends, or an entry that is no address (`unknown`, an obfuscated name, garbage, nothing) where one must be, ends the
//!    walk at the last trusted hop, or is answered 400 ([`strict`](ClientIpLayer::strict)). At most 32 hops are walked.
//!    So whatever a client puts in front changes nothing.
//! 4. Ports, brackets and zones are stripped; IPv4-mapped IPv6 addresses are IPv4 addresses.
//! 5. The origin is the one that [`ClientIpLayer::origin`] pins; else, from a trusted peer, what its forwarding
//!    headers state; else the URI's scheme (or `http`) and authority (or the one `Host` field). A malformed forwarded
//!    value counts as absent. The host is checked (RFC 3986), in lowercase, at most 255 bytes, without the scheme's
//!    default port. Several `Host` fields, or an invalid one, give no origin: nothing may then be stored under it.
//! 6. No peer at all is a configuration error, never one shared client: the answer is a 500 problem
//!    ([`Reason::PeerUnknown`]), and one log line per layer says what to add. Only with
//!    [`trusted_unix_peers`](ClientIpLayer::trusted_unix_peers) it is a trusted proxy on this machine.
//!
//! It never resolves names, never logs an address, and never changes a header.
//!
//! # Where it stands
//!
//! Outside everything that asks who is calling: the limiter, the cache, request logs.
//!
//! ```
//! # use bytes::Bytes;
//! # use http::{Request, Response};
//! # use http_body_util::{BodyExt, Full};
//! # use tower::{ServiceBuilder, ServiceExt};
//! use tower_scale::client_ip::{ClientIp, ClientIpLayer, Origin, PeerAddr};
//!
//! async fn who(request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
//!     let ip = request.extensions().get::<ClientIp>().unwrap().0;
//!     let origin = request.extensions().get::<Origin>().unwrap();
//!     Ok(Response::new(Full::from(format!("{ip} asks {origin}"))))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = ServiceBuilder::new()
//!     .layer(ClientIpLayer::new().trusted_proxies("10.0.0.0/8".parse()?))
//!     .service_fn(who);
//!
//! let request = Request::builder()
//!     .extension(PeerAddr("10.0.0.1:4711".parse()?)) // what the server knows of the socket
//!     .header("host", "internal:8080")
//!     .header("x-forwarded-for", "6.6.6.6, 203.0.113.9, 10.0.0.2") // the client made up the first
//!     .header("x-forwarded-proto", "https")
//!     .header("x-forwarded-host", "Shop.example")
//!     .body(Full::default())?;
//! let answer = service.oneshot(request).await?.collect().await?.to_bytes();
//! assert_eq!(answer, "203.0.113.9 asks https://shop.example");
//! # Ok(())
//! # }
//! ```
//!
//! # Deployment caveats
//!
//! - The trusted proxies must *append* the address they see (or replace the header), and must set or remove
//!   `X-Forwarded-Proto` and `X-Forwarded-Host`. nginx passes on a client's own `X-Forwarded-Host` unless told
//!   otherwise, and a client could then choose the origin under which an answer is cached. A single-site application
//!   should pin it: `.origin("https://shop.example".parse()?)`.
//! - List proxies as narrowly as possible: whoever is listed can be anybody. A number of hops is for proxies whose
//!   addresses are not known, and then the service must not be reachable around them.
//! - With axum, serve `app.into_make_service_with_connect_info::<SocketAddr>()` and enable the feature `axum`.
//!
//! | header read, from a trusted peer only | when |
//! |---|---|
//! | `X-Forwarded-For`, `X-Forwarded-Proto`, `X-Forwarded-Host` | by default |
//! | `Forwarded` (RFC 7239): `for`, `proto`, `host` of the element at which the walk ends | [`Header::Forwarded`] |
//! | the named one, `X-Forwarded-Proto`, `X-Forwarded-Host` | [`Header::Single`] |
//!
//! Of `X-Forwarded-Proto` and `X-Forwarded-Host` the right-most value counts: the nearest proxy's word.
//!
//! There are no metrics here; the limiter counts `peer_unknown`.
//!
//! [`Reason::PeerUnknown`]: crate::refusal::Reason::PeerUnknown

mod address;
mod alarm;
mod body;
#[cfg(feature = "axum")]
mod extract;
mod forwarded;
mod future;
mod header;
mod layer;
mod origin;
mod peer;
mod service;
mod trust;
mod trusted;
mod walk;

#[cfg_attr(not(feature = "rate-limit"), allow(unused_imports))]
pub(crate) use alarm::{PeerAlarm, TrustAlarm};
pub use body::ResponseBody;
pub use future::ResponseFuture;
pub use header::Header;
pub use layer::{ClientIpLayer, ConfigError};
pub use origin::Origin;
#[cfg_attr(not(feature = "cache"), allow(unused_imports))]
pub(crate) use origin::{origin, same_host};
#[cfg_attr(not(feature = "rate-limit"), allow(unused_imports))]
pub(crate) use peer::client_ip;
pub use peer::{ClientIp, PeerAddr};
pub use service::ClientIpService;
pub use trusted::{Networks, TrustedProxies};
