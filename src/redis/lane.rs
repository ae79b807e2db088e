//! One connection, checked out of the pool and shared by all requests.

use std::sync::{Mutex, PoisonError};

use ::redis::aio::MultiplexedConnection;
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use ::redis::{Cmd, RedisResult, Value};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What requests share: clones of it pipeline on one connection (a cluster: on one per master).
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    pub(super) async fn send(&self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(connection) => connection.clone().send_packed_command(cmd).await?.extract_error(),
            Self::Cluster(connection) => cmd.query_async(&mut connection.clone()).await,
        }
    }

    /// Sends a command without a key to the server that owns `slot`.
    pub(super) async fn send_to(&self, slot: u16, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(_) => self.send(cmd).await,
            Self::Cluster(connection) => {
                let master = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
                connection.clone().route_command(cmd.clone(), RoutingInfo::SingleNode(master)).await?.extract_error()
            }
        }
    }

    /// Asks the server that serves `key` whether it is there. Of a cluster by that key: where its master is gone, the
    /// client beneath sends a command without a key to any other.
    pub(super) async fn ping(&self, key: &str) -> RedisResult<Value> {
        match self {
            Self::Single(_) => self.send(&::redis::cmd("PING")).await,
            Self::Cluster(_) => {
                let mut exists = ::redis::cmd("EXISTS");
                exists.arg(key);
                self.send(&exists).await
            }
        }
    }
}

/// The pool's object. While it is held, the pool gives its connection to nobody else.
pub(super) enum Held {
    Single(deadpool_redis::Connection),
    Cluster(deadpool_redis::cluster::Connection),
    Sentinel(deadpool_redis::sentinel::Connection),
}

impl Held {
    pub(super) fn connection(&self) -> Connection {
        match self {
            Self::Single(held) => Connection::Single(held.as_ref().clone()),
            Self::Cluster(held) => Connection::Cluster(held.as_ref().clone()),
            Self::Sentinel(held) => Connection::Single(held.as_ref().clone()),
        }
    }
}

pub(super) struct Lane {
    pub(super) connection: Connection,
    pub(super) since: Instant,
    held: Mutex<Option<Held>>,
    /// Ends when the runtime that drives the connection does.
    runtime: JoinHandle<()>,
}

impl Lane {
    /// Must be called on the runtime that opened the connection.
    pub(super) fn new(held: Held) -> Self {
        Self {
            connection: held.connection(),
            since: Instant::now(),
            held: Mutex::new(Some(held)),
            runtime: tokio::spawn(std::future::pending()),
        }
    }

    /// Whether the runtime that drives the connection has ended, and the connection with it.
    pub(super) fn is_orphaned(&self) -> bool {
        self.runtime.is_finished()
    }

    /// Removes the connection from its pool, which may then open another. It stays usable until the lane is dropped.
    pub(super) fn detach(&self) {
        match self.held.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => {}
            Some(Held::Single(held)) => drop(deadpool_redis::Connection::take(held)),
            Some(Held::Cluster(held)) => drop(deadpool_redis::cluster::Connection::take(held)),
            Some(Held::Sentinel(held)) => drop(deadpool_redis::sentinel::Connection::take(held)),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.runtime.abort();
    }
}
