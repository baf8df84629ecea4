//! The namespaces of a pod that is in a user namespace.
//!
//! The monitor itself stays out of the user namespace, or it could not do its work any more. It holds a descriptor of it,
//! at a number that everybody knows ([`USER_NAMESPACE_FD`]), and joins the IPC and UTS namespaces that a child has made
//! inside of it; what such a child makes belongs to the user namespace. The network namespace is held in the same way
//! until the daemon has pinned it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use oci::IdMaps;
use sys::process::{Clone, Side, clone3, exit_now, wait};
use sys::{namespace, user_namespace};

use crate::protocol::{NETWORK_NAMESPACE_FD, Sandbox, USER_NAMESPACE_FD};

/// Make the user namespace of a pod and, in it, the other namespaces that the pod has of its own. IPC and UTS are this
/// process's then.
pub(crate) fn make(sandbox: &Sandbox, maps: &IdMaps) -> Result<OwnedFd, String> {
    let failed = |e: io::Error| format!("make the pod's user namespace: {e}");
    let user = user_namespace::make(&maps.uid_map(), &maps.gid_map()).map_err(failed)?;
    hold(user.as_fd(), USER_NAMESPACE_FD).map_err(failed)?;
    let mut flags = 0;
    for (wanted, flag) in [
        (sandbox.ipc, libc::CLONE_NEWIPC),
        (sandbox.hostname.is_some(), libc::CLONE_NEWUTS),
        (sandbox.own_network, libc::CLONE_NEWNET),
    ] {
        flags |= if wanted { flag } else { 0 };
    }
    if flags != 0 {
        join_made(user.as_fd(), flags).map_err(|e| format!("make the pod's namespaces: {e}"))?;
    }
    Ok(user)
}

/// Keep it open at this number for as long as this process lives.
fn hold(namespace: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // the number is free when this is called: nothing else is open (module `sandbox`)
    match fcntl(namespace, FcntlArg::F_DUPFD_CLOEXEC(number))? {
        got if got == number => Ok(()),
        got => Err(io::Error::other(format!("descriptor {number} is in use ({got} is not)"))),
    }
}

fn join_made(user: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    let (mut told, tell) = io::pipe()?;
    let (mut until, held) = io::pipe()?;
    let pid = match clone3(Clone::default())? {
        Side::Child => {
            drop((told, held));
            let word = make_inside(user, flags).map_or_else(|e| e.to_string(), |()| "+".to_owned());
            let _ = (&tell).write_all(word.as_bytes());
            let _ = until.read(&mut [0]);
            exit_now(0)
        }
        Side::Parent { pid, .. } => pid,
    };
    drop(tell);
    let mut word = [0; 512];
    let heard = told.read(&mut word);
    let joined = match heard {
        Ok(1) if word[0] == b'+' => join(pid, flags),
        Ok(count) => Err(io::Error::other(String::from_utf8_lossy(&word[..count]).into_owned())),
        Err(e) => Err(e),
    };
    drop(held);
    wait(pid, true)?;
    joined
}

fn make_inside(user: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    user_namespace::enter(user)?;
    user_namespace::become_root()?;
    namespace::unshare(flags)?;
    if flags & libc::CLONE_NEWNET != 0 {
        sys::netns::bring_up_loopback()?;
    }
    Ok(())
}

fn join(pid: i32, flags: i32) -> io::Result<()> {
    let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}"));
    for (flag, name) in [(libc::CLONE_NEWIPC, "ipc"), (libc::CLONE_NEWUTS, "uts")] {
        if flags & flag != 0 {
            namespace::enter(open(name)?.as_fd(), flag)?;
        }
    }
    if flags & libc::CLONE_NEWNET != 0 {
        hold(open("net")?.as_fd(), NETWORK_NAMESPACE_FD)?;
    }
    Ok(())
}

/// Do something as the root of a user namespace, in a child that does nothing else.
pub(crate) fn as_its_root(user: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let (mut told, tell) = io::pipe()?;
    match clone3(Clone::default())? {
        Side::Child => {
            drop(told);
            let done = user_namespace::enter(user)
                .and_then(|()| user_namespace::become_root())
                .and_then(|()| work());
            let errno = done.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
            let _ = (&tell).write_all(&errno.to_ne_bytes());
            exit_now(0)
        }
        Side::Parent { pid, .. } => {
            drop(tell);
            let mut errno = [0; 4];
            let heard = told.read_exact(&mut errno);
            wait(pid, true)?;
            heard?;
            match i32::from_ne_bytes(errno) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}
