//! Netlink without a runtime: a blocking socket, batches of acknowledged requests, dumps, and a walk over attributes.
//!
//! Requests to rtnetlink are written with `netlink-packet-route`; replies are read by [`attributes`], which
//! skips what it does not know, because each new kernel adds attributes. Netfilter's messages, of which we need four,
//! are written with [`Body`]. A whole batch is one `sendto`: for a pod that is the difference between two and a dozen
//! wake-ups.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::Emitable;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// `NLM_F_ROOT | NLM_F_MATCH`: all objects.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`: it is an error when it is there already.
pub(crate) const EXCLUSIVE: u16 = 0x200;

/// One request.
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
    /// What it does, for the error.
    what: String,
    /// An answer that means that nothing needs doing.
    fine: Option<Errno>,
}

impl Message {
    /// A request of the rtnetlink type `kind`.
    pub(crate) fn new(kind: u16, flags: u16, body: &impl Emitable, what: impl Into<String>) -> Message {
        let mut bytes = vec![0; body.buffer_len()];
        body.emit(&mut bytes);
        Message::raw(kind, flags, bytes, what)
    }

    /// A request with a body that is encoded already.
    pub(crate) fn raw(kind: u16, flags: u16, body: Vec<u8>, what: impl Into<String>) -> Message {
        Message { kind, flags, body, what: what.into(), fine: None }
    }

    /// Takes this answer for success.
    pub(crate) fn or(mut self, errno: Errno) -> Message {
        self.fine = Some(errno);
        self
    }
}

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {errno}")]
pub(crate) struct Refused {
    pub(crate) what: String,
    pub(crate) errno: Errno,
}

/// A netlink socket in the network namespace that the thread was in when it was opened.
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket of one netlink family.
    pub(crate) fn open(protocol: SockProtocol) -> Result<Socket, Refused> {
        let refused = |errno| Refused { what: "open a netlink socket".to_owned(), errno };
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(refused)?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(refused)?;
        Ok(Socket { fd, sequence: 0, buffer: vec![0; 64 << 10] })
    }

    /// Sends all requests at once, in order, and waits for all answers. The kernel does each whether or not an earlier
    /// one failed; the first failure is returned.
    pub(crate) fn batch(&mut self, messages: &[Message]) -> Result<(), Refused> {
        self.batch_each(messages).map(drop)
    }

    /// [`batch`](Socket::batch), and for each request whether the kernel did it (it did not where the answer was one that
    /// [`Message::or`] takes for success).
    pub(crate) fn batch_each(&mut self, messages: &[Message]) -> Result<Vec<bool>, Refused> {
        let first = self.sequence + 1;
        let mut bytes = Vec::with_capacity(1024);
        for message in messages {
            self.append(&mut bytes, message, NLM_F_ACK);
        }
        self.send(&bytes, "send to netlink")?;
        let mut answers: Vec<Option<i32>> = vec![None; messages.len()];
        while answers.iter().any(Option::is_none) {
            self.receive(|kind, sequence, body| {
                let at = sequence.wrapping_sub(first) as usize;
                if let (NLMSG_ERROR, Some(answer)) = (kind, answers.get_mut(at)) {
                    *answer = Some(errno_of(body));
                }
                true
            })?;
        }
        let done =
            |(message, answer): (&Message, Option<i32>)| match answer.map(|code| Errno::from_raw(-code)) {
                None | Some(Errno::UnknownErrno) => Ok(true),
                Some(errno) if Some(errno) == message.fine => Ok(false),
                Some(errno) => Err(Refused { what: message.what.clone(), errno }),
            };
        messages.iter().zip(answers).map(done).collect()
    }

    /// Asks for one object; its body is the answer, without the netlink header.
    pub(crate) fn ask(&mut self, message: &Message) -> Result<Vec<u8>, Refused> {
        let mut found = self.collect(message, NLM_F_ACK)?;
        match found.pop() {
            Some(body) => Ok(body),
            None => Err(Refused { what: message.what.clone(), errno: Errno::ENOENT }),
        }
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(&mut self, message: &Message) -> Result<Vec<Vec<u8>>, Refused> {
        self.collect(message, DUMP)
    }

    fn collect(&mut self, message: &Message, flags: u16) -> Result<Vec<Vec<u8>>, Refused> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, flags);
        self.send(&bytes, &message.what)?;
        let (ours, mut found, mut end) = (self.sequence, Vec::new(), None);
        while end.is_none() {
            self.receive(|kind, sequence, body| {
                match kind {
                    _ if sequence != ours => {}
                    NLMSG_ERROR => end = Some(errno_of(body)),
                    NLMSG_DONE => end = Some(errno_of(body)),
                    _ => found.push(body.to_vec()),
                }
                end.is_none()
            })?;
        }
        match end {
            Some(code) if code != 0 => {
                Err(Refused { what: message.what.clone(), errno: Errno::from_raw(-code) })
            }
            _ => Ok(found),
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: &Message, flags: u16) {
        self.sequence += 1;
        let length = (HEADER + message.body.len()) as u32;
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&message.kind.to_ne_bytes());
        bytes.extend_from_slice(&(message.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&message.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }

    fn send(&self, bytes: &[u8], what: &str) -> Result<(), Refused> {
        let kernel = NetlinkAddr::new(0, 0);
        socket::sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty())
            .map(|_| ())
            .map_err(|errno| Refused { what: what.to_owned(), errno })
    }

    /// Reads one datagram and hands its messages to `each` until that says stop.
    fn receive(&mut self, mut each: impl FnMut(u16, u32, &[u8]) -> bool) -> Result<(), Refused> {
        let refused = |errno| Refused { what: "receive from netlink".to_owned(), errno };
        let length = loop {
            match socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(refused)?,
            }
        };
        let mut rest = &self.buffer[..length];
        while let Some(header) = rest.first_chunk::<HEADER>() {
            let [a, b, c, d, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
            let size = u32::from_ne_bytes([a, b, c, d]) as usize;
            let Some(body) = rest.get(HEADER..size) else { return Err(refused(Errno::EBADMSG)) };
            if !each(u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([s0, s1, s2, s3]), body) {
                break;
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The (negative) error number at the head of an acknowledgement or of the end of a dump.
fn errno_of(body: &[u8]) -> i32 {
    body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code))
}

/// The attributes in a message body: kind (without the nesting bits) and value. Stops at the first that is cut off.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    })
}

/// A message body under construction.
#[derive(Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    /// The four bytes that start a netfilter message: address family, version 0, resource 0.
    pub(crate) fn netfilter(family: u8) -> Body {
        Body(vec![family, 0, 0, 0])
    }

    /// Adds an attribute.
    pub(crate) fn put(mut self, kind: u16, value: &[u8]) -> Body {
        self.0.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a text attribute, with its terminating zero.
    pub(crate) fn text(self, kind: u16, value: &str) -> Body {
        self.put(kind, &[value.as_bytes(), b"\0"].concat())
    }
}
