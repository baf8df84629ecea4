//! From an OCI bundle to a running process: a plan of named steps.
//!
//! ```text
//! caller ──clone──▶ builder ──clone3(CLONE_PARENT)──▶ init ──exec──▶ workload       create()
//!        ──clone3 into the container's PID namespace──▶ process ──exec──▶ …          exec()
//! ```
//!
//! The caller is single-threaded (the pod monitor, or the runtime's command line). The *builder* is a copy of it that
//! reads `config.json`, makes the cgroup and the namespaces, so that nothing of this stays in the caller's memory;
//! *init* is the caller's child, inherits the parsed config in its memory, builds its own root and execs. They
//! talk over socket pairs (`channel`). No program of ours is executed for a container, none can be reached in one.
//!
//! | module | |
//! |---|---|
//! | `create`, `init`, `exec`, `launch` | the steps, in order |
//! | `apart`, `id_maps` | user namespaces: who makes what, and whose files are whose |
//! | `root`, `overlay`, `mounts`, `inside`, `copy_up`, `devices`, `masks`, `console` | the container's file tree |
//! | `credentials`, `attributes`, `command`, `seccomp`, `newer_calls` | what its process is |
//! | `resources`, `block_io`, `device_rules`, `hooks`, `load`, `channel`, `process`, `error` | limits, hooks, config, messages, results |
//!
//! What must never happen: a path of the container's root followed outside of it (all walks are `openat2` with
//! `RESOLVE_IN_ROOT` on descriptors), a descriptor of ours that outlives the exec, a field of the config that is
//! known and ignored (`oci::runtime::check` refuses those by name).

#![forbid(unsafe_code)]

mod apart;
mod attributes;
mod block_io;
mod channel;
mod command;
mod console;
mod copy_up;
mod create;
mod credentials;
mod device_rules;
mod devices;
mod error;
mod exec;
pub mod hooks;
mod id_maps;
mod init;
mod inside;
mod launch;
mod load;
mod masks;
mod mounts;
mod newer_calls;
mod overlay;
mod process;
mod resources;
mod root;
mod seccomp;

use std::os::fd::BorrowedFd;
use std::path::Path;

use oci_spec::runtime as spec;
use sys::cgroup::Cgroup;

pub use create::{abort, create};
pub use credentials::give_up_rights;
pub use error::{Error, Kind, Result, errno_text};
pub use exec::exec;
pub use load::load;
pub use process::{Pending, Process, Stdio, start};
pub use resources::update;

/// A bundle: relative paths in its config start at its directory.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    /// Its directory, with `config.json`.
    pub dir: &'a Path,
    /// A copy of `config.json`, to be read in its place: what is changed there later must not reach a container that was made
    /// (runtime-spec, runtime.md, "Lifecycle").
    pub kept: Option<&'a Path>,
}

impl<'a> From<&'a Path> for Bundle<'a> {
    fn from(dir: &'a Path) -> Bundle<'a> {
        Bundle { dir, kept: None }
    }
}

/// A container to be made from a bundle.
#[derive(Debug)]
pub struct Create<'a> {
    /// Its id, for hooks, messages and a default cgroup path (`/<id>`).
    pub id: &'a str,
    /// What to make it from.
    pub bundle: Bundle<'a>,
    /// Standard streams.
    pub stdio: Stdio,
    /// Directory of compiled seccomp filters; made when missing.
    pub seccomp_cache: &'a Path,
    /// Path of a socket that init makes and waits at until [`start`]; `None`: it goes on by itself.
    pub gate: Option<&'a Path>,
    /// So many descriptors from 3 on stay open in the container (`--preserve-fds`).
    pub preserve_fds: u32,
    /// Called by the builder when the cgroup is the container's, so that whoever wants its making to end can find it.
    pub on_cgroup: Option<OnCgroup<'a>>,
}

/// What is done when the cgroup of a new container is there; it runs in the builder. SIGKILL for all in the cgroup ends the
/// making as soon as there is an init in it, with everything undone.
#[derive(Clone, Copy)]
pub struct OnCgroup<'a>(pub &'a dyn Fn(&Cgroup) -> std::io::Result<()>);

impl std::fmt::Debug for OnCgroup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnCgroup")
    }
}

/// What an exec runs.
#[derive(Debug)]
pub enum Command<'a> {
    /// This command line; everything else as in the bundle's `process`.
    Args {
        /// Program and arguments.
        args: &'a [String],
        /// With a terminal of its own, and `TERM=xterm` unless the environment has another; whatever the bundle says.
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
    pub bundle: Bundle<'a>,
    /// What to run.
    pub command: Command<'a>,
    /// Standard streams.
    pub stdio: Stdio,
    /// Directory of compiled seccomp filters.
    pub seccomp_cache: &'a Path,
    /// So many descriptors from 3 on stay open.
    pub preserve_fds: u32,
}
