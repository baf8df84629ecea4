//! From an OCI bundle to a running process: a plan of named steps.
//!
//! ```text
//! caller ──fork──▶ builder ──clone3(CLONE_PARENT)──▶ init ──exec──▶ workload        create()
//!        ──clone3 into the container's PID namespace──▶ process ──exec──▶ …            exec()
//! ```
//!
//! The caller is single-threaded (the pod monitor, or the runtime's command line). The *builder* is a copy of it that
//! reads `config.json`, makes the cgroup and the namespaces, so that nothing of this stays in the caller's memory;
//! *init* is the caller's child, inherits the parsed config in its memory, builds its own root and execs. They
//! talk over socket pairs (`channel`). Nobody's program is executed twice, no binary of ours is ever reachable in
//! a container.
//!
//! What must never happen: a path of the container's root followed outside of it (all walks are `openat2` with
//! `RESOLVE_IN_ROOT` on descriptors), a descriptor of ours that outlives the exec, a field of the config that is
//! known and ignored (`oci::runtime::check` refuses those by name).

#![forbid(unsafe_code)]

mod error;
mod process;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

pub use error::{Error, Kind, Result, errno_text};
pub use process::{Pending, Process, Stdio, start};

use oci_spec::runtime as spec;
use sys::cgroup::Cgroup;

/// A container to be made from a bundle.
#[derive(Debug)]
pub struct Create<'a> {
    /// Its id, for hooks, messages and a default cgroup path (`/<id>`).
    pub id: &'a str,
    /// Directory with `config.json`; relative paths in it start here.
    pub bundle: &'a Path,
    /// Standard streams.
    pub stdio: Stdio,
    /// Directory of compiled seccomp filters; made when missing.
    pub seccomp_cache: &'a Path,
    /// Path of a socket that init makes and waits at until [`start`]; `None`: it goes on by itself.
    pub gate: Option<&'a Path>,
    /// So many descriptors from 3 on stay open in the container (`--preserve-fds`).
    pub preserve_fds: u32,
}

/// Make a container. Forks, and returns at once.
pub fn create(create: Create<'_>) -> Result<Pending> {
    let _ = (create.id, create.bundle, create.stdio, create.seccomp_cache, create.gate, create.preserve_fds);
    Err(Error::unsupported("create", "", "not built yet"))
}

/// What an exec runs.
#[derive(Debug)]
pub enum Command<'a> {
    /// This command line; everything else as in the bundle's `process`.
    Args {
        /// Program and arguments.
        args: &'a [String],
        /// With a terminal of its own, whatever the bundle says.
        terminal: bool,
    },
    /// This process, whole.
    Process(&'a spec::Process),
}

/// A further process of a running container.
#[derive(Debug)]
pub struct Exec<'a> {
    /// Id of the container, for messages.
    pub id: &'a str,
    /// The container's init: its namespaces are entered.
    pub init: BorrowedFd<'a>,
    /// The container's cgroup.
    pub cgroup: &'a Cgroup,
    /// The container's bundle.
    pub bundle: &'a Path,
    /// What to run.
    pub command: Command<'a>,
    /// Standard streams.
    pub stdio: Stdio,
    /// Directory of compiled seccomp filters.
    pub seccomp_cache: &'a Path,
    /// So many descriptors from 3 on stay open.
    pub preserve_fds: u32,
}

/// Run one more process in a container. Forks, and returns at once. Kind `wrong_state` when init has ended.
pub fn exec(exec: Exec<'_>) -> Result<Pending> {
    let _ = (exec.id, exec.init, exec.cgroup, exec.bundle, exec.command, exec.stdio, exec.seccomp_cache);
    Err(Error::unsupported("exec", "", "not built yet"))
}

/// Read and check the `config.json` of a bundle.
pub fn load(bundle: &Path) -> Result<spec::Spec> {
    Err(Error::unsupported("load", bundle.display(), "not built yet"))
}

/// Change the limits of a running container: fields that are `None` stay as they are.
pub fn update(cgroup: &Cgroup, resources: &spec::LinuxResources) -> Result<()> {
    let _ = (cgroup, resources);
    Err(Error::unsupported("update", "", "not built yet"))
}

/// Seccomp profiles, compiled once.
pub mod seccomp {
    use super::{Path, PathBuf, Result, spec};

    /// The path of the compiled filter of a profile in the cache, compiled now when it is not there.
    pub fn ensure(profile: &spec::LinuxSeccomp, cache: &Path) -> Result<PathBuf> {
        let _ = (profile, cache);
        Err(super::Error::unsupported("compile seccomp profile", "", "not built yet"))
    }
}

/// OCI hooks that others than `create` run.
pub mod hooks {
    use super::{Path, Result};

    /// Run the `poststop` hooks of a bundle, after the container is gone; runs all, returns the first failure.
    pub fn poststop(id: &str, bundle: &Path) -> Result<()> {
        let _ = (id, bundle);
        Err(super::Error::unsupported("run hooks", "", "not built yet"))
    }
}
