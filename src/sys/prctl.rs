//! Attributes of the running process that nix has no call for.

use std::io;

/// Whether others may trace this process and read its memory and its program (`PR_SET_DUMPABLE`).
pub fn set_dumpable(on: bool) -> io::Result<()> {
    // SAFETY: takes integers only.
    done(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(on), 0, 0, 0) })
}

/// Keep permitted capabilities when all user ids leave 0 (`PR_SET_KEEPCAPS`).
pub fn set_keep_capabilities(on: bool) -> io::Result<()> {
    // SAFETY: takes integers only.
    done(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(on), 0, 0, 0) })
}

/// No exec can give this process more rights than it has (`PR_SET_NO_NEW_PRIVS`); for good.
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: takes integers only; the unused arguments are 0 as the kernel demands.
    done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Leave the session keyring that was inherited for a new one without a name (keyctl(2)). Also fine: a kernel without
/// keyrings, and a seccomp filter that forbids them, which whatever we start inherits.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let rc =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match done(rc.min(0) as libc::c_int) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        other => other,
    }
}

fn done(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
