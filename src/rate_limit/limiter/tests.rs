//! A policy's decisions, in process.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::super::policy::OnFull;
use super::*;

const SECOND: u64 = 1_000_000_000;

fn client(address: &str) -> Partition {
    Partition::of(address.parse().unwrap(), 32, 64)
}

fn limiter(policy: impl Into<Policy>) -> Limiter {
    Limiter::new(&policy.into().slots(0), true)
}

fn take(limiter: &Limiter, of: &str, now: u64) -> Verdict {
    limiter.take(client(of), 1, Share::WHOLE, now)
}

/// How many requests in a row are admitted now.
fn admitted(limiter: &Limiter, of: &str, now: u64) -> usize {
    (0..1000).take_while(|_| take(limiter, of, now).admitted()).count()
}

fn remaining(verdict: &Verdict) -> Vec<u32> {
    verdict.standings().iter().map(|standing| standing.remaining).collect()
}

#[test]
fn a_verdict_says_what_remains_and_how_long_to_wait() {
    let limiter = limiter(Quota::per_minute(100).burst(2));
    let first = take(&limiter, "192.0.2.1", SECOND);
    assert_eq!(first.standings(), [Standing { quota: 0, remaining: 1, seconds: 1 }]);
    assert_eq!((first.decision, first.wait), (Decision::Admitted, Duration::ZERO));
    take(&limiter, "192.0.2.1", SECOND);
    let third = take(&limiter, "192.0.2.1", SECOND);
    assert_eq!(third.standings(), [Standing { quota: 0, remaining: 0, seconds: 1 }]);
    assert_eq!(third.decision, Decision::Refused);
    assert!(third.wait >= Duration::from_millis(600) && third.wait < Duration::from_millis(601));
    assert_eq!(limiter.peek(client("192.0.2.1"), 1, SECOND), third);
    assert!(take(&limiter, "192.0.2.2", SECOND).admitted());
}

#[test]
fn several_quotas_are_charged_all_or_none() {
    let limiter = limiter([Quota::per_second(2), Quota::per_hour(3)]);
    assert_eq!(remaining(&take(&limiter, "192.0.2.1", SECOND)), [1, 2]);
    assert_eq!(remaining(&take(&limiter, "192.0.2.1", SECOND)), [0, 1]);
    let refused = take(&limiter, "192.0.2.1", SECOND);
    assert_eq!((refused.decision, remaining(&refused)), (Decision::Refused, vec![0, 1]));
    assert_eq!(remaining(&take(&limiter, "192.0.2.1", 2 * SECOND)), [1, 0]);
    let refused = take(&limiter, "192.0.2.1", 2 * SECOND);
    assert_eq!((refused.decision, remaining(&refused)), (Decision::Refused, vec![1, 0]));
    assert!(refused.wait > Duration::from_secs(1190), "the longest of all");
}

#[test]
fn a_tier_counts_its_networks_together() {
    let policy = Policy::new(Quota::per_minute(2)).ipv6_tier(48, Quota::per_minute(3).named("site"));
    let limiter = limiter(policy);
    assert_eq!(admitted(&limiter, "2001:db8:0:1::", 0), 2);
    let other = take(&limiter, "2001:db8:0:2::", 0);
    assert_eq!(other.standings().iter().map(|s| (s.quota, s.remaining)).collect::<Vec<_>>(), [(0, 1), (1, 0)]);
    assert!(!take(&limiter, "2001:db8:0:3::", 0).admitted());
    assert_eq!(admitted(&limiter, "2001:db8:1:1::", 0), 2);
    assert_eq!(take(&limiter, "192.0.2.1", 0).standings().len(), 1);
}

#[test]
fn a_request_costs_at_most_the_burst() {
    let limiter = limiter(Quota::per_second(10));
    let ask = |cost, now| limiter.take(client("192.0.2.1"), cost, Share::WHOLE, now).admitted();
    assert!(ask(7, 0) && !ask(4, 0) && ask(3, 0));
    assert!(!ask(11, SECOND - 1) && ask(11, SECOND));
    limiter.refund(client("192.0.2.1"), 11, Share::WHOLE, SECOND);
    assert_eq!(admitted(&limiter, "192.0.2.1", SECOND), 10);
}

#[test]
fn a_share_is_a_part_of_the_burst_and_of_the_rate() {
    let limiter = limiter(Quota::per_second(8));
    let ask = |share, of, now| limiter.take(client(of), 1, Share(share), now).admitted();
    let many = |share, of, now| (0..100).take_while(|_| ask(share, of, now)).count();
    assert_eq!((many(0.25, "192.0.2.1", 0), many(0.25, "192.0.2.1", SECOND)), (2, 2));
    assert_eq!((many(0.3, "192.0.2.2", 0), many(1.0, "192.0.2.3", 0)), (2, 8));
    assert_eq!((many(0.001, "192.0.2.4", 0), many(0.001, "192.0.2.4", SECOND)), (1, 1), "never nothing");
}

#[test]
fn what_a_handle_does() {
    let limiter = limiter([Quota::per_hour(5), Quota::per_day(7)]);
    let of = client("192.0.2.1");
    limiter.change(of, Change::Penalise(3), 0);
    assert_eq!(remaining(&limiter.peek(of, 1, 0)), [2, 4]);
    limiter.change(of, Change::Reward(1), 0);
    assert_eq!(remaining(&limiter.peek(of, 1, 0)), [3, 5]);
    limiter.change(of, Change::Penalise(u32::MAX), 0);
    assert_eq!(remaining(&limiter.peek(of, 1, 0)), [0, 0]);
    limiter.change(of, Change::Reset, 0);
    assert_eq!(remaining(&limiter.peek(of, 1, 0)), [5, 7]);
    assert_eq!(limiter.peek(client("192.0.2.2"), 6, 0).decision, Decision::Admitted);
    limiter.owe(of, 2, 0);
    assert_eq!(remaining(&limiter.peek(of, 1, 0)), [3, 5]);
}

#[test]
fn a_reset_leaves_what_a_tier_shares() {
    let limiter = limiter(Policy::new(Quota::per_hour(5)).ipv6_tier(48, Quota::per_hour(7).named("site")));
    take(&limiter, "2001:db8::", 0);
    limiter.change(client("2001:db8::"), Change::Reset, 0);
    assert_eq!(remaining(&limiter.peek(client("2001:db8::"), 1, 0)), [5, 6]);
}

#[test]
fn a_block_lasts_as_long_as_it_was_told_to() {
    let limiter = limiter(Quota::per_second(1));
    let of = client("192.0.2.1");
    let now = 5 * SECOND + 123;
    limiter.change(of, Change::Block(Duration::from_secs(60)), now);
    let refused = take(&limiter, "192.0.2.1", now);
    assert_eq!((refused.decision, remaining(&refused)), (Decision::Blocked, vec![0]));
    assert!(refused.wait >= Duration::from_secs(60) && refused.wait <= Duration::from_millis(60_001));
    assert!(take(&limiter, "192.0.2.2", now).admitted());
    assert_eq!(limiter.peek(of, 1, now + 60 * SECOND - 1).decision, Decision::Blocked);
    let waited = u64::try_from(refused.wait.as_nanos()).unwrap();
    assert!(take(&limiter, "192.0.2.1", now + waited).admitted());
    limiter.change(of, Change::Block(Duration::MAX), now);
    limiter.change(of, Change::Block(Duration::from_secs(1)), now + 60 * SECOND);
    assert!(limiter.peek(of, 1, now + 62 * SECOND).admitted(), "replaced");
    limiter.change(of, Change::Block(Duration::MAX), now);
    assert_eq!(take(&limiter, "192.0.2.1", u64::MAX / 2).decision, Decision::Blocked);
    limiter.change(of, Change::Reset, now);
    assert!(limiter.peek(of, 1, now).admitted());
    limiter.change(of, Change::Block(Duration::MAX), now);
    limiter.clear();
    assert!(limiter.peek(of, 1, now).admitted());
}

#[test]
fn cleared_it_knows_nobody() {
    let limiter = limiter([Quota::per_hour(3), Quota::per_day(5)]);
    assert_eq!(admitted(&limiter, "192.0.2.1", 0), 3);
    limiter.clear();
    assert_eq!(admitted(&limiter, "192.0.2.1", 0), 3);
}

/// A table of one page, and two thousand clients.
#[test]
fn a_refusal_for_an_inherited_debt_says_so() {
    let decisions = |on_full| {
        let limiter = Limiter::new(&Policy::new(Quota::per_hour(1)).slots(0).on_full(on_full), true);
        let of = |n: u32| Partition::of(std::net::Ipv4Addr::from_bits(n).into(), 32, 64);
        let all: Vec<_> = (0..2000).map(|n| limiter.take(of(n), 1, Share::WHOLE, SECOND).decision).collect();
        move |wanted| all.iter().filter(|decision| **decision == wanted).count()
    };
    let inherit = decisions(OnFull::Inherit);
    assert!((300..500).contains(&inherit(Decision::Admitted)) && inherit(Decision::Inherited) > 1500);
    // Two clients may have one tag.
    assert!(inherit(Decision::Refused) < 5);
    assert!(decisions(OnFull::Admit)(Decision::Admitted) > 1995);
}

#[tokio::test]
async fn a_new_quota_keeps_debts_as_times() {
    let limiter = limiter([Quota::per_minute(60), Quota::per_hour(1000)]);
    let of = client("192.0.2.1");
    limiter.take(of, 30, Share::WHOLE, SECOND); // free of debt in 30 s
    limiter.set_quota(0, Quota::per_minute(120), SECOND, || ()).await.unwrap();
    assert_eq!(limiter.quotas(), [Quota::per_minute(120), Quota::per_hour(1000)]);
    assert_eq!(remaining(&limiter.peek(of, 1, SECOND)), [60, 970]);
    assert_eq!(remaining(&limiter.peek(of, 1, 11 * SECOND)), [80, 972]);
    limiter.set_quota(0, Quota::per_minute(60).burst(10), SECOND, || ()).await.unwrap();
    assert_eq!(remaining(&limiter.peek(of, 1, SECOND)), [0, 970]);
    assert_eq!(remaining(&limiter.peek(of, 1, 11 * SECOND)), [10, 972], "at most a whole burst");
    assert_eq!(limiter.set_quota(2, Quota::per_hour(1), 0, || ()).await, Err(ConfigError::NoSuchQuota("2".to_owned())));
}

#[tokio::test]
async fn a_change_that_was_dropped_is_finished_by_the_next() {
    let limiter = Limiter::new(&Policy::new(Quota::per_hour(100)).slots(1 << 16), true);
    let of = client("192.0.2.1");
    limiter.take(of, 50, Share::WHOLE, 0);
    for count in [200, 400, 100] {
        let change = std::pin::pin!(limiter.set_quota(0, Quota::per_hour(count), 0, || ()));
        let polled = futures_util::poll!(change);
        assert!(polled.is_pending());
    }
    // The second and the third were dropped while they finished the first.
    assert_eq!(limiter.quotas(), [Quota::per_hour(200)]);
    assert_eq!(remaining(&limiter.peek(of, 1, 0)), [100]);
    limiter.set_quota(0, Quota::per_hour(10).burst(10), 0, || ()).await.unwrap();
    assert_eq!(remaining(&limiter.peek(of, 1, 0)), [5]);
}

/// Calls `body` on 16 threads until the future is done, and says what it came to.
fn while_16_threads<T>(body: impl Fn() + Sync, future: impl Future<Output = T>) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    body();
                }
            });
        }
        let result = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
        done.store(true, Relaxed);
        result
    })
}

#[test]
fn no_charge_is_lost_while_quotas_change() {
    // The same interval all the time, and time stands still: the burst decides.
    let limiter = Limiter::new(
        &Policy::new([Quota::per_hour(100), Quota::per_hour(100).burst(500).named("b")]).slots(8_000),
        true,
    );
    let admitted: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
    let of = |n: u32| Partition::of(std::net::Ipv4Addr::from_bits(n).into(), 32, 64);
    let turn = AtomicU32::new(0);
    let request = || {
        let n = turn.fetch_add(1, Relaxed) % 4;
        if limiter.take(of(n), 1, Share::WHOLE, SECOND).admitted() {
            admitted[n as usize].fetch_add(1, Relaxed);
        }
    };
    while_16_threads(request, async {
        for burst in (100..=1000).step_by(25) {
            limiter.set_quota(0, Quota::per_hour(100).burst(burst), SECOND, || ()).await.unwrap();
        }
    });
    (0..10_000).for_each(|_| request());
    let admitted: Vec<_> = admitted.into_iter().map(AtomicU32::into_inner).collect();
    assert_eq!(admitted, [500; 4], "the least of the bursts, exactly");
}

#[test]
fn sixteen_threads_are_charged_by_all_quotas_or_none() {
    let limiter =
        Limiter::new(&Policy::new([Quota::per_hour(300), Quota::per_day(200), Quota::per_second(400)]).slots(0), true);
    let admitted = AtomicU32::new(0);
    let of = client("192.0.2.1");
    let request = || {
        if limiter.take(of, 1, Share::WHOLE, SECOND).admitted() {
            admitted.fetch_add(1, Relaxed);
        }
    };
    while_16_threads(request, async {
        while admitted.load(Relaxed) < 150 {
            tokio::task::yield_now().await;
        }
    });
    // A request that took part of another one's room for a moment may have refused it.
    (0..200).for_each(|_| request());
    assert_eq!(admitted.into_inner(), 200);
    assert_eq!(remaining(&limiter.peek(of, 1, SECOND)), [100, 0, 200], "what was refused was charged nowhere");
}

#[test]
fn a_blocked_client_waits_for_its_block_and_for_what_it_owes() {
    let limiter = limiter([Quota::per_hour(1), Quota::per_day(100)]);
    let of = client("192.0.2.1");
    take(&limiter, "192.0.2.1", 0);
    limiter.change(of, Change::Block(Duration::from_secs(60)), 0);
    let refused = take(&limiter, "192.0.2.1", 0);
    assert_eq!((refused.decision, refused.wait), (Decision::Blocked, Duration::from_secs(3600)));
    assert_eq!(limiter.peek(of, 1, 0), refused);
    assert!(refused.standings().iter().all(|standing| (standing.remaining, standing.seconds) == (0, 3600)));
    assert!(take(&limiter, "192.0.2.1", 3600 * SECOND).admitted());
}
