//! Safe wrappers over the kernel: the only crate with unsafe code.

pub mod netns;

pub mod memory;
pub mod socket;

pub mod path;
pub mod memfd;

pub mod cgroup;
pub mod process;
