//! The daemon's end of a terminal in a container: the pty's master, read and written without blocking.
//!
//! The master of an exec'd process is ours alone: when the last copy is closed its session is hung up. That of a
//! container's init is a copy of the monitor's, which alone reads it; here it is written to and its window is resized.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::link::watched_for;

/// The terminal of a process: its window can be resized while the process has it.
#[derive(Clone, Debug)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Take over a master; `interest`: what will be waited for.
    pub(crate) fn new(master: OwnedFd, interest: Interest) -> io::Result<Terminal> {
        let flags = OFlag::from_bits_retain(fcntl(master.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(master.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Terminal(Arc::new(watched_for(master, interest)?)))
    }

    /// Set the size of its window, in characters; who uses it is sent SIGWINCH.
    ///
    /// # Errors
    /// The kernel's, when the terminal is gone.
    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        sys::tty::set_size(self.0.get_ref().as_fd(), height, width)
    }

    /// What is written to it by the container. The end comes when nobody has it open any more.
    pub(crate) fn reader(&self) -> Reader {
        Reader(self.0.clone())
    }

    /// What is typed.
    pub(crate) fn writer(&self) -> Writer {
        Writer { master: self.0.clone(), in_line: false }
    }

    /// What to type for "end of input" after `in_line` (an unfinished line); `None`: the terminal gives every
    /// byte to its program as it is.
    fn end_of_input(&self, in_line: bool) -> Option<Vec<u8>> {
        let settings = tcgetattr(self.0.get_ref()).ok()?;
        let end = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
        let cooked = settings.local_flags.contains(LocalFlags::ICANON) && end != 0;
        // the first one hands over the line
        cooked.then(|| vec![end; if in_line { 2 } else { 1 }])
    }
}

/// See [`Terminal::reader`].
#[derive(Debug)]
pub(crate) struct Reader(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buf.initialize_unfilled())?));
            match read {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // how a terminal that nobody has open ends
                Ok(Err(e)) if e.raw_os_error() == Some(Errno::EIO as i32) => return Poll::Ready(Ok(())),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

/// See [`Terminal::writer`]. Shutting it down changes nothing.
#[derive(Debug)]
pub(crate) struct Writer {
    master: Arc<AsyncFd<OwnedFd>>,
    /// The last byte written did not end a line.
    in_line: bool,
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = loop {
            let mut guard = ready!(self.master.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), data)?)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => break written,
                Err(_would_block) => {}
            }
        };
        if let Some(last) = written.as_ref().ok().and_then(|count| data[..*count].last()) {
            self.in_line = !matches!(last, b'\n' | b'\r');
        }
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The input of an exec'd process with a terminal: its end is typed as such (`^D`), since a terminal cannot be closed on
/// one side.
#[derive(Debug)]
pub(crate) struct Typed {
    terminal: Terminal,
    writer: Writer,
    ended: bool,
}

impl Typed {
    pub(crate) fn new(terminal: &Terminal) -> Typed {
        Typed { terminal: terminal.clone(), writer: terminal.writer(), ended: false }
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true)
            && let Some(end) = self.terminal.end_of_input(self.writer.in_line)
        {
            // a terminal that takes nothing now has input that nobody reads
            let _ = nix::unistd::write(self.terminal.0.get_ref(), &end);
        }
    }
}

impl AsyncWrite for Typed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        self.end();
    }
}
