//! What the engine answers: snapshots of pods and containers, and filters.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use oci::{ContainerId, PodId};

use crate::config::{ContainerConfig, PodConfig, PodLimits, Resources, Strings};

/// State of a pod sandbox (CRI PodSandboxState).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Containers can be made in it.
    Ready,
    /// Stopped, or lost (monitor gone, node rebooted).
    NotReady,
}

/// A pod sandbox as it stands.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub config: std::sync::Arc<PodConfig>,
    /// State.
    pub state: PodState,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Addresses, the primary one first; none with the host's network.
    pub ips: Vec<IpAddr>,
    /// What took the place of the configuration's limits.
    pub limits: PodLimits,
    /// Monitor process; `None` when not ready.
    pub pid: Option<i32>,
    /// Pinned network namespace; `None` with the host's network.
    pub netns: Option<PathBuf>,
    /// SELinux level of its containers (`s0:c1,c2`); empty where SELinux is off.
    pub selinux_level: String,
}

/// A pod and its containers at one moment.
#[derive(Clone, Debug)]
pub struct PodSnapshot {
    /// When, nanoseconds since the epoch: nothing that happened before it is missing.
    pub at: i64,
    /// The pod.
    pub pod: PodStatus,
    /// Its containers.
    pub containers: Vec<ContainerStatus>,
}

/// State of a container (CRI ContainerState), with what exists only in it.
#[derive(Clone, Debug, PartialEq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its init runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
        /// Init's pid in the node's namespace.
        pid: i32,
    },
    /// Its init has ended.
    Exited {
        /// Nanoseconds since the epoch; 0: it never started.
        started_at: i64,
        /// Nanoseconds since the epoch.
        finished_at: i64,
        /// Exit status, or 128 + signal.
        exit_code: i32,
        /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, …
        reason: String,
        /// For people.
        message: String,
    },
}

/// A container as it stands.
#[derive(Clone, Debug)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// What was asked for.
    pub config: std::sync::Arc<ContainerConfig>,
    /// State.
    pub state: ContainerState,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Image id (`sha256:…`), equal to `Image::id`.
    pub image_id: String,
    /// A repo digest of the image (`name@sha256:…`) when it has one, else the image id.
    pub image_ref: String,
    /// As `image_ref`, of the images of its image volumes, by their place in the config's list of mounts.
    pub volume_refs: BTreeMap<usize, String>,
    /// Whole path of the log file; empty: none.
    pub log_path: PathBuf,
    /// Limits in force (after UpdateContainerResources).
    pub resources: Resources,
    /// Signal that StopContainer sends.
    pub stop_signal: i32,
    /// UID, GID and supplemental groups that its init was started with.
    pub user: Option<(u32, u32, Vec<u32>)>,
}

/// Which pods to list; all that is set must match.
#[derive(Clone, Debug, Default)]
pub struct PodFilter {
    /// Id or unique prefix; empty: any.
    pub id: String,
    /// State.
    pub state: Option<PodState>,
    /// Labels that must be there.
    pub labels: Strings,
}

/// State without data, for filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerPhase {
    /// See [`ContainerState::Created`].
    Created,
    /// See [`ContainerState::Running`].
    Running,
    /// See [`ContainerState::Exited`].
    Exited,
    /// Only in filters: CONTAINER_UNKNOWN, which none of ours ever is.
    Unknown,
}

/// Which containers to list; all that is set must match.
#[derive(Clone, Debug, Default)]
pub struct ContainerFilter {
    /// Id or unique prefix; empty: any.
    pub id: String,
    /// Pod id or unique prefix; empty: any.
    pub pod: String,
    /// State.
    pub phase: Option<ContainerPhase>,
    /// Labels that must be there.
    pub labels: Strings,
}

/// What a command run by ExecSync left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most 16 MiB; the rest is read and dropped.
    pub stdout: Vec<u8>,
    /// At most 16 MiB; the rest is read and dropped.
    pub stderr: Vec<u8>,
    /// Exit status, or 128 + signal.
    pub exit_code: i32,
}

/// Conditions that CRI Status reports; `Err` says why not.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// RuntimeReady.
    pub runtime: Result<(), String>,
    /// NetworkReady.
    pub network: Result<(), String>,
    /// RuntimeClass handlers besides the default one.
    pub handlers: Vec<String>,
    /// Whether pods can have user namespaces here.
    pub user_namespaces: Result<(), String>,
    /// Whether mounts can be made read-only with all below them.
    pub recursive_read_only: bool,
}
