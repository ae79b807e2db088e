//! Who may import whom: layers that transform responses never import each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Everyone may use these.
const SHARED: &[&str] = &["body", "meter", "ready", "refusal", "scope"];

/// Each module, and which other modules it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("cache", &["client_ip", "redis"]),
    ("client_ip", &[]),
    ("offload", &[]),
    ("rate_limit", &["client_ip", "redis"]),
    ("redis", &[]),
    ("telemetry", &[]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files
}

/// The first path segments after every `crate::`, also of a braced list.
fn imported(text: &str) -> BTreeSet<String> {
    let ident =
        |text: &str| -> String { text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut modules = BTreeSet::new();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for (at, marker) in code.match_indices("crate::") {
        let rest = &code[at + marker.len()..];
        match rest.strip_prefix('{') {
            None => drop(modules.insert(ident(rest))),
            Some(list) => {
                let (mut depth, mut start) = (1, true);
                for (at, c) in list.char_indices() {
                    if start && !c.is_whitespace() {
                        modules.insert(ident(&list[at..]));
                        start = false;
                    }
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 1 => start = true,
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
        }
    }
    modules.remove("");
    modules
}

#[test]
fn the_scanner_sees_every_form() {
    let text = "use crate::a::B;\nuse crate::{b::C, d, e::{f, g}};\n// crate::comment\nlet x = crate::h::i();";
    assert_eq!(imported(text).into_iter().collect::<Vec<_>>(), ["a", "b", "d", "e", "h"]);
}

#[test]
fn modules_import_only_what_they_may() {
    for &(module, allowed) in ALLOWED {
        let files = rust_files(&source().join(module));
        assert!(!files.is_empty(), "{module} has no files");
        for file in files {
            for used in imported(&fs::read_to_string(&file).unwrap()) {
                let fine = used == module || SHARED.contains(&used.as_str()) || allowed.contains(&used.as_str());
                assert!(fine, "{} uses crate::{used}", file.display());
            }
        }
    }
}

#[test]
fn shared_files_import_no_module() {
    for &file in SHARED {
        let text = fs::read_to_string(source().join(file).with_extension("rs")).unwrap();
        for used in imported(&text) {
            assert!(SHARED.contains(&used.as_str()), "{file}.rs uses crate::{used}");
        }
    }
}

#[test]
fn every_module_has_its_rule() {
    let ruled: BTreeSet<_> = ALLOWED.iter().map(|(module, _)| (*module).to_owned()).collect();
    let modules = fs::read_dir(source())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "lib" && !SHARED.contains(&name.as_str()))
        .collect::<BTreeSet<_>>();
    assert_eq!(modules, ruled);
}
