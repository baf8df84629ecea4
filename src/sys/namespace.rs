//! Entering and leaving namespaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// Set the loopback interface of this network namespace up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: takes integers only; a non-negative result is a new descriptor.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: ifreq is plain data; zero is valid. Reading the flags member after SIOCGIFFLAGS wrote it is its purpose.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
