//! House rules that a compiler does not know: who may import whom, which crate may use what from outside,
//! and where `unsafe` may stand. The tables are the ones of README.md, "How it is put together".

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Crate → ours that it may import. `testkit` comes on top as a dev-dependency.
const IMPORTS: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("oci", &[]),
    ("executor", &["oci", "sys"]),
    ("monitor", &["executor", "oci", "sys"]),
    ("image", &["oci", "sys"]),
    ("network", &["oci", "sys"]),
    ("streaming", &[]),
    // sys is the one exception to the architecture's table: what containers use is read from cgroup files,
    // and the monitor is started from a sealed memfd. Both are calls of sys without any logic of another crate's.
    ("engine", &["image", "network", "monitor", "oci", "sys"]),
    ("nri", &["oci"]),
    ("cri", &["engine", "streaming", "oci"]),
    ("daemon", ANY),
    ("testkit", ANY),
    ("e2e", ANY),
    ("xtask", ANY),
];

const ANY: &[&str] = &["*"];

/// From outside → the only crates that may use it, and why.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("tonic", &["cri", "nri", "e2e"], "gRPC is an edge, not a way of thinking"),
    ("tonic-prost", &["cri", "nri", "e2e"], "as tonic"),
    ("prost", &["cri", "nri", "e2e"], "as tonic"),
    ("anyhow", &["daemon", "xtask", "e2e", "testkit"], "libraries have errors that callers branch on"),
    ("clap", &["daemon", "xtask", "e2e"], "no component reads flags"),
];

/// Crate → what it must not use, and why.
const NEVER: &[(&str, &[&str], &str)] = &[
    ("sys", &["tokio", "serde"], "the kernel knows neither tasks nor JSON"),
    ("oci", &["tokio", "nix", "libc"], "pure: no I/O"),
    ("executor", &["tokio"], "it forks, and nothing forks once threads exist"),
    ("monitor", &["tokio"], "one small single-threaded process per pod"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

struct Member {
    directory: PathBuf,
    manifest: Table,
}

impl Member {
    fn name(&self) -> &str {
        self.manifest["package"]["name"].as_str().expect("a crate has a name")
    }

    /// Names of dependencies in a section, on whatever platform.
    fn dependencies(&self, section: &str) -> BTreeSet<String> {
        let mut tables: Vec<&Table> =
            self.manifest.get(section).and_then(Value::as_table).into_iter().collect();
        let targets = self.manifest.get("target").and_then(Value::as_table);
        tables.extend(targets.into_iter().flat_map(Table::values).filter_map(|t| t.get(section)?.as_table()));
        tables.into_iter().flat_map(Table::keys).cloned().collect()
    }
}

fn members() -> Vec<Member> {
    let mut directories = vec![root().join("e2e"), root().join("contrib/xtask")];
    directories.extend(fs::read_dir(root().join("src")).expect("src").map(|e| e.expect("entry").path()));
    let read = |directory: PathBuf| {
        let text = fs::read_to_string(directory.join("Cargo.toml")).ok()?;
        Some(Member { manifest: text.parse().expect("a manifest"), directory })
    };
    let members: Vec<Member> = directories.into_iter().filter_map(read).collect();
    assert!(members.len() >= 12, "only {} crates were found", members.len());
    members
}

fn verdict(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn imports_point_down() {
    let rules: BTreeMap<_, _> = IMPORTS.iter().copied().collect();
    let ours: BTreeSet<String> = members().iter().map(|m| m.name().to_owned()).collect();
    let mut problems = Vec::new();
    for member in members() {
        let name = member.name().to_owned();
        let Some(allowed) = rules.get(name.as_str()) else {
            problems.push(format!("{name}: a new crate needs a row in IMPORTS, and a policy of its own"));
            continue;
        };
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for dependency in member.dependencies(section).intersection(&ours) {
                let testkit = dependency == "testkit";
                let listed = *allowed == ANY || allowed.contains(&dependency.as_str());
                let fine = match section {
                    "dev-dependencies" => listed || testkit,
                    _ => listed && (!testkit || name == "e2e" || name == "xtask"),
                };
                if !fine {
                    problems.push(format!("{name}: may not import {dependency} ({section})"));
                }
            }
        }
    }
    verdict(&problems);
}

#[test]
fn crates_from_outside_stay_where_they_belong() {
    let mut problems = Vec::new();
    for member in members() {
        let name = member.name();
        let used = member.dependencies("dependencies");
        for (outside, homes, reason) in ONLY_IN {
            if used.contains(*outside) && !homes.contains(&name) {
                problems.push(format!("{name}: {outside} is only for {}: {reason}", homes.join(", ")));
            }
        }
        for (_, banned, reason) in NEVER.iter().filter(|(krate, _, _)| *krate == name) {
            let found = banned.iter().filter(|b| used.contains(**b));
            problems.extend(found.map(|b| format!("{name}: {b} is banned: {reason}")));
        }
    }
    verdict(&problems);
}

/// The bans of .deny.toml, for those who have no cargo-deny.
#[test]
fn nothing_banned_is_in_the_lock_file() {
    let read = |name: &str| -> Table {
        fs::read_to_string(root().join(name)).expect(name).parse().unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let (policy, lock) = (read(".deny.toml"), read("Cargo.lock"));
    let packages = lock["package"].as_array().expect("packages");
    let locked: Vec<_> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    assert!(locked.contains(&"tokio"), "the lock file was not understood");
    let bans = policy["bans"]["deny"].as_array().expect("bans");
    let outright = bans.iter().filter(|b| b.get("wrappers").is_none()).filter_map(|b| b["name"].as_str());
    let problems: Vec<_> =
        outright.filter(|b| locked.contains(b)).map(|b| format!("{b} is banned")).collect();
    verdict(&problems);
}

/// Roots of a crate's libraries and programs.
fn crate_roots(member: &Member) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["lib.rs", "main.rs"].map(|f| member.directory.join(f)).into();
    let table = |v: &Value| v.get("path").and_then(Value::as_str).map(|p| member.directory.join(p));
    roots.extend(member.manifest.get("lib").and_then(table));
    let programs = member.manifest.get("bin").and_then(Value::as_array);
    roots.extend(programs.into_iter().flatten().filter_map(table));
    roots.retain(|r| r.is_file());
    roots.sort();
    roots.dedup();
    roots
}

#[test]
fn unsafe_is_forbidden_everywhere_but_in_sys() {
    let mut problems = Vec::new();
    for member in members().iter().filter(|m| m.name() != "sys") {
        let roots = crate_roots(member);
        assert!(!roots.is_empty(), "{}: no root file was found", member.name());
        for file in roots {
            let text = fs::read_to_string(&file).expect("source");
            if !text.lines().any(|l| l.trim() == "#![forbid(unsafe_code)]") {
                problems.push(format!("{}: #![forbid(unsafe_code)] is missing", file.display()));
            }
        }
    }
    verdict(&problems);
}

/// `#![forbid(unsafe_code)]` does not reach tests and build scripts, which are crates of their own.
#[test]
fn the_word_unsafe_stands_only_in_sys() {
    let mut problems = Vec::new();
    for member in members().iter().filter(|m| m.name() != "sys") {
        let mut files = Vec::new();
        sources(&member.directory, &mut files);
        for file in files {
            let text = fs::read_to_string(&file).expect("source");
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let word = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe("];
                if word.iter().any(|w| code.contains(w)) && !file.ends_with("tests/policy.rs") {
                    problems.push(format!("{}:{}: unsafe", file.display(), number + 1));
                }
            }
        }
    }
    verdict(&problems);
}

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("directory") {
        let entry = entry.expect("entry");
        let kind = entry.file_type().expect("kind");
        if kind.is_dir() {
            sources(&entry.path(), into);
        } else if kind.is_file() && entry.path().extension().is_some_and(|e| e == "rs") {
            into.push(entry.path());
        }
    }
}

#[test]
fn the_top_level_has_a_fixed_set_of_entries() {
    let fixed = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "contrib",
        "e2e",
        "manifests",
        "proto",
        "src",
        "target",
    ];
    for entry in fs::read_dir(root()).expect("root") {
        let name = entry.expect("entry").file_name().into_string().expect("UTF-8");
        assert!(name.starts_with('.') || fixed.contains(&name.as_str()), "{name}: not in the list");
    }
}

#[test]
fn lint_levels_are_the_workspace_s() {
    for member in members() {
        let lints = member.manifest.get("lints").and_then(|l| l.get("workspace")).and_then(Value::as_bool);
        assert_eq!(lints, Some(true), "{}: [lints] workspace = true is missing", member.name());
    }
}
