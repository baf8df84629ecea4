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

/// Start a child that takes signals as usual.
pub(crate) fn spawn(command: &mut Command) -> Result<Pid> {
    signals().thread_unblock()?;
    let child = command.spawn();
    signals().thread_block()?;
    let child = child.with_context(|| format!("start {}", line(command)))?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Wait until a process ends. SIGTERM and SIGHUP are passed on to `command`; SIGINT and SIGQUIT it got from the terminal itself.
pub(crate) fn next(command: Pid) -> Result<Ended> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Ok(Ended::Process(pid, code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => return Ok(Ended::Process(pid, 128 + signal as i32)),
            Ok(WaitStatus::StillAlive) => {
                let signal = signals().wait()?;
                if matches!(signal, Signal::SIGTERM | Signal::SIGHUP) {
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
    let done = spawn(command).and_then(|child| {
        loop {
            match next(child)? {
                Ended::Process(pid, code) if pid == child => return Ok(code),
                Ended::Process(..) => {}
            }
        }
    });
    signals().thread_unblock()?;
    done
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
