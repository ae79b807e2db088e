//! Outcomes, what depends on what, and tables of both.

use std::collections::BTreeMap;
use std::fmt;

use crate::case::{Case, Kind, Suite};

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    /// The set-up failed, which says nothing of what the case is about.
    Setup(String),
    /// A case that this one depends on has not passed.
    Depends(String),
}

impl Outcome {
    pub fn is_passed(&self) -> bool {
        *self == Self::Passed
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(reason) => write!(f, "FAILED {reason}"),
            Self::Setup(reason) => write!(f, "SETUP FAILED {reason}"),
            Self::Depends(id) => write!(f, "SKIPPED depends on {id}"),
        }
    }
}

/// The outcomes of whole suites, in their order.
pub struct Report {
    rows: Vec<Row>,
}

pub struct Row {
    pub suite: String,
    pub case: Case,
    pub outcome: Outcome,
}

impl Report {
    /// Runs every case, then takes back what depends on one that has not passed.
    ///
    /// # Panics
    /// If an id stands twice, or a case depends on one that is not there.
    pub fn of(suites: &[Suite], mut run: impl FnMut(&Case) -> Outcome) -> Self {
        let mut rows = Vec::new();
        for suite in suites {
            for case in &suite.tests {
                rows.push(Row { suite: suite.id.clone(), case: case.clone(), outcome: run(case) });
            }
        }
        let ids: BTreeMap<_, _> = rows.iter().enumerate().map(|(at, row)| (row.case.id.clone(), at)).collect();
        assert_eq!(ids.len(), rows.len(), "an id stands twice");
        // Once per link of the longest chain.
        while Self::take_back(&mut rows, &ids) {}
        Self { rows }
    }

    fn take_back(rows: &mut [Row], ids: &BTreeMap<String, usize>) -> bool {
        let mut changed = false;
        for at in 0..rows.len() {
            let named = &rows[at].case.depends_on;
            let missed = named.iter().find(|id| {
                let other = ids.get(*id).unwrap_or_else(|| panic!("{} depends on {id}", rows[at].case.id));
                !rows[*other].outcome.is_passed()
            });
            if let Some(id) = missed.cloned()
                && !matches!(rows[at].outcome, Outcome::Depends(_))
            {
                rows[at].outcome = Outcome::Depends(id);
                changed = true;
            }
        }
        changed
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    pub fn outcome(&self, id: &str) -> Option<&Outcome> {
        self.rows().find(|row| row.case.id == id).map(|row| &row.outcome)
    }

    /// What must pass and has not: `required` and `optimal` cases except these.
    pub fn missed(&self, exempt: impl Fn(&str) -> bool) -> Vec<String> {
        let missed =
            self.rows().filter(|row| row.case.kind != Kind::Check && !row.outcome.is_passed() && !exempt(&row.case.id));
        missed.map(Row::line).collect()
    }

    /// Passed and all, of one kind.
    fn count(&self, suite: Option<&str>, kind: Kind) -> String {
        let rows = self.rows().filter(|row| row.case.kind == kind && suite.is_none_or(|suite| row.suite == suite));
        let outcomes: Vec<_> = rows.map(|row| row.outcome.is_passed()).collect();
        format!("{}/{}", outcomes.iter().filter(|passed| **passed).count(), outcomes.len())
    }
}

impl Row {
    pub fn line(&self) -> String {
        let kind = format!("{:?}", self.case.kind).to_lowercase();
        format!("{kind} {}: {} ({})", self.case.id, self.outcome, self.case.name)
    }
}

/// One line per suite and preset, all that has not passed, and the sums.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut suites: Vec<_> = self.rows().map(|row| row.suite.as_str()).collect();
        suites.dedup();
        writeln!(f, "{:32} {:>9} {:>9} {:>9}", "suite", "required", "optimal", "check")?;
        for suite in suites.into_iter().map(Some).chain([None]) {
            let [required, optimal, check] =
                [Kind::Required, Kind::Optimal, Kind::Check].map(|kind| self.count(suite, kind));
            writeln!(f, "{:32} {required:>9} {optimal:>9} {check:>9}", suite.unwrap_or("all"))?;
        }
        for row in self.rows().filter(|row| !row.outcome.is_passed()) {
            writeln!(f, "  {}", row.line())?;
        }
        Ok(())
    }
}
