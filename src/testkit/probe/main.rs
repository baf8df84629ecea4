//! The probe: a program to be run inside a container, which reports what it finds as one JSON object.
//!
//! It looks only at itself and at what the kernel shows it in /proc, so that a test sees what a workload would see: who it is,
//! what it may do, where it is, and what it was handed by mistake.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::{env, fs};

use serde_json::{Value, json};

fn main() {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let report = json!({
        "args": env::args().collect::<Vec<_>>(),
        "env": env::vars_os().map(|(name, value)| (lossy(&name), lossy(&value))).collect::<BTreeMap<_, _>>(),
        "cwd": env::current_dir().map(|dir| dir.display().to_string()).unwrap_or_default(),
        "hostname": text("/proc/sys/kernel/hostname").trim(),
        "status": table(&text("/proc/self/status"), ':'),
        "limits": limits(&text("/proc/self/limits")),
        "oom_score_adj": text("/proc/self/oom_score_adj").trim(),
        "namespaces": links("/proc/self/ns"),
        "fds": links("/proc/self/fd"),
        "mounts": mounts(&text("/proc/self/mountinfo")),
    });
    println!("{report}");
}

fn lossy(text: &std::ffi::OsStr) -> String {
    String::from_utf8_lossy(text.as_bytes()).into_owned()
}

/// Lines of `name: value`.
fn table(text: &str, separator: char) -> BTreeMap<&str, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(separator));
    pairs.map(|(name, value)| (name, value.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

/// Soft and hard limit by the kernel's name for it (`Max open files`).
fn limits(text: &str) -> BTreeMap<String, [String; 2]> {
    let line = |line: &str| {
        let (name, rest) = line.split_at_checked(26)?;
        let mut values = rest.split_whitespace().map(str::to_owned);
        Some((name.trim().to_owned(), [values.next()?, values.next()?]))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Where the links in a directory lead. The descriptor that reads the directory itself is left out.
fn links(dir: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let target = |entry: &fs::DirEntry| Some(fs::read_link(entry.path()).ok()?.display().to_string());
    let all = entries.filter_map(|entry| Some((lossy(&entry.file_name()), target(&entry)?)));
    all.filter(|(_, target)| !target.ends_with("/fd")).collect()
}

/// Type and options of what is mounted on top at each place.
fn mounts(text: &str) -> BTreeMap<String, Value> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let (place, options) = (*left.get(4)?, *left.get(5)?);
        let propagation = left.get(6..).unwrap_or_default().join(" ");
        let kind = right.split(' ').next()?;
        Some((place.to_owned(), json!({"type": kind, "options": options, "propagation": propagation})))
    };
    text.lines().filter_map(line).collect()
}
