//! From the head of a response to its place in the store: decide, collect, keep.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower_service::Service;

use super::CacheTtl;
use super::audience::Audience;
use super::body::{BoxError, ResponseBody};
use super::collect::{Collected, Collector};
use super::entry::{Entry, Head, Kind, Record};
use super::flight::{Seat, Stream};
use super::key::Key;
use super::layer::{Config, Shared};
use super::log::{Writer, cost_of};
use super::lookup::Sources;
use super::metrics::Outcome;
use super::request::Asked;
use super::status::{self, Forward, Mark, forwarded};
use super::store::{Reply, StoreFailure};
use super::storing::{Exchange, Terms, Verdict, assess};
use super::vary::{Known, VarySpec};
use crate::ready::CallWhenReady;
use crate::scope::{Scope, Scoped};

/// Responses being fetched or collected at once. Beyond: nothing more is stored.
const MAX_FILLS: usize = 1024;
/// A fetch that nobody wants any more ends after this time, if no head has come. Long enough for a lookup that the next
/// client will ask for; short enough that clients who come and go cannot keep a queue behind this cache full.
const HEAD_PATIENCE: Duration = Duration::from_secs(1);
/// A response that nobody wants any more is collected for this time at most, after which it is given up.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// What a URL's responses vary by is remembered for at least this time, beyond any one response.
const SPEC_LIFETIME: Duration = Duration::from_secs(3600);

/// The cache, and what one request asks of it.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) shared: Arc<Shared>,
    pub(super) config: Config,
    pub(super) primary: Key,
    pub(super) asked: Asked,
}

impl Case {
    pub(super) fn sources<'a>(&'a self, request: &'a HeaderMap) -> Sources<'a> {
        self.shared.sources(&self.primary, request)
    }
}

impl Shared {
    pub(super) fn sources<'a>(&'a self, primary: &'a Key, request: &'a HeaderMap) -> Sources<'a> {
        Sources { store: &*self.store, flights: &self.flights, primary, request }
    }

    /// The answer from a fresh entry, unless the request's credentials forbid it (RFC 9111 §3.5).
    pub(super) fn answer<B>(
        &self,
        asked: Asked,
        method: &Method,
        request: &HeaderMap,
        entry: &Entry,
        now: SystemTime,
    ) -> Option<Response<ResponseBody<B>>> {
        if asked.credentials && !entry.head.shared {
            return None;
        }
        let mut response = entry.answer(method, request, now);
        status::hit(response.headers_mut(), entry.head.ttl(now));
        self.metrics.count(Outcome::Hit);
        Some(response.map(ResponseBody::own))
    }
}

/// A place among the responses being fetched or collected.
pub(super) struct Place(Arc<Shared>);

impl Place {
    /// `None`: there are too many.
    pub(super) fn take(shared: &Arc<Shared>) -> Option<Self> {
        let add = |fills: usize| (fills < MAX_FILLS).then_some(fills + 1);
        shared.fills.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        shared.metrics.fill_began();
        Some(Self(shared.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fills.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.fill_ended();
    }
}

/// What is known of a request when it is forwarded, to decide about its response.
pub(super) struct Plan {
    case: Case,
    request: HeaderMap,
    forward: Forward,
    /// What the URL's responses are known to vary by.
    spec: Option<Arc<VarySpec>>,
    /// Whether the store may be written: not after it has failed this request.
    writable: bool,
    requested: SystemTime,
    began: Instant,
    voided: u64,
    scope: Scope,
}

impl Plan {
    pub(super) fn new(
        case: Case,
        request: &HeaderMap,
        scope: Scope,
        forward: Forward,
        known: Option<Known>,
        writable: bool,
    ) -> Self {
        let voided = case.shared.flights.voided(&case.primary);
        let spec = known.filter(|known| known.voided == voided).map(|known| known.spec);
        let (requested, began) = (SystemTime::now(), Instant::now());
        Self { case, request: request.clone(), forward, spec, writable, requested, began, voided, scope }
    }

    /// Decides at the head.
    fn judge<B: Body>(&self, response: &Response<B>) -> Verdict {
        let verdict = assess(&Exchange {
            status: response.status(),
            headers: response.headers(),
            handler_ttl: response.extensions().get::<CacheTtl>().map(|ttl| ttl.0),
            default_ttl: self.case.config.ttl,
            exact_length: response.body().size_hint().exact(),
            requested: self.requested,
            now: SystemTime::now(),
        });
        match verdict {
            Verdict::Store(terms) if self.case.asked.credentials && !terms.shared => Verdict::Uncacheable,
            Verdict::Store(terms) if terms.length.is_some_and(|length| length > self.cap() as u64) => {
                Verdict::Uncacheable
            }
            verdict => verdict,
        }
    }

    fn cap(&self) -> usize {
        self.case.config.max_object_bytes.min(self.case.shared.store.max_object_bytes())
    }

    /// By what the response varies, and its key. `Err`: the request's fields are too long for a key.
    fn variant(&self, terms: &Terms) -> Result<Option<(Arc<VarySpec>, Key)>, ()> {
        let Some(names) = &terms.vary else { return Ok(None) };
        let known = self.spec.as_ref().filter(|spec| spec.names == *names).cloned();
        let spec = known.unwrap_or_else(|| {
            Arc::new(VarySpec::new(names.clone(), terms.fresh_until.max(SystemTime::now() + SPEC_LIFETIME)))
        });
        let key = spec.key(&self.case.primary, &self.request).ok_or(())?;
        Ok(Some((spec, key)))
    }

    /// Splits a response that may be stored in two: what its client gets, and what collects the body.
    ///
    /// # Errors
    /// Hands the response back if there is no room to collect it.
    fn open<B: Body>(&self, response: Response<B>, terms: &Terms, audience: &Arc<Audience>) -> Opened<B> {
        let known = terms.length.and_then(|length| usize::try_from(length).ok());
        let set_aside = known.map_or(0, cost_of);
        let (Ok(variant), Some(reservation)) = (self.variant(terms), self.case.shared.budget.reserve(set_aside)) else {
            return Err(response);
        };
        let (mut parts, body) = response.into_parts();
        let head = Arc::new(Head::new(parts.status, &parts.headers, terms, SystemTime::now()));
        // Without a length it is not known yet whether the body fits.
        let mark = if known.is_some() && self.writable { Mark::Stored } else { Mark::Plain };
        forwarded(&mut parts.headers, self.forward, mark);
        let writer = Writer::new(reservation, known.unwrap_or_else(|| self.cap()));
        let (log, since, voided) = (writer.log().clone(), Instant::now(), self.voided);
        let stream = Stream { head, variant, log, length: terms.length, since, voided };
        let (collector, leading) = Collector::new(Arc::new(stream), body, writer, audience.listen());
        Ok((Response::from_parts(parts, leading), collector))
    }

    fn pass<B>(&self, mut response: Response<B>) -> Response<ResponseBody<B>> {
        forwarded(response.headers_mut(), self.forward, Mark::Plain);
        response.map(ResponseBody::inner)
    }

    /// Stores a whole response, unless its URL was invalidated since the request was forwarded.
    async fn keep(&self, stream: &Stream, entry: &Arc<Entry>) {
        let (shared, primary, took) = (&self.case.shared, &self.case.primary, self.began.elapsed());
        // A store in memory is written here, where no invalidation can come between the look and the writing.
        let begin = || (self.writable && !self.is_void()).then(|| self.begin_to_store(stream, entry));
        let Some((response, spec)) = shared.flights.in_order(primary, begin) else { return };
        let stored = self.put(response).await
            && match spec {
                Some(spec) => self.put(spec).await,
                None => true,
            };
        if self.is_void() {
            // The invalidation came before the store had answered, and may have found nothing.
            let _ = shared.store.remove(primary).wait().await;
            // Whoever has read the spec meanwhile must not store with it.
            shared.flights.note_voided(primary);
        }
        if stored {
            shared.flights.note_stored(primary);
            if let Some((_, key)) = &stream.variant {
                shared.flights.note_stored(key);
            }
            shared.metrics.fill_seconds.record(took.as_secs_f64());
        }
    }

    fn is_void(&self) -> bool {
        self.case.shared.flights.voided(&self.case.primary) != self.voided
    }

    /// The response, and where the URL's responses vary the spec after it: whoever finds that finds the response.
    fn begin_to_store(&self, stream: &Stream, entry: &Arc<Entry>) -> (Put, Option<Put>) {
        let (store, primary) = (&*self.case.shared.store, &self.case.primary);
        let response = Record(Kind::Response(entry.clone()));
        match &stream.variant {
            None => (store.put(primary, response), None),
            Some((spec, key)) => (store.put(key, response), Some(store.put(primary, Record(Kind::Vary(spec.clone()))))),
        }
    }

    async fn put(&self, put: Put) -> bool {
        let stored = put.wait().await.is_ok();
        if !stored {
            self.case.shared.metrics.store_errors.increment(1);
        }
        stored
    }
}

type Put = Reply<Result<(), StoreFailure>>;

type Opened<B> = Result<(Response<ResponseBody<B>>, Collector<B>), Response<B>>;

/// The response to a request that went alone; if it may be stored, its body is collected in a task of its own.
pub(super) fn settle<B>(plan: Plan, response: Response<B>) -> Response<ResponseBody<B>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Verdict::Store(terms) = plan.judge(&response) else { return plan.pass(response) };
    let (Ok(runtime), Some(place)) = (Handle::try_current(), Place::take(&plan.case.shared)) else {
        return plan.pass(response);
    };
    let audience = Arc::default();
    match plan.open(response, &terms, &audience) {
        Err(response) => plan.pass(response),
        Ok((response, collector)) => {
            let scope = plan.scope.clone();
            let mut work = Box::pin(Scoped::new(scope, async move {
                let _place = place;
                let stream = collector.stream().clone();
                if let Collected::Whole(entry) = collector.collect().await {
                    plan.keep(&stream, &entry).await;
                }
            }));
            // What is there at once is stored before its client can ask again. The task registers its own waker.
            if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                detach(&runtime, audience, work);
            }
            response
        }
    }
}

/// Forwards a request in a task of its own, for everybody who waits at `seat`.
pub(super) struct Fill<S, B> {
    pub(super) plan: Plan,
    pub(super) seat: Seat,
    pub(super) place: Place,
    pub(super) inner: S,
    pub(super) request: Request<B>,
}

/// What the forwarded request's own client gets.
type Answer<B, E> = Result<Response<ResponseBody<B>>, E>;

impl<S, B> Fill<S, B> {
    /// The client's answer comes through the channel; if it does not, the task has panicked.
    pub(super) fn start<ResBody>(
        self,
        runtime: &Handle,
    ) -> (oneshot::Receiver<Answer<ResBody, S::Error>>, JoinHandle<()>)
    where
        S: Service<Request<B>, Response = Response<ResBody>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Send + 'static,
        ResBody: Body<Data = Bytes> + Send + 'static,
        ResBody::Error: Into<BoxError>,
    {
        let (client, answer) = oneshot::channel();
        let scope = self.plan.scope.clone();
        let audience = self.seat.audience().clone();
        (answer, detach(runtime, audience, Scoped::new(scope, self.run(client))))
    }

    async fn run<ResBody>(self, client: oneshot::Sender<Answer<ResBody, S::Error>>)
    where
        S: Service<Request<B>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Into<BoxError>,
    {
        let Self { plan, seat, place: _place, inner, request } = self;
        let audience = seat.audience().clone();
        let called = tokio::select! {
            biased;
            called = CallWhenReady::new(inner, request) => called,
            () = audience.abandoned_for(HEAD_PATIENCE) => return,
        };
        let response = match called {
            Ok(response) => response,
            Err(error) => {
                seat.fail();
                let _ = client.send(Err(error));
                return;
            }
        };
        let terms = match plan.judge(&response) {
            Verdict::Store(terms) => terms,
            verdict => {
                if verdict == Verdict::Failed {
                    seat.fail();
                } else {
                    seat.refuse();
                }
                let _ = client.send(Ok(plan.pass(response)));
                return;
            }
        };
        match plan.open(response, &terms, &audience) {
            Ok((response, collector)) => {
                seat.stream(collector.stream().clone());
                let mut landing = pin!(land(plan, seat, collector));
                // What is there at once is stored before its client can ask again.
                let landed = poll_fn(|cx| Poll::Ready(landing.as_mut().poll(cx).is_ready())).await;
                let _ = client.send(Ok(response));
                if !landed {
                    landing.await;
                }
            }
            Err(response) => {
                seat.release();
                let _ = client.send(Ok(plan.pass(response)));
            }
        }
    }
}

/// Collects the body, tells those who wait, and stores it.
async fn land<B>(plan: Plan, seat: Seat, collector: Collector<B>)
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let stream = collector.stream().clone();
    match collector.collect().await {
        Collected::Broken => seat.fail(),
        Collected::Unstorable => seat.refuse(),
        Collected::Whole(entry) => {
            seat.complete(stream.clone(), entry.clone());
            plan.keep(&stream, &entry).await;
            seat.land();
        }
    }
}

/// Runs `work` in a task of its own, until nobody has wanted it for a while.
fn detach(
    runtime: &Handle,
    audience: Arc<Audience>,
    work: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    runtime.spawn(async move {
        tokio::select! {
            biased;
            () = work => {}
            () = audience.abandoned_for(BODY_PATIENCE) => {}
        }
    })
}
