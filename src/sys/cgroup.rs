//! cgroups of this node, version 1, version 2 and both at once ("hybrid").
//!
//! A cgroup is a path such as `/corten/<id>` that is the same below every hierarchy that is mounted. Where the
//! hierarchies are is looked up once per process ([`Layout::host`]): the layout of a node does not change while
//! it runs. In a v1 or hybrid layout each controller is where the kernel has it.
//!
//! Joining. Writing `cgroup.procs` makes the kernel wait for an RCU grace period (8 ms and more when nobody has moved a
//! process for a while), so nobody does that here: on v2 a process is born in its cgroup (`clone3`), on v1 a
//! single-threaded process moves *itself* by writing `0` to `tasks` ([`Cgroup::enter_v1`]), which needs no such lock
//! since Linux 5.5: 0.2 ms for nine hierarchies where `cgroup.procs` took 11 ms.

use std::io;

/// A cgroup, by its path below the root of each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: String,
}

/// What a cgroup has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all processes so far, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged now, in bytes (with page cache).
    pub memory: u64,
    /// Page cache that could be dropped first, in bytes; working set = `memory` - this.
    pub inactive_file: u64,
    /// Anonymous memory, in bytes (v1: rss with huge pages).
    pub anon: u64,
    /// Page faults so far.
    pub page_faults: u64,
    /// Page faults that needed I/O so far.
    pub major_page_faults: u64,
    /// Swap used now, in bytes.
    pub swap: u64,
    /// Memory limit in bytes; `None`: unlimited.
    pub memory_limit: Option<u64>,
    /// Processes and threads now.
    pub pids: u64,
}

impl Cgroup {
    /// The cgroup at an absolute path; nothing is made or looked up.
    pub fn new(path: impl Into<String>) -> Self {
        Cgroup { path: path.into() }
    }

    /// Its path below the root of each hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What it has used; a value whose controller is not there is 0.
    pub fn usage(&self) -> io::Result<Usage> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How many processes the kernel has killed in it for lack of memory.
    pub fn oom_kills(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Pids of all processes in it and below it.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// SIGKILL for everything in it and below it; does not wait for the end.
    pub fn kill(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Stop everything in it.
    pub fn freeze(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Let it go on.
    pub fn thaw(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Remove it with all cgroups below it; gone already is success. `EBUSY` while a process is in it
    /// (tried again for a moment, since a killed process leaves a little later).
    pub fn remove(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
