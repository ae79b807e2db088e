//! Before a fetch for everybody: where several processes share the store, one of them fetches.

use std::sync::Arc;

use http::Response;
use tokio::time::Instant;

use super::body::ResponseBody;
use super::entry::{Entry, Head};
use super::fleet::{Claim, Fleet};
use super::flight::Landed;
use super::lookup::{Found, Search};
use super::plan::Plan;
use super::status::{Mark, forwarded};
use super::store::StoreFailure;

/// How often it looks again, for what other processes have stored.
const MAX_ROUNDS: usize = 4;

/// How a fetch for everybody goes on.
pub(super) enum Clear {
    /// As it is: for all processes, or for this one.
    ForAll,
    /// Not at all: another process has stored what it would bring.
    Found(Arc<Landed>),
    /// Alone: another process has found that the response is not for sharing.
    Unshared,
}

impl Plan {
    /// Asks for the right to fetch, and waits for another process that has it.
    pub(super) async fn clear_the_way(&mut self, deadline: Instant) -> Clear {
        let Some(fleet) = self.case.shared.fleet.clone() else { return Clear::ForAll };
        let clear = self.claim(&*fleet, deadline).await;
        self.start_over();
        clear
    }

    async fn claim(&mut self, fleet: &dyn Fleet, deadline: Instant) -> Clear {
        for _ in 0..MAX_ROUNDS {
            if self.control.is_none() {
                // What was found in this process's memory has told nothing of the others.
                match self.look_further().await {
                    Ok(Some(landed)) => return Clear::Found(landed),
                    Ok(None) => {}
                    Err(_) => return Clear::ForAll,
                }
            }
            let Some(control) = self.control.as_deref().filter(|control| control.marked) else { return Clear::ForAll };
            let (voided, epoch) = self.bearings();
            let patience = deadline.saturating_duration_since(Instant::now());
            match fleet.claim(&self.key, *control, patience).await {
                Claim::Granted(lease) => {
                    self.hold(lease);
                    if self.bearings() != (voided, epoch) {
                        // Purged while it waited: what it knew of the key would not let its response be stored.
                        self.control = None;
                        if let Ok(Some(landed)) = self.look_further().await {
                            return Clear::Found(landed);
                        }
                    }
                    return Clear::ForAll;
                }
                Claim::LookAgain => self.control = None,
                Claim::Unshared => return Clear::Unshared,
                Claim::Alone => return Clear::ForAll,
            }
        }
        Clear::ForAll
    }

    fn bearings(&self) -> (u64, u64) {
        let shared = &self.case.shared;
        (shared.flights.voided(&self.case.primary), shared.purges.epoch())
    }

    /// Looks for what other processes have stored for the request. `Some`: it can be the answer. Else what it takes to
    /// fetch and to store is known; the key may be another, since another process has found by what the responses vary.
    pub(super) async fn look_further(&mut self) -> Result<Option<Arc<Landed>>, StoreFailure> {
        let (case, voided) = (&self.case, self.case.shared.flights.voided(&self.case.primary));
        let sources = case.sources(&self.request);
        let search = Search::new(sources);
        let Some(step) = search.further(sources) else { return Ok(None) };
        let found = match search.later(sources, step, || case.now()).await {
            Ok(found) => found,
            Err((failure, _)) => {
                case.shared.metrics.store_errors.increment(1);
                return Err(failure);
            }
        };
        let (miss, landed) = match found {
            Found::NoKey => return Ok(None),
            Found::Miss(miss) => (miss, None),
            Found::Entry(entry, search) => {
                // One that is renewed before its time may be there still.
                let dates = |head: &Head| (head.fresh_until, head.born);
                let is_newer = |own: &Arc<Entry>| dates(&entry.head) > dates(&own.head);
                let fit = case.is_fit(&entry) && self.held.own.as_ref().is_none_or(is_newer);
                let landed = fit.then(|| Landed { entry, variant: search.variant(), voided });
                (search.miss(sources, self.forward), landed)
            }
        };
        (self.key, self.control, self.spec) = (miss.key, miss.control, miss.known.map(|known| known.spec));
        Ok(landed.map(Arc::new))
    }

    /// The answer from what another process has stored.
    pub(super) fn collapsed<B>(&self, entry: &Entry) -> Response<ResponseBody<B>> {
        let mut response = entry.answer(self.case.asked.head, &self.request, self.case.now());
        forwarded(response.headers_mut(), self.forward, None, Mark::Collapsed);
        response.map(ResponseBody::own)
    }

    /// Whether the others cannot have a body of this length.
    pub(super) fn is_too_long_for_others(&self, length: Option<u64>) -> bool {
        let longest = self.case.shared.fleet.as_ref().map(|fleet| fleet.longest() as u64);
        length.zip(longest).is_some_and(|(length, longest)| length > longest)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
