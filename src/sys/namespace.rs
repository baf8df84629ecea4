//! Entering and leaving namespaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Enter the namespaces `flags` (`CLONE_NEW*`) that a namespace file or a pidfd stands for (setns(2)). For
/// `CLONE_NEWPID` it is later children that are in it.
pub fn enter(of: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    if unsafe { libc::setns(of.as_raw_fd(), flags) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Move this process to new namespaces (unshare(2)).
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: takes an integer; callers are single-threaded (executor, module header of `process`).
    if unsafe { libc::unshare(flags) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
