//! A caching reverse proxy for one origin.
//!
//! ```text
//! UPSTREAM=http://127.0.0.1:8000 cargo run --release --example reverse_proxy --features full
//! curl -i http://127.0.0.1:3000/
//! ```
//!
//! Environment: `UPSTREAM` (the origin, `http://host:port`; required), `ADDR` (127.0.0.1:3000), `POLICY` (`safe`, or
//! `rfc9111` to store whatever the RFC permits), `UPSTREAM_TIMEOUT` (seconds until an origin that says nothing is given
//! up, 30), `RUST_LOG`. Serves HTTP/1.1 and HTTP/2 without TLS; asks the origin by HTTP/1.1.
//!
//! 1. **The client's `Host` goes to the origin**, or the authority of its URL: what the cache keys by is what the origin
//!    sees, so no two sites share an entry, and an origin's absolute links are right. An origin with one site that takes
//!    any name should stand behind a proxy that takes one: each made-up name is an entry of its own.
//! 2. **Fields of the connection** (RFC 9110 §7.6.1) end here, in both directions. In requests before the cache, so that
//!    it never keys a variant by a field that the origin does not get. Trailers pass; upgrades and CONNECT do not.
//! 3. **`Via`** is added to requests (§7.6.3). What the client claims in `Forwarded`, `X-Forwarded-*` and `X-Real-IP` is
//!    dropped: `X-Forwarded-For` is its address, `X-Forwarded-Proto` is `http`. Behind another proxy, read
//!    [`ClientIp`](tower_scale::client_ip::ClientIp) of a `ClientIpLayer` instead.
//! 4. **Failures are responses**, made inside of the cache: 502 (no connection, or no usable head), 504 (no connection
//!    in 3 s, no head in `UPSTREAM_TIMEOUT` after the last piece of the request went out). The cache treats a 5xx as it
//!    treats an error of the service, so it serves stale instead, and its `Cache-Status` stands on the 502 as well. A
//!    body that breaks half-way breaks here too. No timeout limits a body that pauses.
//! 5. **A dead connection is not the client's affair.** Idle connections go after 4 s, since most origins close theirs
//!    after 5. Where one dies all the same as a request is sent, the request goes once more, on a new connection, if its
//!    method is idempotent, it has no content, and no byte of an answer came (RFC 9110 §9.2.2, RFC 9112 §9.3.1).
//! 6. **1xx responses** of the origin are dropped (103 Early Hints too): hyper's server can send none but the
//!    `100 Continue` that it sends itself.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program may print")]

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Display;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HOST, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri, Version, request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Empty, Full};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tower::util::MapResponse;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_http::trace::TraceLayer;
use tower_scale::cache::{CacheLayer, CachePolicy, MemoryStore};
use tower_scale::client_ip::PeerAddr;
use tracing_subscriber::EnvFilter;

const CACHE_BYTES: u64 = 64 << 20;
/// How long an expired response may stand in for an origin that fails.
const STALE_IF_ERROR: Duration = Duration::from_secs(60 * 60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Below the 5 s after which most origins close an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// What requests in flight have after SIGTERM or SIGINT.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("reverse_proxy: {error}");
            return ExitCode::from(2);
        }
    };
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reverse_proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(settings.log).with_writer(io::stderr).init();
    let upstream = Upstream::new(settings.upstream, settings.timeout);
    let service = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .map_request(received)
        .layer(CacheLayer::new(MemoryStore::new(CACHE_BYTES)).policy(settings.policy).stale_if_error(STALE_IF_ERROR))
        .service(service_fn(move |request| {
            let upstream = upstream.clone();
            async move { Ok::<_, Infallible>(upstream.answer(request).await) }
        }));

    let mut signals = Signals::listen()?;
    let listener = TcpListener::bind(settings.addr).await.map_err(|error| format!("{}: {error}", settings.addr))?;
    println!("listening on http://{}", listener.local_addr()?);
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new());
    let connections = GracefulShutdown::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = signals.next() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a connection that ended in the queue: neither ends the server.
                    eprintln!("reverse_proxy: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        // hyper knows no peer: the connection tells its requests.
        let service = service.clone().map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(PeerAddr(peer));
            request
        });
        let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned();
        // A broken connection is its client's affair.
        tokio::spawn(connections.watch(connection));
    }
    drop(listener);
    tokio::select! {
        () = connections.shutdown() => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
        () = signals.next() => {}
    }
    Ok(())
}

// === What goes on, and what ends here ===

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The request as the cache and the origin are to see it. `Transfer-Encoding` stays for the cache, which tells by it
/// that an HTTP/1 request has content.
fn received(mut request: Request<Incoming>) -> Request<Incoming> {
    let protocol = match request.version() {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    let peer = request.extensions().get::<PeerAddr>().map(|peer| peer.0.ip().to_canonical());
    let headers = request.headers_mut();
    let wants_trailers = headers.get_all(header::TE).iter().any(|value| lists(value, "trailers"));
    drop_connection_fields(headers);
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
    if let Some(peer) = peer.and_then(|peer| HeaderValue::try_from(peer.to_string()).ok()) {
        headers.insert(X_FORWARDED_FOR, peer);
    }
    if let Ok(via) = HeaderValue::try_from(format!("{protocol} tower-scale")) {
        headers.append(header::VIA, via);
    }
    request
}

/// Whether only a proxy in front may say this, and there is none.
fn is_claim(name: &HeaderName) -> bool {
    *name == header::FORWARDED || name.as_str().starts_with("x-forwarded-") || name == "x-real-ip"
}

/// Whether the comma-separated `value` has `token`, with or without parameters.
fn lists(value: &HeaderValue, token: &str) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|member| {
        let name = member.split(|byte| *byte == b';').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    })
}

/// RFC 9110 §7.6.1. What frames a message or routes it cannot be listed away by a client.
fn drop_connection_fields(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| ![HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name))
        .collect();
    let always = [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TE, header::UPGRADE];
    for name in listed.into_iter().chain(always) {
        headers.remove(name);
    }
}

/// Whether the content is what hyper leaves undone: it decodes `chunked` and nothing else (RFC 9112 §6.1).
fn is_coded(headers: &HeaderMap) -> bool {
    headers.get_all(header::TRANSFER_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

// === The origin ===

type RequestBody = UnsyncBoxBody<Bytes, hyper::Error>;
type AnswerBody = Either<Incoming, Full<Bytes>>;
type Connector = MapResponse<HttpConnector, fn(TokioIo<TcpStream>) -> TokioIo<Link>>;

#[derive(Clone)]
struct Upstream {
    authority: Authority,
    timeout: Duration,
    pooled: Client<Connector, RequestBody>,
    /// A connection per request, for the second attempt: another idle connection may be as dead as the first.
    fresh: Client<Connector, RequestBody>,
}

/// Why there is no response of the origin.
enum Failure {
    Refused(StatusCode, &'static str),
    Client(legacy::Error),
    Silent,
}

impl Upstream {
    fn new(authority: Authority, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let connector = connector.map_response(Link::new as fn(_) -> _);
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT);
        let pooled = client.build(connector.clone());
        let fresh = client.pool_max_idle_per_host(0).build(connector);
        Self { authority, timeout, pooled, fresh }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        match self.ask(request).await {
            Ok(response) => response.map(Either::Left),
            Err(failure) => failure.response(),
        }
    }

    async fn ask(&self, request: Request<Incoming>) -> Result<Response<Incoming>, Failure> {
        let (head, body) = request.into_parts();
        let mut head = self.outbound(head)?;
        let mut response = if body.is_end_stream() {
            self.send_empty(head).await?
        } else {
            // hyper's client sends the content of a GET only if the head says so.
            if !head.headers.contains_key(header::CONTENT_LENGTH) {
                head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            self.send(&self.pooled, head, Some(body)).await?
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Refused(StatusCode::BAD_GATEWAY, "the origin switched protocols unasked"));
        }
        if is_coded(response.headers()) {
            return Err(Failure::Refused(StatusCode::BAD_GATEWAY, "the origin uses a transfer coding unasked"));
        }
        // hyper frames the message to the client by its body.
        drop_connection_fields(response.headers_mut());
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        *response.version_mut() = Version::HTTP_11;
        Ok(response)
    }

    /// The head for the origin.
    fn outbound(&self, mut head: request::Parts) -> Result<request::Parts, Failure> {
        if head.method == Method::CONNECT {
            return Err(Failure::Refused(StatusCode::NOT_IMPLEMENTED, "this proxy opens no tunnels"));
        }
        if is_coded(&head.headers) {
            return Err(Failure::Refused(StatusCode::NOT_IMPLEMENTED, "the only transfer coding is chunked"));
        }
        match (head.headers.get_all(HOST).iter().count(), head.uri.authority()) {
            // RFC 9112 §3.2.2
            (0 | 1, Some(authority)) => {
                let host = authority.as_str().rsplit('@').next().unwrap_or_default();
                let host = HeaderValue::try_from(host).map_err(|_| BAD_HOST)?;
                head.headers.insert(HOST, host);
            }
            (1, None) => {}
            (0, None) if head.version == Version::HTTP_10 => {}
            _ => return Err(BAD_HOST),
        }
        let target = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        head.uri = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.authority.clone())
            .path_and_query(target)
            .build()
            .map_err(|_| Failure::Refused(StatusCode::BAD_REQUEST, "unusable request target"))?;
        head.version = Version::HTTP_11;
        head.extensions = Extensions::new();
        // Both are between the client and hyper's server: it decodes the chunks, and asks for them by `100 Continue`.
        head.headers.remove(header::TRANSFER_ENCODING);
        head.headers.remove(header::EXPECT);
        // Behind the cache, which takes it out of what may be stored.
        head.headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        Ok(head)
    }

    /// hyper's client itself repeats what it could not begin to send. What it did send may have met a connection that
    /// the origin was closing at that moment.
    async fn send_empty(&self, head: request::Parts) -> Result<Response<Incoming>, Failure> {
        let again = head.method.is_idempotent().then(|| head.clone());
        match (self.send(&self.pooled, head, None).await, again) {
            (Err(Failure::Client(error)), Some(again)) if died_unheard(&error) => {
                self.send(&self.fresh, again, None).await
            }
            (result, _) => result,
        }
    }

    async fn send(
        &self,
        client: &Client<Connector, RequestBody>,
        head: request::Parts,
        body: Option<Incoming>,
    ) -> Result<Response<Incoming>, Failure> {
        let (sent, mut sending) = watch::channel(());
        let body = match body {
            None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Some(body) => {
                // An upload may take as long as it moves.
                let note = move |frame| {
                    sent.send_replace(());
                    frame
                };
                body.map_frame(note).boxed_unsync()
            }
        };
        let mut response = pin!(client.request(Request::from_parts(head, body)));
        loop {
            tokio::select! {
                response = &mut response => return response.map_err(Failure::Client),
                Ok(()) = sending.changed() => {}
                () = tokio::time::sleep(self.timeout) => return Err(Failure::Silent),
            }
        }
    }
}

const BAD_HOST: Failure = Failure::Refused(StatusCode::BAD_REQUEST, "exactly one Host is needed");

impl Failure {
    fn response(self) -> Response<AnswerBody> {
        let (status, reason) = match &self {
            Self::Refused(status, reason) => (*status, *reason),
            Self::Silent => (StatusCode::GATEWAY_TIMEOUT, "the origin does not answer"),
            Self::Client(error) if error_in::<io::Error>(error, |error| error.kind() == io::ErrorKind::TimedOut) => {
                (StatusCode::GATEWAY_TIMEOUT, "the origin does not accept a connection")
            }
            Self::Client(error) if error.is_connect() => (StatusCode::BAD_GATEWAY, "the origin cannot be reached"),
            Self::Client(error) if error_in::<hyper::Error>(error, hyper::Error::is_user) => {
                (StatusCode::BAD_REQUEST, "the request broke off")
            }
            Self::Client(_) => (StatusCode::BAD_GATEWAY, "the origin gave no usable response"),
        };
        if let Self::Client(error) = &self {
            let error: &dyn Error = error;
            tracing::warn!(error, "{reason}");
        }
        let mut response = Response::new(Either::Right(Full::from(format!("{reason}\n"))));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    }
}

/// Whether an error of type `E` that `holds` is among the causes.
fn error_in<E: Error + 'static>(error: &(dyn Error + 'static), holds: fn(&E) -> bool) -> bool {
    error.downcast_ref().is_some_and(holds) || error.source().is_some_and(|cause| error_in(cause, holds))
}

/// Whether the request went out on a connection that had answered before, and ended without a byte of an answer.
fn died_unheard(error: &legacy::Error) -> bool {
    let mut extras = Extensions::new();
    if let Some(connection) = error.connect_info() {
        connection.get_extras(&mut extras);
    }
    extras.get::<Talk>().is_some_and(|talk| talk.0.load(Ordering::Relaxed) == ASKED_AGAIN)
}

/// Who spoke last on a connection.
#[derive(Clone, Default)]
struct Talk(Arc<AtomicU8>);

/// The origin has said nothing yet.
const NEW: u8 = 0;
const HEARD: u8 = 1;
/// A request after an answer.
const ASKED_AGAIN: u8 = 2;

/// A connection to the origin.
struct Link {
    stream: TcpStream,
    talk: Talk,
}

impl Link {
    fn new(stream: TokioIo<TcpStream>) -> TokioIo<Self> {
        TokioIo::new(Self { stream: stream.into_inner(), talk: Talk(Arc::new(AtomicU8::new(NEW))) })
    }

    fn asked(&self) {
        if self.talk.0.load(Ordering::Relaxed) == HEARD {
            self.talk.0.store(ASKED_AGAIN, Ordering::Relaxed);
        }
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.talk.clone())
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.talk.0.store(HEARD, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.asked();
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.asked();
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === Settings ===

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on, neither signal ends the process by itself.
    fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

struct Settings {
    upstream: Authority,
    addr: SocketAddr,
    policy: CachePolicy,
    timeout: Duration,
    log: EnvFilter,
}

impl Settings {
    fn from_env() -> Result<Self, String> {
        const UPSTREAM: &str = "the origin as http://host:port";
        Ok(Self {
            upstream: variable("UPSTREAM", UPSTREAM, origin)?
                .ok_or_else(|| format!("UPSTREAM is not set; expected {UPSTREAM}"))?,
            addr: variable("ADDR", "an address and port such as 127.0.0.1:3000", str::parse)?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000))),
            policy: variable("POLICY", "safe or rfc9111", policy)?.unwrap_or_default(),
            timeout: variable("UPSTREAM_TIMEOUT", "a whole number of seconds from 1 to 65535", str::parse)?
                .map_or(Duration::from_secs(30), |seconds: NonZeroU16| Duration::from_secs(seconds.get().into())),
            log: variable("RUST_LOG", "a filter such as info or tower_http=debug", |filter| {
                EnvFilter::try_new(filter)
            })?
            .unwrap_or_else(|| EnvFilter::new("info")),
        })
    }
}

fn origin(url: &str) -> Result<Authority, Box<dyn Error>> {
    let url: Uri = url.parse()?;
    if url.scheme() != Some(&Scheme::HTTP) {
        return Err("its scheme is not http".into());
    }
    match url.authority() {
        Some(authority) if !authority.host().is_empty() && !authority.as_str().contains('@') => {
            // `Uri` takes any digits for a port, and then says that there is none.
            if authority.as_str() != authority.host() && authority.port_u16().is_none_or(|port| port == 0) {
                return Err("its port is not one".into());
            }
            match url.path_and_query().map_or("/", PathAndQuery::as_str) {
                "/" => Ok(authority.clone()),
                _ => Err("it has a path, and the client's path is all that is sent".into()),
            }
        }
        _ => Err("it has no plain host".into()),
    }
}

fn policy(name: &str) -> Result<CachePolicy, &'static str> {
    match name {
        "safe" => Ok(CachePolicy::safe()),
        "rfc9111" => Ok(CachePolicy::rfc9111()),
        _ => Err("no such policy"),
    }
}

/// Reads an environment variable; absent or empty is `None`.
fn variable<T, E: Display>(
    name: &str,
    expected: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    let value = match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        Ok(_) | Err(std::env::VarError::NotPresent) => return Ok(None),
        // Without the value: it may be a password.
        Err(std::env::VarError::NotUnicode(_)) => return Err(format!("{name} is not UTF-8; expected {expected}")),
    };
    parse(&value).map(Some).map_err(|error| {
        // What stands before the `@` of a URL may be a password.
        let shown = value.rsplit_once('@').map_or_else(|| value.clone(), |(_, host)| format!("…@{host}"));
        format!("{name}={shown:?} cannot be used: {error}; expected {expected}")
    })
}
