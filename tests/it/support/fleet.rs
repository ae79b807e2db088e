//! Several processes of `examples/fleet.rs` in front of one origin and one Redis, of whichever kind.

use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;

use super::example::{Answer, Example};
use super::redis_server::{Cluster, RedisServer, Sentinel};

/// How Redis is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    Standalone,
    Cluster,
    Sentinel,
}

/// Redis, as it was set up.
pub(crate) enum Servers {
    Standalone(RedisServer),
    Cluster(Cluster),
    Sentinel(Sentinel),
}

impl Servers {
    pub(crate) fn start(setup: Setup) -> Self {
        match setup {
            Setup::Standalone => Self::Standalone(RedisServer::start()),
            Setup::Cluster => Self::Cluster(Cluster::start()),
            Setup::Sentinel => Self::Sentinel(Sentinel::start()),
        }
    }

    /// What tells an example where they are.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Standalone(server) => vec![("REDIS_URL", server.url())],
            Self::Cluster(cluster) => vec![("REDIS_CLUSTER", cluster.urls().join(","))],
            Self::Sentinel(servers) => vec![
                ("REDIS_SENTINEL", servers.sentinel.url()),
                ("REDIS_SERVICE", Sentinel::SERVICE.to_owned()),
                ("REDIS_SERVERS", [servers.master.url(), servers.replica.url()].join(",")),
            ],
        }
    }

    /// Those that hold data. Of a master with a replica, the master.
    pub(crate) fn masters(&mut self) -> &mut [RedisServer] {
        match self {
            Self::Standalone(server) => std::slice::from_mut(server),
            Self::Cluster(cluster) => &mut cluster.masters,
            Self::Sentinel(servers) => std::slice::from_mut(&mut servers.master),
        }
    }

    pub(crate) fn freeze(&mut self) {
        self.masters().iter().for_each(RedisServer::freeze);
    }

    pub(crate) fn thaw(&mut self) {
        self.masters().iter().for_each(RedisServer::thaw);
    }

    pub(crate) fn kill(&mut self) {
        self.masters().iter_mut().for_each(RedisServer::kill);
    }

    pub(crate) fn launch(&mut self) {
        self.masters().iter_mut().for_each(RedisServer::launch);
    }

    /// Closes the connections that listen.
    pub(crate) fn cut_off(&mut self) {
        for master in self.masters() {
            assert!(master.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).starts_with(':'));
        }
    }

    pub(crate) fn flush(&mut self) {
        for master in self.masters() {
            assert!(master.command(&["FLUSHALL"]).starts_with("+OK"));
        }
    }
}

/// One process of the fleet; each start makes another one.
pub(crate) struct Instance {
    pub(crate) process: u32,
    pub(crate) example: Example,
}

impl Instance {
    /// A process before `origin`, with further settings.
    pub(crate) fn start(origin: &str, servers: &Servers, settings: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let environment = servers.environment();
        let environment = environment.iter().map(|(name, value)| (*name, &**value));
        let environment: Vec<_> =
            [("ORIGIN", origin)].into_iter().chain(environment).chain(settings.to_vec()).collect();
        let example = Example::start("fleet", &environment);
        Self { process: NEXT.fetch_add(1, Ordering::Relaxed), example }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.example.get(path).await
    }

    /// `query` as in `tag=a&soft`. Whether Redis has taken it.
    pub(crate) async fn purge(&self, query: &str) -> bool {
        let answer = self.example.send("POST", &format!("/-/purge?{query}"), &[], "").await.expect("an answer");
        assert!([StatusCode::NO_CONTENT, StatusCode::ACCEPTED].contains(&answer.status), "{query}: {answer:?}");
        answer.status == StatusCode::NO_CONTENT
    }
}

/// What the purges of these processes name.
pub(crate) const SITE: &str = "http://fleet";
