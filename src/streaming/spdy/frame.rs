//! Frames of SPDY/3.1 as bytes: a decoder that is fed whatever has arrived, and functions that write frames.
//!
//! ```text
//! control: 1 | version (15) | type (16)     flags (8) | length (24)    length bytes
//! data:    0 | stream id (31)               flags (8) | length (24)    length bytes
//! ```
//!
//! Nothing here waits or allocates more than a control frame's [`LARGEST_CONTROL`]; a data frame of any length is handed
//! on in the pieces in which it arrives.

/// The version in control frames; 3.1 differs from 3 only in the session's window.
const VERSION: u16 = 3;

/// Bytes before a frame's payload.
pub(crate) const HEAD: usize = 8;

/// Largest payload of a control frame that is read. Those of real clients have some hundred bytes.
pub(crate) const LARGEST_CONTROL: usize = 32 << 10;

/// Largest payload of a data frame: the length has 24 bits.
pub(crate) const LARGEST_DATA: usize = (1 << 24) - 1;

/// On data frames, SYN_STREAM, SYN_REPLY and HEADERS: the sender's last on this stream.
const FIN: u8 = 1;

/// Setting: the window with which streams begin.
pub(crate) const INITIAL_WINDOW_SIZE: u32 = 7;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is thrown away (RST_STREAM).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    /// Its use is against the protocol.
    ProtocolError = 1,
    /// It was never opened.
    InvalidStream = 2,
    /// It is not wanted; nothing was done with it.
    RefusedStream = 3,
    /// It is not needed any more.
    Cancel = 5,
    /// More data than its window allows, or a window of more than 2³¹ - 1 bytes.
    FlowControlError = 7,
}

/// Why a session ends (GOAWAY).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Away {
    /// It is over.
    Ok = 0,
    /// What came is not SPDY.
    ProtocolError = 1,
}

/// What came is not SPDY/3, or more than we take; the text says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub &'static str);

/// A control frame. Header blocks are still compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control<'a> {
    /// A new stream. `fin`: the sender will send nothing on it.
    SynStream { id: u32, fin: bool, block: &'a [u8] },
    /// A stream was accepted (we open none).
    SynReply { block: &'a [u8] },
    /// A stream is thrown away.
    RstStream { id: u32 },
    /// (id, value) of settings.
    Settings(Settings<'a>),
    /// To be sent back when its id is the sender's.
    Ping { id: u32 },
    /// No new streams will come.
    GoAway,
    /// More headers for a stream.
    Headers { id: u32, fin: bool, block: &'a [u8] },
    /// So much more may be sent on a stream, or (id 0) on all together.
    WindowUpdate { id: u32, delta: u32 },
    /// Nothing that we know; to be passed over.
    Unknown,
}

/// The entries of a SETTINGS frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings<'a>(&'a [u8]);

impl Settings<'_> {
    /// Value of a setting; the last one counts.
    pub(crate) fn get(&self, id: u32) -> Option<u32> {
        let entries = self.0.as_chunks::<8>().0.iter();
        let of = |entry: &[u8; 8]| (number(entry) & 0xff_ffff, number(&entry[4..]));
        entries.map(of).rfind(|(found, _)| *found == id).map(|(_, value)| value)
    }
}

/// What was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A piece of a data frame; `fin`: the last on its stream.
    Data { id: u32, piece: &'a [u8], fin: bool },
    /// A whole control frame.
    Control(Control<'a>),
}

/// Where in a frame the decoder is.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// Inside a data frame.
    data: Option<Data>,
}

#[derive(Clone, Copy, Debug)]
struct Data {
    id: u32,
    fin: bool,
    left: usize,
}

impl Decoder {
    /// The next event at the front of `input`, and how many bytes it took; `None`: more bytes are needed.
    /// `input` must be able to grow to [`HEAD`] + [`LARGEST_CONTROL`] bytes.
    ///
    /// # Errors
    /// [`Malformed`]: the connection is of no use any more.
    pub(crate) fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, Malformed> {
        if let Some(data) = self.data {
            if input.is_empty() {
                return Ok(None);
            }
            return Ok(Some(self.piece(data, input, 0)));
        }
        let Some(head) = input.first_chunk::<HEAD>() else { return Ok(None) };
        let (first, flags, length) = (number(head), head[4], (number(&head[4..]) & 0xff_ffff) as usize);
        if first & 1 << 31 == 0 {
            if first == 0 {
                return Err(Malformed("data for stream 0"));
            }
            let data = Data { id: first, fin: flags & FIN != 0, left: length };
            if length > 0 && input.len() == HEAD {
                return Ok(None);
            }
            return Ok(Some(self.piece(data, &input[HEAD..], HEAD)));
        }
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(Malformed("a control frame of another version than 3"));
        }
        if length > LARGEST_CONTROL {
            return Err(Malformed("a control frame that is too large"));
        }
        let Some(payload) = input[HEAD..].get(..length) else { return Ok(None) };
        let control = control(first as u16, flags & FIN != 0, payload)?;
        Ok(Some((Event::Control(control), HEAD + length)))
    }

    fn piece<'a>(&mut self, data: Data, rest: &'a [u8], before: usize) -> (Event<'a>, usize) {
        let piece = &rest[..data.left.min(rest.len())];
        let left = data.left - piece.len();
        self.data = (left > 0).then_some(Data { left, ..data });
        (Event::Data { id: data.id, piece, fin: data.fin && left == 0 }, before + piece.len())
    }
}

fn control(kind: u16, fin: bool, payload: &[u8]) -> Result<Control<'_>, Malformed> {
    let short = Malformed("a control frame that is too short");
    let word = |at: usize| payload.get(at..at + 4).map(number).ok_or(short);
    let id = |at: usize| match word(at)? & 0x7fff_ffff {
        0 => Err(Malformed("a control frame for stream 0")),
        id => Ok(id),
    };
    let block = |at: usize| payload.get(at..).ok_or(short);
    Ok(match kind {
        SYN_STREAM => Control::SynStream { id: id(0)?, fin, block: block(10)? },
        SYN_REPLY => Control::SynReply { block: id(0).and_then(|_| block(4))? },
        RST_STREAM => Control::RstStream { id: id(0)? },
        SETTINGS => {
            let (count, entries) = (word(0)? as usize, block(4)?);
            Control::Settings(Settings(entries.get(..count.saturating_mul(8)).ok_or(short)?))
        }
        PING => Control::Ping { id: word(0)? },
        GOAWAY => word(0).map(|_| Control::GoAway)?,
        HEADERS => Control::Headers { id: id(0)?, fin, block: block(4)? },
        WINDOW_UPDATE => Control::WindowUpdate { id: word(0)? & 0x7fff_ffff, delta: word(4)? & 0x7fff_ffff },
        _ => Control::Unknown,
    })
}

/// The big-endian number at the front of at least four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// The head of a data frame with `length` (at most [`LARGEST_DATA`]) bytes.
pub(crate) fn data_head(id: u32, fin: bool, length: usize) -> [u8; HEAD] {
    let length = length.min(LARGEST_DATA) as u32 | if fin { u32::from(FIN) << 24 } else { 0 };
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&id.to_be_bytes());
    head[4..].copy_from_slice(&length.to_be_bytes());
    head
}

fn put(into: &mut Vec<u8>, kind: u16, parts: &[&[u8]]) {
    into.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    into.extend_from_slice(&kind.to_be_bytes());
    let length: usize = parts.iter().map(|part| part.len()).sum();
    into.extend_from_slice(&(length as u32).to_be_bytes());
    parts.iter().for_each(|part| into.extend_from_slice(part));
}

/// SYN_REPLY with a compressed header block.
pub(crate) fn put_reply(into: &mut Vec<u8>, id: u32, block: &[u8]) {
    put(into, SYN_REPLY, &[&id.to_be_bytes(), block]);
}

/// RST_STREAM.
pub(crate) fn put_reset(into: &mut Vec<u8>, id: u32, status: Status) {
    put(into, RST_STREAM, &[&id.to_be_bytes(), &(status as u32).to_be_bytes()]);
}

/// SETTINGS with one entry.
pub(crate) fn put_setting(into: &mut Vec<u8>, id: u32, value: u32) {
    put(into, SETTINGS, &[&1_u32.to_be_bytes(), &id.to_be_bytes(), &value.to_be_bytes()]);
}

/// PING.
pub(crate) fn put_ping(into: &mut Vec<u8>, id: u32) {
    put(into, PING, &[&id.to_be_bytes()]);
}

/// GOAWAY; `last` is the last stream that was accepted.
pub(crate) fn put_away(into: &mut Vec<u8>, last: u32, why: Away) {
    put(into, GOAWAY, &[&last.to_be_bytes(), &(why as u32).to_be_bytes()]);
}

/// WINDOW_UPDATE.
pub(crate) fn put_window(into: &mut Vec<u8>, id: u32, delta: u32) {
    put(into, WINDOW_UPDATE, &[&id.to_be_bytes(), &delta.to_be_bytes()]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes `bytes`, of which `step` arrive at a time; what came of it as text, with the pieces of data joined.
    fn decode(bytes: &[u8], step: usize) -> Vec<String> {
        let (mut decoder, mut all, mut buffer) = (Decoder::default(), Vec::new(), Vec::new());
        let mut data: Vec<u8> = Vec::new();
        for arrived in bytes.chunks(step.max(1)) {
            buffer.extend_from_slice(arrived);
            let mut used = 0;
            loop {
                match decoder.next(&buffer[used..]) {
                    Ok(Some((event, took))) => {
                        used += took;
                        match event {
                            Event::Data { id, piece, fin } => {
                                data.extend_from_slice(piece);
                                if decoder.data.is_none() {
                                    all.push(format!("{id} {:?} {fin}", std::mem::take(&mut data)));
                                }
                            }
                            Event::Control(control) => all.push(format!("{control:?}")),
                        }
                    }
                    Ok(None) => break,
                    Err(Malformed(why)) => {
                        all.push(why.to_owned());
                        return all;
                    }
                }
            }
            buffer.drain(..used);
            assert!(buffer.len() < HEAD + LARGEST_CONTROL, "what is kept is bounded");
        }
        all
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        put_reply(&mut bytes, 1, b"block");
        put_reset(&mut bytes, 3, Status::Cancel);
        put_setting(&mut bytes, INITIAL_WINDOW_SIZE, 77);
        put_ping(&mut bytes, 2);
        put_window(&mut bytes, 0, 9);
        bytes.extend_from_slice(&data_head(5, true, 3));
        bytes.extend_from_slice(b"abc");
        bytes.extend_from_slice(&data_head(5, false, 0));
        put_away(&mut bytes, 5, Away::Ok);
        let expected = decode(&bytes, bytes.len());
        assert_eq!(expected.len(), 8);
        assert_eq!(expected[0], format!("{:?}", Control::SynReply { block: b"block" }));
        assert_eq!((&expected[5][..], &expected[6][..]), ("5 [97, 98, 99] true", "5 [] false"));
        assert!(decode(&bytes, 1) == expected && decode(&bytes, 7) == expected);
        let mut decoder = Decoder::default();
        let mut bytes = Vec::new();
        put_setting(&mut bytes, INITIAL_WINDOW_SIZE, 77);
        match decoder.next(&bytes) {
            Ok(Some((Event::Control(Control::Settings(settings)), _))) => {
                assert_eq!(
                    (settings.get(INITIAL_WINDOW_SIZE), settings.get(0x0100_0007), settings.get(1)),
                    (Some(77), None, None)
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_spdy_is_named() {
        let cases: [(&[u8], &str); 6] = [
            (&[0x80, 2, 0, 1, 0, 0, 0, 0], "a control frame of another version than 3"),
            (&[0x80, 3, 0, 1, 0, 0, 0x80, 1], "a control frame that is too large"),
            (&[0x80, 3, 0, 3, 0, 0, 0, 0], "a control frame that is too short"),
            (&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1], "a control frame for stream 0"),
            (&[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff], "a control frame that is too short"),
            (&[0, 0, 0, 0, 0, 0, 0, 0], "data for stream 0"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(bytes, 100), [expected]);
        }
        assert_eq!(decode(&[0x80, 3, 0, 99, 0, 0, 0, 1, 7], 100), ["Unknown"]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), step in 1_usize..40) {
            decode(&bytes, step);
        }

        #[test]
        fn how_bytes_arrive_does_not_matter(
            kind in 0_u16..12,
            flags in any::<u8>(),
            payload in prop::collection::vec(any::<u8>(), 0..60),
            step in 1_usize..40,
        ) {
            let mut bytes = Vec::new();
            put(&mut bytes, kind, &[&payload]);
            bytes[4] = flags;
            bytes.extend_from_slice(&data_head(1, true, payload.len()));
            bytes.extend_from_slice(&payload);
            prop_assert_eq!(decode(&bytes, step), decode(&bytes, bytes.len()));
        }
    }
}
