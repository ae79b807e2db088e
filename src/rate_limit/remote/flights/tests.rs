//! The way of questions, with accounts that a test keeps.

mod crowds;
mod leases;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::board::{Board, Books, Key};
use super::flight::Granted;
use super::waiter::Answer;
use super::*;
use crate::rate_limit::verdict::{Decision, Standing};

const BUDGET: Duration = Duration::from_millis(100);
const LIFE: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq)]
enum Event {
    /// A trip for so many requests.
    Take(u32),
    Refund(u32),
    Admitted(u32),
    Refused,
    Forgot,
}
use Event::{Admitted, Forgot, Refund, Refused, Take};

/// Trips wait for a permit of `gate`, and end as `script` says: all are granted what is left.
struct Fake {
    gate: Semaphore,
    left: Mutex<u32>,
    failures: Mutex<VecDeque<Kind>>,
    events: Mutex<Vec<Event>>,
    refusal: Mutex<Option<Verdict>>,
    remembers: bool,
}

struct Given {
    granted: u32,
    is_spent: bool,
}

impl Granted for Given {
    fn granted(&self) -> u32 {
        self.granted
    }

    fn verdict(&self, nth: u32) -> Verdict {
        let decision = if nth < self.granted { Decision::Admitted } else { Decision::Refused };
        let mut verdict = Verdict::new(decision);
        if self.is_spent && nth >= self.granted {
            verdict.wait = BUDGET;
        }
        verdict.push(Standing { quota: 0, remaining: self.granted.saturating_sub(nth + 1), seconds: 1 });
        verdict
    }
}

impl Fake {
    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

impl Books for Fake {
    type Grant = Given;

    fn budget(&self) -> Duration {
        BUDGET
    }

    async fn take(&self, _: Key, wanted: u32) -> Result<Given, Kind> {
        self.note(Take(wanted));
        let Ok(permit) = tokio::time::timeout(BUDGET, self.gate.acquire()).await else { return Err(Kind::Timeout) };
        permit.unwrap().forget();
        if let Some(kind) = self.failures.lock().unwrap().pop_front() {
            return Err(kind);
        }
        let mut left = self.left.lock().unwrap();
        let granted = wanted.min(*left);
        *left -= granted;
        Ok(Given { granted, is_spent: *left == 0 })
    }

    async fn refund(&self, _: Key, times: u32) -> Result<(), Kind> {
        self.note(Refund(times));
        *self.left.lock().unwrap() += times;
        Ok(())
    }

    fn admitted(&self, _: Key, times: u32, _: u64) {
        self.note(Admitted(times));
    }

    fn refused(&self, _: Key, verdict: &Verdict, _: u64) {
        assert!(!verdict.admitted());
        *self.refusal.lock().unwrap() = Some(*verdict);
        self.note(Refused);
    }

    fn known_refusal(&self, _: Key, _: u64) -> Option<Verdict> {
        self.refusal.lock().unwrap().filter(|_| self.remembers)
    }

    fn forget(&self, _: Partition) {
        self.note(Forgot);
    }
}

/// A board, and how it is asked.
struct Scene(Arc<Board<Fake>>);

impl Scene {
    fn new(quota: u32, lease: Option<u32>) -> Self {
        let books = Fake {
            gate: Semaphore::new(0),
            left: Mutex::new(quota),
            failures: Mutex::default(),
            events: Mutex::default(),
            refusal: Mutex::default(),
            remembers: false,
        };
        let lease = lease.map(|tokens| Lease::new(tokens, LIFE));
        Self(Arc::new(Board::new(books, lease, Time::start(), Arc::new(Metrics::new()))))
    }

    fn key(cost: u32) -> Key {
        Key { client: Partition::EVERYBODY, cost }
    }

    fn question(&self) -> impl Future<Output = Answer> + Send + use<> {
        ask(self.0.clone(), Self::key(1), true)
    }

    /// As the service asks.
    fn ask(&self) -> JoinHandle<Answer> {
        match self.0.token(Self::key(1), self.0.time.now()) {
            Some(verdict) => tokio::spawn(std::future::ready(Ok(verdict))),
            None => tokio::spawn(self.question()),
        }
    }

    /// Questions that have gone as far as they can.
    async fn asked(&self, count: usize) -> Vec<JoinHandle<Answer>> {
        let questions = (0..count).map(|_| self.ask()).collect();
        settle().await;
        questions
    }

    /// Lets so many trips end.
    async fn answer(&self, trips: usize) {
        self.0.books.gate.add_permits(trips);
        settle().await;
    }

    fn events(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.books.events.lock().unwrap())
    }

    fn fail(&self, kind: Kind) {
        self.0.books.failures.lock().unwrap().push_back(kind);
    }

    fn assert_empty(&self) {
        assert_eq!((self.0.clients(), self.0.waiting()), (0, 0));
    }
}

/// Paused time goes on when no task can.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[derive(Debug, PartialEq)]
enum Seen {
    Yes,
    No,
    TimedOut,
    Failed,
    Open,
}
use Seen::{Failed, No, Open, TimedOut, Yes};

async fn seen(questions: Vec<JoinHandle<Answer>>) -> Vec<Seen> {
    let mut all = Vec::new();
    for question in questions {
        all.push(if question.is_finished() {
            match question.await.unwrap() {
                Ok(verdict) if verdict.admitted() => Yes,
                Ok(_) => No,
                Err(Unanswered { timed_out: true }) => TimedOut,
                Err(_) => Failed,
            }
        } else {
            Open
        });
    }
    all
}

#[tokio::test(start_paused = true)]
async fn those_who_come_meanwhile_go_together_and_the_first_are_admitted() {
    let scene = Scene::new(3, None);
    let questions = scene.asked(6).await;
    assert_eq!(scene.events(), [Take(1)]);
    assert_eq!((scene.0.clients(), scene.0.waiting()), (1, 5));
    scene.answer(1).await;
    assert_eq!(scene.events(), [Admitted(1), Take(5)]);
    scene.answer(1).await;
    assert_eq!(scene.events(), [Admitted(2), Refused]);
    assert_eq!(seen(questions).await, [Yes, Yes, Yes, No, No, No]);
    scene.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn who_waits_behind_the_last_that_is_admitted_is_refused_without_a_trip() {
    let mut scene = Scene::new(1, None);
    Arc::get_mut(&mut scene.0).unwrap().books.remembers = true;
    let questions = scene.asked(4).await;
    scene.answer(1).await;
    assert_eq!(scene.events(), [Take(1), Admitted(1), Refused]);
    assert_eq!(seen(questions).await, [Yes, No, No, No]);
    scene.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn clients_and_costs_do_not_wait_for_each_other() {
    let scene = Scene::new(9, None);
    let keys = [Scene::key(1), Scene::key(2), Key { client: Partition::digest(7), cost: 1 }];
    let questions: Vec<_> = keys.map(|key| tokio::spawn(ask(scene.0.clone(), key, true))).into();
    settle().await;
    assert_eq!(scene.events(), [Take(1), Take(1), Take(1)]);
    scene.answer(3).await;
    assert_eq!(seen(questions).await, [Yes, Yes, Yes]);
    scene.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_strands_nobody_and_is_not_asked_for_any_more() {
    // Who leaves before the first trip ends, and what the trip after it is then for.
    for (leave, trips) in [
        (&[0][..], &[Take(1), Take(4)][..]),
        (&[0, 1], &[Take(1), Take(3)]),
        (&[1, 3], &[Take(1), Take(2)]),
        (&[1, 2, 3, 4], &[Take(1)]),
        (&[0, 1, 2, 3, 4], &[Take(1)]),
    ] {
        let scene = Scene::new(100, None);
        let mut questions = scene.asked(5).await;
        for gone in leave.iter().rev() {
            questions.remove(*gone).abort();
        }
        settle().await;
        scene.answer(5).await;
        let events = scene.events();
        let taken: Vec<_> = events.iter().filter(|event| matches!(event, Take(_))).collect();
        assert_eq!(taken, trips.iter().collect::<Vec<_>>(), "{leave:?}");
        assert!(seen(questions).await.iter().all(|seen| *seen == Yes), "{leave:?}");
        scene.assert_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_on_the_way_stays_charged() {
    let scene = Scene::new(2, None);
    let mut questions = scene.asked(4).await;
    scene.answer(1).await;
    questions.remove(1).abort();
    settle().await;
    scene.answer(1).await;
    assert_eq!(seen(questions).await, [Yes, No, No]);
    scene.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_turn_counts() {
    let scene = Scene::new(100, None);
    let started = tokio::time::Instant::now();
    let mut questions = scene.asked(2).await;
    tokio::time::advance(BUDGET / 2).await;
    scene.answer(1).await;
    assert_eq!(scene.events(), [Take(1), Admitted(1), Take(1)]);
    questions.append(&mut scene.asked(1).await);
    tokio::time::sleep_until(started + BUDGET + Duration::from_millis(3)).await;
    assert_eq!(seen(questions).await, [Yes, TimedOut, Open], "one budget each, whenever their trip began");
    scene.answer(9).await;
    scene.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_future_that_nobody_polls_holds_up_others_for_one_budget() {
    let scene = Scene::new(100, None);
    let mut kept = Box::pin(scene.question());
    assert!(kept.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
    let waiting = scene.asked(1).await;
    tokio::time::sleep(BUDGET / 2).await;
    let more = scene.asked(2).await;
    tokio::time::sleep(BUDGET / 2).await;
    scene.0.books.gate.add_permits(2);
    settle().await;
    assert_eq!(seen(waiting).await, [TimedOut]);
    assert_eq!(scene.events(), [Take(1), Take(2), Admitted(2)]);
    assert_eq!(seen(more).await, [Yes, Yes]);
    let led = scene.asked(1).await;
    drop(kept);
    let waiting = scene.asked(1).await;
    scene.answer(2).await;
    assert_eq!(scene.events(), [Take(1), Admitted(1), Take(1), Admitted(1)], "it has nothing to hand on any more");
    assert_eq!((seen(led).await, seen(waiting).await), (vec![Yes], vec![Yes]));
    scene.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_one_fails_for_those_who_wait_unless_redis_has_answered() {
    for (kind, outcome, trips) in [
        (Kind::Timeout, TimedOut, &[Take(1)][..]),
        (Kind::Open, Failed, &[Take(1)]),
        (Kind::Unavailable, Failed, &[Take(1)]),
        (Kind::Refused, Yes, &[Take(1), Take(2), Admitted(2)]),
    ] {
        let scene = Scene::new(100, None);
        scene.fail(kind);
        let mut questions = scene.asked(3).await;
        scene.answer(2).await;
        assert_eq!(scene.events(), trips, "{kind:?}");
        let rest = questions.split_off(1);
        assert_eq!(seen(questions).await, [if kind == Kind::Timeout { TimedOut } else { Failed }]);
        assert!(seen(rest).await.iter().all(|seen| *seen == outcome), "{kind:?}");
        scene.assert_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn the_trip_of_others_fails_for_all_of_them_and_those_after_them() {
    let scene = Scene::new(100, None);
    let mut questions = scene.asked(3).await;
    scene.answer(1).await;
    questions.append(&mut scene.asked(2).await);
    scene.fail(Kind::Timeout);
    scene.answer(1).await;
    assert_eq!(seen(questions).await, [Yes, TimedOut, TimedOut, TimedOut, TimedOut]);
    assert_eq!(scene.events(), [Take(1), Admitted(1), Take(2)]);
    scene.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_from_before_a_change_is_not_remembered() {
    let scene = Scene::new(0, None);
    let questions = scene.asked(2).await;
    scene.0.void(Partition::EVERYBODY);
    scene.answer(1).await;
    assert_eq!(scene.events(), [Take(1), Take(1)]);
    scene.answer(1).await;
    assert_eq!(scene.events(), [Refused]);
    assert_eq!(seen(questions).await, [No, No]);
}

#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn it_is_counted_where_answers_come_from() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let recorder = DebuggingRecorder::new();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let scene = Scene::new(100, Some(10));
    let questions = scene.asked(3).await;
    scene.answer(2).await;
    assert!(seen(questions).await.iter().all(|seen| *seen == Yes));
    scene.0.token(Scene::key(1), scene.0.time.now()).expect("one was left over");
    scene.fail(Kind::Open);
    let questions = scene.asked(1).await;
    scene.answer(1).await;
    assert_eq!(seen(questions).await, [Failed]);
    let mut counted: Vec<_> = recorder
        .snapshotter()
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let label = key.key().labels().next().expect("one label");
            assert_eq!((key.key().name(), label.key()), ("rate_limit_redis_requests_total", "answered"));
            let DebugValue::Counter(count) = value else { panic!("{value:?}") };
            (label.value().to_owned(), count)
        })
        .collect();
    counted.sort();
    let expected = [("asked", 1), ("denied", 0), ("leased", 1), ("merged", 2), ("unanswered", 1)];
    assert_eq!(counted, expected.map(|(word, count)| (word.to_owned(), count)));
}
