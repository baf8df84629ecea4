//! The line between `cargo xtask node --vm` and the guest: what the command reads and prints, in frames.
//!
//! ```text
//! frame:  kind (1 byte), length (2 bytes, big-endian), content
//!
//! guest (crate::guest)                                host (crate::console)
//!   Hello  ─────────────────────────────────────────▶   the guest's end is raw and read from now on
//!   ◀───────────────────────────────────────── Start    Terminal, once: what the command's terminal is like
//!   ◀───────────────────────────────────────── Input    what the command reads; an empty one is its end
//!   Output, Errors  ────────────────────────────────▶   what it prints, as it comes
//!   ◀──────────────────────────────────────── Closed    nobody reads that any more: the content is the kind
//!   Ended  ─────────────────────────────────────────▶   it has ended, and nothing follows
//!   ◀───────────────────────────────────────── Seen     all of it has arrived: the guest may power off
//! ```
//!
//! Must never happen: that one direction waits for the other. Each end has a thread per direction.

use std::io::{self, ErrorKind, Read, Write};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// the guest listens
    Hello = b'h' as isize,
    /// the command may start
    Start = b's' as isize,
    /// what the command reads; empty: there is no more
    Input = b'i' as isize,
    /// what it prints to its standard output
    Output = b'o' as isize,
    /// what it prints to its standard error
    Errors = b'e' as isize,
    /// nobody reads what is printed there any more
    Closed = b'c' as isize,
    /// it has ended
    Ended = b'x' as isize,
    /// all of it has arrived
    Seen = b'z' as isize,
}

const KINDS: [Kind; 8] = [
    Kind::Hello,
    Kind::Start,
    Kind::Input,
    Kind::Output,
    Kind::Errors,
    Kind::Closed,
    Kind::Ended,
    Kind::Seen,
];

/// Largest content of one frame; less than a tty's buffers hold, so that keys are not behind much.
pub(crate) const LARGEST: usize = 2048;

/// Send one frame.
pub(crate) fn send(mut to: impl Write, kind: Kind, content: &[u8]) -> io::Result<()> {
    let length = u16::try_from(content.len()).map_err(|_| io::Error::other("a frame that is too long"))?;
    let mut frame = vec![kind as u8];
    frame.extend(length.to_be_bytes());
    frame.extend(content);
    to.write_all(&frame)?;
    to.flush()
}

/// The next frame; nothing at the end of the line, also when it was cut within a frame.
pub(crate) fn receive(mut from: impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0; 3];
    let mut content = Vec::new();
    let mut read = || -> io::Result<Kind> {
        from.read_exact(&mut head)?;
        content.resize(usize::from(u16::from_be_bytes([head[1], head[2]])), 0);
        from.read_exact(&mut content)?;
        let kind = KINDS.into_iter().find(|kind| *kind as u8 == head[0]);
        kind.ok_or_else(|| io::Error::other(format!("the line to the guest is out of step at {head:?}")))
    };
    match read() {
        Ok(kind) => Ok(Some((kind, content))),
        // reset: the other end went away before it had read everything
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Send all that can be read as frames of one kind, as it comes. An error of the reader is its end, as a terminal's is.
pub(crate) fn pump(mut from: impl Read, mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = [0; LARGEST];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(size) => send(&buffer[..size])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
}

/// What the command's three streams are, and what their terminal is like.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Terminal {
    /// standard input and output are a terminal
    pub(crate) is_one: bool,
    /// standard error is the same as standard output, so that their order counts
    pub(crate) together: bool,
    pub(crate) rows: u16,
    pub(crate) columns: u16,
    /// TERM
    pub(crate) name: String,
}

impl Terminal {
    /// As the content of a frame.
    pub(crate) fn to_text(&self) -> String {
        let Terminal { is_one, together, rows, columns, name } = self;
        format!("{} {} {rows} {columns} {name}", u8::from(*is_one), u8::from(*together))
    }

    /// From the content of a frame; what is missing is as without a terminal.
    pub(crate) fn from_text(text: &str) -> Terminal {
        let mut words = text.splitn(5, ' ');
        let mut number = || words.next().and_then(|word| word.parse::<u16>().ok()).unwrap_or_default();
        let (is_one, together, rows, columns) = (number() == 1, number() == 1, number(), number());
        Terminal { is_one, together, rows, columns, name: words.next().unwrap_or_default().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut line = Vec::new();
        send(&mut line, Kind::Output, b"one\0\xff").unwrap();
        send(&mut line, Kind::Input, b"").unwrap();
        let mut from = line.as_slice();
        assert_eq!(receive(&mut from).unwrap(), Some((Kind::Output, b"one\0\xff".to_vec())));
        assert_eq!(receive(&mut from).unwrap(), Some((Kind::Input, Vec::new())));
        assert_eq!(receive(&mut from).unwrap(), None);
    }

    #[test]
    fn a_line_that_is_cut_or_out_of_step_is_told_apart() {
        assert_eq!(receive(b"o\0\x05abc".as_slice()).unwrap(), None);
        assert!(receive(b"?\0\0".as_slice()).unwrap_err().to_string().contains("out of step"));
    }

    #[test]
    fn a_terminal_goes_through_a_frame() {
        let terminal =
            Terminal { is_one: true, together: false, rows: 24, columns: 80, name: "xterm".to_owned() };
        assert_eq!(Terminal::from_text(&terminal.to_text()), terminal);
        assert_eq!(Terminal::from_text(""), Terminal::default());
    }
}
