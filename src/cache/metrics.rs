//! The module's numbers.

use super::purge::What;
use super::tally::Tally;
use crate::meter::{Counter, Counters, Gauge, Histogram, Meter};

const REQUESTS: Meter = Meter::new(
    "cache_requests_total",
    "Requests, by what the cache did: hit, stale, revalidated, miss, collapsed, bypass, failed",
);
const STALE: Meter = Meter::new(
    "cache_stale_served_total",
    "Stale responses served, by what permitted it: revalidate (while it is renewed), error (in place of one), request",
);
const REFRESHES: Meter = Meter::new(
    "cache_refreshes_total",
    "Fetches in the background, by what they renew: stale (it was served although it had expired), early (it soon will)",
);
const PURGES: Meter = Meter::new("cache_purges_total", "Purges, by what they named: url, prefix, tag, everything");
const FILLS: Meter = Meter::new("cache_fills_in_flight", "Responses being fetched or collected for the store");
const WAITERS: Meter = Meter::new("cache_waiters", "Requests that wait for another request's response");
const STORE_ERRORS: Meter =
    Meter::new("cache_store_errors_total", "Store operations that failed: a lookup is then a miss");
const FILL_SECONDS: Meter =
    Meter::new("cache_fill_seconds", "Time from a request's forward to the end of its response's body, where stored");
const ENTRIES: Meter = Meter::new("cache_entries", "Entries in the memory stores, expired ones included");
const EVICTIONS: Meter = Meter::new("cache_evictions_total", "Entries that had to make room in the memory stores");
const BYTES: Meter = Meter::new("cache_bytes", "Bytes in the memory stores: keys, fields, bodies and overhead");

/// What the cache did with a request: each has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered from the store, fresh.
    Hit,
    /// Answered from the store although it had expired: count it with [`Metrics::stale`].
    Stale,
    /// Answered from the store after the inner service had confirmed it (304).
    Revalidated,
    /// Looked up in vain and forwarded.
    Miss,
    /// Answered with the response to another request.
    Collapsed,
    /// Forwarded without a look.
    Bypass,
    /// Refused: the fetch that it waited for failed, or nothing is stored and it forbids to forward it.
    Failed,
}

impl Outcome {
    pub(super) const COUNT: usize = Self::WORDS.len();
    /// In the order of the variants.
    const WORDS: [&str; 7] = ["hit", "stale", "revalidated", "miss", "collapsed", "bypass", "failed"];
}

/// What permits a stale answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// It is being renewed (RFC 5861 §3).
    Revalidate,
    /// There is none but an error (RFC 5861 §4).
    Error,
    /// The request asks for it (`max-stale`, RFC 9111 §5.2.1.2).
    Request,
}

impl Stale {
    /// In the order of the variants.
    const WORDS: [&str; 3] = ["revalidate", "error", "request"];
}

/// Why something is renewed in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refresh {
    /// It was served stale.
    Stale,
    /// It expires soon.
    Early,
}

impl Refresh {
    /// In the order of the variants.
    const WORDS: [&str; 2] = ["stale", "early"];
}

/// One layer's handles.
pub(super) struct Metrics {
    tally: Tally,
    requests: Counters<{ Outcome::COUNT }>,
    stale: Counters<3>,
    purges: Counters<4>,
    refreshes: Counters<2>,
    fills: Gauge,
    waiters: Gauge,
    pub(super) store_errors: Counter,
    pub(super) fill_seconds: Histogram,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            tally: Tally::new(),
            requests: Counters::new(REQUESTS, "outcome", Outcome::WORDS),
            stale: Counters::new(STALE, "reason", Stale::WORDS),
            purges: Counters::new(PURGES, "kind", ["url", "prefix", "tag", "everything"]),
            refreshes: Counters::new(REFRESHES, "reason", Refresh::WORDS),
            fills: Gauge::new(FILLS),
            waiters: Gauge::new(WAITERS),
            store_errors: Counter::new(STORE_ERRORS),
            fill_seconds: Histogram::new(FILL_SECONDS),
        }
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.tally.count(outcome);
        self.requests.count(outcome as usize);
    }

    /// Counts a stale answer: the request, and why.
    pub(super) fn stale(&self, why: Stale) {
        self.count(Outcome::Stale);
        self.stale.count(why as usize);
    }

    pub(super) fn refresh(&self, why: Refresh) {
        self.refreshes.count(why as usize);
    }

    pub(super) fn purge(&self, what: &What) {
        self.purges.count(match what {
            What::Url(_) => 0,
            What::Prefix(_) => 1,
            What::Tag(_) => 2,
            What::Everything => 3,
        });
    }

    /// The requests so far.
    pub(super) fn counted(&self, outcome: Outcome) -> u64 {
        self.tally.counted(outcome)
    }

    pub(super) fn fill_began(&self) {
        self.fills.increment(1.0);
    }

    pub(super) fn fill_ended(&self) {
        self.fills.decrement(1.0);
    }

    pub(super) fn waiter_came(&self) {
        self.waiters.increment(1.0);
    }

    pub(super) fn waiter_left(&self) {
        self.waiters.decrement(1.0);
    }
}

/// A memory store's handles.
pub(super) struct Usage {
    pub(super) entries: Gauge,
    pub(super) bytes: Gauge,
    pub(super) evictions: Counter,
}

impl Usage {
    pub(super) fn new() -> Self {
        Self { entries: Gauge::new(ENTRIES), bytes: Gauge::new(BYTES), evictions: Counter::new(EVICTIONS) }
    }
}
