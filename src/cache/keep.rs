//! A whole response's place in the store, and how it loses it.

use std::future::Future;
use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::entry::{Entry, Kind, Record};
use super::fleet::{Fence, Fleet, Lease};
use super::flight::Landed;
use super::key::Key;
use super::layer::Shared;
use super::markers;
use super::plan::Plan;
use super::purge::Purged;
use super::store::{Reply, StoreFailure, finish};
use super::vary::VarySpec;

/// Responses per URL. Beyond: the oldest goes.
const MAX_VARIANTS: usize = 32;

type Write = Reply<Result<(), StoreFailure>>;

/// What it takes to store a response.
struct Writes {
    response: Write,
    /// Where the URL's responses vary.
    spec: Option<Write>,
    /// Takes out the response that there is no place for any more.
    oldest: Option<Write>,
}

impl Plan {
    /// The stored response no longer holds, and there is no other in its place. It goes also if the client leaves.
    pub(super) async fn drop_stored(&self) {
        let shared = self.case.shared.clone();
        let sources = self.case.sources(&self.request);
        let key = self.spec.as_ref().and_then(|spec| spec.key(sources.intake, sources.primary, sources.request));
        let removal = shared.store.remove(key.as_ref().unwrap_or(&self.case.primary));
        let _ = finish(Box::pin(async move { shared.done(removal).await })).await;
    }

    /// A full response has come in place of the stored one (RFC 9111 §4.3.3), and is not stored itself: nobody gets the
    /// outdated one any more. A response to credentials, or one that only says how this request was received, tells
    /// nothing of it.
    pub(super) async fn supersede(&self, status: StatusCode) {
        let tells =
            status.is_success() || matches!(status.as_u16(), 300..=303 | 305..=308 | 401 | 403 | 404 | 410 | 451);
        if tells && self.held.own.is_some() && !self.case.asked.credentials {
            self.drop_stored().await;
        }
    }

    /// Stores a whole response, unless its URL was invalidated since the request was forwarded.
    pub(super) async fn keep(&self, landed: &Landed) {
        let (shared, took) = (&self.case.shared, self.began.elapsed());
        let stored = match &shared.fleet {
            None => self.keep_alone(landed).await,
            Some(fleet) => self.keep_for_all(&**fleet, landed).await,
        };
        if stored {
            self.note_stored(landed);
            shared.metrics.fill_seconds.record(took.as_secs_f64());
        } else if shared.fleet.is_some() {
            // Another process's may be there instead: who has looked before that is to look again, not to fetch.
            for key in std::iter::once(&self.case.primary).chain(landed.variant.as_ref().map(|(_, key)| key)) {
                shared.flights.note_stored(key, false);
            }
        }
    }

    /// In a store that only this process knows of, or that compares nothing.
    async fn keep_alone(&self, landed: &Landed) -> bool {
        let (shared, primary) = (&self.case.shared, &self.case.primary);
        let _writing = shared.flights.writing(primary).await;
        // A store in memory is written here, where no invalidation can come between the look and the writing.
        let may = || self.writable && !self.is_void(&landed.entry) && !self.is_overtaken(landed);
        let begin = || may().then(|| self.begin_to_store(landed));
        let Some(Writes { response, spec, oldest }) = shared.flights.in_order(primary, begin) else { return false };
        let stored = shared.done(response).await
            && match spec {
                Some(spec) => shared.done(spec).await,
                None => true,
            };
        if let Some(oldest) = oldest {
            // Where it fails, the response expires in its own time.
            shared.done(oldest).await;
        }
        if self.is_void(&landed.entry) {
            // The invalidation came before the store had answered, and may have found nothing.
            shared.done(shared.store.remove(primary)).await;
            // Whoever has read the spec meanwhile must not store with it.
            shared.flights.note_voided(primary);
        }
        stored
    }

    /// In a store that compares what was known before the request was forwarded: no lock, and no second look.
    async fn keep_for_all(&self, fleet: &dyn Fleet, landed: &Landed) -> bool {
        let (shared, primary) = (&self.case.shared, &self.case.primary);
        let too_long = landed.entry.body.len() > fleet.longest();
        let lease = if too_long {
            self.renounce();
            None
        } else {
            self.lease()
        };
        let control = self.control.as_deref().copied().unwrap_or_default();
        let token = |key: &Key| lease.as_ref().filter(|lease| lease.is_for(key)).map(Lease::token);
        let put = |key: &Key, record| fleet.put(key, record, Fence { control, lease: token(key) });
        let may = || self.writable && !self.is_void(&landed.entry) && !self.is_overtaken(landed);
        let key = landed.variant.as_ref().map_or(primary, |(_, key)| key);
        let response = || Record(Kind::Response(landed.entry.clone()));
        // This process's memory has both at once.
        let begin = || {
            let next = self.next_spec(landed);
            let response = put(key, response());
            let (spec, oldest) = next.unzip();
            (response, spec.map(|spec| put(primary, Record(Kind::Vary(spec)))), oldest.flatten())
        };
        let Some((response, spec, oldest)) = shared.flights.in_order(primary, || may().then(begin)) else {
            return false;
        };
        let told = shared.put(response).await;
        let mut stored = told == Some(true);
        // Where the response is outdated, so is the spec: this process's memory must lose both.
        if let Some(spec) = spec.filter(|_| stored || told.is_some() && !too_long) {
            stored &= shared.put(spec).await == Some(true);
        }
        if let Some(oldest) = oldest.filter(|_| stored) {
            shared.done(shared.store.remove(&oldest)).await;
        }
        // Of another key, it has not ended with the storing: that of a variant whose URL's responses vary no more.
        if let Some(lease) = lease.filter(|lease| stored && (lease.is_for(key) || lease.is_for(primary))) {
            lease.spend();
        }
        stored
    }

    fn note_stored(&self, landed: &Landed) {
        let (shared, primary) = (&self.case.shared, &self.case.primary);
        let is_fresh = landed.entry.head.is_fresh(self.case.now());
        for key in std::iter::once(primary).chain(landed.variant.as_ref().map(|(_, key)| key)) {
            shared.flights.note_stored(key, is_fresh);
        }
        let key = landed.variant.as_ref().map_or(primary, |(_, key)| key);
        if landed.entry.head.shared {
            shared.flights.markers.mark(key, markers::Mark::Permitted, Instant::now());
        } else {
            shared.flights.markers.lift(key, markers::Mark::Permitted);
        }
    }

    fn is_void(&self, entry: &Entry) -> bool {
        let shared = &self.case.shared;
        shared.flights.voided(&self.case.primary) != self.voided
            || shared.purges.verdict(self.stamp, &self.case.primary, &entry.head.tags) != Purged::No
    }

    /// Whether the response to a request that was forwarded later is stored already, as far as the store tells at once.
    fn is_overtaken(&self, landed: &Landed) -> bool {
        let key = landed.variant.as_ref().map_or(&self.case.primary, |(_, key)| key);
        match self.case.shared.store.get(key) {
            Reply::Now(Ok(Some(Record(Kind::Response(stored))))) => stored.head.stamp > landed.entry.head.stamp,
            _ => false,
        }
    }

    /// The response, and where the URL's responses vary the spec after it: whoever finds that finds the response.
    fn begin_to_store(&self, landed: &Landed) -> Writes {
        let (store, primary) = (&*self.case.shared.store, &self.case.primary);
        let key = landed.variant.as_ref().map_or(primary, |(_, key)| key);
        let next = self.next_spec(landed);
        let response = store.put(key, Record(Kind::Response(landed.entry.clone())));
        let Some((spec, oldest)) = next else { return Writes { response, spec: None, oldest: None } };
        let oldest = oldest.map(|oldest| store.remove(&oldest));
        Writes { response, spec: Some(store.put(primary, Record(Kind::Vary(spec)))), oldest }
    }

    /// What is to be stored under the URL where its responses vary, and the key that there is no place for any more.
    fn next_spec(&self, landed: &Landed) -> Option<(Arc<VarySpec>, Option<Key>)> {
        let (spec, key) = landed.variant.as_ref()?;
        let current = match self.case.shared.store.get(&self.case.primary) {
            Reply::Now(Ok(Some(Record(Kind::Vary(current))))) if current.generation == spec.generation => current,
            _ => spec.clone(),
        };
        if current.variants.contains(key) && current.until >= landed.entry.head.keep_until {
            return Some((current, None));
        }
        let mut next = VarySpec::clone(&current);
        next.until = next.until.max(landed.entry.head.keep_until);
        if !next.variants.contains(key) {
            next.variants.push(key.clone());
        }
        let oldest = (next.variants.len() > MAX_VARIANTS).then(|| next.variants.remove(0));
        Some((Arc::new(next), oldest))
    }
}

impl Shared {
    /// `None`: the store has failed.
    async fn put(&self, write: impl Future<Output = Result<bool, StoreFailure>>) -> Option<bool> {
        let stored = write.await;
        if stored.is_err() {
            self.metrics.store_errors.increment(1);
        }
        stored.ok()
    }

    /// Waits until the store has written. A failure is counted.
    pub(super) async fn done(&self, write: Write) -> bool {
        let done = write.wait().await.is_ok();
        if !done {
            self.metrics.store_errors.increment(1);
        }
        done
    }
}
