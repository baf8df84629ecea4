//! Taking part in a container's streams: who attaches, who is let go, who leaves.
//!
//! Output is copied to each client (`clients`). Input does not pass the monitor: a client gets a copy of our end of the stdin
//! pipe, or of the terminal's master, and writes to the container itself. With `stdin_once` only the first client gets one; when that
//! client's input ends, or it leaves, our own is closed, and the container reads the end.
//!
//! A client that is behind when its container ends gets the rest as it reads, for as long as the monitor lives; and when all else
//! is removed the monitor lives on for those that still read ([`Farewell`]). What must never happen: a pod that cannot be removed
//! because a client does not read.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use oci::ContainerId;

use crate::clients::Client;
use crate::container::{Container, Phase, failure};
use crate::events::{Key, Timer};
use crate::lines::Stream;
use crate::protocol::{Attach, Failure, Reply};
use crate::supervisor::Supervisor;

/// A client that has yet to read the rest of a container's output.
#[derive(Debug)]
pub(crate) struct Leaving {
    client: Client,
    /// What it is told then.
    last: Reply,
}

/// Before the monitor ends, a client that reads nothing for so long loses the rest…
const QUIET: Duration = Duration::from_millis(500);

/// …and after this one that reads too slowly: whoever asked for the end waits for it.
const LONGEST: Duration = Duration::from_secs(2);

/// The last moments of a monitor.
#[derive(Debug)]
pub(crate) struct Farewell {
    until: Instant,
    /// Somebody has read since this was looked at last.
    read: bool,
}

impl Supervisor {
    /// A client wants to take part.
    pub(crate) fn attach(&mut self, peer: Key, attach: &Attach, fds: Vec<OwnedFd>) {
        match self.admit(peer, attach, fds) {
            Ok((reply, fd)) => self.tell_with(peer, &reply, fd),
            Err(failure) => self.refuse(peer, failure),
        }
    }

    fn admit(
        &mut self,
        peer: Key,
        attach: &Attach,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Option<OwnedFd>), Failure> {
        let wanted: Vec<Stream> = [(attach.stdout, Stream::Stdout), (attach.stderr, Stream::Stderr)]
            .into_iter()
            .filter_map(|(wanted, stream)| wanted.then_some(stream))
            .collect();
        if wanted.len() != fds.len() {
            return Err(failure("invalid", "attach needs a descriptor for each output that it asks for"));
        }
        let container =
            self.containers.values_mut().find(|c| c.id == attach.container).ok_or_else(|| {
                failure("not_found", format!("no container {} in this pod", attach.container))
            })?;
        container.running()?;
        let io = |e: std::io::Error| {
            let text = executor::errno_text(&e);
            failure("internal", format!("attach to container {}: {text}", attach.container))
        };
        let client = Client::new(peer, wanted.into_iter().zip(fds).collect()).map_err(io)?;
        let lent = lend(container, peer, attach.stdin).map_err(io)?;
        container.output.admit(client, &self.events);
        Ok(lent)
    }

    /// A client's input has ended.
    pub(crate) fn close_stdin(&mut self, id: &ContainerId) -> Result<(), Failure> {
        self.container_mut(id)?.stdin.end();
        Ok(())
    }

    /// A client that was behind takes more.
    pub(crate) fn client_ready(&mut self, peer: Key, stream: Stream) {
        if let Some(at) = self.leaving.iter().position(|leaving| leaving.client.peer == peer) {
            let leaving = &mut self.leaving[at];
            if let Some(farewell) = &mut self.farewell {
                farewell.read = true;
            }
            let caught = leaving.client.catch_up(stream, self.buffers.read(), &self.events);
            if caught.is_err() || leaving.client.has_all() {
                let Leaving { mut client, last } = self.leaving.remove(at);
                client.leave(&self.events);
                self.answer(peer, &last);
            }
            return;
        }
        let keys: Vec<Key> = self.containers.keys().copied().collect();
        for key in keys {
            if let Some(container) = self.containers.get_mut(&key) {
                container.output.catch_up(peer, stream, &self.events, &mut self.buffers);
                self.tell_fallen(key);
            }
        }
    }

    /// Tell those of a container's clients that could not be kept.
    pub(crate) fn tell_fallen(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        for (peer, fallen) in container.output.take_fallen() {
            self.answer(peer, &Reply::Detached { reason: fallen.0 });
        }
    }

    /// A container has ended and its exit is on disk: its clients are told when they have everything.
    pub(crate) fn dismiss_clients(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(last) = last_reply(container) else { return };
        for client in container.output.dismiss(&self.events) {
            if client.has_all() {
                self.answer(client.peer, &last);
            } else {
                self.leaving.push(Leaving { client, last: last.clone() });
            }
        }
    }

    /// Whether none is behind any more. Those that are have little time from now on.
    pub(crate) fn clients_are_served(&mut self) -> bool {
        if !self.leaving.is_empty() && self.farewell.is_none() {
            self.farewell = Some(Farewell { until: Instant::now() + LONGEST, read: false });
            self.events.arm(QUIET, Timer::Farewell);
        }
        self.leaving.is_empty()
    }

    /// Wait on for those that read, or no longer.
    pub(crate) fn farewell_due(&mut self) {
        let Some(farewell) = &mut self.farewell else { return };
        if std::mem::take(&mut farewell.read) && Instant::now() < farewell.until {
            self.events.arm(QUIET, Timer::Farewell);
            return;
        }
        for Leaving { mut client, .. } in std::mem::take(&mut self.leaving) {
            client.leave(&self.events);
            let reason = "the pod was removed before all of the output was read".to_owned();
            self.answer(client.peer, &Reply::Detached { reason });
        }
    }

    /// A client is gone.
    pub(crate) fn detach(&mut self, peer: Key) {
        if let Some(at) = self.leaving.iter().position(|leaving| leaving.client.peer == peer) {
            self.leaving.remove(at).client.leave(&self.events);
        }
        for container in self.containers.values_mut() {
            container.output.forget_client(peer, &self.events);
            if container.stdin.holder == Some(peer) {
                container.stdin.end();
            }
        }
    }
}

/// What a new client gets of a container besides its output.
fn lend(container: &mut Container, peer: Key, stdin: bool) -> std::io::Result<(Reply, Option<OwnedFd>)> {
    if let Some(master) = container.output.console() {
        let stdin = stdin && container.stdin.asked;
        return Ok((Reply::Attached { stdin, terminal: true }, Some(master.try_clone_to_owned()?)));
    }
    let pipe = if stdin { container.stdin.lend(peer)? } else { None };
    Ok((Reply::Attached { stdin: pipe.is_some(), terminal: false }, pipe))
}

/// What clients are told of a container's end.
fn last_reply(container: &Container) -> Option<Reply> {
    let Phase::Ended { known, exit, .. } = &container.phase else { return None };
    if container.removal.is_some() {
        return Some(Reply::Detached { reason: "the container was removed".to_owned() });
    }
    Some(Reply::Exited { container: known.container.clone(), exit: exit.clone() })
}
