//! Messages between the caller, the builder and the new process: JSON with descriptors over sequenced-packet sockets.
//!
//! ```text
//! builder → init     CgroupMade, Continue                 (init waits for them at fixed places)
//! init → builder     MountsMade, Ready{…} + console, Failed(error); end of file: the exec has succeeded, or it died
//! in a user namespace (module `apart`) also Born and RootMade to the builder, EnterRoot to init
//! builder → caller   Made{…} + pidfd (+ console) | NotMade{…}            exactly one
//! exec'd → caller    Ready{…} + console, Failed(error), end of file
//! ```
//!
//! Both ends are close-on-exec, which is what makes the end of file mean "your program runs".

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// From the new process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// Its mounts are made; hooks of the node's side may run now.
    MountsMade,
    /// All is set: the exec (or the gate) is next. With a terminal the console goes with it.
    Ready { warnings: Vec<String> },
    /// A step failed; it exits.
    Failed(Error),
    /// From the opener of a user namespace: init is there, its pidfd goes with it.
    Born { pid: i32 },
    /// From the mounter: the root is in the mount namespace that goes with it, and the console's two sides. These sysctls are
    /// for init to set.
    RootMade { sysctls_left: Vec<String> },
}

/// To the new process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToInit {
    /// Its cgroup is there, with its limits.
    CgroupMade,
    /// The hooks of the node's side have run.
    Continue,
    /// What the mounter has made, handed on.
    EnterRoot { sysctls_left: Vec<String> },
}

/// To the caller of `create`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToCaller {
    /// With its pidfd, and the console when there is one.
    Made { pid: i32, start_time: u64, cgroup: String, warnings: Vec<String> },
    /// The process, if there was one, has been killed; the caller reaps it.
    NotMade { error: Error, pid: Option<i32> },
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// Longest message; errors are cut to fit when they are made.
const LONGEST: usize = 64 * 1024;

impl Channel {
    pub(crate) fn pair() -> Result<(Channel, Channel)> {
        let kind = (AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (a, b) = socketpair(kind.0, kind.1, kind.2, kind.3).step("make a socket pair", "")?;
        Ok((Channel(a), Channel(b)))
    }

    pub(crate) fn from_socket(socket: OwnedFd) -> Channel {
        Channel(socket)
    }

    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        loop {
            match sys::socket::send(self.0.as_fd(), &bytes, fds) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|_| ()),
            }
        }
    }

    /// `None`: the other side is closed.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; LONGEST];
        let mut fds = Vec::new();
        // A peer that was closed with our words unread; the kernel tells that once, before what the peer had said itself.
        let mut reset = false;
        let count = loop {
            match sys::socket::receive(self.0.as_fd(), &mut buffer, &mut fds) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(Errno::ECONNRESET as i32) && reset => return Ok(None),
                Err(e) if e.raw_os_error() == Some(Errno::ECONNRESET as i32) => reset = true,
                other => break other?,
            }
        };
        if count == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&buffer[..count])?, fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_heard_when_ours_were_not() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ToInit::CgroupMade, &[]).unwrap();
        theirs.send(&FromInit::Failed(Error::unsupported("set", "x", "y")), &[]).unwrap();
        drop(theirs);
        let heard = ours.receive::<FromInit>().unwrap();
        assert!(matches!(heard, Some((FromInit::Failed(_), _))), "{heard:?}");
        assert!(ours.receive::<FromInit>().unwrap().is_none());
    }
}
