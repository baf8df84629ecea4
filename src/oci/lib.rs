//! Names and specifications: ids, digests, references, OCI types and their checks. Pure: no I/O.

#![forbid(unsafe_code)]

pub mod id;
pub mod seccomp;
mod seccomp_file;
mod seccomp_table;

pub use id::{ContainerId, PodId};
