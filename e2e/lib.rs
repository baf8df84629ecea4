//! Whole-node tests with real clients, and the benchmark.

#![forbid(unsafe_code)]

pub mod client;
pub mod pty;
