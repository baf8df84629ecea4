//! Which files of a cgroup the limits of a container may name (`linux.resources.unified`).

/// Why a key of `unified` is none that a container may have; `None`: it may.
///
/// The files of the core (`cgroup.*`) are not limits but the handles by which a runtime keeps hold of a container:
/// a `cgroup.freeze` that is written while it is made stops its making for ever, `cgroup.type` and `cgroup.subtree_control` forbid
/// it processes, `cgroup.kill` and `cgroup.procs` act at once. Only the two that bound its own cgroups are limits.
pub fn unified_refusal(key: &str) -> Option<&'static str> {
    if key.starts_with('.') || !key.contains('.') || key.contains(['/', '\0']) {
        return Some("is not a cgroup file name");
    }
    match key.strip_prefix("cgroup.") {
        None | Some("max.descendants" | "max.depth") => None,
        Some(_) => Some("is no limit: the runtime itself steers the cgroup by it"),
    }
}

#[cfg(test)]
mod tests {
    use super::unified_refusal;

    #[test]
    fn limits_may_be_named() {
        for key in
            ["memory.high", "cpu.max.burst", "hugetlb.2MB.max", "cgroup.max.descendants", "cgroup.max.depth"]
        {
            assert_eq!(unified_refusal(key), None, "{key}");
        }
    }

    #[test]
    fn what_steers_the_cgroup_may_not() {
        for file in ["freeze", "kill", "procs", "threads", "type", "subtree_control", "pressure", "new"] {
            let why = unified_refusal(&format!("cgroup.{file}"));
            assert!(why.is_some_and(|why| why.contains("no limit")), "{file}");
        }
    }

    #[test]
    fn nothing_outside_of_the_cgroup_may() {
        for key in ["", ".", "..", "tasks", "../memory.max", "a/memory.max", "memory.max\0"] {
            assert_eq!(unified_refusal(key), Some("is not a cgroup file name"), "{key:?}");
        }
    }
}
