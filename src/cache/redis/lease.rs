//! Who may fetch for all processes, and who waits for whom.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::redis::Value as Answer;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, interval_at, timeout};

use super::hub::Hub;
use super::message::News;
use super::metrics::Claimed;
use super::put::millis;
use super::token::{Maker, token};
use super::value;
use crate::cache::fleet::{Claim, Control, End, Lease};
use crate::cache::key::Key;
use crate::cache::sync::{Mutex, lock};
use crate::redis::StoreError;

/// A lease that nobody renews ends after this.
const LIFETIME: Duration = Duration::from_secs(2);
const RENEWAL: Duration = Duration::from_millis(700);
/// How often who waits asks, where news come through the channel, and where they do not: at random, up to twice this.
const POLL: Duration = Duration::from_millis(250);
const POLL_UNTOLD: Duration = Duration::from_millis(25);
/// More than the cache has fetches. Beyond: nobody waits.
const MAX_WAITING: usize = 4096;

/// What a lease ended in, or that something was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Stored,
    Unshared,
    Failed,
}

/// The fetches of this process that wait for another's.
#[derive(Default)]
pub(super) struct Waiting(Arc<Mutex<Seats>>);

#[derive(Default)]
struct Seats {
    by_key: HashMap<Key, Vec<(u64, oneshot::Sender<Told>)>>,
    count: usize,
    next: u64,
}

/// One of them: hears the next news of its key.
struct Seat {
    seats: Arc<Mutex<Seats>>,
    key: Key,
    number: u64,
    news: oneshot::Receiver<Told>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn tell(&self, key: &Key, told: Told) {
        let heard = {
            let mut seats = lock(&self.0);
            let heard = seats.by_key.remove(key).unwrap_or_default();
            seats.count = seats.count.saturating_sub(heard.len());
            heard
        };
        // Wakers are foreign code.
        for (_, seat) in heard {
            let _ = seat.send(told);
        }
    }

    /// `None`: too many wait.
    fn sit_down(&self, key: &Key) -> Option<Seat> {
        let mut seats = lock(&self.0);
        if seats.count >= MAX_WAITING {
            return None;
        }
        let (number, (send, news)) = (seats.next, oneshot::channel());
        seats.next += 1;
        seats.count += 1;
        seats.by_key.entry(key.clone()).or_default().push((number, send));
        Some(Seat { seats: self.0.clone(), key: key.clone(), number, news })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = lock(&self.seats);
        let Some(there) = seats.by_key.get_mut(&self.key) else { return };
        let before = there.len();
        there.retain(|(number, _)| *number != self.number);
        let (left, gone) = (there.len(), before - there.len());
        if left == 0 {
            seats.by_key.remove(&self.key);
        }
        seats.count = seats.count.saturating_sub(gone);
    }
}

/// What a script has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Granted,
    Held,
    LookAgain,
    Unshared,
}

/// A claim that is under way. Dropped, it is taken back: it may have been granted, or will be.
struct Claiming<'a> {
    hub: &'a Arc<Hub>,
    key: &'a Key,
    token: u128,
}

impl Claiming<'_> {
    fn answered(self) {
        std::mem::forget(self);
    }
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.hub.end(self.key, self.token, End::Failed);
    }
}

impl Hub {
    pub(super) async fn claim(self: Arc<Self>, key: Key, control: Control, patience: Duration) -> Claim {
        let Some(generations) = control.generations.filter(|_| control.marked && control.known) else {
            return Claim::Alone;
        };
        let claim = timeout(patience, self.claim_until_told(&key, control.seen, &value::pack(generations))).await;
        let (claim, outcome) = match claim {
            Err(_) => (Claim::Alone, Claimed::Alone),
            Ok(Err(_)) => (Claim::Alone, Claimed::Failed),
            Ok(Ok(claim)) => {
                let outcome = match &claim {
                    Claim::Granted(_) => Claimed::Granted,
                    Claim::LookAgain => Claimed::Stored,
                    Claim::Unshared => Claimed::Unshared,
                    Claim::Alone => Claimed::Alone,
                };
                (claim, outcome)
            }
        };
        self.metrics.claimed(outcome);
        claim
    }

    async fn claim_until_told(self: &Arc<Self>, key: &Key, seen: u64, generations: &[u8]) -> Result<Claim, StoreError> {
        let token = token(Maker::Fill, SystemTime::now());
        if let Some(claim) = self.try_claim(key, token, seen, generations).await? {
            return Ok(claim);
        }
        loop {
            // News may have come between the answer and this: so it asks once more.
            let Some(mut seat) = self.waiting.sit_down(key) else { return Ok(Claim::Alone) };
            if let Some(claim) = self.try_claim(key, token, seen, generations).await? {
                return Ok(claim);
            }
            let poll = if self.channel.is_alive() { POLL } else { POLL_UNTOLD };
            match timeout(jittered(poll), &mut seat.news).await {
                Ok(Ok(Told::Stored)) => return Ok(Claim::LookAgain),
                Ok(Ok(Told::Unshared)) => return Ok(Claim::Unshared),
                Ok(Ok(Told::Failed) | Err(_)) | Err(_) => {}
            }
        }
    }

    /// `None`: another has it.
    async fn try_claim(
        self: &Arc<Self>,
        key: &Key,
        token: u128,
        seen: u64,
        generations: &[u8],
    ) -> Result<Option<Claim>, StoreError> {
        let claiming = Claiming { hub: self, key, token };
        let names = [self.names.record(key), self.names.generations(key), self.names.lease(key)];
        let words: [&[u8]; 4] = [&seen.to_be_bytes(), generations, &token.to_be_bytes(), &millis(LIFETIME)];
        let answer = self.run(&self.scripts.claim, &names, &words).await?;
        claiming.answered();
        Ok(match answered(&answer) {
            Answered::Held => None,
            Answered::LookAgain => Some(Claim::LookAgain),
            Answered::Unshared => Some(Claim::Unshared),
            Answered::Granted => Some(Claim::Granted(self.lease(key, token))),
        })
    }

    fn lease(self: &Arc<Self>, key: &Key, token: u128) -> Lease {
        let (hub, name) = (self.clone(), self.names.lease(key));
        let renewal = tokio::spawn(async move {
            let mut ticks = interval_at(Instant::now() + RENEWAL, RENEWAL);
            loop {
                ticks.tick().await;
                let words: [&[u8]; 2] = [&token.to_be_bytes(), &millis(LIFETIME)];
                let renewed = hub.run(&hub.scripts.renew, std::slice::from_ref(&name), &words).await;
                if renewed.is_ok_and(|renewed| renewed != Answer::Int(1)) {
                    break;
                }
            }
        });
        Lease::new(Arc::new(self.clone()), key.clone(), token).renewed_by(renewal.abort_handle())
    }

    /// In the background. Where that cannot be, or Redis does not answer, the lease ends by itself.
    pub(super) fn end(self: &Arc<Self>, key: &Key, token: u128, how: End) {
        let Ok(runtime) = Handle::try_current() else { return };
        let (hub, key) = (self.clone(), key.clone());
        runtime.spawn(async move {
            let names = [hub.names.lease(&key), hub.names.generations(&key)];
            let (word, news): (&[u8], _) = match how {
                End::Unshared => (b"unshared", News::Unshared(key)),
                End::Failed => (b"failed", News::Failed(key)),
            };
            let (channel, message) = (hub.names.channel(), hub.message(news));
            let words: [&[u8]; 4] = [&token.to_be_bytes(), word, &channel, &message];
            let _ = hub.run(&hub.scripts.end, &names, &words).await;
        });
    }
}

fn answered(answer: &Answer) -> Answered {
    match answer {
        Answer::Int(1) => Answered::Granted,
        Answer::Int(2) => Answered::LookAgain,
        Answer::Int(3) => Answered::Unshared,
        _ => Answered::Held,
    }
}

/// From this to twice as much.
fn jittered(time: Duration) -> Duration {
    let random = u32::try_from(RandomState::new().hash_one(0) >> 40).unwrap_or(0);
    time + time * random / (1 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Key {
        Key::new(path.as_bytes()).unwrap()
    }

    fn count(waiting: &Waiting) -> (usize, usize) {
        let seats = lock(&waiting.0);
        (seats.count, seats.by_key.len())
    }

    #[tokio::test]
    async fn news_reach_who_waits_for_the_key_and_nobody_else() {
        let waiting = Waiting::new();
        waiting.tell(&key("/a"), Told::Stored);
        let mut seats: Vec<_> = ["/a", "/a", "/b"].iter().map(|path| waiting.sit_down(&key(path)).unwrap()).collect();
        waiting.tell(&key("/a"), Told::Unshared);
        assert_eq!(count(&waiting), (1, 1));
        for seat in &mut seats[..2] {
            assert_eq!((&mut seat.news).await, Ok(Told::Unshared));
        }
        assert!(seats[2].news.try_recv().is_err());
        drop(seats);
        assert_eq!(count(&waiting), (0, 0));
    }

    #[test]
    fn who_leaves_takes_no_seat_and_there_is_a_last_one() {
        let waiting = Waiting::new();
        let mut seats: Vec<_> =
            (0..MAX_WAITING).map(|n| waiting.sit_down(&key(&(n % 9).to_string())).unwrap()).collect();
        assert!(waiting.sit_down(&key("/")).is_none());
        seats.truncate(MAX_WAITING - 1);
        assert!(waiting.sit_down(&key("/")).is_some());
        waiting.tell(&key("3"), Told::Failed);
        drop(seats);
        assert_eq!(count(&waiting), (0, 0));
    }

    #[test]
    fn jitter_is_up_to_as_much_again() {
        let times: Vec<_> = (0..1000).map(|_| jittered(POLL)).collect();
        assert!(times.iter().all(|time| (POLL..=2 * POLL).contains(time)));
        let spread = *times.iter().max().unwrap() - *times.iter().min().unwrap();
        assert!(spread > POLL / 2, "{spread:?}");
    }
}
