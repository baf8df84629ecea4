//! What callers hold: a process that is being made ([`Pending`]) and one that was made ([`Process`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use sys::cgroup::Cgroup;

use crate::error::{Error, Result};

/// The standard streams of a new process. With `process.terminal` they are not used: the terminal takes their place.
#[derive(Debug)]
pub struct Stdio {
    /// Read by the process.
    pub stdin: OwnedFd,
    /// Written by the process.
    pub stdout: OwnedFd,
    /// Written by the process.
    pub stderr: OwnedFd,
}

/// A process that is being made. Dropping it kills what was made so far.
#[derive(Debug)]
pub struct Pending {
    pub(crate) socket: OwnedFd,
    pub(crate) helper: i32,
}

impl AsFd for Pending {
    /// Readable when [`Pending::complete`] will not block.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Pending {
    /// Pid of the child of the caller that makes the process (create: the builder, which is not the container's
    /// init; exec: the process itself). `complete` reaps the builder.
    pub fn helper(&self) -> i32 {
        self.helper
    }

    /// Wait for the outcome: the process waits at its gate, or has exec'd its program, or could not be made; then it
    /// has been reaped and its cgroup (create) is removed.
    pub fn complete(self) -> Result<Process> {
        Err(Error::unsupported("create", "", "not built yet"))
    }
}

/// A process of a container.
#[derive(Debug)]
pub struct Process {
    /// Its pid as the caller sees it. It is the caller's child.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// With the pid it names the process for good (field 22 of /proc/pid/stat).
    pub start_time: u64,
    /// Where it runs.
    pub cgroup: Cgroup,
    /// The master side of its terminal, when `process.terminal` is set.
    pub console: Option<OwnedFd>,
    /// What could not be given as asked but need not stop it: capabilities that this host lacks, a clamped OOM score.
    pub warnings: Vec<String>,
    pub(crate) gate: Option<PathBuf>,
}

impl Process {
    /// Let it pass its gate; returns when its program runs (or cannot: kind `cannot_run`). At once without a gate.
    pub fn start(&mut self) -> Result<()> {
        match self.gate.take() {
            Some(gate) => start(&gate),
            None => Ok(()),
        }
    }
}

/// Let the process that waits at this gate go on, as [`Process::start`]; any program of the node may do so.
/// Kind `wrong_state` when nobody waits there.
pub fn start(gate: &Path) -> Result<()> {
    Err(Error::unsupported("start", gate.display(), "not built yet"))
}
