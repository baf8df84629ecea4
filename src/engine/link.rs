//! Talking to a pod's monitor from tokio: one connection per request, replies by readiness.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use monitor::protocol::{Failure, Reply, Request};
use monitor::{Client, ClientError, Connection};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Error, Kind, Result};

/// The monitor of one pod; holds nothing open.
#[derive(Clone, Debug)]
pub(crate) struct Link(Client);

impl Link {
    /// The monitor whose run directory is `dir`.
    pub(crate) fn new(dir: &Path) -> Link {
        Link(Client::new(dir))
    }

    /// Send a request and read its replies one by one.
    pub(crate) fn open(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Replies> {
        let connection = self.0.send(request, fds).map_err(unreachable)?;
        let connection =
            watched(connection).map_err(|e| Error::because(Kind::Internal, "wait for the monitor", e))?;
        Ok(Replies(connection))
    }

    /// Send a request and wait for its one reply; a refusal is an error.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply> {
        match self.open(request, &[])?.next().await? {
            Some(Reply::Error(failure)) => Err(refused(failure)),
            Some(reply) => Ok(reply),
            None => Err(Error::new(Kind::Unavailable, "the monitor closed the connection without a reply")),
        }
    }
}

/// Wait for a descriptor to become readable. The type must own its descriptor for as long as it lives, as all that are
/// used here do.
#[expect(
    deprecated,
    reason = "its replacement is an unsafe function, and those belong in sys, which has no tokio"
)]
pub(crate) fn watched<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, Interest::READABLE)
}

/// The replies to one request. Dropping it tells the monitor that nobody waits any more.
#[derive(Debug)]
pub(crate) struct Replies(AsyncFd<Connection>);

impl Replies {
    /// The next reply; `None`: there are no more. Cancel safe: what has arrived in part is kept.
    pub(crate) async fn next(&mut self) -> Result<Option<Reply>> {
        loop {
            if let Some(answer) = received(self.0.get_mut().try_receive()) {
                return answer;
            }
            let guard = self.0.readable_mut().await;
            let mut guard = guard.map_err(|e| Error::because(Kind::Internal, "wait for the monitor", e))?;
            match received(guard.get_inner_mut().try_receive()) {
                Some(answer) => return answer,
                None => guard.clear_ready(),
            }
        }
    }
}

/// What an attempt to receive means; `None`: nothing there yet.
fn received(got: std::result::Result<Option<Reply>, ClientError>) -> Option<Result<Option<Reply>>> {
    match got {
        Ok(None) => None,
        Ok(Some(reply)) => Some(Ok(Some(reply))),
        Err(ClientError::Closed) => Some(Ok(None)),
        Err(error) => Some(Err(unreachable(error))),
    }
}

fn unreachable(error: ClientError) -> Error {
    let kind = match error {
        ClientError::Frame(_) => Kind::Internal,
        ClientError::Deadline(_) => Kind::Deadline,
        _ => Kind::Unavailable,
    };
    Error::because(kind, "ask the monitor", error)
}

/// A refusal of the monitor in the engine's words.
pub(crate) fn refused(failure: Failure) -> Error {
    let kind = match failure.kind.as_str() {
        "not_found" => Kind::NotFound,
        "wrong_state" => Kind::WrongState,
        "invalid" | "cannot_run" => Kind::Invalid,
        "unsupported" => Kind::Unsupported,
        _ => Kind::Internal,
    };
    Error::new(kind, failure.message)
}
