//! Limits: from the CRI's fields to `linux.resources`.

use std::io;
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::devices::Devices;
use crate::config::Resources;
use crate::{Error, Kind, Result};

/// The limits that are set; what is zero or empty is left out and stays as it is.
pub(crate) fn to_spec(resources: &Resources) -> Result<LinuxResources> {
    check(resources)?;
    let value = Value::Object(fields(resources));
    serde_json::from_value(value).map_err(|e| Error::because(Kind::Invalid, "the container's limits", e))
}

/// With the rules for devices, for a new container.
pub(super) fn with_devices(resources: &Resources, devices: &Devices) -> Result<Value> {
    check(resources)?;
    let mut all = fields(resources);
    all.insert("devices".to_owned(), devices.rules.clone().into());
    Ok(Value::Object(all))
}

fn check(resources: &Resources) -> Result<()> {
    let refuse = |text: String| Err(Error::new(Kind::Invalid, text));
    if !(-1000..=1000).contains(&resources.oom_score_adj) {
        return refuse(format!("oom_score_adj {} is not between -1000 and 1000", resources.oom_score_adj));
    }
    for (what, value) in [
        ("cpu_period", resources.cpu_period),
        ("cpu_shares", resources.cpu_shares),
        ("memory_limit", resources.memory_limit),
    ] {
        if value < 0 {
            return refuse(format!("{what} {value} is negative"));
        }
    }
    let (memory, swap) = (resources.memory_limit, resources.memory_swap_limit);
    if swap > 0 && swap < memory {
        return refuse(format!("memory_swap_limit {swap} is memory and swap together: not below {memory}"));
    }
    Ok(())
}

fn fields(resources: &Resources) -> Map<String, Value> {
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
    if let Some(memory) = memory(resources) {
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

/// A container that has a limit and names no swap gets none: swap is memory and swap together.
fn memory(resources: &Resources) -> Option<Value> {
    match (resources.memory_limit, resources.memory_swap_limit) {
        (0, 0) => None,
        (0, swap) => Some(json!({"swap": swap})),
        (limit, 0) => Some(json!({"limit": limit, "swap": limit})),
        (limit, swap) => Some(json!({"limit": limit, "swap": swap})),
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
        memory_swap_limit: number(update.memory_swap_limit, before.memory_swap_limit),
    }
}

/// Change the limits in a bundle that has not been started.
pub(crate) fn edit(path: &Path, update: Value) -> io::Result<()> {
    let mut spec: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    overlay(&mut spec["linux"]["resources"], update);
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
        assert_eq!(Value::Object(fields(&Resources::default())), json!({}));
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
        assert_eq!(Value::Object(fields(&resources)), want);
        to_spec(&resources).unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            Resources { oom_score_adj: 2000, ..Resources::default() },
            Resources { memory_limit: -1, ..Resources::default() },
            Resources { memory_limit: 10, memory_swap_limit: 5, ..Resources::default() },
        ] {
            assert_eq!(to_spec(&bad).unwrap_err().kind, Kind::Invalid, "{bad:?}");
        }
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
