//! What the kubelet needs of the machine that it runs on, made before it starts and taken away after its end: a cgroup root
//! of its own under the node's hierarchies, a processor with a speed, an address to be known by.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// The node's own IPv4 address: without it the kubelet looks up its own name and waits.
pub(crate) fn node_ip() -> Result<String> {
    let output =
        Command::new("ip").args(["-j", "-4", "route", "show", "default"]).output().context("ip route")?;
    let routes: Value = serde_json::from_slice(&output.stdout).context("ip -j route")?;
    let device = routes[0]["dev"].as_str().context("the node has no default route")?.to_owned();
    let output =
        Command::new("ip").args(["-j", "-4", "addr", "show", "dev", &device]).output().context("ip addr")?;
    let links: Value = serde_json::from_slice(&output.stdout).context("ip -j addr")?;
    let address = links[0]["addr_info"][0]["local"].as_str();
    address.map(str::to_owned).with_context(|| format!("{device} has no IPv4 address"))
}

/// Mount points of all cgroup hierarchies.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let cgroups = fields.filter(|line| matches!(line.get(2), Some(&"cgroup" | &"cgroup2")));
    Ok(cgroups.map(|line| PathBuf::from(line[1])).collect())
}

/// Make a cgroup in every hierarchy.
pub(crate) fn make_cgroups(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let dir = hierarchy.join(name.trim_start_matches('/'));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // a new v1 cpuset is empty until its CPUs and memory nodes are set; on v2 empty means the parent's
            if hierarchy.join("cpuset.sched_load_balance").exists() {
                let value = fs::read_to_string(hierarchy.join(file)).context("cpuset of the root")?;
                fs::write(dir.join(file), value.trim())
                    .with_context(|| dir.join(file).display().to_string())?;
            }
        }
    }
    Ok(())
}

/// Remove a cgroup with all below it from every hierarchy; one that is in use stays, and the leak check names it.
pub(crate) fn remove_cgroups(name: &str) {
    for hierarchy in hierarchies().unwrap_or_default() {
        remove_tree(&hierarchy.join(name.trim_start_matches('/')));
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(dir).ok();
}

/// Unmount what is mounted below a folder: volumes that a killed kubelet left.
pub(crate) fn unmount_below(scratch: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for point in points.filter(|point| point.starts_with(scratch)).collect::<Vec<_>>().into_iter().rev() {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

/// The kubelet refuses a processor without a clock speed, as user-mode Linux shows it: give it one, in this mount
/// namespace only. [`take_the_speed_away`] undoes it.
pub(crate) fn give_the_processor_a_speed(scratch: &Path) -> Result<()> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    if cpuinfo.contains("cpu MHz") {
        return Ok(());
    }
    let file = scratch.join("cpuinfo");
    let patched: String = cpuinfo
        .lines()
        .map(|line| match line.starts_with("processor") {
            true => format!("{line}\ncpu MHz\t\t: 2000.000\n"),
            false => format!("{line}\n"),
        })
        .collect();
    fs::write(&file, patched).context("cpuinfo")?;
    let none: Option<&str> = None;
    nix::mount::mount(Some(&file), "/proc/cpuinfo", none, nix::mount::MsFlags::MS_BIND, none)
        .context("mount over /proc/cpuinfo")
}

/// Show the processor again as the kernel does; nothing where it always did.
pub(crate) fn take_the_speed_away() {
    nix::mount::umount("/proc/cpuinfo").ok();
}
