//! Interleaved rounds, medians, and their 95 % intervals.

use std::time::Duration;

/// Something that serves a number of requests and says what that took.
pub struct Subject<T = Duration> {
    pub name: &'static str,
    pub serve: Box<dyn FnMut(u32) -> T>,
}

pub struct Plan {
    pub rounds: usize,
    pub requests: u32,
}

impl Plan {
    /// Measures all subjects and prints a table; ratios are to the subject named `reference`.
    pub fn run(&self, title: &str, reference: &str, mut subjects: Vec<Subject>) {
        let took = self.gather(&mut subjects);
        self.report(title, reference, &subjects, &took, |took| *took);
    }

    /// What each subject took in each round.
    pub fn gather<T>(&self, subjects: &mut [Subject<T>]) -> Vec<Vec<T>> {
        for subject in &mut *subjects {
            (subject.serve)(self.requests);
        }
        let mut took: Vec<_> = subjects.iter().map(|_| Vec::with_capacity(self.rounds)).collect();
        for round in 0..self.rounds {
            for turn in 0..subjects.len() {
                let index = (round + turn) % subjects.len();
                took[index].push((subjects[index].serve)(self.requests));
            }
        }
        took
    }

    /// Prints one kind of time of what has been gathered.
    pub fn report<T>(
        &self,
        title: &str,
        reference: &str,
        subjects: &[Subject<T>],
        took: &[Vec<T>],
        time: impl Fn(&T) -> Duration,
    ) {
        let nanos: Vec<_> = took.iter().map(|took| each(took, self.requests, &time)).collect();
        let reference = subjects.iter().position(|subject| subject.name == reference).expect("a subject by that name");
        println!("\n{title}: {} rounds of {} requests", self.rounds, self.requests);
        println!("{:<38} {:>8} {:>17}   {:>6} {:>15}", "", "ns", "95 % interval", "ratio", "95 % interval");
        for (subject, own) in subjects.iter().zip(&nanos) {
            let ratios = own.iter().zip(&nanos[reference]).map(|(own, other)| own / other).collect();
            let ([low, median, high], [least, ratio, most]) = (interval(own.clone()), interval(ratios));
            println!(
                "{:<38} {median:>8.0} {:>17}   {ratio:>6.2} {:>15}",
                subject.name,
                format!("{low:.0} – {high:.0}"),
                format!("{least:.2} – {most:.2}"),
            );
        }
    }

    /// Prints what the first of each pair adds to the subject named `bare`, beside what the second adds.
    pub fn report_added(&self, bare: &str, pairs: &[(&str, &str)], subjects: &[Subject], took: &[Vec<Duration>]) {
        let nanos = |name: &str| {
            let of = subjects.iter().position(|subject| subject.name == name).expect("a subject by that name");
            each(&took[of], self.requests, |took| *took)
        };
        let bare = nanos(bare);
        let added = |name: &str| -> Vec<f64> { nanos(name).iter().zip(&bare).map(|(own, bare)| own - bare).collect() };
        println!("{:<38} {:>8}   {:<38} {:>8}   {:>6} {:>15}", "adds", "ns", "beside", "ns", "ratio", "95 % interval");
        for (own, other) in pairs {
            let (ours, theirs) = (added(own), added(other));
            let [least, ratio, most] = interval(ours.iter().zip(&theirs).map(|(own, other)| own / other).collect());
            let (ours, theirs) = (middle(ours), middle(theirs));
            let spread = format!("{least:.2} – {most:.2}");
            println!("{own:<38} {ours:>8.0}   {other:<38} {theirs:>8.0}   {ratio:>6.2} {spread:>15}");
        }
    }
}

/// Nanoseconds per request, by round.
fn each<T>(took: &[T], requests: u32, time: impl Fn(&T) -> Duration) -> Vec<f64> {
    took.iter().map(|took| time(took).as_secs_f64() * 1e9 / f64::from(requests)).collect()
}

/// The median.
pub fn middle(values: Vec<f64>) -> f64 {
    interval(values)[1]
}

/// The median and its 95 % interval by order statistics (binomial, normal approximation).
fn interval(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let half = 1.96 * n.sqrt() / 2.0;
    let at = |rank: f64| values[(rank.round().max(0.0) as usize).min(values.len() - 1)];
    [at((n - 1.0) / 2.0 - half), at((n - 1.0) / 2.0), at((n - 1.0) / 2.0 + half)]
}
