//! A connection of its own that listens to one channel or more.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::redis::aio::PubSubStream;
use ::redis::{Client, RedisResult};
use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::error::{Cause, ConfigError, Kind, StoreError, Verdict};
use super::source::{CONNECT, ensure_crypto_provider, is_tls, parse};

/// All attempts of one call together.
const ALL: Duration = Duration::from_secs(2);
/// Messages that wait to be taken, and their size together. With more, the subscription ends.
const WAITING: usize = 8192;
const WAITING_BYTES: usize = 8 << 20;

/// The servers that the connection may go to.
pub(super) struct Servers {
    clients: Box<[Client]>,
    /// Where the next call begins: a server that lets one subscribe may still be cut off from those that publish.
    next: AtomicUsize,
}

impl Servers {
    pub(super) fn new<I>(urls: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let client = |url: I::Item| Client::open(parse(url.as_ref())?).map_err(|_| ConfigError::Url);
        let clients = urls.into_iter().map(client).collect::<Result<Box<[_]>, _>>()?;
        if clients.is_empty() {
            return Err(ConfigError::NoInvalidation);
        }
        Ok(Self { clients, next: AtomicUsize::new(0) })
    }

    /// Tries each server once, beginning after the one that was tried last.
    pub(super) async fn subscribe(&self, channels: &[&[u8]]) -> Result<Subscription, StoreError> {
        let end = Instant::now() + ALL;
        let mut failure = StoreError::new(Kind::Timeout, None);
        let begin = self.next.load(Ordering::Relaxed) % self.clients.len();
        let in_turn = self.clients.iter().enumerate().cycle().skip(begin).take(self.clients.len());
        for (at, client) in in_turn {
            // Also for a call that is dropped meanwhile.
            self.next.store(at + 1, Ordering::Relaxed);
            let now = Instant::now();
            if now >= end {
                break;
            }
            match timeout_at(end.min(now + CONNECT), listen(client, channels)).await {
                Ok(Ok(stream)) => return Ok(Subscription::new(stream)),
                Ok(Err(error)) => failure = StoreError::new(Verdict::from(&error).kind, Some(Cause::from(&error))),
                Err(_) => failure = StoreError::new(Kind::Timeout, Some(Cause::new("timed out"))),
            }
        }
        Err(failure)
    }
}

async fn listen(client: &Client, channels: &[&[u8]]) -> RedisResult<PubSubStream> {
    if is_tls(client.get_connection_info()) {
        ensure_crypto_provider();
    }
    let mut connection = client.get_async_pubsub().await?;
    connection.subscribe(channels).await?;
    Ok(connection.into_on_message())
}

/// What arrives on its channels, in the order in which the server has it, from the moment of [`Redis::subscribe`](super::Redis::subscribe) on. Dropping it closes
/// the connection.
///
/// The client beneath reads the socket as fast as it can, into a queue without a bound. A task of ours empties that queue
/// at once, into one with a bound: who does not keep up with that is cut off, as by Redis itself (which cuts off whoever
/// does not read: `client-output-buffer-limit pubsub 32mb 8mb 60`). Both tasks do nothing else, so what gathers between
/// them is what arrives while one of them waits for a thread.
pub(crate) struct Subscription {
    messages: mpsc::Receiver<Bytes>,
    /// How many bytes lie in `messages`.
    waiting: Arc<AtomicUsize>,
    reader: JoinHandle<()>,
}

impl Subscription {
    fn new(stream: PubSubStream) -> Self {
        let (send, messages) = mpsc::channel(WAITING);
        let waiting = Arc::new(AtomicUsize::new(0));
        let reader = tokio::spawn(pass_on(stream, send, Arc::clone(&waiting)));
        Self { messages, waiting, reader }
    }

    /// The next message, or `None` once the connection has ended and all that came before is taken. Dropping the future
    /// loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let message = self.messages.recv().await?;
        self.waiting.fetch_sub(message.len(), Ordering::Relaxed);
        Some(message)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("waiting", &self.messages.len()).finish_non_exhaustive()
    }
}

async fn pass_on(mut stream: PubSubStream, send: mpsc::Sender<Bytes>, waiting: Arc<AtomicUsize>) {
    while let Some(message) = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
        let message = Bytes::copy_from_slice(message.get_payload_bytes());
        let before = waiting.fetch_add(message.len(), Ordering::Relaxed);
        if before.saturating_add(message.len()) > WAITING_BYTES || send.try_send(message).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
