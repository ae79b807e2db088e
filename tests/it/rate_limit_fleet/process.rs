//! The processes, from outside.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::instance::{ANSWER, Answer, Command, Made, NAME, SETTINGS, Settings};
use crate::support::fleet::Servers;

/// Dropping it kills it.
pub(super) struct Process {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// With a wall clock that is wrong by so many seconds.
    pub(super) fn start(servers: &Servers, settings: &Settings, skew: i64) -> Self {
        let mut command = std::process::Command::new(std::env::current_exe().expect("the test binary has a path"));
        command.args(["--exact", NAME, "--nocapture", "--test-threads", "1"]);
        command.envs(servers.environment());
        command.env(SETTINGS, serde_json::to_string(settings).unwrap());
        command.env("LD_PRELOAD", &*SKEW).env("SKEW_SECONDS", skew.to_string());
        let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = streams.spawn().expect("the test binary starts");
        let (commands, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut process = Self { child, commands, answers };
        let Answer::Ready(time) = process.answer() else { panic!("it is not ready") };
        let right = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let wrong = i64::try_from(time.as_secs()).unwrap() - i64::try_from(right.as_secs()).unwrap();
        assert!((wrong - skew).abs() <= 10, "its clock is off by {wrong} s, not by {skew} s");
        process
    }

    pub(super) fn begin(&mut self, command: &Command) {
        writeln!(self.commands, "{}", serde_json::to_string(command).unwrap()).expect("it listens");
    }

    pub(super) fn answer(&mut self) -> Answer {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).expect("text"), 0, "the process has ended");
            if let Some(answer) = line.strip_prefix(ANSWER) {
                return serde_json::from_str(answer).unwrap();
            }
        }
    }

    pub(super) fn made(&mut self) -> Vec<Made> {
        match self.answer() {
            Answer::Made(made) => made,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn is_done(&mut self) -> bool {
        matches!(self.answer(), Answer::Done(true))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `skew.c` as a library.
static SKEW: LazyLock<String> = LazyLock::new(|| {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let (library, own) = (format!("{folder}/skew.so"), format!("{folder}/skew-{}.so", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/rate_limit_fleet/skew.c");
    let mut compiler = std::process::Command::new("cc");
    let compiled = compiler.args(["-shared", "-fPIC", "-O1", "-o", &own, source, "-ldl"]).status();
    assert!(compiled.expect("a C compiler, which Rust needs as well").success());
    std::fs::rename(&own, &library).expect("the target folder is writable");
    library
});

/// Seconds by which the wall clocks of four processes are wrong: right, an hour ahead, a day behind, 30 years ahead.
pub(super) const SKEWS: [i64; 4] = [0, 3600, -86_400, 30 * 365 * 86_400];

/// Lets the load run for so long.
pub(super) fn let_run(time: Duration) {
    std::thread::sleep(time);
}
