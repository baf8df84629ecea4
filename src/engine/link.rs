//! Talking to a pod's monitor from tokio: one connection per request, replies by readiness.
//!
//! A monitor does not wait for anybody in its loop, so it always answers at once that it lives. While a reply is due it is asked that
//! now and then; one that says nothing (stopped, or stuck in the kernel) fails the request. A request that must
//! come to an end ([`Link::insist`]) gives such a monitor up: [`Link::given_up`] tells the pod's task, which goes on without it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use monitor::protocol::{Failure, Reply, Request};
use monitor::{Client, ClientError, Connection};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::{Error, Kind, Result};

/// The monitor of one pod; holds nothing open.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    client: Client,
    /// How long it may say nothing.
    patience: Duration,
    /// It was given up.
    silent: Arc<watch::Sender<bool>>,
}

impl Link {
    /// The monitor whose run directory is `dir`; for `patience` see [`crate::Settings::monitor_patience`].
    pub(crate) fn new(dir: &Path, patience: Duration) -> Link {
        Link { client: Client::new(dir), patience, silent: Arc::default() }
    }

    /// Send a request and read its replies one by one.
    pub(crate) fn open(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Replies> {
        let connection = self.client.send(request, fds).map_err(unreachable)?;
        let connection =
            watched(connection).map_err(|e| Error::because(Kind::Internal, "wait for the monitor", e))?;
        Ok(Replies(connection))
    }

    /// Send a request and wait for its one reply; a refusal is an error. [`Kind::Deadline`]: the monitor says nothing.
    pub(crate) async fn call(&self, request: &Request) -> Result<Reply> {
        accepted(self.first(request).await?)
    }

    /// As [`Link::call`], for what must come to an end.
    pub(crate) async fn insist(&self, request: &Request) -> Result<Reply> {
        accepted(self.first_or_give_up(request).await?)
    }

    /// The first reply to a request, a refusal as well; `None`: it closed the connection without one. A monitor that says
    /// nothing is given up.
    pub(crate) async fn first_or_give_up(&self, request: &Request) -> Result<Option<Reply>> {
        let reply = self.first(request).await;
        if matches!(&reply, Err(error) if error.kind == Kind::Deadline) {
            self.silent.send_replace(true);
        }
        reply
    }

    async fn first(&self, request: &Request) -> Result<Option<Reply>> {
        self.next_of(&mut self.open(request, &[])?).await
    }

    /// The next reply to a request. [`Kind::Deadline`]: the monitor says nothing, to this request and to others.
    pub(crate) async fn next_of(&self, replies: &mut Replies) -> Result<Option<Reply>> {
        loop {
            match timeout(self.patience, replies.next()).await {
                Ok(reply) => return reply,
                // it works on it
                Err(_) if self.lives().await => {}
                Err(_) => {
                    let text = format!("the pod's monitor has not answered for {:?}", self.patience * 2);
                    return Err(Error::new(Kind::Deadline, text));
                }
            }
        }
    }

    async fn lives(&self) -> bool {
        let asked = async { self.open(&Request::State, &[])?.next().await };
        // one that takes the connection and closes it (it has too many) runs as well
        matches!(timeout(self.patience, asked).await, Ok(Ok(_)))
    }

    /// Returns when the monitor was given up. Cancel safe.
    pub(crate) async fn given_up(&self) {
        // the sender is ours, so it is not gone
        let _ = self.silent.subscribe().wait_for(|silent| *silent).await;
    }
}

fn accepted(reply: Option<Reply>) -> Result<Reply> {
    match reply {
        Some(Reply::Error(failure)) => Err(refused(failure)),
        Some(reply) => Ok(reply),
        None => Err(Error::new(Kind::Unavailable, "the monitor closed the connection without a reply")),
    }
}

/// Wait for a descriptor to become readable.
pub(crate) fn watched<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    watched_for(owner, Interest::READABLE)
}

/// Wait for a descriptor. The type must own its descriptor for as long as it lives, as all that are
/// used here do.
#[expect(
    deprecated,
    reason = "its replacement is an unsafe function, and those belong in sys, which has no tokio"
)]
pub(crate) fn watched_for<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}

/// The replies to one request. Dropping it tells the monitor that nobody waits any more.
#[derive(Debug)]
pub(crate) struct Replies(AsyncFd<Connection>);

impl Replies {
    /// The descriptor that came with the replies so far.
    pub(crate) fn descriptor(&mut self) -> Option<std::os::fd::OwnedFd> {
        self.0.get_mut().take_descriptor()
    }

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
