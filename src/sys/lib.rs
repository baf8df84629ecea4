//! Safe wrappers over the kernel: the only crate with unsafe code.

pub mod netns;

pub mod inherit;
pub mod memory;
pub mod socket;
pub mod terminal;

pub mod path;
pub mod memfd;

pub mod cgroup;
pub mod cgroup_devices;
pub mod cgroup_usage;
pub mod mount;
pub mod namespace;
pub mod own_program;
pub mod prctl;
pub mod process;
pub mod seccomp;
pub mod tty;
