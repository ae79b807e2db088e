//! What may be admitted, held against what was.

use std::time::Duration;

use super::instance::Made;

/// So many requests at once, and so many per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) burst: f64,
    pub(super) rate: f64,
}

/// The clocks of Redis and of the kernel run apart by that much in some seconds.
const DRIFT: u64 = 1000;

impl Bound {
    pub(super) fn over(self, time: Duration) -> f64 {
        self.burst + self.rate * time.as_secs_f64()
    }

    /// Whether in any stretch of time more were admitted. A decision was made between the begin and the end of its
    /// request, so those that are wholly within a stretch were decided in it: nothing is left to tolerance.
    pub(super) fn exceeded_by(self, admitted: &[Made]) -> Option<String> {
        self.exceeded_with(admitted, Duration::ZERO)
    }

    /// The same, where a stretch may be longer by `life`.
    pub(super) fn exceeded_with(self, admitted: &[Made], life: Duration) -> Option<String> {
        let mut by_end = admitted.to_vec();
        by_end.sort_by_key(|made| made.ended);
        by_end.iter().find_map(|first| {
            let within = by_end.iter().filter(|made| made.begun >= first.begun);
            within.zip(1..).find_map(|(last, count)| {
                let time = Duration::from_micros(last.ended - first.begun + DRIFT);
                let most = self.over(time + life);
                (f64::from(count) > most.floor()).then(|| format!("{count} in {time:?}, where {most:.2} may be"))
            })
        })
    }
}

#[test]
fn one_too_many_is_found_in_any_stretch() {
    let made = |begun: u64| Made {
        client: [127, 0, 0, 1].into(),
        begun,
        ended: begun + 1_000,
        late: 0,
        status: 200,
        announced: None,
        degraded: false,
    };
    let bound = Bound { burst: 5.0, rate: 10.0 };
    let burst = |at: u64, count: u64| (0..count).map(move |n| made(at + n));
    let steady = |from: u64, count: u64| (0..count).map(move |n| made(from + n * 100_000));
    let fine: Vec<_> = burst(0, 5).chain(steady(100_000, 30)).chain(burst(4_000_000, 5)).collect();
    assert_eq!(bound.exceeded_by(&fine), None);
    let at_once: Vec<_> = burst(0, 6).collect();
    let after_a_while: Vec<_> = burst(0, 5).chain(steady(100_000, 30)).chain(burst(3_300_000, 4)).collect();
    let too_fast: Vec<_> = (0..100).map(|n| made(n * 90_000)).collect();
    for wrong in [at_once, after_a_while, too_fast] {
        assert!(bound.exceeded_by(&wrong).is_some());
    }
}
