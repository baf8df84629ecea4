//! The last steps of every process, the container's init and an exec'd one alike: from "in place" to its program.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Uid, fchown};
use oci_spec::runtime::Process;

use crate::attributes::{Proc, set_labels, set_oom_score, set_rlimits};
use crate::command::{self, Command};
use crate::console::Console;
use crate::credentials::{self, Sets};
use crate::error::{Context, Error, Result};
use crate::process::Stdio;
use crate::seccomp::Filter;

/// Everything about a process that was worked out before it was in place.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) process: &'a Process,
    pub(crate) proc: &'a Proc,
    pub(crate) sets: &'a Sets,
    pub(crate) filter: Option<&'a Filter>,
    pub(crate) preserve_fds: u32,
    /// Scores, limits and the owner of the streams were set before a user namespace was entered.
    pub(crate) limited: bool,
}

/// Nobody may look into this process or at its program until the exec; what the caller's signals were set to is
/// forgotten; it leads a session of its own, and its keyring is not the one that all of the node's services share.
pub(crate) fn detach() -> Result<()> {
    sys::prctl::set_dumpable(false).step("set not dumpable", "")?;
    sys::process::reset_signals();
    umask(Mode::empty());
    sys::prctl::new_session_keyring().step("make a session keyring", "")?;
    nix::unistd::setsid().step("make a session", "").map(|_| ())
}

impl Launch<'_> {
    /// All that needs rights: streams, scores, limits, labels, the user. Then the working directory and the program are
    /// looked for as that user.
    pub(crate) fn prepare(
        &self,
        stdio: &Stdio,
        console: Option<&Console>,
        warnings: &mut Vec<String>,
    ) -> Result<Command> {
        match console {
            Some(console) => {
                sys::tty::control(console.terminal.as_fd()).step("control the terminal", "")?;
                place([&console.terminal; 3])?;
            }
            None => {
                if !self.limited {
                    own_pipes(stdio, self.process.user().uid())?;
                }
                place([&stdio.stdin, &stdio.stdout, &stdio.stderr])?;
            }
        }
        sys::process::close_on_exec_from(3 + self.preserve_fds).step("close descriptors", "")?;
        if !self.limited {
            if let Some(score) = self.process.oom_score_adj() {
                warnings.extend(set_oom_score(self.proc, score)?);
            }
            set_rlimits(self.process)?;
        }
        set_labels(self.proc, self.process, warnings)?;
        let early = std::env::set_current_dir(self.process.cwd());
        credentials::become_user(self.process, self.sets)?;
        // A directory that only its user may enter: root may lack the capability, or be squashed (NFS).
        early
            .or_else(|_| std::env::set_current_dir(self.process.cwd()))
            .step("enter the working directory", self.process.cwd().display())?;
        check_directory(self.process)?;
        umask(Mode::from_bits_truncate(self.process.user().umask().unwrap_or(0o022)));
        command::find(self.process)
    }

    /// Give up what rights are left and become the program. Returns only why not.
    pub(crate) fn exec(&self, command: &Command) -> Error {
        match credentials::apply_rights(self.process, self.sets, self.filter) {
            Ok(()) => command.exec(),
            Err(error) => error,
        }
    }
}

/// A working directory that leads out of the root, through a descriptor that leaked, shows no path (CVE-2024-21626).
fn check_directory(process: &Process) -> Result<()> {
    match std::env::current_dir() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(Error::invalid(
            "enter the working directory",
            process.cwd().display(),
            "it is outside of the container's root",
        )),
    }
}

fn place(streams: [&std::os::fd::OwnedFd; 3]) -> Result<()> {
    // One that stands at 0 to 2 itself would be overwritten before its turn.
    let apart = |fd: &std::os::fd::OwnedFd| (fd.as_raw_fd() < 3).then(|| fd.try_clone()).transpose();
    let copies = [apart(streams[0]), apart(streams[1]), apart(streams[2])];
    for (number, (copy, stream)) in copies.into_iter().zip(streams).enumerate() {
        let copy = copy.step("set standard stream", number)?;
        let from = copy.as_ref().unwrap_or(stream);
        sys::process::place_stdio(from.as_fd(), number as i32).step("set standard stream", number)?;
    }
    Ok(())
}

/// A program that opens /dev/stdout again needs to own the pipe behind it. `uid` is as this process counts.
pub(crate) fn own_pipes(stdio: &Stdio, uid: u32) -> Result<()> {
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        let stat = fstat(stream).step("look at standard stream", "")?;
        let pipe = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits();
        if pipe && stat.st_uid != uid {
            fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>).step("own standard stream", uid)?;
        }
    }
    Ok(())
}
