//! HTTP caching conformance: cases as data, run in process against the layer around a scripted origin, in paused time.
//!
//! `cargo test --features full --test conformance -- --nocapture` prints all results. Always run: our own cases,
//! `cases/*.json`, one file per section of an RFC, each written from its text. `CACHE_TEST_CASES=<file>` adds a file in
//! the format of the public suite (github.com/http-tests/cache-tests) as plain data; those run with stale-on-error, on
//! which many of them depend.
//!
//! With [`CachePolicy::rfc9111`] every `required` and every `optimal` case must pass, with the exceptions in [`EXEMPT`];
//! `check` cases are printed only. What [`CachePolicy::safe`] does otherwise with our own cases must be what
//! `safe-differences.txt` says.
//!
//! # The format
//!
//! A file is a list of suites, `{id, name, tests}`; a test is `{id, name, kind, depends_on, requests}`. Element n of `requests`
//! scripts both sides of request n, which every request says in `Req-Num`; [`case`] lists the words. Beside the public
//! ones, ours are:
//!
//! - `layer` of a case: how the layer is built ([`case::Options`]).
//! - `{url}`, `{path}`, `{token}` in any field: the case's own URL, its path, and the default body.
//! - `host`: another `Host`. `overlap`: the next element begins before this one ends. `pause_after` in seconds.
//! - `asctimedate`, as `rfc850date`. `response_chunked`: no `Content-Length`. `response_truncated`: the body breaks off, as it
//!   also does if `Content-Length` says more than there is.
//! - `expected_answer_of: k`: the client has the origin's answer to element k (after a validation: to that).
//!   `expected_origin_requests: k`: by the end of this element, and of what it began in the background, the origin has
//!   been asked k times.
//! - `expected_cache_status`, `expected_cache_status_missing`: parameters of the last member of `Cache-Status`.
//!
//! An inner error is what a server makes of it: a 502 without fields. The same number twice at the origin is a retry, and
//! fails. A validator counts as sent if it is one of several.
#![allow(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test may fail loudly; helpers outside of `#[test]` functions are tests too"
)]

mod case;
mod checks;
mod client;
mod clock;
mod fakes;
mod fields;
mod layer;
mod origin;
mod report;
mod status;

use std::collections::BTreeMap;
use std::path::Path;

use case::{Options, Suite};
use report::Report;
use tower_scale::cache::CachePolicy;

/// Cases of the public suite that stretch or contradict the RFCs, and those with 1xx responses, which never cross a tower
/// service.
const EXEMPT: [&str; 6] = [
    "conditional-lm-fresh-no-lm",
    "partial-store-partial-reuse-partial-byterange",
    "partial-store-partial-reuse-partial-absent",
    "partial-store-partial-reuse-partial-suffix",
    "partial-store-partial-complete",
    "interim-",
];

fn is_exempt(id: &str) -> bool {
    EXEMPT.iter().any(|exempt| id == *exempt || exempt.ends_with('-') && id.starts_with(exempt))
}

fn own_cases() -> Vec<Suite> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/cases");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let read = |file: &Path| case::parse(&file.display().to_string(), &std::fs::read_to_string(file).unwrap());
    files.iter().flat_map(|file| read(file)).collect()
}

/// The results of both presets.
fn run(suites: &[Suite]) -> [Report; 2] {
    [CachePolicy::rfc9111(), CachePolicy::safe()].map(|policy| {
        Report::of(suites, |case| {
            client::run(case, |origin, clock| layer::cache(policy.clone(), &case.layer, origin, clock))
        })
    })
}

fn print(title: &str, [rfc9111, safe]: &[Report; 2]) {
    println!("{title}, CachePolicy::rfc9111()\n{rfc9111}\n{title}, CachePolicy::safe()\n{safe}");
}

#[test]
fn own_cases_pass() {
    let reports = run(&own_cases());
    print("own cases", &reports);
    let missed = reports[0].missed(|_| false);
    assert!(missed.is_empty(), "{} own cases have not passed:\n{}", missed.len(), missed.join("\n"));
}

#[test]
fn the_named_cases_pass() {
    let Some(file) = std::env::var_os("CACHE_TEST_CASES") else { return };
    let text =
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("CACHE_TEST_CASES={}: {error}", file.display()));
    let mut suites = case::parse(&file.display().to_string(), &text);
    for case in suites.iter_mut().flat_map(|suite| &mut suite.tests) {
        case.layer = Options { stale_if_error: Some(3600), ..Options::default() };
    }
    let reports = run(&suites);
    print("named cases", &reports);
    let missed = reports[0].missed(is_exempt);
    assert!(missed.is_empty(), "{} named cases have not passed:\n{}", missed.len(), missed.join("\n"));
}

/// `id | reason` per line.
fn listed_differences() -> BTreeMap<String, String> {
    let lines = include_str!("safe-differences.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.map(|line| line.split_once(" | ").unwrap_or_else(|| panic!("no reason: {line}")));
    pairs.map(|(id, reason)| (id.trim().to_owned(), reason.to_owned())).collect()
}

#[test]
fn the_safe_preset_differs_as_listed() {
    let [rfc9111, safe] = run(&own_cases());
    let listed = listed_differences();
    let mut wrong = Vec::new();
    for (row, other) in rfc9111.rows().zip(safe.rows()) {
        let differs = row.outcome.is_passed() != other.outcome.is_passed();
        if differs != listed.contains_key(&row.case.id) {
            wrong.push(format!(
                "{} {}: {}",
                if differs { "not listed:" } else { "stale:" },
                row.case.id,
                other.outcome
            ));
        }
    }
    wrong.extend(listed.keys().filter(|id| safe.outcome(id).is_none()).map(|id| format!("no such case: {id}")));
    assert!(wrong.is_empty(), "safe-differences.txt:\n{}", wrong.join("\n"));
}
