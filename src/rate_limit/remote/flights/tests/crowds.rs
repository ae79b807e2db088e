//! Many at once, on several threads and runtimes.

use std::future::Future;
use std::task::Context;

use super::Event::Take;
use super::Seen::Yes;
use super::*;

#[test]
fn a_runtime_that_ends_tells_those_who_wait_elsewhere() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (one, two) = (runtime(), runtime());
    let scene = Scene::new(100, None);
    let leader = one.spawn(scene.question());
    while scene.events().is_empty() {
        std::thread::yield_now();
    }
    let waiting: Vec<_> = (0..3).map(|_| two.spawn(scene.question())).collect();
    while scene.0.waiting() < 3 {
        std::thread::yield_now();
    }
    drop(one);
    let all = two.block_on(async {
        let mut all = Vec::new();
        for question in waiting {
            let answer = tokio::time::timeout(BUDGET / 2, question).await.expect("told at once").unwrap();
            all.push(matches!(answer, Err(Unanswered { timed_out: false })));
        }
        all
    });
    assert_eq!(all, [true; 3]);
    drop(leader);
    scene.assert_empty();
    let after = two.spawn(scene.question());
    scene.0.books.gate.add_permits(1);
    assert!(two.block_on(after).unwrap().is_ok(), "others are asked for as before");
}

#[test]
fn without_a_runtime_nobody_is_stranded() {
    let scene = Scene::new(100, None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let (mut leader, mut waiter) = (Box::pin(scene.question()), Box::pin(scene.question()));
    {
        let _entered = runtime.enter();
        assert!(leader.as_mut().poll(&mut cx).is_pending() && waiter.as_mut().poll(&mut cx).is_pending());
    }
    drop(leader);
    let _entered = runtime.enter();
    assert!(matches!(waiter.as_mut().poll(&mut cx), std::task::Poll::Ready(Err(Unanswered { timed_out: false }))));
    scene.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bounds_requests_ask_for_themselves() {
    let scene = Scene::new(u32::MAX, None);
    let clients: Vec<_> = (0..20_000)
        .map(|bits| tokio::spawn(ask(scene.0.clone(), Key { client: Partition::digest(bits), cost: 1 }, true)))
        .collect();
    settle().await;
    assert_eq!(scene.events().len(), 20_000);
    assert_eq!(scene.0.clients(), 4096);
    scene.answer(20_000).await;
    assert!(seen(clients).await.iter().all(|seen| *seen == Yes));
    scene.assert_empty();

    let crowd = scene.asked(20_001).await;
    assert_eq!(scene.0.waiting(), 16_384);
    assert_eq!(scene.events().iter().filter(|event| **event == Take(1)).count(), 1 + 20_000 - 16_384);
    scene.answer(20_001).await;
    assert!(seen(crowd).await.iter().all(|seen| *seen == Yes));
    assert!(scene.events().contains(&Take(16_384)));
    scene.assert_empty();
}

/// Some leave, at any moment, on several threads, while trips come and go: the others get their answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_that_comes_and_goes() {
    for lease in [None, Some(50)] {
        let scene = Scene::new(1000, lease);
        scene.0.books.gate.add_permits(1_000_000);
        let asking = (0..8).map(|thread: u64| {
            let board = scene.0.clone();
            tokio::spawn(async move {
                let mut admitted = 0;
                for nth in 0..500 {
                    if board.token(Scene::key(1), board.time.now()).is_some() {
                        admitted += 1;
                        continue;
                    }
                    let question = tokio::spawn(ask(board.clone(), Scene::key(1), true));
                    if (nth * 7 + thread).is_multiple_of(3) {
                        for _ in 0..nth % 5 {
                            tokio::task::yield_now().await;
                        }
                        question.abort();
                    }
                    let Ok(answer) = question.await else { continue };
                    admitted += u32::from(answer.is_ok_and(|verdict| verdict.admitted()));
                }
                admitted
            })
        });
        let mut admitted = 0;
        for asking in asking.collect::<Vec<_>>() {
            admitted += asking.await.unwrap();
        }
        assert!((300..=1000).contains(&admitted), "{admitted}");
        assert_eq!(scene.0.waiting(), 0);
        assert!(scene.0.clients() <= usize::from(lease.is_some()));
    }
}
