//! What can go wrong, in words that are safe to log.

use std::fmt;
use std::sync::Arc;

use ::redis::{ErrorKind, RedisError, ServerErrorKind};
use deadpool_redis::PoolError;

/// Why a handle could not be built. Never shows the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The URL does not parse.
    #[error("not a Redis URL: expected redis://, rediss:// or unix://")]
    Url,
    /// A `rediss://` URL without the feature `redis-tls`.
    #[error("a rediss:// URL needs the feature `redis-tls`")]
    TlsDisabled,
    /// A `rediss://` URL that asks not to verify certificates.
    #[error("certificates are always verified: remove #insecure, or bring your own pool")]
    Insecure,
    /// A pool that cannot spare a connection.
    #[error("the pool must have room for at least two connections, since one is held")]
    PoolTooSmall,
    /// No server is known for the invalidation connection: a pool cannot give one.
    #[error(
        "no server for the invalidation connection, which no pool can give: name one with `Redis::invalidation_urls`"
    )]
    NoInvalidation,
}

/// What went wrong with one operation. [`source`](std::error::Error::source) says more; neither shows hosts or secrets.
#[derive(Clone)]
pub struct StoreError {
    kind: Kind,
    cause: Option<Cause>,
}

/// The kinds of [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// No answer within the time budget. The command may still be carried out.
    Timeout,
    /// Not sent: the breaker is open.
    Open,
    /// The server could not be reached or is not serving, the connection broke (the command may have been carried
    /// out), or too many operations are under way.
    Unavailable,
    /// The server answered with an error, or with something else than was asked for.
    Refused,
}

impl Kind {
    /// The kind in one word, as metrics and logs have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Open => "open",
            Self::Unavailable => "unavailable",
            Self::Refused => "error",
        }
    }
}

impl StoreError {
    pub(super) fn new(kind: Kind, cause: Option<Cause>) -> Self {
        Self { kind, cause }
    }

    /// The server answered something else than was asked for.
    #[cfg_attr(not(feature = "rate-limit"), allow(dead_code))]
    pub(crate) fn unexpected() -> Self {
        Self::new(Kind::Refused, Some(Cause::new("an unexpected answer")))
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Timeout => "Redis did not answer within the time budget",
            Kind::Open => "Redis was not asked: its breaker is open",
            Kind::Unavailable => "Redis is not available",
            Kind::Refused => "Redis answered with an error",
        })
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError").field("kind", &self.kind).field("cause", &self.cause).finish()
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

/// What lies beneath, without the details: the errors of clients and servers name hosts, keys and users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause(Arc<str>);

impl Cause {
    pub(super) fn new(words: &str) -> Self {
        Self(words.into())
    }

    #[cfg(feature = "tracing")]
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

impl From<&RedisError> for Cause {
    fn from(error: &RedisError) -> Self {
        match error.kind() {
            ErrorKind::AuthenticationFailed => Self::new("authentication failed"),
            _ if is_tls(error) => Self::new("TLS handshake failed"),
            _ if error.is_timeout() => Self::new("timed out"),
            _ if error.is_connection_refusal() => Self::new("connection refused"),
            _ if error.is_connection_dropped() => Self::new("connection lost"),
            _ => error.code().map_or_else(|| Self::new(error.category()), Self::new),
        }
    }
}

#[cfg(feature = "redis-tls")]
fn is_tls(error: &RedisError) -> bool {
    use std::error::Error;
    let shared = error.source().and_then(<dyn Error>::downcast_ref::<Arc<dyn Error + Send + Sync>>);
    let io = shared.and_then(|shared| shared.downcast_ref::<std::io::Error>());
    io.and_then(std::io::Error::get_ref).is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>)
}

#[cfg(not(feature = "redis-tls"))]
fn is_tls(_: &RedisError) -> bool {
    false
}

impl From<&PoolError> for Cause {
    fn from(error: &PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            PoolError::Timeout(_) => Self::new("timed out at the pool"),
            PoolError::Closed => Self::new("the pool is closed"),
            PoolError::NoRuntimeSpecified => Self::new("the pool has timeouts but no runtime"),
            PoolError::PostCreateHook(_) => Self::new("a hook of the pool failed"),
        }
    }
}

/// What an error means for the caller, for the breaker and for the lane.
pub(super) struct Verdict {
    pub(super) kind: Kind,
    /// The connection is unusable.
    pub(super) broken: bool,
    /// The connection works but leads to the wrong server.
    pub(super) misled: bool,
}

impl From<&RedisError> for Verdict {
    fn from(error: &RedisError) -> Self {
        use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
        let kind = match error.kind() {
            _ if error.is_timeout() => Kind::Timeout,
            ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | TryAgain) => Kind::Unavailable,
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType | ErrorKind::Client => {
                Kind::Refused
            }
            _ => Kind::Unavailable,
        };
        Self {
            kind,
            broken: error.is_unrecoverable_error(),
            misled: matches!(error.kind(), ErrorKind::Server(Moved | ReadOnly)),
        }
    }
}
