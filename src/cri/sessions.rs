//! Exec, Attach and PortForward: from a request to a URL of the streaming server, and from that server to the engine.
//!
//! ```text
//! kubelet ─Exec─▶ runtime_service ─ parse::sessions ─▶ streaming::Server ─▶ URL
//! client ──URL──▶ streaming::Server ─▶ Sessions (streaming::Backend) ─▶ engine
//! ```
//!
//! Whether a container can be used is looked at twice: for the URL, so that the kubelet is told at once, and when the URL
//! is used, since the container may have ended in between.

use std::sync::Arc;

use engine::status::{ContainerState, PodState};
use engine::streams::{AttachConfig, AttachEnd, ExecConfig};
use engine::{Engine, Error, Kind, Result, Terminal};
use streaming::{
    Attach, Backend, BoxFuture, Duplex, End, Exec, Forward, Refusal, RefusalKind, Resize, Session, Size,
};

use crate::parse;
use crate::status::message;

/// What the streaming server asks for, done by the engine.
pub struct Sessions(Engine);

impl Sessions {
    /// The sessions of the engine's containers.
    pub fn new(engine: Engine) -> Arc<Sessions> {
        Arc::new(Sessions(engine))
    }
}

impl Backend for Sessions {
    fn exec(&self, call: Exec) -> BoxFuture<'_, std::result::Result<Session, Refusal>> {
        Box::pin(async move {
            let Exec { container, command, tty, stdin, stdout, stderr } = call;
            let config = ExecConfig { args: command, tty, stdin, stdout, stderr };
            let session = self.0.exec(&container, config).await.map_err(|e| refusal(&e))?;
            let end = Box::pin(async move {
                match session.end.await {
                    Ok(code) => End::Exited(code),
                    Err(error) => failed(&error),
                }
            });
            let resize = session.terminal.map(resize);
            let (stdin, stdout, stderr) = (session.stdin, session.stdout, session.stderr);
            Ok(Session { stdin, stdout, stderr, resize, end })
        })
    }

    fn attach(&self, call: Attach) -> BoxFuture<'_, std::result::Result<Session, Refusal>> {
        Box::pin(async move {
            let Attach { container, stdin, stdout, stderr, .. } = call;
            let config = AttachConfig { stdin, stdout, stderr };
            let session = self.0.attach(&container, config).await.map_err(|e| refusal(&e))?;
            let end = Box::pin(async move {
                match session.end.await {
                    Ok(AttachEnd::Exited(_) | AttachEnd::InputEnded) => End::Detached,
                    Ok(AttachEnd::LetGo(why)) => End::Failed(why),
                    Err(error) => failed(&error),
                }
            });
            let resize = session.terminal.map(resize);
            let (stdin, stdout, stderr) = (session.stdin, session.stdout, session.stderr);
            Ok(Session { stdin, stdout, stderr, resize, end })
        })
    }

    fn forward<'a>(
        &'a self,
        pod: &'a str,
        port: u16,
    ) -> BoxFuture<'a, std::result::Result<Box<dyn Duplex>, Refusal>> {
        Box::pin(async move {
            let stream = self.0.forward(pod, port).await.map_err(|e| refusal(&e))?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }

    fn gone<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, String> {
        Box::pin(self.0.pod_over(pod))
    }
}

fn resize(terminal: Terminal) -> Resize {
    Box::new(move |Size { width, height }| terminal.resize(width, height))
}

fn failed(error: &Error) -> End {
    // removing a container ends its sessions, and is what somebody wanted
    if error.kind != Kind::WrongState {
        tracing::warn!(error = %message(error), "a session broke");
    }
    End::Failed(message(error))
}

/// The engine's error in the streaming server's words.
fn refusal(error: &Error) -> Refusal {
    let kind = match error.kind {
        Kind::Invalid | Kind::Unsupported => RefusalKind::Invalid,
        Kind::NotFound => RefusalKind::NotFound,
        Kind::WrongState => RefusalKind::WrongState,
        Kind::Unavailable | Kind::Deadline => RefusalKind::Unavailable,
        Kind::Exhausted => RefusalKind::Busy,
        Kind::Exists | Kind::Internal => RefusalKind::Internal,
    };
    tracing::info!(error = %message(error), "a session is refused");
    Refusal::new(kind, message(error))
}

/// The streaming server's refusal to make a URL as the engine's error.
pub(crate) fn refused(refusal: Refusal) -> Error {
    let kind = match refusal.kind {
        RefusalKind::Invalid => Kind::Invalid,
        RefusalKind::NotFound => Kind::NotFound,
        RefusalKind::WrongState => Kind::WrongState,
        RefusalKind::Busy => Kind::Exhausted,
        RefusalKind::Unavailable => Kind::Unavailable,
        RefusalKind::Internal => Kind::Internal,
    };
    Error::new(kind, refusal.message)
}

/// An exec that is possible now.
pub(crate) fn exec(engine: &Engine, request: parse::sessions::ExecRequest) -> Result<Exec> {
    let call = parse::sessions::exec(request)?;
    let (container, _) = running(engine, &call.container)?;
    Ok(Exec { container, ..call })
}

/// An attach that is possible now.
pub(crate) fn attach(engine: &Engine, request: parse::sessions::AttachRequest) -> Result<Attach> {
    let call = parse::sessions::attach(request)?;
    let (container, tty) = running(engine, &call.container)?;
    if call.tty != tty {
        let has = if tty { "has a terminal" } else { "has no terminal" };
        let text = format!("tty: container {} {has}, and it must be asked for as it is", call.container);
        return Err(Error::new(Kind::Invalid, text));
    }
    Ok(Attach { container, ..call })
}

/// A port forwarding that is possible now.
pub(crate) fn forward(engine: &Engine, request: parse::sessions::PortForwardRequest) -> Result<Forward> {
    let call = parse::sessions::forward(request)?;
    let status = engine.pod_status(&call.pod)?;
    if status.state != PodState::Ready {
        return Err(Error::new(Kind::WrongState, format!("pod {} is not ready", status.id.short())));
    }
    Ok(Forward { pod: status.id.into(), ..call })
}

/// The whole id of a running container, and whether it has a terminal.
fn running(engine: &Engine, id: &str) -> Result<(String, bool)> {
    let status = engine.container_status(id)?;
    if !matches!(status.state, ContainerState::Running { .. }) {
        return Err(Error::new(Kind::WrongState, format!("container {} does not run", status.id.short())));
    }
    Ok((status.id.into(), status.config.tty))
}
