//! Which devices the processes of a cgroup may use: the rules of a config as writes (v1) or as a program (v2).

use std::os::fd::AsFd;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use sys::cgroup::{Cgroup, Layout};
use sys::cgroup_devices::{self as devices, Kind as DeviceKind, Policy, Rule};

use crate::error::{Context, Error, Result};

/// What a container may always use, whatever its config denies: the default nodes, terminals, and making nodes (that
/// alone opens nothing).
fn always_allowed() -> Vec<Rule> {
    let rwm = devices::READ | devices::WRITE | devices::MKNOD;
    let rule = |kind, major, minor, access| Rule { allow: true, kind: Some(kind), major, minor, access };
    let mut rules = vec![
        rule(DeviceKind::Char, None, None, devices::MKNOD),
        rule(DeviceKind::Block, None, None, devices::MKNOD),
        rule(DeviceKind::Char, Some(136), None, rwm),
    ];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule(DeviceKind::Char, Some(major), Some(minor), rwm));
    }
    rules
}

fn device_rules(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    // what no rule names is denied
    let mut all = vec![Rule { allow: false, kind: None, major: None, minor: None, access: 7 }];
    for rule in rules {
        let number = |n: Option<i64>| n.filter(|n| *n >= 0).map(|n| n as u32);
        let (major, minor) = (number(rule.major()), number(rule.minor()));
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => devices::READ,
                'w' => devices::WRITE,
                'm' => devices::MKNOD,
                _ => {
                    return Err(Error::invalid(
                        "set limits",
                        "devices",
                        "access must be of the letters r, w, m",
                    ));
                }
            };
        }
        let kinds: &[Option<DeviceKind>] = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::B => &[Some(DeviceKind::Block)],
            LinuxDeviceType::C | LinuxDeviceType::U => &[Some(DeviceKind::Char)],
            LinuxDeviceType::P => {
                return Err(Error::invalid(
                    "set limits",
                    "devices",
                    "a fifo is not under a cgroup's control",
                ));
            }
            LinuxDeviceType::A if major.is_none() && minor.is_none() && access == 7 => &[None],
            LinuxDeviceType::A => &[Some(DeviceKind::Block), Some(DeviceKind::Char)],
        };
        all.extend(kinds.iter().map(|kind| Rule { allow: rule.allow(), kind: *kind, major, minor, access }));
    }
    all.extend(always_allowed());
    Ok(all)
}

/// Set the rules of a cgroup, in the place of those before. Without any it has the default devices only.
pub(crate) fn set(cgroup: &Cgroup, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let asked = !rules.is_empty();
    let rules = device_rules(rules)?;
    let layout = Layout::host().step("find the cgroups", "")?;
    if layout.controller("devices").is_none() {
        let directory = cgroup.unified_directory().step("open cgroup", cgroup.path())?;
        let directory = directory
            .ok_or_else(|| Error::unsupported("set limit", "devices", "this node has no cgroups"))?;
        return match devices::attach(directory.as_fd(), &Policy::new(&rules)) {
            // this kernel cannot, and nobody asked
            Err(e) if !asked && matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => Ok(()),
            other => other.step("attach device program to", cgroup.path()),
        };
    }
    let policy = Policy::new(&rules);
    for rule in &rules {
        // Allowing what is allowed is refused by some kernels when the parent denies it; nothing to do then.
        if rule.kind.is_some() && rule.allow && policy.allows_all() {
            continue;
        }
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        cgroup
            .write("devices", file, &rule.v1_text())
            .step("set limit", format!("{file}={}", rule.v1_text()))?;
    }
    Ok(())
}
