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

use crate::error::{Context, Error, Result};
use crate::id_maps::{self, Owners};
use crate::inside::{self, Make};
use crate::mounts::{Entry, Source};

/// The root while it is built.
#[derive(Debug)]
pub(crate) struct Root {
    /// The root mount's directory.
    pub(crate) fd: OwnedFd,
    /// The devpts at /dev/pts, if the config has one: terminals come from it and no other.
    pub(crate) devpts: Option<OwnedFd>,
    /// Mounts that become read-only when all is in place.
    late_read_only: Vec<OwnedFd>,
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

/// As [`detached_overlay`], of layers whose files are shown with the owners that a user namespace makes of theirs. Each is idmapped
/// by itself, at a place where only this mount namespace sees it, and only until the overlay has it.
fn overlay_of_mapped(entry: &Entry, label: Option<&str>, path: &Path, map: &OwnedFd) -> Result<OwnedFd> {
    let shelf =
        FileSystem::open("tmpfs").and_then(|fs| fs.mount(0)).step("mount tmpfs at", path.display())?;
    mount::attach(shelf.as_fd(), open_place(path)?.as_fd()).step("mount tmpfs at", path.display())?;
    let mut shown = entry.clone();
    for option in &mut shown.data {
        let Some(layers) = option.strip_prefix("lowerdir=") else { continue };
        let mut places = Vec::new();
        for (number, layer) in split_layers(layers).iter().enumerate() {
            let name = number.to_string();
            let copy = mount::copy_path(Path::new(layer), false).step("show layer", layer)?;
            id_maps::apply(&copy, map, false, Path::new(layer))?;
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o700);
            nix::sys::stat::mkdirat(&shelf, name.as_str(), mode).step("show layer", layer)?;
            let place = inside::find(shelf.as_fd(), Path::new(&name)).step("show layer", layer)?;
            mount::attach(copy.as_fd(), place.as_fd()).step("show layer", layer)?;
            let name = path.join(name).display().to_string();
            places.push(name.replace('\\', "\\\\").replace(':', "\\:"));
        }
        *option = format!("lowerdir={}", places.join(":"));
    }
    let made = detached_overlay(&shown, label, path);
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).step("unmount tmpfs at", path.display())?;
    made
}

/// The overlays of a config that need their place for themselves: their layers are shown at it. In the order of the
/// entries; the root is not one of them.
pub(crate) fn mapped_overlays(
    entries: &[Entry],
    maps: &[Option<OwnedFd>],
    label: Option<&str>,
    place: &Path,
) -> Result<Vec<Option<OwnedFd>>> {
    let make = |(entry, map): (&Entry, &Option<OwnedFd>)| match (&entry.source, map) {
        (Source::FileSystem { kind, .. }, Some(map))
            if kind == "overlay" && entry.destination != Path::new("/") =>
        {
            overlay_of_mapped(entry, label, place, map).map(Some)
        }
        _ => Ok(None),
    };
    entries.iter().zip(maps).map(make).collect()
}

/// An overlay file system of layers, mounted at a path: `lowerdir=a:b` (topmost first), `upperdir=`, `workdir=`, others.
fn overlay(entry: &Entry, label: Option<&str>, path: &Path) -> Result<OwnedFd> {
    let object = entry.data.iter().find_map(|o| o.strip_prefix("upperdir=")).unwrap_or("/");
    let step = "mount the root overlay";
    let Some(fd) = overlay_by_layer(entry, label).map_err(|e| e.at(step, object))? else {
        return overlay_in_one(entry, label, path).step(step, object);
    };
    let place = open_place(path)?;
    mount::attach(fd.as_fd(), place.as_fd()).step("mount the root at", path.display())?;
    Ok(fd)
}

/// As [`overlay`], but mounted nowhere yet. An older kernel has to mount it somewhere first: at `place`, a directory that
/// nobody else looks at.
fn detached_overlay(entry: &Entry, label: Option<&str>, place: &Path) -> Result<OwnedFd> {
    let (step, object) = ("mount overlay at", entry.destination.display());
    if let Some(fd) = overlay_by_layer(entry, label).map_err(|e| e.at(step, &object))? {
        return Ok(fd);
    }
    let there = overlay_in_one(entry, label, place).step(step, &object)?;
    let copy = mount::copy(there.as_fd(), false);
    drop(there);
    nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH).step(step, &object)?;
    copy.step(step, &object)
}

/// An errno and what the file system itself says.
struct Complaint(io::Error, String);

impl Complaint {
    fn at(&self, step: &str, object: impl std::fmt::Display) -> Error {
        let Complaint(error, complaint) = self;
        let errno = crate::errno_text(error);
        let cause = if complaint.is_empty() { errno } else { format!("{errno}: {complaint}") };
        Error::new(crate::Kind::Internal, step, object, cause)
    }
}

/// A detached overlay. `None`: this kernel (before 6.5) does not take layers one by one.
fn overlay_by_layer(entry: &Entry, label: Option<&str>) -> std::result::Result<Option<OwnedFd>, Complaint> {
    let fs = FileSystem::open("overlay").map_err(|e| Complaint(e, String::new()))?;
    let made = configure_overlay(&fs, entry, label).and_then(|whole| match whole {
        true => fs.mount(entry.attributes.set).map(Some),
        false => Ok(None),
    });
    made.map_err(|e| Complaint(e, fs.complaint()))
}

/// One call per layer. `false`: this kernel (before 6.5) cannot take them so.
fn configure_overlay(fs: &FileSystem, entry: &Entry, label: Option<&str>) -> io::Result<bool> {
    fs.set("source", "overlay")?;
    for option in &entry.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for (index, layer) in split_layers(layers).iter().enumerate() {
                    match fs.set("lowerdir+", layer) {
                        Err(e) if index == 0 && e.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
                        other => other?,
                    }
                }
            }
            Some((key, value)) => fs.set(key, value)?,
            None => fs.flag(option)?,
        }
    }
    label.map_or(Ok(()), |label| fs.set("context", label))?;
    Ok(true)
}

/// All layers in the one page of text that mount(2) takes: their names relative to the directory that they share.
fn overlay_in_one(entry: &Entry, label: Option<&str>, path: &Path) -> io::Result<OwnedFd> {
    use nix::mount::{MsFlags, mount};
    let mut options = Vec::new();
    let mut start = PathBuf::from("/");
    for option in &entry.data {
        match option.strip_prefix("lowerdir=") {
            Some(layers) => {
                let (shared, names) = relative_layers(&split_layers(layers));
                options.push(format!("lowerdir={}", names.join(":")));
                start = shared;
            }
            None => options.push(option.clone()),
        }
    }
    options.extend(label.map(|label| format!("context=\"{label}\"")));
    std::env::set_current_dir(&start)?;
    let made =
        mount(Some("overlay"), path, Some("overlay"), MsFlags::empty(), Some(options.join(",").as_str()));
    std::env::set_current_dir("/")?;
    made?;
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
    mount::change(fd.as_fd(), entry.attributes, None, false)?;
    Ok(fd)
}

/// The deepest directory that all layers are in, and their names from there, colons escaped.
fn relative_layers(layers: &[String]) -> (PathBuf, Vec<String>) {
    let mut shared = Path::new(layers.first().map_or("/", String::as_str));
    while !layers.iter().all(|l| Path::new(l).strip_prefix(shared).is_ok_and(|r| !r.as_os_str().is_empty())) {
        match shared.parent() {
            Some(parent) => shared = parent,
            None => break,
        }
    }
    let name = |layer: &String| {
        let rest = Path::new(layer).strip_prefix(shared).unwrap_or(Path::new(layer));
        rest.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
    };
    (shared.to_owned(), layers.iter().map(name).collect())
}

fn open_place(path: &Path) -> Result<OwnedFd> {
    sys::path::open_directory(path).map_err(|e| {
        Error::invalid("open the root directory", path.display(), crate::errno_text(&e.errno.into()))
    })
}

/// Layers are separated by colons; `\:` is a colon in a name.
fn split_layers(text: &str) -> Vec<String> {
    let mut layers = Vec::new();
    let (mut layer, mut letters) = (String::new(), text.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => layer.extend(letters.next()),
            ':' => layers.push(std::mem::take(&mut layer)),
            other => layer.push(other),
        }
    }
    layers.push(layer);
    layers
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
        let is_root = |e: &&Entry| e.destination == Path::new("/");
        let fd = match (first.filter(is_root), map) {
            (Some(entry), Some(map)) => {
                let fd = overlay_of_mapped(entry, label.as_deref(), path, map)?;
                mount::attach(fd.as_fd(), open_place(path)?.as_fd())
                    .step("mount the root at", path.display())?;
                fd
            }
            (Some(entry), None) => overlay(entry, label.as_deref(), path)?,
            (None, _) => {
                let copy = mount::copy_path(path, true).map_err(|e| {
                    Error::invalid("open the root directory", path.display(), crate::errno_text(&e))
                })?;
                let place = open_place(path)?;
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
    pub(crate) fn add(&mut self, entry: &Entry, copy: Option<OwnedFd>, cgroup: &Cgroup) -> Result<()> {
        match &entry.source {
            Source::Bind { .. } => {
                // copy_sources gives one for each entry of this kind
                let copy = copy.ok_or_else(|| self.problem(entry, "its source was not opened"))?;
                self.add_bind(entry, &copy)
            }
            Source::Cgroup => self.add_cgroup(entry, cgroup),
            Source::FileSystem { kind, .. } if kind == "overlay" => self.add_overlay(entry, copy),
            Source::FileSystem { kind, source } => self.add_file_system(entry, kind, source),
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
            None => detached_overlay(entry, self.label.as_deref(), &self.place)?,
        };
        finish(entry, new.as_fd())?;
        mount::attach(new.as_fd(), target.as_fd()).step("mount overlay at", entry.destination.display())
    }

    fn add_file_system(&mut self, entry: &Entry, kind: &str, source: &str) -> Result<()> {
        let target = match kind {
            "proc" | "sysfs" => self.plain_target(entry)?,
            _ => self.target(entry, Make::Directory)?,
        };
        let mut attributes = entry.attributes.set;
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
                mount::change(copy.as_fd(), entry.attributes, None, true).step("bind mount", "/sys")?;
                copy
            }
            other => {
                other.map_err(|e| Complaint(e, fs.complaint()).at(&step, entry.destination.display()))?
            }
        };
        if kind == "mqueue"
            && let Some(label) = &self.label
        {
            label_root(&new, label).step(&step, entry.destination.display())?;
        }
        finish(&Entry { attributes: Attributes::default(), ..entry.clone() }, new.as_fd())?;
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
        let mut has_mode = false;
        for option in &entry.data {
            match option.split_once('=') {
                Some((key, value)) => {
                    has_mode |= key == "mode";
                    fs.set(key, self.owners.translated(key, value)?.as_ref())?;
                }
                None => fs.flag(option)?,
            }
        }
        if kind == "tmpfs" && !has_mode {
            // As the directory that it covers, so that a root's own choice for /tmp or /run stays.
            fs.set("mode", format!("{:o}", fstat(target)?.st_mode & 0o7777))?;
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
        let top = fs.mount(entry.attributes.set & !mount::RDONLY)?;
        mount::attach(top.as_fd(), target.as_fd())?;
        for hierarchy in &Layout::host()?.hierarchies {
            let Some(name) = hierarchy.mount.file_name() else { continue };
            let copy = mount::copy_path(&cgroup.directory(hierarchy)?, false)?;
            mount::change(copy.as_fd(), entry.attributes, Some(Propagation::Private), false)?;
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
        if entry.attributes.set & mount::RDONLY != 0 {
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

    /// Make the root mount read-only, what is mounted in it stays as it is.
    pub(crate) fn make_read_only(&self) -> Result<()> {
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
    match entry.propagation {
        Some((propagation, recursive)) => change(none, Some(propagation), recursive),
        None => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_may_have_colons() {
        assert_eq!(split_layers("/a:/b\\:c:/d"), ["/a", "/b:c", "/d"]);
        let (shared, names) = relative_layers(&["/x/y/a:b".to_owned(), "/x/y/c/d".to_owned()]);
        assert_eq!(
            (shared.as_path(), names),
            (Path::new("/x/y"), vec!["a\\:b".to_owned(), "c/d".to_owned()])
        );
        let (shared, names) = relative_layers(&["/x".to_owned()]);
        assert_eq!((shared.as_path(), names), (Path::new("/"), vec!["x".to_owned()]));
    }

    #[test]
    fn layers_for_an_older_kernel() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP layers_for_an_older_kernel: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let layers: Vec<_> = (0..50).map(|n| path(&format!("{n:a>60}"))).collect();
        layers.iter().chain([&path("place")]).for_each(|l| std::fs::create_dir(l).unwrap());
        std::fs::write(layers[49].join("deepest"), "x").unwrap();
        let lower: Vec<_> = layers.iter().map(|l| l.display().to_string()).collect();
        let entry = Entry {
            destination: "/".into(),
            source: Source::Remount,
            attributes: Attributes { set: mount::NODEV, clear: 0 },
            recursive: Attributes::default(),
            propagation: None,
            data: vec![format!("lowerdir={}", lower.join(":"))],
            id_map: None,
        };
        // a thread with a mount namespace and a working directory of its own
        let test = || {
            sys::namespace::unshare(libc::CLONE_NEWNS).unwrap();
            mount::propagate_all(Propagation::Private).unwrap();
            let fd = overlay_in_one(&entry, None, &path("place")).unwrap();
            inside::find(fd.as_fd(), Path::new("/deepest")).unwrap();
            // a copy of it can be mounted elsewhere when it itself is gone, as detached_overlay does it
            let copy = mount::copy(fd.as_fd(), false).unwrap();
            inside::find(copy.as_fd(), Path::new("/deepest")).unwrap();
            assert!(
                std::fs::read_to_string("/proc/thread-self/mounts")
                    .unwrap()
                    .contains("place overlay ro,nodev")
            );
        };
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }
}
