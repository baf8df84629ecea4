//! Mounts by descriptor: the mount API of Linux 5.2 (fsopen, fsmount, open_tree, move_mount) and mount_setattr (5.12).
//!
//! A mount that is made here is detached: no path leads to it until [`attach`] puts it onto a directory or file that
//! the caller holds a descriptor of. So no path is ever walked between the check of a target and the mount.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Mount attributes (`MOUNT_ATTR_*`): bits to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// To set.
    pub set: u64,
    /// To clear; [`ATIME`] must be here when a time mode is set.
    pub clear: u64,
}

/// Read-only.
pub const RDONLY: u64 = 0x1;
/// Set-user-id bits and file capabilities mean nothing.
pub const NOSUID: u64 = 0x2;
/// Device nodes cannot be opened.
pub const NODEV: u64 = 0x4;
/// Nothing can be executed.
pub const NOEXEC: u64 = 0x8;
/// All bits of the access time mode; 0 among them is relatime.
pub const ATIME: u64 = 0x70;
/// Access times are never written.
pub const NOATIME: u64 = 0x10;
/// Access times are always written.
pub const STRICTATIME: u64 = 0x20;
/// Access times of directories are never written.
pub const NODIRATIME: u64 = 0x80;
/// Symbolic links are not followed.
pub const NOSYMFOLLOW: u64 = 0x20_0000;

/// How mounts and unmounts below a mount travel to its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the original to here.
    Slave,
    /// Both ways.
    Shared,
    /// Not at all, and it cannot be bind mounted.
    Unbindable,
}

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

fn c(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn done(rc: libc::c_long) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Wrap what a system call returned as a new descriptor.
fn owned(rc: libc::c_long) -> io::Result<OwnedFd> {
    done(rc)?;
    // SAFETY: only called with the result of calls that return a new descriptor, which nobody else knows yet.
    Ok(unsafe { OwnedFd::from_raw_fd(rc as RawFd) })
}

/// A file system that is being configured (fsopen(2)).
#[derive(Debug)]
pub struct FileSystem(OwnedFd);

impl FileSystem {
    /// Of a type such as `tmpfs`. `ENODEV`: the kernel does not have it.
    pub fn open(kind: &str) -> io::Result<Self> {
        let kind = c(kind.as_bytes())?;
        // SAFETY: `kind` is a C string that lives across the call; flag 1 is FSOPEN_CLOEXEC.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) }).map(FileSystem)
    }

    fn config(&self, command: u32, key: Option<&str>, value: Option<&[u8]>) -> io::Result<()> {
        let key = key.map(|k| c(k.as_bytes())).transpose()?;
        let value = value.map(c).transpose()?;
        let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        // SAFETY: both pointers are null or C strings that live across the call.
        done(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(&key), pointer(&value), 0)
        })
    }

    /// An option with a value (at most 255 bytes).
    pub fn set(&self, key: &str, value: impl AsRef<std::ffi::OsStr>) -> io::Result<()> {
        self.config(1, Some(key), Some(value.as_ref().as_bytes()))
    }

    /// An option without a value.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        self.config(0, Some(key), None)
    }

    /// Make the superblock and a detached mount of it with these attributes (`MOUNT_ATTR_*`).
    pub fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        self.config(6, None, None)?;
        // SAFETY: takes integers only; flag 1 is FSMOUNT_CLOEXEC.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), 1, attributes) })
    }

    /// What the file system had to say about the last failure; empty when nothing.
    pub fn complaint(&self) -> String {
        let mut text = String::new();
        let mut buffer = [0_u8; 512];
        while let Ok(count) = nix::unistd::read(&self.0, &mut buffer) {
            let line = String::from_utf8_lossy(&buffer[..count]);
            // "e message", "w message", "i message"
            text.push_str(line.trim_end().get(2..).unwrap_or_default());
        }
        text
    }
}

const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
const RECURSIVE: u32 = 0x8000;
const TREE_CLONE: u32 = 1;
const CLOEXEC: u32 = libc::O_CLOEXEC as u32;

/// A detached copy of the mount at a path of the host, from that directory or file down (a bind mount to be); with
/// `recursive` all mounts below it too. Symbolic links are followed.
pub fn copy_path(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c(path.as_os_str().as_bytes())?;
    let flags = TREE_CLONE | CLOEXEC | if recursive { RECURSIVE } else { 0 };
    // SAFETY: `path` is a C string that lives across the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// As [`copy_path`], of what a descriptor refers to.
pub fn copy(of: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let flags = TREE_CLONE | CLOEXEC | EMPTY_PATH | if recursive { RECURSIVE } else { 0 };
    // SAFETY: the empty path is a static C string.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, of.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Put a detached mount onto what `onto` refers to. Both descriptors stay good.
pub fn attach(mount: BorrowedFd<'_>, onto: BorrowedFd<'_>) -> io::Result<()> {
    const BOTH_EMPTY: u32 = 0x4 | 0x40;
    let (from, to) = (mount.as_raw_fd(), onto.as_raw_fd());
    // SAFETY: the empty paths are static C strings.
    done(unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), BOTH_EMPTY) })
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Change the attributes or the propagation of the mount whose root `mount` refers to, and with `recursive` of all below.
pub fn change(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: Option<Propagation>,
    recursive: bool,
) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: propagation.map_or(0, Propagation::bits),
        userns_fd: 0,
    };
    set_attributes(mount, &attr, recursive)
}

fn set_attributes(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = EMPTY_PATH | if recursive { RECURSIVE } else { 0 };
    // SAFETY: `attr` has the layout of struct mount_attr and lives across the call with its size.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
}

/// Whether this kernel can change attributes of a mount and of all below it at once (mount_setattr(2), Linux 5.12).
pub fn can_change_recursively() -> bool {
    use std::os::fd::AsFd;
    let Ok(root) = nix::fcntl::open(
        "/",
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    ) else {
        return false;
    };
    // Nothing is to be changed, so nothing is; what is not there answers ENOSYS.
    let asked = change(root.as_fd(), Attributes::default(), None, true);
    !asked.is_err_and(|e| e.raw_os_error() == Some(libc::ENOSYS))
}

/// Show the files of a detached mount (and with `recursive` of all below it) with other owners: an id on the file system
/// is taken for one inside this user namespace, and shown as what that is outside. `EINVAL`: this kernel or one of
/// the file systems cannot do it, or somebody has seen the mount already.
pub fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    const IDMAP: u64 = 0x10_0000;
    let userns_fd = user_namespace.as_raw_fd() as u64;
    set_attributes(mount, &MountAttr { attr_set: IDMAP, attr_clr: 0, propagation: 0, userns_fd }, recursive)
}

/// Change the propagation of the whole mount tree of this mount namespace.
pub fn propagate_all(propagation: Propagation) -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    let flags = MsFlags::from_bits_truncate(propagation.bits()) | MsFlags::MS_REC;
    Ok(mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
}

/// Make `root`, which must be a mount, the root of this mount namespace and drop the old tree.
/// Afterwards the working directory is the new root.
pub fn pivot_root(root: BorrowedFd<'_>) -> io::Result<()> {
    use nix::mount::{MntFlags, umount2};
    use nix::unistd::{fchdir, pivot_root};
    let old = nix::fcntl::open(
        "/",
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    fchdir(root)?;
    // The old root ends up on top of the new one (pivot_root(2), "pivot_root(".", ".")"): no directory for it is needed.
    pivot_root(".", ".")?;
    fchdir(old.as_fd())?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}
