//! An exec session: one more process in a container, for as long as a client waits for it.
//!
//! Its streams are the client's own descriptors; the monitor keeps no copy. When its time is up or its client leaves, all
//! that it started is killed: its session and process group, and what descends from it in the container's cgroup.
//! A daemon that has left both its session and its parent before that moment counts as the container's own.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;

use executor::{Pending, Process};
use oci::ContainerId;
use sys::cgroup::Cgroup;

use crate::events::{Armed, Key};

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) container: ContainerId,
    /// Who waits; `None`: it left, the process is being killed.
    pub(crate) peer: Option<Key>,
    /// When its time is up.
    pub(crate) timer: Option<Armed>,
    pub(crate) timed_out: bool,
    pub(crate) phase: SessionPhase,
}

/// Where it is in its life.
#[derive(Debug)]
pub(crate) enum SessionPhase {
    /// The executor makes it.
    Entering(Pending),
    /// It runs.
    Running(Process),
}

impl Session {
    /// Kill everything that this session started, as far as it can be told apart from the container's own processes.
    pub(crate) fn kill(&self) {
        let SessionPhase::Running(process) = &self.phase else { return };
        // Twice: what was forked while the first list was read is in the session or has a parent that is on it.
        for _ in 0..2 {
            for pid in started_by(process.pid, &process.cgroup) {
                kill(pid);
            }
        }
        let _ = nix::sys::signal::killpg(
            nix::unistd::Pid::from_raw(process.pid),
            nix::sys::signal::Signal::SIGKILL,
        );
        let _ = sys::process::pidfd_signal(process.pidfd.as_fd(), libc::SIGKILL);
    }
}

/// The process may have ended, and its pid may be another's only after a whole round of pids.
fn kill(pid: i32) {
    let _ =
        sys::process::pidfd_open(pid).and_then(|fd| sys::process::pidfd_signal(fd.as_fd(), libc::SIGKILL));
}

/// One line of the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
}

fn started_by(leader: i32, cgroup: &Cgroup) -> Vec<i32> {
    let pids = cgroup.processes().unwrap_or_default();
    let table: Vec<Entry> = pids
        .into_iter()
        .filter_map(|pid| parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?))
        .collect();
    descendants(leader, &table)
}

fn parse_stat(pid: i32, stat: &[u8]) -> Option<Entry> {
    let after = stat.iter().rposition(|b| *b == b')')? + 1;
    let text = std::str::from_utf8(&stat[after..]).ok()?;
    let mut fields = text.split_ascii_whitespace().skip(1).map(|f| f.parse().ok());
    let mut next = || fields.next().flatten();
    Some(Entry { pid, parent: next()?, group: next()?, session: next()? })
}

/// The leader, its group and session, and all that descends from any of these.
fn descendants(leader: i32, table: &[Entry]) -> Vec<i32> {
    let mut found = BTreeSet::from([leader]);
    loop {
        let before = found.len();
        let mine = |e: &&Entry| {
            found.contains(&e.pid)
                || found.contains(&e.parent)
                || found.contains(&e.group)
                || found.contains(&e.session)
        };
        let more: Vec<i32> = table.iter().filter(mine).map(|e| e.pid).collect();
        found.extend(more);
        if found.len() == before {
            return found.into_iter().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_by_parent_group_and_session() {
        let entry = |pid, parent, group, session| Entry { pid, parent, group, session };
        let table = [
            entry(1, 0, 1, 1),
            entry(10, 0, 10, 10),
            entry(11, 10, 10, 10),
            entry(12, 11, 12, 12), // a session of its own
            entry(13, 1, 12, 12),  // an orphan of that one
            entry(14, 13, 14, 14),
            entry(20, 1, 20, 20), // the container's own
        ];
        assert_eq!(descendants(10, &table), [10, 11, 12, 13, 14]);
    }

    #[test]
    fn stat_lines_with_odd_names() {
        let entry = parse_stat(7, b"7 (a) S 9 (b) R 3 4 5 0 -1").expect("entry");
        assert_eq!(entry, Entry { pid: 7, parent: 3, group: 4, session: 5 });
        assert_eq!(parse_stat(7, b"garbage"), None);
    }
}
