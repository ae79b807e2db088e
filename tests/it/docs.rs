//! The documents say what the source says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources(dir: &Path, into: &mut String) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, into);
        } else {
            into.push_str(&fs::read_to_string(entry).unwrap());
        }
    }
}

/// The names that stand in the first column of the tables of `docs/metrics.md`, without their labels.
fn documented() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.map(|cell| cell.split('{').next().unwrap_or(cell).to_owned()).collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let mut code = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut code);
    let declared =
        code.split("Meter::new(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    let declared: BTreeSet<String> = declared.map(str::to_owned).collect();
    assert!(declared.len() > 10, "{declared:?}");
    let documented = documented();
    let missing: Vec<_> = declared.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    // `metrics-process` brings its own.
    let gone: Vec<_> = documented.difference(&declared).filter(|name| !name.starts_with("process_")).collect();
    assert!(gone.is_empty(), "only in docs/metrics.md: {gone:?}");
}

#[test]
fn every_dependency_is_justified() {
    let design = read("docs/design.md");
    let manifest = read("Cargo.toml");
    let table = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let names: Vec<_> = table.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(design.contains(&format!("| `{name}`")), "docs/design.md does not say why {name} is there");
    }
}
