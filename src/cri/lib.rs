//! The CRI gRPC services: parse, call the engine, render.
//!
//! ```text
//!   client ──HTTP/2 on a Unix socket──▶ serve ─▶ runtime_service / image_service
//!                                                 │ parse::*    message → engine::config, or a refusal by field
//!                                                 │ call        a task, a span, a word when it takes long
//!                                                 │ engine      does it
//!                                                 │ render::*   engine::status → message
//!                                                 ▼ status      engine::Error → gRPC status, in one place
//! ```
//!
//! The definition is ours (`proto/cri/v1/cri.proto`), wire-compatible with CRI v1 of Kubernetes 1.37. The generated
//! code, server and client, is [`proto`].
//!
//! What must never happen: logic in a handler; a field that changes how a workload runs and is dropped silently; a
//! request that is half done because its client went away; a registry password in a log.

#![forbid(unsafe_code)]

mod call;
pub mod client;
mod image_service;
mod lists;
mod parse;
pub mod proto;
mod render;
mod runtime_service;
mod serve;
mod sessions;
mod status;
mod streams;

pub use serve::{Info, serve};
pub use sessions::Sessions;
