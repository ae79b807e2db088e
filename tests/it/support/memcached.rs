//! A real `memcached` on a free port, stopped by pid when the test ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One server; dropping it kills it.
pub(crate) struct Memcached {
    port: u16,
    child: Option<Child>,
}

impl Memcached {
    pub(crate) fn start() -> Self {
        for _ in 0..5 {
            let mut server = Self::absent();
            if server.try_launch() {
                return server;
            }
        }
        panic!("memcached did not start on any of 5 free ports");
    }

    /// Reserves a port without starting anything on it yet; `launch` starts the server there.
    pub(crate) fn absent() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        Self { port: listener.local_addr().expect("it is bound").port(), child: None }
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the server (again) on its port.
    pub(crate) fn launch(&mut self) {
        assert!(self.try_launch(), "memcached did not come up on port {}", self.port);
    }

    fn try_launch(&mut self) -> bool {
        let child = Command::new("memcached")
            .args(["-l", "127.0.0.1", "-p", &self.port.to_string(), "-U", "0", "-m", "64"])
            // It does not run as root; where this is not root, it stays who it is.
            .args(["-u", "nobody"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("memcached is not installed: run scripts/test, which installs it");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.try_command("version").is_some_and(|answer| answer.starts_with("VERSION")) {
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

    /// Stops the process, with all its threads, without closing its connections (SIGSTOP).
    #[allow(unsafe_code, reason = "waitpid(2) has no safe wrapper in std that sees a stop")]
    pub(crate) fn freeze(&self) {
        let pid = self.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: plain system call on a child that has not been waited for; `status` outlives it.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) }, pid);
        assert!(libc::WIFSTOPPED(status), "the server has ended");
    }

    /// Lets a frozen process go on (SIGCONT).
    pub(crate) fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    #[allow(unsafe_code, reason = "kill(2) has no safe wrapper in std")]
    fn signal(&self, signal: i32) -> i32 {
        let pid = self.child.as_ref().expect("the server was started").id();
        let pid = i32::try_from(pid).expect("a pid fits");
        // SAFETY: plain system call on a child that has not been waited for, so its pid cannot have been reused.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        pid
    }

    /// One figure of `stats`.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let lines = self.lines("stats");
        let line = lines.iter().find_map(|line| line.strip_prefix(&format!("STAT {name} ")));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {lines:?}"))
    }

    /// The names of items, and when they expire: all that it is not busy with, and none while it lists them for itself.
    pub(crate) fn items(&self) -> Vec<(String, SystemTime)> {
        let item = |line: &String| {
            let (name, rest) = line.strip_prefix("key=")?.split_once(" exp=")?;
            let seconds = rest.split(' ').next()?.parse().ok()?;
            // It is escaped as in a URL.
            Some((name.replace("%3A", ":"), UNIX_EPOCH + Duration::from_secs(seconds)))
        };
        self.lines("lru_crawler metadump all").iter().filter_map(item).collect()
    }

    /// What is stored under a name, as it is.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        let mut stream = BufReader::new(self.connect().expect("a connection"));
        stream.get_mut().write_all(format!("get {name}\r\n").as_bytes()).expect("the server reads");
        let mut header = String::new();
        stream.read_line(&mut header).expect("a header");
        let length = header.trim().rsplit(' ').next().and_then(|length| length.parse().ok());
        let mut value = vec![0; length.unwrap_or_else(|| panic!("{name}: {header:?}"))];
        stream.read_exact(&mut value).expect("a value");
        value
    }

    /// Stores these bytes.
    pub(crate) fn write(&self, name: &str, value: &[u8]) {
        let mut stream = BufReader::new(self.connect().expect("a connection"));
        let header = format!("set {name} 0 0 {}\r\n", value.len());
        stream.get_mut().write_all(&[header.as_bytes(), value, b"\r\n"].concat()).expect("the server reads");
        let mut answer = String::new();
        stream.read_line(&mut answer).expect("an answer");
        assert_eq!(answer, "STORED\r\n");
    }

    /// The lines of an answer before `END`, or before it says that it is busy.
    fn lines(&self, command: &str) -> Vec<String> {
        let mut stream = self.connect().expect("a connection");
        stream.write_all(format!("{command}\r\n").as_bytes()).expect("the server reads");
        let lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
        lines.take_while(|line| line != "END" && !line.starts_with("BUSY")).collect()
    }

    fn try_command(&self, command: &str) -> Option<String> {
        let mut stream = self.connect()?;
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        Some(line)
    }

    fn connect(&self) -> Option<TcpStream> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        Some(stream)
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
