//! What is known of a request when it is forwarded, to decide about its response and to answer its client.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Response, StatusCode, response};
use http_body::Body;
use tokio::time::Instant;

use super::audience::Audience;
use super::body::ResponseBody;
use super::case::Case;
use super::collect::Collector;
use super::conditional::is_same_strong_tag;
use super::control::{CacheTags, CacheTtl, NoStore, TooMany};
use super::early;
use super::entry::{Entry, Head, Kind, Provenance, Record};
use super::fleet::{Control, Lease};
use super::flight::{Landed, Stream, Variant};
use super::key::Key;
use super::log::{Reader, Writer, cost_of};
use super::lookup::Miss;
use super::purge::Purged;
use super::range::{self, Selection};
use super::status::{Forward, Mark, forwarded};
use super::store::Reply;
use super::storing::{Exchange, Rules, Terms, Verdict, assess};
use super::sync::{Mutex, lock};
use super::update::{Held, Likeness, compare, freshened};
use super::vary::{Known, VarySpec};
use crate::scope::Scope;

/// What a URL's responses vary by is remembered for at least this time, beyond any one response.
const SPEC_LIFETIME: std::time::Duration = std::time::Duration::from_secs(3600);

pub(super) struct Plan {
    pub(super) case: Case,
    /// What was looked for in vain.
    pub(super) key: Key,
    /// What it takes to store for other processes, or that this request has asked in vain.
    pub(super) control: Option<Box<Control>>,
    /// The right to fetch for them.
    lease: Mutex<Option<Lease>>,
    /// The request's fields as its client sent them, apart from what no handler may see.
    pub(super) request: HeaderMap,
    pub(super) forward: Forward,
    /// What the URL's responses are known to vary by.
    pub(super) spec: Option<Arc<VarySpec>>,
    pub(super) held: Held,
    /// The forwarded request carries our conditions.
    validating: bool,
    manner: Manner,
    /// Whether the store may be written: not after it has failed this request.
    pub(super) writable: bool,
    requested: SystemTime,
    pub(super) began: Instant,
    pub(super) voided: u64,
    pub(super) stamp: u64,
    pub(super) scope: Scope,
}

/// How the request goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// For everybody who waits: as a plain GET, whatever its client wants of the response.
    Shared,
    /// For its client alone, with the client's own conditions and range unless there is something to validate.
    Alone,
}

/// What a response turned out to be.
pub(super) enum Judged<B> {
    /// A stored response holds. It may be stored again, or (`None`) must go.
    Renewed(Renewal),
    Gone(Arc<Entry>),
    Storable(Terms, Response<B>),
    Uncacheable(Response<B>),
    Failed(Response<B>),
}

/// A stored response that holds, with the fields of its update.
pub(super) struct Renewal {
    pub(super) entry: Arc<Entry>,
    pub(super) variant: Option<Variant>,
    /// What the update says to its own client alone (`private` and `no-cache` with a list).
    pub(super) own: HeaderMap,
}

impl Plan {
    /// Prepares `parts` to be forwarded.
    pub(super) fn new(case: Case, parts: &mut Parts, miss: Miss, manner: Manner, writable: bool) -> Self {
        let shared = &case.shared;
        let voided = shared.flights.voided(&case.primary);
        let stamp = shared.purges.stamp(case.now());
        let known = miss.known.filter(|known| known.voided == voided);
        case.config.intake.clean(&case.primary, parts);
        let request = parts.headers.clone();
        let mut held = miss.held;
        held.others = others(&case, miss.forward, known.as_ref());
        let has_more = held.own.is_some() || !held.others.is_empty() && !case.asked.range;
        let asks = manner == Manner::Shared || has_more && !case.asked.head;
        let validating = asks && held.ask(&mut parts.headers);
        let spec = known.map(|known| known.spec);
        let (requested, began) = (case.now(), Instant::now());
        let scope = Scope::capture(&parts.extensions);
        let (key, control, forward) = (miss.key, miss.control, miss.forward);
        Self {
            case,
            key,
            control,
            lease: Mutex::default(),
            request,
            forward,
            spec,
            held,
            validating,
            manner,
            writable,
            requested,
            began,
            voided,
            stamp,
            scope,
        }
    }

    /// Decides at the head.
    pub(super) fn judge<B: Body>(&self, response: Response<B>) -> Judged<B> {
        if self.validating
            && response.status() == StatusCode::NOT_MODIFIED
            && let Some(stored) = self.held.selected_by(response.headers())
        {
            return self.renew(stored, response.headers(), response.extensions());
        }
        let (status, length) = (response.status(), response.body().size_hint().exact());
        match self.assess(status, response.headers(), response.extensions(), length) {
            Verdict::Store(terms) => Judged::Storable(terms, response),
            // Nobody can have it, but somebody may still have a better one.
            Verdict::Uncacheable if status.is_server_error() => Judged::Failed(response),
            Verdict::Uncacheable => Judged::Uncacheable(response),
            Verdict::Failed => Judged::Failed(response),
        }
    }

    fn assess(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        extensions: &http::Extensions,
        exact_length: Option<u64>,
    ) -> Verdict {
        let config = &self.case.config;
        if extensions.get::<NoStore>().is_some() || tags(extensions).is_err() {
            return Verdict::Uncacheable;
        }
        let exchange = Exchange {
            status,
            headers,
            handler_ttl: extensions.get::<CacheTtl>().map(|ttl| ttl.0),
            exact_length,
            ranged: self.case.asked.range && !self.case.asked.if_range,
            requested: self.requested,
            now: self.case.now(),
        };
        let rules = Rules {
            policy: &config.policy,
            ttl: config.ttl,
            negative_ttl: config.negative_ttl,
            stale_while_revalidate: config.stale_while_revalidate,
            stale_if_error: config.stale_if_error,
            shortened: config.jitter * random_part(config.jitter),
        };
        match assess(&exchange, &rules) {
            Verdict::Store(terms) if self.case.asked.credentials && !terms.shared => Verdict::Uncacheable,
            Verdict::Store(terms) if terms.length.is_some_and(|length| length > self.cap() as u64) => {
                Verdict::Uncacheable
            }
            Verdict::Store(mut terms) if status == StatusCode::PARTIAL_CONTENT => {
                terms.vary = super::vary::with_range(terms.vary);
                Verdict::Store(terms)
            }
            verdict => verdict,
        }
    }

    /// A 304, or the response to a HEAD, speaks of `stored` (RFC 9111 §4.3.4, §4.3.5).
    fn renew<B>(&self, stored: &Arc<Entry>, update: &HeaderMap, extensions: &http::Extensions) -> Judged<B> {
        let (now, status) = (self.case.now(), stored.head.status);
        let headers = freshened(stored.head.headers.plain(), update, now);
        let verdict = self.assess(status, &headers, extensions, Some(stored.body.len() as u64));
        let (terms, may_stay) = match verdict {
            Verdict::Store(terms) => (terms, true),
            Verdict::Uncacheable | Verdict::Failed => (Terms::expired(now), false),
        };
        let tags = tags(extensions).ok().flatten().unwrap_or_else(|| stored.head.tags.clone());
        let head = Head::new(status, &headers, &terms, &Provenance { received: now, stamp: self.stamp, tags });
        let entry = Arc::new(Entry::new(Arc::new(head), stored.body.clone()));
        let own = named(update, &terms.without);
        match self.variant(&terms) {
            Ok(variant) if may_stay => Judged::Renewed(Renewal { entry, variant, own }),
            _ => Judged::Gone(entry),
        }
    }

    fn cap(&self) -> usize {
        self.case.config.max_object_bytes.min(self.case.shared.store.max_object_bytes())
    }

    /// By what the response varies, and its key. `Err`: the request's fields are too long for a key.
    fn variant(&self, terms: &Terms) -> Result<Option<Variant>, ()> {
        let Some(names) = &terms.vary else { return Ok(None) };
        let until = terms.keep_until.max(self.case.now() + SPEC_LIFETIME);
        let told = self.control.as_ref().filter(|control| control.known);
        let generation = told.map(|control| control.generation());
        // Of an older generation, it would lead to what other processes still hold of that.
        let is_current = |spec: &&Arc<VarySpec>| {
            told.is_none_or(|told| told.generations.is_none() || told.generation() == spec.generation)
        };
        let known = self.spec.as_ref().filter(is_current).filter(|spec| spec.names == *names).cloned();
        let spec = known.unwrap_or_else(|| Arc::new(VarySpec::new(names.clone(), generation, until)));
        let key = spec.key(&self.case.config.intake, &self.case.primary, &self.request).ok_or(())?;
        Ok(Some((spec, key)))
    }

    /// Splits a response that may be stored in two: what its client gets, and what collects the body.
    ///
    /// # Errors
    /// Hands the response back if there is no room to collect it.
    pub(super) fn open<B: Body>(&self, response: Response<B>, terms: &Terms, audience: &Arc<Audience>) -> Opened<B> {
        let known = terms.length.and_then(|length| usize::try_from(length).ok());
        let set_aside = known.map_or(0, cost_of);
        let (Ok(variant), Some(reservation)) = (self.variant(terms), self.case.shared.budget.reserve(set_aside)) else {
            return Err(response);
        };
        let (mut parts, body) = response.into_parts();
        let tags = tags(&parts.extensions).ok().flatten().unwrap_or_else(|| [].into());
        let origin = Provenance { received: self.case.now(), stamp: self.stamp, tags };
        let head = Arc::new(Head::new(parts.status, &parts.headers, terms, &origin));
        // Without a length it is not known yet whether the body fits.
        let mark = self.mark(known.is_some() && self.is_kept());
        let writer = Writer::new(reservation, known.unwrap_or_else(|| self.cap()));
        let (log, since, voided) = (writer.log().clone(), Instant::now(), self.voided);
        let stream = Arc::new(Stream { head, variant, log, length: terms.length, since, voided });
        let (collector, leading) = Collector::new(stream.clone(), body, writer, audience.listen());
        let mut response = match present(&stream, &self.request, audience, self.case.now()) {
            Some(mut response) => {
                response.headers_mut().extend(named(&parts.headers, &terms.without));
                response
            }
            None => {
                forwarded(&mut parts.headers, self.forward, None, mark);
                return Ok((Response::from_parts(parts, leading), collector));
            }
        };
        forwarded(response.headers_mut(), self.forward, Some(parts.status), mark);
        Ok((response, collector))
    }

    pub(super) fn pass<B>(&self, mut response: Response<B>) -> Response<ResponseBody<B>> {
        forwarded(response.headers_mut(), self.forward, None, self.mark(false));
        response.map(ResponseBody::inner)
    }

    /// A request that goes alone because of its credentials says so.
    fn mark(&self, stored: bool) -> Mark {
        match (stored, self.manner == Manner::Alone && self.case.asked.credentials) {
            (false, false) => Mark::Plain,
            (true, false) => Mark::Stored,
            (false, true) => Mark::Private,
            (true, true) => Mark::StoredPrivate,
        }
    }

    /// The answer from a stored response that holds, with these fields for its client alone.
    pub(super) fn validated<B>(&self, entry: &Entry, own: HeaderMap, mark: Mark) -> Response<ResponseBody<B>> {
        let mut response = entry.answer(self.case.asked.head, &self.request, self.case.now());
        response.headers_mut().extend(own);
        forwarded(response.headers_mut(), self.forward, Some(StatusCode::NOT_MODIFIED), mark);
        response.map(ResponseBody::own)
    }

    /// What is stored, where it may stand in for an error.
    pub(super) fn rescue<B>(&self, answered: Option<StatusCode>) -> Option<Response<ResponseBody<B>>> {
        self.case.rescue(&self.request, &self.held, self.forward, answered)
    }

    pub(super) fn land(&self, entry: Arc<Entry>, variant: Option<Variant>) -> Arc<Landed> {
        entry.head.note_cost(self.began.elapsed());
        Arc::new(Landed { entry, variant, voided: self.voided })
    }

    /// The response to a HEAD renews what is stored for GET, where it speaks of that, and outdates what it contradicts
    /// (RFC 9111 §4.3.5).
    pub(super) async fn learn_from_head(&self, response: &response::Parts) {
        let same_status = |stored: &&Arc<Entry>| stored.head.status == response.status;
        let Some(stored) = self.held.own.as_ref().filter(same_status) else { return };
        match compare(&response.headers, stored) {
            Likeness::Same => match self.renew::<()>(stored, &response.headers, &response.extensions) {
                Judged::Renewed(Renewal { entry, variant, .. }) => self.keep(&self.land(entry, variant)).await,
                _ => self.supersede(response.status).await,
            },
            Likeness::Other if stored.head.is_fresh(self.case.now()) => self.supersede(response.status).await,
            Likeness::Other | Likeness::Unknown => {}
        }
    }

    /// What comes after counts from now: the URL has just been changed by this very request, or the request has waited
    /// before it was forwarded.
    pub(super) fn start_over(&mut self) {
        self.voided = self.case.shared.flights.voided(&self.case.primary);
        self.stamp = self.case.shared.purges.stamp(self.case.now());
        (self.requested, self.began) = (self.case.now(), Instant::now());
    }

    /// The response will be fetched for all processes.
    pub(super) fn hold(&self, lease: Lease) {
        *lock(&self.lease) = Some(lease);
    }

    pub(super) fn lease(&self) -> Option<Lease> {
        lock(&self.lease).take()
    }

    /// The response is not for other processes: none of them waits for it in vain.
    pub(super) fn renounce(&self) {
        self.lease().into_iter().for_each(Lease::renounce);
    }

    /// The response is not for sharing. That of a request with credentials tells nothing about those without: one of
    /// them tries.
    pub(super) fn decline(&self) {
        let tells_nothing = self.case.asked.credentials;
        self.lease().into_iter().for_each(|lease| if tells_nothing { drop(lease) } else { lease.renounce() });
    }

    /// Whether there is a store for what comes, as far as that is known before.
    fn is_kept(&self) -> bool {
        let for_others = || self.control.as_ref().is_some_and(|control| control.known);
        self.writable && self.case.shared.fleet.as_ref().is_none_or(|fleet| fleet.remembers() || for_others())
    }
}

/// The lines of these names.
fn named(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let lines = headers.iter().filter(|(name, _)| names.contains(name));
    lines.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What the client gets, and what collects the body; or the response, where there is no room.
type Opened<B> = Result<(Response<ResponseBody<B>>, Collector<B>), Response<B>>;

/// The tags that the handler gave, if any.
fn tags(extensions: &http::Extensions) -> Result<Option<Arc<[Box<str>]>>, TooMany> {
    extensions.get::<CacheTags>().map(CacheTags::bounded).transpose()
}

/// What a client gets of a response that is being collected, where that is not simply all of it: a 304, or a part.
pub(super) fn present<B>(
    stream: &Stream,
    request: &HeaderMap,
    audience: &Arc<Audience>,
    now: SystemTime,
) -> Option<Response<ResponseBody<B>>> {
    if stream.head.is_held_by(request) {
        return Some(stream.head.not_modified(now, ResponseBody::own(Bytes::new())));
    }
    let length = stream.length?;
    match stream.head.part(request, length) {
        Selection::One(part) => {
            let body = ResponseBody::part(Reader::starting_at(&stream.log, &part), &part, audience.listen());
            let (mut parts, body) = stream.head.response(now, body).into_parts();
            range::head_of_part(&part, length, &mut parts.status, &mut parts.headers);
            Some(Response::from_parts(parts, body))
        }
        Selection::Unsatisfiable => {
            let whole = stream.head.response(now, Bytes::new());
            let mut refused = range::apply(Selection::Unsatisfiable, whole);
            if let Ok(range) = http::HeaderValue::from_str(&format!("bytes */{length}")) {
                refused.headers_mut().insert(http::header::CONTENT_RANGE, range);
            }
            Some(refused.map(ResponseBody::own))
        }
        Selection::Whole | Selection::Many(_) => None,
    }
}

/// The latest variant with a strong entity tag, where the request's own variant is missing: it may be the same. One
/// only, because a 304 without a tag would not tell which; none with a content coding, nor where variants differ by coding,
/// because servers that compress give both forms one tag.
fn others(case: &Case, forward: Forward, known: Option<&Known>) -> Vec<Arc<Entry>> {
    let by_coding = |known: &&Known| known.spec.names.contains(&http::header::ACCEPT_ENCODING);
    let known = known.filter(|known| forward == Forward::VaryMiss && !case.asked.head && !by_coding(known));
    let Some(known) = known else { return Vec::new() };
    let shared = &case.shared;
    let stored = |key: &Key| match shared.store.get(key) {
        Reply::Now(Ok(Some(Record(Kind::Response(entry))))) => Some(entry),
        _ => None,
    };
    let usable = |entry: &Arc<Entry>| {
        entry.head.headers.get(http::header::ETAG).is_some_and(|tag| is_same_strong_tag(tag.as_bytes(), tag.as_bytes()))
            && !entry.head.headers.contains_key(http::header::CONTENT_ENCODING)
            && entry.head.status == StatusCode::OK
            && (entry.head.shared || !case.asked.credentials)
            && shared.purges.verdict(entry.head.stamp, &case.primary, &entry.head.tags) != Purged::Hard
    };
    known.spec.variants.iter().rev().filter_map(stored).find(usable).into_iter().collect()
}

/// Anything from 0 to 1, unpredictably; not asked for where it does not matter.
fn random_part(jitter: f64) -> f64 {
    if jitter == 0.0 { 0.0 } else { early::random() }
}
