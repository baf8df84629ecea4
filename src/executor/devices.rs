//! Device nodes and the usual links in /dev.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use sys::mount;

use crate::attributes::Proc;
use crate::error::{Context, Error, Result};
use crate::id_maps::Owners;
use crate::inside::{self, Make};

/// A node to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) path: PathBuf,
    kind: SFlag,
    major: u64,
    minor: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Its owner is set even where it is the default one: who makes it may make files as somebody else.
    owned: bool,
}

impl Node {
    /// Whether something is this device, whoever it belongs to.
    fn is(&self, stat: &FileStat) -> bool {
        let number = makedev(self.major, self.minor);
        stat.st_mode & SFlag::S_IFMT.bits() == self.kind.bits() && stat.st_rdev == number
    }
}

/// What every container has (runtime-spec, config-linux.md, "Default Devices").
const DEFAULTS: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The nodes of a config and the default ones that it does not name itself. Those without an owner are the node's own, whoever
/// makes them: the root of a user namespace must not own a device that it may only use as far as its owner lets it.
pub(crate) fn nodes(devices: &[LinuxDevice], owners: &Owners) -> Result<Vec<Node>> {
    let mut nodes = listed(devices, owners)?;
    for (path, major, minor) in DEFAULTS {
        if !nodes.iter().any(|n| n.path == Path::new(path)) {
            let (path, kind, owned) = (PathBuf::from(path), SFlag::S_IFCHR, owners.mapped());
            nodes.push(Node { path, kind, major, minor, mode: 0o666, uid: 0, gid: 0, owned });
        }
    }
    Ok(nodes)
}

/// The nodes of a config alone.
pub(crate) fn listed(devices: &[LinuxDevice], owners: &Owners) -> Result<Vec<Node>> {
    devices.iter().map(|device| node(device, owners)).collect()
}

fn node(device: &LinuxDevice, owners: &Owners) -> Result<Node> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        // the check of the config lets no A through
        LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => SFlag::S_IFCHR,
    };
    // a pipe has no number, whatever is said
    let number = |given: i64| if kind == SFlag::S_IFIFO { 0 } else { given as u64 };
    let unknown = |e: Error| {
        let why = format!("its owner {}: {}", e.object, e.cause);
        Error::invalid("make device", device.path().display(), why)
    };
    Ok(Node {
        path: device.path().clone(),
        kind,
        major: number(device.major()),
        minor: number(device.minor()),
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().map_or(Ok(0), |uid| owners.user(uid)).map_err(unknown)?,
        gid: device.gid().map_or(Ok(0), |gid| owners.group(gid)).map_err(unknown)?,
        owned: owners.mapped(),
    })
}

/// Make a node in the root. One that is there already must be the same device.
pub(crate) fn make(root: BorrowedFd<'_>, node: &Node, proc: &Proc) -> Result<()> {
    let (Some(parent), Some(name)) = (node.path.parent(), node.path.file_name()) else {
        return Err(Error::invalid("make device", node.path.display(), "has no name"));
    };
    let parent = inside::find_or_make(root, parent, Make::Directory)?;
    match make_at(parent.as_fd(), name, node, proc) {
        // No right to make nodes here (a user namespace): show the node's own device.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => bind(root, node),
        other => other.step("make device", node.path.display()),
    }
}

/// A node that has to be there already, as it is: the directory is not the container's.
pub(crate) fn demand(root: BorrowedFd<'_>, node: &Node) -> Result<()> {
    let there = inside::find(root, &node.path).and_then(|found| Ok(fstat(&found)?));
    if there.is_ok_and(|stat| node.is(&stat)) {
        return Ok(());
    }
    let why = "it is not there, and nothing is made in a /dev that is a bind mount";
    Err(Error::invalid("find device", node.path.display(), why))
}

fn make_at(parent: BorrowedFd<'_>, name: &OsStr, node: &Node, proc: &Proc) -> io::Result<()> {
    let number = makedev(node.major, node.minor);
    match mknodat(parent, name, node.kind, Mode::from_bits_truncate(node.mode), number) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // The directory may be a volume that another container changes meanwhile: from here on it is this very node.
    let made = openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let stat = fstat(&made)?;
    if !node.is(&stat) {
        return Err(Errno::EEXIST.into());
    }
    if node.owned || (node.uid, node.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        fchownat(&made, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
    }
    // mknod obeys the umask, which is 0 here; an existing node gets its mode now
    proc.change_mode(made.as_fd(), node.mode)
}

fn bind(root: BorrowedFd<'_>, node: &Node) -> Result<()> {
    let copy = mount::copy_path(&node.path, false).step("bind mount device", node.path.display())?;
    let place = inside::find_or_make(root, &node.path, Make::File)?;
    mount::attach(copy.as_fd(), place.as_fd()).step("bind mount device", node.path.display())
}

/// The links that programs expect (runtime-spec, runtime-linux.md, "Dev symbolic links"), and `ptmx` when the
/// container has terminals of its own.
pub(crate) fn links(root: BorrowedFd<'_>, has_devpts: bool) -> Result<()> {
    let dev = inside::find_or_make(root, Path::new("/dev"), Make::Directory)?;
    let usual = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
    ];
    for (name, target) in usual {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).step("make link", format!("/dev/{name}")),
        }
    }
    if has_devpts {
        inside::remove(dev.as_fd(), OsStr::new("ptmx")).step("replace", "/dev/ptmx")?;
        symlinkat("pts/ptmx", &dev, "ptmx").step("make link", "/dev/ptmx")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_nodes_replace_the_default_ones() {
        let json =
            serde_json::json!({"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600});
        let nodes = nodes(&[serde_json::from_value(json).unwrap()], &Owners::default()).unwrap();
        assert_eq!(nodes.len(), DEFAULTS.len());
        assert_eq!(nodes[0].mode, 0o600);
    }
}
