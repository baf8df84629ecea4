//! A node's own cgroup in every hierarchy, v1, v2 or both.
//!
//! The node enters it and then makes a cgroup namespace, so that inside it is the root of everything: whatever a daemon or
//! a kubelet creates is below it, limits of the caller go on to hold, and what is left in the end is found by listing it.
//! On v2 the node's processes move on to `init`, since a cgroup with processes cannot hand controllers down.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One mounted hierarchy.
pub(crate) struct Hierarchy {
    /// where it is mounted
    pub(crate) mount: PathBuf,
    /// `cgroup` or `cgroup2`
    pub(crate) kind: String,
    /// what to mount it again with: controllers, or `none,name=…`
    pub(crate) data: String,
}

/// The hierarchies of this mount namespace.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(text.lines().filter_map(hierarchy).collect())
}

fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (place, file_system) = line.split_once(" - ")?;
    let mount = PathBuf::from(place.split(' ').nth(4)?);
    let mut words = file_system.split(' ');
    let kind = words.next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?.to_owned();
    let known = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
        "rdma",
        "misc",
    ];
    let options: Vec<&str> = words.nth(1)?.split(',').collect();
    let data = match options.iter().find(|option| option.starts_with("name=")) {
        Some(name) => format!("none,{name}"),
        None => options.into_iter().filter(|option| known.contains(option)).collect::<Vec<_>>().join(","),
    };
    Some(Hierarchy { mount, kind, data })
}

impl Hierarchy {
    fn is_v2(&self) -> bool {
        self.kind == "cgroup2"
    }

    /// Where a node's cgroup goes: below this process's own; on v2 beside it.
    fn place(&self, own: &str, name: &str) -> PathBuf {
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let same = match self.is_v2() {
                true => controllers.is_empty(),
                false => self.data.trim_start_matches("none,") == controllers,
            };
            if same {
                let path = Path::new(path);
                let path = if self.is_v2() { path.parent().unwrap_or(path) } else { path };
                return self.mount.join(path.strip_prefix("/").unwrap_or(path)).join(name);
            }
        }
        self.mount.join(name)
    }
}

/// The node's cgroup in every hierarchy, as this process (outside of it) sees them.
pub(crate) fn places(name: &str) -> Result<Vec<PathBuf>> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    Ok(hierarchies()?.iter().map(|hierarchy| hierarchy.place(&own, name)).collect())
}

/// Make the node's cgroups and go there.
pub(crate) fn enter(name: &str) -> Result<()> {
    for dir in places(name)? {
        fs::create_dir_all(&dir).with_context(|| format!("make cgroup {}", dir.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let from = dir.parent().map(|parent| parent.join(file)).unwrap_or_default();
            if !dir.join("cgroup.controllers").exists() && from.exists() {
                fs::write(dir.join(file), fs::read(&from)?).with_context(|| format!("set {file}"))?;
            }
        }
        fs::write(dir.join("cgroup.procs"), std::process::id().to_string())
            .with_context(|| format!("enter cgroup {}", dir.display()))?;
    }
    Ok(())
}

/// Inside the new namespaces: hand every v2 controller down.
pub(crate) fn delegate() -> Result<()> {
    for hierarchy in hierarchies()?.iter().filter(|hierarchy| hierarchy.is_v2()) {
        let init = hierarchy.mount.join("init");
        fs::create_dir_all(&init)?;
        fs::write(init.join("cgroup.procs"), std::process::id().to_string())
            .context("enter the node's init cgroup")?;
        let controllers = fs::read_to_string(hierarchy.mount.join("cgroup.controllers"))?;
        for controller in controllers.split_whitespace() {
            fs::write(hierarchy.mount.join("cgroup.subtree_control"), format!("+{controller}"))
                .with_context(|| format!("hand down {controller}"))?;
        }
    }
    Ok(())
}

/// The cgroups below `dir`, deepest first, then `dir`.
pub(crate) fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
    }
    found.push(dir.to_owned());
    found
}

/// The processes in `dir` and below.
pub(crate) fn processes(dir: &Path) -> Vec<i32> {
    let read = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let texts: Vec<String> = below(dir).iter().map(read).collect();
    texts.iter().flat_map(|text| text.lines()).filter_map(|pid| pid.parse().ok()).collect()
}

/// Remove the node's cgroups, killing what is in them; false: something stays.
pub(crate) fn remove(places: &[PathBuf]) -> bool {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        for dir in places.iter().flat_map(|place| below(place)) {
            fs::remove_dir(&dir).ok();
        }
        if !places.iter().any(|place| place.exists()) {
            return true;
        }
        for pid in places.iter().flat_map(|place| processes(place)) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
        }
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
