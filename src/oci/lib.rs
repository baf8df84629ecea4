//! Names and specifications: ids, digests, references, OCI types and their checks. Pure: no I/O.

#![forbid(unsafe_code)]

pub mod cgroup;
pub mod digest;
pub mod environment;
pub mod id;
pub mod id_map;
pub mod media;
pub mod null;
pub mod platform;
pub mod reference;
pub mod runtime;
pub mod seccomp;
mod seccomp_file;
mod seccomp_table;

pub use digest::{Algorithm, BadDigest, Digest};
pub use id::{ContainerId, PodId};
pub use id_map::{IdMaps, IdRange};
pub use platform::Platform;
pub use reference::{BadReference, Reference};
