//! Tokens on lease.

use tokio::task::JoinHandle;

use super::Event::{Admitted, Forgot, Refund, Take};
use super::Seen::Yes;
use super::*;

#[tokio::test(start_paused = true)]
async fn tokens_are_used_without_a_trip_and_given_back() {
    let scene = Scene::new(100, Some(10));
    scene.0.books.gate.add_permits(99);
    let mut questions = Vec::new();
    for _ in 0..8 {
        questions.append(&mut scene.asked(1).await);
    }
    assert_eq!(seen(questions).await, [Yes, Yes, Yes, Yes, Yes, Yes, Yes, Yes]);
    let mut events = scene.events();
    events.retain(|event| *event != Admitted(1));
    // The first alone; the second and one more; the fourth and three more; the eighth and seven more.
    assert_eq!(events, [Take(1), Take(2), Take(4), Take(8)]);
    tokio::time::sleep(LIFE).await;
    assert!(scene.0.token(Scene::key(1), scene.0.time.now()).is_none(), "their life has ended");
    tokio::time::sleep(LIFE / 2).await;
    assert_eq!(scene.events(), [Refund(7), Forgot]);
    assert_eq!(*scene.0.books.left.lock().unwrap(), 92);
    assert!(!scene.0.sweeping.load(std::sync::atomic::Ordering::Relaxed), "nothing left to do");
}

#[tokio::test(start_paused = true)]
async fn tokens_serve_those_who_wait_already() {
    let scene = Scene::new(100, Some(10));
    let mut questions = scene.asked(3).await;
    scene.answer(1).await;
    assert_eq!(scene.events(), [Take(1), Admitted(1), Take(2 + 1)]);
    questions.append(&mut scene.asked(4).await);
    scene.answer(1).await;
    assert_eq!(scene.events(), [Admitted(2), Admitted(1), Take(3 + 4)]);
    questions.append(&mut scene.asked(2).await);
    scene.answer(1).await;
    assert_eq!(scene.events(), [Admitted(3), Admitted(2)]);
    assert!(seen(questions).await.iter().all(|seen| *seen == Yes));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_brought_even_if_whoever_asked_for_them_leaves() {
    let scene = Scene::new(100, Some(10));
    let questions = scene.asked(3).await;
    questions.iter().for_each(JoinHandle::abort);
    settle().await;
    scene.0.token(Scene::key(1), scene.0.time.now());
    scene.answer(9).await;
    tokio::time::sleep(2 * LIFE).await;
    let left = *scene.0.books.left.lock().unwrap();
    assert!((97..100).contains(&left), "only who left is charged: {left}");
}

#[tokio::test(start_paused = true)]
async fn only_who_is_trusted_takes_tokens() {
    let scene = Scene::new(100, Some(10));
    scene.0.books.gate.add_permits(99);
    for _ in 0..4 {
        assert!(ask(scene.0.clone(), Scene::key(1), false).await.is_ok());
        assert_eq!(scene.events(), [Take(1), Admitted(1)]);
    }
    assert!(scene.question().await.is_ok());
    assert_eq!(scene.events(), [Take(5), Admitted(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_change_voids_tokens_in_hand_and_on_their_way() {
    for void in [|scene: &Scene| scene.0.void(Partition::EVERYBODY), |scene: &Scene| scene.0.void_all()] {
        let scene = Scene::new(100, Some(10));
        scene.0.books.gate.add_permits(3);
        for _ in 0..4 {
            scene.asked(1).await;
        }
        assert_eq!(scene.0.expired(0), []);
        assert!(scene.0.holds_tokens());
        void(&scene);
        assert!(!scene.0.holds_tokens());
        scene.events();
        let questions = scene.asked(1).await;
        let [Take(wanted)] = scene.events()[..] else { panic!() };
        assert!(wanted > 1);
        void(&scene);
        scene.answer(1).await;
        assert_eq!(seen(questions).await, [Yes]);
        assert!(!scene.0.holds_tokens());
        tokio::time::sleep(2 * LIFE).await;
        assert_eq!(scene.events(), [Admitted(1)], "nothing is given back");
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_ask_once_make_room_and_those_with_tokens_stay() {
    let scene = Scene::new(u32::MAX, Some(10));
    scene.0.books.gate.add_permits(100_000);
    for _ in 0..4 {
        scene.asked(1).await;
    }
    assert!(scene.0.holds_tokens());
    for bits in 0..20_000 {
        let key = Key { client: Partition::digest(bits), cost: 1 };
        assert!(ask(scene.0.clone(), key, true).await.is_ok());
    }
    assert_eq!(scene.0.clients(), 4096);
    assert!(scene.0.holds_tokens());
    tokio::time::sleep(3 * LIFE).await;
    assert_eq!(scene.0.clients(), 1, "one that was busy, until it makes room");
}
