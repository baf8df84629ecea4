//! The pod monitor: one process per pod, its protocol and its client; and the OCI runtime command line.
//!
//! ```text
//! protocol, frame   what is said          client      the daemon's side
//! supervisor        the monitor's loop    sandbox     its namespaces (in a user namespace: owned), sysctls
//! reaper            init of its PID namespace
//! lines, log        CRI logs              record      exit records and pid files
//! ```

#![forbid(unsafe_code)]

mod attached;
mod clients;
mod container;
mod events;
mod exits;
mod output;
mod owned;
mod peer;
mod reaper;
mod removal;
mod requests;
mod sandbox;
mod session;

pub mod client;
pub mod frame;
pub mod lines;
pub mod log;
pub mod probe;
pub mod protocol;
pub mod record;
pub mod supervisor;

pub use sandbox::sysctl_path;

pub use client::{Client, ClientError, Connection};
