//! Real `redis-server`s on free ports, stopped by pid when the test ends: one, one with TLS, a cluster of three
//! masters, and a sentinel that watches a master and its replica.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One server; dropping it kills it.
pub(crate) struct RedisServer {
    port: u16,
    extra: Vec<String>,
    child: Option<Child>,
    folder: Folder,
}

impl RedisServer {
    /// Starts a server without persistence and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further options (`["--maxmemory", "1mb"]`).
    pub(crate) fn start_with(extra: &[&str]) -> Self {
        Self::start_in(Folder::new(), extra)
    }

    fn start_in(folder: Folder, extra: &[&str]) -> Self {
        let extra = extra.iter().map(ToString::to_string).collect();
        let mut server = Self { port: 0, extra, child: None, folder };
        for _ in 0..5 {
            server.port = free_port();
            if server.try_launch() {
                return server;
            }
        }
        panic!("redis-server did not start on any of 5 free ports");
    }

    /// Reserves a port without starting anything on it yet; `launch` starts the server there.
    pub(crate) fn absent() -> Self {
        Self { port: free_port(), extra: Vec::new(), child: None, folder: Folder::new() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts the server (again) on its port.
    pub(crate) fn launch(&mut self) {
        assert!(self.try_launch(), "redis-server did not come up on port {}", self.port);
    }

    fn try_launch(&mut self) -> bool {
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args(&self.extra)
            .args(["--port", &port, "--bind", "127.0.0.1", "--daemonize", "no", "--dir"])
            .arg(&self.folder.0)
            .args(if self.extra.iter().any(|word| word == "--sentinel") { &[][..] } else { &UNSAVED })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is not installed: run scripts/test, which installs it");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.try_command(&["PING"]).is_some_and(|answer| answer.starts_with("+PONG")) {
                return true;
            }
            if self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some())) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Kills the server at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server was running");
            child.wait().expect("the server can be waited for");
        }
    }

    /// Stops the process without closing its connections (SIGSTOP).
    pub(crate) fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets a frozen process go on (SIGCONT).
    pub(crate) fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    #[allow(unsafe_code, reason = "kill(2) has no safe wrapper in std")]
    fn signal(&self, signal: i32) {
        let pid = self.child.as_ref().expect("the server was started").id();
        let pid = i32::try_from(pid).expect("a pid fits");
        // SAFETY: plain system call on a child that has not been waited for, so its pid cannot have been reused.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Sends one inline command over a connection of its own and returns the whole raw answer.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|| panic!("no answer to {words:?}"))
    }

    fn try_command(&self, words: &[&str]) -> Option<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        stream.write_all(request.as_bytes()).ok()?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some(length) = line.strip_prefix('$').and_then(|length| length.trim().parse::<usize>().ok()) else {
            return Some(line);
        };
        let mut body = vec![0; length + 2];
        reader.read_exact(&mut body).ok()?;
        String::from_utf8_lossy(&body[..length]).into_owned().into()
    }

    /// How often the server has run `command` (lowercase), from `INFO commandstats`.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]);
        stats
            .lines()
            .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls="))?.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const UNSAVED: [&str; 4] = ["--save", "", "--appendonly", "no"];

/// A folder of its own for what a server writes; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("tower-scale-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("the temporary folder is writable");
        path.to_str().expect("the path is text").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that also speaks TLS, with a certificate for `localhost` from an authority of its own.
pub(crate) struct TlsServer {
    pub plain: RedisServer,
    tls_port: u16,
    authority: String,
}

impl TlsServer {
    pub(crate) fn start() -> Self {
        let authority_key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&authority_key).expect("a certificate");
        let issuer = rcgen::Issuer::new(parameters, authority_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let leaf = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        let folder = Folder::new();
        let (cert, key) = (folder.write("cert.pem", &leaf.pem()), folder.write("key.pem", &key.serialize_pem()));
        let authority = folder.write("authority.pem", &authority.pem());
        let tls_port = free_port();
        let options = ["--tls-port", &tls_port.to_string(), "--tls-cert-file", &cert, "--tls-key-file", &key];
        let more = ["--tls-ca-cert-file", &authority, "--tls-auth-clients", "no"];
        let plain = RedisServer::start_in(folder, &[&options[..], &more].concat());
        Self { plain, tls_port, authority }
    }

    pub(crate) fn url(&self) -> String {
        format!("rediss://localhost:{}", self.tls_port)
    }

    /// The file with the authority's certificate (PEM).
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }
}

/// Three masters that share the slots; without full coverage, so that two serve while one is away.
pub(crate) struct Cluster {
    pub masters: [RedisServer; 3],
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"];
        let masters = [(); 3].map(|()| RedisServer::start_with(&options));
        for (number, master) in masters.iter().enumerate() {
            assert!(master.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).starts_with("+OK"));
            let slots: Vec<_> = (0..16384).filter(|slot| slot * 3 / 16384 == number).map(|n| n.to_string()).collect();
            let words: Vec<_> = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str)).collect();
            assert!(master.command(&words).starts_with("+OK"));
            let first = masters[0].port.to_string();
            assert!(master.command(&["CLUSTER", "MEET", "127.0.0.1", &first]).starts_with("+OK"));
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let complete = |master: &RedisServer| {
            let info = master.command(&["CLUSTER", "INFO"]);
            ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"].iter().all(|s| info.contains(s))
        };
        while !masters.iter().all(complete) {
            assert!(Instant::now() < deadline, "the cluster did not form");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { masters }
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.masters.iter().map(RedisServer::url).collect()
    }
}

/// A master, its replica, and one sentinel that fails over after half a second.
pub(crate) struct Sentinel {
    pub master: RedisServer,
    pub replica: RedisServer,
    pub sentinel: RedisServer,
}

impl Sentinel {
    pub(crate) const SERVICE: &str = "main";

    pub(crate) fn start() -> Self {
        let master = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
        let port = master.port.to_string();
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
        let name = Self::SERVICE;
        let folder = Folder::new();
        let file = folder.write(
            "sentinel.conf",
            &format!("sentinel monitor {name} 127.0.0.1 {port} 1\nsentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 2000\n"),
        );
        let sentinel = RedisServer::start_in(folder, &[&file, "--sentinel"]);
        let deadline = Instant::now() + Duration::from_secs(20);
        let ready = || {
            master.command(&["INFO", "replication"]).contains("state=online")
                && sentinel.command(&["INFO", "sentinel"]).contains("status=ok")
                && sentinel.command(&["INFO", "sentinel"]).contains("slaves=1")
        };
        while !ready() {
            assert!(Instant::now() < deadline, "the replica or the sentinel did not join");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { master, replica, sentinel }
    }

    /// Kills the master, waits until its replica has taken over, and starts it again as the replica's own.
    pub(crate) fn fail_over(&mut self) {
        // A sentinel closes the connections of a server that changes its role.
        let says = |server: &RedisServer, section: &str, what: &str| {
            server.try_command(&["INFO", section]).is_some_and(|info| info.contains(what))
        };
        let wait = |what: &str, condition: &mut dyn FnMut() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !condition() {
                assert!(Instant::now() < deadline, "not within 20 s: {what}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        wait("a replica to take over", &mut || says(&self.master, "replication", "state=online"));
        self.master.kill();
        let port = self.replica.port.to_string();
        wait("the replica is a master", &mut || says(&self.replica, "replication", "role:master"));
        wait("the sentinel says so", &mut || says(&self.sentinel, "sentinel", &format!("address=127.0.0.1:{port}")));
        std::mem::swap(&mut self.master, &mut self.replica);
        self.replica.launch();
        wait("the old master is a replica", &mut || {
            let _ = self.replica.try_command(&["REPLICAOF", "127.0.0.1", &port]);
            says(&self.master, "replication", "state=online")
        });
    }
}

/// A port that is free, and so is the one 10 000 above it, which a cluster uses as well.
fn free_port() -> u16 {
    for _ in 0..100 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        if port.checked_add(10_000).is_some_and(|bus| TcpListener::bind(("127.0.0.1", bus)).is_ok()) {
            return port;
        }
    }
    panic!("loopback has no free port with another 10 000 above it");
}
