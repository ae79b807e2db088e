//! One handle to Redis for every layer.

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use http::Extensions;
use tokio::sync::OnceCell;

/// One handle to a Redis server.
#[derive(Clone, Debug)]
pub struct Redis {
    client: ::redis::Client,
    budget: Duration,
    prefix: std::sync::Arc<str>,
    lane: std::sync::Arc<OnceCell<MultiplexedConnection>>,
}

/// Why a handle could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The URL does not parse.
    #[error("not a Redis URL")]
    Url,
}

/// What went wrong with one operation.
#[derive(Debug)]
pub struct StoreError {
    kind: Kind,
}

/// The kinds of [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// No answer within the time budget.
    Timeout,
    /// Not sent: the breaker is open.
    Open,
    /// The server could not be reached, or the connection broke.
    Unavailable,
    /// The server answered with an error.
    Refused,
}

impl StoreError {
    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "redis: {:?}", self.kind)
    }
}

impl std::error::Error for StoreError {}

/// A Lua script, loaded on first use (EVALSHA, and EVAL on NOSCRIPT only).
#[allow(dead_code)]
pub(crate) struct Script(::redis::Script);

#[allow(dead_code)]
impl Script {
    pub(crate) fn new(source: &str) -> Self {
        Self(::redis::Script::new(source))
    }
}

#[allow(dead_code)]
impl Redis {
    /// A handle to the server at `url`. Connects on first use.
    ///
    /// # Errors
    /// The URL does not parse.
    pub fn connect(url: &str) -> Result<Self, ConfigError> {
        let client = ::redis::Client::open(url).map_err(|_| ConfigError::Url)?;
        Ok(Self { client, budget: Duration::from_millis(20), prefix: "ts:".into(), lane: std::sync::Arc::default() })
    }

    /// The key of `id` in the name space `kind` (`rl`, `cache`): `{prefix}{kind}:{id}`.
    pub(crate) fn key(&self, kind: &str, id: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), kind.as_bytes(), b":", id].concat()
    }

    /// Sends one command, once, within the time budget.
    pub(crate) async fn query(&self, cmd: &::redis::Cmd) -> Result<::redis::Value, StoreError> {
        let work = async {
            let lane = self.lane.get_or_try_init(|| self.client.get_multiplexed_async_connection()).await?;
            cmd.query_async(&mut lane.clone()).await
        };
        match tokio::time::timeout(self.budget, work).await {
            Err(_) => Err(StoreError { kind: Kind::Timeout }),
            Ok(Err(_)) => Err(StoreError { kind: Kind::Unavailable }),
            Ok(Ok(value)) => Ok(value),
        }
    }

    /// Runs `script` on one key: EVALSHA, and EVAL once if the server does not know it. Never retried otherwise.
    pub(crate) async fn eval(&self, script: &Script, key: &[u8], args: &[i64]) -> Result<::redis::Value, StoreError> {
        let mut invocation = script.0.prepare_invoke();
        invocation.key(key);
        for arg in args {
            invocation.arg(*arg);
        }
        let lane = self.lane.get_or_try_init(|| self.client.get_multiplexed_async_connection()).await;
        let mut lane = lane.map_err(|_| StoreError { kind: Kind::Unavailable })?.clone();
        invocation.invoke_async(&mut lane).await.map_err(|_| StoreError { kind: Kind::Unavailable })
    }

    /// Whether an operation of this request has already timed out on this handle: then no further one is made.
    pub(crate) fn is_spent(&self, extensions: &Extensions) -> bool {
        let _ = extensions;
        false
    }

    /// Notes that an operation of this request timed out on this handle.
    pub(crate) fn mark_spent(&self, extensions: &mut Extensions) {
        let _ = extensions;
    }
}
