//! A program in a pseudo-terminal, as a person has it: lines are typed, and what is printed is waited for.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, Winsize, openpty};

/// Longest wait for something to be printed, or for the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running program and its terminal. Dropping it kills the program.
pub struct Terminal {
    master: File,
    child: Child,
    seen: String,
}

impl Terminal {
    /// Start a command in a terminal of so many rows and columns, in a session of its own.
    pub fn start(command: &mut Command, rows: u16, columns: u16) -> Result<Terminal> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).context("openpty")?;
        fcntl(&master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("close the terminal at exec")?;
        let copy = || slave.try_clone().context("clone the terminal");
        // setsid makes the terminal the one that signals of a resize go to
        let mut words = Command::new("setsid");
        words.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        let child = words.stdin(copy()?).stdout(copy()?).stderr(copy()?).spawn().context("start setsid")?;
        Ok(Terminal { master: File::from(master), child, seen: String::new() })
    }

    /// Type a text.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.master.write_all(text.as_bytes()).context("type")
    }

    /// Wait until the text is printed; what was printed up to there, which is then forgotten.
    pub fn until(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.seen, rest));
            }
            ensure!(Instant::now() < deadline, "waited for {text:?}, saw {:?}", self.seen);
            if !self.read()? {
                bail!("it ended before {text:?}; it printed {:?}", self.seen);
            }
        }
    }

    /// Take in what is printed, for at most 100 ms; false: the terminal has ended.
    fn read(&mut self) -> Result<bool> {
        let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(100_u8)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(true),
            other => other.context("poll")?,
        };
        let mut part = [0; 4096];
        match nix::unistd::read(&self.master, &mut part) {
            Ok(0) | Err(Errno::EIO) => Ok(false),
            Ok(count) => {
                self.seen.push_str(&String::from_utf8_lossy(&part[..count]));
                Ok(true)
            }
            Err(errno) => Err(errno).context("read the terminal"),
        }
    }

    /// Make the terminal this large; the program is told by SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        sys::tty::set_size(self.master.as_fd(), rows, columns).context("resize")
    }

    /// Wait for the end of the program.
    pub fn end(mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.read()?;
            if let Some(status) = self.child.try_wait().context("wait")? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it does not end; it printed {:?}", self.seen);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_typed_to_and_resized() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap 'stty size; exit 3' WINCH; stty size; read line; echo \"<$line>\"; while :; do sleep 0.1; done"]);
        let mut terminal = Terminal::start(&mut shell, 11, 22).unwrap();
        terminal.until("11 22").unwrap();
        terminal.write("typed\n").unwrap();
        terminal.until("<typed>").unwrap();
        terminal.resize(33, 44).unwrap();
        terminal.until("33 44").unwrap();
        assert_eq!(terminal.end().unwrap().code(), Some(3));
    }
}
