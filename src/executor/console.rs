//! The terminal of a process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat, major, minor};
use nix::sys::statfs::FsType;
use nix::unistd::{Gid, Uid, fchown};
use oci_spec::runtime::Process;
use sys::{mount, tty};

use crate::error::{Context, Error, Result};
use crate::inside::{self, Make};
use crate::root::is_on;

const DEVPTS: FsType = FsType(0x1cd1);

/// Both sides of a new terminal.
#[derive(Debug)]
pub(crate) struct Console {
    pub(crate) master: OwnedFd,
    pub(crate) terminal: OwnedFd,
}

/// Make a terminal from a devpts that is known to be one, for a user.
pub(crate) fn open(devpts: BorrowedFd<'_>, process: &Process, owner: u32) -> Result<Console> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let master = nix::fcntl::openat(devpts, "ptmx", flags, Mode::empty()).step("open", "/dev/pts/ptmx")?;
    new(master, process, owner)
}

/// Make a terminal from the devpts at /dev/pts of this root, for a user; anything else there is refused.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, process: &Process, owner: u32) -> Result<Console> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW;
    let found = inside::find(root, Path::new("/dev/pts")).step("find", "/dev/pts")?;
    if !is_on(found.as_fd(), DEVPTS) {
        return Err(Error::invalid("make a terminal", "/dev/pts", "is not a devpts"));
    }
    let master = nix::fcntl::openat(&found, "ptmx", flags | OFlag::O_CLOEXEC, Mode::empty())
        .step("open", "/dev/pts/ptmx")?;
    new(master, process, owner)
}

fn new(master: OwnedFd, process: &Process, owner: u32) -> Result<Console> {
    let stat = fstat(&master).step("look at", "/dev/pts/ptmx")?;
    if (major(stat.st_rdev), minor(stat.st_rdev)) != (5, 2) {
        return Err(Error::invalid("make a terminal", "/dev/pts/ptmx", "is not the terminal multiplexer"));
    }
    let terminal = tty::peer(master.as_fd()).step("open the terminal of", "/dev/pts/ptmx")?;
    if let Some(size) = process.console_size() {
        let cut = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        tty::set_size(terminal.as_fd(), cut(size.height()), cut(size.width()))
            .step("set the terminal's size", "")?;
    }
    // its group stays what devpts gave it (tty)
    fchown(&terminal, Some(Uid::from_raw(owner)), None::<Gid>).step("own the terminal", owner)?;
    Ok(Console { master, terminal })
}

/// Show the terminal at /dev/console.
pub(crate) fn show(root: BorrowedFd<'_>, console: &Console) -> Result<()> {
    let place = inside::find_or_make(root, Path::new("/dev/console"), Make::File)?;
    let copy = mount::copy(console.terminal.as_fd(), false).step("bind mount", "/dev/console")?;
    mount::attach(copy.as_fd(), place.as_fd()).step("bind mount", "/dev/console")
}
