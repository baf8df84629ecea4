//! Installing a seccomp filter that was compiled before.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Bytes of one BPF instruction (struct sock_filter).
pub const INSTRUCTION: usize = 8;

/// Log actions that are not allow (`SECCOMP_FILTER_FLAG_LOG`).
pub const LOG: u32 = 2;
/// Do not switch on the speculative store bypass mitigation (`SECCOMP_FILTER_FLAG_SPEC_ALLOW`).
pub const SPEC_ALLOW: u32 = 4;
/// Return a descriptor for user notifications (`SECCOMP_FILTER_FLAG_NEW_LISTENER`).
pub const NEW_LISTENER: u32 = 8;
/// A notified process can only be killed while it waits (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`).
pub const WAIT_KILLABLE_RECV: u32 = 32;

#[repr(C)]
struct Program {
    len: u16,
    filter: *const u8,
}

/// Install a compiled filter (struct sock_filter instructions in host byte order) for this thread and what comes
/// of it. Needs no_new_privs or CAP_SYS_ADMIN. A descriptor comes back with [`NEW_LISTENER`].
/// `EINVAL`: not a valid program, or the kernel does not know a flag.
pub fn install(bpf: &[u8], flags: u32) -> io::Result<Option<OwnedFd>> {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    let count = bpf.len() / INSTRUCTION;
    if !bpf.len().is_multiple_of(INSTRUCTION) || count == 0 || count > 4096 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let program = Program { len: count as u16, filter: bpf.as_ptr() };
    // SAFETY: `program` has the layout of struct sock_fprog and points to `count` whole instructions, which live across
    // the call; the kernel copies and verifies them.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match rc {
        rc if rc < 0 => Err(io::Error::last_os_error()),
        // SAFETY: with NEW_LISTENER the result is a new descriptor.
        rc if flags & NEW_LISTENER != 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(rc as RawFd) })),
        _ => Ok(None),
    }
}
