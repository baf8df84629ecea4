//! What a process carries besides its rights: sysctls of its namespaces, OOM score, resource limits, security labels.
//!
//! Files in /proc are reached by a descriptor of the node's procfs that was opened before the container's root took its
//! place, and checked to be one: no mount of the container can stand in for it.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::sys::statfs::PROC_SUPER_MAGIC;
use oci_spec::runtime::{PosixRlimitType, Process};

use crate::error::{Context, Error, Result, errno_text};
use crate::root::is_on;

/// The node's procfs.
#[derive(Debug)]
pub(crate) struct Proc(OwnedFd);

impl Proc {
    pub(crate) fn open() -> Result<Proc> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open("/proc", flags, Mode::empty()).step("open", "/proc")?;
        if !is_on(fd.as_fd(), PROC_SUPER_MAGIC) {
            return Err(Error::unsupported("open", "/proc", "it is not a procfs"));
        }
        Ok(Proc(fd))
    }

    fn open_file(&self, path: &str) -> io::Result<std::fs::File> {
        let fd = openat(&self.0, path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        if !is_on(fd.as_fd(), PROC_SUPER_MAGIC) {
            return Err(Errno::EXDEV.into());
        }
        Ok(fd.into())
    }

    pub(crate) fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.open_file(path)?.write_all(value.as_bytes())
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let fd = openat(&self.0, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        io::read_to_string(std::fs::File::from(fd))
    }

    /// Change the mode of what a descriptor (`O_PATH` too) of this process refers to, and of nothing else.
    pub(crate) fn change_mode(&self, of: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
        let path = format!("self/fd/{}", of.as_raw_fd());
        Ok(fchmodat(&self.0, path.as_str(), Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?)
    }

    /// What a descriptor (`O_PATH` too) of this process refers to, to be read.
    pub(crate) fn open_to_read(&self, of: BorrowedFd<'_>) -> io::Result<std::fs::File> {
        let path = format!("self/fd/{}", of.as_raw_fd());
        Ok(openat(&self.0, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    /// A namespace of this process, by its name in /proc.
    pub(crate) fn open_namespace(&self, name: &str) -> io::Result<OwnedFd> {
        let path = format!("self/ns/{name}");
        Ok(openat(&self.0, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// This process's pid as the node sees it.
    pub(crate) fn own_pid(&self) -> io::Result<i32> {
        let name = nix::fcntl::readlinkat(&self.0, "self")?;
        name.to_str().and_then(|n| n.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// What becomes of a sysctl that this process may not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is an error.
    Told,
    /// Somebody else will try. The kernel lets some be set only by the root of the user namespace that owns theirs, older
    /// kernels only by the node's root.
    Left,
}

/// Set the sysctls of this process's namespaces; the config check has let only namespaced ones through. Names are
/// dotted, or slashed when a part has a dot in it. Comes back with the names of those that are left.
pub(crate) fn set_sysctls<'a>(
    proc: &Proc,
    sysctls: impl Iterator<Item = (&'a String, &'a String)>,
    refused: Refused,
) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for (name, value) in sysctls {
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        match proc.write(&format!("sys/{path}"), value) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && refused == Refused::Left => {
                left.push(name.clone());
            }
            other => other.map_err(|e| sysctl_error(format!("{name}={value}"), &e))?,
        }
    }
    Ok(left)
}

/// A name that the kernel does not have, or a value that it does not take, is the config's mistake.
fn sysctl_error(what: String, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(
            libc::ENOENT | libc::ENOTDIR | libc::EISDIR | libc::EINVAL | libc::ERANGE | libc::ENAMETOOLONG,
        ) => Error::invalid("set sysctl", what, errno_text(error)),
        _ => Error::internal("set sysctl", what, error),
    }
}

/// Set the OOM score; one that needs a right which this host lacks is set as low as it can be, and said.
pub(crate) fn set_oom_score(proc: &Proc, wanted: i32) -> Result<Option<String>> {
    let set = |score: i32| proc.write("self/oom_score_adj", &score.to_string());
    match set(wanted) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {}
        other => return other.step("set oom_score_adj", wanted).map(|()| None),
    }
    let text = proc.read("self/oom_score_adj").step("read oom_score_adj", "")?;
    let mut possible: i32 = text.trim().parse().unwrap_or(1000);
    let mut refused = wanted;
    while possible - refused > 1 {
        let middle = refused + (possible - refused) / 2;
        match set(middle) {
            Ok(()) => possible = middle,
            Err(_) => refused = middle,
        }
    }
    Ok(Some(format!(
        "oom_score_adj {wanted} needs CAP_SYS_RESOURCE, which this host lacks: it is {possible}"
    )))
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

/// Set resource limits, while we may still raise them.
pub(crate) fn set_rlimits(process: &Process) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let what = format!("{} soft {} hard {}", limit.typ(), limit.soft(), limit.hard());
        setrlimit(resource(limit.typ()), limit.soft(), limit.hard()).step("set rlimit", what)?;
    }
    Ok(())
}

/// Say which AppArmor profile and SELinux context the exec switches to. The session keyring gets the context's label, or its
/// processes could not use it.
pub(crate) fn set_labels(proc: &Proc, process: &Process, warnings: &mut Vec<String>) -> Result<()> {
    if let Some(profile) = process.apparmor_profile().as_deref().filter(|p| !p.is_empty()) {
        let value = format!("exec {profile}");
        match proc.write("self/attr/apparmor/exec", &value) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if !Path::new("/sys/kernel/security/apparmor").exists() && !apparmor_on(proc) {
                    return Err(Error::unsupported(
                        "set AppArmor profile",
                        profile,
                        "this kernel runs no AppArmor",
                    ));
                }
                proc.write("self/attr/exec", &value)
            }
            other => other,
        }
        .step("set AppArmor profile", profile)?;
    }
    if let Some(label) = process.selinux_label().as_deref().filter(|l| !l.is_empty()) {
        demand_selinux(proc, "set SELinux label", label)?;
        proc.write("self/attr/exec", label).step("set SELinux label", label)?;
        match proc.write("self/attr/keycreate", label) {
            Ok(()) => {
                sys::prctl::new_session_keyring().step("make a session keyring", label)?;
                // an empty label would be a write of nothing: a newline is how it is taken back
                proc.write("self/attr/keycreate", "\n").step("take back the label of keys", label)?;
            }
            // without keyrings
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => warnings.push(format!("keys do not get the SELinux label {label}: {e}")),
        }
    }
    Ok(())
}

/// The current label's shape tells who owns the shared attribute files.
fn apparmor_on(proc: &Proc) -> bool {
    proc.read("self/attr/current").is_ok_and(|c| c.starts_with("unconfined") || c.contains('('))
}

/// A label means nothing to a kernel without SELinux: file systems that take no such option would go without it unsaid.
pub(crate) fn demand_selinux(proc: &Proc, step: &str, label: &str) -> Result<()> {
    if Path::new("/sys/fs/selinux/enforce").exists() || selinux_on(proc) {
        return Ok(());
    }
    Err(Error::unsupported(step, label, "this kernel runs no SELinux"))
}

fn selinux_on(proc: &Proc) -> bool {
    proc.read("self/attr/current").is_ok_and(|c| c.split(':').count() >= 3)
}
