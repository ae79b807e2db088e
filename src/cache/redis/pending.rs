//! Purges on their way to Redis, and those that a failover may have lost.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::broad::is_under;
use super::token::{Maker, token};
use crate::cache::key::Key;
use crate::cache::purge::{Purge, What};
use crate::redis::{Kind, StoreError};

/// More of them become one purge of everything.
const MOST: usize = 4096;
/// A master that dies may take with it what it confirmed this long before.
const RECENT: Duration = Duration::from_secs(10);
/// Of more URLs that requests have changed in that time, the first ones are not told again.
const CHANGES: usize = 1024;
/// Of a purge that was sent more often, the first token and the last ones: what an older attempt may still do late is to
/// purge once more.
const TOKENS: usize = 16;

/// What became of the first attempt. `Err`: it is tried again.
pub(super) type Told = oneshot::Receiver<Result<(), Kind>>;

/// Purges that Redis does not have yet, in order, and those that it has had for a short time.
#[derive(Default)]
pub(super) struct Pending {
    state: Mutex<State>,
    /// Whether anything waits: then [`floor`](Self::floor) looks at it.
    any: AtomicBool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Item>,
    recent: VecDeque<(Instant, Item)>,
    /// URLs that requests have changed, and the tokens that said so.
    changes: VecDeque<(Instant, Purge, u128)>,
    ids: u64,
}

struct Item {
    id: u64,
    purge: Purge,
    soft: bool,
    floor: u64,
    /// Those that it was sent with.
    tokens: Vec<u128>,
    /// In vain, since it was put here.
    tried: bool,
    /// Redis is being told: perhaps it has done it already.
    under_way: bool,
    told: Vec<oneshot::Sender<Result<(), Kind>>>,
}

/// One purge to be sent now.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) id: u64,
    pub(super) purge: Purge,
    pub(super) soft: bool,
    pub(super) token: u128,
    pub(super) before: Vec<u128>,
}

/// What was put in place of too many purges.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Everything {
    pub(super) soft: bool,
}

impl Pending {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Below every purge that waits and may name the key. What is read from Redis meanwhile counts as read then, so that
    /// this process's own table voids what Redis does not know to be void.
    pub(super) fn floor(&self, key: &Key) -> u64 {
        if !self.any.load(Ordering::Acquire) {
            return u64::MAX;
        }
        let state = self.state();
        let naming = state.waiting.iter().filter(|item| item.may_name(key));
        naming.map(|item| item.floor).min().unwrap_or(u64::MAX)
    }

    pub(super) fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// Takes one more. `floor`: a stamp from before it counted here.
    pub(super) fn push(&self, purge: Purge, soft: bool, floor: u64) -> (Told, Option<Everything>) {
        let (tell, told) = oneshot::channel();
        let mut state = self.state();
        state.push(Item { floor, told: vec![tell], ..Item::new(purge, soft) });
        let merged = state.merge();
        self.note(&state);
        (told, merged)
    }

    /// The next ones to send, at most `most`: those that have not been tried, or all.
    pub(super) fn batch(&self, most: usize, all: bool, now: std::time::SystemTime) -> Vec<Attempt> {
        let mut state = self.state();
        let due = state.waiting.iter_mut().filter(|item| all || !item.tried).take(most);
        due.map(|item| item.attempt(token(Maker::Purge, now))).collect()
    }

    /// Whether what was sent with this token waits for its answer.
    pub(super) fn awaits(&self, token: u128) -> bool {
        self.state().waiting.iter().any(|item| item.tokens.contains(&token))
    }

    /// Whether any was tried in vain.
    pub(super) fn any_tried(&self) -> bool {
        self.state().waiting.iter().any(|item| item.tried)
    }

    /// How an attempt went.
    pub(super) fn settle(&self, id: u64, outcome: &Result<(), StoreError>, now: Instant) {
        let outcome = outcome.as_ref().copied().map_err(StoreError::kind);
        let mut state = self.state();
        let told = state.settle(id, outcome.is_ok(), now);
        self.note(&state);
        drop(state);
        for tell in told {
            // Nobody waits any more.
            let _ = tell.send(outcome);
        }
    }

    /// Puts what Redis has had for a short time in line once more.
    pub(super) fn repeat(&self, now: Instant) -> Option<Everything> {
        let mut state = self.state();
        state.forget(now);
        let recent = std::mem::take(&mut state.recent);
        state.waiting.extend(recent.into_iter().map(|(_, item)| item));
        let merged = state.merge();
        self.note(&state);
        merged
    }

    /// A request has changed this URL, and Redis has been told with this token.
    pub(super) fn changed(&self, url: Purge, token: u128, now: Instant) {
        let mut state = self.state();
        state.changes.push_back((now, url, token));
        if state.changes.len() > CHANGES {
            state.changes.pop_front();
        }
    }

    /// The URLs that requests have changed a short time ago, each with its last token: to be told [again](Self::again).
    pub(super) fn take_changes(&self, now: Instant) -> HashMap<Purge, u128> {
        let changes = std::mem::take(&mut self.state().changes);
        let recent = changes.into_iter().filter(|(since, ..)| now.saturating_duration_since(*since) <= RECENT);
        recent.map(|(_, url, token)| (url, token)).collect()
    }

    /// As [`push`](Self::push), of what was told before.
    pub(super) fn again(&self, url: Purge, token: u128, floor: u64) {
        let mut state = self.state();
        state.push(Item { floor, tokens: vec![token], ..Item::new(url, false) });
        self.note(&state);
    }

    fn note(&self, state: &State) {
        self.any.store(!state.waiting.is_empty(), Ordering::Release);
    }
}

impl State {
    /// Where one waits that does as much, it waits with that: a new attempt, since those before may have been carried out
    /// before this was wanted.
    fn push(&mut self, mut item: Item) {
        self.ids += 1;
        item.id = self.ids;
        match self.waiting.iter_mut().find(|waiting| !waiting.under_way && waiting.covers(&item)) {
            Some(waiting) => {
                (waiting.id, waiting.tried) = (item.id, false);
                waiting.tokens.clear();
                waiting.told.append(&mut item.told);
            }
            None => self.waiting.push_back(item),
        }
    }

    /// Never lost, and never without a bound.
    fn merge(&mut self) -> Option<Everything> {
        if self.waiting.len() <= MOST {
            return None;
        }
        let item = Item::instead_of(std::mem::take(&mut self.waiting));
        let soft = item.soft;
        self.push(item);
        Some(Everything { soft })
    }

    fn settle(&mut self, id: u64, taken: bool, now: Instant) -> Vec<oneshot::Sender<Result<(), Kind>>> {
        let Some(at) = self.waiting.iter().position(|item| item.id == id) else { return Vec::new() };
        let Some(mut item) = self.waiting.remove(at) else { return Vec::new() };
        let told = std::mem::take(&mut item.told);
        (item.tried, item.under_way) = (!taken, false);
        if taken {
            self.forget(now);
            self.recent.retain(|(_, before)| !item.covers(before));
            self.recent.push_back((now, item));
        } else {
            // Behind the others: what Redis refuses for good must not hold them up.
            self.waiting.push_back(item);
        }
        told
    }

    fn forget(&mut self, now: Instant) {
        let old = |(since, _): &(Instant, Item)| now.saturating_duration_since(*since) > RECENT;
        while self.recent.front().is_some_and(old) {
            self.recent.pop_front();
        }
        if self.recent.len() > MOST {
            let all = std::mem::take(&mut self.recent);
            self.recent.push_back((now, Item::instead_of(all.into_iter().map(|(_, item)| item))));
        }
    }
}

impl Item {
    fn new(purge: Purge, soft: bool) -> Self {
        let (tokens, told) = (Vec::new(), Vec::new());
        Self { id: 0, purge, soft, floor: u64::MAX, tokens, tried: false, under_way: false, told }
    }

    /// Whether this does all that the other would.
    fn covers(&self, other: &Self) -> bool {
        (!self.soft || other.soft) && (self.purge == other.purge || self.purge == Purge::everything())
    }

    fn may_name(&self, key: &Key) -> bool {
        match &self.purge.0 {
            What::Url(url) | What::Prefix(url) => is_under(key, url),
            What::Tag(_) | What::Everything => true,
        }
    }

    fn instead_of(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self::new(Purge::everything(), true), |mut one, mut item| {
            one.soft &= item.soft;
            one.floor = one.floor.min(item.floor);
            one.told.append(&mut item.told);
            one
        })
    }

    fn attempt(&mut self, token: u128) -> Attempt {
        let before = self.tokens.clone();
        if self.tokens.len() >= TOKENS {
            self.tokens.remove(1);
        }
        self.tokens.push(token);
        self.under_way = true;
        Attempt { id: self.id, purge: self.purge.clone(), soft: self.soft, token, before }
    }
}

#[cfg(test)]
mod tests;
