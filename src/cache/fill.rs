//! A forwarded request, from its response's head to the place in the store.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower_service::Service;

use super::audience::Audience;
use super::body::{BoxError, ResponseBody};
use super::collect::{Collected, Collector};
use super::flight::Seat;
use super::layer::Shared;
use super::metrics::Outcome;
use super::plan::{Judged, Plan};
use super::status::Mark;
use super::store;
use super::storing::Terms;
use super::together::Clear;
use crate::ready::CallWhenReady;
use crate::scope::Scoped;

/// Responses being fetched or collected at once. Beyond: nothing more is stored.
const MAX_FILLS: usize = 1024;
/// A fetch that nobody wants any more ends after this time, if no head has come. Long enough for a lookup that the next
/// client will ask for; short enough that clients who come and go cannot keep a queue behind this cache full.
const HEAD_PATIENCE: Duration = Duration::from_secs(1);
/// A response that nobody wants any more is collected for this time at most, after which it is given up. So is the
/// whole of a fetch in the background.
pub(super) const BODY_PATIENCE: Duration = Duration::from_secs(30);

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

/// What the client of a forwarded request gets, and what to count it as.
pub(super) type Answer<B, E> = (Outcome, Result<Response<ResponseBody<B>>, E>);

/// After an error of the inner service, or a server error of its own.
fn failed<B, E>(
    plan: &Plan,
    answered: Option<StatusCode>,
    otherwise: impl FnOnce() -> Result<Response<ResponseBody<B>>, E>,
) -> Answer<B, E> {
    match plan.rescue(answered) {
        Some(stale) => (Outcome::Stale, Ok(stale)),
        None => (Outcome::Miss, otherwise()),
    }
}

/// The response to a request that went alone; if it may be stored, its body is collected in a task of its own.
pub(super) async fn settle<B, E>(plan: Plan, called: Result<Response<B>, E>) -> Answer<B, E>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let response = match called {
        Ok(response) => response,
        Err(error) => return failed(&plan, None, || Err(error)),
    };
    match plan.judge(response) {
        Judged::Renewed(renewal) => {
            let response = plan.validated(&renewal.entry, renewal.own, Mark::Stored);
            let landed = plan.land(renewal.entry, renewal.variant);
            // To the end: who leaves between the writing and the second look at invalidations would bring back what is void.
            store::detach(Box::pin(async move { plan.keep(&landed).await })).await;
            (Outcome::Revalidated, Ok(response))
        }
        Judged::Gone(entry) => {
            let response = plan.validated(&entry, HeaderMap::new(), Mark::Plain);
            store::detach(Box::pin(async move { plan.drop_stored().await })).await;
            (Outcome::Revalidated, Ok(response))
        }
        Judged::Failed(response) => failed(&plan, Some(response.status()), || Ok(plan.pass(response))),
        Judged::Uncacheable(response) => {
            let (status, response) = (response.status(), plan.pass(response));
            store::detach(Box::pin(async move { plan.supersede(status).await })).await;
            (Outcome::Miss, Ok(response))
        }
        Judged::Storable(terms, response) => (Outcome::Miss, Ok(collect(plan, &terms, response))),
    }
}

fn collect<B>(plan: Plan, terms: &Terms, response: Response<B>) -> Response<ResponseBody<B>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (Ok(runtime), Some(place)) = (Handle::try_current(), Place::take(&plan.case.shared)) else {
        return plan.pass(response);
    };
    let audience = Arc::default();
    match plan.open(response, terms, &audience) {
        Err(response) => plan.pass(response),
        Ok((response, collector)) => {
            let scope = plan.scope.clone();
            let mut work = Box::pin(Scoped::new(scope, async move {
                let _place = place;
                land_alone(&plan, collector).await;
            }));
            // What is there at once is stored before its client can ask again. The task registers its own waker.
            if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                detach(&runtime, audience, work);
            }
            response
        }
    }
}

/// Collects the body and stores it.
async fn land_alone<B>(plan: &Plan, collector: Collector<B>)
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let stream = collector.stream().clone();
    match collector.collect().await {
        Collected::Broken => {}
        Collected::Unstorable => plan.supersede(stream.head.status).await,
        Collected::Whole(entry) => plan.keep(&plan.land(entry, stream.variant.clone())).await,
    }
}

/// Forwards a request in a task of its own, for everybody who waits at `seat`.
pub(super) struct Fill<S, B> {
    pub(super) plan: Plan,
    pub(super) seat: Seat,
    pub(super) place: Place,
    /// Until when it waits for other processes.
    pub(super) deadline: Instant,
    pub(super) inner: S,
    pub(super) request: Request<B>,
}

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
        ResBody: Body<Data = Bytes> + Send + 'static,
        ResBody::Error: Into<BoxError>,
    {
        let Self { mut plan, seat, place: _place, deadline, inner, request } = self;
        let audience = seat.audience().clone();
        let clear = tokio::select! {
            biased;
            clear = plan.clear_the_way(deadline) => clear,
            () = audience.abandoned_for(HEAD_PATIENCE) => return,
        };
        let seat = match clear {
            Clear::ForAll => seat,
            Clear::Found(landed) => {
                let response = plan.collapsed(&landed.entry);
                seat.complete(landed);
                seat.land();
                let _ = client.send((Outcome::Collapsed, Ok(response)));
                return;
            }
            Clear::Unshared => {
                seat.refuse();
                let called = tokio::select! {
                    biased;
                    called = CallWhenReady::new(inner, request) => called,
                    () = audience.abandoned_for(HEAD_PATIENCE) => return,
                };
                let _ = client.send(settle(plan, called).await);
                return;
            }
        };
        let called = tokio::select! {
            biased;
            called = CallWhenReady::new(inner, request) => called,
            () = audience.abandoned_for(HEAD_PATIENCE) => return,
        };
        let response = match called {
            Ok(response) => response,
            Err(error) => {
                seat.fail();
                let _ = client.send(failed(&plan, None, || Err(error)));
                return;
            }
        };
        match plan.judge(response) {
            Judged::Storable(terms, response) => share(plan, seat, &terms, response, client).await,
            Judged::Renewed(renewal) => {
                let response = plan.validated(&renewal.entry, renewal.own, Mark::Stored);
                let landed = plan.land(renewal.entry, renewal.variant);
                let seat = if landed.entry.head.is_fresh(plan.case.now()) {
                    seat.complete(landed.clone());
                    Some(seat)
                } else {
                    seat.refuse();
                    None
                };
                let keeping = async {
                    plan.keep(&landed).await;
                    seat.into_iter().for_each(Seat::land);
                };
                before(keeping, || drop(client.send((Outcome::Revalidated, Ok(response))))).await;
            }
            Judged::Gone(entry) => {
                plan.decline();
                let response = plan.validated(&entry, HeaderMap::new(), Mark::Plain);
                let work = async {
                    plan.drop_stored().await;
                    give_way(&plan, seat);
                };
                before(work, || drop(client.send((Outcome::Revalidated, Ok(response))))).await;
            }
            Judged::Uncacheable(response) => {
                plan.decline();
                let (status, response) = (response.status(), plan.pass(response));
                let work = async {
                    plan.supersede(status).await;
                    give_way(&plan, seat);
                };
                before(work, || drop(client.send((Outcome::Miss, Ok(response))))).await;
            }
            Judged::Failed(response) => {
                seat.fail();
                let _ = client.send(failed(&plan, Some(response.status()), || Ok(plan.pass(response))));
            }
        }
    }
}

/// The response is not for sharing. That of a request with credentials tells nothing about those without: one of them
/// tries.
fn give_way(plan: &Plan, seat: Seat) {
    if plan.case.asked.credentials {
        seat.decline();
    } else {
        seat.refuse();
    }
}

/// A response that may be stored: for everybody who waits, if it may be used without validation.
async fn share<B, E>(
    plan: Plan,
    seat: Seat,
    terms: &Terms,
    response: Response<B>,
    client: oneshot::Sender<Answer<B, E>>,
) where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let audience = seat.audience().clone();
    let is_fresh = terms.fresh_until > plan.case.now();
    if !is_fresh || plan.is_too_long_for_others(terms.length) {
        plan.renounce();
    }
    let (response, collector) = match plan.open(response, terms, &audience) {
        Ok(opened) => opened,
        Err(response) => {
            seat.release();
            let _ = client.send((Outcome::Miss, Ok(plan.pass(response))));
            return;
        }
    };
    let seat = if is_fresh {
        seat.stream(collector.stream().clone());
        Some(seat)
    } else {
        seat.refuse();
        None
    };
    let landing = async {
        match seat {
            Some(seat) => land(&plan, seat, collector).await,
            None => land_alone(&plan, collector).await,
        }
    };
    before(landing, || drop(client.send((Outcome::Miss, Ok(response))))).await;
}

/// What is there at once is stored before its client can ask again; what takes a round trip does not keep it waiting.
async fn before(work: impl Future<Output = ()>, answer: impl FnOnce()) {
    let mut work = pin!(work);
    let done = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx).is_ready())).await;
    answer();
    if !done {
        work.await;
    }
}

/// Collects the body, tells those who wait, and stores it.
async fn land<B>(plan: &Plan, seat: Seat, collector: Collector<B>)
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let stream = collector.stream().clone();
    match collector.collect().await {
        Collected::Broken => seat.fail(),
        Collected::Unstorable => {
            plan.renounce();
            plan.supersede(stream.head.status).await;
            seat.refuse();
        }
        Collected::Whole(entry) => {
            let landed = plan.land(entry, stream.variant.clone());
            seat.complete(landed.clone());
            plan.keep(&landed).await;
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
