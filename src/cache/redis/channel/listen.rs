//! Listens, and notices when it hears nothing.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::hub::Hub;
use super::super::lease::Told;
use super::super::message::{Message, News};
use super::round::{BEAT, Judged, Round, Sent};
use super::shift::Task;
use super::trust::{Moment, SILENCE};
use super::{Channel, apply, pause};
use crate::cache::key::Key;
use crate::cache::purge::What;
use crate::cache::store::Store;
use crate::redis::{StoreError, Subscription};

/// Between two attempts to send a heartbeat.
const AGAIN: Duration = Duration::from_millis(50);

type Beating = Pin<Box<dyn Future<Output = Option<Sent>> + Send>>;

/// Why a session ended.
enum Ended {
    Lost,
    /// The store is gone, or another task has taken over.
    Over,
}

impl Task {
    /// Ends when the store is gone, or when another task has taken over.
    pub(super) async fn listen(&self) {
        let mut attempts = 0;
        loop {
            let begun = Instant::now();
            if let Ended::Over = self.session().await {
                return;
            }
            let Some(hub) = self.hub() else { return };
            hub.channel.tried();
            drop(hub);
            attempts = if begun.elapsed() > SILENCE * 4 { 0 } else { attempts + 1 };
            sleep(pause(attempts, RandomState::new().hash_one(attempts))).await;
        }
    }

    /// From the subscription to its loss.
    async fn session(&self) -> Ended {
        let Some(hub) = self.hub() else { return Ended::Over };
        let (redis, channel, echo) = (hub.redis.clone(), hub.names.channel(), hub.names.echo(hub.sender));
        drop(hub);
        let Ok(subscription) = redis.subscribe(&[&channel, &echo]).await else { return Ended::Lost };
        drop(redis);
        let Some(hub) = self.hub() else { return Ended::Over };
        hub.tags.forget();
        if hub.broad.refresh(&hub, SystemTime::now()).await.is_err() {
            return Ended::Lost;
        }
        drop(hub);
        let mut session = Session::new(self, subscription);
        loop {
            if let Err(ended) = session.step().await {
                return ended;
            }
        }
    }
}

struct Session<'a> {
    task: &'a Task,
    subscription: Subscription,
    number: u64,
    round: Round,
    beating: Option<Beating>,
    up: Option<Up>,
}

impl<'a> Session<'a> {
    fn new(task: &'a Task, subscription: Subscription) -> Self {
        let number = RandomState::new().hash_one(0) >> 16;
        let round = Round::new(number, Moment::now(), Instant::now());
        let beating = Some(beat(task.weak(), &round));
        Self { task, subscription, number, round, beating, up: None }
    }

    async fn step(&mut self) -> Result<(), Ended> {
        self.turn().await?;
        let Some(hub) = self.task.hub() else { return Err(Ended::Over) };
        // This process stood still, perhaps: what it holds may be anything.
        if self.up.is_some() && !hub.channel.is_alive() { Err(Ended::Lost) } else { Ok(()) }
    }

    async fn turn(&mut self) -> Result<(), Ended> {
        tokio::select! {
            message = self.subscription.next() => match message {
                Some(message) => self.hear(message).await,
                None => Err(Ended::Lost),
            },
            sent = async { self.beating.as_mut()?.await }, if self.beating.is_some() => {
                self.beating = None;
                let took = sent.and_then(|sent| self.round.sent(sent));
                self.back(took)
            }
            () = sleep_until(self.round.deadline()) => self.judge(),
        }
    }

    async fn hear(&mut self, message: Bytes) -> Result<(), Ended> {
        let Some(hub) = self.task.hub() else { return Err(Ended::Over) };
        match Message::decode(message) {
            Some(Message { sender, news: News::Heartbeat(nonce) }) => {
                let took = if sender == hub.sender { self.round.hear(nonce, Instant::now()) } else { None };
                self.back(took)
            }
            // The time budget may be longer than what may pass unnoticed.
            Some(message) => match timeout(BEAT, hear(&hub, message)).await {
                Ok(Ok(())) => Ok(()),
                _ => Err(Ended::Lost),
            },
            None => Ok(()),
        }
    }

    /// The heartbeat has come back from everywhere.
    fn back(&mut self, took: Option<Duration>) -> Result<(), Ended> {
        let Some(took) = took else { return Ok(()) };
        let Some(hub) = self.task.hub() else { return Err(Ended::Over) };
        hub.channel.metrics.lag.record(took.as_secs_f64());
        let sent = self.round.begun;
        if self.up.is_some() {
            return if hub.channel.trust.prove(sent) { Ok(()) } else { Err(Ended::Lost) };
        }
        // What was read before may have been purged before anybody listened, or by what Redis has forgotten.
        Channel::repeat(&hub);
        hub.channel.trust.rise(hub.purges.stamp(SystemTime::now()), sent);
        self.up = Some(Up::new(&hub));
        Ok(())
    }

    fn judge(&mut self) -> Result<(), Ended> {
        match self.round.judge(Instant::now()) {
            Judged::Wait => {}
            Judged::Lost => return Err(Ended::Lost),
            Judged::Back => {
                self.number += 1;
                self.round = Round::new(self.number, Moment::now(), Instant::now());
                self.beating = Some(beat(self.task.weak(), &self.round));
            }
        }
        Ok(())
    }
}

/// Sends one heartbeat, and looks whether a broad purge was missed, or the list is gone. Tries until it succeeds.
fn beat(hub: Weak<Hub>, round: &Round) -> Beating {
    let nonces = round.nonces();
    Box::pin(async move {
        for nonce in nonces {
            let at = Instant::now();
            let hub = hub.upgrade()?;
            let message = Message { sender: hub.sender, news: News::Heartbeat(nonce) }.encode();
            if hub.broad.compare(&hub, SystemTime::now()).await.is_ok()
                && let Ok(masters) = hub.redis.publish_everywhere(&hub.names.echo(hub.sender), &message).await
            {
                return Some(Sent { nonce, masters, at });
            }
            drop(hub);
            sleep(AGAIN).await;
        }
        None
    })
}

/// What a message means for this process.
///
/// # Errors
/// It says that the list of broad purges has changed, and that cannot be read.
async fn hear(hub: &Hub, Message { sender, news }: Message) -> Result<(), StoreError> {
    let (own, now) = (sender == hub.sender, SystemTime::now());
    match news {
        // Mirrors first, then the table: a lookup that does not see the one yet is older than the other. Mirrors follow
        // this process's own purges too, in the order in which they arrive. Such a one counts in the table already,
        // unless it comes after its answer: then the mirror may have been wrong for a moment.
        News::Purged { purge, soft, generations } => {
            let mut late = false;
            if let What::Tag(tag) = &purge.0 {
                hub.tags.purged(tag, generations);
                late = !hub.channel.pending.awaits(if soft { generations.1 } else { generations.0 });
            }
            if !own || late {
                apply(hub, &purge, soft, now);
            }
        }
        News::Broad(entry) => {
            if !own {
                apply(hub, &entry.purge, entry.soft, now);
            }
            if !hub.broad.has(entry.token) {
                hub.broad.refresh(hub, now).await?;
            }
        }
        News::Heartbeat(_) => {}
        News::Invalidated(key) => {
            if !own {
                hub.voided.bump(&key);
                overwritten(hub, &key);
                hub.voided.bump(&key);
            }
        }
        // Who waits may wait for this very process: for a fetch from before a purge, or under another key of the URL.
        News::Overwritten(key) => {
            if !own {
                overwritten(hub, &key);
            }
            hub.waiting.tell(&key, Told::Stored);
        }
        News::Unshared(key) => hub.waiting.tell(&key, Told::Unshared),
        News::Failed(key) => hub.waiting.tell(&key, Told::Failed),
    }
    Ok(())
}

/// Counted first: who has read the old record may put it into memory after it was removed from there, but not unseen.
fn overwritten(hub: &Hub, key: &Key) {
    hub.touched.bump(key);
    if let Some(memory) = hub.memory.get() {
        // In memory, it is done when this returns.
        let _ = memory.remove(key);
    }
}

/// The channel is alive for as long as this lives, however its task ends.
struct Up(Weak<Hub>);

impl Up {
    fn new(hub: &Arc<Hub>) -> Self {
        hub.channel.rise();
        #[cfg(feature = "tracing")]
        tracing::info!("the cache's invalidation channel is alive");
        Self(Arc::downgrade(hub))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Otherwise, the channel went with the store.
        let Some(hub) = self.0.upgrade() else { return };
        hub.channel.trust.fall();
        hub.channel.fall();
        hub.channel.metrics.losses.increment(1);
        Channel::repeat(&hub);
        #[cfg(feature = "tracing")]
        tracing::warn!("the cache's invalidation channel is lost: what is in memory is used for a short time only");
    }
}
