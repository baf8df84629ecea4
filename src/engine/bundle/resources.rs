//! Limits: from the CRI's fields to `linux.resources`.

use std::io;
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::devices::Devices;
use crate::config::Resources;
use crate::{Error, Kind, Result};

/// The limits that are set; what is zero or empty is left out and stays as it is. `accounts_swap`: the node accounts swap.
pub(crate) fn to_spec(resources: &Resources, accounts_swap: bool) -> Result<LinuxResources> {
    check(resources)?;
    let value = Value::Object(fields(resources, accounts_swap));
    serde_json::from_value(value).map_err(|e| Error::because(Kind::Invalid, "the container's limits", e))
}

/// With the rules for devices, for a new container.
pub(super) fn with_devices(resources: &Resources, devices: &Devices) -> Result<Value> {
    check(resources)?;
    let mut all = fields(resources, sys::cgroup_usage::accounts_swap());
    all.insert("devices".to_owned(), devices.rules.clone().into());
    Ok(Value::Object(all))
}

fn check(resources: &Resources) -> Result<()> {
    let refuse = |text: String| Err(Error::new(Kind::Invalid, text));
    if !(-1000..=1000).contains(&resources.oom_score_adj) {
        return refuse(format!("oom_score_adj {} is not between -1000 and 1000", resources.oom_score_adj));
    }
    for (what, value, least) in [
        ("cpu_period", resources.cpu_period, 0),
        ("cpu_shares", resources.cpu_shares, 0),
        // -1: none
        ("memory_limit", resources.memory_limit, -1),
        ("memory_swap_limit", resources.memory_swap_limit, -1),
    ] {
        if value < least {
            return refuse(format!("{what} {value} is below {least}"));
        }
    }
    let (memory, swap) = (resources.memory_limit, resources.memory_swap_limit);
    if memory < 0 && swap > 0 {
        return refuse(format!(
            "memory_swap_limit {swap} is memory and swap together, and memory has no limit"
        ));
    }
    if swap > 0 && swap < memory {
        return refuse(format!("memory_swap_limit {swap} is memory and swap together: not below {memory}"));
    }
    Ok(())
}

fn fields(resources: &Resources, accounts_swap: bool) -> Map<String, Value> {
    let mut all = Map::new();
    let mut cpu = Map::new();
    let mut number = |name: &str, value: i64| {
        if value != 0 {
            cpu.insert(name.to_owned(), value.into());
        }
    };
    number("period", resources.cpu_period);
    number("quota", resources.cpu_quota);
    number("shares", resources.cpu_shares);
    for (name, value) in [("cpus", &resources.cpuset_cpus), ("mems", &resources.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(name.to_owned(), value.clone().into());
        }
    }
    if !cpu.is_empty() {
        all.insert("cpu".to_owned(), cpu.into());
    }
    if let Some(memory) = memory(resources, accounts_swap) {
        all.insert("memory".to_owned(), memory);
    }
    if !resources.hugepage_limits.is_empty() {
        let limit = |(size, limit): &(String, u64)| json!({"pageSize": size, "limit": limit});
        all.insert("hugepageLimits".to_owned(), resources.hugepage_limits.iter().map(limit).collect());
    }
    if !resources.unified.is_empty() {
        all.insert("unified".to_owned(), json!(resources.unified));
    }
    all
}

/// A container that has a limit and names no swap gets none: swap is memory and swap together. Where the node does not account
/// swap only what was asked for is passed on, and refused there.
fn memory(resources: &Resources, accounts_swap: bool) -> Option<Value> {
    match (resources.memory_limit, resources.memory_swap_limit) {
        (0, 0) => None,
        (0, swap) => Some(json!({"swap": swap})),
        (limit, 0) if accounts_swap => Some(json!({"limit": limit, "swap": limit})),
        (limit, 0) => Some(json!({"limit": limit})),
        (limit, swap) => Some(json!({"limit": limit, "swap": swap})),
    }
}

/// What has to be set for an update: what it names, and what the kernel takes only together with that. `after` is what
/// holds then ([`merge`]).
pub(crate) fn change(asked: &Resources, after: &Resources, accounts_swap: bool) -> Result<LinuxResources> {
    check(after)?;
    let mut all = asked.clone();
    if asked.memory_limit != 0 || asked.memory_swap_limit != 0 {
        (all.memory_limit, all.memory_swap_limit) = (after.memory_limit, after.memory_swap_limit);
    }
    if asked.cpu_quota != 0 || asked.cpu_period != 0 {
        (all.cpu_quota, all.cpu_period) = (after.cpu_quota, after.cpu_period);
    }
    to_spec(&all, accounts_swap)
}

/// Memory and swap together after an update: when it names no swap, as much swap as before.
fn swap_after(before: &Resources, update: &Resources) -> i64 {
    match (update.memory_swap_limit, update.memory_limit) {
        (0, 0) => before.memory_swap_limit,
        (0, -1) if before.memory_swap_limit > 0 => -1,
        (0, limit) if before.memory_swap_limit > 0 => {
            limit.saturating_add(before.memory_swap_limit - before.memory_limit.max(0))
        }
        (0, _) => before.memory_swap_limit,
        (swap, _) => swap,
    }
}

/// What holds after an update: what it leaves out stays.
pub(crate) fn merge(before: &Resources, update: &Resources) -> Resources {
    let number = |new: i64, old: i64| if new != 0 { new } else { old };
    let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut hugepage_limits = before.hugepage_limits.clone();
    for (size, limit) in &update.hugepage_limits {
        hugepage_limits.retain(|(other, _)| other != size);
        hugepage_limits.push((size.clone(), *limit));
    }
    let mut unified = before.unified.clone();
    unified.extend(update.unified.clone());
    Resources {
        cpu_period: number(update.cpu_period, before.cpu_period),
        cpu_quota: number(update.cpu_quota, before.cpu_quota),
        cpu_shares: number(update.cpu_shares, before.cpu_shares),
        memory_limit: number(update.memory_limit, before.memory_limit),
        oom_score_adj: number(update.oom_score_adj, before.oom_score_adj),
        cpuset_cpus: text(&update.cpuset_cpus, &before.cpuset_cpus),
        cpuset_mems: text(&update.cpuset_mems, &before.cpuset_mems),
        hugepage_limits,
        unified,
        memory_swap_limit: swap_after(before, update),
    }
}

/// Change the limits in a bundle that has not been started.
pub(crate) fn edit(path: &Path, update: Value, oom_score_adj: i64) -> io::Result<()> {
    let mut spec: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    overlay(&mut spec["linux"]["resources"], update);
    spec["process"]["oomScoreAdj"] = oom_score_adj.into();
    monitor::record::replace(path, &serde_json::to_vec(&spec)?, false)
}

/// Put one object's fields over another's.
fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                overlay(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_is_there() {
        assert_eq!(Value::Object(fields(&Resources::default(), true)), json!({}));
        let resources = Resources {
            cpu_quota: 5000,
            cpu_period: 10_000,
            cpu_shares: 512,
            memory_limit: 100,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![("2MB".into(), 4)],
            unified: [("pids.max".to_owned(), "5".to_owned())].into(),
            ..Resources::default()
        };
        let want = json!({
            "cpu": {"quota": 5000, "period": 10_000, "shares": 512, "cpus": "0-1"},
            "memory": {"limit": 100, "swap": 100},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
            "unified": {"pids.max": "5"},
        });
        assert_eq!(Value::Object(fields(&resources, true)), want);
        to_spec(&resources, true).unwrap();
    }

    #[test]
    fn where_swap_is_not_accounted_only_a_limit_that_was_asked_for_is_passed_on() {
        let memory = |memory_limit, memory_swap_limit| {
            let asked = Resources { memory_limit, memory_swap_limit, ..Resources::default() };
            Value::Object(fields(&asked, false))["memory"].clone()
        };
        assert_eq!(memory(100, 0), json!({"limit": 100}));
        assert_eq!(memory(100, 100), json!({"limit": 100, "swap": 100}));
        assert_eq!(memory(100, -1), json!({"limit": 100, "swap": -1}));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            Resources { oom_score_adj: 2000, ..Resources::default() },
            Resources { memory_limit: -2, ..Resources::default() },
            Resources { memory_limit: -1, memory_swap_limit: 7, ..Resources::default() },
            Resources { memory_limit: 10, memory_swap_limit: 5, ..Resources::default() },
        ] {
            assert_eq!(to_spec(&bad, true).unwrap_err().kind, Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn what_belongs_together_is_set_together() {
        let spec = |before: &Resources, asked: &Resources| {
            let after = merge(before, asked);
            (change(asked, &after, true).map(|s| serde_json::to_value(s).unwrap()).map_err(|e| e.kind), after)
        };
        let with = |memory_limit, memory_swap_limit| Resources {
            memory_limit,
            memory_swap_limit,
            ..Resources::default()
        };
        // (before, asked, set, shown after)
        for (before, asked, set, after) in [
            ((0, 0), (50, 0), (50, 50), (50, 0)),
            ((10, 0), (50, 0), (50, 50), (50, 0)),
            ((10, 15), (50, 0), (50, 55), (50, 55)),
            ((10, -1), (50, 0), (50, -1), (50, -1)),
            ((10, 15), (-1, 0), (-1, -1), (-1, -1)),
            ((10, 0), (0, 30), (10, 30), (10, 30)),
            ((10, 0), (-1, 0), (-1, -1), (-1, 0)),
        ] {
            let (set_now, holds) = spec(&with(before.0, before.1), &with(asked.0, asked.1));
            let memory = json!({"limit": set.0, "swap": set.1});
            assert_eq!(set_now.unwrap()["memory"], memory, "{before:?} {asked:?}");
            assert_eq!((holds.memory_limit, holds.memory_swap_limit), after, "{before:?} {asked:?}");
        }
        assert_eq!(spec(&with(100, 0), &with(0, 30)).0, Err(Kind::Invalid));
        let cpu = |cpu_period, cpu_quota| Resources { cpu_period, cpu_quota, ..Resources::default() };
        let (set, _) = spec(&cpu(100_000, 50_000), &cpu(200_000, 0));
        assert_eq!(set.unwrap(), json!({"cpu": {"period": 200_000, "quota": 50_000}}));
    }

    #[test]
    fn an_update_leaves_what_it_does_not_name() {
        let before = Resources { memory_limit: 10, cpu_shares: 3, ..Resources::default() };
        let after = merge(&before, &Resources { cpu_shares: 4, ..Resources::default() });
        assert_eq!((after.memory_limit, after.cpu_shares), (10, 4));
        let mut spec = json!({"cpu": {"shares": 3, "quota": 1}, "devices": [1]});
        overlay(&mut spec, json!({"cpu": {"shares": 4}}));
        assert_eq!(spec, json!({"cpu": {"shares": 4, "quota": 1}, "devices": [1]}));
    }
}
