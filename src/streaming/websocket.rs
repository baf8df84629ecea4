//! WebSocket: numbered channels in messages, and the tunnel that carries another protocol's bytes.
//!
//! Each message begins with the number of its channel: a byte, or in the base64 variants a digit before text. From v5 on
//! a client half closes a channel with a message of two bytes, 255 and the number. The server closes only the whole.
//!
//! There is no flow control but the connection's own: a channel whose inbox is full stops the reading, of this client
//! only. Meanwhile its pings are not seen; so that it does not give up, pongs that it has not asked for are sent. Channels that
//! have nothing to do with each other (ports) do not wait long: one of which nothing is read is thrown away.
//!
//! A client that breaks the protocol fails its connection (RFC 6455 7.1.7): whatever is served on it ends, and it is told
//! why in a Close.
//!
//! What must never happen: a message that is larger than [`LARGEST_MESSAGE`] in memory; a message written in part.

use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
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

/// For a client that broke the protocol to read why, and to close.
const FAREWELL: Duration = Duration::from_secs(5);

/// So much of what it sends meanwhile is thrown away.
const MOST_IGNORED: u64 = 8 << 20;

/// Bytes of a Close's reason: a control frame has 125, two of which are the code.
const LONGEST_REASON: usize = 123;

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
    /// `None`: the connection has failed.
    write: Mutex<Option<SplitSink<Stream, Message>>>,
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

/// What a client did that the protocol does not allow.
#[derive(Debug)]
struct Violation {
    code: CloseCode,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Violation {}

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
        let socket = Socket(Arc::new(Shared { write: Mutex::new(Some(write)), codec, activity }));
        (socket.clone(), Reading { read, socket, feeds, half_close, patience: None })
    }

    /// The channel with this number.
    pub(crate) fn channel(&self, number: u8) -> Channel {
        Channel { socket: self.clone(), number }
    }

    /// Say that all is over, and the reason if it is not that all is done.
    pub(crate) async fn finish(&self, reason: Option<&str>) -> io::Result<()> {
        let code = if reason.is_some() { CloseCode::Away } else { CloseCode::Normal };
        let frame = CloseFrame { code, reason: short(reason.unwrap_or_default()).into() };
        self.send(Message::Close(Some(frame))).await
    }

    async fn send(&self, message: Message) -> io::Result<()> {
        let mut write = self.0.write.lock().await;
        let write = write.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        write.send(message).await.map_err(broken)
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
    pub(crate) async fn run(&mut self) -> io::Result<()> {
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

    /// After [`Reading::run`] failed with `error`: if the client broke the protocol, tell it, and give it [`FAREWELL`]. Nobody
    /// may be sending any more.
    pub(crate) async fn fail(self, error: &io::Error) {
        let violation = error.get_ref().and_then(|error| error.downcast_ref::<Violation>());
        let (Some(Violation { code, what }), Some(write)) =
            (violation, self.socket.0.write.lock().await.take())
        else {
            return;
        };
        let Ok(mut stream) = write.reunite(self.read) else { return };
        drop(self.feeds);
        let frame = CloseFrame { code: *code, reason: short(what).into() };
        let told = timeout(FAREWELL, async {
            stream.send(Message::Close(Some(frame))).await.map_err(broken)?;
            // what it has sent in pieces is not needed any more
            let mut connection = stream.into_inner();
            connection.shutdown().await?;
            // closing while the client still sends would destroy what it has not read yet
            tokio::io::copy(&mut connection.take(MOST_IGNORED), &mut tokio::io::sink()).await?;
            Ok::<_, io::Error>(())
        });
        if !matches!(told.await, Ok(Ok(()))) {
            tracing::debug!(what, "a client that broke the protocol did not close");
        }
    }

    async fn message(&mut self, message: &[u8]) -> io::Result<()> {
        let Some((number, payload)) = message.split_first() else { return Ok(()) };
        if self.half_close && *number == CLOSES {
            return match payload {
                [number] => {
                    // channels that nobody reads: as with data
                    if let Some(feed) = self.feeds.get_mut(usize::from(*number)).and_then(Option::take) {
                        feed.end();
                    }
                    Ok(())
                }
                rest => Err(invalid(format!("a half close names one channel, not {}", rest.len()))),
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

/// As much of a reason as a Close takes.
fn short(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(LONGEST_REASON)]
}

fn broken(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            io::ErrorKind::BrokenPipe.into()
        }
        tungstenite::Error::Protocol(gone @ ProtocolError::ResetWithoutClosingHandshake) => {
            io::Error::new(io::ErrorKind::ConnectionReset, gone)
        }
        tungstenite::Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
            violation(CloseCode::Size, format!("a message of more than {max_size} bytes"))
        }
        tungstenite::Error::Utf8(what) => violation(CloseCode::Invalid, what),
        tungstenite::Error::Protocol(what) => invalid(what.to_string()),
        other => invalid(other.to_string()),
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    violation(CloseCode::Protocol, what)
}

fn violation(code: CloseCode, what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Violation { code, what: what.into() })
}
