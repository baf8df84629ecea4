//! `cargo test` of the workspace as rows: a row per test, named after its crate.
//!
//! A test that could not run here prints `SKIP <test>: reason` and returns; libtest calls that passed, this does not.
//!
//! Some tests run themselves again in namespaces of their own, with the same output: a line may come twice, and what a test
//! prints may stand between its name and its result. So a test has failed when libtest says FAILED of it, or names it among the
//! failures at its end.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::last_lines;
use crate::paths::repository;
use crate::registry;
use crate::report::{Outcome, Row};

/// Run them all.
pub(crate) fn run() -> Result<Vec<Row>> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]).current_dir(repository());
    // tests that pull from a registry look for it there
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":");
    path.push(registry::program()?.parent().unwrap_or(Path::new("/usr/bin")));
    // one stream, so that a test's lines stand below the name of its program
    let output = Command::new("sh")
        .arg("-c")
        .arg("exec \"$0\" \"$@\" 2>&1")
        .arg(cargo.get_program())
        .args(cargo.get_args())
        .current_dir(repository())
        .env("PATH", path)
        .output()
        .context("start cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut rows = parse(&text);
    if !output.status.success() && !rows.iter().any(|row| row.outcome == Outcome::Failed) {
        rows.push(row("cargo test", Outcome::Failed, &last_lines(&text, 40)));
    }
    if rows.iter().any(|row| row.outcome == Outcome::Failed) {
        println!("{}", failures(&text));
    }
    Ok(rows)
}

const SEE_ABOVE: &str = "see above";

fn fail(row: &mut Row) {
    (row.outcome, row.reason) = (Outcome::Failed, SEE_ABOVE.to_owned());
}

fn row(test: &str, outcome: Outcome, reason: &str) -> Row {
    Row {
        suite: "unit".to_owned(),
        test: test.to_owned(),
        environment: "this machine".to_owned(),
        outcome,
        seconds: 0.0,
        reason: reason.to_owned(),
    }
}

/// Rows from cargo's and libtest's output.
fn parse(text: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut program = String::new();
    let mut first = 0;
    let mut failures = false;
    for line in text.lines() {
        if line == "failures:" || line.starts_with("test result:") {
            failures = line == "failures:";
        } else if let (true, Some(name)) = (failures, line.strip_prefix("    ")) {
            let name = format!("{program}::{name}");
            rows[first..].iter_mut().filter(|row| row.test == name).for_each(fail);
        }
        let line = line.trim_start();
        if let Some(rest) = line.strip_prefix("Running ").or_else(|| line.strip_prefix("Doc-tests ")) {
            program = program_name(rest);
            first = rows.len();
        } else if let Some((name, result)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            let name = format!("{program}::{}", name.split(" - ").next().unwrap_or(name));
            match result.split(' ').next().unwrap_or_default().trim_end_matches(',') {
                _ if rows[first..].iter().any(|row| row.test == name) => {}
                "ignored" => rows.push(row(&name, Outcome::Skipped, result)),
                "FAILED" => rows.push(row(&name, Outcome::Failed, SEE_ABOVE)),
                _ => rows.push(row(&name, Outcome::Passed, "")),
            }
        } else if let Some((name, reason)) = line.strip_prefix("SKIP ").and_then(|rest| rest.split_once(": "))
        {
            let last = |test: &str| test.rsplit("::").next().unwrap_or(test).to_owned();
            match rows[first..].iter_mut().find(|row| last(&row.test) == last(name)) {
                Some(row) => (row.outcome, row.reason) = (Outcome::Skipped, reason.to_owned()),
                None => rows.push(row(&format!("{program}::{name}"), Outcome::Skipped, reason)),
            }
        }
    }
    rows
}

/// `unittests src/oci/lib.rs (target/debug/deps/oci-0123456789abcdef)` is of `oci`.
fn program_name(running: &str) -> String {
    let inside = running.split_once('(').map_or(running, |(_, rest)| rest.trim_end_matches(')'));
    let file = inside.rsplit('/').next().unwrap_or(inside);
    file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned()
}

/// What libtest says of the failed ones.
fn failures(text: &str) -> String {
    let mut shown = String::new();
    let mut in_failures = false;
    for line in text.lines() {
        match line {
            "failures:" => in_failures = true,
            _ if line.starts_with("test result:") => in_failures = false,
            _ => {}
        }
        if in_failures || line.starts_with("error") {
            shown.push_str(line);
            shown.push('\n');
        }
    }
    last_lines(&shown, 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_by_name() {
        let text = "     Running unittests src/oci/lib.rs (target/debug/deps/oci-0a1b)\n\
            test id::short ... ok\n\
            test id::broken ... FAILED\n\
            \x20    Running src/sys/tests/mount.rs (target/debug/deps/mount-0a1b)\n\
            test binds ... ok\n\
            test needs_v2 ... ok\n\
            test slow ... ignored, takes an hour\n\
            test talks ... 2026-01-01 a line of its own\n\
            test talks ... ok\n\
            ok\n\
            test talks_and_fails ... a line of its own\n\
            FAILED\n\
            failures:\n\
            \n\
            failures:\n\
            \x20   talks_and_fails\n\
            \n\
            test result: FAILED. 3 passed; 1 failed\n\
            ---- needs_v2 stdout ----\n\
            SKIP needs_v2: no cgroup v2 here\n";
        let rows = parse(text);
        let seen: Vec<_> = rows.iter().map(|row| (row.test.as_str(), row.outcome)).collect();
        assert_eq!(
            seen,
            [
                ("oci::id::short", Outcome::Passed),
                ("oci::id::broken", Outcome::Failed),
                ("mount::binds", Outcome::Passed),
                ("mount::needs_v2", Outcome::Skipped),
                ("mount::slow", Outcome::Skipped),
                ("mount::talks", Outcome::Passed),
                ("mount::talks_and_fails", Outcome::Failed),
            ]
        );
        assert_eq!(rows[3].reason, "no cgroup v2 here");
    }
}
