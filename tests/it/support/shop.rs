//! An origin whose responses say when they were made, of what version, and for whom.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Whoever sends no cookie.
pub(crate) const NOBODY: &str = "-";

/// When a response was made: microseconds of the shop's clock. Also in what confirms it (304).
pub(crate) const MADE: &str = "x-made";

/// Of which version it is. Also in what confirms it.
pub(crate) const VERSION: &str = "x-version";

/// The first line of every body.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Content {
    pub(crate) path: String,
    pub(crate) version: u64,
    /// Whose cookie came, if the page shows it.
    pub(crate) user: String,
    /// Of the request, if the page varies by it.
    pub(crate) language: String,
    pub(crate) made: u64,
}

impl Content {
    pub(crate) fn of(body: &str) -> Option<Self> {
        serde_json::from_str(body.lines().next()?).ok()
    }
}

/// What a page is asked with.
pub(crate) struct Asked<'a> {
    pub(crate) path: &'a str,
    /// How often it has been changed (by POST).
    pub(crate) version: u64,
    /// How often it has been asked for before, by GET.
    pub(crate) calls: usize,
    pub(crate) headers: &'a HeaderMap,
}

impl Asked<'_> {
    pub(crate) fn user(&self) -> &str {
        self.header("cookie").and_then(|cookie| cookie.strip_prefix("user=")).unwrap_or(NOBODY)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How a page is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub(crate) fields: Vec<(&'static str, String)>,
    /// Between reading the content and saying anything.
    pub(crate) delay: Duration,
    /// The content shows the cookie's user.
    pub(crate) personal: bool,
    /// Bytes after the first line.
    pub(crate) padding: usize,
}

impl Page {
    /// Cacheable as this `Cache-Control` says.
    pub(crate) fn new(cache_control: &str) -> Self {
        Self::default().field("cache-control", cache_control)
    }

    pub(crate) fn field(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.to_owned()));
        self
    }

    pub(crate) fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub(crate) fn personal(mut self) -> Self {
        self.personal = true;
        self
    }

    pub(crate) fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }
}

type Pages = dyn Fn(&Asked<'_>) -> Page + Send + Sync;

/// A listening shop; dropping it closes its port.
pub(crate) struct Shop {
    pub(crate) address: SocketAddr,
    ledger: Arc<Ledger>,
    serving: JoinHandle<()>,
}

struct Ledger {
    began: Instant,
    pages: Box<Pages>,
    paths: Mutex<HashMap<String, Count>>,
}

#[derive(Clone, Copy, Default)]
struct Count {
    version: u64,
    calls: usize,
}

impl Shop {
    pub(crate) async fn start(pages: impl Fn(&Asked<'_>) -> Page + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let ledger = Arc::new(Ledger { began: Instant::now(), pages: Box::new(pages), paths: Mutex::default() });
        let router = Router::new().fallback(answer).with_state(ledger.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, ledger, serving }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often a page was asked for.
    pub(crate) fn calls(&self, path: &str) -> usize {
        self.ledger.paths.lock().expect("no panic").get(path).map_or(0, |count| count.calls)
    }

    /// How often all pages together were asked for.
    pub(crate) fn all_calls(&self) -> usize {
        self.ledger.paths.lock().expect("no panic").values().map(|count| count.calls).sum()
    }

    /// Microseconds since the shop opened.
    pub(crate) fn now(&self) -> u64 {
        self.ledger.now()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Ledger {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("no test takes so long")
    }

    fn note(&self, path: &str, method: &Method) -> Count {
        let mut paths = self.paths.lock().expect("no panic");
        let count = paths.entry(path.to_owned()).or_default();
        let before = *count;
        match *method {
            Method::GET => count.calls += 1,
            _ => count.version += 1,
        }
        before
    }
}

async fn answer(State(ledger): State<Arc<Ledger>>, request: Request) -> Response {
    let path = request.uri().path();
    // Read before the delay: what is made while something changes is old.
    let (made, count) = (ledger.now(), ledger.note(path, request.method()));
    if request.method() != Method::GET {
        return status(StatusCode::NO_CONTENT, []);
    }
    let asked = Asked { path, version: count.version, calls: count.calls, headers: request.headers() };
    let page = (ledger.pages)(&asked);
    let varies = page.fields.iter().any(|(name, value)| *name == "vary" && value == "accept-language");
    let content = Content {
        path: path.to_owned(),
        version: count.version,
        user: if page.personal { asked.user() } else { NOBODY }.to_owned(),
        language: asked.header("accept-language").filter(|_| varies).unwrap_or_default().to_owned(),
        made,
    };
    let tag = page.fields.iter().find(|(name, _)| *name == "etag").map(|(_, value)| &**value);
    let confirmed = tag.is_some() && tag == asked.header("if-none-match");
    tokio::time::sleep(page.delay).await;
    let fields = page.fields.into_iter().chain([(MADE, made.to_string()), (VERSION, count.version.to_string())]);
    if confirmed {
        return status(StatusCode::NOT_MODIFIED, fields);
    }
    let text = serde_json::to_string(&content).expect("plain fields") + "\n" + &"x".repeat(page.padding);
    status(StatusCode::OK, fields).map(|_| Body::from(text))
}

fn status(status: StatusCode, fields: impl IntoIterator<Item = (&'static str, String)>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(name, value);
    }
    response.body(Body::empty()).expect("usable fields")
}
