//! An HTTP/1.1 origin that does on the wire what a test says, byte by byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Which connection, and which request on it; both from 0.
    pub(crate) connection: usize,
    pub(crate) turn: usize,
    /// The head, in Latin-1, with the content behind it as it was framed.
    pub(crate) text: String,
}

impl Seen {
    pub(crate) fn line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// The values of a field, lines joined by `|`.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let head = self.text.split("\r\n\r\n").next()?;
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let values: Vec<_> =
            fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect();
        (!values.is_empty()).then(|| values.join("|"))
    }
}

/// What the origin does with a request.
pub(crate) enum Act {
    /// Writes this and waits for the next request.
    Say(Vec<u8>),
    /// The same, later.
    SayAfter(Duration, Vec<u8>),
    /// Writes this and closes the connection.
    Last(Vec<u8>),
    /// Keeps the connection, and never says anything.
    Silence,
}

/// A 200 with these fields (each with its line end) and content.
pub(crate) fn ok(fields: &str, content: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{fields}\r\n{content}", content.len()).into_bytes()
}

/// A listening origin; dropping it closes its port and all its connections.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    accepting: JoinHandle<()>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Origin {
    pub(crate) async fn start(act: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (seen, connections) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (requests, tasks, act) = (seen.clone(), connections.clone(), Arc::new(act));
        let accepting = tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (requests, act) = (requests.clone(), act.clone());
                let serving = tokio::spawn(async move { serve(stream, connection, &requests, &*act).await });
                tasks.lock().expect("no panic").push(serving);
            }
        });
        Self { address, seen, accepting, connections }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen().pop().expect("a request came")
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
        self.connections.lock().expect("no panic").iter().for_each(JoinHandle::abort);
    }
}

async fn serve(mut stream: TcpStream, connection: usize, seen: &Mutex<Vec<Seen>>, act: &(dyn Fn(&Seen) -> Act + Sync)) {
    for turn in 0.. {
        let Some(text) = request(&mut stream).await else { return };
        let request = Seen { connection, turn, text };
        seen.lock().expect("no panic").push(request.clone());
        match act(&request) {
            Act::Say(bytes) => drop(stream.write_all(&bytes).await),
            Act::SayAfter(pause, bytes) => {
                tokio::time::sleep(pause).await;
                drop(stream.write_all(&bytes).await);
            }
            Act::Last(bytes) => {
                drop(stream.write_all(&bytes).await);
                return;
            }
            Act::Silence => std::future::pending().await,
        }
    }
}

/// Reads one request; `None`: the connection ended before it was whole.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut text = String::new();
    while !is_whole(&text) {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).await.ok().filter(|length| *length > 0)?;
        text.extend(piece[..length].iter().copied().map(char::from));
    }
    Some(text)
}

fn is_whole(text: &str) -> bool {
    let Some((head, content)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        return content == "0\r\n\r\n" || content.ends_with("\r\n0\r\n\r\n");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    content.chars().count() >= length.unwrap_or(0)
}
