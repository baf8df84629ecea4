//! Bytes on their way from a connection to whoever reads one of its streams: bounded, with one writer and one reader.
//!
//! Two buffers are swapped, so nothing is allocated while data flows, and many small pieces become one large one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Buffers that are larger are given back while there is nothing to read.
const KEPT: usize = 16 << 10;

/// The writing half; belongs to the connection.
pub(crate) struct Feed(Arc<Inbox>);

/// The reading half.
pub(crate) struct Source {
    inbox: Arc<Inbox>,
    taken: Option<Box<dyn Fn(usize) + Send + Sync>>,
}

/// The other side has thrown the stream away, or the connection is gone: what was still to come is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reset;

struct Inbox {
    state: Mutex<State>,
    capacity: usize,
    readable: Notify,
    writable: Notify,
    lost: Notify,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    ended: bool,
    reset: bool,
    /// The reader has not taken anything for too long, and the stream was thrown away for that.
    given_up: bool,
    /// Bytes that had come when the stream was thrown away: they are counted as taken with the end of the source.
    uncounted: usize,
    /// Nobody reads: what comes is thrown away.
    unread: bool,
}

/// An inbox that holds up to `capacity` bytes.
pub(crate) fn inbox(capacity: usize) -> (Feed, Source) {
    let inbox = Arc::new(Inbox {
        state: Mutex::default(),
        capacity,
        readable: Notify::new(),
        writable: Notify::new(),
        lost: Notify::new(),
    });
    (Feed(inbox.clone()), Source { inbox, taken: None })
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    /// Add as much of `data` as there is room for; how much that was. All of it when nobody reads.
    pub(crate) fn push(&self, data: &[u8]) -> usize {
        self.push_beyond(data, 0).0
    }

    /// As [`Feed::push`], with `more` bytes of room than the inbox was made with; and how much of it was thrown away.
    pub(crate) fn push_beyond(&self, data: &[u8], more: usize) -> (usize, usize) {
        let mut state = self.0.lock();
        if state.unread || state.ended || state.reset {
            return (data.len(), data.len());
        }
        let taken = data.len().min((self.0.capacity + more).saturating_sub(state.buffer.len()));
        state.buffer.extend_from_slice(&data[..taken]);
        drop(state);
        if taken > 0 {
            self.0.readable.notify_one();
        }
        (taken, 0)
    }

    /// Wait until there may be room.
    pub(crate) fn room(&self) -> impl Future<Output = ()> + use<> {
        let inbox = self.0.clone();
        async move { inbox.writable.notified().await }
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.0.lock().ended = true;
        self.0.readable.notify_one();
    }

    /// Whether nobody reads.
    pub(crate) fn is_unread(&self) -> bool {
        self.0.lock().unread
    }

    /// Nothing more will come, and nothing that came counts.
    pub(crate) fn reset(&self) {
        self.throw_away(false);
    }

    /// As [`Feed::reset`], because the reader takes nothing.
    pub(crate) fn give_up(&self) {
        self.throw_away(true);
    }

    fn throw_away(&self, given_up: bool) {
        let mut state = self.0.lock();
        state.given_up |= given_up && !state.reset;
        state.reset = true;
        // its reader may have long to wait for something else: what has come does not wait with it
        let come = std::mem::take(&mut state.buffer);
        state.uncounted += come.len();
        drop(state);
        self.0.readable.notify_one();
        self.0.writable.notify_one();
        self.0.lost.notify_waiters();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if !self.0.lock().ended {
            self.reset();
        }
    }
}

impl Source {
    /// Call `taken` with the number of bytes whenever some leave the inbox.
    pub(crate) fn when_taken(mut self, taken: impl Fn(usize) + Send + Sync + 'static) -> Source {
        self.taken = Some(Box::new(taken));
        self
    }

    /// Whether the stream was thrown away because we took nothing of it.
    pub(crate) fn is_given_up(&self) -> bool {
        self.inbox.lock().given_up
    }

    /// Wait until the other side throws the stream away.
    pub(crate) fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let inbox = self.inbox.clone();
        async move {
            loop {
                let lost = inbox.lost.notified();
                tokio::pin!(lost);
                lost.as_mut().enable();
                if inbox.lock().reset {
                    return;
                }
                lost.await;
            }
        }
    }

    /// Replace what is in `into` with what has come, waiting for it; `false` at the end. May be cancelled.
    ///
    /// # Errors
    /// [`Reset`].
    pub(crate) async fn take(&mut self, into: &mut Vec<u8>) -> Result<bool, Reset> {
        into.clear();
        loop {
            {
                let mut state = self.inbox.lock();
                if state.reset {
                    return Err(Reset);
                }
                if !state.buffer.is_empty() {
                    std::mem::swap(&mut state.buffer, into);
                    break;
                }
                if state.ended {
                    return Ok(false);
                }
            }
            if into.capacity() > KEPT {
                *into = Vec::new();
            }
            self.inbox.readable.notified().await;
        }
        self.inbox.writable.notify_one();
        if let Some(taken) = &self.taken {
            taken(into.len());
        }
        Ok(true)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut state = self.inbox.lock();
        let left = state.buffer.len() + state.uncounted;
        (state.unread, state.buffer) = (true, Vec::new());
        drop(state);
        self.inbox.writable.notify_one();
        if let Some(taken) = &self.taken {
            taken(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_in_order_and_the_end_after_them() {
        let (feed, mut source) = inbox(4);
        let mut got = Vec::new();
        assert_eq!((feed.push(b"abc"), feed.push(b"def"), feed.push(b"x")), (3, 1, 0));
        assert_eq!(source.take(&mut got).await, Ok(true));
        assert_eq!(got, b"abcd");
        feed.room().await;
        assert_eq!(feed.push(b"ef"), 2);
        feed.end();
        drop(feed);
        assert_eq!(source.take(&mut got).await, Ok(true));
        assert_eq!(got, b"ef");
        assert_eq!(source.take(&mut got).await, Ok(false));
    }

    #[tokio::test]
    async fn a_reset_drops_what_has_come() {
        let (feed, mut source) = inbox(4);
        feed.push(b"abc");
        drop(feed);
        assert_eq!(source.take(&mut Vec::new()).await, Err(Reset));
    }

    #[tokio::test]
    async fn what_a_reset_drops_is_told_with_the_source() {
        let counted = Arc::new(Mutex::new(0));
        let (feed, source) = inbox(4);
        let count = counted.clone();
        let mut source = source.when_taken(move |n| *count.lock().expect("count") += n);
        assert_eq!(feed.push_beyond(b"abcdefgh", 2), (6, 0));
        feed.give_up();
        assert_eq!(feed.0.lock().buffer.capacity(), 0, "nothing is kept for a late reader");
        assert_eq!(feed.push_beyond(b"more", 2), (4, 4), "thrown away");
        assert_eq!(source.take(&mut Vec::new()).await, Err(Reset));
        assert!(source.is_given_up());
        drop(source);
        assert_eq!(*counted.lock().expect("count"), 6);
    }

    #[tokio::test]
    async fn without_a_reader_everything_is_taken_at_once() {
        let (feed, source) = inbox(4);
        assert_eq!(feed.push(b"abcdef"), 4);
        drop(source);
        feed.room().await;
        assert_eq!(feed.push(b"0123456789"), 10);
        assert!(feed.is_unread());
    }

    #[tokio::test]
    async fn what_leaves_is_told_also_when_nobody_wants_it() {
        let counted = Arc::new(Mutex::new(Vec::new()));
        let (feed, source) = inbox(10);
        let count = counted.clone();
        let mut source = source.when_taken(move |n| count.lock().expect("count").push(n));
        feed.push(b"abc");
        source.take(&mut Vec::new()).await.expect("bytes");
        feed.push(b"de");
        drop(source);
        assert_eq!(*counted.lock().expect("count"), [3, 2]);
    }
}
