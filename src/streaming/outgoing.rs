//! A piece of output on its way to the client: read from the process behind some free bytes, into which the protocol
//! writes its head, so that head and payload leave in one write and nothing is copied.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Free bytes before the payload: enough for the head of every protocol.
pub(crate) const HEADROOM: usize = 16;

/// A buffer that is filled and sent again and again.
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    end: usize,
}

impl Outgoing {
    /// For payloads of up to `size` bytes.
    pub(crate) fn new(size: usize) -> Outgoing {
        Outgoing { bytes: vec![0; HEADROOM + size], end: HEADROOM }
    }

    /// Holds these bytes.
    pub(crate) fn of(payload: &[u8]) -> Outgoing {
        let mut outgoing = Outgoing::new(payload.len());
        outgoing.bytes[HEADROOM..].copy_from_slice(payload);
        outgoing.end += payload.len();
        outgoing
    }

    /// Replace the payload by what can be read at once; 0 bytes at the end. May be cancelled.
    pub(crate) async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        self.end = HEADROOM;
        let count = from.read(&mut self.bytes[HEADROOM..]).await?;
        self.end += count;
        Ok(count)
    }

    /// How long the payload is.
    pub(crate) fn len(&self) -> usize {
        self.end - HEADROOM
    }

    /// The payload.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[HEADROOM..self.end]
    }

    /// `head` (at most [`HEADROOM`] bytes) and the `length` bytes of payload from `at` on. What was before `at` is lost.
    pub(crate) fn framed(&mut self, head: &[u8], at: usize, length: usize) -> &[u8] {
        let start = HEADROOM + at;
        self.bytes[start - head.len()..start].copy_from_slice(head);
        &self.bytes[start - head.len()..(start + length).min(self.end)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn heads_stand_right_before_the_payload() {
        let mut outgoing = Outgoing::new(8);
        assert_eq!(outgoing.fill(&mut &b"abcdef"[..]).await.expect("reads"), 6);
        assert_eq!((outgoing.len(), outgoing.payload()), (6, &b"abcdef"[..]));
        assert_eq!(outgoing.framed(b"<>", 0, 4), b"<>abcd");
        assert_eq!(outgoing.framed(b"<>", 4, 2), b"<>ef");
        assert_eq!(Outgoing::of(b"xy").payload(), b"xy");
    }
}
