//! `cargo xtask test`: every suite, each where it belongs, and what became of it.
//!
//! | suite | what | where |
//! |---|---|---|
//! | lint | format, clippy, the programs' linking | this machine |
//! | unit | `cargo test` of the workspace | this machine |
//! | beyond | what critest leaves out (`e2e/beyond`) | a node with our bridge (this machine's cgroups), the uml VM (cgroup v2), the qemu VM (cgroup v2 with every controller, SCTP) |
//! | cli, critest, kubelet, churn | real clients on a node (`e2e/`) | a node with our bridge; critest also with the official plugins, in parallel and by WebSocket; critest and kubelet also in the VM (cgroup v2, AppArmor), critest's SELinux specs in one with SELinux |
//!
//! A suite on a node is a program that prints `PASS`, `FAIL` and `SKIP` lines; the node adds the leak check, which is one
//! more test of the suite.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::cargo_test;
use crate::command::{command, last_lines, quiet};
use crate::node::{self, Options};
use crate::paths::{Kit, repository};
use crate::programs::{self, Profile};
use crate::report::{self, Outcome, Report, Row};
use crate::scratch::Scratch;

/// A program in a node, as a suite.
struct OnNode {
    suite: &'static str,
    environment: &'static str,
    command: &'static [&'static str],
    official_cni: bool,
    /// kind and security module
    vm: Option<(&'static str, &'static str)>,
}

/// Longest run of a suite on a node, seconds.
const LIMIT: &str = "1500";
const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// Leaves a pod, and no daemon.
const KILLS_LAST: &str = concat!(
    r#"echo '{"metadata": {"name": "last", "namespace": "node", "uid": "last"}, "linux": {}}' > "$OUT/pod.json"; "#,
    r#"crictl runp "$OUT/pod.json"; kill -9 "$(cat "$CORTEN_PIDFILE")""#,
);

/// The suites on nodes, in the order in which they run: what says most in least time comes first.
const ON_NODES: [OnNode; 14] = [
    on_bridge("cli", &["cli-suite"]),
    // the node removes the pod all the same
    OnNode { environment: "daemon killed last", ..on_bridge("cli", &["sh", "-ec", KILLS_LAST]) },
    on_bridge("beyond", &["beyond-suite"]),
    on_bridge("critest", &["critest-suite"]),
    OnNode {
        environment: "our bridge, parallel",
        ..on_bridge("critest", &["critest-suite", "--parallel", "4"])
    },
    OnNode {
        environment: "our bridge, WebSocket",
        ..on_bridge("critest", &["critest-suite", "--websocket"])
    },
    OnNode {
        environment: "official plugins",
        official_cni: true,
        ..on_bridge("critest", &["critest-suite"])
    },
    on_bridge("kubelet", &["kubelet-suite"]),
    on_bridge("churn", &["churn", BUSYBOX]),
    in_vm("critest", &["critest-suite"]),
    in_vm("beyond", &["beyond-suite", "--own-kernel"]),
    OnNode {
        environment: "qemu VM",
        vm: Some(("qemu", "none")),
        ..in_vm("beyond", &["beyond-suite", "--own-kernel"])
    },
    OnNode {
        environment: "uml VM, SELinux",
        vm: Some(("uml", "selinux")),
        ..in_vm("critest", &["critest-suite", "--only", "SELinux"])
    },
    in_vm("kubelet", &["kubelet-suite"]),
];

const fn on_bridge(suite: &'static str, command: &'static [&'static str]) -> OnNode {
    OnNode { suite, environment: "our bridge", command, official_cni: false, vm: None }
}

const fn in_vm(suite: &'static str, command: &'static [&'static str]) -> OnNode {
    OnNode {
        suite,
        environment: "uml VM, AppArmor",
        command,
        official_cni: false,
        vm: Some(("uml", "apparmor")),
    }
}

/// What to run, and where to leave the results.
#[derive(Default)]
pub(crate) struct Choice {
    /// names of suites, `vm` for all that run in the VM; none: all
    pub(crate) only: Vec<String>,
    /// folder for results.tsv and the logs of failed suites
    pub(crate) report: Option<PathBuf>,
}

impl OnNode {
    fn row(&self, test: &str, failure: Option<String>) -> Row {
        Row {
            suite: self.suite.to_owned(),
            test: test.to_owned(),
            environment: self.environment.to_owned(),
            outcome: if failure.is_some() { Outcome::Failed } else { Outcome::Passed },
            seconds: 0.0,
            reason: failure.unwrap_or_default(),
        }
    }
}

impl Choice {
    fn wants(&self, suite: &str, vm: bool) -> bool {
        let named = |name: &String| name == suite || (vm && name == "vm");
        self.only.is_empty() || self.only.iter().any(named)
    }

    fn check(&self) -> Result<()> {
        let known = known_suites();
        match self.only.iter().find(|name| !known.contains(&name.as_str())) {
            Some(name) => bail!("no suite is called {name}; there are {}", known.join(", ")),
            None => Ok(()),
        }
    }
}

/// What `--only` takes.
fn known_suites() -> Vec<&'static str> {
    let mut known = vec!["lint", "unit", "vm"];
    for suite in &ON_NODES {
        if !known.contains(&suite.suite) {
            known.push(suite.suite);
        }
    }
    known
}

/// Run the suites; 0 when nothing failed.
pub(crate) fn run(choice: &Choice) -> Result<i32> {
    choice.check()?;
    let mut report = Report::default();
    let mut times = Vec::new();
    let mut done = |suite: &str, environment: &str, rows: Vec<Row>, since: Instant| {
        for row in rows.iter().filter(|row| row.outcome == Outcome::Failed) {
            println!("  failed: {}: {}", row.test, row.reason);
        }
        times.push((suite.to_owned(), environment.to_owned(), since.elapsed().as_secs_f64()));
        report.extend(rows);
    };
    // everything is built first, so that a suite's time is its own and a broken build is told at once
    let kit = node::kit(Profile::Release)?;
    if choice.wants("lint", false) {
        let since = Instant::now();
        println!("lint");
        done("lint", "this machine", lint(&kit), since);
    }
    if choice.wants("unit", false) {
        let since = Instant::now();
        println!("unit");
        done("unit", "this machine", cargo_test::run()?, since);
    }
    for suite in ON_NODES.iter().filter(|suite| choice.wants(suite.suite, suite.vm.is_some())) {
        let since = Instant::now();
        println!("{} ({})", suite.suite, suite.environment);
        let rows = on_node(&kit, suite, choice.report.as_deref())?;
        done(suite.suite, suite.environment, rows, since);
    }
    if let Some(dir) = &choice.report {
        report.write(dir)?;
    }
    if choice.wants("critest", true) {
        println!("{}", report.matrix("critest"));
    }
    println!("{}", report.text(&times));
    Ok(i32::from(report.count(Outcome::Failed) > 0))
}

/// Run a suite's program in a node; its tests, and the node's leak check as one more.
fn on_node(kit: &Kit, suite: &OnNode, report: Option<&Path>) -> Result<Vec<Row>> {
    let scratch = Scratch::new("suite")?;
    let out = scratch.path().join("out");
    let log = scratch.path().join("output.log");
    let options = Options {
        official_cni: suite.official_cni,
        vm: suite.vm.map(|(kind, _)| kind.to_owned()),
        lsm: suite.vm.map(|(_, module)| module.to_owned()),
        out: Some(out.clone()),
        log: Some(log.clone()),
        command: ["timeout", LIMIT].iter().chain(suite.command).map(OsString::from).collect(),
        ..Options::default()
    };
    let code = node::run(kit, &options)?;
    let output = std::fs::read_to_string(&log).unwrap_or_default();
    let mut rows = report::parse(&output, suite.suite, suite.environment);
    let named = rows.iter().any(|row| row.outcome == Outcome::Failed);
    if rows.is_empty() || (code != 0 && !named) {
        // a program that is one test as a whole, or that failed without saying where
        let reason = (code != 0).then(|| format!("code {code}: {}", last_lines(&output, 6)));
        rows.push(suite.row(&suite.command.join(" "), reason));
    }
    let reason = match std::fs::read_to_string(out.join("leaks.txt")) {
        Ok(text) => Some(text).filter(|text| !text.is_empty()),
        Err(_) => Some(format!("the node did not come to its end: code {code}")),
    };
    rows.push(suite.row("nothing is left behind", reason));
    if rows.iter().any(|row| row.outcome == Outcome::Failed) {
        println!("{}", last_lines(&output, 100));
    }
    if let Some(report) = report {
        let to = report.join(format!("{}-{}", suite.suite, suite.environment.replace([' ', ','], "-")));
        std::fs::create_dir_all(report)?;
        std::fs::remove_dir_all(&to).ok();
        quiet(command(&["cp", "-a"]).arg(scratch.path()).arg(to))?;
    }
    Ok(rows)
}

/// Format, clippy, and how the programs are linked.
fn lint(kit: &Kit) -> Vec<Row> {
    let cargo = |words: &[&str]| quiet(command(&["cargo"]).args(words).current_dir(repository())).map(drop);
    let checks: [(&str, Result<()>); 3] = [
        ("rustfmt", cargo(&["fmt", "--all", "--check"])),
        ("clippy", cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        ("programs are static, two of them at a fixed address", programs::check(&kit.programs)),
    ];
    let row = |(test, done): (&str, Result<()>)| Row {
        suite: "lint".to_owned(),
        test: test.to_owned(),
        environment: "this machine".to_owned(),
        outcome: if done.is_ok() { Outcome::Passed } else { Outcome::Failed },
        seconds: 0.0,
        reason: done.err().map(|error| format!("{error:#}")).unwrap_or_default(),
    };
    checks.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_named_once() {
        let known = known_suites();
        let once: std::collections::BTreeSet<_> = known.iter().collect();
        assert_eq!(once.len(), known.len(), "{known:?}");
        assert!(known.contains(&"beyond") && known.contains(&"lint"));
    }
}
