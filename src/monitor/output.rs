//! What a container writes, on its way to its log.
//!
//! Two pipes (or one terminal) are read into the log file through the loop's buffers: one write(2) for each read
//! batch; attached clients get a copy (`clients`). While the log waits for the disk both are paused: taken out of the loop,
//! so that an end of the pipe does not wake it over and over. The other ends belong to the container; grandchildren may hold
//! them after its end.
//!
//! A terminal is kept open on its user's side too until the container ends: a program may close all of its own
//! descriptors and open the terminal again, which must not look like the end of its output.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::clients::{Client, Fallen};
use crate::events::{Events, Key, Source, Timer};
use crate::lines::{self, Lines, Stream};
use crate::log::Log;

/// Most bytes read at once.
const BATCH: usize = 64 << 10;

/// Write to the log whenever so many bytes of lines are ready (a batch of empty lines is 45 times its size).
const WRITE: usize = 256 << 10;

/// How long a log that found its disk full waits before it tries again.
const RETRY: Duration = Duration::from_millis(200);

/// Memory that all containers of the loop share; given back when the pod is quiet.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    read: Vec<u8>,
    lines: Vec<u8>,
}

impl Buffers {
    /// The buffer for reading.
    pub(crate) fn read(&mut self) -> &mut [u8] {
        self.read.resize(BATCH, 0);
        &mut self.read
    }
}

/// One stream that is still open somewhere.
#[derive(Debug)]
struct Tap {
    stream: Stream,
    source: OwnedFd,
    lines: Lines,
}

/// The streams of one container and its log.
#[derive(Debug)]
pub(crate) struct Output {
    /// `None`: what is read is thrown away.
    log: Option<Log>,
    taps: Vec<Tap>,
    /// The container's side of its terminal, while the container runs.
    terminal: Option<OwnedFd>,
    /// In the loop; false before the start, and while the log waits.
    flowing: bool,
    clients: Vec<Client>,
    /// Clients that could not be kept and have not been told yet.
    fallen: Vec<(Key, Fallen)>,
}

/// What came of reading once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// So many bytes.
    Some(usize),
    /// Nothing there now.
    Empty,
    /// Nobody can write any more.
    End,
}

impl Output {
    pub(crate) fn new(log: Option<Log>, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Output> {
        let taps = vec![tap(Stream::Stdout, stdout)?, tap(Stream::Stderr, stderr)?];
        let (clients, fallen) = (Vec::new(), Vec::new());
        Ok(Output { log, taps, terminal: None, flowing: false, clients, fallen })
    }

    /// The container has a terminal: that is its only output.
    pub(crate) fn use_console(&mut self, master: OwnedFd) -> io::Result<()> {
        self.terminal = Some(sys::tty::peer(master.as_fd())?);
        self.taps = vec![tap(Stream::Stdout, master)?];
        Ok(())
    }

    /// The master of the terminal of a container that runs; `None`: it has none.
    pub(crate) fn console(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().and(self.taps.first()).map(|tap| tap.source.as_fd())
    }

    // ---- clients

    /// One more client, from now on.
    pub(crate) fn admit(&mut self, mut client: Client, events: &Events) {
        // a stream that has ended already
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.taps.iter().any(|tap| tap.stream == stream) {
                client.end(stream, events);
            }
        }
        self.clients.push(client);
    }

    /// The pipe of a client that is behind takes more.
    pub(crate) fn catch_up(&mut self, peer: Key, stream: Stream, events: &Events, buffers: &mut Buffers) {
        let Some(at) = self.clients.iter().position(|client| client.peer == peer) else { return };
        if let Err(fallen) = self.clients[at].catch_up(stream, buffers.read(), events) {
            self.drop_client(at, fallen, events);
        }
    }

    /// A client has left.
    pub(crate) fn forget_client(&mut self, peer: Key, events: &Events) {
        if let Some(at) = self.clients.iter().position(|client| client.peer == peer) {
            self.clients.remove(at).leave(events);
        }
    }

    fn drop_client(&mut self, at: usize, fallen: Fallen, events: &Events) {
        let mut client = self.clients.remove(at);
        client.leave(events);
        self.fallen.push((client.peer, fallen));
    }

    /// Clients that could not be kept, and why: they are to be told.
    pub(crate) fn take_fallen(&mut self) -> Vec<(Key, Fallen)> {
        std::mem::take(&mut self.fallen)
    }

    /// The container has ended and was drained: its clients, of which some may have to catch up.
    pub(crate) fn dismiss(&mut self, events: &Events) -> Vec<Client> {
        let mut clients = std::mem::take(&mut self.clients);
        for client in &mut clients {
            client.end(Stream::Stdout, events);
            client.end(Stream::Stderr, events);
        }
        clients
    }

    fn pass_on(&mut self, stream: Stream, data: &[u8], events: &Events) {
        let mut at = 0;
        while at < self.clients.len() {
            match self.clients[at].pass(stream, data, events) {
                Ok(()) => at += 1,
                Err(fallen) => self.drop_client(at, fallen, events),
            }
        }
    }

    // ---- reading

    /// Let the loop tell when there is something to read.
    pub(crate) fn flow(&mut self, key: Key, events: &Events) -> io::Result<()> {
        if !self.flowing {
            for tap in &self.taps {
                events.add(&tap.source, Source::Output(key, tap.stream))?;
            }
            self.flowing = true;
        }
        Ok(())
    }

    fn pause(&mut self, events: &Events) {
        if std::mem::take(&mut self.flowing) {
            self.taps.iter().for_each(|tap| events.remove(&tap.source));
        }
    }

    /// A stream is readable: read one batch.
    pub(crate) fn ready(&mut self, key: Key, stream: Stream, events: &mut Events, buffers: &mut Buffers) {
        if self.read(stream, events, buffers) == Read::End {
            self.end(stream, events, buffers);
        }
        self.wait_if_stuck(key, events);
    }

    fn wait_if_stuck(&mut self, key: Key, events: &mut Events) {
        if self.flowing && self.log.as_ref().is_some_and(Log::is_stuck) {
            self.pause(events);
            events.arm(RETRY, Timer::Log(key));
        }
    }

    /// The log may try again to write what waits.
    pub(crate) fn retry(&mut self, key: Key, events: &mut Events) -> io::Result<()> {
        if self.log.as_mut().is_none_or(Log::flush) {
            return self.flow(key, events);
        }
        events.arm(RETRY, Timer::Log(key));
        Ok(())
    }

    /// The container has ended: log what its pipes hold now, also an unfinished line. Others may go on writing.
    pub(crate) fn drain(&mut self, key: Key, events: &mut Events, buffers: &mut Buffers) {
        self.terminal = None;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut left = self.capacity(stream);
            while left > 0 && !self.log.as_ref().is_some_and(Log::is_stuck) {
                match self.read(stream, events, buffers) {
                    Read::Some(count) => left = left.saturating_sub(count),
                    Read::Empty => break,
                    Read::End => {
                        self.end(stream, events, buffers);
                        break;
                    }
                }
            }
        }
        let time = lines::timestamp(lines::now());
        self.taps.iter_mut().for_each(|tap| tap.lines.show(&time, &mut buffers.lines));
        self.write(buffers);
        self.wait_if_stuck(key, events);
    }

    /// The container is being removed: log what is there, finish all lines, let go of the streams.
    pub(crate) fn close(&mut self, key: Key, events: &mut Events, buffers: &mut Buffers) {
        self.drain(key, events, buffers);
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.end(stream, events, buffers);
        }
    }

    /// Go on in a new file of the same name.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }

    /// How much a stream may hold at once: after so many bytes, what comes was written after the drain began.
    fn capacity(&self, stream: Stream) -> usize {
        let tap = self.taps.iter().find(|tap| tap.stream == stream);
        tap.map_or(0, |tap| {
            fcntl(&tap.source, FcntlArg::F_GETPIPE_SZ)
                .map_or(BATCH, |size| usize::try_from(size).unwrap_or(BATCH))
        })
    }

    fn read(&mut self, stream: Stream, events: &Events, buffers: &mut Buffers) -> Read {
        let Some(tap) = self.taps.iter_mut().find(|tap| tap.stream == stream) else { return Read::Empty };
        buffers.read.resize(BATCH, 0);
        let count = match nix::unistd::read(&tap.source, &mut buffers.read) {
            // A terminal ends with EIO when its last user is gone, or was sent away by vhangup(2).
            Err(Errno::EIO) if self.terminal.is_some() => {
                self.terminal = sys::tty::peer(tap.source.as_fd()).ok();
                return if self.terminal.is_some() { Read::Empty } else { Read::End };
            }
            Ok(0) | Err(Errno::EIO) => return Read::End,
            Ok(count) => count,
            Err(_) => return Read::Empty,
        };
        if let Some(log) = &mut self.log {
            let time = lines::timestamp(lines::now());
            // Cut so that the lines of one part stay near WRITE, also when all of them are empty.
            for part in buffers.read[..count].chunks(BATCH / 8) {
                tap.lines.push(part, &time, &mut buffers.lines);
                if buffers.lines.len() >= WRITE {
                    log.append(&buffers.lines);
                    buffers.lines.clear();
                }
            }
        }
        self.write(buffers);
        self.pass_on(stream, &buffers.read[..count], events);
        Read::Some(count)
    }

    fn end(&mut self, stream: Stream, events: &Events, buffers: &mut Buffers) {
        let Some(at) = self.taps.iter().position(|tap| tap.stream == stream) else { return };
        let mut tap = self.taps.remove(at);
        events.remove(&tap.source);
        tap.lines.finish(&lines::timestamp(lines::now()), &mut buffers.lines);
        self.write(buffers);
        self.clients.iter_mut().for_each(|client| client.end(stream, events));
    }

    fn write(&mut self, buffers: &mut Buffers) {
        if let Some(log) = &mut self.log
            && !buffers.lines.is_empty()
        {
            log.append(&buffers.lines);
        }
        buffers.lines.clear();
    }
}

fn tap(stream: Stream, source: OwnedFd) -> io::Result<Tap> {
    let flags = OFlag::from_bits_retain(fcntl(source.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(source.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(Tap { stream, source, lines: Lines::new(stream) })
}
