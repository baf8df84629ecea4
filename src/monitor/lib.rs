//! The pod monitor: one process per pod, its protocol and its client; and the OCI runtime command line.

#![forbid(unsafe_code)]

pub mod protocol;
