//! One command through every master of a cluster: what is published through a single one proves nothing of the others.

use std::sync::Arc;
use std::time::Duration;

use ::redis::Cmd;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::error::{Cause, Kind, StoreError};
use super::link::Link;
use super::script::Work;
use super::source::Source;

/// The map of a cluster is asked for again after so long: the client beneath follows masters that come and go by itself,
/// and does not tell.
const CHART_AGAIN: Duration = Duration::from_secs(10);

impl Link {
    /// Sends `cmd`, which has no key, to every master, to all at the same time. Returns how many there are; the first
    /// failure, if any, once all are done.
    pub(super) async fn everywhere(self: &Arc<Self>, cmd: Cmd, budget: Duration) -> Result<usize, StoreError> {
        if !matches!(self.source, Source::Cluster(_)) {
            return self.run(Work::Command(&cmd), budget).await.map(|_| 1);
        }
        let mut sent = JoinSet::new();
        for key in self.masters(budget).await? {
            let (link, cmd) = (Arc::clone(self), scripted(&cmd, &key));
            sent.spawn(async move { link.run(Work::Command(&cmd), budget).await.map(drop) });
        }
        let (masters, mut all) = (sent.len(), Ok(()));
        while let Some(done) = sent.join_next().await {
            all = all.and(done.unwrap_or_else(|_| Err(StoreError::new(Kind::Unavailable, None))));
        }
        all.map(|()| masters)
    }

    /// A key of each master, from a map that is not too old, if a newer one is to be had.
    async fn masters(self: &Arc<Self>, budget: Duration) -> Result<Vec<String>, StoreError> {
        let outdated = !self.state().nodes.is_charted(Instant::now(), CHART_AGAIN);
        let failure = if outdated { self.chart(budget).await.err() } else { None };
        let masters = self.state().nodes.masters();
        if masters.is_empty() { Err(failure.unwrap_or_else(uncharted)) } else { Ok(masters) }
    }

    /// Asks a server that is thought to be well for the map: while none is known, any.
    async fn chart(self: &Arc<Self>, budget: Duration) -> Result<(), StoreError> {
        let mut slots = ::redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let well = self.state().nodes.well();
        let work = well.map_or(Work::Command(&slots), |slot| Work::To(slot, &slots));
        self.adopt(&self.run(work, budget).await?);
        Ok(())
    }
}

/// With a key that only its master serves: where that cannot be reached, the client beneath sends what has none to any.
fn scripted(cmd: &Cmd, key: &str) -> Cmd {
    let mut eval = ::redis::cmd("EVAL");
    eval.arg("return redis.call(unpack(ARGV))").arg(1).arg(key);
    for word in cmd.args_iter() {
        if let ::redis::Arg::Simple(word) = word {
            eval.arg(word);
        }
    }
    eval
}

fn uncharted() -> StoreError {
    StoreError::new(Kind::Unavailable, Some(Cause::new("the cluster's map is not known")))
}
