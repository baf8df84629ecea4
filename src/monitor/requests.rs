//! What clients ask for: each request is looked at, done or begun, and answered.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use executor::{Command, Create, Stdio};
use nix::fcntl::OFlag;
use oci::ContainerId;

use crate::container::{Container, Phase, Stdin, failure};
use crate::events::{Key, Source, Timer};
use crate::log::Log;
use crate::output::Output;
use crate::protocol::{Exec, Failure, Reply, Request, Start, VERSION};
use crate::session::{Session, SessionPhase};
use crate::supervisor::{Supervisor, complain};

impl Supervisor {
    /// A client has said what it wants.
    pub(crate) fn asked(&mut self, peer: Key, request: Request, fds: Vec<OwnedFd>) {
        let closing =
            self.ending.is_some() && !matches!(request, Request::State | Request::Watch | Request::Shutdown);
        if closing {
            return self.refuse(peer, failure("wrong_state", "the pod is being shut down"));
        }
        match request {
            Request::Start(start) => self.start(peer, start),
            Request::Exec(exec) => self.exec(peer, exec, fds),
            Request::Attach(attach) => self.attach(peer, &attach, fds),
            Request::CloseStdin { container } => {
                let done = self.close_stdin(&container);
                self.answer_with(peer, done);
            }
            Request::Signal { container, signal, all } => {
                let done = self.container(&container).and_then(|c| c.signal(signal, all));
                self.answer_with(peer, done);
            }
            Request::Reopen { container } => {
                let done = self.reopen(&container);
                self.answer_with(peer, done);
            }
            Request::Update { container, resources } => {
                let done = self.update(&container, resources);
                self.answer_with(peer, done);
            }
            Request::Watch => {
                self.watchers.insert(peer);
                let state = self.state();
                self.tell(peer, &state);
            }
            Request::State => {
                let state = self.state();
                self.answer(peer, &state);
            }
            Request::Delete { container } => self.delete(peer, &container),
            Request::Shutdown => self.shut_down(peer),
        }
    }

    fn answer_with(&mut self, peer: Key, done: Result<(), Failure>) {
        match done {
            Ok(()) => self.answer(peer, &Reply::Done),
            Err(failure) => self.refuse(peer, failure),
        }
    }

    fn container(&self, id: &ContainerId) -> Result<&Container, Failure> {
        let found = self.find(id).map(|(_, container)| container);
        found.ok_or_else(|| failure("not_found", format!("no container {id} in this pod")))
    }

    pub(crate) fn container_mut(&mut self, id: &ContainerId) -> Result<&mut Container, Failure> {
        let found = self.containers.values_mut().find(|container| container.id == *id);
        found.ok_or_else(|| failure("not_found", format!("no container {id} in this pod")))
    }

    fn state(&self) -> Reply {
        let containers = self.containers.values().filter_map(|c| c.known().cloned()).collect();
        Reply::State { version: VERSION, containers }
    }

    // ---- start

    /// A repeated request joins the first one, or is told what came of it.
    fn start(&mut self, peer: Key, start: Start) {
        let known = self.containers.values_mut().find(|c| c.id == start.container);
        let Some(container) = known else { return self.create(peer, &start) };
        if container.removal.is_some() {
            let message = format!("container {} is being removed", start.container);
            return self.refuse(peer, failure("wrong_state", message));
        }
        match &mut container.phase {
            Phase::Starting { waiters, .. } => waiters.push(peer),
            Phase::Running { known, .. } | Phase::Ended { known, .. } => {
                let reply = Reply::Started(known.clone());
                self.answer(peer, &reply);
            }
        }
    }

    fn create(&mut self, peer: Key, start: &Start) {
        let key = self.next_key();
        match self.begin(key, peer, start) {
            Ok(container) => drop(self.containers.insert(key, container)),
            Err(failure) => self.refuse(peer, failure),
        }
    }

    fn begin(&mut self, key: Key, peer: Key, start: &Start) -> Result<Container, Failure> {
        let io = |what: &str, e: &std::io::Error| {
            failure("internal", format!("{what}: {}", executor::errno_text(e)))
        };
        let log = match &start.log {
            Some(path) => Some(Log::open(path).map_err(|e| io(&format!("open log {}", path.display()), &e))?),
            None => None,
        };
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| io("make a pipe", &e.into()));
        let (out, stdout) = pipe()?;
        let (err, stderr) = pipe()?;
        let (stdin, ours) = if start.stdin {
            let (theirs, ours) = pipe()?;
            (theirs, Some(ours))
        } else {
            (null().map_err(|e| io("open /dev/null", &e))?, None)
        };
        let output = Output::new(log, out, err).map_err(|e| io("set up pipes", &e))?;
        let pending = executor::create(Create {
            id: start.container.as_str(),
            bundle: start.bundle.as_path().into(),
            stdio: Stdio { stdin, stdout, stderr },
            seccomp_cache: &self.seccomp_cache,
            gate: None,
            preserve_fds: 0,
            on_cgroup: None,
        })?;
        self.events.add(&pending, Source::Created(key)).map_err(|e| io("watch the creation", &e))?;
        Ok(Container {
            id: start.container.clone(),
            bundle: start.bundle.clone(),
            output,
            stdin: Stdin { asked: start.stdin, once: start.stdin_once, pipe: ours, holder: None },
            phase: Phase::Starting { pending, waiters: vec![peer] },
            removal: None,
        })
    }

    // ---- exec

    fn exec(&mut self, peer: Key, exec: Exec, fds: Vec<OwnedFd>) {
        let key = self.next_key();
        match self.enter(key, peer, &exec, fds) {
            Ok(mut session) => {
                if exec.timeout_ms > 0 {
                    let after = Duration::from_millis(exec.timeout_ms);
                    session.timer = Some(self.events.arm(after, Timer::Session(key)));
                }
                self.sessions.insert(key, session);
            }
            Err(failure) => self.refuse(peer, failure),
        }
    }

    fn enter(&mut self, key: Key, peer: Key, exec: &Exec, fds: Vec<OwnedFd>) -> Result<Session, Failure> {
        let stdio = if exec.tty { no_stdio(&fds)? } else { stdio(fds)? };
        if exec.args.is_empty() {
            return Err(failure("invalid", "exec needs a command"));
        }
        let container = self.container(&exec.container)?;
        let process = container.running()?;
        let pending = executor::exec(executor::Exec {
            id: exec.container.as_str(),
            init: process.pidfd.as_fd(),
            cgroup: &process.cgroup,
            bundle: container.bundle.as_path().into(),
            command: Command::Args { args: &exec.args, terminal: exec.tty },
            stdio,
            seccomp_cache: &self.seccomp_cache,
            preserve_fds: 0,
        })?;
        self.events
            .add(&pending, Source::Entered(key))
            .map_err(|e| failure("internal", format!("watch the new process: {e}")))?;
        Ok(Session {
            container: exec.container.clone(),
            peer: Some(peer),
            timer: None,
            timed_out: false,
            phase: SessionPhase::Entering(pending),
        })
    }

    /// A connection is gone: an exec session that it waited for is killed, a container that it took part in goes on.
    pub(crate) fn client_left(&mut self, peer: Key) {
        self.detach(peer);
        let Some((key, session)) = self.sessions.iter_mut().find(|(_, s)| s.peer == Some(peer)) else {
            return;
        };
        session.peer = None;
        let key = *key;
        match session.phase {
            SessionPhase::Running(_) => session.kill(),
            // Dropping what is being made kills it.
            SessionPhase::Entering(_) => self.forget_session(key),
        }
    }

    // ---- the small ones

    fn reopen(&mut self, id: &ContainerId) -> Result<(), Failure> {
        self.container_mut(id)?.output.reopen().map_err(|e| {
            failure("internal", format!("reopen the log of container {id}: {}", executor::errno_text(&e)))
        })
    }

    fn update(&mut self, id: &ContainerId, resources: serde_json::Value) -> Result<(), Failure> {
        let process = self.container(id)?.running()?;
        let resources = serde_json::from_value(resources)
            .map_err(|e| failure("invalid", format!("resources for container {id}: {e}")))?;
        Ok(executor::update(&process.cgroup, &resources)?)
    }

    pub(crate) fn complain_of(&self, id: &ContainerId, what: &str, error: &dyn std::fmt::Display) {
        complain(&format!("container {id}: {what}"), error);
    }
}

/// The streams of an exec without a terminal.
fn stdio(fds: Vec<OwnedFd>) -> Result<Stdio, Failure> {
    match <[OwnedFd; 3]>::try_from(fds) {
        Ok([stdin, stdout, stderr]) => Ok(Stdio { stdin, stdout, stderr }),
        Err(_) => Err(failure("invalid", "exec needs three descriptors: stdin, stdout, stderr")),
    }
}

/// What stands for the streams of a process that has a terminal.
fn no_stdio(fds: &[OwnedFd]) -> Result<Stdio, Failure> {
    if !fds.is_empty() {
        return Err(failure("invalid", "exec with a terminal takes no descriptors"));
    }
    let null =
        || null().map_err(|e| failure("internal", format!("open /dev/null: {}", executor::errno_text(&e))));
    Ok(Stdio { stdin: null()?, stdout: null()?, stderr: null()? })
}

fn null() -> std::io::Result<OwnedFd> {
    Ok(std::fs::File::open(Path::new("/dev/null"))?.into())
}
