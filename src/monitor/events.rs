//! What the monitor waits for: descriptors and times, in one epoll loop.
//!
//! Every source is a small value that travels through the kernel as the event's number, so an event for something
//! that is gone meanwhile finds nothing and is ignored: keys are never used twice. Timers need no descriptor: the next one is the
//! timeout of the wait.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::lines::Stream;

/// Number of a connection, container or exec session; never used twice.
pub(crate) type Key = u32;

/// A descriptor that became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Somebody connects.
    Listener,
    /// A child ended.
    Children,
    /// A client said something, left, or takes more.
    Peer(Key),
    /// A container wrote something.
    Output(Key, Stream),
    /// A client that is behind with a stream takes more, or has closed it.
    Client(Key, Stream),
    /// The outcome of a container's creation is there.
    Created(Key),
    /// The outcome of an exec is there.
    Entered(Key),
}

/// A time that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// A client that has not said all of its request.
    Request(Key),
    /// An exec session is over its time.
    Session(Key),
    /// Connections are accepted again after a shortage of descriptors.
    Listen,
    /// A log waits for the disk.
    Log(Key),
    /// An exit record waits for the disk.
    Record(Key),
    /// A container is to be removed.
    Removal(Key),
    /// Clients that are still to get the rest of the output may be waited for no longer.
    Farewell,
    /// Nothing happened for a while.
    Idle,
}

/// Handle of an armed timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Armed(Instant, u64);

/// What happened.
pub(crate) enum Event {
    Ready(Source, EpollFlags),
    Due(Timer),
}

/// The loop's waiting place.
pub(crate) struct Events {
    epoll: Epoll,
    timers: BTreeMap<Armed, Timer>,
    count: u64,
}

impl Source {
    fn pack(self) -> u64 {
        let (kind, key) = match self {
            Source::Listener => (0, 0),
            Source::Children => (1, 0),
            Source::Peer(key) => (2, key),
            Source::Output(key, Stream::Stdout) => (3, key),
            Source::Output(key, Stream::Stderr) => (4, key),
            Source::Created(key) => (5, key),
            Source::Entered(key) => (6, key),
            Source::Client(key, Stream::Stdout) => (7, key),
            Source::Client(key, Stream::Stderr) => (8, key),
        };
        (kind << 32) | u64::from(key)
    }

    fn unpack(number: u64) -> Source {
        let key = number as u32;
        match number >> 32 {
            0 => Source::Listener,
            1 => Source::Children,
            2 => Source::Peer(key),
            3 => Source::Output(key, Stream::Stdout),
            4 => Source::Output(key, Stream::Stderr),
            5 => Source::Created(key),
            7 => Source::Client(key, Stream::Stdout),
            8 => Source::Client(key, Stream::Stderr),
            _ => Source::Entered(key),
        }
    }
}

impl Events {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Events { epoll, timers: BTreeMap::new(), count: 0 })
    }

    /// Tell when `fd` is readable (or has ended). It must be taken out with [`Events::remove`] before it is closed
    /// if another process holds a copy of it.
    pub(crate) fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.pack()))?)
    }

    /// Tell when `fd` takes data (or nobody reads it any more).
    pub(crate) fn add_writing(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLOUT, source.pack()))?)
    }

    /// Tell also, or no longer, when `fd` takes data again.
    pub(crate) fn watch_writing(&self, fd: impl AsFd, source: Source, on: bool) -> io::Result<()> {
        let flags = if on { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(flags, source.pack()))?)
    }

    /// Tell nothing about `fd` any more.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // ENOENT: it was not in (its stream is paused).
        let _ = self.epoll.delete(fd);
    }

    pub(crate) fn arm(&mut self, after: Duration, timer: Timer) -> Armed {
        self.count += 1;
        // A time too far away to be expressed is as good as a year.
        let now = Instant::now();
        let at = now.checked_add(after).unwrap_or(now + Duration::from_secs(365 * 86_400));
        let armed = Armed(at, self.count);
        self.timers.insert(armed, timer);
        armed
    }

    pub(crate) fn disarm(&mut self, armed: Armed) {
        self.timers.remove(&armed);
    }

    /// Wait for something; appends all that happened.
    pub(crate) fn wait(&mut self, happened: &mut Vec<Event>) -> io::Result<()> {
        let timeout = match self.timers.keys().next() {
            None => EpollTimeout::NONE,
            // Rounded up: a timer is never early, and the loop never spins for the last fraction.
            Some(Armed(at, _)) => {
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
                EpollTimeout::try_from(Duration::from_millis(left.as_millis() as u64))
                    .unwrap_or(EpollTimeout::MAX)
            }
        };
        let mut ready = [EpollEvent::empty(); 16];
        let count = match self.epoll.wait(&mut ready, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        happened.extend(ready[..count].iter().map(|e| Event::Ready(Source::unpack(e.data()), e.events())));
        let now = Instant::now();
        while let Some(first) = self.timers.first_entry().filter(|t| t.key().0 <= now) {
            happened.push(Event::Due(first.remove()));
        }
        Ok(())
    }
}
