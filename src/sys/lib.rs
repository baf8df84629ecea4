//! Safe wrappers over the kernel: the only crate with unsafe code.
//!
//! | modules | |
//! |---|---|
//! | `process`, `namespace`, `netns`, `prctl`, `seccomp` | what a process is |
//! | `interface_counters` | what went through a network namespace |
//! | `path`, `mount` | file trees that somebody else has filled, by descriptor |
//! | `cgroup`, `cgroup_devices`, `cgroup_usage` | limits and what was used, v1 and v2 |
//! | `memfd`, `own_program`, `inherit`, `memory` | our own programs: how they start and what they hold |
//! | `socket`, `tty`, `terminal` | descriptors over sockets, terminals |
//!
//! What must never happen: a descriptor with two owners, or an unsafe block whose precondition nobody upholds.

pub mod cgroup;
pub mod cgroup_devices;
pub mod cgroup_usage;
pub mod inherit;
pub mod interface_counters;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netns;
pub mod own_program;
pub mod path;
pub mod prctl;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod terminal;
pub mod tty;
pub mod user_namespace;
