//! Init of a pod's PID namespace: a child of the monitor that reaps for ever and dies with it.
//!
//! It is a copy of the monitor's process, made before that has opened anything, and shares nearly all of its memory.
//! The pod's containers see it as process 1, and one with `CAP_SYS_PTRACE` may look at all of it and command it. So it
//! has nothing that a container may not have:
//!
//! ```text
//! command line, environment   overwritten
//! mounts                      a namespace of its own: an empty, read-only root, and nothing else
//! network                     the pod's
//! capabilities                none, and no way to any; no other process may trace it without capabilities of the node's
//! descriptors                 none
//! ```
//!
//! In a user namespace only a process that is in it can make a PID namespace that belongs to it: another child (the *bearer*)
//! leaves the node's mounts while it has the rights to, enters, and bears the reaper as its sibling.
//!
//! What must never happen: `/proc/1/root`, `mountinfo`, `cwd`, `fd`, `environ` or `net` in a container that lead to the
//! node's.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::signal::{SigSet, Signal};
use sys::mount::{self, FileSystem, Propagation};
use sys::process::{Clone, Side, clone3, exit_now};
use sys::{namespace, prctl, user_namespace};

/// The process that others hold.
#[derive(Debug)]
pub(crate) struct Reaper {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

const TITLE: &str = "corten-reaper";

/// What a child says when it is what it should be; anything else is why not.
const READY: &[u8] = b"+";

/// Where it lives.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The pod's network namespace; `None`: the node's.
    pub(crate) network: Option<&'a OwnedFd>,
    /// SELinux label of its root: that of the pod's files.
    pub(crate) mount_label: Option<&'a str>,
}

/// Make it, in the pod's user and network namespaces where the pod has such.
pub(crate) fn start(user: Option<&OwnedFd>, place: Place<'_>) -> io::Result<Reaper> {
    match user {
        Some(user) => start_in(user, place),
        None => start_here(place),
    }
}

fn start_here(place: Place<'_>) -> io::Result<Reaper> {
    let (reader, writer) = io::pipe()?;
    match clone3(Clone { namespaces: libc::CLONE_NEWPID, ..Clone::default() })? {
        Side::Parent { pid, pidfd } => {
            drop(writer);
            hear(reader)?;
            Ok(Reaper { pid, pidfd })
        }
        Side::Child => {
            drop(reader);
            become_reaper(leave_node(place), &writer)
        }
    }
}

fn start_in(user: &OwnedFd, place: Place<'_>) -> io::Result<Reaper> {
    let (reader, writer) = io::pipe()?;
    let (mut born, bear) = io::pipe()?;
    let bearer = match clone3(Clone::default())? {
        Side::Parent { pid, .. } => pid,
        Side::Child => {
            drop((reader, born));
            match leave_node(place).and_then(|()| bear_in(user)) {
                Ok(Side::Child) => {
                    drop(bear);
                    become_reaper(Ok(()), &writer)
                }
                Ok(Side::Parent { pid, .. }) => {
                    let _ = (&bear).write_all(pid.to_string().as_bytes());
                    exit_now(0)
                }
                Err(e) => {
                    let _ = (&bear).write_all(e.to_string().as_bytes());
                    exit_now(1)
                }
            }
        }
    };
    drop((writer, bear));
    let mut pid = String::new();
    born.read_to_string(&mut pid)?;
    sys::process::wait(bearer, true)?;
    let pid: i32 = pid.parse().map_err(|_| io::Error::other(pid))?;
    let pidfd = sys::process::pidfd_open(pid)?;
    hear(reader)?;
    Ok(Reaper { pid, pidfd })
}

fn bear_in(user: &OwnedFd) -> io::Result<Side> {
    user_namespace::enter(user.as_fd())?;
    user_namespace::become_root()?;
    clone3(Clone { namespaces: libc::CLONE_NEWPID, as_sibling: true, cgroup: None })
}

/// Its word, then the end: it will die with us, and holds nothing of ours.
fn hear(mut reader: io::PipeReader) -> io::Result<()> {
    let mut told = Vec::new();
    reader.read_to_end(&mut told)?;
    match told.as_slice() {
        READY => Ok(()),
        b"" => Err(io::ErrorKind::BrokenPipe.into()),
        why => Err(io::Error::other(String::from_utf8_lossy(why).into_owned())),
    }
}

/// Never returns: its caller's frames are a copy.
fn become_reaper(left: io::Result<()>, mut ready: &io::PipeWriter) -> ! {
    // From here on the monitor's end is told by a signal; one that came before, by nobody reading.
    let bound = left
        .and_then(|()| give_up_rights())
        .and_then(|()| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    let told = match &bound {
        Ok(()) => ready.write_all(READY),
        Err(e) => ready.write_all(e.to_string().as_bytes()),
    };
    if bound.is_err() || told.is_err() || sys::inherit::close_all().is_err() {
        exit_now(1);
    }
    reap_for_ever()
}

/// Orphans of all containers come here. It handles no signal, so only the kernel, its monitor and the node's root can
/// end it, and with it everything in the namespace.
fn reap_for_ever() -> ! {
    let children = SigSet::from(Signal::SIGCHLD);
    loop {
        while let Ok(Some(_)) = sys::process::wait_any() {}
        // SIGCHLD is blocked: one that came since is still pending.
        let _ = children.wait();
    }
}

fn step(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// What needs rights on the node. Afterwards no path leads anywhere.
fn leave_node(place: Place<'_>) -> io::Result<()> {
    let _ = nix::sys::prctl::set_name(c"corten-reaper");
    overwrite_start(TITLE).map_err(step("overwrite its command line"))?;
    namespace::unshare(libc::CLONE_NEWNS).map_err(step("make its mount namespace"))?;
    mount::propagate_all(Propagation::Private).map_err(step("make its mounts private"))?;
    let root = empty_root(place.mount_label).map_err(step("make its root"))?;
    mount::pivot_root(root.as_fd()).map_err(step("enter its root"))?;
    let network = place.network.map(|network| namespace::enter(network.as_fd(), libc::CLONE_NEWNET));
    network.unwrap_or(Ok(())).map_err(step("enter the pod's network namespace"))
}

/// Mounted over the root, as the only directory that is there for certain.
fn empty_root(label: Option<&str>) -> io::Result<OwnedFd> {
    let tmpfs = FileSystem::open("tmpfs")?;
    tmpfs.set("mode", "0555")?;
    if let Some(label) = label {
        tmpfs.set("context", label)?;
    }
    tmpfs.flag("ro")?;
    let root = tmpfs.mount(mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC)?;
    let onto = sys::path::open_directory(std::path::Path::new("/"))?;
    mount::attach(root.as_fd(), onto.as_fd())?;
    Ok(root)
}

fn give_up_rights() -> io::Result<()> {
    executor::give_up_rights().map_err(io::Error::other)?;
    prctl::set_no_new_privs().map_err(step("set no_new_privs"))?;
    // last: a change of user makes a process traceable again
    prctl::set_dumpable(false).map_err(step("forbid tracing"))
}

/// Give this process another command line and no environment: ours name paths of the node. The kernel shows
/// the memory between addresses that it tells in fields 48 to 51 of /proc/self/stat.
fn overwrite_start(title: &str) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<u64> =
        after_name.split(' ').skip(45).take(4).map_while(|field| field.parse().ok()).collect();
    let &[arguments, arguments_end, environment, environment_end] = fields.as_slice() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let memory = fs::OpenOptions::new().write(true).open("/proc/self/mem")?;
    let room = |start: u64, end: u64| usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let length = room(arguments, arguments_end);
    let mut text = title.as_bytes()[..title.len().min(length)].to_vec();
    text.resize(length, 0);
    memory.write_all_at(&text, arguments)?;
    memory.write_all_at(&vec![0; room(environment, environment_end)], environment)
}
