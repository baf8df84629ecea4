//! What a cgroup has used: one value of one meaning for the files of v1 and v2.
//!
//! [`Usage`] is what every poll of a kubelet wants and costs about eight reads; [`Details`] is the rest, for those who
//! collect metrics. Pressure (PSI) is counted by the v2 hierarchy for whatever runs in it, so there is some on a hybrid node
//! as well. A cgroup is made before its first process starts and may go at any moment: a file that is not there counts as
//! nothing used, while a cgroup that is gone is `NotFound`.

use std::fs;
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
    /// Limit of swap alone, in bytes; `None`: unlimited, or swap is not accounted.
    pub swap_limit: Option<u64>,
    /// Processes and threads now.
    pub pids: u64,
}

/// What a cgroup has used, as far as [`Usage`] does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// CPU time in user mode so far, in nanoseconds.
    pub cpu_user_ns: u64,
    /// CPU time in the kernel so far, in nanoseconds.
    pub cpu_system_ns: u64,
    /// Periods of the CFS quota in which something ran.
    pub cpu_periods: u64,
    /// Those in which the quota was used up.
    pub cpu_throttled_periods: u64,
    /// Time spent waiting for a new period, in nanoseconds.
    pub cpu_throttled_ns: u64,
    /// Page cache, in bytes.
    pub cache: u64,
    /// Mapped files, in bytes.
    pub mapped_file: u64,
    /// Memory of the kernel, in bytes.
    pub kernel_memory: u64,
    /// Most memory that was ever charged, in bytes; 0 where the kernel does not tell.
    pub max_memory: u64,
    /// The limit that has to do with swap, in bytes: v1 limits memory and swap together, v2 swap alone. `None`: unlimited, or
    /// swap is not accounted.
    pub swap_limit: Option<u64>,
    /// How often the memory limit was hit.
    pub memory_hits: u64,
    /// How many processes were killed for lack of memory.
    pub oom_kills: u64,
    /// Limit of processes and threads; `None`: unlimited.
    pub pids_limit: Option<u64>,
    /// I/O by block device.
    pub io: Vec<DeviceIo>,
    /// Huge pages by their size.
    pub huge_pages: Vec<HugePages>,
}

/// I/O of a cgroup to one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel spells it: `2MB`.
    pub size: String,
    /// Bytes in use.
    pub usage: u64,
    /// Most that was ever in use, in bytes. v2 does not record it: what is in use now.
    pub max_usage: u64,
}

/// Pressure stall information (the kernel's Documentation/accounting/psi.rst) of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Time in which at least one task waited.
    pub some: Stall,
    /// Time in which all tasks waited.
    pub full: Stall,
}

/// How much was waited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Since the cgroup was made, in nanoseconds.
    pub total_ns: u64,
    /// Percent of the last 10 s.
    pub avg10: f64,
    /// Percent of the last 60 s.
    pub avg60: f64,
    /// Percent of the last 300 s.
    pub avg300: f64,
}

/// Pressure by resource; `None`: this kernel does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressures {
    /// Waiting for a CPU.
    pub cpu: Option<Pressure>,
    /// Waiting for memory.
    pub memory: Option<Pressure>,
    /// Waiting for block devices.
    pub io: Option<Pressure>,
}

/// The value of a key in a flat keyed file (`key value` lines).
fn keyed(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// v1 spells "unlimited" as the largest page-aligned number, v2 as `max`.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < (1 << 62))
}

/// A controller, or a file of it, that is not there counts as nothing used; a cgroup that is gone does not.
fn optional(result: io::Result<String>) -> io::Result<String> {
    match result {
        // EOPNOTSUPP: pressure, when it is switched off
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EOPNOTSUPP)) => {
            Ok(String::new())
        }
        other => other,
    }
}

fn version(controller: &str) -> io::Result<Option<Version>> {
    Ok(Layout::host()?.controller(controller).map(|hierarchy| hierarchy.version))
}

/// A `*.pressure` file: a line `some avg10=… avg60=… avg300=… total=…` and one with `full`. `None`: it is empty.
fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut found = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        found = true;
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => stall.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => stall.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => stall.avg300 = value.parse().unwrap_or(0.0),
                // the kernel counts microseconds
                "total" => stall.total_ns = value.parse::<u64>().unwrap_or(0).saturating_mul(1000),
                _ => {}
            }
        }
    }
    found.then_some(pressure)
}

/// `major:minor` of a device.
fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// v2's io.stat: `8:0 rbytes=… wbytes=… rios=… wios=…` for each device.
fn io_stat(text: &str) -> Vec<DeviceIo> {
    let entry = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let (major, minor) = device(name)?;
        let mut io = DeviceIo { major, minor, ..DeviceIo::default() };
        for (key, value) in rest.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "rbytes" => io.read_bytes = number(value),
                "wbytes" => io.write_bytes = number(value),
                "rios" => io.reads = number(value),
                "wios" => io.writes = number(value),
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(entry).collect()
}

/// v1's blkio.throttle.io_service_bytes and io_serviced: lines `8:0 Read 4096`.
fn blkio(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    let lines = bytes.lines().map(|line| (line, true)).chain(operations.lines().map(|line| (line, false)));
    for (line, is_bytes) in lines {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Some((major, minor)) = device(name) else { continue };
        let place = devices.iter().position(|io| (io.major, io.minor) == (major, minor));
        let place = place.unwrap_or_else(|| {
            devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
            devices.len() - 1
        });
        let io = &mut devices[place];
        match (kind, is_bytes) {
            ("Read", true) => io.read_bytes = number(value),
            ("Write", true) => io.write_bytes = number(value),
            ("Read", false) => io.reads = number(value),
            ("Write", false) => io.writes = number(value),
            _ => {}
        }
    }
    devices
}

/// The sizes of huge pages that this node has, as cgroup files spell them (`2MB`).
fn huge_page_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let kilobytes = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()
    });
    let mut all: Vec<u64> = kilobytes.collect();
    all.sort_unstable();
    all.into_iter().map(huge_page_size).collect()
}

fn huge_page_size(kilobytes: u64) -> String {
    match kilobytes {
        size if size >= 1 << 20 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
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
        // v1 limits memory and swap together
        let both = limit(&optional(self.read("memory", "memory.memsw.limit_in_bytes"))?);
        usage.swap_limit = both.map(|both| both.saturating_sub(usage.memory_limit.unwrap_or(both)));
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
        usage.swap_limit = limit(&optional(self.read("memory", "memory.swap.max"))?);
        Ok(())
    }

    /// What it waited for.
    pub fn pressures(&self) -> io::Result<Pressures> {
        let Some(hierarchy) = Layout::host()?.unified() else { return Ok(Pressures::default()) };
        let directory = self.directory(hierarchy)?;
        let read =
            |file: &str| optional(fs::read_to_string(directory.join(file))).map(|text| pressure(&text));
        Ok(Pressures {
            cpu: read("cpu.pressure")?,
            memory: read("memory.pressure")?,
            io: read("io.pressure")?,
        })
    }

    /// The rest of what it has used. `NotFound`: the cgroup is gone.
    pub fn details(&self) -> io::Result<Details> {
        if !self.exists()? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut details = Details {
            pids_limit: limit(&optional(self.read("pids", "pids.max"))?),
            huge_pages: self.huge_pages()?,
            ..Details::default()
        };
        self.cpu_details(&mut details)?;
        match version("memory")? {
            Some(Version::V1) => self.memory_details_v1(&mut details)?,
            Some(Version::V2) => self.memory_details_v2(&mut details)?,
            None => {}
        }
        details.io = match version("blkio")? {
            Some(_) => blkio(
                &optional(self.read("blkio", "blkio.throttle.io_service_bytes_recursive"))?,
                &optional(self.read("blkio", "blkio.throttle.io_serviced_recursive"))?,
            ),
            None => io_stat(&optional(self.read("io", "io.stat"))?),
        };
        Ok(details)
    }

    fn cpu_details(&self, details: &mut Details) -> io::Result<()> {
        let stat = optional(self.read("cpu", "cpu.stat"))?;
        details.cpu_periods = keyed(&stat, "nr_periods");
        details.cpu_throttled_periods = keyed(&stat, "nr_throttled");
        if version("cpuacct")?.is_some() {
            details.cpu_throttled_ns = keyed(&stat, "throttled_time");
            details.cpu_user_ns = number(&optional(self.read("cpuacct", "cpuacct.usage_user"))?);
            details.cpu_system_ns = number(&optional(self.read("cpuacct", "cpuacct.usage_sys"))?);
        } else {
            details.cpu_throttled_ns = keyed(&stat, "throttled_usec") * 1000;
            details.cpu_user_ns = keyed(&stat, "user_usec") * 1000;
            details.cpu_system_ns = keyed(&stat, "system_usec") * 1000;
        }
        Ok(())
    }

    fn memory_details_v1(&self, details: &mut Details) -> io::Result<()> {
        let stat = optional(self.read("memory", "memory.stat"))?;
        details.cache = keyed(&stat, "total_cache");
        details.mapped_file = keyed(&stat, "total_mapped_file");
        details.kernel_memory = number(&optional(self.read("memory", "memory.kmem.usage_in_bytes"))?);
        details.max_memory = number(&optional(self.read("memory", "memory.max_usage_in_bytes"))?);
        details.swap_limit = limit(&optional(self.read("memory", "memory.memsw.limit_in_bytes"))?);
        details.memory_hits = number(&optional(self.read("memory", "memory.failcnt"))?);
        details.oom_kills = keyed(&optional(self.read("memory", "memory.oom_control"))?, "oom_kill");
        Ok(())
    }

    fn memory_details_v2(&self, details: &mut Details) -> io::Result<()> {
        let stat = optional(self.read("memory", "memory.stat"))?;
        let events = optional(self.read("memory", "memory.events"))?;
        details.cache = keyed(&stat, "file");
        details.mapped_file = keyed(&stat, "file_mapped");
        details.kernel_memory = keyed(&stat, "kernel");
        details.max_memory = number(&optional(self.read("memory", "memory.peak"))?);
        details.swap_limit = limit(&optional(self.read("memory", "memory.swap.max"))?);
        details.memory_hits = keyed(&events, "max");
        details.oom_kills = keyed(&events, "oom_kill");
        Ok(())
    }

    fn huge_pages(&self) -> io::Result<Vec<HugePages>> {
        let Some(kind) = version("hugetlb")? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for size in huge_page_sizes() {
            let read = |file: &str| {
                optional(self.read("hugetlb", &format!("hugetlb.{size}.{file}"))).map(|text| number(&text))
            };
            let (usage, max_usage) = match kind {
                Version::V1 => (read("usage_in_bytes")?, read("max_usage_in_bytes")?),
                Version::V2 => {
                    let usage = read("current")?;
                    (usage, usage)
                }
            };
            all.push(HugePages { size, usage, max_usage });
        }
        Ok(all)
    }

    /// How many processes the kernel has killed in it for lack of memory; 0 without a memory controller.
    pub fn oom_kills(&self) -> io::Result<u64> {
        match version("memory")? {
            Some(Version::V1) => Ok(keyed(&self.read("memory", "memory.oom_control")?, "oom_kill")),
            Some(Version::V2) => Ok(keyed(&self.read("memory", "memory.events")?, "oom_kill")),
            None => Ok(0),
        }
    }
}

/// Whether this node accounts swap, so that it can be limited: a kernel may be built or booted without.
pub fn accounts_swap() -> bool {
    let Ok(Some(memory)) = Layout::host().map(|layout| layout.controller("memory")) else { return false };
    match memory.version {
        Version::V1 => memory.mount.join("memory.memsw.limit_in_bytes").exists(),
        Version::V2 => {
            children_have_swap(&memory.mount).unwrap_or_else(|| std::path::Path::new("/proc/swaps").exists())
        }
    }
}

/// The root of the v2 hierarchy has no limits: the first cgroup below it that has some tells. `None`: there is none.
fn children_have_swap(root: &std::path::Path) -> Option<bool> {
    let entries = fs::read_dir(root).ok()?;
    let limited = entries.filter_map(|e| Some(e.ok()?.path())).find(|dir| dir.join("memory.max").exists())?;
    Some(limited.join("memory.swap.max").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_with_limits_tells_whether_swap_is_accounted() {
        let root = tempfile::tempdir().unwrap();
        let has_swap = || children_have_swap(root.path());
        fs::create_dir(root.path().join("threads")).unwrap();
        assert_eq!(has_swap(), None);
        fs::create_dir(root.path().join("pods")).unwrap();
        fs::write(root.path().join("pods/memory.max"), "max").unwrap();
        assert_eq!(has_swap(), Some(false));
        fs::write(root.path().join("pods/memory.swap.max"), "max").unwrap();
        assert_eq!(has_swap(), Some(true));
    }

    #[test]
    fn keys_are_matched_whole() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), 3);
        assert_eq!(keyed(text, "nothing"), 0);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("4096\n"), Some(4096));
    }

    #[test]
    fn pressure_is_in_nanoseconds_and_percent() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.05 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let got = pressure(text).unwrap();
        assert_eq!(got.some, Stall { total_ns: 12_000, avg10: 1.5, avg60: 0.25, avg300: 0.05 });
        assert_eq!(got.full.total_ns, 3_000);
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn both_versions_tell_the_same_io() {
        let want = DeviceIo { major: 8, minor: 16, read_bytes: 4096, write_bytes: 512, reads: 2, writes: 1 };
        assert_eq!(io_stat("8:16 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\nnonsense\n"), [want]);
        let bytes = "8:16 Read 4096\n8:16 Write 512\n8:16 Total 4608\nTotal 4608\n";
        assert_eq!(blkio(bytes, "8:16 Read 2\n8:16 Write 1\n"), [want]);
    }

    #[test]
    fn huge_pages_are_named_as_the_kernel_does() {
        assert_eq!([2048, 1 << 20, 64].map(huge_page_size), ["2MB", "1GB", "64KB"]);
    }
}
