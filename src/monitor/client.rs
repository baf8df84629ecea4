//! The daemon's side of the protocol: one connection per request.
//!
//! No threads and no tokio: [`Connection`] is non-blocking and gives its descriptor to whoever waits (tokio's
//! `AsyncFd`, or poll in [`Client::call`]). Sending may block for at most [`PATIENCE`]; connecting never does: a monitor never
//! waits for anybody in its own loop, so its queue is full only when it is stopped or the node is in trouble.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frame::{self, FrameError};
use crate::protocol::{Reply, Request};

/// Longest time that sending a request may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why a monitor could not be asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No monitor listens there (no socket, or nobody behind it).
    #[error("no monitor at {}: {source}", path.display())]
    Absent {
        /// Its socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The monitor closed the connection: it gave its last reply, or ended.
    #[error("the monitor closed the connection")]
    Closed,
    /// No reply within the time given to [`Client::call`].
    #[error("the monitor did not answer within {0:?}")]
    Deadline(Duration),
    /// Sending or receiving failed.
    #[error("talk to the monitor at {}: {source}", path.display())]
    Io {
        /// Its socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What it said is not the protocol.
    #[error("reply of the monitor: {0}")]
    Frame(#[from] FrameError),
}

/// A monitor, by the directory of its pod. Holds nothing open.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The monitor of the pod whose run directory is `dir`.
    pub fn new(dir: &Path) -> Self {
        Client { socket: dir.join("monitor.sock") }
    }

    /// Send a request with descriptors; the replies are read from the connection. The descriptors may be closed after it.
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Connection, ClientError> {
        let frame = frame::encode(request)?;
        let stream = sys::socket::connect_at_once(&self.socket)
            .map_err(|source| ClientError::Absent { path: self.socket.clone(), source })?;
        let io = |source| ClientError::Io { path: self.socket.clone(), source };
        stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
        let (mut sent, mut fds) = (0, fds);
        while sent < frame.len() {
            match sys::socket::send(stream.as_fd(), &frame[sent..], fds) {
                Ok(count) => (sent, fds) = (sent + count, &[]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io(e)),
            }
        }
        stream.set_nonblocking(true).map_err(io)?;
        Ok(Connection { path: self.socket.clone(), stream, buffer: Vec::new(), fds: Vec::new() })
    }

    /// Send a request and wait for its first reply.
    pub fn call(&self, request: &Request, timeout: Duration) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + timeout;
        let mut connection = self.send(request, &[])?;
        connection.receive(deadline).map_err(|e| match e {
            ClientError::Deadline(_) => ClientError::Deadline(timeout),
            other => other,
        })
    }
}

/// One request's connection. Dropping it tells the monitor that nobody waits any more: an exec is killed.
#[derive(Debug)]
pub struct Connection {
    path: PathBuf,
    stream: UnixStream,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl std::os::fd::AsRawFd for Connection {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.stream.as_raw_fd()
    }
}

impl Connection {
    /// The next reply; `None`: there is none yet (wait until the descriptor is readable).
    pub fn try_receive(&mut self) -> Result<Option<Reply>, ClientError> {
        loop {
            if let Some(reply) = frame::take(&mut self.buffer, frame::MAX_REPLY)? {
                return Ok(Some(reply));
            }
            let mut part = [0; 4096];
            match sys::socket::receive(self.stream.as_fd(), &mut part, &mut self.fds) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => self.buffer.extend_from_slice(&part[..count]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(ClientError::Closed),
                Err(source) => return Err(ClientError::Io { path: self.path.clone(), source }),
            }
        }
    }

    /// The descriptor that came with the replies received so far.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }

    /// Wait for the next reply until `deadline`.
    pub fn receive(&mut self, deadline: Instant) -> Result<Reply, ClientError> {
        loop {
            if let Some(reply) = self.try_receive()? {
                return Ok(reply);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::Deadline(left));
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(ClientError::Io { path: self.path.clone(), source: e.into() }),
            }
        }
    }
}
