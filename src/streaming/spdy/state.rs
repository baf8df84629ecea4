//! The streams of a session and their windows: what is known about each, and what a frame changes. No I/O.

use std::collections::HashMap;

use super::frame::Status;
use crate::inbox::Feed;

/// The window with which the protocol begins, of a stream and of a session.
pub(crate) const FIRST_WINDOW: i64 = 64 << 10;

/// Windows may not grow beyond this.
const LARGEST_WINDOW: i64 = (1 << 31) - 1;

/// What a client may send before it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    /// On each stream: the window that it begins with.
    pub stream: usize,
    /// On all together.
    pub session: usize,
}

/// A client that keeps windows has sent more than one of them allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overflow {
    /// That of the stream.
    Stream,
    /// That of the session.
    Session,
}

/// Streams of one session.
pub(crate) struct Streams {
    open: HashMap<u32, Entry>,
    /// The last stream that the client has opened.
    pub(crate) last: u32,
    most: usize,
    /// Whether the client keeps windows.
    windows: bool,
    /// With which streams begin.
    first_window: i64,
    /// Of all streams together.
    session_window: i64,
    /// Bytes that the client may still send.
    grant: Grant,
    allowed: i64,
    /// Bytes that have come and were neither read nor thrown away.
    unread: usize,
    /// No stream can be written to any more.
    gone: bool,
}

struct Entry {
    feed: Feed,
    window: i64,
    /// Bytes that the client may still send.
    allowed: i64,
    /// We have sent our last.
    ours_ended: bool,
    /// The client has sent its last.
    theirs_ended: bool,
}

/// What is to be done with a new stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It is open.
    Opened,
    /// Throw it away.
    Reset(Status),
}

/// Whether a stream can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// So many bytes.
    Bytes(usize),
    /// Not now.
    None,
    /// Never more.
    Gone,
}

impl Streams {
    /// None yet, and never more than `most`.
    pub(crate) fn new(most: usize, grant: Grant) -> Streams {
        Streams {
            open: HashMap::new(),
            last: 0,
            most,
            windows: false,
            first_window: FIRST_WINDOW,
            session_window: FIRST_WINDOW,
            grant,
            allowed: grant.session as i64,
            unread: 0,
            gone: false,
        }
    }

    /// The client opens a stream; what it sends goes to `feed`.
    pub(crate) fn open(&mut self, id: u32, fin: bool, feed: Feed) -> Opening {
        if id.is_multiple_of(2) || id <= self.last {
            return Opening::Reset(Status::ProtocolError);
        }
        self.last = id;
        if self.open.len() >= self.most {
            return Opening::Reset(Status::RefusedStream);
        }
        if fin {
            feed.end();
        }
        let allowed = self.grant.stream as i64;
        let entry = Entry { feed, window: self.first_window, allowed, ours_ended: false, theirs_ended: fin };
        self.open.insert(id, entry);
        Opening::Opened
    }

    /// Where data for a stream goes; `Err`: nowhere, and whether the client should be told.
    pub(crate) fn feed(&self, id: u32) -> Result<&Feed, bool> {
        match self.open.get(&id) {
            Some(entry) if !entry.theirs_ended => Ok(&entry.feed),
            _ => Err(id > self.last || id.is_multiple_of(2)),
        }
    }

    /// So much has come on a stream; `Err`: more than the client was allowed. One that has shown no windows does not
    /// know what it is allowed.
    pub(crate) fn arrived(&mut self, id: u32, count: usize) -> Result<(), Overflow> {
        self.unread += count;
        self.allowed -= count as i64;
        if self.windows && self.allowed < 0 {
            return Err(Overflow::Session);
        }
        let Some(entry) = self.open.get_mut(&id).filter(|entry| !entry.theirs_ended) else { return Ok(()) };
        entry.allowed -= count as i64;
        if self.windows && entry.allowed < 0 { Err(Overflow::Stream) } else { Ok(()) }
    }

    /// So much of what has come was read or thrown away.
    pub(crate) fn taken(&mut self, count: usize) {
        self.unread = self.unread.saturating_sub(count);
    }

    /// The client may send more on a stream, or (id 0) on all together.
    pub(crate) fn allow(&mut self, id: u32, delta: usize) {
        if id == 0 {
            self.allowed += delta as i64;
        } else if let Some(entry) = self.open.get_mut(&id) {
            entry.allowed += delta as i64;
        }
    }

    /// How much more than a stream's window may wait for its reader: nothing when the client keeps windows, else what
    /// is left of `most`.
    pub(crate) fn slack(&self, most: usize) -> usize {
        if self.windows { 0 } else { most.saturating_sub(self.unread) }
    }

    /// The client has sent its last on a stream.
    pub(crate) fn theirs_ended(&mut self, id: u32) {
        if let Some(entry) = self.open.get_mut(&id) {
            entry.feed.end();
            entry.theirs_ended = true;
            if entry.ours_ended {
                self.open.remove(&id);
            }
        }
    }

    /// We send our last on a stream; `false`: it is gone already.
    pub(crate) fn ours_ended(&mut self, id: u32) -> bool {
        let Some(entry) = self.open.get_mut(&id).filter(|entry| !entry.ours_ended) else { return false };
        entry.ours_ended = true;
        if entry.theirs_ended {
            self.open.remove(&id);
        }
        true
    }

    /// A stream is thrown away, by either side; `false`: it is gone already.
    pub(crate) fn reset(&mut self, id: u32) -> bool {
        self.open.remove(&id).is_some()
    }

    /// The connection is gone, and all streams with it.
    pub(crate) fn end(&mut self) {
        self.open.clear();
        self.gone = true;
    }

    /// Whether we may still write to a stream.
    pub(crate) fn is_open(&self, id: u32) -> bool {
        !self.gone && self.open.get(&id).is_some_and(|entry| !entry.ours_ended)
    }

    /// Whether the client still has something to say on a stream.
    pub(crate) fn is_fed(&self, id: u32) -> bool {
        self.open.get(&id).is_some_and(|entry| !entry.theirs_ended && !entry.feed.is_unread())
    }

    /// Take up to `wanted` bytes out of the windows of a stream.
    pub(crate) fn reserve(&mut self, id: u32, wanted: usize) -> Room {
        if !self.is_open(id) {
            return Room::Gone;
        }
        let Some(entry) = self.open.get_mut(&id) else { return Room::Gone };
        let windows = entry.window.min(self.session_window).clamp(0, wanted as i64);
        // counted from the first byte on: the client may show only later that it has windows
        let room = if self.windows { windows } else { wanted as i64 };
        if room == 0 {
            return Room::None;
        }
        entry.window -= room;
        self.session_window -= room;
        Room::Bytes(room as usize)
    }

    /// The client tells the window with which streams begin; those that are open change as well.
    pub(crate) fn set_first_window(&mut self, size: u32) {
        self.windows = true;
        let size = i64::from(size).min(LARGEST_WINDOW);
        let difference = size - self.first_window;
        self.first_window = size;
        self.open.values_mut().for_each(|entry| entry.window += difference);
    }

    /// The client lets us send more on a stream, or (id 0) on all together; `Err`: more than there can be.
    pub(crate) fn widen(&mut self, id: u32, delta: u32) -> Result<(), Status> {
        self.windows = true;
        let window = match (id, self.open.get_mut(&id)) {
            (0, _) => &mut self.session_window,
            (_, Some(entry)) => &mut entry.window,
            (_, None) => return Ok(()),
        };
        *window += i64::from(delta);
        if *window > LARGEST_WINDOW { Err(Status::FlowControlError) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::{Reset, inbox};

    const GRANT: Grant = Grant { stream: 100, session: 250 };

    fn open(streams: &mut Streams, id: u32) -> (Opening, crate::inbox::Source) {
        let (feed, source) = inbox(100);
        (streams.open(id, false, feed), source)
    }

    #[tokio::test]
    async fn ids_are_odd_and_grow() {
        let mut streams = Streams::new(2, GRANT);
        assert_eq!(open(&mut streams, 3).0, Opening::Opened);
        for id in [3, 1, 4] {
            assert_eq!(open(&mut streams, id).0, Opening::Reset(Status::ProtocolError), "{id}");
        }
        assert_eq!(open(&mut streams, 5).0, Opening::Opened);
        let (opening, mut source) = open(&mut streams, 7);
        assert_eq!(opening, Opening::Reset(Status::RefusedStream));
        assert_eq!(source.take(&mut Vec::new()).await, Err(Reset));
        assert!(streams.reset(3) && !streams.reset(3));
        assert_eq!(open(&mut streams, 9).0, Opening::Opened);
    }

    #[test]
    fn a_stream_goes_when_both_have_ended() {
        let mut streams = Streams::new(9, GRANT);
        let _source = open(&mut streams, 1);
        assert!(streams.ours_ended(1) && !streams.ours_ended(1));
        assert!(streams.feed(1).is_ok(), "half closed");
        streams.theirs_ended(1);
        assert_eq!(streams.feed(1).err(), Some(false), "known, and gone");
        assert_eq!(streams.feed(3).err(), Some(true), "never opened");
        assert_eq!(streams.reserve(1, 10), Room::Gone);
    }

    #[test]
    fn windows_count_once_the_client_has_any() {
        let mut streams = Streams::new(9, GRANT);
        let _sources = [open(&mut streams, 1), open(&mut streams, 3), open(&mut streams, 5)];
        assert_eq!(streams.reserve(5, 1 << 20), Room::Bytes(1 << 20));
        streams.set_first_window(100);
        assert_eq!(streams.reserve(1, 60), Room::None, "more was sent than the session's window");
        streams.widen(0, 1 << 20).expect("fine");
        assert_eq!(streams.reserve(1, 60), Room::Bytes(60));
        assert_eq!(streams.reserve(1, 60), Room::Bytes(40));
        assert_eq!(streams.reserve(1, 60), Room::None);
        streams.widen(1, 7).expect("fine");
        assert_eq!(streams.reserve(1, 60), Room::Bytes(7));
        // the session's own
        streams.widen(3, 1 << 20).expect("fine");
        assert_eq!(streams.reserve(3, 1 << 20), Room::Bytes(FIRST_WINDOW as usize - 107));
        assert_eq!(streams.reserve(3, 1), Room::None);
        streams.widen(0, 5).expect("fine");
        assert_eq!(streams.reserve(3, 9), Room::Bytes(5));
        assert_eq!(streams.widen(3, (1 << 31) - 1), Err(Status::FlowControlError));
        streams.widen(99, 1).expect("a stream that is gone");
    }

    #[test]
    fn more_than_was_allowed_counts_once_the_client_has_windows() {
        let mut streams = Streams::new(9, GRANT);
        let _sources = [open(&mut streams, 1), open(&mut streams, 3), open(&mut streams, 5)];
        assert_eq!((streams.arrived(1, 1000), streams.slack(1500)), (Ok(()), 500), "it knows of none");
        streams.taken(1000);
        streams.allow(1, 1000);
        streams.allow(0, 1000);
        streams.set_first_window(1);
        assert_eq!(streams.slack(1500), 0);
        assert_eq!((streams.arrived(1, 100), streams.arrived(3, 100)), (Ok(()), Ok(())));
        assert_eq!(streams.arrived(3, 1), Err(Overflow::Stream));
        assert_eq!((streams.arrived(5, 49), streams.arrived(5, 1)), (Ok(()), Err(Overflow::Session)));
        streams.allow(0, 2);
        assert_eq!(streams.arrived(7, 1), Ok(()), "a stream that is gone counts for the session");
        assert_eq!(streams.arrived(7, 1), Err(Overflow::Session));
    }

    #[test]
    fn a_smaller_first_window_makes_open_ones_negative() {
        let mut streams = Streams::new(9, GRANT);
        let _source = open(&mut streams, 1);
        streams.set_first_window(1000);
        assert_eq!(streams.reserve(1, 1000), Room::Bytes(1000));
        streams.set_first_window(10);
        streams.widen(1, 990).expect("fine");
        assert_eq!(streams.reserve(1, 1), Room::None);
        streams.widen(1, 1).expect("fine");
        assert_eq!(streams.reserve(1, 5), Room::Bytes(1));
    }
}
