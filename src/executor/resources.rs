//! Limits of a config as writes to cgroup files, for the interface that each controller has on this node.
//!
//! Conversions follow the kernel's documents and what other runtimes agree on: cpu shares to weight keep
//! both ends, `swap` is memory + swap in the config and on v1, swap alone on v2. `-1` means unlimited. What the node has no
//! controller for is an error that names it.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use sys::cgroup::{Cgroup, Layout, Version};

use crate::error::{Context, Error, Result};
use crate::{block_io, device_rules};

/// A value for a file of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    controller: &'static str,
    file: String,
    value: String,
    absent: Absent,
}

/// What a node means that lacks the file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Absent {
    /// The limit cannot be had, which is an error.
    Refused,
    /// An old kernel, or a driver, may lack it: then the limit cannot be had and need not be.
    Left,
    /// One I/O scheduler or another has it: one of all files for this field must be there.
    Elsewhere(String),
}

/// Writes in the order in which they must be done.
#[derive(Default)]
pub(crate) struct Writes(Vec<Write>);

impl Writes {
    pub(crate) fn add(&mut self, controller: &'static str, file: impl Into<String>, value: impl ToString) {
        self.0.push(Write {
            controller,
            file: file.into(),
            value: value.to_string(),
            absent: Absent::Refused,
        });
    }

    fn add_optional(&mut self, controller: &'static str, file: impl Into<String>, value: impl ToString) {
        self.0.push(Write { controller, file: file.into(), value: value.to_string(), absent: Absent::Left });
    }
}

impl Writes {
    /// A weight of block I/O: whichever of the files is there.
    pub(crate) fn add_weight(&mut self, field: &str, controller: &'static str, files: &[(&str, String)]) {
        for (file, value) in files {
            let absent = Absent::Elsewhere(field.to_owned());
            self.0.push(Write { controller, file: (*file).to_owned(), value: value.clone(), absent });
        }
    }
}

/// The config asks for what cannot be.
pub(crate) fn invalid(field: &str, why: &str) -> Error {
    Error::invalid("set limits", field, why)
}

/// Change the limits of a cgroup that is in use: all of them or none. Fields that are not there stay as they are.
pub fn update(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let layout = Layout::host().step("find the cgroups", "")?;
    let before =
        Before::read(cgroup, resources, writes(resources, &|c| layout.controller(c).map(|h| h.version))?);
    set(cgroup, resources).inspect_err(|_| before.restore(cgroup))
}

/// What limits were, for when not all of the new ones could be set. Device rules are set last, so they need no way back.
struct Before {
    writes: Vec<Write>,
    unified: Vec<(String, String)>,
}

impl Before {
    fn read(cgroup: &Cgroup, resources: &LinuxResources, mut writes: Vec<Write>) -> Before {
        // a file that is written twice is opened first (memory and swap on v1), so that goes for the way back as well
        let again: Vec<bool> =
            (0..writes.len()).map(|n| writes[n + 1..].iter().any(|w| w.file == writes[n].file)).collect();
        let one_line = |text: String| Some(text.trim_end().to_owned()).filter(|text| !text.contains('\n'));
        let mut again = again.into_iter();
        writes.retain_mut(|write| {
            if again.next() == Some(true) {
                return true;
            }
            // what cannot be read has not been written, and what is no single value was not set by a limit of ours
            let old = cgroup.read(write.controller, &write.file).ok().and_then(one_line);
            old.map(|old| write.value = old).is_some()
        });
        let unified = resources.unified().iter().flatten().filter_map(|(file, _)| {
            let old = cgroup.read_unified(file).ok().and_then(one_line)?;
            Some((file.clone(), old))
        });
        Before { writes, unified: unified.collect() }
    }

    /// Whatever fails: the first failure is the one that counts.
    fn restore(&self, cgroup: &Cgroup) {
        for write in &self.writes {
            let _ = cgroup.write(write.controller, &write.file, &write.value);
        }
        for (file, value) in &self.unified {
            let _ = cgroup.write_unified(file, value);
        }
    }
}

/// Set the limits of a cgroup; fields that are not there stay as they are. Device rules replace the ones before.
pub(crate) fn set(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let layout = Layout::host().step("find the cgroups", "")?;
    let version = |controller: &str| layout.controller(controller).map(|h| h.version);
    if version("memory") == Some(Version::V2) {
        check_memory(cgroup, resources)?;
    }
    let mut weights: BTreeMap<String, bool> = BTreeMap::new();
    for write in writes(resources, &version)? {
        let taken = apply(cgroup, &write)?;
        if let Absent::Elsewhere(field) = write.absent {
            *weights.entry(field).or_default() |= taken;
        }
    }
    if let Some((field, _)) = weights.iter().find(|(_, taken)| !**taken) {
        return Err(Error::unsupported("set limit", field, "no I/O scheduler of this node weighs cgroups"));
    }
    for (file, value) in resources.unified().iter().flatten() {
        set_unified(cgroup, file, value)?;
    }
    match resources.devices().as_deref() {
        Some(rules) if !rules.is_empty() => device_rules::set(cgroup, rules),
        _ => Ok(()),
    }
}

/// Set the limits of a new cgroup. Without device rules it has the default devices only.
pub(crate) fn set_first(cgroup: &Cgroup, resources: Option<&LinuxResources>) -> Result<()> {
    resources.map_or(Ok(()), |resources| set(cgroup, resources))?;
    let rules = resources.and_then(|r| r.devices().as_deref()).unwrap_or_default();
    if rules.is_empty() { device_rules::set(cgroup, &[]) } else { Ok(()) }
}

fn set_unified(cgroup: &Cgroup, file: &str, value: &str) -> Result<()> {
    let what = format!("{file}={value}");
    match cgroup.write_unified(file, value) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            Err(Error::unsupported("set limit", what, "this node's cgroup v2 hierarchy has no such file"))
        }
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Err(Error::invalid("set limit", what, "the kernel takes no such value"))
        }
        other => other.step("set limit", what),
    }
}

/// `checkBeforeUpdate`: on v2 the kernel takes a limit below what is used, and kills for it; v1 refuses it by itself.
fn check_memory(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let asked = resources.memory().as_ref().filter(|m| m.check_before_update() == Some(true));
    let Some(limit) = asked.and_then(|m| u64::try_from(m.limit()?).ok()).filter(|l| *l > 0) else {
        return Ok(());
    };
    let text = cgroup.read("memory", "memory.current").step("read", "memory.current")?;
    match text.trim().parse::<u64>() {
        Ok(used) if used > limit => Err(Error::invalid("set limit", "memory.limit", "more memory is in use")),
        _ => Ok(()),
    }
}

/// `false`: the node has no such file, and need not have it.
fn apply(cgroup: &Cgroup, write: &Write) -> Result<bool> {
    let Err(error) = cgroup.write(write.controller, &write.file, &write.value) else { return Ok(true) };
    let code = error.raw_os_error();
    let has_controller = || Layout::host().is_ok_and(|layout| layout.controller(write.controller).is_some());
    if code == Some(libc::ENODEV) && has_controller() {
        let what = format!("{}={}", write.file, write.value);
        return Err(Error::invalid("set limit", what, "there is no such device"));
    }
    let is_absent = matches!(code, Some(libc::ENOENT | libc::ENODEV));
    if is_absent && write.absent != Absent::Refused { Ok(false) } else { Err(not_set(write, &error)) }
}

/// Whose mistake it is that a limit cannot be set.
fn not_set(write: &Write, error: &std::io::Error) -> Error {
    let what = format!("{}={}", write.file, write.value);
    let invalid = |why: &str| Error::invalid("set limit", &what, why);
    match (error.raw_os_error(), write.controller) {
        (Some(libc::ENODEV), controller) => {
            Error::unsupported("set limit", what, format!("this node has no {controller} controller"))
        }
        // Lowering a limit below what is used, on v1.
        (Some(libc::EBUSY), "memory") => invalid("more memory is in use"),
        (Some(libc::ENOENT), "memory") if is_swap(&write.file) => {
            Error::unsupported("set limit", what, "this node does not account swap (memory.swap)")
        }
        // A part of the file's name is the config's.
        (Some(libc::ENOENT | libc::ENAMETOOLONG), "hugetlb") => {
            invalid("this node has no pages of that size")
        }
        (_, "cpuset") if is_refused(error) => invalid("not all of them are there and in the parent cgroup"),
        _ if is_refused(error) => invalid("the kernel takes no such value"),
        _ => Error::internal("set limit", what, error),
    }
}

/// A kernel without swap accounting lacks these.
fn is_swap(file: &str) -> bool {
    matches!(file, "memory.memsw.limit_in_bytes" | "memory.swap.max")
}

/// Whether the value is what the kernel does not like.
fn is_refused(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ERANGE | libc::EACCES))
}

/// All writes for a set of limits but the `unified` ones, whose keys it checks, in the order in which they must be done.
pub(crate) fn writes(
    resources: &LinuxResources,
    version: &dyn Fn(&str) -> Option<Version>,
) -> Result<Vec<Write>> {
    let mut named = resources.unified().iter().flatten();
    if let Some((key, why)) = named.find_map(|(key, _)| Some((key, oci::cgroup::unified_refusal(key)?))) {
        return Err(invalid(&format!("unified.{key}"), why));
    }
    let mut writes = Writes::default();
    let v1 = |controller| version(controller) == Some(Version::V1);
    if let Some(memory) = resources.memory() {
        if v1("memory") { memory_v1(memory, &mut writes) } else { memory_v2(memory, &mut writes) }?;
    }
    if let Some(cpu) = resources.cpu() {
        if v1("cpu") { cpu_v1(cpu, &mut writes) } else { cpu_v2(cpu, &mut writes) }?;
        let lists = [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())];
        for (file, list) in
            lists.into_iter().filter_map(|(f, l)| Some((f, l.as_ref().filter(|l| !l.is_empty())?)))
        {
            writes.add("cpuset", file, list);
        }
    }
    if let Some(pids) = resources.pids() {
        writes.add("pids", "pids.max", at_most(pids.limit()));
    }
    if let Some(io) = resources.block_io() {
        if v1("blkio") { block_io::v1(io, &mut writes) } else { block_io::v2(io, &mut writes) }?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let name = if v1("hugetlb") { "limit_in_bytes" } else { "max" };
        let file = format!("hugetlb.{}.{name}", limit.page_size());
        // the kubelet sends a zero for each size of page, also where no controller counts them
        match limit.limit() {
            0 => writes.add_optional("hugetlb", file, 0),
            limit => writes.add("hugetlb", file, limit),
        }
        let reserved = if v1("hugetlb") { "rsvd.limit_in_bytes" } else { "rsvd.max" };
        writes.add_optional("hugetlb", format!("hugetlb.{}.{reserved}", limit.page_size()), limit.limit());
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let part = |name: &str, n: Option<u32>| n.map_or(String::new(), |n| format!(" {name}={n}"));
        let handles = part("hca_handle", limit.hca_handles());
        writes.add(
            "rdma",
            "rdma.max",
            format!("{device}{handles}{}", part("hca_object", limit.hca_objects())),
        );
    }
    if let Some(network) = resources.network() {
        network_v1(network, &mut writes);
    }
    Ok(writes.0)
}

fn network_v1(network: &oci_spec::runtime::LinuxNetwork, writes: &mut Writes) {
    if let Some(class) = network.class_id() {
        writes.add("net_cls", "net_cls.classid", class);
    }
    for priority in network.priorities().iter().flatten() {
        writes.add("net_prio", "net_prio.ifpriomap", format!("{} {}", priority.name(), priority.priority()));
    }
}

/// Zero and below mean unlimited in the config.
fn at_most(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_owned() }
}

/// What kernels no longer have, on both interfaces. `useHierarchy` is how all cgroups are since Linux 5.11.
fn refuse_old_memory(memory: &LinuxMemory) -> Result<()> {
    if memory.use_hierarchy() == Some(false) {
        let why = "a cgroup's memory is always part of its parent's";
        return Err(Error::unsupported("set limit", "memory.useHierarchy", why));
    }
    let kernel = memory.kernel().is_some_and(|limit| limit > 0);
    if kernel {
        return Err(Error::unsupported(
            "set limit",
            "memory.kernel",
            "the kernel has no such limit any more",
        ));
    }
    Ok(())
}

fn memory_v1(memory: &LinuxMemory, writes: &mut Writes) -> Result<()> {
    refuse_old_memory(memory)?;
    let (limit, swap) = (memory.limit(), memory.swap());
    // The kernel demands memory <= memory+swap at each write. Raising needs the second first, lowering the first first;
    // which one it is cannot be known here without a race, so the second is opened, then both are set.
    if limit.is_some() && swap.is_some() {
        writes.add_optional("memory", "memory.memsw.limit_in_bytes", -1);
    }
    if let Some(limit) = limit.filter(|l| *l != 0) {
        writes.add("memory", "memory.limit_in_bytes", limit);
    }
    match swap {
        None | Some(0) => {}
        // What there is without a limit, also where swap is not accounted.
        Some(..0) => writes.add_optional("memory", "memory.memsw.limit_in_bytes", -1),
        Some(swap) => writes.add("memory", "memory.memsw.limit_in_bytes", swap),
    }
    if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
        writes.add("memory", "memory.soft_limit_in_bytes", reservation);
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|t| *t != 0) {
        writes.add("memory", "memory.kmem.tcp.limit_in_bytes", tcp);
    }
    if let Some(swappiness) = memory.swappiness() {
        writes.add("memory", "memory.swappiness", swappiness);
    }
    if memory.disable_oom_killer() == Some(true) {
        writes.add("memory", "memory.oom_control", 1);
    }
    Ok(())
}

fn memory_v2(memory: &LinuxMemory, writes: &mut Writes) -> Result<()> {
    refuse_old_memory(memory)?;
    if memory.kernel_tcp().is_some_and(|t| t > 0) || memory.swappiness().is_some() {
        return Err(Error::unsupported(
            "set limit",
            "memory",
            "kernelTCP and swappiness exist on cgroup v1 only",
        ));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(Error::unsupported("set limit", "memory.disableOOMKiller", "exists on cgroup v1 only"));
    }
    let limit = memory.limit().filter(|l| *l != 0);
    match (memory.swap().filter(|s| *s != 0), limit) {
        (Some(swap), _) if swap < 0 => writes.add_optional("memory", "memory.swap.max", "max"),
        (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
            writes.add("memory", "memory.swap.max", swap - limit);
        }
        (Some(_), _) => {
            return Err(invalid("memory.swap", "is memory + swap: it needs a memory limit below it"));
        }
        (None, _) => {}
    }
    if let Some(limit) = limit {
        writes.add("memory", "memory.max", at_most(limit));
    }
    if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
        writes.add("memory", "memory.low", at_most(reservation));
    }
    Ok(())
}

fn cpu_v1(cpu: &LinuxCpu, writes: &mut Writes) -> Result<()> {
    if cpu.shares().is_some() && cpu.idle() == Some(1) {
        return Err(invalid("cpu", "shares and idle exclude each other"));
    }
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        writes.add("cpu", "cpu.shares", shares);
    }
    if let Some(period) = cpu.period().filter(|p| *p != 0) {
        writes.add("cpu", "cpu.cfs_period_us", period);
    }
    if let Some(quota) = cpu.quota().filter(|q| *q != 0) {
        writes.add("cpu", "cpu.cfs_quota_us", quota);
    }
    if let Some(burst) = cpu.burst() {
        writes.add("cpu", "cpu.cfs_burst_us", burst);
    }
    if let Some(period) = cpu.realtime_period().filter(|p| *p != 0) {
        writes.add("cpu", "cpu.rt_period_us", period);
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|r| *r != 0) {
        writes.add("cpu", "cpu.rt_runtime_us", runtime);
    }
    if let Some(idle) = cpu.idle() {
        writes.add("cpu", "cpu.idle", idle);
    }
    Ok(())
}

fn cpu_v2(cpu: &LinuxCpu, writes: &mut Writes) -> Result<()> {
    if cpu.realtime_runtime().is_some_and(|r| r != 0) || cpu.realtime_period().is_some_and(|p| p != 0) {
        return Err(Error::unsupported("set limit", "cpu.realtime", "exists on cgroup v1 only"));
    }
    if let Some(idle) = cpu.idle() {
        writes.add("cpu", "cpu.idle", idle);
    }
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        writes.add("cpu", "cpu.weight", weight(shares));
    }
    match (cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0)) {
        (None, None) => {}
        (quota, period) => {
            let quota = quota.map_or("max".to_owned(), at_most);
            writes.add("cpu", "cpu.max", format!("{quota} {}", period.unwrap_or(100_000)));
        }
    }
    if let Some(burst) = cpu.burst() {
        writes.add("cpu", "cpu.max.burst", burst);
    }
    Ok(())
}

/// Shares 2…262144 as weight 1…10000: linear, as the kubelet and systemd convert, so that a pod's cgroup that the kubelet
/// made and its containers use one scale.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: serde_json::Value, version: Version) -> Result<Vec<String>> {
        let resources: LinuxResources = serde_json::from_value(json).unwrap();
        let writes = writes(&resources, &|_| Some(version))?;
        Ok(writes.into_iter().map(|w| format!("{}={}", w.file, w.value)).collect())
    }

    #[test]
    fn the_same_limits_in_both_interfaces() {
        let json = serde_json::json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
            "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1"},
            "pids": {"limit": 7},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "blockIO": {"weight": 1000, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 9}]}
        });
        assert_eq!(
            lines(json.clone(), Version::V2).unwrap(),
            [
                "memory.swap.max=500",
                "memory.max=1000",
                "memory.low=500",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "pids.max=7",
                "io.bfq.weight=1000",
                "io.weight=10000",
                "io.max=8:0 rbps=9",
                "hugetlb.2MB.max=0",
                "hugetlb.2MB.rsvd.max=0",
            ]
        );
        assert_eq!(
            lines(json, Version::V1).unwrap(),
            [
                "memory.memsw.limit_in_bytes=-1",
                "memory.limit_in_bytes=1000",
                "memory.memsw.limit_in_bytes=1500",
                "memory.soft_limit_in_bytes=500",
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpuset.cpus=0-1",
                "pids.max=7",
                "blkio.weight=1000",
                "blkio.bfq.weight=1000",
                "blkio.throttle.read_bps_device=8:0 9",
                "hugetlb.2MB.limit_in_bytes=0",
                "hugetlb.2MB.rsvd.limit_in_bytes=0",
            ]
        );
    }

    #[test]
    fn minus_one_is_unlimited() {
        let json = serde_json::json!({"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}});
        let expected = ["memory.swap.max=max", "memory.max=max", "cpu.max=max 100000", "pids.max=max"];
        assert_eq!(lines(json, Version::V2).unwrap(), expected);
    }

    #[test]
    fn shares_keep_both_ends() {
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
    }

    #[test]
    fn unified_keys_that_are_no_limits_are_refused_by_name() {
        for key in ["cgroup.freeze", "cgroup.procs", "../x.y"] {
            let error = lines(serde_json::json!({"unified": {key: "1"}}), Version::V2).unwrap_err();
            assert_eq!(error.kind, crate::error::Kind::Invalid);
            assert!(error.object.contains(key), "{error}");
        }
        let limit = serde_json::json!({"unified": {"memory.high": "1", "cgroup.max.depth": "1"}});
        assert_eq!(lines(limit, Version::V2).unwrap(), [""; 0]);
    }

    #[test]
    fn a_failure_is_told_as_whose_it_is() {
        use crate::error::Kind;
        let kind = |controller, errno| {
            let (file, value) = ("hugetlb.3KB.max".to_owned(), "1".to_owned());
            not_set(
                &Write { controller, file, value, absent: Absent::Refused },
                &std::io::Error::from_raw_os_error(errno),
            )
            .kind
        };
        for (controller, errno, expected) in [
            ("hugetlb", libc::ENOENT, Kind::Invalid),
            ("hugetlb", libc::ENODEV, Kind::Unsupported),
            ("memory", libc::EBUSY, Kind::Invalid),
            ("cpuset", libc::EACCES, Kind::Invalid),
            ("pids", libc::EINVAL, Kind::Invalid),
            ("pids", libc::ENOENT, Kind::Internal),
            ("cpu", libc::EBUSY, Kind::Internal),
        ] {
            assert_eq!(kind(controller, errno), expected, "{controller} {errno}");
        }
    }

    #[test]
    fn a_limit_of_swap_is_never_left_out() {
        for version in [Version::V1, Version::V2] {
            let swap_writes = |swap: i64| {
                let json = serde_json::json!({"memory": {"limit": 1000, "swap": swap}});
                let all = writes(&serde_json::from_value(json).unwrap(), &|_| Some(version)).unwrap();
                all.into_iter().rfind(|w| is_swap(&w.file)).unwrap()
            };
            let limit = swap_writes(1000);
            assert_eq!(limit.absent, Absent::Refused, "{version:?}");
            let error = not_set(&limit, &std::io::Error::from_raw_os_error(libc::ENOENT));
            assert_eq!(error.kind, crate::error::Kind::Unsupported);
            assert!(error.to_string().contains("memory.swap"), "{error}");
            // without a limit is how it is
            assert_eq!(swap_writes(-1).absent, Absent::Left, "{version:?}");
        }
    }

    #[test]
    fn what_v2_lacks_is_refused() {
        for json in [
            serde_json::json!({"memory": {"swappiness": 10}}),
            serde_json::json!({"memory": {"disableOOMKiller": true}}),
            serde_json::json!({"memory": {"useHierarchy": false}}),
            serde_json::json!({"memory": {"swap": 10}}),
            serde_json::json!({"cpu": {"realtimeRuntime": 5}}),
            serde_json::json!({"blockIO": {"leafWeight": 5}}),
        ] {
            assert!(lines(json.clone(), Version::V2).is_err(), "{json}");
        }
    }
}
