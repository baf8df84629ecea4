//! cgroups of this node, version 1, version 2 and both at once ("hybrid").
//!
//! A cgroup is a path such as `/corten/<id>` that is the same below every hierarchy that is mounted. Where the
//! hierarchies are is looked up once per process ([`Layout::host`]): the layout of a node does not change while
//! it runs. Each controller is used where the kernel has it.
//!
//! Joining. Writing `cgroup.procs` makes the kernel wait for an RCU grace period (8 ms and more when nobody has moved a
//! process for a while), so nobody does that here: on v2 a process is born in its cgroup (`clone3`), on v1 a
//! single-threaded process moves *itself* by writing `0` to `tasks` ([`Cgroup::enter_v1`]), which needs no such lock
//! since Linux 5.5: 0.2 ms for nine hierarchies where `cgroup.procs` took 11 ms.
//!
//! What must never happen: a path with `..` or a relative one (it would reach foreign cgroups): [`Cgroup::new`]
//! refuses it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use crate::process;

/// Which interface a hierarchy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per set of controllers.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where its root is mounted.
    pub mount: PathBuf,
    /// Its interface.
    pub version: Version,
    /// The controllers that it has; a named v1 hierarchy has one `name=…`.
    pub controllers: Vec<String>,
}

/// Where the controllers of a node are.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Layout {
    /// All hierarchies, each once.
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Of this node; looked up at the first call.
    pub fn host() -> io::Result<&'static Layout> {
        static HOST: OnceLock<Layout> = OnceLock::new();
        if let Some(layout) = HOST.get() {
            return Ok(layout);
        }
        let mut layout = Layout::parse(&fs::read_to_string("/proc/self/mountinfo")?);
        for hierarchy in layout.hierarchies.iter_mut().filter(|h| h.version == Version::V2) {
            let names = fs::read_to_string(hierarchy.mount.join("cgroup.controllers"))?;
            hierarchy.controllers = names.split_ascii_whitespace().map(str::to_owned).collect();
        }
        Ok(HOST.get_or_init(|| layout))
    }

    /// The hierarchies in a /proc/pid/mountinfo (proc(5)); controllers of v2 are not in there.
    fn parse(mountinfo: &str) -> Layout {
        let mut layout = Layout::default();
        for line in mountinfo.lines() {
            let Some(hierarchy) = parse_mount(line) else { continue };
            let same =
                |h: &Hierarchy| h.version == hierarchy.version && h.controllers == hierarchy.controllers;
            if !layout.hierarchies.iter().any(same) {
                layout.hierarchies.push(hierarchy);
            }
        }
        layout
    }

    /// The hierarchy that has a controller.
    pub fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == name))
    }

    /// The v2 hierarchy.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.version == Version::V2)
    }

    /// Whether there is a v1 hierarchy.
    pub fn has_v1(&self) -> bool {
        self.hierarchies.iter().any(|h| h.version == Version::V1)
    }
}

/// One line of mountinfo when it is a whole cgroup hierarchy.
fn parse_mount(line: &str) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, mount) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    if root != "/" {
        return None;
    }
    let version = match kind {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let flags = ["rw", "ro", "noprefix", "xattr", "clone_children", "release_agent", "cpuset_v2_mode"];
    let controllers = match version {
        Version::V1 => options
            .split(',')
            .filter(|o| !flags.contains(o) && (!o.contains('=') || o.starts_with("name=")))
            .map(str::to_owned)
            .collect(),
        Version::V2 => Vec::new(),
    };
    Some(Hierarchy { mount: PathBuf::from(mount.replace("\\040", " ")), version, controllers })
}

/// A cgroup, by its path below the root of each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: String,
}

impl Cgroup {
    /// The cgroup at an absolute path; nothing is made or looked up. A path that is not plain (`..`, `//`)
    /// names no cgroup: every later call answers `EINVAL`.
    pub fn new(path: impl Into<String>) -> Self {
        Cgroup { path: path.into() }
    }

    /// The v2 cgroup that a process is in. `NotFound`: there is no such process, or no v2 hierarchy.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = text.lines().find_map(|l| l.strip_prefix("0::"));
        path.map(Cgroup::new).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Its path below the root of each hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn check(&self) -> io::Result<()> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        match self.path.strip_prefix('/') {
            Some(rest) if rest.split('/').all(plain) => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// Its directory in a hierarchy.
    pub fn directory(&self, hierarchy: &Hierarchy) -> io::Result<PathBuf> {
        self.check()?;
        Ok(hierarchy.mount.join(&self.path[1..]))
    }

    /// Its directories in all hierarchies.
    pub(crate) fn directories(&self) -> io::Result<Vec<(&'static Hierarchy, PathBuf)>> {
        let hierarchies = &Layout::host()?.hierarchies;
        hierarchies.iter().map(|h| Ok((h, self.directory(h)?))).collect()
    }

    /// Make it in the hierarchies of a version, with its parents. It may be there already, empty. `EBUSY`: processes
    /// are in it.
    pub fn create(&self, version: Version) -> io::Result<()> {
        for (hierarchy, directory) in self.directories()?.into_iter().filter(|(h, _)| h.version == version) {
            let steps = steps(&hierarchy.mount, &directory);
            let cpuset =
                hierarchy.version == Version::V1 && hierarchy.controllers.iter().any(|c| c == "cpuset");
            for (parent, child) in &steps {
                if hierarchy.version == Version::V2 {
                    enable_controllers(parent, &hierarchy.controllers)?;
                }
                let made = make_directory(child)?;
                if cpuset {
                    inherit_cpuset(parent, child)?;
                }
                if !made && *child == directory && !read_pids(&directory.join("cgroup.procs"))?.is_empty() {
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
            }
        }
        Ok(())
    }

    /// Set a file of a controller, as `memory` `memory.max` `1048576`. `NotFound`: this node has no such controller,
    /// or it has no such file.
    pub fn write(&self, controller: &str, file: &str, value: &str) -> io::Result<()> {
        let path = self.file(controller, file)?;
        write_file(&path, value)
    }

    /// Read a file of a controller.
    pub fn read(&self, controller: &str, file: &str) -> io::Result<String> {
        fs::read_to_string(self.file(controller, file)?)
    }

    fn file(&self, controller: &str, file: &str) -> io::Result<PathBuf> {
        let hierarchy = Layout::host()?
            .controller(controller)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        Ok(self.directory(hierarchy)?.join(file))
    }

    /// Set a file of the v2 hierarchy.
    pub fn write_unified(&self, file: &str, value: &str) -> io::Result<()> {
        let hierarchy =
            Layout::host()?.unified().ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        write_file(&self.directory(hierarchy)?.join(file), value)
    }

    /// Read a file of the v2 hierarchy.
    pub fn read_unified(&self, file: &str) -> io::Result<String> {
        let hierarchy =
            Layout::host()?.unified().ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        fs::read_to_string(self.directory(hierarchy)?.join(file))
    }

    /// Its directory in the v2 hierarchy, for `clone3` to be born in; `None` where v2 is not mounted.
    pub fn unified_directory(&self) -> io::Result<Option<OwnedFd>> {
        let Some(hierarchy) = Layout::host()?.unified() else { return Ok(None) };
        let file = fs::File::open(self.directory(hierarchy)?)?;
        Ok(Some(file.into()))
    }

    /// Move this process, which must be single-threaded, into it in every v1 hierarchy.
    pub fn enter_v1(&self) -> io::Result<()> {
        for (_, directory) in self.directories()?.iter().filter(|(h, _)| h.version == Version::V1) {
            write_file(&directory.join("tasks"), "0")?;
        }
        Ok(())
    }

    /// Pids of all processes in it and below it; none when it is not there.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let all = self.directories()?;
        // Any hierarchy tells the same; the pids controller's cannot be left by a container that may write cgroups.
        let preferred = all.iter().find(|(h, _)| h.controllers.iter().any(|c| c == "pids"));
        let Some((_, directory)) = preferred.or(all.first()) else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        for directory in subtree(directory)? {
            pids.extend(read_pids(&directory.join("cgroup.procs"))?);
        }
        Ok(pids)
    }

    /// SIGKILL for everything in it and below it; does not wait for the end.
    pub fn kill(&self) -> io::Result<()> {
        let layout = Layout::host()?;
        if let Some(unified) = layout.unified() {
            match write_file(&self.directory(unified)?.join("cgroup.kill"), "1") {
                Ok(()) if !layout.has_v1() => return Ok(()),
                // In a hybrid layout a process may be in the v1 hierarchies only: look there as well.
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        // Whoever forks while we read is seen in the next round; SIGKILL cannot be escaped by the ones we saw.
        for _ in 0..100 {
            let alive: Vec<i32> = self.processes()?.into_iter().filter(|pid| !is_dying(*pid)).collect();
            if alive.is_empty() {
                break;
            }
            for pid in alive {
                // SAFETY: kill(2) takes integers. The pid was in our cgroup a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        // A frozen v1 cgroup dies only when it thaws.
        match self.thaw() {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Send a signal to everything in it and below it once; with SIGKILL as [`Cgroup::kill`].
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        for pid in self.processes()? {
            match process::pidfd_open(pid).and_then(|fd| process::pidfd_signal(fd.as_fd(), signal)) {
                // It ended meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Stop everything in it; returns when all have stopped, `TimedOut` after two seconds.
    pub fn freeze(&self) -> io::Result<()> {
        self.set_frozen(true)
    }

    /// Let it go on.
    pub fn thaw(&self) -> io::Result<()> {
        self.set_frozen(false)
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> io::Result<bool> {
        match Layout::host()?.controller("freezer") {
            Some(_) => Ok(self.read("freezer", "freezer.state")?.trim() == "FROZEN"),
            None => {
                let unified =
                    Layout::host()?.unified().ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
                let events = fs::read_to_string(self.directory(unified)?.join("cgroup.events"))?;
                Ok(events.lines().any(|l| l == "frozen 1"))
            }
        }
    }

    fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        let v1 = Layout::host()?.controller("freezer").is_some();
        for round in 0..200 {
            if v1 {
                // v1 may stay in FREEZING when a process forks meanwhile: asking again helps.
                self.write("freezer", "freezer.state", if frozen { "FROZEN" } else { "THAWED" })?;
            } else if round == 0 {
                self.write_unified("cgroup.freeze", if frozen { "1" } else { "0" })?;
            }
            if !frozen || self.is_frozen()? {
                return Ok(());
            }
            sleep(Duration::from_millis(if round < 5 { 1 } else { 10 }));
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Remove it with all cgroups below it; gone already is success. `EBUSY` while a process is in it: a killed
    /// one leaves a little later, so this tries again for about 100 ms.
    pub fn remove(&self) -> io::Result<()> {
        let mut pause = Duration::from_micros(200);
        loop {
            match self.try_remove() {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && pause < Duration::from_millis(60) => {}
                other => return other,
            }
            sleep(pause);
            pause *= 2;
        }
    }

    /// As [`Cgroup::remove`], once and without waiting; what can go already goes.
    pub fn try_remove(&self) -> io::Result<()> {
        let removed: Vec<_> =
            self.directories()?.iter().map(|(_, directory)| remove_tree(directory)).collect();
        removed.into_iter().collect()
    }

    /// Whether it is there in any hierarchy.
    pub fn exists(&self) -> io::Result<bool> {
        Ok(self.directories()?.iter().any(|(_, directory)| directory.exists()))
    }
}

/// Pairs of (parent, child) from a hierarchy's root down to a directory.
fn steps(root: &Path, directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut steps: Vec<_> = directory
        .ancestors()
        .take_while(|d| *d != root)
        .filter_map(|d| Some((d.parent()?.to_owned(), d.to_owned())))
        .collect();
    steps.reverse();
    steps
}

/// `true`: it was made now.
fn make_directory(path: &Path) -> io::Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

pub(crate) fn write_file(path: &Path, value: &str) -> io::Result<()> {
    use io::Write;
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Hand the controllers of a v2 hierarchy down to the children of `parent`. One that cannot be (a process is in the
/// parent, or it is a threaded one) is left out: writing to its files says so later, by name.
fn enable_controllers(parent: &Path, controllers: &[String]) -> io::Result<()> {
    if controllers.is_empty() {
        return Ok(());
    }
    let file = parent.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file)?;
    let missing = |c: &&String| !enabled.split_ascii_whitespace().any(|e| e == *c);
    for controller in controllers.iter().filter(missing) {
        let _ = write_file(&file, &format!("+{controller}"));
    }
    Ok(())
}

/// A new v1 cpuset has no CPU and no memory node, and nobody can enter it: take the parent's.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(child.join(name))?.trim().is_empty() {
            let value = fs::read_to_string(parent.join(name))?;
            write_file(&child.join(name), value.trim())?;
        }
    }
    Ok(())
}

fn read_pids(file: &Path) -> io::Result<Vec<i32>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0).collect()),
        // gone, or (v2) a threaded cgroup, whose processes its parent lists
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e),
    }
}

/// Whether a process has ended, or is about to by a SIGKILL that has reached it.
fn is_dying(pid: i32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map_or("", str::trim);
    let pending = |name| u64::from_str_radix(field(name), 16).is_ok_and(|bits| bits & (1 << 8) != 0);
    field("State:").starts_with(['Z', 'X']) || pending("SigPnd:") || pending("ShdPnd:")
}

/// A directory and all directories below it, parents first; empty when it is not there.
fn subtree(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while next < found.len() {
        match fs::read_dir(&found[next]) {
            Ok(entries) => {
                for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
                    found.push(entry.path());
                }
                next += 1;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                found.remove(next);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    // Nearly always there is nothing below: no need to list a hundred files first.
    match fs::remove_dir(directory) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => return other,
    }
    for directory in subtree(directory)?.iter().rev() {
        match fs::remove_dir(directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
99 31 0:32 /box /mnt/memory rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn a_hybrid_layout_is_read() {
        let layout = Layout::parse(HYBRID);
        assert_eq!(layout.hierarchies.len(), 4);
        assert_eq!(layout.controller("cpuacct").unwrap().mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.controller("memory").unwrap().mount, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(layout.hierarchies[2].controllers, ["name=systemd"]);
        assert_eq!(layout.unified().unwrap().mount, Path::new("/sys/fs/cgroup/unified"));
        assert!(layout.has_v1());
    }

    #[test]
    fn a_pure_v2_layout_is_read() {
        let layout = Layout::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert!(!layout.has_v1());
        assert!(layout.unified().is_some());
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let hierarchy = Hierarchy { mount: "/c".into(), version: Version::V2, controllers: vec![] };
        for path in ["", "/", "a", "/a/../b", "//a", "/a/", "/./a"] {
            assert!(Cgroup::new(path).directory(&hierarchy).is_err(), "{path:?}");
        }
        assert_eq!(Cgroup::new("/a/b").directory(&hierarchy).unwrap(), Path::new("/c/a/b"));
    }

    #[test]
    fn steps_go_down() {
        let steps = steps(Path::new("/c"), Path::new("/c/a/b"));
        assert_eq!(steps, [("/c".into(), "/c/a".into()), ("/c/a".into(), "/c/a/b".into())]);
    }
}
