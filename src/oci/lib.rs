//! Names and specifications: ids, digests, references, OCI types and their checks. Pure: no I/O.

#![forbid(unsafe_code)]

pub mod id;

pub use id::{ContainerId, PodId};
