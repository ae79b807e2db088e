//! An example as a real process, and a small HTTP client for it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Keeps connections open for the next request; dropping all clones closes them.
pub(crate) type HttpClient = Client<HttpConnector, Full<Bytes>>;

pub(crate) fn http_client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

/// A running example; dropping it kills it.
pub(crate) struct Example {
    child: Child,
    pub(crate) address: SocketAddr,
    client: HttpClient,
}

/// One answer and how long it took.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

fn command(name: &str, environment: &[(&str, &str)]) -> Command {
    let test = std::env::current_exe().expect("the test binary has a path");
    let target = test.ancestors().nth(2).expect("target/<profile>/deps/it");
    let program: PathBuf = target.join("examples").join(name);
    assert!(program.exists(), "the example is not built: run `cargo test --features full`, which builds it");
    let mut command = Command::new(program);
    let settings = ["REDIS_URL", "RATE_LIMIT", "TRUSTED_PROXIES", "ALLOW", "OFFLOAD_THREADS", "RUST_LOG"];
    let fleet = [
        "ORIGIN",
        "STORE",
        "MEMORY_BYTES",
        "REDIS_CLUSTER",
        "REDIS_SENTINEL",
        "REDIS_SERVICE",
        "REDIS_SERVERS",
        "REDIS_BUDGET_MS",
    ];
    for name in settings.into_iter().chain(["MEMCACHED", "UPSTREAM", "UPSTREAM_TIMEOUT", "POLICY"]).chain(fleet) {
        command.env_remove(name);
    }
    command.env("ADDR", "127.0.0.1:0").envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

/// Runs an example where it is expected to give up by itself.
pub(crate) fn run_to_end(name: &str, environment: &[(&str, &str)]) -> Output {
    let mut child =
        command(name, environment).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the example starts");
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().expect("a child can be asked").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{name} went on with {environment:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output")
}

impl Example {
    pub(crate) fn start(name: &str, environment: &[(&str, &str)]) -> Self {
        let mut child = command(name, environment)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the example starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a first line");
        let address =
            line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("first line: {line:?}"));
        let address = address.parse().expect("an address");
        // The rest is read, so that the example never waits for its reader.
        std::thread::spawn(move || lines.read_to_string(&mut String::new()));
        Self { child, address, client: http_client() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.try_get(path, &[]).await.expect("an answer")
    }

    pub(crate) async fn try_get(&self, path: &str, headers: &[(&str, &[u8])]) -> Result<Answer, String> {
        self.send("GET", path, headers, "").await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
        body: &'static str,
    ) -> Result<Answer, String> {
        self.send_by(&self.client, method, path, headers, body).await
    }

    /// The same over the connections of `client`.
    pub(crate) async fn send_by(
        &self,
        client: &HttpClient,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
        body: &'static str,
    ) -> Result<Answer, String> {
        let started = Instant::now();
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body)).map_err(|error| error.to_string())?;
        let answer = async {
            let response = client.request(request).await.map_err(|error| format!("{error:?}"))?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            Ok(Answer { status: parts.status, headers: parts.headers, body, took: started.elapsed() })
        };
        tokio::time::timeout(Duration::from_secs(20), answer).await.unwrap_or_else(|_| Err("no answer in 20 s".into()))
    }

    /// The value of one metric line: its name, with labels as rendered.
    pub(crate) async fn metric(&self, line: &str) -> Option<f64> {
        let text = self.get("/metrics").await.body;
        text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
    }

    pub(crate) fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Ends it at once, as a crash would (SIGKILL).
    pub(crate) fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Stops it without closing its connections (SIGSTOP).
    pub(crate) fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    #[allow(unsafe_code, reason = "kill(2) has no safe wrapper in std")]
    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid fits");
        // SAFETY: plain system call on a child that has not been waited for, so its pid cannot have been reused.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Bytes that are resident in memory.
    pub(crate) fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).expect("it runs");
        let pages: u64 = statm.split(' ').nth(1).expect("the second is the resident set").parse().expect("pages");
        pages * 4096
    }

    /// How many files and sockets it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
