//! Lua scripts and plain commands: what an operation sends.

use ::redis::{Arg, Cmd, ErrorKind, RedisResult, ServerErrorKind, Value};

use super::lane::Connection;
use super::nodes::Nodes;

/// A Lua script, loaded on first use: `EVALSHA`, and `EVAL` if the server does not know it yet.
#[cfg_attr(not(any(feature = "rate-limit", feature = "cache")), allow(dead_code))]
pub(crate) struct Script {
    source: String,
    hash: String,
}

#[cfg_attr(not(any(feature = "rate-limit", feature = "cache")), allow(dead_code))]
impl Script {
    pub(crate) fn new(source: &str) -> Self {
        Self { source: source.to_owned(), hash: ::redis::Script::new(source).get_hash().to_owned() }
    }

    fn command(&self, name: &str, script: &str, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
        let length = |words: &[&[u8]]| words.iter().map(|word| word.len() + 16).sum::<usize>();
        let room = script.len() + length(keys) + length(args) + 32;
        let mut cmd = Cmd::with_capacity(3 + keys.len() + args.len(), room);
        cmd.arg(name).arg(script).arg(keys.len()).arg(keys).arg(args);
        cmd
    }
}

/// One operation: one command, or one script on keys that live on one server.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    Command(&'a Cmd),
    #[cfg_attr(not(any(feature = "rate-limit", feature = "cache")), allow(dead_code))]
    Script(&'a Script, &'a [&'a [u8]], &'a [&'a [u8]]),
    /// One without a key, for the master that owns the slot.
    #[cfg_attr(not(feature = "cache"), allow(dead_code))]
    To(u16, &'a Cmd),
}

impl Work<'_> {
    /// Which server of a cluster is asked.
    pub(super) fn node(&self, nodes: &Nodes) -> usize {
        match self {
            Self::To(slot, _) => nodes.of_slot(*slot),
            _ => nodes.of(self.key()),
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Self::To(..) => b"",
            Self::Script(_, keys, _) => keys.first().copied().unwrap_or_default(),
            Self::Command(cmd) => {
                let word = |at| match cmd.args_iter().nth(at) {
                    Some(Arg::Simple(word)) => word,
                    _ => b"",
                };
                let scripted =
                    [&b"EVAL"[..], b"EVALSHA", b"FCALL"].iter().any(|name| word(0).eq_ignore_ascii_case(name));
                word(if scripted { 3 } else { 1 })
            }
        }
    }

    pub(super) async fn perform(self, connection: &Connection) -> RedisResult<Value> {
        match self {
            Self::Command(cmd) => connection.send(cmd).await,
            Self::To(slot, cmd) => connection.send_to(slot, cmd).await,
            Self::Script(script, keys, args) => {
                let known = connection.send(&script.command("EVALSHA", &script.hash, keys, args)).await;
                match known {
                    Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                        // Once per server: in a box, for every command would have to carry it along.
                        Box::pin(async { connection.send(&script.command("EVAL", &script.source, keys, args)).await })
                            .await
                    }
                    known => known,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::redis::Redis;

    /// A server that knows no script until it has seen it. Returns the commands it gets.
    async fn forgetful_server() -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let (send, commands) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut buffer, mut known) = ([0; 4096], false);
            loop {
                let length = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let reply = match text.lines().nth(2) {
                    // The client introduces itself with two commands at once.
                    Some("CLIENT") => "+OK\r\n+OK\r\n",
                    Some("EVALSHA") if !known => "-NOSCRIPT no such script\r\n",
                    _ => ":7\r\n",
                };
                known |= text.contains("\r\nEVAL\r\n");
                let _ = send.send(text);
                if length == 0 || stream.write_all(reply.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
        (url, commands)
    }

    #[tokio::test]
    async fn a_script_is_sent_in_full_once() {
        let (url, mut commands) = forgetful_server().await;
        let redis = Redis::connect(&url).unwrap().time_budget(std::time::Duration::from_secs(2));
        let script = Script::new("return 7");
        for _ in 0..3 {
            assert_eq!(redis.eval(&script, &[b"ts:rl:k"], &[b"-1", b"\r\n"]).await.unwrap(), Value::Int(7));
        }
        drop(redis);
        let mut seen = Vec::new();
        while let Some(text) = commands.recv().await {
            let words: Vec<_> = text.lines().filter(|line| !line.starts_with(['*', '$'])).map(str::to_owned).collect();
            if words.first().is_some_and(|word| word.starts_with("EVAL")) {
                assert_eq!(words[2..], ["1", "ts:rl:k", "-1", "", ""]);
                seen.push(words[0].clone());
            }
        }
        assert_eq!(seen, ["EVALSHA", "EVAL", "EVALSHA", "EVALSHA"]);
    }

    #[test]
    fn keys_decide_who_is_asked() {
        for (words, key) in [
            (&["GET", "k"][..], "k"),
            (&["PING"], ""),
            (&["eval", "return 1", "1", "k", "7"], "k"),
            (&["FCALL", "f", "0"], ""),
        ] {
            let mut cmd = Cmd::new();
            cmd.arg(words);
            assert_eq!(Work::Command(&cmd).key(), key.as_bytes(), "{words:?}");
        }
    }
}
