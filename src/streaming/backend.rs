//! What the server asks of whoever owns the containers. The contract, which every implementation keeps:
//!
//! * A call is made once for each URL that was given out and used, when the client's streams are there.
//! * The streams of a [`Session`] may be read and written at any pace, also not at all: a slow client must not be felt by
//!   anybody else.
//! * Dropping a [`Session`] means that the client has gone. An exec'd process is ended then, with what it started; an
//!   attach merely ends.

use std::fmt;
use std::io;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// The owner of the containers.
pub trait Backend: Send + Sync + 'static {
    /// Start a process in a container. Called once for each exec URL that is used.
    fn exec(&self, call: Exec) -> BoxFuture<'_, Result<Session, Refusal>>;

    /// Take part in the streams of a container's own process. Called once for each attach URL that is used.
    fn attach(&self, call: Attach) -> BoxFuture<'_, Result<Session, Refusal>>;

    /// Connect to `port` on localhost as the pod sees it. Called for each connection that the client makes.
    fn forward<'a>(&'a self, pod: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>, Refusal>>;

    /// Resolves, with the reason, when no connections to the pod can be made any more, at once if that is so already;
    /// those that there are break by themselves. Called once for each port-forward URL that is used, and awaited beside
    /// its connections.
    fn gone<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, String>;
}

/// A connection: read and written.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What to run. At least one stream is asked for; with a terminal stderr is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Id of the container.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// With a terminal.
    pub tty: bool,
    /// The client writes to it.
    pub stdin: bool,
    /// The client reads its stdout, or its terminal.
    pub stdout: bool,
    /// The client reads its stderr.
    pub stderr: bool,
}

/// What to attach to. At least one stream is asked for; with a terminal stderr is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Id of the container.
    pub container: String,
    /// The container has a terminal.
    pub tty: bool,
    /// The client writes to it.
    pub stdin: bool,
    /// The client reads its stdout, or its terminal.
    pub stdout: bool,
    /// The client reads its stderr.
    pub stderr: bool,
}

/// Ports that may be forwarded to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Id of the pod.
    pub pod: String,
    /// Ports for clients that do not name them per connection (WebSocket channels); may be empty.
    pub ports: Vec<u16>,
}

/// A process with its streams; those that were not asked for, or that it does not have, are `None`.
pub struct Session {
    /// Shut down (which may not block) and dropped at the end of the client's input. Writing fails with `BrokenPipe`
    /// when the process reads no more.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Ends when nobody can write to it any more.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// As `stdout`.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Sets the size of its terminal; `None` without one.
    pub resize: Option<Resize>,
    /// Resolves when it has ended. Output that is still in the streams is read afterwards.
    pub end: BoxFuture<'static, End>,
}

/// Sets the size of a terminal.
pub type Resize = Box<dyn FnMut(Size) -> io::Result<()> + Send>;

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = [self.stdin.is_some(), self.stdout.is_some(), self.stderr.is_some()];
        f.debug_struct("Session").field("streams", &streams).finish_non_exhaustive()
    }
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The exec'd process exited with this code; 128 + signal when a signal ended it.
    Exited(i32),
    /// An attach is over and nothing is wrong: the container ended, or the client's input did.
    Detached,
    /// Something is wrong; the text tells the client what.
    Failed(String),
}

/// Why something is not done. The text is for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What callers branch on.
    pub kind: RefusalKind,
    /// Names the thing and the cause.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request is wrong in itself.
    Invalid,
    /// There is no such container, pod, or listener on that port.
    NotFound,
    /// It is there, and not in a state for this.
    WrongState,
    /// Too many are waiting already.
    Busy,
    /// Whoever would do it cannot be reached.
    Unavailable,
    /// Anything else.
    Internal,
}

impl Refusal {
    /// A refusal of a kind.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
