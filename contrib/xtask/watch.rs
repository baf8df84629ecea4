//! Waiting for children and signals at once, in one thread.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Something ended.
pub(crate) enum Ended {
    /// a child, or an orphan that came to us, with its exit code (128 + signal)
    Process(Pid, i32),
}

fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect()
}

/// From now on signals wait until [`next`] takes them. (Children get an empty mask from the standard library.)
pub(crate) fn take_signals() -> Result<()> {
    signals().thread_block().context("block signals")
}

/// Wait until a process ends. SIGTERM and SIGHUP are passed on to `command`; SIGINT and SIGQUIT it got from the terminal itself.
pub(crate) fn next(command: Pid) -> Result<Ended> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Ok(Ended::Process(pid, code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => return Ok(Ended::Process(pid, 128 + signal as i32)),
            Ok(WaitStatus::StillAlive) => match signals().wait()? {
                signal @ (Signal::SIGTERM | Signal::SIGHUP) => drop(kill(command, signal)),
                _ => {}
            },
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for children"),
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
