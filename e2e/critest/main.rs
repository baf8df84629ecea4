//! critest, the runtimes' conformance suite, on the node that this runs in (`cargo xtask node -- critest-suite`).
//!
//! What is run and what is left out stands in `specs.list`, with reasons. Every spec is one test with a line `PASS name seconds`,
//! `FAIL name: reason` or `SKIP name: reason`; critest's own output is shown when something failed, and is kept in $OUT.

#![forbid(unsafe_code)]

mod list;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::list::List;

fn main() -> Result<()> {
    let list = List::parse(include_str!("specs.list"))?;
    let out = std::env::var_os("OUT").map_or_else(std::env::temp_dir, PathBuf::from);
    let report = out.join("critest.json");
    let output = critest(&list, &report)?;
    let specs = read(&report).with_context(|| format!("critest left no report; it said:\n{output}"))?;
    let (mut passed, mut failed) = (0, 0);
    for spec in &specs {
        match list.judge(spec) {
            Verdict::Pass => {
                println!("PASS {} {:.1}", spec.name, spec.seconds);
                passed += 1;
            }
            Verdict::Fail(reason) => {
                println!("FAIL {}: {reason}", spec.name);
                failed += 1;
            }
            Verdict::Skip(reason) => println!("SKIP {}: {reason}", spec.name),
            Verdict::NotAsked => {}
        }
    }
    if passed + failed != list.count {
        println!("FAIL {} specs run: there are {}", list.count, passed + failed);
        failed += 1;
    }
    std::fs::write(out.join("critest.log"), &output).context("keep critest's output")?;
    if failed > 0 {
        println!("{output}");
    }
    println!("{passed} passed, {failed} failed");
    ensure!(failed == 0, "{failed} specs failed");
    Ok(())
}

/// What became of a spec.
#[derive(Debug, PartialEq)]
enum Verdict {
    Pass,
    Fail(String),
    Skip(String),
    /// it is not among those that the list asks for
    NotAsked,
}

/// A spec as ginkgo reports it.
struct Spec {
    name: String,
    state: String,
    message: String,
    seconds: f64,
}

/// Run critest to the end; what it printed.
fn critest(list: &List, report: &Path) -> Result<String> {
    let mut command = Command::new("critest");
    command.arg(format!("-ginkgo.focus={}", list.focus())).arg(format!("-ginkgo.skip={}", list.left_out()));
    command
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .args(["-ginkgo.no-color", "-ginkgo.timeout=30m"]);
    for (flag, variable) in
        [("-runtime-endpoint", "CONTAINER_RUNTIME_ENDPOINT"), ("-image-endpoint", "IMAGE_SERVICE_ENDPOINT")]
    {
        let endpoint = std::env::var(variable).with_context(|| {
            format!("{variable} is not set: run this with `cargo xtask node -- critest-suite`")
        })?;
        command.arg(format!("{flag}={endpoint}"));
    }
    let output = command.output().context("start critest")?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// The specs of ginkgo's JSON report.
fn read(report: &Path) -> Result<Vec<Spec>> {
    let text = std::fs::read_to_string(report).with_context(|| format!("read {}", report.display()))?;
    let suites: Value = serde_json::from_str(&text).context("ginkgo's report is not JSON")?;
    let suites = suites.as_array().cloned().unwrap_or_default();
    let reports = suites.iter().filter_map(|suite| suite["SpecReports"].as_array()).flatten();
    Ok(reports.filter(|report| report["LeafNodeType"] == "It").map(spec).collect())
}

fn spec(report: &Value) -> Spec {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut words: Vec<String> =
        report["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(text).collect();
    words.push(text(&report["LeafNodeText"]));
    Spec {
        name: words.join(" "),
        state: text(&report["State"]),
        message: text(&report["Failure"]["Message"]).lines().collect::<Vec<_>>().join(" "),
        seconds: report["RunTime"].as_f64().unwrap_or_default() / 1e9,
    }
}
