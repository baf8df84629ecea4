//! SPDY/3.1, the server's side, as far as Kubernetes uses it: streams that the client opens, with headers, read and
//! written independently.
//!
//! ```text
//!            ┌──────────── Session ────────────┐
//!  client ──▶ read: decoder ─▶ inbox of stream ─▶ Stream.source
//!         ◀── write ◀── control frames (queued) │
//!            └─── ▲ ───────────────────────────┘
//!                 └── data frames, one writer at a time ◀── Stream.sink
//! ```
//!
//! One task per connection runs all of it; [`Session::run`] is the reading half and the queue of control frames.
//!
//! **Flow control.** What comes: each stream has an inbox as large as the window that it is announced with, and
//! WINDOW_UPDATE is sent as it is read. Kubernetes' own library knows nothing of windows: it sends what it likes and drops
//! WINDOW_UPDATE. Such a client gets some [`Slack`] beyond its windows; when that is full, the reading of its whole connection
//! stops, which only this client feels. Where its streams have nothing to do with each other (port-forward), one of which nothing is
//! read for a while is thrown away for the others. A client that has shown that it keeps windows has no such excuse: data beyond a
//! stream's window throws the stream away, data beyond the session's ends the session. What
//! goes: windows are kept once the client has shown that it has any, by SETTINGS or WINDOW_UPDATE; else the connection's
//! own flow control has to do, or that library's sessions would stop after 64 KiB.
//!
//! What must never happen: a frame that is written in part (a write, once begun, is finished or the session ends), memory
//! that the client decides about (streams, inboxes, header blocks and queued control frames are bounded), a frame for a
//! stream that is gone ending a session (Kubernetes' library sends such).

mod frame;
mod headers;
mod session;
mod state;

pub(crate) use session::{Limits, Session, Sink, Slack, Stream};
