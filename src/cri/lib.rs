//! The CRI gRPC services: parse, call the engine, render.
#![forbid(unsafe_code)]
pub mod proto;
