//! What is there, as a set of lines, so that "as before" is a comparison and what is left has a name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup;

/// What to look at besides the things of the whole namespace.
#[derive(Default)]
pub(crate) struct Scope {
    /// directories whose entries are listed, all the way down
    pub(crate) files: Vec<PathBuf>,
    /// directories with pinned network namespaces
    pub(crate) netns: Vec<PathBuf>,
    /// cgroups that are listed with the processes in them
    pub(crate) cgroups: Vec<PathBuf>,
    /// processes that belong here
    pub(crate) known: Vec<i32>,
    /// cgroups that may come and stay: the one that all pods are below
    pub(crate) parents: Vec<PathBuf>,
}

/// What cannot be looked at here: the program that is missing, and what it would show.
pub(crate) fn unseen() -> Vec<(&'static str, &'static str)> {
    let shown_by =
        [("ip", "links and addresses"), ("nft", "nftables rules"), ("iptables-save", "iptables rules")];
    let missing = |program: &str| {
        let tried = Command::new(program).arg("-V").stdin(Stdio::null()).output();
        tried.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    shown_by.into_iter().filter(|(program, _)| missing(program)).collect()
}

/// Everything that is there.
pub(crate) fn look(scope: &Scope) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    mounts(&mut facts);
    network(&mut facts);
    for dir in &scope.netns {
        facts.extend(names(dir).map(|name| format!("network namespace {}/{name}", dir.display())));
    }
    for dir in &scope.files {
        files(dir, &mut facts);
    }
    for dir in &scope.cgroups {
        let found = cgroup::below(dir).into_iter().filter(|cgroup| !scope.parents.contains(cgroup));
        facts.extend(found.map(|cgroup| format!("cgroup {}", cgroup.display())));
        let others = cgroup::processes(dir).into_iter().filter(|pid| !scope.known.contains(pid));
        facts.extend(others.map(|pid| format!("process {pid} ({})", command_line(pid))));
    }
    facts
}

/// What is there now and was not before; waits up to `patience` for the kernel to finish what goes on.
pub(crate) fn left_behind(before: &BTreeSet<String>, scope: &Scope, patience: Duration) -> Vec<String> {
    let deadline = Instant::now() + patience;
    loop {
        let left: Vec<String> = look(scope).difference(before).cloned().collect();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn mounts(facts: &mut BTreeSet<String>) {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    facts
        .extend(text.lines().filter_map(|line| line.split(' ').nth(4)).map(|place| format!("mount {place}")));
}

fn network(facts: &mut BTreeSet<String>) {
    for line in output("ip", &["-o", "link"]).lines() {
        if let Some(name) = line.split(": ").nth(1) {
            facts.insert(format!("link {}", name.split('@').next().unwrap_or(name)));
        }
    }
    for line in output("ip", &["-o", "addr"]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, link, family, address, ..] = words[..] {
            // the kernel gives every link one of these by itself
            if !address.starts_with("fe80:") {
                facts.insert(format!("address {family} {address} on {link}"));
            }
        }
    }
    for line in output("nft", &["--stateless", "list", "ruleset"]).lines() {
        facts.insert(format!("nftables rule {}", line.trim()));
    }
    for program in ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
        for line in
            output(program, &[]).lines().filter(|line| line.starts_with("-A") || line.starts_with(':'))
        {
            let rule = line.split(" [").next().unwrap_or(line);
            facts.insert(format!("{program} {rule}"));
        }
    }
}

fn files(dir: &Path, facts: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        facts.insert(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), facts);
        }
    }
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn command_line(pid: i32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ").trim().to_owned()
}

/// What a program prints; nothing where it is missing ([`unseen`] says so).
fn output(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output();
    done.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
