//! The container's root: made, filled with the mounts of the config, and entered.
//!
//! All of it happens in the container's own mount namespace, in this order (each is a step of `init`):
//!
//! ```text
//! copies of bind sources   while this namespace still shares propagation with the node: a later rshared then means it
//! cut off                  nothing that follows travels to the node
//! the root mount           an overlay of the layers, or a bind mount of root.path
//! the mounts of the config in their order, each target found inside the root by descriptor
//! devices, masks           (modules of these names)
//! pivot                    the node's tree is gone
//! ```
//!
//! What must never happen: a target that a hostile root redirects outside, or into /proc; /proc or /sys mounted
//! anywhere but at their own place.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;
use nix::sys::statfs::{self, FsType, PROC_SUPER_MAGIC, fstatfs};
use sys::cgroup::{Cgroup, Hierarchy, Layout, Version};
use sys::mount::{self, Attributes, FileSystem, Propagation};

use crate::attributes::Proc;
use crate::copy_up;
use crate::error::{Context, Error, Result};
use crate::id_maps::{self, Owners};
use crate::inside::{self, Make};
use crate::mounts::{Entry, Source};
use crate::overlay::{self, Complaint};

/// The root while it is built.
#[derive(Debug)]
pub(crate) struct Root {
    /// The root mount's directory.
    pub(crate) fd: OwnedFd,
    /// The devpts at /dev/pts, if the config has one: terminals come from it and no other.
    pub(crate) devpts: Option<OwnedFd>,
    /// Mounts that become read-only when all is in place.
    late_read_only: Vec<OwnedFd>,
    /// The mount entry of the root wants it read-only.
    read_only: bool,
    /// SELinux label for new file systems.
    label: Option<String>,
    /// Where it is mounted.
    place: PathBuf,
    /// Who its files belong to.
    owners: Owners,
}

/// Copies of the sources of all bind mounts, in the order of the entries, with the owners that `maps` (user namespaces
/// in the same order) make of theirs.
pub(crate) fn copy_sources(entries: &[Entry], maps: &[Option<OwnedFd>]) -> Result<Vec<Option<OwnedFd>>> {
    entries.iter().zip(maps).map(|(entry, map)| copy_source(entry, map.as_ref()).transpose()).collect()
}

fn copy_source(entry: &Entry, map: Option<&OwnedFd>) -> Option<Result<OwnedFd>> {
    let Source::Bind { path, recursive } = &entry.source else { return None };
    let copy = mount::copy_path(path, *recursive).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::invalid("bind mount", path.display(), crate::errno_text(&e)),
        _ => Error::internal("bind mount", path.display(), &e),
    });
    Some(copy.and_then(|copy| {
        if let (Some(map), Some(wanted)) = (map, &entry.id_map) {
            id_maps::apply(&copy, map, wanted.recursive, path)?;
        }
        Ok(copy)
    }))
}

impl Root {
    /// Make the root mount, at `root.path` of the node where nobody else sees it: an overlay when the first mount
    /// entry says so, else a bind mount of that directory with what is mounted below it. `map` is the user namespace that
    /// the layers are idmapped by.
    pub(crate) fn make(
        path: &Path,
        first: Option<&Entry>,
        map: Option<&OwnedFd>,
        label: Option<String>,
    ) -> Result<Root> {
        let mut first = first.filter(|e| e.is_root()).cloned();
        // The places for the other mounts are made in it first.
        let read_only = first.as_mut().is_some_and(writable_at_first);
        let fd = match (&first, map) {
            (Some(entry), Some(map)) => {
                let fd = overlay::overlay_of_mapped(entry, label.as_deref(), path, map)?;
                mount::attach(fd.as_fd(), overlay::open_place(path)?.as_fd())
                    .step("mount the root at", path.display())?;
                fd
            }
            (Some(entry), None) => overlay::overlay(entry, label.as_deref(), path)?,
            (None, _) => {
                let copy = mount::copy_path(path, true).map_err(|e| {
                    Error::invalid("open the root directory", path.display(), crate::errno_text(&e))
                })?;
                let place = overlay::open_place(path)?;
                mount::attach(copy.as_fd(), place.as_fd()).step("mount the root at", path.display())?;
                copy
            }
        };
        mount::change(fd.as_fd(), Attributes::default(), Some(Propagation::Private), true)
            .step("make the root private", path.display())?;
        Ok(Root {
            fd,
            devpts: None,
            late_read_only: Vec::new(),
            read_only,
            label,
            place: path.to_owned(),
            owners: Owners::default(),
        })
    }

    /// From here on everything is made for the root of a user namespace.
    pub(crate) fn belong_to(&mut self, owners: Owners) {
        self.owners = owners;
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Make one mount of the config.
    pub(crate) fn add(
        &mut self,
        entry: &Entry,
        copy: Option<OwnedFd>,
        cgroup: &Cgroup,
        proc: &Proc,
    ) -> Result<()> {
        match &entry.source {
            Source::Bind { .. } => {
                // copy_sources gives one for each entry of this kind
                let copy = copy.ok_or_else(|| self.problem(entry, "its source was not opened"))?;
                self.add_bind(entry, &copy)
            }
            Source::Cgroup => self.add_cgroup(entry, cgroup),
            Source::FileSystem { kind, .. } if kind == "overlay" => self.add_overlay(entry, copy),
            Source::FileSystem { kind, source } => self.add_file_system(entry, (kind, source), proc),
            Source::Remount => {
                let target = self.find(entry)?;
                finish(entry, target.as_fd())
            }
        }
    }

    fn problem(&self, entry: &Entry, why: &str) -> Error {
        Error::invalid("mount", entry.destination.display(), why)
    }

    fn find(&self, entry: &Entry) -> Result<OwnedFd> {
        inside::find(self.as_fd(), &entry.destination).step("find mount", entry.destination.display())
    }

    /// The place to mount at, made when it is missing, and not one inside /proc.
    fn target(&self, entry: &Entry, make: Make) -> Result<OwnedFd> {
        let target = inside::find_or_make(self.as_fd(), &entry.destination, make)?;
        let inside_proc = fstatfs(&target).is_ok_and(|s| s.filesystem_type() == PROC_SUPER_MAGIC);
        if inside_proc && !may_cover(&entry.destination) {
            return Err(self.problem(entry, "a mount inside /proc could deceive programs that trust it"));
        }
        Ok(target)
    }

    fn add_bind(&self, entry: &Entry, copy: &OwnedFd) -> Result<()> {
        let stat = fstat(copy).step("look at bind source", entry.destination.display())?;
        let make = if inside::is_directory(&stat) { Make::Directory } else { Make::File };
        let target = self.target(entry, make)?;
        finish(entry, copy.as_fd())?;
        mount::attach(copy.as_fd(), target.as_fd()).step("bind mount to", entry.destination.display())
    }

    /// An overlay that is not the root: the content of an image as a volume.
    fn add_overlay(&self, entry: &Entry, made: Option<OwnedFd>) -> Result<()> {
        let target = self.target(entry, Make::Directory)?;
        let new = match made {
            Some(made) => made,
            None => overlay::detached_overlay(entry, self.label.as_deref(), &self.place)?,
        };
        finish(entry, new.as_fd())?;
        mount::attach(new.as_fd(), target.as_fd()).step("mount overlay at", entry.destination.display())
    }

    fn add_file_system(&mut self, entry: &Entry, (kind, source): (&str, &str), proc: &Proc) -> Result<()> {
        let target = match kind {
            "proc" | "sysfs" => self.plain_target(entry)?,
            _ => self.target(entry, Make::Directory)?,
        };
        let all = entry.all_attributes();
        let mut attributes = all.set;
        // What is mounted into a tmpfs later needs a place made in it first.
        let late = kind == "tmpfs" && attributes & mount::RDONLY != 0;
        if late {
            attributes &= !mount::RDONLY;
        }
        let step = format!("mount {kind} at");
        let fs = FileSystem::open(kind).step(&step, entry.destination.display())?;
        let made = self.configure(&fs, entry, (kind, source), &target);
        let new = match made.and_then(|()| fs.mount(attributes)) {
            // A sysfs of this network namespace is only for those who own it: show the node's instead.
            Err(e) if kind == "sysfs" && e.raw_os_error() == Some(libc::EPERM) => {
                let copy = mount::copy_path(Path::new("/sys"), true).step("bind mount", "/sys")?;
                mount::change(copy.as_fd(), all, None, true).step("bind mount", "/sys")?;
                copy
            }
            other => {
                other.map_err(|e| Complaint(e, fs.complaint()).at(&step, entry.destination.display()))?
            }
        };
        if entry.copy_up {
            copy_up::copy(target.as_fd(), new.as_fd(), proc, &entry.destination)?;
        }
        if kind == "mqueue"
            && let Some(label) = &self.label
        {
            label_root(&new, label).step(&step, entry.destination.display())?;
        }
        let none = Attributes::default();
        finish(&Entry { attributes: none, recursive: none, ..entry.clone() }, new.as_fd())?;
        mount::attach(new.as_fd(), target.as_fd()).step("mount at", entry.destination.display())?;
        if kind == "devpts" && entry.destination == Path::new("/dev/pts") {
            self.devpts = Some(new.try_clone().step("keep devpts", "/dev/pts")?);
        }
        if late {
            self.late_read_only.push(new);
        }
        Ok(())
    }

    /// A directory with exactly this name: a root that has a link there is refused.
    fn plain_target(&self, entry: &Entry) -> Result<OwnedFd> {
        match inside::find_plain(self.as_fd(), &entry.destination) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                inside::find_or_make(self.as_fd(), &entry.destination, Make::Directory)
            }
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => Err(self.problem(entry, "is a symbolic link")),
            other => other.step("find", entry.destination.display()),
        }
    }

    fn configure(
        &self,
        fs: &FileSystem,
        entry: &Entry,
        (kind, source): (&str, &str),
        target: &OwnedFd,
    ) -> io::Result<()> {
        fs.set("source", source)?;
        for option in &entry.data {
            match option.split_once('=') {
                Some((key, value)) => {
                    // they keep the commas of a value together (a label's categories) and are no part of it
                    let bare = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                    let value = bare.unwrap_or(value);
                    fs.set(key, self.owners.translated(key, value)?.as_ref())?;
                }
                None => fs.flag(option)?,
            }
        }
        let given = |key: &str| entry.data.iter().any(|o| o.split_once('=').is_some_and(|(k, _)| k == key));
        let covered = fstat(target)?;
        if kind == "tmpfs" && !given("mode") {
            // As the directory that it covers, so that a root's own choice for /tmp or /run stays.
            fs.set("mode", format!("{:o}", covered.st_mode & 0o7777))?;
        }
        let owner = [("uid", covered.st_uid), ("gid", covered.st_gid)];
        for (key, id) in owner.into_iter().filter(|(key, _)| entry.copy_up && !given(key)) {
            fs.set(key, id.to_string())?;
        }
        if source.starts_with('/') && entry.attributes.set & mount::RDONLY != 0 {
            fs.flag("ro")?;
        }
        if let Some(label) = self.label.as_ref().filter(|_| matches!(kind, "tmpfs" | "devpts")) {
            fs.set("context", label)?;
        }
        Ok(())
    }

    /// The container's own cgroup as if it were the root: all of v2, or a tmpfs with one directory per v1 hierarchy.
    fn add_cgroup(&mut self, entry: &Entry, cgroup: &Cgroup) -> Result<()> {
        let layout = Layout::host().step("find the cgroups", "")?;
        let target = self.target(entry, Make::Directory)?;
        let at = entry.destination.display();
        match layout.unified() {
            Some(unified) if !layout.has_v1() => {
                let copy = copy_cgroup(cgroup, unified)?;
                finish(entry, copy.as_fd())?;
                mount::attach(copy.as_fd(), target.as_fd()).step("mount cgroups at", at)
            }
            _ => self.add_hierarchies(entry, cgroup, &target).step("mount cgroups at", at),
        }
    }

    fn add_hierarchies(&mut self, entry: &Entry, cgroup: &Cgroup, target: &OwnedFd) -> io::Result<()> {
        let fs = FileSystem::open("tmpfs")?;
        fs.set("mode", "755")?;
        let attributes = entry.all_attributes();
        let top = fs.mount(attributes.set & !mount::RDONLY)?;
        mount::attach(top.as_fd(), target.as_fd())?;
        for hierarchy in &Layout::host()?.hierarchies {
            let Some(name) = hierarchy.mount.file_name() else { continue };
            let copy = mount::copy_path(&cgroup.directory(hierarchy)?, false)?;
            mount::change(copy.as_fd(), attributes, Some(Propagation::Private), false)?;
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o755);
            nix::sys::stat::mkdirat(&top, name, mode)?;
            let place = inside::find(top.as_fd(), Path::new(name))?;
            mount::attach(copy.as_fd(), place.as_fd())?;
            // `cpu` and `cpuacct` lead to `cpu,cpuacct`
            let alone = hierarchy.version == Version::V1 && hierarchy.controllers.len() > 1;
            for controller in hierarchy.controllers.iter().filter(|_| alone) {
                nix::unistd::symlinkat(Path::new(name), &top, controller.as_str())?;
            }
        }
        for (propagation, recursive) in entry.propagations() {
            mount::change(top.as_fd(), Attributes::default(), Some(propagation), recursive)?;
        }
        if attributes.set & mount::RDONLY != 0 {
            self.late_read_only.push(top);
        }
        Ok(())
    }

    /// Make read-only what could not be before.
    pub(crate) fn finish_mounts(&mut self) -> Result<()> {
        let read_only = Attributes { set: mount::RDONLY, clear: 0 };
        for fd in self.late_read_only.drain(..) {
            mount::change(fd.as_fd(), read_only, None, false).step("make read-only", "a tmpfs")?;
        }
        Ok(())
    }

    /// Make the root mount read-only when its entry or the config (`wanted`) says so; what is mounted in it stays as it is.
    pub(crate) fn make_read_only(&self, wanted: bool) -> Result<()> {
        if !wanted && !self.read_only {
            return Ok(());
        }
        let read_only = Attributes { set: mount::RDONLY, clear: 0 };
        mount::change(self.as_fd(), read_only, None, false).step("make read-only", "/")
    }

    /// Become the root of this mount namespace, with the propagation that the config wants for it.
    pub(crate) fn pivot(&self, propagation: Option<(Propagation, bool)>) -> Result<()> {
        mount::pivot_root(self.as_fd()).step("pivot_root", "")?;
        if let Some((propagation, recursive)) = propagation {
            let none = Attributes::default();
            mount::change(self.as_fd(), none, Some(propagation), recursive)
                .step("set propagation of", "/")?;
        }
        Ok(())
    }
}

/// Take the read-only options away from the entry of a new mount; whether there are any.
fn writable_at_first(entry: &mut Entry) -> bool {
    entry.attributes = entry.all_attributes();
    entry.recursive = Attributes::default();
    let read_only = entry.attributes.set & mount::RDONLY != 0;
    entry.attributes.set &= !mount::RDONLY;
    read_only
}

/// A file system that takes no `context=` has its root labelled instead; what is made in it follows the policy.
fn label_root(mount: &OwnedFd, label: &str) -> io::Result<()> {
    use nix::fcntl::{OFlag, openat};
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = openat(mount, ".", flags, nix::sys::stat::Mode::empty())?;
    Ok(sys::path::set_xattr(root.as_fd(), std::ffi::OsStr::new("security.selinux"), label.as_bytes())?)
}

fn copy_cgroup(cgroup: &Cgroup, hierarchy: &Hierarchy) -> Result<OwnedFd> {
    let directory: PathBuf = cgroup.directory(hierarchy).step("find the cgroup", cgroup.path())?;
    let copy = mount::copy_path(&directory, false).step("bind mount", directory.display())?;
    mount::change(copy.as_fd(), Attributes::default(), Some(Propagation::Private), false)
        .step("bind mount", directory.display())?;
    Ok(copy)
}

/// Set attributes and propagation of a mount.
fn finish(entry: &Entry, fd: BorrowedFd<'_>) -> Result<()> {
    let none = Attributes::default();
    let change = |attributes, propagation, recursive| {
        mount::change(fd, attributes, propagation, recursive)
            .step("set options of", entry.destination.display())
    };
    if entry.attributes != none {
        change(entry.attributes, None, false)?;
    }
    if entry.recursive != none {
        change(entry.recursive, None, true)?;
    }
    entry.propagations().try_for_each(|(propagation, recursive)| change(none, Some(propagation), recursive))
}

/// Files in /proc that tools such as lxcfs replace; /proc itself is no place inside it before it is mounted.
fn may_cover(destination: &Path) -> bool {
    const ALLOWED: [&str; 12] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/net/dev",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
        "/proc/scsi",
    ];
    ALLOWED.iter().any(|path| destination == Path::new(path))
}

/// Whether a descriptor is of a file system of this type.
pub(crate) fn is_on(fd: BorrowedFd<'_>, kind: FsType) -> bool {
    statfs::fstatfs(fd).is_ok_and(|s| s.filesystem_type() == kind)
}
