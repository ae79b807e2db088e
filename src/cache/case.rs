//! One request's business with one cache: what may be answered from what is stored.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::runtime::Handle;

use super::body::ResponseBody;
use super::early;
use super::entry::Entry;
use super::key::Key;
use super::layer::{Config, Shared};
use super::lookup::{Miss, Search, Sources};
use super::metrics::{Outcome, Refresh, Stale};
use super::purge::Purged;
use super::request::Asked;
use super::reuse::{self, Demand, Use};
use super::status::{self, Forward, Mark};
use super::update::Held;

/// The cache, and what one request asks of it.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) shared: Arc<Shared>,
    pub(super) config: Arc<Config>,
    pub(super) primary: Key,
    pub(super) asked: Asked,
}

/// What a stored response is good for.
pub(super) enum Verdict<B> {
    Answer(Response<ResponseBody<B>>),
    /// Answer, and renew it.
    Renew(Response<ResponseBody<B>>, Miss, Refresh),
    Fetch(Miss),
}

impl Case {
    pub(super) fn sources<'a>(&'a self, request: &'a HeaderMap) -> Sources<'a> {
        self.shared.sources(&self.config, &self.primary, request)
    }

    pub(super) fn now(&self) -> SystemTime {
        self.config.clock.now()
    }

    /// Decides about a stored response that the lookup has found.
    pub(super) fn decide<B>(
        &self,
        request: &HeaderMap,
        entry: Arc<Entry>,
        search: &Search,
        now: SystemTime,
    ) -> Verdict<B> {
        let (shared, sources) = (&self.shared, self.sources(request));
        match shared.judge(&self.config, &self.asked, &self.primary, &entry, now) {
            Use::Fresh => {
                let response = shared.answer(&self.asked, request, &entry, now);
                if !early::is_due(&entry.head, &self.config, &self.asked, now) {
                    return Verdict::Answer(response);
                }
                let held = Held { own: Some(entry), others: Vec::new() };
                Verdict::Renew(response, Miss { held, ..search.miss(sources, Forward::Stale) }, Refresh::Early)
            }
            Use::Renew => {
                // Also what a soft purge has made stale before its time.
                let response = shared.answer_stale(&self.asked, request, &entry, now);
                let held = Held { own: Some(entry), others: Vec::new() };
                Verdict::Renew(response, Miss { held, ..search.miss(sources, Forward::Stale) }, Refresh::Stale)
            }
            Use::Validate => {
                let by_request = self.asked.control.is_some() && entry.head.is_fresh(now);
                let forward = if by_request { Forward::Request } else { Forward::Stale };
                let held = Held { own: Some(entry), others: Vec::new() };
                Verdict::Fetch(Miss { held, ..search.miss(sources, forward) })
            }
            Use::Withhold => Verdict::Fetch(search.miss(sources, Forward::Request)),
            Use::Gone => {
                shared.store.discard(search.key(sources), &super::entry::record(entry));
                Verdict::Fetch(search.miss(sources, Forward::Stale))
            }
        }
    }

    /// Whether a stored response can be the answer without a look for a newer one.
    pub(super) fn is_fit(&self, entry: &Entry) -> bool {
        self.shared.judge(&self.config, &self.asked, &self.primary, entry, self.now()) == Use::Fresh
    }

    /// How long a fetch may take before what is held stands in for it. It takes a timer.
    pub(super) fn patience(&self, held: &Held) -> Option<Duration> {
        self.config.fetch_timeout.filter(|_| held.own.is_some() && Handle::try_current().is_ok())
    }

    /// What is stored, where that may stand in for an error (RFC 5861 §4).
    pub(super) fn rescue<B>(
        &self,
        request: &HeaderMap,
        held: &Held,
        forward: Forward,
        answered: Option<StatusCode>,
    ) -> Option<Response<ResponseBody<B>>> {
        let (own, now) = (held.own.as_ref()?, self.now());
        if !reuse::is_better_than_an_error(&own.head, self.shared.purged(&self.primary, own), now) {
            return None;
        }
        let mut response = own.answer(self.asked.head, request, now);
        status::forwarded(response.headers_mut(), forward, answered, Mark::Rescued);
        Some(response.map(ResponseBody::own))
    }
}

/// A request that was not answered at once: counted when it ends, also by its client's leaving.
pub(super) struct Counted {
    shared: Arc<Shared>,
    pub(super) outcome: Outcome,
    elsewhere: bool,
}

impl Counted {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), outcome: Outcome::Miss, elsewhere: false }
    }

    /// Somebody else counts it.
    pub(super) fn leave_to_others(mut self) {
        self.elsewhere = true;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.elsewhere {
            self.shared.count(self.outcome);
        }
    }
}

impl Shared {
    pub(super) fn sources<'a>(&'a self, config: &'a Config, primary: &'a Key, request: &'a HeaderMap) -> Sources<'a> {
        let (store, fleet) = (&*self.store, self.fleet.as_deref());
        Sources { store, fleet, flights: &self.flights, intake: &config.intake, primary, request }
    }

    /// Counts what became of a request that was not answered at once.
    pub(super) fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Stale => self.metrics.stale(Stale::Error),
            outcome => self.metrics.count(outcome),
        }
    }

    fn purged(&self, primary: &Key, entry: &Entry) -> Purged {
        self.purges.verdict(entry.head.stamp, primary, &entry.head.tags)
    }

    /// What a stored response may be used for.
    pub(super) fn judge(&self, config: &Config, asked: &Asked, primary: &Key, entry: &Entry, now: SystemTime) -> Use {
        if (asked.if_range || asked.head) && entry.head.status == StatusCode::PARTIAL_CONTENT {
            // The part may be stored; whether it is one of the whole that the client holds cannot be told. `Range` means
            // nothing to HEAD (RFC 9110 §14.2).
            return Use::Withhold;
        }
        let demand = Demand {
            credentials: asked.credentials,
            control: asked.control.as_ref(),
            targeted: &config.policy.targeted,
            now,
        };
        reuse::judge(&entry.head, self.purged(primary, entry), demand)
    }

    /// The answer from what is stored.
    pub(super) fn answer<B>(
        &self,
        asked: &Asked,
        request: &HeaderMap,
        entry: &Entry,
        now: SystemTime,
    ) -> Response<ResponseBody<B>> {
        if !entry.head.is_fresh(now) {
            return self.answer_stale(asked, request, entry, now);
        }
        self.metrics.count(Outcome::Hit);
        with_status(asked, request, entry, now, status::hit(entry.head.ttl(now)))
    }

    /// The answer from what has expired, or was softly purged.
    fn answer_stale<B>(
        &self,
        asked: &Asked,
        request: &HeaderMap,
        entry: &Entry,
        now: SystemTime,
    ) -> Response<ResponseBody<B>> {
        let by_request = asked.control.as_ref().is_some_and(|control| control.max_stale.is_some());
        self.metrics.stale(if by_request { Stale::Request } else { Stale::Revalidate });
        let status = match entry.head.stale_for(now) {
            0 => status::hit(0),
            expired => status::stale_hit(expired),
        };
        with_status(asked, request, entry, now, status)
    }
}

fn with_status<B>(
    asked: &Asked,
    request: &HeaderMap,
    entry: &Entry,
    now: SystemTime,
    status: HeaderValue,
) -> Response<ResponseBody<B>> {
    if asked.plain {
        return entry.whole(now, status, ResponseBody::own);
    }
    let mut response = entry.answer(asked.head, request, now).map(ResponseBody::own);
    status::append(response.headers_mut(), status);
    response
}
