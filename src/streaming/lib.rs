//! The exec, attach and port-forward server: HTTP, SPDY/3.1 and WebSocket over a trait. It knows no pods.
//!
//! ```text
//!  client ──▶ server ─▶ request ─▶ conversation ─┬─▶ remote  ── exec, attach ─▶ Backend
//!             TLS, HTTP  token,     one task      └─▶ forward ── connections ─▶ Backend
//!                        protocol   │
//!                                   ├─ spdy         streams of a session ─┐
//!                                   └─ websocket    channels, tunnel ─────┴─▶ inbox (in), sink (out)
//! ```
//!
//! Runs in the daemon; each connection is one task that owns all of it, so whatever happens to it ends with it. A URL is
//! made for each allowed call and works once. What the client sends is never trusted, what it does not read never held
//! beyond one buffer for each stream.
//!
//! What must never happen: a slow or vanished client that a container or another client feels; bytes that are lost or
//! reordered; a session that outlives its client, its container or its idle timeout.

#![forbid(unsafe_code)]

mod activity;
mod backend;
mod conversation;
mod forward;
mod inbox;
mod outgoing;
mod remote;
mod request;
mod resize;
mod server;
mod sink;
mod spdy;
mod status;
mod tls;
mod tokens;
mod websocket;

pub use backend::{Attach, Backend, Duplex, End, Exec, Forward, Refusal, RefusalKind, Resize, Session, Size};
pub use futures_util::future::BoxFuture;
pub use server::{Server, Settings};
pub use tls::{TlsFiles, TlsProblem};
