//! Clients that take part in a container's output, each through pipes of its own.
//!
//! ```text
//! container ──▶ read once ──▶ log
//!                        ├──▶ pipe of client 1
//!                        └──▶ file in memory ──when it takes more──▶ pipe of client 2
//! ```
//!
//! Nobody waits for a client. What its pipe has no room for goes to a file in memory, and from there on when the client
//! has read; so a burst is not lost on one that is merely slower. One that falls more than [`MOST_BEHIND`] behind is let go. What must
//! never happen: bytes of a stream that reach a client out of order, or with a gap before others.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::events::{Events, Key, Source};
use crate::lines::Stream;

/// Most bytes of a stream that are kept for a client, besides what its pipe holds.
pub(crate) const MOST_BEHIND: u64 = 16 << 20;

/// What was read by a client is given back in pieces of at least this size.
const PIECE: u64 = 1 << 20;

/// A client of a container's output.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its connection.
    pub(crate) peer: Key,
    feeds: Vec<Feed>,
}

/// A client cannot be served any longer: why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fallen(pub(crate) String);

impl Client {
    /// One that wants these streams.
    pub(crate) fn new(peer: Key, pipes: Vec<(Stream, OwnedFd)>) -> io::Result<Client> {
        let feed = |(stream, pipe): (Stream, OwnedFd)| {
            let flags = OFlag::from_bits_retain(fcntl(pipe.as_fd(), FcntlArg::F_GETFL)?);
            fcntl(pipe.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            Ok(Feed { stream, pipe, behind: None, last: false })
        };
        Ok(Client { peer, feeds: pipes.into_iter().map(feed).collect::<io::Result<_>>()? })
    }

    /// Hand it what was just read of a stream.
    pub(crate) fn pass(&mut self, stream: Stream, data: &[u8], events: &Events) -> Result<(), Fallen> {
        let Some(at) = self.feeds.iter().position(|feed| feed.stream == stream) else { return Ok(()) };
        let feed = &mut self.feeds[at];
        match feed.pass(data) {
            Ok(State::Open) => {}
            Ok(State::Closed) => self.close(at, events),
            Ok(State::Waits) => {
                let source = Source::Client(self.peer, stream);
                events.add_writing(&feed.pipe, source).map_err(|e| Fallen(format!("watch it: {e}")))?;
            }
            Err(fallen) => return Err(fallen),
        }
        Ok(())
    }

    /// Its pipe takes more of a stream, or is closed.
    pub(crate) fn catch_up(
        &mut self,
        stream: Stream,
        buffer: &mut [u8],
        events: &Events,
    ) -> Result<(), Fallen> {
        let Some(at) = self.feeds.iter().position(|feed| feed.stream == stream) else { return Ok(()) };
        let feed = &mut self.feeds[at];
        match feed.catch_up(buffer)? {
            State::Waits => {}
            State::Open if feed.last => self.close(at, events),
            State::Open => events.remove(&feed.pipe),
            State::Closed => self.close(at, events),
        }
        Ok(())
    }

    /// Nothing more comes of this stream: the client reads its end after what is left.
    pub(crate) fn end(&mut self, stream: Stream, events: &Events) {
        let Some(at) = self.feeds.iter().position(|feed| feed.stream == stream) else { return };
        self.feeds[at].last = true;
        if self.feeds[at].behind.is_none() {
            self.close(at, events);
        }
    }

    /// Whether it has got all of the streams that have ended.
    pub(crate) fn has_all(&self) -> bool {
        self.feeds.iter().all(|feed| !feed.last)
    }

    /// Let go of it.
    pub(crate) fn leave(&mut self, events: &Events) {
        while !self.feeds.is_empty() {
            self.close(0, events);
        }
    }

    fn close(&mut self, at: usize, events: &Events) {
        let feed = self.feeds.remove(at);
        events.remove(&feed.pipe);
    }
}

/// One stream on its way to a client.
#[derive(Debug)]
struct Feed {
    stream: Stream,
    pipe: OwnedFd,
    /// What its pipe had no room for; `None`: the client has all.
    behind: Option<Behind>,
    /// The stream has ended.
    last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The client has all.
    Open,
    /// Something waits for it; it was not so before ([`Feed::pass`]), or is so still ([`Feed::catch_up`]).
    Waits,
    /// It reads no more.
    Closed,
}

impl Feed {
    fn pass(&mut self, data: &[u8]) -> Result<State, Fallen> {
        if let Some(behind) = &mut self.behind {
            behind.append(data)?;
            return Ok(State::Open);
        }
        let written = match self.write(data) {
            Some(written) if written == data.len() => return Ok(State::Open),
            Some(written) => written,
            None => return Ok(State::Closed),
        };
        let mut behind = Behind::new()?;
        behind.append(&data[written..])?;
        self.behind = Some(behind);
        Ok(State::Waits)
    }

    fn catch_up(&mut self, buffer: &mut [u8]) -> Result<State, Fallen> {
        loop {
            let Some(behind) = &mut self.behind else { return Ok(State::Open) };
            let count = behind.peek(buffer)?;
            if count == 0 {
                self.behind = None;
                return Ok(State::Open);
            }
            let Some(written) = self.write(&buffer[..count]) else { return Ok(State::Closed) };
            if let Some(behind) = &mut self.behind {
                behind.skip(written);
            }
            if written < count {
                return Ok(State::Waits);
            }
        }
    }

    /// Write what the pipe takes; `None`: nobody reads it.
    fn write(&self, data: &[u8]) -> Option<usize> {
        let mut done = 0;
        while done < data.len() {
            match nix::unistd::write(&self.pipe, &data[done..]) {
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return None,
            }
        }
        Some(done)
    }
}

/// What waits for a client: a file in memory, used as a queue.
#[derive(Debug)]
struct Behind {
    file: File,
    /// Given back up to here.
    freed: u64,
    begin: u64,
    end: u64,
}

impl Behind {
    fn new() -> Result<Behind, Fallen> {
        let file = memfd_create("behind", MFdFlags::MFD_CLOEXEC).map_err(|e| unkept(&e.into()))?;
        Ok(Behind { file: file.into(), freed: 0, begin: 0, end: 0 })
    }

    fn append(&mut self, data: &[u8]) -> Result<(), Fallen> {
        if self.end - self.begin + data.len() as u64 > MOST_BEHIND {
            let most = MOST_BEHIND >> 20;
            return Err(Fallen(format!("it reads too slowly: more than {most} MiB of output wait for it")));
        }
        self.file.write_all_at(data, self.end).map_err(|e| unkept(&e))?;
        self.end += data.len() as u64;
        Ok(())
    }

    /// The next bytes; 0: there are none.
    fn peek(&self, buffer: &mut [u8]) -> Result<usize, Fallen> {
        let most = usize::try_from(self.end - self.begin).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.file.read_exact_at(&mut buffer[..most], self.begin).map_err(|e| unkept(&e))?;
        Ok(most)
    }

    fn skip(&mut self, count: usize) {
        self.begin += count as u64;
        let used = self.begin - self.freed;
        if used >= PIECE {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // When that fails, memory is given back later, with the file.
            let _ = fallocate(&self.file, hole, self.freed as i64, used as i64);
            self.freed = self.begin;
        }
    }
}

fn unkept(error: &io::Error) -> Fallen {
    Fallen(format!("it reads slowly, and what waits for it cannot be kept: {}", executor::errno_text(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{PipeReader, Read};

    const KEY: Key = 7;

    fn client() -> (Client, PipeReader, Events) {
        let (reader, writer) = io::pipe().expect("pipe");
        let client = Client::new(KEY, vec![(Stream::Stdout, writer.into())]).expect("client");
        (client, reader, Events::new().expect("events"))
    }

    fn bytes(from: usize, count: usize) -> Vec<u8> {
        (from..from + count).map(|n| (n % 251) as u8).collect()
    }

    /// Read what is there now.
    fn take(reader: &mut PipeReader, most: usize, got: &mut Vec<u8>) {
        let mut buffer = vec![0; most];
        let count = reader.read(&mut buffer).expect("read");
        got.extend_from_slice(&buffer[..count]);
    }

    #[test]
    fn one_that_reads_late_gets_everything_and_then_the_end() {
        let (mut client, mut reader, events) = client();
        let all = bytes(0, 5 << 20);
        for part in all.chunks(10_000) {
            client.pass(Stream::Stdout, part, &events).expect("kept");
        }
        client.pass(Stream::Stderr, b"not for it", &events).expect("ignored");
        client.end(Stream::Stdout, &events);
        assert!(!client.has_all());
        let (mut got, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        while !client.has_all() {
            take(&mut reader, 30_000, &mut got);
            client.catch_up(Stream::Stdout, &mut buffer, &events).expect("kept");
        }
        reader.read_to_end(&mut got).expect("the end");
        assert!(got == all);
    }

    #[test]
    fn one_that_never_reads_falls() {
        let (mut client, _reader, events) = client();
        let part = vec![1; 64 << 10];
        let mut passed = 0;
        let Fallen(why) = loop {
            match client.pass(Stream::Stdout, &part, &events) {
                Ok(()) => passed += part.len() as u64,
                Err(fallen) => break fallen,
            }
            assert!(passed <= MOST_BEHIND + (64 << 10));
        };
        assert!(passed >= MOST_BEHIND && why.contains("16 MiB"), "{passed} {why}");
    }

    #[test]
    fn one_that_closes_its_end_is_not_written_to() {
        let (mut client, reader, events) = client();
        drop(reader);
        client.pass(Stream::Stdout, b"x", &events).expect("no failure");
        assert!(client.feeds.is_empty() && client.has_all());
    }

    #[test]
    fn memory_is_given_back_as_it_is_read() {
        let mut behind = Behind::new().expect("memfd");
        let (part, mut buffer) = (vec![1; 1 << 20], vec![0; 1 << 20]);
        for _ in 0..64 {
            behind.append(&part).expect("append");
            assert_eq!(behind.peek(&mut buffer).expect("peek"), 1 << 20);
            behind.skip(1 << 20);
        }
        use std::os::unix::fs::MetadataExt;
        assert_eq!(behind.file.metadata().expect("stat").blocks(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_turns_keep_the_order(turns in proptest::collection::vec((0usize..70_000, 0usize..70_000), 1..40)) {
            let (mut client, mut reader, events) = client();
            let (mut sent, mut got, mut buffer) = (0, Vec::new(), vec![0; 4096]);
            for (write, read) in turns {
                client.pass(Stream::Stdout, &bytes(sent, write), &events).expect("kept");
                sent += write;
                if read > 0 && got.len() < sent {
                    take(&mut reader, read, &mut got);
                    client.catch_up(Stream::Stdout, &mut buffer, &events).expect("kept");
                }
            }
            client.end(Stream::Stdout, &events);
            while !client.has_all() {
                take(&mut reader, 1 << 16, &mut got);
                client.catch_up(Stream::Stdout, &mut buffer, &events).expect("kept");
            }
            reader.read_to_end(&mut got).expect("the end");
            prop_assert!(got == bytes(0, sent));
        }
    }
}
