//! The protocol between the daemon and a pod's monitor, version 1.
//!
//! One connection on `<pod dir>/monitor.sock` carries one request and its replies; the monitor closes it after
//! the last one. A frame is a little-endian u32 length and that many bytes of JSON; file descriptors travel with
//! the first byte of the request (SCM_RIGHTS). Fields and variants are only ever added, each field with a
//! default: an older or newer daemon must be able to talk to a running monitor. A request that the monitor does not know
//! answers [`Reply::Error`] with kind `unsupported`.
//!
//! ```text
//! Start   → Started | Error                      Exec → Started, then Exited | Error
//! Signal  → Done | Error                         Watch → State (all containers), then Exited for each exit
//! Reopen  → Done | Error                         Delete → Done | Error
//! State   → State                                Shutdown → Done, then the monitor ends
//! Update  → Done | Error                         Attach → Attached, then Exited | Detached | Error
//! CloseStdin → Done | Error
//! ```
//!
//! Descriptors travel the other way too: `Started` of an exec with a terminal and `Attached` carry one.

use std::path::PathBuf;

use oci::ContainerId;
use serde::{Deserialize, Serialize};

/// Version that this build speaks.
pub const VERSION: u32 = 1;

/// What the daemon asks of a monitor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Create and start the container of a bundle. Its exit record is written when init ends. A container that runs
    /// already answers `Started` again (the daemon may have been killed before it read the first answer).
    Start(Start),
    /// Run one more process in a container; fds: stdin, stdout, stderr, or none with a terminal. When the daemon closes
    /// the connection before the end, the process group is killed.
    Exec(Exec),
    /// Take part in the streams of a running container, beside its log and other clients, from now on; fds: the write
    /// ends of pipes for what is wanted of stdout and stderr, in this order. Closing the connection detaches.
    Attach(Attach),
    /// The input of a container's client has ended: one that was started with `stdin_once` reads the end of its stdin, any
    /// other notices nothing.
    CloseStdin {
        /// Which container.
        container: ContainerId,
    },
    /// Send a signal to init, or to every process of the container.
    Signal {
        /// Which container.
        container: ContainerId,
        /// Signal number.
        signal: i32,
        /// Every process in its cgroup instead of init alone.
        #[serde(default)]
        all: bool,
    },
    /// Open the log file anew by its path (after the kubelet renamed it).
    Reopen {
        /// Which container.
        container: ContainerId,
    },
    /// Change limits of a running container: all of them or none.
    Update {
        /// Which container.
        container: ContainerId,
        /// `linux.resources` of the runtime spec, as JSON; what is absent stays as it is.
        resources: serde_json::Value,
    },
    /// Tell all states, then every exit.
    Watch,
    /// Tell all states.
    State,
    /// Kill what is left of a container, remove its cgroup, its record and its pidfile. Unknown: Done.
    Delete {
        /// Which container.
        container: ContainerId,
    },
    /// Kill everything, remove all, end.
    Shutdown,
}

/// How to start a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Which container.
    pub container: ContainerId,
    /// Bundle directory: `config.json` in it says the rest.
    pub bundle: PathBuf,
    /// CRI log file; `None`: output is discarded.
    #[serde(default)]
    pub log: Option<PathBuf>,
    /// Keep stdin open (for attach); else it is /dev/null.
    #[serde(default)]
    pub stdin: bool,
    /// Stdin ends with the input of its first client. Without effect on a terminal.
    #[serde(default)]
    pub stdin_once: bool,
}

/// One more process in a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// Which container.
    pub container: ContainerId,
    /// Command line; the rest of the process (user, capabilities, env, seccomp, …) is as in the bundle.
    pub args: Vec<String>,
    /// Kill its process group after so many milliseconds; 0: never.
    #[serde(default)]
    pub timeout_ms: u64,
    /// With a terminal of the container's devpts, whose master comes with `Started`. The request carries no descriptors
    /// then, so that a monitor which does not know this refuses it.
    #[serde(default)]
    pub tty: bool,
}

/// What a client wants of a container's streams.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attach {
    /// Which container.
    pub container: ContainerId,
    /// Write to its stdin.
    #[serde(default)]
    pub stdin: bool,
    /// Read its stdout, or all that it writes to its terminal.
    #[serde(default)]
    pub stdout: bool,
    /// Read its stderr.
    #[serde(default)]
    pub stderr: bool,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, or 128 + signal.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// The kernel killed a process of its cgroup for lack of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// It was killed because its time was up (exec only).
    #[serde(default)]
    pub timed_out: bool,
}

/// A container as its monitor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Which container.
    pub container: ContainerId,
    /// Init's pid in the node's namespace.
    pub pid: i32,
    /// Start time of that pid (field 22 of /proc/pid/stat), so that a reused pid is told apart.
    pub start_time: u64,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    /// `None`: it runs.
    pub exit: Option<Exit>,
}

/// What a monitor answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It was done.
    Done,
    /// The process runs (its exec has succeeded).
    Started(Known),
    /// A process ended: the container's init (Watch), or the exec'd process.
    Exited {
        /// Which container.
        container: ContainerId,
        /// How.
        exit: Exit,
    },
    /// The client takes part. One descriptor comes with it when either is set: the terminal's master (also for the
    /// size of its window), else the write end of the stdin pipe.
    Attached {
        /// The client may write to it: the container has a stdin that is open and not another's alone.
        #[serde(default)]
        stdin: bool,
        /// The container has a terminal.
        #[serde(default)]
        terminal: bool,
    },
    /// The client takes part no longer, although the container may run on.
    Detached {
        /// Why, for people.
        #[serde(default)]
        reason: String,
    },
    /// All containers.
    State {
        /// Protocol version of the monitor.
        version: u32,
        /// Each with what is known.
        containers: Vec<Known>,
    },
    /// It was refused, or failed.
    Error(Failure),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// `not_found`, `wrong_state`, `invalid`, `unsupported`, `cannot_run` (the command of the container), `internal`.
    pub kind: String,
    /// Step, object and cause.
    pub message: String,
}

/// A monitor whose pod is in a user namespace holds that open at this number: `/proc/<monitor>/fd/<number>` is its path.
pub const USER_NAMESPACE_FD: i32 = 64;

/// And the pod's network namespace ([`Sandbox::own_network`]) at this one.
pub const NETWORK_NAMESPACE_FD: i32 = 65;

/// What a monitor is started with: `<pod dir>/sandbox.json`, written by the daemon before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// Version of this file.
    pub version: u32,
    /// Own UTS namespace with this hostname; `None`: the node's.
    pub hostname: Option<String>,
    /// Own IPC namespace.
    pub ipc: bool,
    /// A PID namespace that all containers share, with a reaper as its init.
    pub pid: bool,
    /// Pinned network namespace, for the net.* sysctls; `None`: the node's.
    pub netns: Option<PathBuf>,
    /// A user namespace with these mappings, to which all namespaces of the pod belong; `None`: the node's.
    pub user: Option<oci::IdMaps>,
    /// Only with `user`: make a network namespace (loopback up) and hold it, for the daemon to pin.
    pub own_network: bool,
    /// Sysctls to set in these namespaces.
    pub sysctls: std::collections::BTreeMap<String, String>,
    /// SELinux label of the pod's files; `None`: there is no SELinux.
    pub mount_label: Option<String>,
}
