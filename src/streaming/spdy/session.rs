//! A session: the loop that reads frames, the queue of control frames, and the streams that are handed out.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::frame::{
    self, Away, Control, Decoder, Event, HEAD, LARGEST_CONTROL, LARGEST_DATA, Malformed, Status,
};
use super::headers::{EmptyBlocks, Headers, Inflater};
use super::state::{FIRST_WINDOW, Grant, Opening, Overflow, Room, Streams};
use crate::activity::Activity;
use crate::inbox::{Reset, Source, inbox};
use crate::outgoing::Outgoing;

/// Bytes that are read at once. A control frame fits in.
const READ: usize = 128 << 10;

/// Control frames that wait to be written. A client that asks (pings, resets) and does not read ends here.
const MOST_QUEUED: usize = 64 << 10;

/// While a client's data cannot be taken, nothing else that it sends is seen, not even that it has gone: so often
/// something is sent then, to which a client that has gone cannot answer.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// What a session may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Streams at the same time.
    pub streams: usize,
    /// Bytes that wait on a stream for their reader: its window.
    pub inbox: usize,
    /// What a client without windows gets beyond those.
    pub slack: Slack,
}

/// How far a client that keeps no windows may fill one stream before the others of its session feel it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slack {
    /// Bytes beyond the stream's window.
    pub stream: usize,
    /// Bytes that wait in all streams together.
    pub session: usize,
    /// A full stream of which nothing was read for so long is thrown away; `None`: its client waits.
    pub patience: Option<Duration>,
}

type Write = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection that speaks SPDY/3.1.
#[derive(Clone)]
pub(crate) struct Session(Arc<Shared>);

struct Shared {
    limits: Limits,
    activity: Arc<Activity>,
    write: tokio::sync::Mutex<Write>,
    queue: Mutex<Queue>,
    queued: Notify,
    streams: Mutex<Streams>,
    /// Windows or streams have changed.
    changed: Notify,
}

struct Queue {
    bytes: Vec<u8>,
    blocks: EmptyBlocks,
    /// Taken out of the session's window, and not yet given back.
    taken: usize,
    overflown: bool,
}

/// A stream that the client has opened. It waits for an answer: [`Stream::accept`], or dropping it to refuse.
pub(crate) struct Stream {
    /// With which it was opened.
    pub headers: Headers,
    source: Source,
    sink: Sink,
}

/// The writing half of a stream. Dropping it without [`Sink::finish`] throws the stream away.
pub(crate) struct Sink {
    session: Session,
    id: u32,
    status: Status,
}

impl Session {
    /// A session that writes to `write`; `activity` is told of what happens.
    pub(crate) fn new(write: Write, limits: Limits, activity: Arc<Activity>) -> Session {
        let mut bytes = Vec::new();
        frame::put_setting(&mut bytes, frame::INITIAL_WINDOW_SIZE, limits.inbox as u32);
        let grant = Grant { stream: limits.inbox, session: FIRST_WINDOW as usize };
        let session = Session(Arc::new(Shared {
            limits,
            activity,
            write: tokio::sync::Mutex::new(write),
            queue: Mutex::new(Queue { bytes, blocks: EmptyBlocks::default(), taken: 0, overflown: false }),
            queued: Notify::new(),
            streams: Mutex::new(Streams::new(limits.streams, grant)),
            changed: Notify::new(),
        }));
        session.0.queued.notify_one();
        session.allow(0, (limits.inbox * 4).saturating_sub(FIRST_WINDOW as usize));
        session
    }

    /// Read frames and write control frames until the client goes; its streams go to `opened`. Resolves with the end of
    /// the connection. Dropped, it leaves a session of no use.
    ///
    /// # Errors
    /// The connection broke, or what came is not SPDY.
    pub(crate) async fn run(
        &self,
        mut read: impl AsyncRead + Unpin,
        opened: mpsc::Sender<Stream>,
    ) -> io::Result<()> {
        let ended = tokio::select! {
            ended = self.read(&mut read, &opened) => ended,
            ended = self.write_queue() => ended,
        };
        self.lock().end();
        self.0.changed.notify_waiters();
        ended
    }

    /// Say that the session is over, and that nothing more will be sent. What was queued is sent before.
    pub(crate) async fn finish(&self) -> io::Result<()> {
        self.away(Away::Ok);
        self.flush().await?;
        self.0.write.lock().await.shutdown().await
    }

    async fn read(
        &self,
        read: &mut (impl AsyncRead + Unpin),
        opened: &mpsc::Sender<Stream>,
    ) -> io::Result<()> {
        let (mut decoder, mut inflater) = (Decoder::default(), Inflater::new());
        let mut buffer = vec![0; READ.max(HEAD + LARGEST_CONTROL)];
        let mut end = 0;
        loop {
            let count = read.read(&mut buffer[end..]).await?;
            if count == 0 {
                return Ok(());
            }
            end += count;
            let mut start = 0;
            loop {
                match self.event(&mut decoder, &mut inflater, &buffer[start..end], opened).await {
                    Ok(0) => break,
                    Ok(took) => start += took,
                    Err(Malformed(why)) => {
                        self.away(Away::ProtocolError);
                        let _ = timeout(SIGN_OF_LIFE, self.flush()).await;
                        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                    }
                }
            }
            buffer.copy_within(start..end, 0);
            end -= start;
        }
    }

    /// Decode and obey one frame, or a piece of one; how many bytes it had.
    async fn event(
        &self,
        decoder: &mut Decoder,
        inflater: &mut Inflater,
        input: &[u8],
        opened: &mpsc::Sender<Stream>,
    ) -> Result<usize, Malformed> {
        let Some((event, took)) = decoder.next(input)? else { return Ok(0) };
        match event {
            Event::Data { id, piece, fin } => {
                self.data(id, piece).await?;
                if fin {
                    self.lock().theirs_ended(id);
                }
            }
            Event::Control(Control::SynStream { id, fin, block }) => {
                let headers = inflater.headers(block)?;
                self.open(id, fin, headers, opened);
            }
            Event::Control(Control::Headers { id, fin, block }) => {
                inflater.headers(block)?;
                if fin {
                    self.lock().theirs_ended(id);
                }
            }
            Event::Control(Control::SynReply { block }) => drop(inflater.headers(block)?),
            Event::Control(control) => self.obey(control)?,
        }
        if self.queue().overflown {
            return Err(Malformed("more pings and resets than are read"));
        }
        Ok(took)
    }

    fn open(&self, id: u32, fin: bool, headers: Headers, opened: &mpsc::Sender<Stream>) {
        self.0.activity.note();
        let (feed, source) = inbox(self.0.limits.inbox);
        let opening = self.lock().open(id, fin, feed);
        if let Opening::Reset(status) = opening {
            return self.enqueue(|queue| frame::put_reset(&mut queue.bytes, id, status));
        }
        let (session, unacknowledged) = (self.clone(), Mutex::new(0));
        let source = source.when_taken(move |count| session.taken_from(id, count, &unacknowledged));
        let sink = Sink { session: self.clone(), id, status: Status::RefusedStream };
        // one that nobody waits for is dropped, and with it refused
        let _ = opened.try_send(Stream { headers, source, sink });
    }

    fn obey(&self, control: Control<'_>) -> Result<(), Malformed> {
        match control {
            Control::RstStream { id } => {
                self.lock().reset(id);
                self.0.changed.notify_waiters();
            }
            Control::Settings(settings) => {
                if let Some(size) = settings.get(frame::INITIAL_WINDOW_SIZE) {
                    self.lock().set_first_window(size);
                    self.0.changed.notify_waiters();
                }
            }
            // ours are even, and not waited for
            Control::Ping { id } if id % 2 == 1 => {
                self.enqueue(|queue| frame::put_ping(&mut queue.bytes, id));
            }
            Control::WindowUpdate { id, delta } => {
                let widened = self.lock().widen(id, delta);
                match widened {
                    Ok(()) => self.0.changed.notify_waiters(),
                    Err(_) if id == 0 => return Err(Malformed("a session's window that is too large")),
                    Err(status) => self.reset(id, status),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Hand a piece of data to its stream, waiting until there is room.
    async fn data(&self, id: u32, piece: &[u8]) -> Result<(), Malformed> {
        self.0.activity.note();
        let arrived = self.lock().arrived(id, piece.len());
        match arrived {
            Ok(()) => self.deliver(id, piece).await,
            Err(Overflow::Session) => return Err(Malformed("more data than the session's window allows")),
            Err(Overflow::Stream) => {
                self.taken(piece.len());
                self.reset(id, Status::FlowControlError);
            }
        }
        Ok(())
    }

    async fn deliver(&self, id: u32, mut piece: &[u8]) {
        let Slack { stream, session, patience } = self.0.limits.slack;
        loop {
            let delivered = {
                let streams = self.lock();
                let slack = streams.slack(session).min(stream);
                streams.feed(id).map(|feed| (feed.push_beyond(piece, slack), feed.room()))
            };
            let ((count, thrown_away), room) = match delivered {
                Ok(delivered) => delivered,
                Err(never_opened) => return self.nowhere(id, piece.len(), never_opened),
            };
            piece = &piece[count..];
            self.taken(thrown_away);
            if piece.is_empty() {
                return;
            }
            let waited = timeout(patience.unwrap_or(SIGN_OF_LIFE), room).await;
            if waited.is_err() && patience.is_some() {
                // the next turn finds no stream
                self.give_up(id);
            } else if waited.is_err() {
                self.enqueue(|queue| frame::put_ping(&mut queue.bytes, 2));
            }
        }
    }

    /// Data for a stream that is gone, or never was.
    fn nowhere(&self, id: u32, count: usize, never_opened: bool) {
        self.taken(count);
        if never_opened {
            self.enqueue(|queue| frame::put_reset(&mut queue.bytes, id, Status::InvalidStream));
        }
    }

    /// Throw a stream away of which nothing is read, so that the others of its session go on.
    fn give_up(&self, id: u32) {
        if let Ok(feed) = self.lock().feed(id) {
            feed.give_up();
        }
        self.reset(id, Status::FlowControlError);
    }

    /// Write queued control frames as they come.
    async fn write_queue(&self) -> io::Result<()> {
        loop {
            self.0.queued.notified().await;
            self.flush().await?;
        }
    }

    async fn flush(&self) -> io::Result<()> {
        let mut write = self.0.write.lock().await;
        let bytes = std::mem::take(&mut self.queue().bytes);
        write.write_all(&bytes).await?;
        write.flush().await
    }

    fn enqueue(&self, put: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue();
        if queue.bytes.len() > MOST_QUEUED {
            queue.overflown = true;
            return;
        }
        put(&mut queue);
        drop(queue);
        self.0.queued.notify_one();
    }

    fn away(&self, why: Away) {
        let last = self.lock().last;
        self.enqueue(|queue| frame::put_away(&mut queue.bytes, last, why));
    }

    /// Throw a stream away and tell the client; 0: nothing.
    fn reset(&self, id: u32, status: Status) {
        let known = self.lock().reset(id);
        if known {
            self.enqueue(|queue| frame::put_reset(&mut queue.bytes, id, status));
        }
        self.0.changed.notify_waiters();
    }

    /// `count` bytes that have come wait no longer: once they are many, let the client send as many more.
    fn taken(&self, count: usize) {
        if count == 0 {
            return;
        }
        self.lock().taken(count);
        let mut queue = self.queue();
        queue.taken += count;
        if queue.taken >= self.0.limits.inbox {
            let delta = std::mem::take(&mut queue.taken);
            drop(queue);
            self.allow(0, delta);
        }
    }

    /// The same for a stream, whose count is `sum`.
    fn taken_from(&self, id: u32, count: usize, sum: &Mutex<usize>) {
        self.taken(count);
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        *sum += count;
        if *sum >= self.0.limits.inbox / 2 && self.lock().is_fed(id) {
            self.allow(id, std::mem::take(&mut *sum));
        }
    }

    /// Let the client send so much more on a stream, or (id 0) on all together.
    fn allow(&self, id: u32, delta: usize) {
        // before it is told, so that nothing which it sends for that counts as too much
        self.lock().allow(id, delta);
        self.enqueue(|queue| frame::put_window(&mut queue.bytes, id, delta as u32));
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    /// Tell the client that the stream is welcome.
    pub(crate) fn accept(mut self) -> (Source, Sink) {
        self.sink.status = Status::Cancel;
        let id = self.sink.id;
        self.sink.session.enqueue(|queue| {
            let block = queue.blocks.next();
            frame::put_reply(&mut queue.bytes, id, &block);
        });
        (self.source, self.sink)
    }

    /// Number of the stream.
    pub(crate) fn id(&self) -> u32 {
        self.sink.id
    }
}

impl Sink {
    /// Send a payload. Must not be cancelled while the session is to go on.
    ///
    /// # Errors
    /// [`Reset`]: the client does not want it, or has gone.
    pub(crate) async fn send(&mut self, outgoing: &mut Outgoing) -> Result<(), Reset> {
        let mut sent = 0;
        while sent < outgoing.len() {
            let count = self.reserve((outgoing.len() - sent).min(LARGEST_DATA)).await?;
            let framed = outgoing.framed(&frame::data_head(self.id, false, count), sent, count);
            let mut write = self.session.0.write.lock().await;
            let written = async {
                write.write_all(framed).await?;
                write.flush().await
            };
            written.await.map_err(|_| Reset)?;
            drop(write);
            self.session.0.activity.note();
            sent += count;
        }
        Ok(())
    }

    /// Send a last few bytes (which windows do not hold up), and that they are the last.
    pub(crate) fn finish(self, last: &[u8]) {
        let session = &self.session;
        if session.lock().ours_ended(self.id) {
            session.enqueue(|queue| {
                queue.bytes.extend_from_slice(&frame::data_head(self.id, true, last.len()));
                queue.bytes.extend_from_slice(last);
            });
        }
    }

    /// Whether the client has thrown the stream away, or has gone.
    pub(crate) fn is_gone(&self) -> bool {
        !self.session.lock().is_open(self.id)
    }

    /// Wait until the client throws the stream away, or has gone.
    pub(crate) async fn gone(&self) {
        let shared = &self.session.0;
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_gone() {
                return;
            }
            changed.await;
        }
    }

    async fn reserve(&self, wanted: usize) -> Result<usize, Reset> {
        let shared = &self.session.0;
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.session.lock().reserve(self.id, wanted) {
                Room::Bytes(count) => return Ok(count),
                Room::Gone => return Err(Reset),
                Room::None => {}
            }
            changed.await;
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.is_gone() {
            self.session.reset(self.id, self.status);
        }
    }
}
