//! What a pod's containers share: IPC and UTS namespaces, a PID namespace with its init, sysctls.
//!
//! The monitor *is* in the pod's IPC and UTS namespaces; containers join them by `/proc/<monitor>/ns/…`. It stays out of
//! the pod's network namespace and off its PID namespace, whose init is a child of it (module `reaper`). A pod may have all
//! of these in a user namespace (module `owned`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use sys::process::{Clone, Side, clone3};

use crate::container::failure;
use crate::protocol::{Failure, NETWORK_NAMESPACE_FD, Sandbox};
use crate::reaper::{self, Place, Reaper};
use crate::{owned, record};

/// Which namespace a sysctl belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Net,
    Ipc,
    Uts,
}

/// Read `sandbox.json` and make what it asks for. Call it before anything is opened: the reaper inherits it.
pub(crate) fn prepare(dir: &Path) -> Result<Option<Reaper>, Failure> {
    let path = dir.join("sandbox.json");
    let text = std::fs::read(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let sandbox: Sandbox = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    drop(text);
    let user = sandbox.user.as_ref().map(|maps| owned::make(&sandbox, maps)).transpose()?;
    if user.is_none() {
        let mut flags = CloneFlags::empty();
        flags.set(CloneFlags::CLONE_NEWIPC, sandbox.ipc);
        flags.set(CloneFlags::CLONE_NEWUTS, sandbox.hostname.is_some());
        unshare(flags).map_err(|e| format!("make the pod's IPC and UTS namespaces: {e}"))?;
    }
    if let Some(name) = &sandbox.hostname {
        nix::unistd::sethostname(name).map_err(|e| format!("set hostname {name:?}: {e}"))?;
    }
    set_sysctls(&sandbox, user.as_ref())?;
    if !sandbox.pid {
        return Ok(None);
    }
    let network = network_of(&sandbox)?;
    let place = Place { network: network.as_ref(), mount_label: sandbox.mount_label.as_deref() };
    let reaper =
        reaper::start(user.as_ref(), place).map_err(|e| format!("make the pod's PID namespace: {e}"))?;
    let start =
        sys::process::start_time(reaper.pid).map_err(|e| format!("read the reaper's start time: {e}"))?;
    record::write_pid(&dir.join("reaper.pid"), reaper.pid, start)
        .map_err(|e| format!("write reaper.pid: {e}"))?;
    Ok(Some(reaper))
}

/// The pod's network namespace; `None`: the node's.
fn network_of(sandbox: &Sandbox) -> Result<Option<OwnedFd>, String> {
    let held = || PathBuf::from(format!("/proc/self/fd/{NETWORK_NAMESPACE_FD}"));
    let path = sandbox.netns.clone().or_else(|| sandbox.own_network.then(held));
    path.map(|path| open_network(&path).map(OwnedFd::from)).transpose()
}

// ---- sysctls

fn set_sysctls(sandbox: &Sandbox, user: Option<&OwnedFd>) -> Result<(), Failure> {
    let mut net = BTreeMap::new();
    for (name, value) in &sandbox.sysctls {
        let refused = |why: &str| failure("invalid", format!("sysctl {name:?}: {why}"));
        let path = sysctl_path(name).ok_or_else(|| refused("not a name of a sysctl"))?;
        let own = match scope(&path) {
            Some(Scope::Net) => sandbox.netns.is_some(),
            Some(Scope::Ipc) => sandbox.ipc,
            Some(Scope::Uts) => sandbox.hostname.is_some(),
            None => return Err(refused("belongs to the node, not to a namespace of the pod")),
        };
        if !own {
            return Err(refused("the pod uses the node's namespace"));
        }
        if scope(&path) == Some(Scope::Net) {
            net.insert(path, value.as_str());
        } else {
            write_own_sysctl(&path, value, user)?;
        }
    }
    match &sandbox.netns {
        Some(netns) if !net.is_empty() => in_netns(netns, &net),
        _ => Ok(()),
    }
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are `net/ipv4/ip_forward`. As sysctl(8) does: whichever separator
/// comes first separates, and the other one stands for itself (`net.ipv4.conf.eth0/1.forwarding`). `None`: not a name.
pub fn sysctl_path(name: &str) -> Option<String> {
    let first = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if first == '.' { name.chars().map(swap).collect() } else { name.to_owned() };
    let good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    path.split('/').all(good).then_some(path)
}

fn scope(path: &str) -> Option<Scope> {
    const IPC: &[&str] =
        &["kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/msg_next_id", "kernel/sem"];
    const MORE_IPC: &[&str] = &["kernel/sem_next_id", "kernel/shm_next_id", "kernel/auto_msgmni"];
    const SHM: &[&str] = &["kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced"];
    match path {
        _ if path.starts_with("net/") => Some(Scope::Net),
        _ if path.starts_with("fs/mqueue/") => Some(Scope::Ipc),
        _ if IPC.contains(&path) || MORE_IPC.contains(&path) || SHM.contains(&path) => Some(Scope::Ipc),
        "kernel/hostname" | "kernel/domainname" => Some(Scope::Uts),
        _ => None,
    }
}

fn write_sysctl(path: &str, value: &str) -> Result<(), Failure> {
    write_file(path, value).map_err(|e| not_set(path, value, &e))
}

fn write_file(path: &str, value: &str) -> io::Result<()> {
    let file = Path::new("/proc/sys").join(path);
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// A name that the kernel does not have, or a value that it does not take, is the client's mistake.
fn not_set(path: &str, value: &str, error: &io::Error) -> Failure {
    let kind = match error.raw_os_error() {
        Some(
            libc::ENOENT | libc::ENOTDIR | libc::EISDIR | libc::EINVAL | libc::ERANGE | libc::ENAMETOOLONG,
        ) => "invalid",
        _ => "internal",
    };
    failure(kind, format!("sysctl {}: write {value:?}: {error}", path.replace('/', ".")))
}

/// Of a namespace that this process is in. Where that belongs to a user namespace, newer kernels let only its root set some, older
/// ones only the node's.
fn write_own_sysctl(path: &str, value: &str, user: Option<&OwnedFd>) -> Result<(), Failure> {
    let written = match (write_file(path, value), user) {
        (Err(e), Some(user)) if e.kind() == io::ErrorKind::PermissionDenied => {
            owned::as_its_root(user.as_fd(), || write_file(path, value))
        }
        (other, _) => other,
    };
    written.map_err(|e| not_set(path, value, &e))
}

/// Write sysctls from a child that has entered the network namespace; this process never does.
fn in_netns(netns: &Path, sysctls: &BTreeMap<String, &str>) -> Result<(), Failure> {
    let broken = |e: io::Error| format!("set net sysctls: {e}");
    let (mut reader, writer) = io::pipe().map_err(broken)?;
    match clone3(Clone::default()).map_err(broken)? {
        Side::Child => {
            let entered = enter(netns).map_err(Failure::from);
            let set = entered.and_then(|()| sysctls.iter().try_for_each(|(path, v)| write_sysctl(path, v)));
            if let Err(failure) = set {
                let _ = serde_json::to_writer(&writer, &failure);
            }
            sys::process::exit_now(0)
        }
        Side::Parent { pid, .. } => {
            drop(writer);
            let mut message = String::new();
            reader.read_to_string(&mut message).map_err(broken)?;
            sys::process::wait(pid, true).map_err(broken)?;
            if message.is_empty() {
                return Ok(());
            }
            Err(serde_json::from_str(&message).unwrap_or_else(|_| Failure::from(message)))
        }
    }
}

fn open_network(netns: &Path) -> Result<File, String> {
    File::open(netns).map_err(|e| format!("open network namespace {}: {e}", netns.display()))
}

fn enter(netns: &Path) -> Result<(), String> {
    setns(open_network(netns)?, CloneFlags::CLONE_NEWNET)
        .map_err(|e| format!("enter network namespace {}: {e}", netns.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").as_deref(), Some("net/ipv4/ip_forward"));
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").as_deref(),
            Some("net/ipv4/conf/eth0.1/forwarding")
        );
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.forwarding").as_deref(),
            Some("net/ipv4/conf/eth0.1/forwarding")
        );
        for bad in ["", "net", "net..x", "/etc/passwd", "net/../../etc", "net.ipv4.", "net./.x"] {
            let path = sysctl_path(bad);
            assert!(
                path.as_deref().is_none_or(|p| !p.contains("..") && !p.starts_with('/')),
                "{bad}: {path:?}"
            );
        }
        assert_eq!(sysctl_path("net/../../etc"), None);
    }

    #[test]
    fn only_sysctls_of_namespaces() {
        assert_eq!(scope("net/core/somaxconn"), Some(Scope::Net));
        assert_eq!(scope("kernel/shmmax"), Some(Scope::Ipc));
        assert_eq!(scope("fs/mqueue/msg_max"), Some(Scope::Ipc));
        assert_eq!(scope("kernel/domainname"), Some(Scope::Uts));
        assert_eq!(scope("vm/swappiness"), None);
        assert_eq!(scope("kernel/core_pattern"), None);
    }
}
