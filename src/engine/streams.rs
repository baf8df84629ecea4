//! Exec and attach: a process with its streams, for as long as somebody holds the session.
//!
//! ```text
//!                 ┌── stdin, stdout, stderr: pipes of ours, or a terminal's master ──┐
//! exec:   client ─┤                                                                  ├─ process
//!                 └── end: connection to the monitor, which tells the exit ──────────┘
//!
//! attach: client ◀── stdout, stderr: pipes ── monitor ◀── container      client ── stdin ─▶ container
//! ```
//!
//! What an exec'd process reads and writes never passes the monitor. Whoever drops the `end` of an exec (or dies) closes
//! the connection, and the monitor kills the process and what it has started; an attach merely ends. The streams may hold
//! bytes when the end is told: they are to be read until they end.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use monitor::protocol::{Attach, Exec, Reply, Request};
use nix::fcntl::{FcntlArg, fcntl};
use oci::ContainerId;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::container::Farewell;
use crate::link::{self, Link, Replies};
use crate::terminal::{Terminal, Typed};
use crate::view::ContainerView;
use crate::{Error, Kind, Result};

/// What a pipe of a session holds, in bytes: the most that a node lets everybody have.
const PIPE: i32 = 1 << 20;

/// How long a client whose input has ended, and which is to be detached, still gets output: the answer to its last line is on
/// its way.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Exit code of a process that SIGKILL has ended.
const KILLED: i32 = 128 + nix::libc::SIGKILL;

/// A stream that is read by the client.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A stream that is written by the client. Shut down or dropped: the client's input has ended.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// What to run in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecConfig {
    /// Program and arguments; a program without a slash is looked for in the container's `PATH`.
    pub args: Vec<String>,
    /// With a terminal of its own. Stderr is not told apart then.
    pub tty: bool,
    /// Whether it is written to; else it reads the end (with a terminal: nothing).
    pub stdin: bool,
    /// Whether its stdout is wanted; else that is thrown away.
    pub stdout: bool,
    /// Whether its stderr is wanted; else that is thrown away.
    pub stderr: bool,
}

/// A process that was started in a container, with those streams that were asked for.
pub struct ExecSession {
    /// Its stdin. Writing fails with `BrokenPipe` when it reads no more.
    pub stdin: Option<Input>,
    /// Its stdout, or all that is written to its terminal.
    pub stdout: Option<Output>,
    /// Its stderr.
    pub stderr: Option<Output>,
    /// Its terminal.
    pub terminal: Option<Terminal>,
    /// Its exit code, 128 + signal when one has ended it; an error when it was killed because its container was removed. Dropping
    /// this before kills the process and what it has started.
    pub end: BoxFuture<'static, Result<i32>>,
}

/// What is wanted of a container's own streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachConfig {
    /// Write to its stdin.
    pub stdin: bool,
    /// Read its stdout, or its terminal.
    pub stdout: bool,
    /// Read its stderr.
    pub stderr: bool,
}

/// A client's part in the streams of a running container, from the moment of its attaching on.
pub struct AttachSession {
    /// The container's stdin; `None`: not asked for, the container has none, or (`stdin_once`) it is another's or has ended.
    pub stdin: Option<Input>,
    /// The container's stdout, or all that is written to its terminal.
    pub stdout: Option<Output>,
    /// The container's stderr.
    pub stderr: Option<Output>,
    /// The container's terminal.
    pub terminal: Option<Terminal>,
    /// How it ended. Dropping this detaches.
    pub end: BoxFuture<'static, Result<AttachEnd>>,
}

/// How an attach ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachEnd {
    /// The container's init has ended, with this code.
    Exited(i32),
    /// The client's input has ended, and the container's goes on without it.
    InputEnded,
    /// The client cannot take part any longer (container removed, too slow a reader): why.
    LetGo(String),
}

impl fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = [self.stdin.is_some(), self.stdout.is_some(), self.stderr.is_some()];
        f.debug_struct("ExecSession").field("streams", &streams).finish_non_exhaustive()
    }
}

impl fmt::Debug for AttachSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = [self.stdin.is_some(), self.stdout.is_some(), self.stderr.is_some()];
        f.debug_struct("AttachSession").field("streams", &streams).finish_non_exhaustive()
    }
}

// ---- exec

/// Start a command in a container.
pub(crate) async fn exec(link: &Link, container: &ContainerView, config: ExecConfig) -> Result<ExecSession> {
    if config.tty {
        exec_with_terminal(link, container, config).await
    } else {
        exec_with_pipes(link, container, config).await
    }
}

async fn exec_with_pipes(link: &Link, container: &ContainerView, config: ExecConfig) -> Result<ExecSession> {
    let failed = |e: io::Error| Error::because(Kind::Internal, "make pipes for the command", e);
    let (stdin, theirs_in) = input(config.stdin).map_err(failed)?;
    let (stdout, theirs_out) = output(config.stdout).map_err(failed)?;
    let (stderr, theirs_err) = output(config.stderr).map_err(failed)?;
    let request = request(&container.status.id, config.args, false);
    let mut replies = link.open(&request, &[theirs_in.as_fd(), theirs_out.as_fd(), theirs_err.as_fd()])?;
    drop((theirs_in, theirs_out, theirs_err));
    started(link, &mut replies).await?;
    let end = Box::pin(exit_of(replies, container.farewell.clone()));
    Ok(ExecSession { stdin, stdout, stderr, terminal: None, end })
}

async fn exec_with_terminal(
    link: &Link,
    container: &ContainerView,
    config: ExecConfig,
) -> Result<ExecSession> {
    let mut replies = link.open(&request(&container.status.id, config.args, true), &[])?;
    started(link, &mut replies).await?;
    let master = replies.descriptor().ok_or_else(|| {
        Error::new(Kind::Unsupported, "the pod's monitor is of an earlier version: it gives no terminals")
    })?;
    let terminal = Terminal::new(master, Interest::READABLE | Interest::WRITABLE)
        .map_err(|e| Error::because(Kind::Internal, "use the command's terminal", e))?;
    let stdin = config.stdin.then(|| Box::new(Typed::new(&terminal)) as Input);
    let (stdout, unread) = match config.stdout {
        true => (Some(Box::new(terminal.reader()) as Output), None),
        false => (None, Some(terminal.reader())),
    };
    let exit = exit_of(replies, container.farewell.clone());
    let end = async move {
        // what nobody wants must be read all the same, or the command waits for it
        let drain = async {
            if let Some(mut reader) = unread {
                let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            exit = exit => exit,
            never = drain => never,
        }
    };
    Ok(ExecSession { stdin, stdout, stderr: None, terminal: Some(terminal), end: Box::pin(end) })
}

fn request(id: &ContainerId, args: Vec<String>, tty: bool) -> Request {
    Request::Exec(Exec { container: id.clone(), args, timeout_ms: 0, tty })
}

/// Wait until the program runs.
async fn started(link: &Link, replies: &mut Replies) -> Result<()> {
    match link.next_of(replies).await? {
        Some(Reply::Started(_)) => Ok(()),
        other => Err(unexpected(other, "an exec")),
    }
}

/// The exit code; for a process that was killed with its container when that was removed: that it was.
async fn exit_of(mut replies: Replies, farewell: Farewell) -> Result<i32> {
    let told = match replies.next().await {
        Ok(Some(Reply::Exited { exit, .. })) => Ok(exit.code),
        Ok(other) => Err(unexpected(other, "an exec")),
        Err(error) => Err(error),
    };
    match (farewell.get(), told) {
        (Some(why), Ok(KILLED) | Err(_)) => Err(Error::new(Kind::WrongState, why.clone())),
        (_, told) => told,
    }
}

/// A reply that is not the one that was waited for.
fn unexpected(reply: Option<Reply>, to: &str) -> Error {
    match reply {
        Some(Reply::Error(failure)) => link::refused(failure),
        Some(other) => Error::new(Kind::Internal, format!("the monitor answered {other:?} to {to}")),
        None => Error::new(Kind::Unavailable, format!("the monitor closed the connection of {to}")),
    }
}

// ---- attach

/// Take part in the streams of a container.
pub(crate) async fn attach(
    link: &Link,
    container: &ContainerView,
    config: AttachConfig,
) -> Result<AttachSession> {
    let id = &container.status.id;
    let failed = |e: io::Error| Error::because(Kind::Internal, "make pipes for the client", e);
    let (stdout, theirs_out) = output(config.stdout).map_err(failed)?;
    let (stderr, theirs_err) = output(config.stderr).map_err(failed)?;
    let wanted = [(config.stdout, &theirs_out), (config.stderr, &theirs_err)];
    let fds: Vec<BorrowedFd<'_>> =
        wanted.iter().filter(|(wanted, _)| *wanted).map(|(_, fd)| fd.as_fd()).collect();
    let AttachConfig { stdin, stdout: out, stderr: err } = config;
    let attach = Attach { container: id.clone(), stdin, stdout: out, stderr: err };
    let mut replies = link.open(&Request::Attach(attach), &fds)?;
    drop((theirs_out, theirs_err));
    let (stdin, has_terminal) = match link.next_of(&mut replies).await? {
        Some(Reply::Attached { stdin, terminal }) => (stdin, terminal),
        other => return Err(unexpected(other, "an attach")),
    };
    let (ended, input_ended) = oneshot::channel();
    let (stdin, terminal) = lent(replies.descriptor(), stdin, has_terminal, ended)
        .map_err(|e| Error::because(Kind::Internal, "use the container's stdin", e))?;
    let once = container.status.config.stdin_once;
    let closes = (once && terminal.is_none()).then(|| (link.clone(), id.clone()));
    let (attached, farewell) = (attached(replies, input_ended, closes), container.farewell.clone());
    let end = Box::pin(async move {
        match (attached.await, farewell.get()) {
            // one that was killed to be removed has an exit code too
            (Ok(AttachEnd::Exited(_)) | Err(_), Some(why)) => Ok(AttachEnd::LetGo(why.clone())),
            (end, _) => end,
        }
    });
    Ok(AttachSession { stdin, stdout, stderr, terminal, end })
}

/// What the monitor lends a client: its input, and the terminal.
fn lent(
    fd: Option<OwnedFd>,
    stdin: bool,
    terminal: bool,
    ended: oneshot::Sender<()>,
) -> io::Result<(Option<Input>, Option<Terminal>)> {
    let input = |inner: Input| Box::new(ClientInput { inner: Some(inner), ended: Some(ended) }) as Input;
    match fd {
        Some(master) if terminal => {
            let terminal = Terminal::new(master, Interest::WRITABLE)?;
            let stdin = stdin.then(|| input(Box::new(terminal.writer())));
            Ok((stdin, Some(terminal)))
        }
        Some(fd) if stdin => Ok((Some(input(Box::new(pipe::Sender::from_owned_fd(fd)?))), None)),
        _ => Ok((None, None)),
    }
}

/// From attached to the end. When the client's input ends, that of the container is closed (`closes`) or the
/// client detached.
async fn attached(
    mut replies: Replies,
    input_ended: oneshot::Receiver<()>,
    closes: Option<(Link, ContainerId)>,
) -> Result<AttachEnd> {
    let input_ended = async {
        // no word: there is no input, or it broke because the container reads no more
        if input_ended.await.is_err() {
            return std::future::pending().await;
        }
        match closes {
            Some((link, container)) => {
                if let Err(error) = link.call(&Request::CloseStdin { container }).await {
                    tracing::warn!(error = error.chain(), "a container's stdin could not be closed");
                }
                std::future::pending().await
            }
            None => tokio::time::sleep(LAST_WORDS).await,
        }
    };
    tokio::select! {
        reply = replies.next() => match reply? {
            Some(Reply::Exited { exit, .. }) => Ok(AttachEnd::Exited(exit.code)),
            Some(Reply::Detached { reason }) => Ok(AttachEnd::LetGo(reason)),
            other => Err(unexpected(other, "an attach")),
        },
        () = input_ended => Ok(AttachEnd::InputEnded),
    }
}

/// The input of an attached client, whose end is told.
struct ClientInput {
    inner: Option<Input>,
    ended: Option<oneshot::Sender<()>>,
}

impl ClientInput {
    fn end(&mut self) {
        // closed before it is told, so that ours is not the last copy
        self.inner = None;
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(());
        }
    }
}

impl AsyncWrite for ClientInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let written = Pin::new(inner).poll_write(cx, data);
        if let Poll::Ready(Err(_)) = written {
            // not the client's doing: it stays for the output
            (self.inner, self.ended) = (None, None);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientInput {
    fn drop(&mut self) {
        self.end();
    }
}

// ---- pipes

/// The client's end of an output and the process's; the latter is /dev/null when it is not wanted.
fn output(wanted: bool) -> io::Result<(Option<Output>, OwnedFd)> {
    if !wanted {
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        return Ok((None, null.into()));
    }
    let (read, write) = io::pipe()?;
    widen(&read);
    Ok((Some(Box::new(pipe::Receiver::from_owned_fd(read.into())?)), write.into()))
}

/// The client's end of an input and the process's.
fn input(wanted: bool) -> io::Result<(Option<Input>, OwnedFd)> {
    if !wanted {
        return Ok((None, std::fs::File::open("/dev/null")?.into()));
    }
    let (read, write) = io::pipe()?;
    widen(&write);
    Ok((Some(Box::new(pipe::Sender::from_owned_fd(write.into())?)), read.into()))
}

/// Fewer turns for much data. A node that allows less only makes it slower.
fn widen(pipe: impl AsFd) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
}
