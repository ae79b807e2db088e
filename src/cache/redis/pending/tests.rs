use std::time::SystemTime;

use http::{Extensions, HeaderMap};
use proptest::prelude::*;

use super::*;
use crate::cache::intake::Intake;

fn tag(tag: &str) -> Purge {
    Purge::tag(tag).unwrap()
}

fn all(pending: &Pending) -> Vec<Attempt> {
    pending.batch(usize::MAX, true, SystemTime::now())
}

fn purges(attempts: &[Attempt]) -> Vec<Purge> {
    attempts.iter().map(|attempt| attempt.purge.clone()).collect()
}

/// Of a key that every tag may name.
fn floor(pending: &Pending) -> u64 {
    pending.floor(&key("http://h/"))
}

fn key(url: &str) -> Key {
    Key::primary(&Intake::default(), &url.parse().unwrap(), &HeaderMap::new(), &Extensions::new()).unwrap()
}

/// The errors of a handle cannot be made here, but had.
async fn failure() -> StoreError {
    let redis = crate::redis::Redis::connect("redis://127.0.0.1:1").unwrap();
    redis.query(&::redis::cmd("PING")).await.unwrap_err()
}

#[tokio::test]
async fn a_purge_waits_until_it_is_taken_and_tells_of_its_first_attempt() {
    let (pending, now, failure) = (Pending::default(), Instant::now(), Err(failure().await));
    let (mut one, _) = pending.push(tag("one"), false, 10);
    let (mut other, _) = pending.push(tag("other"), true, 11);
    let batch = all(&pending);
    assert_eq!(purges(&batch), [tag("one"), tag("other")]);
    assert!(one.try_recv().is_err() && !pending.any_tried());
    pending.settle(batch[0].id, &failure, now);
    pending.settle(batch[1].id, &Ok(()), now);
    assert!(one.try_recv().unwrap().is_err() && other.try_recv().unwrap().is_ok());
    assert_eq!((pending.len(), pending.any_tried()), (1, true));
    let (_, merged) = pending.push(tag("new"), true, 12);
    assert_eq!(merged, None);
    assert_eq!(purges(&pending.batch(9, false, SystemTime::now())), [tag("new")], "it need not wait for the other");
    assert_eq!(purges(&all(&pending)), [tag("one"), tag("new")]);
    pending.settle(99, &Ok(()), now);
    assert_eq!(pending.len(), 2);
}

#[tokio::test]
async fn every_attempt_has_a_token_of_its_own_and_knows_the_ones_before() {
    let (pending, now, failure) = (Pending::default(), Instant::now(), Err(failure().await));
    let _ = pending.push(tag("one"), false, 10);
    let mut sent = Vec::new();
    for _ in 0..3 * TOKENS {
        let attempt = all(&pending).pop().unwrap();
        assert!(attempt.before.len() <= TOKENS && !sent.contains(&attempt.token));
        assert_eq!(attempt.before.first(), sent.first(), "the one that it may have been taken with");
        assert!(sent.iter().rev().take(TOKENS - 1).all(|token| attempt.before.contains(token)));
        sent.push(attempt.token);
        assert!(pending.awaits(attempt.token) && !pending.awaits(attempt.token ^ 2));
        pending.settle(attempt.id, &failure, now);
    }
}

#[tokio::test]
async fn what_redis_refuses_holds_up_nothing() {
    let (pending, failure) = (Pending::default(), Err(failure().await));
    for number in 0..10 {
        let _ = pending.push(tag(&number.to_string()), false, 10);
    }
    for attempt in pending.batch(4, true, SystemTime::now()) {
        pending.settle(attempt.id, &failure, Instant::now());
    }
    assert_eq!(purges(&pending.batch(2, true, SystemTime::now())), [tag("4"), tag("5")]);
}

#[test]
fn the_floor_is_below_all_that_waits() {
    let (pending, now) = (Pending::default(), Instant::now());
    assert_eq!(floor(&pending), u64::MAX);
    for floor in [30, 10, 20] {
        let _ = pending.push(tag(&floor.to_string()), false, floor);
    }
    assert_eq!(floor(&pending), 10);
    let batch = all(&pending);
    for (taken, lowest) in [(1, 20), (2, 30), (0, u64::MAX)] {
        pending.settle(batch[taken].id, &Ok(()), now);
        assert_eq!(floor(&pending), lowest);
    }
    assert_eq!(pending.repeat(now), None);
    assert_eq!(floor(&pending), 10, "Redis may have lost it: it is not known to be void there");
}

#[test]
fn the_floor_of_a_key_is_below_what_may_name_it() {
    let pending = Pending::default();
    let _ = pending.push(Purge::url("http://h/a").unwrap(), false, 1);
    let _ = pending.push(Purge::prefix("http://h/b").unwrap(), true, 2);
    for (url, floor) in [
        ("http://h/a", 1),
        ("http://h/b", 2),
        ("http://h/bc", 2),
        ("http://h/", u64::MAX),
        ("http://i/a", u64::MAX),
        ("https://h/a", u64::MAX),
    ] {
        assert_eq!(pending.floor(&key(url)), floor, "{url}");
    }
    let _ = pending.push(Purge::everything(), true, 3);
    assert_eq!((pending.floor(&key("http://h/a")), pending.floor(&key("http://i/a"))), (1, 3));
}

#[test]
fn too_many_become_one_of_everything() {
    for hard in [true, false] {
        let pending = Pending::default();
        let mut told = Vec::new();
        for number in 0..MOST {
            let (one, merged) = pending.push(tag(&number.to_string()), !(hard && number == 7), 5 + number as u64);
            assert_eq!(merged, None);
            told.push(one);
        }
        let under_way = all(&pending);
        let (last, merged) = pending.push(tag("one more"), true, 1 << 40);
        told.push(last);
        assert_eq!((merged, pending.len(), floor(&pending)), (Some(Everything { soft: !hard }), 1, 5));
        for attempt in under_way {
            pending.settle(attempt.id, &Ok(()), Instant::now());
        }
        assert!(told.iter_mut().all(|told| told.try_recv().is_err()), "the one in their place has not been tried");
        let [everything] = &*all(&pending) else { panic!("one") };
        assert_eq!((&everything.purge, everything.soft), (&Purge::everything(), !hard));
        pending.settle(everything.id, &Ok(()), Instant::now());
        assert!(told.iter_mut().all(|told| told.try_recv().unwrap().is_ok()));
    }
}

/// A POST to one URL, again and again while Redis is away, is not a reason to purge everything.
#[tokio::test]
async fn what_waits_already_waits_once() {
    let (pending, now, failure) = (Pending::default(), Instant::now(), Err(failure().await));
    let _ = pending.push(tag("other"), true, 5);
    let mut told = Vec::new();
    for number in 0..2 * MOST as u64 {
        let (one, merged) = pending.push(tag("same"), false, 10 + number);
        assert_eq!(merged, None);
        told.push(one);
    }
    assert_eq!((pending.len(), floor(&pending)), (2, 5));
    let first = all(&pending);
    assert_eq!(purges(&first), [tag("other"), tag("same")]);
    // What Redis is being told may be carried out before what is pushed now.
    let (mut later, _) = pending.push(tag("same"), false, 1 << 40);
    assert_eq!(pending.len(), 3);
    pending.settle(first[0].id, &Ok(()), now);
    pending.settle(first[1].id, &Ok(()), now);
    assert!(told.iter_mut().all(|told| told.try_recv().unwrap().is_ok()) && later.try_recv().is_err());
    assert_eq!((pending.len(), floor(&pending)), (1, 1 << 40));
    // An attempt that failed may have been carried out: a later purge does not count as done by it.
    let failed = all(&pending).pop().unwrap();
    pending.settle(failed.id, &failure, now);
    assert!(later.try_recv().unwrap().is_err() && pending.any_tried());
    let (mut last, _) = pending.push(tag("same"), false, 1 << 41);
    assert_eq!((pending.len(), floor(&pending), pending.any_tried()), (1, 1 << 40, false));
    let again = all(&pending).pop().unwrap();
    assert!(again.before.is_empty() && again.token != failed.token);
    pending.settle(again.id, &Ok(()), now);
    assert!(last.try_recv().unwrap().is_ok() && pending.len() == 0);
}

#[test]
fn what_is_covered_by_what_waits_waits_with_it() {
    for (waiting, soft, purge, gentle, covered) in [
        (tag("a"), false, tag("a"), true, true),
        (tag("a"), true, tag("a"), false, false),
        (tag("a"), true, tag("a"), true, true),
        (tag("a"), false, tag("b"), false, false),
        (Purge::everything(), false, tag("a"), false, true),
        (Purge::everything(), true, tag("a"), true, true),
        (Purge::everything(), true, tag("a"), false, false),
    ] {
        let pending = Pending::default();
        let _ = (pending.push(waiting.clone(), soft, 1), pending.push(purge.clone(), gentle, 2));
        assert_eq!(pending.len() == 1, covered, "{waiting:?} {soft} {purge:?} {gentle}");
    }
}

#[test]
fn what_was_taken_lately_is_repeated() {
    let (pending, now) = (Pending::default(), Instant::now());
    for (name, since) in [("old", 0), ("new", 2), ("newer", 11)] {
        let _ = pending.push(tag(name), false, 1);
        let attempt = all(&pending).pop().unwrap();
        pending.settle(attempt.id, &Ok(()), now + Duration::from_secs(since));
    }
    assert_eq!((pending.len(), pending.repeat(now + Duration::from_secs(12))), (0, None));
    let again = all(&pending);
    assert_eq!(purges(&again), [tag("new"), tag("newer")]);
    assert!(again.iter().all(|attempt| attempt.before.len() == 1), "by which Redis tells that it still has them");
    assert_eq!((pending.repeat(now + Duration::from_secs(12)), pending.len()), (None, 2), "they wait already");
}

#[test]
fn very_many_lately_are_repeated_as_one_of_everything() {
    let (pending, now) = (Pending::default(), Instant::now());
    for round in 0..=MOST / 100 {
        (0..100).for_each(|number| drop(pending.push(tag(&format!("{round} {number}")), true, 1)));
        all(&pending).iter().for_each(|attempt| pending.settle(attempt.id, &Ok(()), now));
    }
    pending.repeat(now);
    let again = all(&pending);
    assert!(again.len() <= MOST && again.iter().any(|attempt| attempt.purge == Purge::everything() && attempt.soft));
}

#[test]
fn of_the_same_purge_lately_one_is_repeated() {
    let (pending, now) = (Pending::default(), Instant::now());
    for _ in 0..2 * MOST {
        let _ = pending.push(tag("same"), true, 1);
        all(&pending).iter().for_each(|attempt| pending.settle(attempt.id, &Ok(()), now));
    }
    assert_eq!((pending.repeat(now), purges(&all(&pending))), (None, vec![tag("same")]));
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8, bool),
    Send { most: usize, all: bool, taken: u64 },
    Repeat,
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<u8>(), any::<bool>()).prop_map(|(name, soft)| Step::Push(name, soft)),
        3 => (1..5_usize, any::<bool>(), any::<u64>()).prop_map(|(most, all, taken)| Step::Send { most, all, taken }),
        1 => Just(Step::Repeat),
        1 => (0..9_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever fails and is repeated: a purge waits, or has been taken, and the floor is below all that wait.
    #[test]
    fn none_is_lost(steps in proptest::collection::vec(any_step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let failure = runtime.block_on(failure());
        let (pending, mut now, mut stamp) = (Pending::default(), Instant::now(), 0);
        let mut missing = Vec::new();
        for step in steps {
            match step {
                Step::Push(name, soft) => {
                    stamp += 1;
                    let _ = pending.push(tag(&format!("{name} {stamp}")), soft, stamp);
                    missing.push((tag(&format!("{name} {stamp}")), stamp));
                }
                Step::Send { most, all, taken } => {
                    for (bit, attempt) in pending.batch(most, all, SystemTime::now()).into_iter().enumerate() {
                        let taken = taken >> bit & 1 == 1;
                        let outcome = if taken { Ok(()) } else { Err(failure.clone()) };
                        pending.settle(attempt.id, &outcome, now);
                        missing.retain(|(purge, _)| !(taken && *purge == attempt.purge));
                    }
                }
                Step::Repeat => prop_assert_eq!(pending.repeat(now), None),
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            prop_assert!(missing.iter().all(|(_, stamp)| floor(&pending) <= *stamp));
            let waiting = purges(&all(&pending));
            prop_assert!(missing.iter().all(|(purge, _)| waiting.contains(purge)));
        }
    }
}

#[test]
fn the_last_change_of_each_url_is_told_again_for_a_while() {
    let (pending, now) = (Pending::default(), Instant::now());
    let url = |n: usize| Purge::url(&format!("http://h/{n}")).unwrap();
    pending.changed(url(0), 1, now);
    pending.changed(url(1), 2, now + RECENT / 2);
    pending.changed(url(1), 3, now + RECENT);
    assert_eq!(pending.take_changes(now + RECENT + Duration::from_secs(1)), HashMap::from([(url(1), 3)]));
    assert!(pending.take_changes(now).is_empty());
    (0..2 * CHANGES).for_each(|n| pending.changed(url(n), 4, now));
    let last = pending.take_changes(now);
    assert!(last.len() == CHANGES && last.contains_key(&url(2 * CHANGES - 1)));
    pending.again(url(7), 9, 5);
    assert_eq!(all(&pending)[0].before, [9], "where that still stands, nothing was forgotten");
    assert_eq!(pending.floor(&key("http://h/7")), 5);
}
