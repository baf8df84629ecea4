//! One container as its monitor holds it.
//!
//! ```text
//! Starting ──created──▶ Running ──init ended──▶ Ended ──removed──▶ (forgotten)
//!     └──failed──▶ (forgotten)
//! ```
//!
//! A start can be aborted: then it fails. A removal may be asked for in any of these; it is a mark beside the state, because it waits for the states to pass.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use executor::{Pending, Process};
use oci::ContainerId;
use sys::cgroup::Cgroup;

use crate::events::Key;
use crate::output::Output;
use crate::protocol::{Exit, Failure, Known};

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    pub(crate) output: Output,
    pub(crate) stdin: Stdin,
    pub(crate) phase: Phase,
    pub(crate) removal: Option<Removal>,
}

/// The stdin of a container, for clients.
#[derive(Debug)]
pub(crate) struct Stdin {
    /// It has one, in the form of a pipe or by its terminal.
    pub(crate) asked: bool,
    /// It ends with the input of its first client.
    pub(crate) once: bool,
    /// Our end of its pipe: it reads EOF when this and its clients' copies are closed.
    pub(crate) pipe: Option<OwnedFd>,
    /// The client whose input it is, with `once`.
    pub(crate) holder: Option<Key>,
}

impl Stdin {
    /// The input of a client has ended.
    pub(crate) fn end(&mut self) {
        if self.once {
            self.pipe = None;
        }
    }

    /// A client may write to it: the copy for it. `None`: nobody may any more, or another has it alone.
    pub(crate) fn lend(&mut self, peer: Key) -> std::io::Result<Option<OwnedFd>> {
        let Some(pipe) = self.pipe.as_ref().filter(|_| !self.once || self.holder.is_none()) else {
            return Ok(None);
        };
        let copy = pipe.try_clone()?;
        self.holder = Some(peer).filter(|_| self.once);
        Ok(Some(copy))
    }
}

/// Where it is in its life.
#[derive(Debug)]
pub(crate) enum Phase {
    /// The executor makes it.
    Starting {
        pending: Pending,
        /// Who is told when it runs.
        waiters: Vec<Key>,
    },
    /// Init runs.
    Running { process: Process, known: Known },
    /// Init was reaped. `known.exit` is set as soon as the exit record is on disk.
    Ended { known: Known, exit: Exit, cgroup: Cgroup },
}

/// Somebody wants it gone.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    /// Who is told.
    pub(crate) waiters: Vec<Key>,
    /// How often it was tried.
    pub(crate) attempts: u32,
}

impl Container {
    /// What is told about it; nothing before it runs.
    pub(crate) fn known(&self) -> Option<&Known> {
        match &self.phase {
            Phase::Starting { .. } => None,
            Phase::Running { known, .. } | Phase::Ended { known, .. } => Some(known),
        }
    }

    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        match &self.phase {
            Phase::Starting { .. } => None,
            Phase::Running { process, .. } => Some(&process.cgroup),
            Phase::Ended { cgroup, .. } => Some(cgroup),
        }
    }

    /// Its init, or why there is none.
    pub(crate) fn running(&self) -> Result<&Process, Failure> {
        match &self.phase {
            Phase::Running { process, .. } if self.removal.is_none() => Ok(process),
            Phase::Running { .. } => {
                Err(failure("wrong_state", format!("container {} is being removed", self.id)))
            }
            Phase::Starting { .. } => {
                Err(failure("wrong_state", format!("container {} has not started", self.id)))
            }
            Phase::Ended { .. } => Err(failure("wrong_state", format!("container {} has ended", self.id))),
        }
    }

    /// End its start, which may hang in a file system or in a hook. The executor tells what came of it.
    pub(crate) fn abort(&self) -> Result<(), executor::Error> {
        executor::abort(self.bundle.as_path().into(), self.id.as_str())
    }

    /// Send a signal to init, or to all of its processes (also those that outlived init).
    pub(crate) fn signal(&self, signal: i32, all: bool) -> Result<(), Failure> {
        let told = |e: std::io::Error| {
            failure(
                "internal",
                format!("send signal {signal} to container {}: {}", self.id, executor::errno_text(&e)),
            )
        };
        if signal == libc::SIGKILL && matches!(self.phase, Phase::Starting { .. }) {
            return Ok(self.abort()?);
        }
        if !all {
            return sys::process::pidfd_signal(self.running()?.pidfd.as_fd(), signal).map_err(told);
        }
        let cgroup = match self.cgroup() {
            Some(cgroup) => cgroup,
            None => return self.running().map(|_| ()),
        };
        cgroup.signal(signal).map_err(told)
    }
}

/// A refusal.
pub(crate) fn failure(kind: &str, message: impl Into<String>) -> Failure {
    Failure { kind: kind.to_owned(), message: message.into() }
}

/// What went wrong on the node.
impl From<String> for Failure {
    fn from(message: String) -> Failure {
        failure("internal", message)
    }
}

impl From<executor::Error> for Failure {
    fn from(error: executor::Error) -> Failure {
        failure(error.kind.as_str(), error.to_string())
    }
}
