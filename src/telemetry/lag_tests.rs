use proptest::prelude::*;

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A runtime as the sampler sees it: each worker is stalled in the given intervals and parked otherwise.
#[derive(Default)]
struct Simulation {
    meter: LagMeter,
    stalls: Vec<Vec<(u64, u64)>>,
    /// The process was not run in these intervals; the simulated sampler wakes late.
    freezes: Vec<(u64, u64)>,
    sent: Option<u64>,
    held: Vec<(u64, u64)>,
    /// The pause before the next reading of a quiet runtime, 10 ms unless set.
    quiet_pause: Option<u64>,
    samples: Vec<Duration>,
}

impl Simulation {
    fn of(stalls: &[&[(u64, u64)]]) -> Self {
        Self { stalls: stalls.iter().map(|worker| worker.to_vec()).collect(), ..Self::default() }
    }

    fn worker(&self, index: usize, now: u64) -> Worker {
        let mut worker = Worker { parks: 1, busy: Duration::ZERO };
        for (start, end) in self.stalls[index].iter().filter(|(start, _)| *start < now) {
            worker.parks += 1;
            if *end < now {
                worker.parks += 1;
                worker.busy += ms(end - start);
            }
        }
        worker
    }

    /// When a probe sent at `sent` runs: at once if some worker is free, else when the first one is.
    fn answered(&self, sent: u64) -> u64 {
        let free = |worker: &Vec<(u64, u64)>| {
            worker.iter().find(|(start, end)| (*start..*end).contains(&sent)).map_or(sent, |(_, end)| *end)
        };
        self.stalls.iter().map(free).min().unwrap()
    }

    fn step(&mut self, due: u64, now: u64) -> Step {
        let workers: Vec<Worker> = (0..self.stalls.len()).map(|index| self.worker(index, now)).collect();
        let probe = match self.sent {
            None => Probe::None,
            Some(sent) if self.answered(sent) < now => {
                self.sent = None;
                Probe::Answered { sent: ms(sent), at: ms(self.answered(sent)) }
            }
            Some(sent) => Probe::Outstanding { sent: ms(sent) },
        };
        let samples = &mut self.samples;
        let held: Vec<Stall> = self
            .held
            .extract_if(.., |(_, end)| *end < now)
            .map(|(start, end)| Stall { start: ms(start), end: ms(end) })
            .collect();
        let reading = Reading { due: ms(due), now: ms(now), probe, workers: &workers, held: &held };
        let step = self.meter.step(reading, &mut |lag| samples.push(lag));
        self.sent.get_or_insert(now);
        step
    }

    fn run(&mut self, until: u64) -> Vec<Step> {
        let (mut due, mut steps) = (0, Vec::new());
        while due <= until {
            let frozen = self.freezes.iter().find(|(start, end)| (*start..*end).contains(&due));
            let now = frozen.map_or(due, |(_, end)| *end);
            let step = self.step(due, now);
            steps.push(step);
            due = now + self.quiet_pause.filter(|_| step.quiet).unwrap_or(10);
        }
        steps
    }

    fn long(&self) -> Vec<u64> {
        self.samples.iter().map(|lag| u64::try_from(lag.as_millis()).unwrap()).filter(|lag| *lag > 0).collect()
    }
}

#[test]
fn a_stall_counts_as_its_ticks_once() {
    type Worker = &'static [(u64, u64)];
    let cases: [(&[Worker], &[u64]); 5] = [
        // One loop: the probe sees the stall as well as the turn does.
        (&[&[(105, 155)]], &[50, 40, 30, 20, 10]),
        // One of two: the probe is answered by the other worker.
        (&[&[(105, 155)], &[]], &[50, 40, 30, 20, 10]),
        // Both at once.
        (&[&[(105, 155)], &[(105, 155)]], &[50, 40, 30, 20, 10]),
        // Too short to be seen from outside, and another worker is free.
        (&[&[(101, 109)], &[]], &[]),
        // Twice.
        (&[&[(105, 135), (205, 235)]], &[30, 20, 10, 30, 20, 10]),
    ];
    for (stalls, expected) in cases {
        let mut simulation = Simulation::of(stalls);
        simulation.run(400);
        assert_eq!(simulation.long(), expected, "{stalls:?}");
    }
}

#[test]
fn overlapping_stalls_share_their_ticks() {
    let mut simulation = Simulation::of(&[&[(105, 205)], &[(155, 255)]]);
    simulation.run(400);
    let long = simulation.long();
    assert!((14..=16).contains(&long.len()), "150 ms are 15 ticks: {long:?}");
    assert_eq!(long.iter().max(), Some(&100));
}

#[test]
fn a_stall_inside_a_longer_one_leaves_the_ticks_to_it() {
    let mut simulation = Simulation::of(&[&[(105, 505)], &[(205, 255)], &[]]);
    simulation.run(700);
    assert_eq!(simulation.long(), (1..=40).rev().map(|tick| tick * 10).collect::<Vec<_>>());
}

#[test]
fn there_is_one_sample_per_tick_stalled_or_not() {
    for stalls in [&[&[][..], &[]][..], &[&[(105, 305)], &[]], &[&[(105, 305)], &[(105, 305)]]] {
        for quiet_pause in [10, 20] {
            let mut simulation = Simulation { quiet_pause: Some(quiet_pause), ..Simulation::of(stalls) };
            simulation.run(1000);
            let samples = simulation.samples.len();
            assert!((98..=102).contains(&samples), "{samples}: {stalls:?}, {quiet_pause} ms when quiet");
        }
    }
}

#[test]
fn time_by_which_a_reading_is_late_has_no_samples() {
    let mut simulation = Simulation { quiet_pause: Some(20), ..Simulation::of(&[&[], &[]]) };
    simulation.freezes = vec![(205, 705)];
    simulation.run(1000);
    assert!((47..=52).contains(&simulation.samples.len()), "{}", simulation.samples.len());
}

#[test]
fn a_probe_is_not_blamed_for_a_late_sampler() {
    let mut meter = LagMeter::default();
    let worker = [Worker { parks: 1, busy: Duration::ZERO }];
    let mut waits = Vec::new();
    for (due, now, probe) in [
        (200, 200, Probe::Outstanding { sent: ms(190) }),
        (210, 1200, Probe::Outstanding { sent: ms(190) }),
        (1210, 1210, Probe::Answered { sent: ms(190), at: ms(1203) }),
        (1220, 2220, Probe::Answered { sent: ms(1212), at: ms(2219) }),
    ] {
        let reading = Reading { due: ms(due), now: ms(now), probe, workers: &worker, held: &[] };
        meter.step(reading, &mut |lag| waits.push(lag));
    }
    // 20 ms before the first late reading and 3 ms after it; 8 ms before the second.
    assert_eq!(waits, [ms(23), ms(13), ms(3), ms(8)]);
}

#[test]
fn a_stall_shows_while_it_lasts() {
    for stalls in [&[&[(105_u64, 1105_u64)][..]][..], &[&[(105, 1105)], &[]]] {
        let mut simulation = Simulation::of(stalls);
        let steps = simulation.run(600);
        let last = steps.last().unwrap();
        assert!(last.lag > ms(470) && last.lag <= ms(500), "{last:?}");
        assert_eq!(last.lag_max, last.lag);
        let steps = simulation.run(0);
        assert_eq!(steps.len(), 1);
    }
}

#[test]
fn the_maximum_is_the_stall_for_a_minute() {
    let mut simulation = Simulation::of(&[&[(105, 1105)], &[]]);
    let steps = simulation.run(70_000);
    let max_at = |at: usize| steps[at / 10].lag_max;
    assert_eq!(max_at(2_000), ms(1000));
    assert_eq!(max_at(60_000), ms(1000));
    assert_eq!(max_at(62_000), Duration::ZERO);
}

#[test]
fn a_frozen_process_is_not_a_stalled_loop() {
    for stalls in [&[&[][..]][..], &[&[], &[]]] {
        let mut simulation = Simulation::of(stalls);
        simulation.freezes = vec![(205, 1205)];
        let steps = simulation.run(3000);
        assert!(simulation.long().is_empty(), "{stalls:?}: {:?}", simulation.long());
        assert!(steps.last().unwrap().lag_max < ms(10));
    }
}

#[test]
fn a_turn_that_a_freeze_interrupts_is_not_a_stall() {
    // Seen once before the freeze, and at its end, but not in time afterwards.
    let mut simulation = Simulation::of(&[&[(199, 1203)], &[]]);
    simulation.freezes = vec![(205, 1201)];
    let steps = simulation.run(3000);
    assert!(simulation.long().is_empty(), "{:?}", simulation.long());
    assert!(steps.last().unwrap().lag_max < ms(10));
}

#[test]
fn a_late_sampler_does_not_shorten_a_stall() {
    for (stall, freeze) in [((105, 305), (125, 225)), ((105, 305), (115, 215)), ((105, 305), (225, 405))] {
        for stalls in [&[&[stall][..]][..], &[&[stall], &[]]] {
            let mut simulation = Simulation::of(stalls);
            simulation.freezes = vec![freeze];
            let max = simulation.run(1000).last().unwrap().lag_max;
            assert!(max >= ms(190) && max <= ms(200), "{stalls:?}, late at {freeze:?}: {max:?}");
        }
    }
}

#[test]
fn a_timed_poll_counts_unless_a_reading_found_the_loop_clear() {
    let cases = [
        // The sampler slept through it.
        (&[100, 300][..], true),
        (&[100, 110, 300], true),
        // It took part in its turn, or let the loop go on (`block_in_place`).
        (&[100, 110, 120, 130, 140, 150, 160, 170, 180, 190, 200, 210, 220, 230, 240, 250, 300], false),
        (&[100, 110, 120, 130, 140, 150, 200, 250, 260], false),
    ];
    for (readings, counts) in cases {
        let (mut meter, mut samples, mut due) = (LagMeter::default(), 0, 100);
        let mut lag_max = Duration::ZERO;
        for at in readings {
            let worker = [Worker { parks: 1, busy: Duration::ZERO }];
            let poll = [Stall { start: ms(105), end: ms(255) }];
            let held = if *at > 255 { &poll[..] } else { &[] };
            let reading = Reading { due: ms(due), now: ms(*at), probe: Probe::None, workers: &worker, held };
            lag_max = meter.step(reading, &mut |_| samples += 1).lag_max;
            due = at + 10;
        }
        let expected = if counts { (15, ms(150)) } else { (0, Duration::ZERO) };
        assert_eq!((samples, lag_max), expected, "{readings:?}");
    }
}

#[test]
fn a_timed_poll_and_its_turn_are_one_stall() {
    let mut simulation = Simulation::of(&[&[(105, 155)], &[]]);
    simulation.held = vec![(106, 154)];
    simulation.run(400);
    assert_eq!(simulation.long(), [48, 38, 28, 18, 8], "as exactly as it was timed");
}

#[test]
fn the_workers_own_clock_makes_the_length_exact() {
    let turn = Turn { after: ms(100), seen: ms(110), excused: false };
    for (busy, length) in [(45, 45), (30, 40), (90, 60)] {
        let stall = turn.ended(ms(busy), ms(150), ms(160));
        assert_eq!(stall.end - stall.start, ms(length), "busy for {busy} ms");
        assert!(stall.end <= ms(160) && stall.end >= ms(150));
    }
}

#[test]
fn quiet_is_when_only_the_probe_wakes_workers() {
    let mut meter = LagMeter::default();
    let mut at = 0;
    let mut quiet = |parks: [u64; 2]| {
        at += 10;
        let workers = parks.map(|parks| Worker { parks, busy: Duration::ZERO });
        let reading = Reading { due: ms(at), now: ms(at), probe: Probe::None, workers: &workers, held: &[] };
        meter.step(reading, &mut |_| {}).quiet
    };
    assert!(quiet([1, 1]));
    assert!(quiet([3, 3]), "the probe woke one, which woke another to search");
    assert!(!quiet([9, 3]), "somebody works");
    assert!(!quiet([10, 3]), "a worker is running");
}

#[test]
fn an_endless_stall_ends_in_bounded_work() {
    let mut simulation = Simulation::of(&[&[(5, 3_600_005)], &[]]);
    simulation.run(3_600_100);
    assert_eq!(simulation.long().len(), MAX_TICKS as usize);
    assert_eq!(simulation.samples.iter().max(), Some(&ms(3_600_000)));
}

proptest! {
    /// However stalls lie on the workers: what one worker suffered for 20 ms or more is found, nothing longer than
    /// the longest stall is reported, and no tick is counted twice.
    #[test]
    fn every_stall_is_found_and_no_tick_counts_twice(
        workers in prop::collection::vec(prop::collection::vec((1_u64..300, 1_u64..300), 0..8), 1..4)
    ) {
        let stalls: Vec<Vec<(u64, u64)>> = workers.iter().map(|worker| {
            let mut at = 0;
            worker.iter().map(|(pause, length)| {
                let start = at + pause + 20;
                at = start + length;
                (start, at)
            }).collect()
        }).collect();
        let until = stalls.iter().flatten().map(|stall| stall.1).max().unwrap_or(0) + 100;
        let longest = stalls.iter().flatten().map(|(start, end)| end - start).max().unwrap_or(0);
        let mut stalled_ms = vec![false; usize::try_from(until).unwrap()];
        for (start, end) in stalls.iter().flatten() {
            stalled_ms[usize::try_from(*start).unwrap()..usize::try_from(*end).unwrap()].fill(true);
        }
        let stalled = stalled_ms.iter().filter(|stalled| **stalled).count();
        let pieces = stalls.iter().flatten().count();

        let mut simulation = Simulation { stalls, ..Simulation::default() };
        let max = simulation.run(until).last().unwrap().lag_max;

        prop_assert!(max <= ms(longest));
        if longest >= 20 {
            prop_assert!(max >= ms(longest - longest.min(10)), "{:?} of {longest}", max);
        }
        let long = simulation.long().len();
        prop_assert!(long <= stalled / 10 + pieces, "{long} samples in {stalled} ms and {pieces} stalls");
    }
}
