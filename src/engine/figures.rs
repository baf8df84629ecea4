//! What containers and pods use: the figures that the engine answers with. Reading them: `usage`.

use std::path::PathBuf;

pub use sys::cgroup_usage::{Details, DeviceIo, HugePages, Pressure, Pressures, Stall, Usage};
pub use sys::interface_counters::{Counters, Interface};

use crate::status::{ContainerStatus, PodStatus};

/// What the processes of a cgroup use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CgroupFigures {
    /// What the kernel counts.
    pub usage: Usage,
    /// CPU time per second over a recent window, in nanoseconds.
    pub nano_cores: u64,
    /// What was waited for.
    pub pressures: Pressures,
}

impl CgroupFigures {
    /// Memory in use without page cache that could be dropped easily, bytes.
    pub fn working_set(&self) -> u64 {
        self.usage.memory.saturating_sub(self.usage.inactive_file)
    }

    /// What of the memory limit is left, bytes; `None`: there is no limit.
    pub fn memory_available(&self) -> Option<u64> {
        self.usage.memory_limit.map(|limit| limit.saturating_sub(self.working_set()))
    }

    /// What of the swap limit is left, bytes; `None`: there is no limit.
    pub fn swap_available(&self) -> Option<u64> {
        self.usage.swap_limit.map(|limit| limit.saturating_sub(self.usage.swap))
    }
}

/// What a container uses, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerUsage {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// `None`: it does not run.
    pub cgroup: Option<CgroupFigures>,
    /// Where the writable layer is.
    pub writable_path: PathBuf,
    /// Size of the writable layer, bytes.
    pub writable_bytes: u64,
    /// Inodes of the writable layer.
    pub writable_inodes: u64,
}

/// What a pod uses, at one moment.
#[derive(Clone, Debug)]
pub struct PodUsage {
    /// Whose figures these are.
    pub status: PodStatus,
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// All its containers together.
    pub cgroup: CgroupFigures,
    /// Its interfaces without loopback; none with the host's network.
    pub network: Vec<Interface>,
    /// Processes of all its containers.
    pub processes: u64,
    /// Its running containers.
    pub containers: Vec<(ContainerStatus, ContainerUsage)>,
}

/// What the processes of a cgroup hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// How many there are.
    pub count: u64,
    /// Their open descriptors.
    pub descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
}

/// The file system on which a writable layer lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filesystem {
    /// What is mounted: a device, or the name of a file system without one.
    pub device: String,
    /// Bytes.
    pub size: u64,
    /// All inodes; 0: it does not count them.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// Everything that is measured of a running container.
#[derive(Clone, Debug)]
pub struct ContainerMetrics {
    /// Whose metrics these are.
    pub status: ContainerStatus,
    /// Path of its cgroup.
    pub cgroup: String,
    /// What every poll gets.
    pub usage: ContainerUsage,
    /// The rest of what the kernel counts.
    pub details: Details,
    /// What its processes hold.
    pub processes: Processes,
    /// Soft limit of open files of its first process; `None`: unlimited.
    pub open_files_limit: Option<u64>,
    /// Where its writable layer is.
    pub filesystem: Filesystem,
}

/// Everything that is measured of a ready pod.
#[derive(Clone, Debug)]
pub struct PodMetrics {
    /// Path of its cgroup.
    pub cgroup: String,
    /// What every poll gets, without the containers.
    pub usage: PodUsage,
    /// The rest of what the kernel counts for the pod's cgroup.
    pub details: Details,
    /// Its running containers.
    pub containers: Vec<ContainerMetrics>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_set_leaves_out_what_can_be_dropped() {
        let usage = Usage { memory: 100, inactive_file: 30, memory_limit: Some(90), ..Usage::default() };
        let mut figures = CgroupFigures { usage, ..Default::default() };
        assert_eq!((figures.working_set(), figures.memory_available()), (70, Some(20)));
        figures.usage.memory_limit = None;
        assert_eq!((figures.memory_available(), figures.swap_available()), (None, None));
    }
}
