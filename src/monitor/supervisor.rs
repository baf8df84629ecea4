//! The monitor's loop: one thread, one epoll, no blocking call.
//!
//! It owns the children of one pod: their pipes, logs and exit records; and it serves the daemon's requests. It needs nobody:
//! the daemon may be killed and come back at any time. What must stay true:
//!
//! * A log line is written once, in the order of its stream; reading stops while the disk is full.
//! * An exit is on disk before anyone hears of it, and what the process wrote before is in the log by then.
//! * A client can neither stop the loop nor see another's replies; it is closed when it breaks the rules.
//! * Everything that was made is removed by Delete or Shutdown, however often that takes.
//!
//! `requests` holds what clients ask for, `attached` those who take part in a container's streams, `exits` what children do,
//! `removal` the end of containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use oci::ContainerId;

use crate::attached::{Farewell, Leaving};
use crate::container::Container;
use crate::events::{Event, Events, Key, Source, Timer};
use crate::output::Buffers;
use crate::peer::{Heard, Peer, Sent};
use crate::protocol::{Failure, Reply};
use crate::reaper::Reaper;
use crate::record;
use crate::sandbox;
use crate::session::Session;

/// How long a client may take to say its request.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// After so long without work the memory of the last burst is given back.
const IDLE: Duration = Duration::from_secs(2);

/// Most clients at once.
const MAX_PEERS: usize = 256;

/// How a monitor is started.
#[derive(Debug)]
pub struct Options {
    /// The pod's run directory, absolute.
    pub dir: PathBuf,
    /// Directory of compiled seccomp filters.
    pub seccomp_cache: PathBuf,
    /// Told "ok" when the monitor serves, or why it does not.
    pub ready: OwnedFd,
}

/// The state of the loop.
pub(crate) struct Supervisor {
    pub(crate) dir: PathBuf,
    pub(crate) seccomp_cache: PathBuf,
    pub(crate) events: Events,
    listener: UnixListener,
    children: SignalFd,
    peers: BTreeMap<Key, Peer>,
    pub(crate) watchers: BTreeSet<Key>,
    pub(crate) containers: BTreeMap<Key, Container>,
    pub(crate) sessions: BTreeMap<Key, Session>,
    /// Clients of containers that have ended, on their way to the end of the output.
    pub(crate) leaving: Vec<Leaving>,
    /// Children that ended before the executor told of them, while it is about to.
    pub(crate) unclaimed: BTreeMap<i32, i32>,
    pub(crate) buffers: Buffers,
    /// Init of the pod's PID namespace.
    pub(crate) reaper: Option<Reaper>,
    /// Who asked for the end.
    pub(crate) ending: Option<Vec<Key>>,
    /// All is removed, and some of [`Supervisor::leaving`] still read.
    pub(crate) farewell: Option<Farewell>,
    /// Something happened since the idle timer was armed; `None`: it is not armed.
    busy: Option<bool>,
    keys: Key,
}

/// Be the monitor of a pod until it is told to end. Returns why it could not start; the ready descriptor has been told too, by
/// a [`Failure`] in a line where else there is an `ok`.
pub fn run(options: Options) -> Result<(), String> {
    let mut ready = File::from(options.ready);
    match prepare(&options.dir, options.seccomp_cache) {
        Ok(mut supervisor) => {
            // A daemon that is gone will find the socket.
            let _ = ready.write_all(b"ok\n");
            drop(ready);
            supervisor.serve().map_err(|e| format!("wait for events: {e}"))
        }
        Err(failure) => {
            let mut line = serde_json::to_vec(&failure).unwrap_or_default();
            line.push(b'\n');
            let _ = ready.write_all(&line);
            Err(failure.message)
        }
    }
}

fn prepare(dir: &Path, seccomp_cache: PathBuf) -> Result<Supervisor, Failure> {
    let step = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
    // EPERM: it leads a session already.
    let _ = nix::unistd::setsid();
    // started from memory, the kernel would call it by the number of a descriptor
    let _ = nix::sys::prctl::set_name(c"corten-monitor");
    nix::unistd::chdir("/").map_err(|e| step("change to /", &e))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| step("become subreaper", &e))?;
    let children = block_signals().map_err(|e| step("block signals", &e))?;
    let reaper = sandbox::prepare(dir)?;
    let pid = std::process::id() as i32;
    let start = sys::process::start_time(pid).map_err(|e| step("read own start time", &e))?;
    record::write_pid(&dir.join("monitor.pid"), pid, start).map_err(|e| step("write monitor.pid", &e))?;
    let socket = dir.join("monitor.sock");
    let listener = bind(&socket).map_err(|e| step(&format!("listen on {}", socket.display()), &e))?;
    let events = Events::new().map_err(|e| step("make an epoll", &e))?;
    events.add(&listener, Source::Listener).map_err(|e| step("watch the socket", &e))?;
    events.add(children.as_fd(), Source::Children).map_err(|e| step("watch children", &e))?;
    Ok(Supervisor {
        dir: dir.to_owned(),
        seccomp_cache,
        events,
        listener,
        children,
        peers: BTreeMap::new(),
        watchers: BTreeSet::new(),
        containers: BTreeMap::new(),
        sessions: BTreeMap::new(),
        leaving: Vec::new(),
        unclaimed: BTreeMap::new(),
        buffers: Buffers::default(),
        reaper,
        ending: None,
        farewell: None,
        busy: None,
        keys: 0,
    })
}

/// Terminal and service signals must not end a monitor; children are told by a descriptor. New processes start with
/// a clean mask (the executor sees to it).
fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE, Signal::SIGCHLD, Signal::SIGXFSZ]
    {
        set.add(signal);
    }
    set.thread_block()?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = sys::socket::listen(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Supervisor {
    fn serve(&mut self) -> io::Result<()> {
        let mut happened = Vec::new();
        while !self.is_over() {
            self.events.wait(&mut happened)?;
            for event in happened.drain(..) {
                match event {
                    Event::Ready(source, flags) => {
                        self.stay_awake();
                        self.ready(source, flags);
                    }
                    Event::Due(timer) => self.due(timer),
                }
            }
        }
        self.finish();
        Ok(())
    }

    fn ready(&mut self, source: Source, flags: EpollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Children => {
                while matches!(self.children.read_signal(), Ok(Some(_))) {}
                self.reap();
            }
            Source::Peer(key) => self.peer_ready(key, flags),
            Source::Output(key, stream) => {
                if let Some(container) = self.containers.get_mut(&key) {
                    container.output.ready(key, stream, &mut self.events, &mut self.buffers);
                    self.tell_fallen(key);
                }
            }
            Source::Client(peer, stream) => self.client_ready(peer, stream),
            Source::Created(key) => self.created(key),
            Source::Entered(key) => self.entered(key),
        }
    }

    fn due(&mut self, timer: Timer) {
        match timer {
            Timer::Request(key) => {
                if self.peers.get(&key).is_some_and(|peer| !peer.has_asked()) {
                    self.forget_peer(key);
                }
            }
            Timer::Listen => drop(self.events.add(&self.listener, Source::Listener)),
            Timer::Session(key) => self.session_over_time(key),
            Timer::Log(key) => {
                if let Some(container) = self.containers.get_mut(&key)
                    && let Err(error) = container.output.retry(key, &mut self.events)
                {
                    complain(&format!("container {}: watch its output", container.id), &error);
                }
            }
            Timer::Record(key) => self.record_exit(key),
            Timer::Removal(key) => self.remove_step(key),
            Timer::Farewell => self.farewell_due(),
            Timer::Idle => self.idle(),
        }
    }

    /// A number that was never used before.
    pub(crate) fn next_key(&mut self) -> Key {
        self.keys += 1;
        self.keys
    }

    pub(crate) fn find(&self, id: &ContainerId) -> Option<(Key, &Container)> {
        self.containers.iter().find(|(_, c)| c.id == *id).map(|(key, c)| (*key, c))
    }

    fn stay_awake(&mut self) {
        if self.busy.is_none() {
            self.events.arm(IDLE, Timer::Idle);
        }
        self.busy = Some(true);
    }

    fn idle(&mut self) {
        if self.busy == Some(true) {
            self.events.arm(IDLE, Timer::Idle);
            self.busy = Some(false);
        } else {
            self.buffers = Buffers::default();
            sys::memory::trim();
            self.busy = None;
        }
    }

    // ---- clients

    fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors or memory: the connection waits, the loop must not spin for it.
                Err(error) => {
                    complain("accept a connection", &error);
                    self.events.remove(&self.listener);
                    self.events.arm(Duration::from_secs(1), Timer::Listen);
                    return;
                }
            };
            if self.peers.len() >= MAX_PEERS {
                continue;
            }
            let key = self.next_key();
            match Peer::new(stream).and_then(|peer| self.events.add(&peer, Source::Peer(key)).map(|()| peer))
            {
                Ok(peer) => drop(self.peers.insert(key, peer)),
                Err(error) => complain("take a connection", &error),
            }
            self.events.arm(REQUEST_TIME, Timer::Request(key));
            // The request is most often there already.
            self.peer_ready(key, EpollFlags::EPOLLIN);
        }
    }

    fn peer_ready(&mut self, key: Key, flags: EpollFlags) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if flags.contains(EpollFlags::EPOLLOUT) {
            match peer.write() {
                Sent::Gone => return self.forget_peer(key),
                Sent::Waits => {}
                Sent::All => drop(self.events.watch_writing(&*peer, Source::Peer(key), false)),
            }
        }
        if !flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return;
        }
        match peer.hear(self.buffers.read()) {
            Heard::Nothing => {}
            Heard::Gone => self.forget_peer(key),
            Heard::Refuse(failure) => self.answer(key, &Reply::Error(failure)),
            Heard::Request(request, fds) => self.asked(key, request, fds),
        }
    }

    /// Send the last reply of a request.
    pub(crate) fn answer(&mut self, key: Key, reply: &Reply) {
        self.say(key, reply, true);
    }

    /// Send a reply after which more will come.
    pub(crate) fn tell(&mut self, key: Key, reply: &Reply) {
        self.say(key, reply, false);
    }

    /// Send a reply with a descriptor.
    pub(crate) fn tell_with(&mut self, key: Key, reply: &Reply, fd: Option<OwnedFd>) {
        if let (Some(peer), Some(fd)) = (self.peers.get_mut(&key), fd) {
            peer.give(fd);
        }
        self.say(key, reply, false);
    }

    pub(crate) fn refuse(&mut self, key: Key, failure: Failure) {
        self.answer(key, &Reply::Error(failure));
    }

    fn say(&mut self, key: Key, reply: &Reply, last: bool) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match peer.say(reply, last) {
            Sent::All => {}
            Sent::Waits => {
                if self.events.watch_writing(&*peer, Source::Peer(key), true).is_err() {
                    self.forget_peer(key);
                }
            }
            Sent::Gone => self.forget_peer(key),
        }
    }

    fn forget_peer(&mut self, key: Key) {
        if let Some(peer) = self.peers.remove(&key) {
            self.events.remove(&peer);
        }
        self.watchers.remove(&key);
        self.client_left(key);
    }

    // ---- the end

    fn is_over(&mut self) -> bool {
        self.ending.is_some()
            && self.containers.is_empty()
            && self.reaper.is_none()
            && self.clients_are_served()
    }

    fn finish(&mut self) {
        for name in ["reaper.pid", "monitor.sock", "monitor.pid"] {
            if let Err(error) = record::remove(&self.dir.join(name)) {
                complain(&format!("remove {name}"), &error);
            }
        }
        for key in self.ending.take().unwrap_or_default() {
            self.answer(key, &Reply::Done);
        }
    }
}

/// To the monitor's own log. Nobody is told when that cannot be written: its disk may be the full one that is
/// complained of, and `eprintln!` would panic.
pub(crate) fn complain(what: &str, error: &dyn std::fmt::Display) {
    let time = crate::lines::timestamp(crate::lines::now());
    let _ = writeln!(io::stderr(), "{time} {what}: {error}");
}
