//! From a URL to the stored response of a request, past what its responses vary by.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;

use super::entry::{Entry, Kind, Record};
use super::fleet::{Control, Find, Fleet};
use super::flight::{Flights, Variant};
use super::intake::Intake;
use super::key::Key;
use super::status::Forward;
use super::store::{Reply, Store, StoreFailure};
use super::update::Held;
use super::vary::{Known, VarySpec};

/// What a finished lookup found.
pub(super) enum Found {
    /// A response, and the lookup that found it.
    Entry(Arc<Entry>, Search),
    /// Nothing.
    Miss(Miss),
    /// The request's own fields make the key too long.
    NoKey,
}

/// A lookup in vain: where to fetch, and why.
pub(super) struct Miss {
    pub(super) key: Key,
    /// [`Flights::stored`] of the key, before it was looked up.
    pub(super) seen: u64,
    pub(super) forward: Forward,
    /// What the URL's responses are known to vary by.
    pub(super) known: Option<Known>,
    /// What was found all the same, for validation.
    pub(super) held: Held,
    /// Where several processes share the store and it was asked: what it takes to store there, or that it did not answer.
    pub(super) control: Option<Box<Control>>,
}

/// What a lookup reads.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) fleet: Option<&'a dyn Fleet>,
    pub(super) flights: &'a Flights,
    pub(super) intake: &'a Intake,
    pub(super) primary: &'a Key,
    pub(super) request: &'a HeaderMap,
}

/// A store operation under way.
pub(super) enum Step {
    Own(Reply<Result<Option<Record>, StoreFailure>>),
    /// Of a store that several processes share.
    Shared(Pin<Box<dyn Future<Output = Result<Find, StoreFailure>> + Send>>),
}

impl Step {
    pub(super) async fn wait(self) -> Result<Find, StoreFailure> {
        match self {
            Self::Own(reply) => Ok(Find { record: reply.wait().await?, control: Control::default() }),
            Self::Shared(look) => look.await,
        }
    }
}

/// What an answer of the store has brought.
#[allow(clippy::large_enum_variant, reason = "taken apart at once")]
pub(super) enum Took {
    Found(Found),
    /// There is another key to look under, and the store has been asked.
    Further(Search, Step),
    /// The store has failed: there is nothing but a plain miss.
    Failed(StoreFailure, Miss),
}

/// A lookup under way: one store operation, or two where the responses vary.
#[derive(Clone)]
pub(super) struct Search {
    seen: u64,
    voided: u64,
    variant: Option<(Arc<VarySpec>, Key)>,
    control: Option<Box<Control>>,
}

impl Search {
    pub(super) fn new(sources: Sources<'_>) -> Self {
        let Sources { flights, primary, .. } = sources;
        Self { seen: flights.stored(primary), voided: flights.voided(primary), variant: None, control: None }
    }

    /// Starts at the variant: it is known by what the responses vary.
    ///
    /// # Errors
    /// The request's fields make the key too long.
    #[allow(clippy::result_large_err, reason = "it ends the lookup: taken apart at once")]
    pub(super) fn at_variant(sources: Sources<'_>, known: Known) -> Result<Self, Found> {
        let mut search = Self { voided: known.voided, ..Self::new(sources) };
        search.vary(sources, known.spec).map_or(Ok(search), Err)
    }

    /// Looks as far as the store answers at once.
    ///
    /// # Errors
    /// It takes a round trip: wait for it with [`later`](Self::later).
    #[allow(clippy::result_large_err, reason = "in a box, every lookup in memory would pay for those over a network")]
    pub(super) fn now(mut self, sources: Sources<'_>, now: SystemTime) -> Result<Found, (Self, Step)> {
        loop {
            let record = match sources.fleet {
                None => match sources.store.get(self.key(sources)) {
                    Reply::Now(Ok(record)) => record,
                    later => return Err((self, Step::Own(later))),
                },
                Some(fleet) => match fleet.recall(self.key(sources)) {
                    None => {
                        let look = fleet.look(self.key(sources));
                        return Err((self, Step::Shared(look)));
                    }
                    found => found,
                },
            };
            match self.feed(sources, record, now) {
                Ok(found) => return Ok(found),
                Err(further) => self = further,
            }
        }
    }

    /// What this process's memory has found is not fit: what all processes share may have something newer.
    pub(super) fn further(&self, sources: Sources<'_>) -> Option<Step> {
        let fleet = sources.fleet.filter(|_| self.control.is_none())?;
        Some(Step::Shared(fleet.look(self.key(sources))))
    }

    /// Waits for the store.
    ///
    /// # Errors
    /// It has failed: there is nothing but a plain miss.
    pub(super) async fn later(
        mut self,
        sources: Sources<'_>,
        mut step: Step,
        now: impl Fn() -> SystemTime,
    ) -> Result<Found, (StoreFailure, Miss)> {
        loop {
            match self.take(sources, step.wait().await, now()) {
                Took::Found(found) => return Ok(found),
                Took::Failed(failure, miss) => return Err((failure, miss)),
                Took::Further(search, next) => (self, step) = (search, next),
            }
        }
    }

    /// Goes on with an answer of the store.
    pub(super) fn take(mut self, sources: Sources<'_>, answer: Result<Find, StoreFailure>, now: SystemTime) -> Took {
        let Find { record, control } = match answer {
            Ok(find) => find,
            Err(failure) => {
                // Asked in vain: it is not asked again.
                self.control = sources.fleet.is_some().then(Box::default);
                return Took::Failed(failure, self.miss(sources, Forward::UriMiss));
            }
        };
        self.control = sources.fleet.is_some().then(|| Box::new(control));
        let further = match self.feed(sources, record, now) {
            Ok(found) => return Took::Found(found),
            Err(further) => further,
        };
        let key = further.key(sources);
        let step = match sources.fleet {
            None => Step::Own(sources.store.get(key)),
            Some(fleet) => Step::Shared(fleet.look(key)),
        };
        Took::Further(further, step)
    }

    /// # Errors
    /// Look under the new key.
    fn feed(mut self, sources: Sources<'_>, record: Option<Record>, now: SystemTime) -> Result<Found, Self> {
        let missing = if self.variant.is_some() { Forward::VaryMiss } else { Forward::UriMiss };
        match record.map(|record| record.0) {
            None => Ok(Found::Miss(self.miss(sources, missing))),
            Some(Kind::Response(entry)) => Ok(Found::Entry(entry, self)),
            // Under a variant's key stands only a response.
            Some(Kind::Vary(_)) if self.variant.is_some() => Ok(Found::Miss(self.miss(sources, missing))),
            Some(Kind::Vary(spec)) if now >= spec.until => {
                sources.store.discard(sources.primary, &Record(Kind::Vary(spec)));
                Ok(Found::Miss(self.miss(sources, missing)))
            }
            Some(Kind::Vary(spec)) => self.vary(sources, spec).ok_or(self),
        }
    }

    fn vary(&mut self, sources: Sources<'_>, spec: Arc<VarySpec>) -> Option<Found> {
        let Some(key) = spec.key(sources.intake, sources.primary, sources.request) else { return Some(Found::NoKey) };
        self.seen = sources.flights.stored(&key);
        self.variant = Some((spec, key));
        None
    }

    /// Nothing found that could be used.
    pub(super) fn miss(&self, sources: Sources<'_>, forward: Forward) -> Miss {
        let key = self.key(sources).clone();
        let (known, control) = (self.known(), self.control.clone());
        Miss { key, seen: self.seen, forward, known, held: Held::default(), control }
    }

    /// What several processes share does not answer this request, and is not asked again.
    pub(super) fn unanswered(mut self) -> Self {
        self.control = Some(Box::default());
        self
    }

    /// Where the URL's responses vary: by what, and the key.
    pub(super) fn variant(&self) -> Option<Variant> {
        self.variant.clone()
    }

    fn known(&self) -> Option<Known> {
        self.variant.as_ref().map(|(spec, _)| Known { spec: spec.clone(), voided: self.voided })
    }

    pub(super) fn key<'a>(&'a self, sources: Sources<'a>) -> &'a Key {
        self.variant.as_ref().map_or(sources.primary, |(_, key)| key)
    }
}
