//! What callers hold: a process that is being made ([`Pending`]) and one that was made ([`Process`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::cgroup::Cgroup;
use sys::process::{Ended, pidfd_signal, wait};

use crate::channel::{Channel, FromInit, ToCaller};
use crate::error::{Context, Error, Kind, Result};

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

/// Who is at the other end.
#[derive(Debug)]
enum Maker {
    /// A builder; the process will be another child.
    Builder { gate: Option<PathBuf> },
    /// The process itself.
    Process { cgroup: Cgroup, heard: Heard },
}

/// What a process that is being made has said of itself so far.
#[derive(Debug, Default)]
struct Heard {
    /// All is set, with its console and warnings: the exec is next.
    ready: Option<(Option<OwnedFd>, Vec<String>)>,
    /// How it came out; with `ready` an end without an error is the exec.
    end: Option<Result<()>>,
}

impl Heard {
    /// Take in one message; blocks when there is none.
    fn listen(&mut self, channel: &Channel) {
        match channel.receive::<FromInit>() {
            Ok(Some((FromInit::Ready { warnings }, mut fds))) => self.ready = Some((fds.pop(), warnings)),
            Ok(Some((FromInit::Failed(error), _))) => self.end = Some(Err(error)),
            Ok(Some((FromInit::MountsMade | FromInit::Born { .. } | FromInit::RootMade { .. }, _))) => {}
            Ok(None) => self.end = Some(Ok(())),
            Err(e) => self.end = Some(Err(Error::internal("hear from the process", "", &e))),
        }
    }
}

/// A process that is being made. Dropping it ends what was made so far; a killed exec is the caller's to reap.
#[derive(Debug)]
pub struct Pending {
    /// Both are taken by [`Pending::complete`].
    state: Option<(Channel, Maker)>,
    pid: i32,
    pidfd: Option<OwnedFd>,
}

impl AsFd for Pending {
    /// Readable when [`Pending::is_settled`] has something to look at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match (&self.state, &self.pidfd) {
            (Some((channel, _)), _) => channel.as_fd(),
            (None, Some(pidfd)) => pidfd.as_fd(),
            (None, None) => unreachable!("only complete takes both, and it takes the Pending"),
        }
    }
}

impl Pending {
    pub(crate) fn of_builder(channel: Channel, (pid, pidfd): (i32, OwnedFd), gate: Option<PathBuf>) -> Self {
        Pending { state: Some((channel, Maker::Builder { gate })), pid, pidfd: Some(pidfd) }
    }

    pub(crate) fn of_process(channel: Channel, (pid, pidfd): (i32, OwnedFd), cgroup: Cgroup) -> Self {
        Pending {
            state: Some((channel, Maker::Process { cgroup, heard: Heard::default() })),
            pid,
            pidfd: Some(pidfd),
        }
    }

    /// Pid of the child of the caller that makes the process (create: the builder, which is not the container's
    /// init; exec: the process itself). `complete` reaps the builder.
    pub fn helper(&self) -> i32 {
        self.pid
    }

    /// Take in what was said so far, without blocking. `true`: [`Pending::complete`] will not block. A process may take
    /// long over its exec, on a file system that a container serves itself even for ever.
    pub fn is_settled(&mut self) -> bool {
        let Some((channel, Maker::Process { heard, .. })) = &mut self.state else { return true };
        while heard.end.is_none() && has_something(channel) {
            heard.listen(channel);
        }
        heard.end.is_some()
    }

    /// Wait for the outcome: the process waits at its gate, or has exec'd its program, or could not be made; then it
    /// has been reaped and its cgroup (create) is removed.
    pub fn complete(mut self) -> Result<Process> {
        let (Some((channel, maker)), Some(pidfd)) = (self.state.take(), self.pidfd.take()) else {
            unreachable!("nothing else takes them");
        };
        match maker {
            Maker::Builder { gate } => complete_builder(&channel, self.pid, gate),
            Maker::Process { cgroup, heard } => complete_process(&channel, heard, (self.pid, pidfd), cgroup),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some((channel, maker)) = self.state.take() else { return };
        if let (Maker::Process { .. }, Some(pidfd)) = (&maker, &self.pidfd) {
            let _ = pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            // It may hang in its exec: it is not waited for, a caller that stays reaps its children anyway.
            let _ = wait(self.pid, false);
            return;
        }
        // The builder knows how to undo its work until it has handed it over: let it, and end what it hands over.
        if let Ok(process) = complete_builder(&channel, self.pid, None) {
            let _ = pidfd_signal(process.pidfd.as_fd(), libc::SIGKILL);
            let _ = wait(process.pid, true);
            let _ = process.cgroup.kill();
            let _ = process.cgroup.remove();
        }
    }
}

fn complete_builder(channel: &Channel, builder: i32, gate: Option<PathBuf>) -> Result<Process> {
    let message = channel.receive::<ToCaller>().step("hear from the builder", "")?;
    let ended = reap(builder);
    match message {
        Some((ToCaller::Made { pid, start_time, cgroup, warnings }, fds)) => {
            let mut fds = fds.into_iter();
            let pidfd = fds.next().ok_or_else(|| missing("pidfd"))?;
            let cgroup = Cgroup::new(cgroup);
            Ok(Process { pid, pidfd, start_time, cgroup, console: fds.next(), warnings, gate })
        }
        Some((ToCaller::NotMade { error, pid }, _)) => {
            pid.map(reap);
            Err(error)
        }
        None => {
            Err(Error::new(Kind::Internal, "make the container", "", format!("the builder ended: {ended:?}")))
        }
    }
}

fn missing(what: &str) -> Error {
    Error::new(Kind::Internal, "hear from the builder", what, "is missing")
}

fn has_something(channel: &Channel) -> bool {
    let mut channel = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    poll(&mut channel, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

fn complete_process(
    channel: &Channel,
    mut heard: Heard,
    (pid, pidfd): (i32, OwnedFd),
    cgroup: Cgroup,
) -> Result<Process> {
    let start_time = sys::process::start_time(pid).unwrap_or(0);
    let end = loop {
        match heard.end.take() {
            Some(end) => break end,
            None => heard.listen(channel),
        }
    };
    let killed = || Error::new(Kind::Internal, "exec", "", "its process was killed while it was set up");
    match end.and_then(|()| heard.ready.ok_or_else(killed)) {
        Ok((console, warnings)) => {
            Ok(Process { pid, pidfd, start_time, cgroup, console, warnings, gate: None })
        }
        Err(error) => {
            let _ = pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            reap(pid);
            Err(error)
        }
    }
}

/// Somebody else in the caller may have reaped it.
fn reap(pid: i32) -> Option<Ended> {
    wait(pid, true).ok().flatten()
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
/// Kind `wrong_state` when nobody waits there. The gate is gone afterwards.
pub fn start(gate: &Path) -> Result<()> {
    let closed = |why: &str| Error::new(Kind::WrongState, "start", gate.display(), why);
    let socket = sys::socket::connect(gate).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => closed("it has been started already, or was never created"),
        io::ErrorKind::ConnectionRefused => closed("its process has ended"),
        _ => Error::internal("start", gate.display(), &e),
    })?;
    // Only one can be let through; whoever else has connected meanwhile is refused below.
    std::fs::remove_file(gate).map_err(|_| closed("it is being started already"))?;
    match Channel::from_socket(socket.into()).receive::<FromInit>().step("start", gate.display())? {
        Some((FromInit::Failed(error), _)) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_ready_may_still_be_at_its_exec() {
        let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let pid = child.id() as i32;
        let (ours, theirs) = Channel::pair().unwrap();
        let pidfd = sys::process::pidfd_open(pid).unwrap();
        let mut pending = Pending::of_process(ours, (pid, pidfd), Cgroup::new("/none"));
        assert!(!pending.is_settled(), "nothing was said");
        theirs.send(&FromInit::Ready { warnings: vec!["w".to_owned()] }, &[]).unwrap();
        assert!(!pending.is_settled(), "its exec is still to come");
        drop(theirs);
        assert!(pending.is_settled());
        let process = pending.complete();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.unwrap().warnings, ["w"]);
    }
}
