//! A stream that the server writes, whatever the protocol.

use crate::inbox::Reset;
use crate::outgoing::Outgoing;
use crate::{spdy, websocket};

/// The writing half of a stream. Dropping it means that it is thrown away, where the protocol can say so.
pub(crate) enum Sink {
    /// A stream of a SPDY session.
    Spdy(spdy::Sink),
    /// A channel in a WebSocket.
    Channel(websocket::Channel),
}

impl Sink {
    /// Send a payload. Must not be cancelled while the connection is to go on.
    ///
    /// # Errors
    /// [`Reset`]: the client does not want it, or has gone.
    pub(crate) async fn send(&mut self, outgoing: &mut Outgoing) -> Result<(), Reset> {
        match self {
            Sink::Spdy(sink) => sink.send(outgoing).await,
            Sink::Channel(channel) => channel.send(outgoing.payload()).await,
        }
    }

    /// Send a last few bytes, and that they are the last. A client that has gone misses them.
    pub(crate) async fn finish(self, last: &[u8]) {
        match self {
            Sink::Spdy(sink) => sink.finish(last),
            Sink::Channel(mut channel) if !last.is_empty() => drop(channel.send(last).await),
            Sink::Channel(_) => {}
        }
    }

    /// Whether the client has thrown the stream away, or has gone (as far as the protocol can say so).
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Sink::Spdy(sink) => sink.is_gone(),
            Sink::Channel(_) => false,
        }
    }

    /// Wait until the client throws the stream away, or has gone (as far as the protocol can say so).
    pub(crate) async fn gone(&self) {
        match self {
            Sink::Spdy(sink) => sink.gone().await,
            Sink::Channel(_) => std::future::pending().await,
        }
    }
}
