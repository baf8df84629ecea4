//! Waiting for a process that was started in the foreground: `run` and `exec` without `-d`.
//!
//! Signals that this program gets go to the process. When it has a terminal, this program's own streams are relayed to
//! its master side, with the own terminal in raw mode meanwhile.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use executor::Process;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{self, SetArg, Termios};

use super::{Doing, Result};

/// Most bytes that wait for a process that does not read its terminal.
const MAX_INPUT: usize = 64 << 10;

/// All signals of this program, as something to read. Made before the process, so that its end is not missed.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// From now on signals end nothing and are read instead.
    pub(crate) fn new() -> Result<Self> {
        let mut set = SigSet::all();
        // Faults of this program stay faults; job control stays with the shell.
        for signal in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGTRAP,
            Signal::SIGABRT,
            Signal::SIGTSTP,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
        ] {
            set.remove(signal);
        }
        set.thread_block().doing(|| "block signals".to_owned())?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        fd.map(Signals).doing(|| "make a signal descriptor".to_owned())
    }
}

/// A process that is waited for.
pub(crate) struct Waiting<'a> {
    pub(crate) signals: Signals,
    pub(crate) process: &'a Process,
    /// Master side of its terminal.
    pub(crate) console: Option<OwnedFd>,
}

/// Puts the own terminal back.
struct Raw(Termios);

impl Raw {
    /// `None`: stdin is no terminal.
    fn new() -> Option<Raw> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

impl Waiting<'_> {
    /// Wait for its end; returns its exit status, or 128 + signal.
    pub(crate) fn wait(mut self) -> Result<u8> {
        let code = match self.console.take() {
            Some(console) => self.relay(&console),
            None => self.watch(),
        };
        code.doing(|| "wait for the process".to_owned()).map(|code| code as u8)
    }

    fn watch(&mut self) -> io::Result<i32> {
        loop {
            if let Some(code) = self.signalled(None)? {
                return Ok(code);
            }
            wait_for(&mut [PollFd::new(self.signals.0.as_fd(), PollFlags::POLLIN)])?;
        }
    }

    /// Deal with all signals that came; `Some`: the process has ended.
    fn signalled(&mut self, console: Option<BorrowedFd<'_>>) -> io::Result<Option<i32>> {
        while let Some(info) = self.signals.0.read_signal()? {
            match info.ssi_signo as i32 {
                libc::SIGCHLD => {
                    if let Some(ended) = sys::process::wait(self.process.pid, false)? {
                        return Ok(Some(ended.code()));
                    }
                }
                libc::SIGWINCH => {
                    if let Some(console) = console {
                        let _ = sys::terminal::copy_size(io::stdin().as_fd(), console);
                    }
                }
                libc::SIGPIPE => {}
                // It may have ended: its SIGCHLD follows.
                other => drop(sys::process::pidfd_signal(self.process.pidfd.as_fd(), other)),
            }
        }
        Ok(None)
    }

    fn relay(&mut self, console: &OwnedFd) -> io::Result<i32> {
        let flags = OFlag::from_bits_retain(fcntl(console, FcntlArg::F_GETFL)?);
        fcntl(console, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let _ = sys::terminal::copy_size(io::stdin().as_fd(), console.as_fd());
        let _raw = Raw::new();
        // With the other side open here, the terminal does not end while nobody in the container has it open.
        let _peer = sys::tty::peer(console.as_fd());
        let (mut input, mut open, mut stdin_open) = (VecDeque::new(), true, true);
        let stdin = io::stdin();
        loop {
            if let Some(code) = self.signalled(Some(console.as_fd()))? {
                if open {
                    drain(console);
                }
                return Ok(code);
            }
            // An end of the terminal would be told for ever.
            let (mut on_console, mut on_stdin) = (PollFlags::empty(), PollFlags::empty());
            on_console.set(PollFlags::POLLIN, open);
            on_console.set(PollFlags::POLLOUT, open && !input.is_empty());
            on_stdin.set(PollFlags::POLLIN, stdin_open && input.len() < MAX_INPUT);
            let signals = PollFd::new(self.signals.0.as_fd(), PollFlags::POLLIN);
            let mut all = vec![signals];
            if open {
                all.push(PollFd::new(console.as_fd(), on_console));
            }
            if !on_stdin.is_empty() {
                all.push(PollFd::new(stdin.as_fd(), on_stdin));
            }
            wait_for(&mut all)?;
            let ready = |fd: BorrowedFd<'_>| {
                use std::os::fd::AsRawFd;
                all.iter().any(|p| p.as_fd().as_raw_fd() == fd.as_raw_fd() && p.any() == Some(true))
            };
            if !on_stdin.is_empty() && ready(stdin.as_fd()) {
                stdin_open = take(&mut input)?;
            }
            if open && ready(console.as_fd()) {
                type_in(console, &mut input)?;
                open = !matches!(print(console), Err(e) if e.raw_os_error() == Some(libc::EIO));
            }
        }
    }
}

fn wait_for(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// What the user typed; false: there will be nothing more.
fn take(input: &mut VecDeque<u8>) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    match nix::unistd::read(io::stdin(), &mut buffer) {
        Ok(0) | Err(Errno::EIO) => Ok(false),
        Ok(count) => {
            input.extend(&buffer[..count]);
            Ok(true)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

fn type_in(console: &OwnedFd, input: &mut VecDeque<u8>) -> io::Result<()> {
    while !input.is_empty() {
        match nix::unistd::write(console, input.as_slices().0) {
            Ok(count) => drop(input.drain(..count)),
            Err(Errno::EAGAIN | Errno::EIO) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The rest of what an ended process printed. The terminal's own end (EIO), or a stdout that is gone, is no reason to
/// lose the exit status.
fn drain(console: &OwnedFd) {
    while matches!(print(console), Ok(true)) {}
}

/// What the process printed; false: nothing now. EIO: its terminal has ended.
fn print(console: &OwnedFd) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    match nix::unistd::read(console, &mut buffer) {
        Ok(0) | Err(Errno::EAGAIN) => Ok(false),
        Ok(count) => {
            let mut out = io::stdout().lock();
            out.write_all(&buffer[..count])?;
            out.flush()?;
            Ok(true)
        }
        Err(Errno::EINTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_terminal_is_no_failure() {
        let pty = nix::pty::openpty(None, None).expect("openpty");
        drop(pty.slave);
        assert!(print(&pty.master).is_err(), "EIO");
        drain(&pty.master);
    }
}
