//! User namespaces: made with given mappings, entered as their root.
//!
//! A user namespace lives as long as something refers to it; [`make`] gives it as a descriptor without a process in it.
//! Whoever writes the mappings has to have the capabilities for it (user_namespaces(7)), so they are the node's root.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::process::{Clone, Side, clone3, exit_now, wait};

/// Make one with these mappings, lines of `inside outside length` as the kernel takes them. For single-threaded callers
/// (module header of `process`); the process that it takes for a moment has ended when this returns.
pub fn make(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let (mut until, held) = io::pipe()?;
    match clone3(Clone { namespaces: libc::CLONE_NEWUSER, ..Clone::default() })? {
        Side::Child => {
            drop(held);
            let _ = until.read(&mut [0]);
            exit_now(0)
        }
        Side::Parent { pid, .. } => {
            let made = map(pid, uid_map, gid_map);
            drop(held);
            wait(pid, true)?;
            made
        }
    }
}

fn map(pid: i32, uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    fs::write(format!("/proc/{pid}/uid_map"), uid_map)?;
    fs::write(format!("/proc/{pid}/gid_map"), gid_map)?;
    Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// The mappings of the namespace that a process is in, as texts, ids outside as this process counts them.
pub fn maps_of(pid: i32) -> io::Result<(String, String)> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    Ok((read("uid_map")?, read("gid_map")?))
}

/// Enter one for good: this process has all capabilities in it and none outside.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    crate::namespace::enter(namespace, libc::CLONE_NEWUSER)
}

/// Be user and group 0 of the user namespace that was entered, in no other group. A namespace that does not map
/// them leaves this process who it was.
pub fn become_root() -> io::Result<()> {
    let unmapped_is_fine = |result: nix::Result<()>| match result {
        Err(nix::errno::Errno::EINVAL) => Ok(()),
        other => other,
    };
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    unmapped_is_fine(setresgid(gid, gid, gid))?;
    Ok(unmapped_is_fine(setresuid(uid, uid, uid))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn mappings_are_seen_from_inside() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP mappings_are_seen_from_inside: needs root");
            return;
        }
        // the test harness has threads, and a copy of one thread may only make system calls (setresuid is more than one)
        let user = make("0 100000 65536\n", "0 200000 10\n").unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        match clone3(Clone::default()).unwrap() {
            Side::Child => {
                let word: &[u8] = if enter(user.as_fd()).is_ok() { b"+" } else { b"-" };
                let _ = nix::unistd::write(&writer, word);
                // it is killed when it was looked at, long before; a read of the pipe could take its own word back
                std::thread::sleep(std::time::Duration::from_secs(60));
                exit_now(0)
            }
            Side::Parent { pid, .. } => {
                drop(writer);
                let mut said = [0];
                reader.read_exact(&mut said).unwrap();
                let maps = maps_of(pid).unwrap();
                crate::process::pidfd_signal(crate::process::pidfd_open(pid).unwrap().as_fd(), libc::SIGKILL)
                    .unwrap();
                wait(pid, true).unwrap();
                assert_eq!(&said, b"+");
                assert!(maps.0.contains("100000") && maps.1.contains("200000"), "{maps:?}");
            }
        }
    }
}
