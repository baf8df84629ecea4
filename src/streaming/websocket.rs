//! WebSocket: numbered channels in messages, and the tunnel that carries another protocol's bytes.
//!
//! Each message begins with the number of its channel: a byte, or in the base64 variants a digit before text. From v5 on
//! a client half closes a channel with a message of two bytes, 255 and the number. The server closes only the whole.
//!
//! There is no flow control but the connection's own: a channel whose inbox is full stops the reading, of this client
//! only. Meanwhile its pings are not seen; so that it does not give up, pongs that it has not asked for are sent. Channels that
//! have nothing to do with each other (ports) do not wait long: one of which nothing is read is thrown away.
//!
//! What must never happen: a message that is larger than [`LARGEST_MESSAGE`] in memory; a message written in part.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use crate::activity::Activity;
use crate::inbox::{Feed, Reset};

/// Largest message that is taken from a client.
const LARGEST_MESSAGE: usize = 16 << 20;

/// So often a client whose data cannot be taken is told that we live.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// The first byte of a message that half closes a channel.
const CLOSES: u8 = 255;

type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// How channels and payloads are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Number and payload as they are.
    Binary,
    /// A digit, and the payload in base64.
    Base64,
}

/// The channels of a connection: the writing half.
#[derive(Clone)]
pub(crate) struct Socket(Arc<Shared>);

struct Shared {
    write: Mutex<SplitSink<Stream, Message>>,
    codec: Codec,
    activity: Arc<Activity>,
}

/// The reading half.
pub(crate) struct Reading {
    read: SplitStream<Stream>,
    socket: Socket,
    /// By number; `None`: nothing is taken on it.
    feeds: Vec<Option<Feed>>,
    /// Whether the client can half close (v5).
    half_close: bool,
    /// A full channel of which nothing was read for so long is thrown away; `None`: the client waits.
    patience: Option<Duration>,
}

/// A channel that we write.
pub(crate) struct Channel {
    socket: Socket,
    number: u8,
}

/// A WebSocket on a connection that was upgraded.
pub(crate) async fn open(connection: Upgraded) -> Stream {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE))
        .max_write_buffer_size(LARGEST_MESSAGE);
    WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, Some(config)).await
}

impl Socket {
    /// Channels in `stream`; what the client sends goes to `feeds`.
    pub(crate) fn new(
        stream: Stream,
        codec: Codec,
        feeds: Vec<Option<Feed>>,
        half_close: bool,
        activity: Arc<Activity>,
    ) -> (Socket, Reading) {
        let (write, read) = stream.split();
        let socket = Socket(Arc::new(Shared { write: Mutex::new(write), codec, activity }));
        (socket.clone(), Reading { read, socket, feeds, half_close, patience: None })
    }

    /// The channel with this number.
    pub(crate) fn channel(&self, number: u8) -> Channel {
        Channel { socket: self.clone(), number }
    }

    /// Say that all is over, and why not if so.
    pub(crate) async fn finish(&self) -> io::Result<()> {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.send(Message::Close(Some(frame))).await
    }

    async fn send(&self, message: Message) -> io::Result<()> {
        self.0.write.lock().await.send(message).await.map_err(broken)
    }
}

impl Channel {
    /// Send a payload. Must not be cancelled while the connection is to go on.
    ///
    /// # Errors
    /// [`Reset`]: the client has gone.
    pub(crate) async fn send(&mut self, payload: &[u8]) -> Result<(), Reset> {
        let shared = &self.socket.0;
        let message = match shared.codec {
            Codec::Binary => {
                let mut message = BytesMut::with_capacity(1 + payload.len());
                message.extend_from_slice(&[self.number]);
                message.extend_from_slice(payload);
                Message::Binary(message.freeze())
            }
            Codec::Base64 => {
                let mut text = String::with_capacity(1 + payload.len().div_ceil(3) * 4);
                text.push(char::from(b'0'.wrapping_add(self.number)));
                STANDARD.encode_string(payload, &mut text);
                Message::Text(text.into())
            }
        };
        self.socket.send(message).await.map_err(|_| Reset)?;
        shared.activity.note();
        Ok(())
    }
}

impl Reading {
    /// Throw a channel away of which nothing is read for `patience`, so that the others go on.
    pub(crate) fn with_patience(self, patience: Option<Duration>) -> Reading {
        Reading { patience, ..self }
    }

    /// Hand messages to their channels until the client closes or goes.
    ///
    /// # Errors
    /// The connection broke, or what came is none of the protocol.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        while let Some(message) = self.read.next().await {
            let message = match message.map_err(broken)? {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => {
                    // our answer is written while the end is read
                    while let Some(Ok(_)) = self.read.next().await {}
                    return Ok(());
                }
                _ => continue,
            };
            self.socket.0.activity.note();
            self.message(&message).await?;
        }
        Ok(())
    }

    async fn message(&mut self, message: &[u8]) -> io::Result<()> {
        let Some((number, payload)) = message.split_first() else { return Ok(()) };
        if self.half_close && *number == CLOSES {
            return match payload {
                [number] if usize::from(*number) < self.feeds.len() => {
                    if let Some(feed) = self.feeds[usize::from(*number)].take() {
                        feed.end();
                    }
                    Ok(())
                }
                _ => Err(invalid("a half close that names no channel")),
            };
        }
        let (number, decoded);
        let payload = match self.socket.0.codec {
            Codec::Binary => {
                number = message[0];
                payload
            }
            Codec::Base64 => {
                number = message[0].wrapping_sub(b'0');
                decoded = STANDARD.decode(payload).map_err(|_| invalid("a message that is not base64"))?;
                &decoded
            }
        };
        // channels that nobody reads: as other servers do
        let Some(Some(feed)) = self.feeds.get(usize::from(number)) else { return Ok(()) };
        let mut rest = payload;
        loop {
            rest = &rest[feed.push(rest)..];
            if rest.is_empty() {
                return Ok(());
            }
            let waited = timeout(self.patience.unwrap_or(SIGN_OF_LIFE), feed.room()).await;
            if waited.is_err() && self.patience.is_some() {
                feed.give_up();
            } else if waited.is_err() {
                self.socket.send(Message::Pong(Bytes::new())).await?;
            }
        }
    }
}

/// The two halves of a tunnel: binary messages, one after the other, as bytes.
pub(crate) fn tunnel(
    stream: Stream,
) -> (impl AsyncRead + Send + Unpin, impl AsyncWrite + Send + Unpin + 'static) {
    let (write, read) = stream.split();
    let pieces = read.filter_map(|message| {
        std::future::ready(match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(broken(error))),
        })
    });
    let messages = write
        .sink_map_err(broken)
        .with(|bytes: Bytes| std::future::ready(Ok::<_, io::Error>(Message::Binary(bytes))));
    (StreamReader::new(pieces), SinkWriter::new(CopyToBytes::new(messages)))
}

fn broken(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            io::ErrorKind::BrokenPipe.into()
        }
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
