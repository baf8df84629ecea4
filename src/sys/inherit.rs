//! Descriptors that a program was started with.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Take the inherited descriptor `number` (3 or more; close-on-exec from now on) and close all others from 3 on.
/// Call it once, first thing in `main`, before anything is opened: what is open by then belongs to nobody.
/// `EBADF`: it is not open.
pub fn take_only(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD has no memory effect.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let number_u = number as u32;
    if number_u > 3 {
        close_range(3, number_u - 1)?;
    }
    close_range(number_u + 1, u32::MAX)?;
    // SAFETY: it is open (F_SETFD succeeded) and, by this function's contract, owned by nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Close all descriptors of this process, 0 to 2 too. For a forked child that will use none and ends by
/// [`crate::process::exit_now`]: no destructor may run after it.
pub fn close_all() -> io::Result<()> {
    close_range(0, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: by the contracts of the callers no OwnedFd exists for any of these numbers, or none is used again.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
