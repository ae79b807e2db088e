//! A `redis-server` of this run's own, and what it says of itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Killed when dropped.
pub struct RedisServer {
    port: u16,
    child: Child,
}

/// What the server has spent since it started.
#[derive(Clone, Copy)]
pub struct Spent {
    pub cpu: Duration,
    /// `INFO` itself not counted.
    pub commands: u64,
}

impl RedisServer {
    /// Starts a server on a free port, without persistence, and waits until it answers.
    pub fn start() -> Result<Self, String> {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).map_err(|e| e.to_string())?.port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("redis-server cannot be started ({error}): install it, or name other tables"))?;
        let mut server = Self { port, child };
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.info("server").is_err() {
            let ended = server.child.try_wait().map_err(|error| error.to_string())?;
            if let Some(status) = ended {
                return Err(format!("redis-server ended at once, on port {port}: {status}"));
            }
            if Instant::now() > deadline {
                return Err(format!("redis-server does not answer on port {port}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn version(&self) -> String {
        let info = self.info("server").expect("the server answers");
        info.lines().find_map(|line| line.strip_prefix("redis_version:")).expect("it has a version").to_owned()
    }

    pub fn spent(&self) -> Spent {
        let cpu = self.info("cpu").expect("the server answers");
        let seconds = |name: &str| -> f64 {
            let value = cpu.lines().find_map(|line| line.strip_prefix(name)).expect("the server says so");
            value.parse().expect("a number")
        };
        let commands = self.info("commandstats").expect("the server answers");
        let calls = |line: &str| -> Option<u64> {
            let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            if name == "info" { None } else { figures.split(',').next()?.parse().ok() }
        };
        Spent {
            cpu: Duration::from_secs_f64(seconds("used_cpu_user:") + seconds("used_cpu_sys:")),
            commands: commands.lines().filter_map(calls).sum(),
        }
    }

    fn info(&self, section: &str) -> std::io::Result<String> {
        let mut stream =
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], self.port)), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("INFO {section}\r\n").as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut length = String::new();
        reader.read_line(&mut length)?;
        let length = length.strip_prefix('$').and_then(|length| length.trim().parse().ok());
        let mut answer = vec![0; length.ok_or(std::io::ErrorKind::InvalidData)?];
        reader.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
