//! Where connections come from: always a pool, ours or the application's.

use std::time::Duration;

use ::redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use ::redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use deadpool_redis::{PoolError, Runtime};

use super::error::ConfigError;
use super::lane::Held;

/// A handshake (TCP, TLS, `AUTH`) is given up after this.
pub(super) const CONNECT: Duration = Duration::from_secs(1);
/// Commands queued towards the socket. With less, 1024 concurrent requests reach two thirds of the throughput.
const QUEUE: usize = 1024;
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));

pub(super) enum Source {
    Url { pool: deadpool_redis::Pool, tls: bool },
    Pool(deadpool_redis::Pool),
    Cluster(deadpool_redis::cluster::Pool),
    Sentinel(deadpool_redis::sentinel::Pool),
}

impl Source {
    pub(super) fn url(url: &str) -> Result<Self, ConfigError> {
        let info = parse(url)?;
        let tls = is_tls(&info);
        Ok(Self::Url { pool: own_pool(info)?, tls })
    }

    pub(super) async fn open(&self) -> Result<Held, PoolError> {
        Ok(match self {
            Self::Url { pool, tls } => {
                if *tls {
                    ensure_crypto_provider();
                }
                Held::Single(pool.get().await?)
            }
            Self::Pool(pool) => Held::Single(pool.get().await?),
            Self::Cluster(pool) => Held::Cluster(pool.get().await?),
            Self::Sentinel(pool) => Held::Sentinel(pool.get().await?),
        })
    }
}

/// What a URL says, with our settings for its sockets.
pub(super) fn parse(url: &str) -> Result<ConnectionInfo, ConfigError> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    if cfg!(not(feature = "redis-tls")) && matches!(scheme, "rediss" | "valkeys") {
        return Err(ConfigError::TlsDisabled);
    }
    let info = url.into_connection_info().map_err(|_| ConfigError::Url)?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(ConfigError::Insecure);
    }
    Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true).set_keepalive(KEEPALIVE)))
}

pub(super) fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

fn own_pool(info: ConnectionInfo) -> Result<deadpool_redis::Pool, ConfigError> {
    // Each operation has a deadline of its own; a second timer per command costs a tenth of the throughput.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUE);
    let manager = deadpool_redis::Manager::new_with_config(info, config).map_err(|_| ConfigError::Url)?;
    deadpool_redis::Pool::builder(manager)
        .max_size(1)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT))
        .create_timeout(Some(CONNECT))
        .recycle_timeout(Some(CONNECT))
        .build()
        .map_err(|_| ConfigError::Url)
}

/// rustls panics where an application's dependencies enable two providers and nobody has chosen one. Chosen as late as
/// possible, so that the application's own choice comes first.
pub(super) fn ensure_crypto_provider() {
    #[cfg(feature = "redis-tls")]
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been faster, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, expected) in [
            ("redis://127.0.0.1", Ok(false)),
            ("redis://user:pass@[::1]:6380/3?protocol=resp3", Ok(false)),
            ("valkey://cache.internal:6379", Ok(false)),
            ("unix:///run/redis.sock", Ok(false)),
            ("rediss://cache.internal", Ok(true)),
            ("rediss://cache.internal#insecure", Err(ConfigError::Insecure)),
            ("", Err(ConfigError::Url)),
            ("127.0.0.1:6379", Err(ConfigError::Url)),
            ("http://127.0.0.1", Err(ConfigError::Url)),
            ("redis://", Err(ConfigError::Url)),
            ("redis://h/notadb", Err(ConfigError::Url)),
            ("redis://h:99999", Err(ConfigError::Url)),
        ] {
            let expected = match expected {
                Ok(true) | Err(ConfigError::Insecure) if cfg!(not(feature = "redis-tls")) => {
                    Err(ConfigError::TlsDisabled)
                }
                expected => expected,
            };
            let is_tls = Source::url(url).map(|source| matches!(source, Source::Url { tls: true, .. }));
            assert_eq!(is_tls, expected, "{url}");
        }
    }
}
