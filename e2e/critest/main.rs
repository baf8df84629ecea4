//! critest, the runtimes' conformance suite, on the node that this runs in (`cargo xtask node -- critest-suite`).
//!
//! usage: critest-suite [--only TEXT] [--parallel N] [--websocket]
//!   --only       the specs whose name contains TEXT
//!   --parallel   N specs at once
//!   --websocket  the streaming specs, by WebSocket instead of SPDY
//!
//! All specs are run; what is left out stands in `specs.list`, with reasons. Every spec is one test with a line `PASS name seconds`,
//! `FAIL name: reason` or `SKIP name: reason`; critest's own output is shown when something failed, and is kept in $OUT.

#![forbid(unsafe_code)]

mod list;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::list::{Kernel, List, any_of};

fn main() -> Result<()> {
    let list = List::parse(include_str!("specs.list"))?;
    let choice = Choice::parse(std::env::args().skip(1))?;
    let kernel = kernel();
    let out = std::env::var_os("OUT").map_or_else(std::env::temp_dir, PathBuf::from);
    let (output, specs) = critest(&list, &choice, &out)?;
    let (mut passed, mut failed) = (0, 0);
    for spec in specs.iter().filter(|spec| choice.wants(spec)) {
        match list.judge(spec, kernel)? {
            Verdict::Pass => {
                println!("PASS {} {:.1}", spec.name, spec.seconds);
                passed += 1;
            }
            Verdict::Fail(reason) => {
                println!("FAIL {}: {reason}", spec.name);
                failed += 1;
            }
            Verdict::Skip(reason) => println!("SKIP {}: {reason}", spec.name),
        }
    }
    let count = list.count(kernel)?;
    if specs.len() != count {
        println!("FAIL critest has the specs of the list: it has {}, the list says {count}", specs.len());
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

/// Which specs, and how.
#[derive(Default)]
struct Choice {
    only: Option<String>,
    parallel: Option<u32>,
    websocket: bool,
}

impl Choice {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Choice> {
        let mut choice = Choice::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--only" => choice.only = Some(words.next().context("--only needs a text")?),
                "--parallel" => {
                    let number = words.next().context("--parallel needs a number")?;
                    choice.parallel = Some(number.parse().context("--parallel")?);
                }
                "--websocket" => {
                    choice.websocket = true;
                    choice.only = Some("Streaming".to_owned());
                }
                other => bail!("{other}: --only TEXT, --parallel N and --websocket are known"),
            }
        }
        Ok(choice)
    }

    fn wants(&self, spec: &Spec) -> bool {
        self.only.as_ref().is_none_or(|text| spec.name.contains(text))
    }
}

/// What this kernel has of what only some have.
fn kernel() -> Kernel {
    let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    Kernel {
        apparmor: apparmor.is_ok_and(|text| text.starts_with('Y')),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
    }
}

/// What became of a spec.
#[derive(Debug, PartialEq)]
enum Verdict {
    Pass,
    Fail(String),
    Skip(String),
}

/// A spec as ginkgo reports it.
struct Spec {
    name: String,
    state: String,
    message: String,
    seconds: f64,
}

/// Run critest to the end; what it printed, and its specs.
fn critest(list: &List, choice: &Choice, out: &Path) -> Result<(String, Vec<Spec>)> {
    // for the report, and for what critest leaves in its temporary folder
    let scratch = out.join("critest");
    std::fs::create_dir_all(&scratch).context("scratch folder")?;
    let mut command = Command::new("critest");
    command.current_dir(&scratch).env("TMPDIR", &scratch);
    // in parallel, ginkgo takes the report's name as one in its folder, also when it is absolute
    command.args(["-ginkgo.no-color", "-ginkgo.timeout=30m", "-ginkgo.json-report=critest.json"]);
    command.arg(format!("-ginkgo.skip={}", list.left_out()));
    if let Some(text) = &choice.only {
        command.arg(format!("-ginkgo.focus={}", any_of(std::iter::once(text))));
    }
    if let Some(number) = choice.parallel {
        command.arg(format!("-parallel={number}"));
    }
    if choice.websocket {
        command.args(["-websocket-exec", "-websocket-attach", "-websocket-portforward"]);
    }
    for (flag, variable) in
        [("-runtime-endpoint", "CONTAINER_RUNTIME_ENDPOINT"), ("-image-endpoint", "IMAGE_SERVICE_ENDPOINT")]
    {
        let endpoint = std::env::var(variable).with_context(|| {
            format!("{variable} is not set: run this with `cargo xtask node -- critest-suite`")
        })?;
        command.arg(format!("{flag}={endpoint}"));
    }
    let output = command.output().context("start critest")?;
    let output =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report = scratch.join("critest.json");
    let specs = read(&report).with_context(|| format!("critest left no report; it said:\n{output}"))?;
    std::fs::remove_dir_all(&scratch).context("remove the scratch folder")?;
    Ok((output, specs))
}

/// The specs of ginkgo's JSON report, without benchmarks.
fn read(report: &Path) -> Result<Vec<Spec>> {
    let text = std::fs::read_to_string(report).with_context(|| format!("read {}", report.display()))?;
    let suites: Value = serde_json::from_str(&text).context("ginkgo's report is not JSON")?;
    let suites = suites.as_array().cloned().unwrap_or_default();
    let reports = suites.iter().filter_map(|suite| suite["SpecReports"].as_array()).flatten();
    let specs = reports.filter(|report| report["LeafNodeType"] == "It").map(spec);
    Ok(specs.filter(|spec| !spec.name.contains("benchmark")).collect())
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
