//! Limits: LinuxContainerResources.

use engine::Result;
use engine::config::{PodLimits, Resources, Strings};

use super::{invalid, unsupported};
use crate::proto::runtime::v1::{
    LinuxContainerResources, UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest,
};

/// Limits of a container or pod, with the ranges that the kernel enforces. `field` is where they stand in the
/// request.
pub(crate) fn resources(from: Option<LinuxContainerResources>, field: &str) -> Result<Resources> {
    let Some(from) = from else { return Ok(Resources::default()) };
    cpu(&from, field)?;
    memory(&from, field)?;
    unified(&from.unified, field)?;
    Ok(Resources {
        cpu_period: from.cpu_period,
        cpu_quota: from.cpu_quota,
        cpu_shares: from.cpu_shares,
        memory_limit: from.memory_limit_in_bytes,
        oom_score_adj: from.oom_score_adj,
        cpuset_cpus: from.cpuset_cpus,
        cpuset_mems: from.cpuset_mems,
        hugepage_limits: from.hugepage_limits.into_iter().map(|h| (h.page_size, h.limit)).collect(),
        unified: from.unified,
        memory_swap_limit: from.memory_swap_limit_in_bytes,
    })
}

/// What UpdateContainerResources asks for: container id, limits, annotations.
pub(crate) fn update(request: UpdateContainerResourcesRequest) -> Result<(String, Resources, Strings)> {
    if request.windows.is_some() {
        return Err(unsupported("windows", "Windows containers are"));
    }
    let id = super::filled(request.container_id, "container_id")?;
    Ok((id, resources(request.linux, "linux")?, request.annotations))
}

/// UpdatePodSandboxResources.
pub(crate) fn pod(request: UpdatePodSandboxResourcesRequest) -> Result<(String, PodLimits)> {
    let id = super::filled(request.pod_sandbox_id, "pod_sandbox_id")?;
    let given = |from: Option<LinuxContainerResources>, field| {
        from.map(|from| resources(Some(from), field)).transpose()
    };
    let (overhead, all) = (given(request.overhead, "overhead")?, given(request.resources, "resources")?);
    Ok((id, PodLimits { overhead, resources: all }))
}

fn cpu(from: &LinuxContainerResources, field: &str) -> Result<()> {
    let refuse = |name: &str, value: i64, right: &str| {
        Err(invalid(format_args!("{field}.{name}"), format_args!("{value} is not {right}")))
    };
    if from.cpu_period != 0 && !(1_000..=1_000_000).contains(&from.cpu_period) {
        return refuse("cpu_period", from.cpu_period, "between 1000 and 1000000 µs");
    }
    if (1..1_000).contains(&from.cpu_quota) {
        return refuse("cpu_quota", from.cpu_quota, "at least 1000 µs, nor 0 (not set), nor negative (none)");
    }
    if from.cpu_shares < 0 {
        return refuse("cpu_shares", from.cpu_shares, "0 (not set) or positive");
    }
    for (name, text) in [("cpuset_cpus", &from.cpuset_cpus), ("cpuset_mems", &from.cpuset_mems)] {
        if !text.bytes().all(|b| b.is_ascii_digit() || b == b'-' || b == b',') {
            return Err(invalid(
                format_args!("{field}.{name}"),
                format_args!("{text:?} is not a list as in 0-3,7"),
            ));
        }
    }
    Ok(())
}

fn memory(from: &LinuxContainerResources, field: &str) -> Result<()> {
    let refuse = |name: &str, value: i64, right: &str| {
        Err(invalid(format_args!("{field}.{name}"), format_args!("{value} is not {right}")))
    };
    if from.memory_limit_in_bytes < -1 {
        return refuse(
            "memory_limit_in_bytes",
            from.memory_limit_in_bytes,
            "-1 (none), 0 (not set) or positive",
        );
    }
    let swap = from.memory_swap_limit_in_bytes;
    if swap < -1 {
        return refuse("memory_swap_limit_in_bytes", swap, "-1 (none), 0 (not set) or positive");
    }
    if swap > 0 && swap < from.memory_limit_in_bytes {
        return Err(invalid(
            format_args!("{field}.memory_swap_limit_in_bytes"),
            format_args!(
                "{swap} is memory and swap together, and less than memory_limit_in_bytes ({})",
                from.memory_limit_in_bytes
            ),
        ));
    }
    if !(-1000..=1000).contains(&from.oom_score_adj) {
        return refuse("oom_score_adj", from.oom_score_adj, "between -1000 and 1000");
    }
    match from.hugepage_limits.iter().position(|limit| limit.page_size.is_empty()) {
        Some(at) => Err(invalid(format_args!("{field}.hugepage_limits[{at}].page_size"), "missing")),
        None => Ok(()),
    }
}

/// The keys become file names in the container's cgroup.
fn unified(keys: &Strings, field: &str) -> Result<()> {
    match keys.keys().find_map(|key| Some((key, oci::cgroup::unified_refusal(key)?))) {
        Some((key, why)) => Err(invalid(format_args!("{field}.unified"), format_args!("{key:?} {why}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::runtime::v1::{HugepageLimit, WindowsContainerResources};

    fn refusal(from: LinuxContainerResources) -> String {
        resources(Some(from), "linux").unwrap_err().context
    }

    #[test]
    fn zeros_are_not_set() {
        assert_eq!(resources(Some(Default::default()), "linux").unwrap(), Resources::default());
        assert_eq!(resources(None, "linux").unwrap(), Resources::default());
    }

    #[test]
    fn every_field_arrives() {
        let from = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: -997,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            unified: [("memory.high".to_owned(), "1000".to_owned())].into(),
            memory_swap_limit_in_bytes: 128 << 20,
        };
        let expected = Resources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit: 64 << 20,
            oom_score_adj: -997,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![("2MB".into(), 0)],
            unified: [("memory.high".to_owned(), "1000".to_owned())].into(),
            memory_swap_limit: 128 << 20,
        };
        assert_eq!(resources(Some(from), "linux").unwrap(), expected);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_by_name() {
        type R = LinuxContainerResources;
        let table: [(R, &str); 10] = [
            (R { cpu_period: 10, ..Default::default() }, "linux.cpu_period: 10 is not"),
            (R { cpu_quota: 999, ..Default::default() }, "linux.cpu_quota: 999 is not"),
            (R { cpu_shares: -1, ..Default::default() }, "linux.cpu_shares: -1 is not"),
            (R { cpuset_cpus: "a".into(), ..Default::default() }, "linux.cpuset_cpus: \"a\" is not"),
            (R { memory_limit_in_bytes: -2, ..Default::default() }, "linux.memory_limit_in_bytes: -2 is not"),
            (
                R { memory_limit_in_bytes: 9, memory_swap_limit_in_bytes: 8, ..Default::default() },
                "linux.memory_swap_limit_in_bytes: 8 is memory and swap together",
            ),
            (R { oom_score_adj: 1001, ..Default::default() }, "linux.oom_score_adj: 1001 is not"),
            (
                R { hugepage_limits: vec![HugepageLimit::default()], ..Default::default() },
                "linux.hugepage_limits[0].page_size: missing",
            ),
            (
                R { unified: [("../x".to_owned(), String::new())].into(), ..Default::default() },
                "linux.unified: \"../x\" is not a cgroup file name",
            ),
            (
                R { unified: [("cgroup.freeze".to_owned(), "1".to_owned())].into(), ..Default::default() },
                "linux.unified: \"cgroup.freeze\" is no limit: the runtime itself steers",
            ),
        ];
        for (from, start) in table {
            let text = refusal(from);
            assert!(text.starts_with(start), "{text}");
        }
    }

    #[test]
    fn windows_is_refused() {
        let request = UpdateContainerResourcesRequest {
            container_id: "a".into(),
            windows: Some(WindowsContainerResources::default()),
            ..Default::default()
        };
        assert_eq!(update(request).unwrap_err().kind, engine::Kind::Unsupported);
    }
}
