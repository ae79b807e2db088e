//! What all services share that one layer value wraps.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};

use super::fallback::Choice;
use super::fields::Stamp;
use super::gate::{Gate, Predicate};
use super::head::Head;
use super::limiter::Share;
use super::metrics::{self, Metrics};
use super::outcome::Outcome;
use super::partition::Partition;
use super::ticket::Paid;
use super::time::Time;
use super::verdict::{Decision, Verdict};
use crate::client_ip::{PeerAlarm, TrustAlarm};
use crate::refusal::{Caller, Reason, Refusal, Refuse};

pub(crate) type Cost = Arc<dyn Fn(&Head<'_>) -> u32 + Send + Sync>;
pub(crate) type Counts = Arc<dyn Fn(&Outcome<'_>) -> bool + Send + Sync>;

pub(crate) struct Shared {
    /// In the order in which they are tried; the last one concerns everybody.
    pub(crate) gates: Box<[Arc<Gate>]>,
    pub(crate) skip: Vec<Predicate>,
    pub(crate) cost: Option<Cost>,
    pub(crate) counts: Option<Counts>,
    pub(crate) refund_abandoned: bool,
    pub(crate) shadow: bool,
    pub(crate) fallback: Choice,
    pub(crate) time: Time,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refuse: Refuse,
    pub(crate) alarm: PeerAlarm,
    pub(crate) trust_alarm: TrustAlarm,
}

/// A Redis that is back is asked again within this time.
const BREAK: Duration = Duration::from_secs(1);

/// Who has decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Judge {
    /// In which case what it admits is owed here, too.
    Redis,
    Process,
    /// This process, in place of Redis, which gives away a part of the quotas.
    Fallback(Share),
}

impl Judge {
    /// What a request is charged that it admits.
    fn paid(self) -> Paid {
        match self {
            Self::Redis => Paid::Redis,
            Self::Process => Paid::Here(Share::WHOLE),
            Self::Fallback(share) => Paid::Here(share),
        }
    }
}

/// What is to become of a request.
pub(crate) enum Ruling {
    /// With what it was charged, if it was.
    Pass(Stamp, Option<Paid>),
    Refuse(Response<Bytes>),
}

impl Shared {
    pub(crate) fn skips(&self, head: &Head<'_>) -> bool {
        self.skip.iter().any(|skip| skip(head))
    }

    /// The first policy that concerns a request.
    pub(crate) fn gate(&self, head: &Head<'_>) -> Option<&Arc<Gate>> {
        self.gates.iter().find(|gate| gate.when.as_ref().is_none_or(|when| when(head)))
    }

    /// `None`: it is free.
    pub(crate) fn cost(&self, head: &Head<'_>) -> Option<NonZeroU32> {
        NonZeroU32::new(self.cost.as_ref().map_or(1, |cost| cost(head)))
    }

    /// Decides in process, because there is no Redis, or because it did not.
    pub(crate) fn decide_here<B>(
        &self,
        gate: &Gate,
        client: Partition,
        cost: u32,
        now: u64,
        request: &Request<B>,
    ) -> Ruling {
        let take = |share| {
            let verdict = gate.local.limiter.take(client, cost, share, now);
            if verdict.admitted() || !self.time.is_coarse() {
                return verdict;
            }
            gate.local.limiter.take(client, cost, share, self.time.exactly())
        };
        if !gate.has_remote() {
            return self.rule(gate, &take(Share::WHOLE), Judge::Process, request);
        }
        match self.fallback {
            Choice::Local(share) => self.rule(gate, &take(share), Judge::Fallback(share), request),
            Choice::Admit => {
                self.metrics.count(metrics::Decision::AdmittedDegraded);
                Ruling::Pass(Stamp::None, None)
            }
            Choice::Refuse => self.refuse_degraded(request),
        }
    }

    /// What a verdict means for the request.
    pub(crate) fn rule<B>(&self, gate: &Gate, verdict: &Verdict, judge: Judge, request: &Request<B>) -> Ruling {
        let decision = metrics::Decision::of(verdict.decision, matches!(judge, Judge::Fallback(_)));
        let reason = match verdict.decision {
            Decision::Admitted => {
                self.metrics.count(decision);
                let stamp = if self.shadow { Stamp::None } else { gate.local.stamp(verdict) };
                return Ruling::Pass(stamp, Some(judge.paid()));
            }
            Decision::Refused => Reason::QuotaExceeded,
            Decision::Inherited => Reason::DebtInherited,
            Decision::Blocked => Reason::Blocked,
        };
        if gate.local.policy.key.is_address() {
            self.trust_alarm.notice_unidentified(request.headers(), request.extensions());
        }
        let refusal = || Refusal::new(reason, Caller::of(request)).retry_after_at_least(verdict.wait);
        self.refuse(decision, refusal, || gate.local.stamp(verdict))
    }

    /// Redis should have decided, and nobody else may.
    fn refuse_degraded<B>(&self, request: &Request<B>) -> Ruling {
        let refusal = || Refusal::new(Reason::LimiterUnavailable, Caller::of(request)).retry_after_at_least(BREAK);
        self.refuse(metrics::Decision::RefusedDegraded, refusal, || Stamp::None)
    }

    /// Refuses a request, unless all of this is only to see what would be.
    fn refuse(
        &self,
        decision: metrics::Decision,
        refusal: impl FnOnce() -> Refusal,
        stamp: impl FnOnce() -> Stamp,
    ) -> Ruling {
        if self.shadow {
            self.metrics.count(metrics::Decision::Shadowed);
            return Ruling::Pass(Stamp::None, None);
        }
        self.metrics.count(decision);
        let mut response = self.refuse.respond(&refusal());
        stamp().append(response.headers_mut());
        Ruling::Refuse(response)
    }

    /// A request without a peer. One key for all of those would let any of them lock out the rest.
    pub(crate) fn rule_on_stranger<B>(&self, request: &Request<B>) -> Ruling {
        self.alarm.raise();
        self.metrics.count(metrics::Decision::PeerUnknown);
        if self.shadow {
            return Ruling::Pass(Stamp::None, None);
        }
        Ruling::Refuse(self.refuse.respond(&Refusal::new(Reason::PeerUnknown, Caller::of(request))))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("gates", &self.gates).finish_non_exhaustive()
    }
}
