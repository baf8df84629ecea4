//! What a cgroup has used: one value of one meaning for the files of v1 and v2.

use std::io;

use crate::cgroup::{Cgroup, Layout, Version};

/// What a cgroup has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all processes so far, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged now, in bytes (with page cache).
    pub memory: u64,
    /// Page cache that could be dropped first, in bytes; working set = `memory` - this.
    pub inactive_file: u64,
    /// Anonymous memory, in bytes.
    pub anon: u64,
    /// Page faults so far.
    pub page_faults: u64,
    /// Page faults that needed I/O so far.
    pub major_page_faults: u64,
    /// Swap used now, in bytes; 0 where swap is not accounted.
    pub swap: u64,
    /// Memory limit in bytes; `None`: unlimited.
    pub memory_limit: Option<u64>,
    /// Processes and threads now.
    pub pids: u64,
}

/// The value of a key in a flat keyed file (`key value` lines).
fn keyed(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// v1 spells "unlimited" as the largest page-aligned number.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < (1 << 62))
}

/// A controller, or a file of it, that is not there counts as nothing used; a cgroup that is gone does not.
fn optional(result: io::Result<String>) -> io::Result<String> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(String::new()),
        other => other,
    }
}

impl Cgroup {
    /// What it has used; a value whose controller is not there is 0. `NotFound`: the cgroup is gone.
    pub fn usage(&self) -> io::Result<Usage> {
        if !self.exists()? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut usage =
            Usage { pids: number(&optional(self.read("pids", "pids.current"))?), ..Usage::default() };
        let version = |name| Layout::host().map(|l| l.controller(name).map(|h| h.version));
        match version("cpuacct")? {
            Some(_) => usage.cpu_ns = number(&optional(self.read("cpuacct", "cpuacct.usage"))?),
            None => usage.cpu_ns = keyed(&optional(self.read("cpu", "cpu.stat"))?, "usage_usec") * 1000,
        }
        match version("memory")? {
            Some(Version::V1) => self.memory_v1(&mut usage)?,
            Some(Version::V2) => self.memory_v2(&mut usage)?,
            None => {}
        }
        Ok(usage)
    }

    fn memory_v1(&self, usage: &mut Usage) -> io::Result<()> {
        let stat = optional(self.read("memory", "memory.stat"))?;
        usage.memory = number(&optional(self.read("memory", "memory.usage_in_bytes"))?);
        usage.memory_limit = limit(&optional(self.read("memory", "memory.limit_in_bytes"))?);
        usage.inactive_file = keyed(&stat, "total_inactive_file");
        usage.anon = keyed(&stat, "total_rss");
        usage.page_faults = keyed(&stat, "total_pgfault");
        usage.major_page_faults = keyed(&stat, "total_pgmajfault");
        usage.swap = keyed(&stat, "total_swap");
        Ok(())
    }

    fn memory_v2(&self, usage: &mut Usage) -> io::Result<()> {
        let stat = optional(self.read("memory", "memory.stat"))?;
        usage.memory = number(&optional(self.read("memory", "memory.current"))?);
        usage.memory_limit = limit(&optional(self.read("memory", "memory.max"))?);
        usage.inactive_file = keyed(&stat, "inactive_file");
        usage.anon = keyed(&stat, "anon");
        usage.page_faults = keyed(&stat, "pgfault");
        usage.major_page_faults = keyed(&stat, "pgmajfault");
        usage.swap = number(&optional(self.read("memory", "memory.swap.current"))?);
        Ok(())
    }

    /// How many processes the kernel has killed in it for lack of memory; 0 without a memory controller.
    pub fn oom_kills(&self) -> io::Result<u64> {
        match Layout::host()?.controller("memory").map(|h| h.version) {
            Some(Version::V1) => Ok(keyed(&self.read("memory", "memory.oom_control")?, "oom_kill")),
            Some(Version::V2) => Ok(keyed(&self.read("memory", "memory.events")?, "oom_kill")),
            None => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_matched_whole() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), 3);
        assert_eq!(keyed(text, "nothing"), 0);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("4096\n"), Some(4096));
    }
}
