//! Waiting for children and signals at once, in one thread.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::command::line;

/// Something ended.
pub(crate) enum Ended {
    /// a child, or an orphan that came to us, with its exit code (128 + signal)
    Process(Pid, i32),
}

fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect()
}

/// From now on signals wait until [`next`] takes them. Children inherit that: see [`spawn`].
pub(crate) fn take_signals() -> Result<()> {
    signals().thread_block().context("block signals")
}

/// The opposite of [`take_signals`].
pub(crate) fn leave_signals() -> Result<()> {
    signals().thread_unblock().context("unblock signals")
}

/// Start a child that takes signals as usual.
pub(crate) fn spawn(command: &mut Command) -> Result<Pid> {
    signals().thread_unblock()?;
    let child = command.spawn();
    signals().thread_block()?;
    let child = child.with_context(|| format!("start {}", line(command)))?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// What is passed on to a command on this terminal; SIGINT and SIGQUIT it got from there itself.
pub(crate) const NOT_FROM_TERMINAL: &[Signal] = &[Signal::SIGTERM, Signal::SIGHUP];

/// Wait until a process ends. Signals of `pass` are passed on to `command`, others only taken.
pub(crate) fn next(command: Pid, pass: &[Signal]) -> Result<Ended> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Ok(Ended::Process(pid, code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => return Ok(Ended::Process(pid, 128 + signal as i32)),
            Ok(WaitStatus::StillAlive) => {
                let signal = signals().wait()?;
                if pass.contains(&signal) {
                    kill(command, signal).ok();
                }
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for children"),
        }
    }
}

/// Run a command to its end, passing signals on; its exit code. Orphans that come to us meanwhile are reaped.
pub(crate) fn run(command: &mut Command) -> Result<i32> {
    take_signals()?;
    let done = spawn(command).and_then(|child| until_end(child, NOT_FROM_TERMINAL));
    leave_signals()?;
    done
}

/// Wait for a child's end; its exit code.
pub(crate) fn until_end(child: Pid, pass: &[Signal]) -> Result<i32> {
    loop {
        match next(child, pass)? {
            Ended::Process(pid, code) if pid == child => return Ok(code),
            Ended::Process(..) => {}
        }
    }
}

/// Kill a process and, if it is ours, reap it.
pub(crate) fn end(pid: Pid) {
    kill(pid, Signal::SIGKILL).ok();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(5)),
            _ => return,
        }
    }
}
