//! A client's connection as the monitor sees it.
//!
//! Reading and writing never block. What a client does not take stays in a buffer with a bound; a client that exceeds it,
//! sends what is not the protocol, or says more than one request is dropped: it can hurt only itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::Deserialize;

use crate::frame::{self, MAX_REQUEST};
use crate::protocol::{Failure, Reply, Request};

/// Most bytes that wait for a client that does not read.
const MAX_OUTPUT: usize = 256 << 10;

/// Most descriptors that a request may carry.
const MAX_FDS: usize = 3;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: UnixStream,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    /// Goes with the next byte that is written.
    gift: Option<OwnedFd>,
    /// Its request was read; anything more is too much.
    asked: bool,
    /// Close when the output is written.
    last: bool,
}

/// What came of reading.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Not all of a request yet.
    Nothing,
    /// All of it.
    Request(Request, Vec<OwnedFd>),
    /// A frame that is no request we know: answer this, then close.
    Refuse(Failure),
    /// It left, or broke the rules: forget it.
    Gone,
}

/// What came of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// All is written; the connection stays.
    All,
    /// It must be asked again when the client takes more.
    Waits,
    /// It left, or had its last reply: forget it.
    Gone,
}

/// For requests of a newer daemon: only the name.
#[derive(Deserialize)]
struct Named {
    request: String,
}

const KNOWN: &[&str] = &[
    "start",
    "exec",
    "attach",
    "close_stdin",
    "signal",
    "reopen",
    "watch",
    "state",
    "update",
    "delete",
    "shutdown",
];

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Peer {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Peer> {
        stream.set_nonblocking(true)?;
        let (input, fds, output) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Peer { stream, input, fds, output, gift: None, asked: false, last: false })
    }

    pub(crate) fn has_asked(&self) -> bool {
        self.asked
    }

    /// Read what is there, through the loop's buffer.
    pub(crate) fn hear(&mut self, buffer: &mut [u8]) -> Heard {
        loop {
            match sys::socket::receive(self.stream.as_fd(), buffer, &mut self.fds) {
                Ok(0) => return Heard::Gone,
                Ok(_) if self.asked => return Heard::Gone,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
                Err(_) => return Heard::Gone,
            }
            match frame::text(&self.input, MAX_REQUEST) {
                _ if self.fds.len() > MAX_FDS => return Heard::Gone,
                Err(_) => return Heard::Gone,
                Ok(None) => {}
                Ok(Some(text)) if text.len() + 4 != self.input.len() => return Heard::Gone,
                Ok(Some(text)) => {
                    let parsed = parse(text);
                    self.asked = true;
                    self.input = Vec::new();
                    let fds = std::mem::take(&mut self.fds);
                    return parsed.map_or_else(Heard::Refuse, |request| Heard::Request(request, fds));
                }
            }
        }
    }

    /// Send a descriptor with the next reply.
    pub(crate) fn give(&mut self, fd: OwnedFd) {
        self.gift = Some(fd);
    }

    /// Queue a reply and write what can be written.
    pub(crate) fn say(&mut self, reply: &Reply, last: bool) -> Sent {
        let Ok(frame) = frame::encode(reply) else { return Sent::Gone };
        if self.output.len() + frame.len() > MAX_OUTPUT {
            return Sent::Gone;
        }
        self.output.extend_from_slice(&frame);
        self.last |= last;
        self.write()
    }

    /// Write what waits.
    pub(crate) fn write(&mut self) -> Sent {
        while !self.output.is_empty() {
            let gift = self.gift.as_ref().map(AsFd::as_fd);
            match sys::socket::send(self.stream.as_fd(), &self.output, gift.as_slice()) {
                Ok(0) => return Sent::Gone,
                Ok(count) => {
                    self.gift = None;
                    self.output.drain(..count);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Sent::Waits,
                Err(_) => return Sent::Gone,
            }
        }
        self.output = Vec::new();
        if self.last { Sent::Gone } else { Sent::All }
    }
}

fn parse(text: &[u8]) -> Result<Request, Failure> {
    serde_json::from_slice(text).map_err(|error| {
        let unknown =
            serde_json::from_slice::<Named>(text).ok().filter(|n| !KNOWN.contains(&n.request.as_str()));
        match unknown {
            Some(named) => Failure {
                kind: "unsupported".to_owned(),
                message: format!("this monitor does not know the request {:?}", named.request),
            },
            None => Failure { kind: "invalid".to_owned(), message: format!("request: {error}") },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pair() -> (UnixStream, Peer) {
        let (a, b) = UnixStream::pair().expect("pair");
        (a, Peer::new(b).expect("peer"))
    }

    fn framed(text: &str) -> Vec<u8> {
        let mut frame = (text.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    #[test]
    fn a_request_in_pieces() {
        let (mut client, mut peer) = pair();
        let mut buffer = [0; 64];
        let bytes = frame::encode(&Request::Watch).expect("frame");
        for byte in &bytes[..bytes.len() - 1] {
            client.write_all(&[*byte]).expect("write");
            assert!(matches!(peer.hear(&mut buffer), Heard::Nothing));
        }
        client.write_all(&bytes[bytes.len() - 1..]).expect("write");
        assert!(matches!(peer.hear(&mut buffer), Heard::Request(Request::Watch, _)));
    }

    #[test]
    fn rule_breakers_are_dropped() {
        for bytes in [b"\xff\xff\xff\xffx".to_vec(), [framed("{}"), b"more".to_vec()].concat()] {
            let (mut client, mut peer) = pair();
            client.write_all(&bytes).expect("write");
            assert!(matches!(peer.hear(&mut [0; 64]), Heard::Gone), "{bytes:?}");
        }
    }

    #[test]
    fn unknown_requests_are_told_from_bad_ones() {
        for (text, kind) in [
            (r#"{"request":"dance","n":1}"#, "unsupported"),
            (r#"{"request":"signal"}"#, "invalid"),
            ("not json", "invalid"),
            ("[]", "invalid"),
        ] {
            let (mut client, mut peer) = pair();
            client.write_all(&framed(text)).expect("write");
            let heard = peer.hear(&mut [0; 64]);
            assert!(matches!(&heard, Heard::Refuse(f) if f.kind == kind), "{text}: {heard:?}");
        }
    }

    #[test]
    fn every_request_is_known_by_name() {
        let container = oci::ContainerId::from_random([1; 32]);
        for request in [
            Request::Watch,
            Request::State,
            Request::Shutdown,
            Request::CloseStdin { container: container.clone() },
            Request::Delete { container },
        ] {
            let frame = frame::encode(&request).expect("frame");
            let named: Named = serde_json::from_slice(&frame[4..]).expect("named");
            assert!(KNOWN.contains(&named.request.as_str()), "{}", named.request);
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped() {
        let (_client, mut peer) = pair();
        let reply = Reply::Error(Failure { kind: "internal".to_owned(), message: "x".repeat(10_000) });
        let count = (0..1000).take_while(|_| peer.say(&reply, false) != Sent::Gone).count();
        assert!(count < 1000);
        assert!(peer.output.len() <= MAX_OUTPUT);
    }
}
