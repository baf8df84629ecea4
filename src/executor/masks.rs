//! Paths that a container may not see, or may only read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::fstat;
use sys::mount::{self, Attributes, FileSystem};

use crate::error::{Context, Result};
use crate::inside;

/// Cover paths: files by /dev/null of the node, directories by one empty read-only tmpfs that they share. A path
/// that is not there needs no cover.
pub(crate) fn cover(root: BorrowedFd<'_>, paths: &[String]) -> Result<()> {
    let mut empty = None;
    for path in paths {
        let found = match inside::find(root, Path::new(path)) {
            Err(e) if is_absent(&e) => continue,
            other => other.step("find masked path", path)?,
        };
        let directory = fstat(&found).is_ok_and(|s| inside::is_directory(&s));
        let cover = if directory {
            empty_directory(&mut empty)
        } else {
            mount::copy_path(Path::new("/dev/null"), false)
        };
        let cover = cover.step("mask", path)?;
        mount::attach(cover.as_fd(), found.as_fd()).step("mask", path)?;
        if directory && empty.is_none() {
            empty = Some(cover);
        }
    }
    Ok(())
}

/// Copies can only be made of a mount that is attached: the first cover is made, the others are copies of it.
fn empty_directory(first: &mut Option<OwnedFd>) -> io::Result<OwnedFd> {
    if let Some(first) = first {
        return mount::copy(first.as_fd(), false);
    }
    let fs = FileSystem::open("tmpfs")?;
    fs.set("mode", "755")?;
    fs.set("nr_blocks", "1")?;
    fs.set("nr_inodes", "2")?;
    fs.flag("ro")?;
    fs.mount(mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC)
}

/// Make paths read-only, with their other options as they are.
pub(crate) fn make_read_only(root: BorrowedFd<'_>, paths: &[String]) -> Result<()> {
    let read_only = Attributes { set: mount::RDONLY, clear: 0 };
    for path in paths {
        let found = match inside::find(root, Path::new(path)) {
            Err(e) if is_absent(&e) => continue,
            other => other.step("find read-only path", path)?,
        };
        let copy = mount::copy(found.as_fd(), true).step("make read-only", path)?;
        mount::change(copy.as_fd(), read_only, None, false).step("make read-only", path)?;
        mount::attach(copy.as_fd(), found.as_fd()).step("make read-only", path)?;
    }
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}
