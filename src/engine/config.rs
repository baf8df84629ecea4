//! What a client asked for: the configuration of a pod and of a container, in our own words.
//!
//! These are plain values. `cri` parses them out of protobuf messages, `record` keeps them on disk as
//! they came, and `bundle` turns them into an OCI runtime spec. Fields may only be added, each with a
//! serde default, because an older daemon's records must stay readable.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

pub use oci::{IdMaps, IdRange};
use serde::{Deserialize, Serialize};

/// Labels or annotations, returned to the client unaltered.
pub type Strings = BTreeMap<String, String>;

/// The identity of a pod. A second request with the same four values is the kubelet trying again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// Name of the pod.
    pub name: String,
    /// UID that the API server (or the kubelet, for a static pod) gave it.
    pub uid: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// How often the kubelet has made a sandbox for this pod before.
    pub attempt: u32,
}

/// A pod, as RunPodSandbox asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodConfig {
    /// Identity.
    pub name: PodName,
    /// Empty: the node's name (host network).
    #[serde(default)]
    pub hostname: String,
    /// Where the logs of its containers go; may be empty.
    #[serde(default)]
    pub log_directory: PathBuf,
    /// `None`: the node's resolv.conf.
    #[serde(default)]
    pub dns: Option<Dns>,
    /// Host ports to map to the pod.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// Returned unaltered.
    #[serde(default)]
    pub labels: Strings,
    /// Returned unaltered.
    #[serde(default)]
    pub annotations: Strings,
    /// Cgroup of the pod in cgroupfs syntax; empty: a default of ours.
    #[serde(default)]
    pub cgroup_parent: String,
    /// Which namespaces the pod has of its own.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Sysctls of the pod's namespaces.
    #[serde(default)]
    pub sysctls: Strings,
    /// Whether privileged containers may be made in this pod.
    #[serde(default)]
    pub privileged: bool,
    /// The security context of the sandbox; there is no sandbox process, so these are only checked.
    #[serde(default)]
    pub security: SecurityContext,
    /// Sum of what its containers may use, as the kubelet computed it.
    #[serde(default)]
    pub resources: Resources,
    /// What the pod costs besides its containers.
    #[serde(default)]
    pub overhead: Resources,
    /// RuntimeClass handler; empty: the default.
    #[serde(default)]
    pub runtime_handler: String,
    /// The request's own configuration.
    #[serde(default)]
    pub asked: Asked,
}

/// A request's own configuration as JSON, for verbose answers; empty in records of earlier versions.
///
/// Any two are equal: a client that repeats its request after an upgrade asks for what the earlier version has written down, and all
/// that counts stands in the other fields.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Asked(pub String);

impl PartialEq for Asked {
    fn eq(&self, _: &Asked) -> bool {
        true
    }
}

/// What a pod may use as a whole: what the kubelet tells after it has changed the pod's cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLimits {
    /// In place of [`PodConfig::overhead`]; `None`: that counts.
    #[serde(default)]
    pub overhead: Option<Resources>,
    /// In place of [`PodConfig::resources`]; `None`: that counts.
    #[serde(default)]
    pub resources: Option<Resources>,
}

/// resolv.conf of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// Transport of a port mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A host port that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the node; 0: no mapping.
    pub host_port: u16,
    /// Address on the node; `None`: all.
    pub host_ip: Option<IpAddr>,
}

/// Whose namespace is used (CRI NamespaceMode).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// One for the pod, shared by its containers.
    #[default]
    Pod,
    /// One for each container.
    Container,
    /// The node's.
    Node,
    /// That of the named container in the same pod (PID namespaces only).
    Target(String),
}

/// Namespaces of a pod or container (CRI NamespaceOption).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// PID.
    pub pid: NamespaceMode,
    /// IPC: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Mappings of the pod's user namespace; `None`: the node's. A container's are its pod's.
    #[serde(default)]
    pub user: Option<IdMaps>,
}

impl Default for Namespaces {
    fn default() -> Self {
        Namespaces {
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
            user: None,
        }
    }
}

/// A container, as CreateContainer asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Name within the pod.
    pub name: String,
    /// How often the kubelet has made this container before.
    pub attempt: u32,
    /// The image as this request names it: an id, or a reference.
    pub image: String,
    /// The image as the user named it in the pod; returned in status. Empty: `image`.
    #[serde(default)]
    pub user_specified_image: String,
    /// Replaces the image's ENTRYPOINT (and drops its CMD).
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's CMD.
    #[serde(default)]
    pub args: Vec<String>,
    /// Empty: the image's. Made when absent.
    #[serde(default)]
    pub working_dir: String,
    /// Added to the image's; values are bytes.
    #[serde(default)]
    pub envs: Vec<(String, Vec<u8>)>,
    /// Bind mounts.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Device nodes of the node.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Returned unaltered.
    #[serde(default)]
    pub labels: Strings,
    /// Returned unaltered.
    #[serde(default)]
    pub annotations: Strings,
    /// Log file, relative to the pod's log directory; empty: no log.
    #[serde(default)]
    pub log_path: PathBuf,
    /// Keep a stdin for `attach`.
    #[serde(default)]
    pub stdin: bool,
    /// Close stdin when the first attached client leaves.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
    /// Security context.
    #[serde(default)]
    pub security: SecurityContext,
    /// CDI devices by qualified name.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// Overrides the image's stop signal; a signal number.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// The request's own configuration.
    #[serde(default)]
    pub asked: Asked,
}

/// Direction in which mounts under a mount point spread (CRI MountPropagation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Neither way (rprivate).
    #[default]
    Private,
    /// From the node into the container (rslave).
    HostToContainer,
    /// Both ways (rshared).
    Bidirectional,
}

/// The image of an image volume (CRI ImageSpec).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeImage {
    /// As the request names it: an id, or a reference.
    pub name: String,
    /// As the user named it in the pod; returned in status.
    pub user_specified: String,
}

/// A mount of a container: a path of the node or the content of an image (CRI Mount).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub container_path: String,
    /// Path on the node; a symbolic link is followed. Empty with `image`.
    pub host_path: String,
    /// Instead of `host_path`; always read-only.
    #[serde(default)]
    pub image: Option<VolumeImage>,
    /// Path in the image; empty: its root.
    #[serde(default)]
    pub image_sub_path: String,
    /// `noexec`, `nodev`, `nosuid`.
    #[serde(default)]
    pub options: Vec<String>,
    /// Read-only.
    #[serde(default)]
    pub readonly: bool,
    /// Relabel for SELinux.
    #[serde(default)]
    pub selinux_relabel: bool,
    /// Propagation.
    #[serde(default)]
    pub propagation: Propagation,
    /// Read-only for the mounts below it as well; needs `readonly` and `Private`.
    #[serde(default)]
    pub recursive_read_only: bool,
    /// Show its files with other owners (idmapped).
    #[serde(default)]
    pub id_maps: Option<IdMaps>,
    /// Means nothing any more.
    #[serde(default)]
    pub unsupported: Option<String>,
}

/// A device node of a container (CRI Device).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node; a directory stands for all device nodes in it.
    pub host_path: String,
    /// `r`, `w`, `m`.
    pub permissions: String,
}

/// Limits of a container (CRI LinuxContainerResources). Zero or empty: not set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period, µs.
    pub cpu_period: i64,
    /// CFS quota, µs per period; negative: none.
    pub cpu_quota: i64,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: i64,
    /// Memory limit, bytes.
    pub memory_limit: i64,
    /// -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPUs, as in `0-3,7`.
    pub cpuset_cpus: String,
    /// Memory nodes.
    pub cpuset_mems: String,
    /// (page size as in `2MB`, bytes).
    pub hugepage_limits: Vec<(String, u64)>,
    /// cgroup v2 files and values; win over the other fields.
    pub unified: Strings,
    /// Memory and swap together, bytes; -1: no limit.
    pub memory_swap_limit: i64,
}

/// An seccomp or AppArmor profile (CRI SecurityProfile).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProfile {
    /// The request names none: the runtime's choice.
    #[default]
    Unset,
    /// Our default profile.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile of the node: an absolute path (seccomp), a profile name (AppArmor).
    Localhost(String),
}

/// Who a container is (CRI LinuxContainerSecurityContext).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityContext {
    /// All that the host can give.
    pub privileged: bool,
    /// Capabilities to add (`ALL`, `NET_ADMIN`, `CAP_NET_ADMIN`).
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop.
    pub drop_capabilities: Vec<String>,
    /// Ambient capabilities to add (and to the other sets as well).
    pub add_ambient_capabilities: Vec<String>,
    /// Namespaces (for a container; a pod's are in `PodConfig`).
    pub namespaces: Namespaces,
    /// UID to run as.
    pub run_as_user: Option<i64>,
    /// GID to run as; needs `run_as_user` or `run_as_username`.
    pub run_as_group: Option<i64>,
    /// User name in the image to run as; empty: not set.
    pub run_as_username: String,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// Only `supplemental_groups`, not those of the image's /etc/group (CRI SupplementalGroupsPolicy Strict).
    pub supplemental_groups_strict: bool,
    /// Root filesystem read-only.
    pub readonly_rootfs: bool,
    /// Set no_new_privs.
    pub no_new_privs: bool,
    /// Paths to hide.
    pub masked_paths: Vec<String>,
    /// Paths to make read-only.
    pub readonly_paths: Vec<String>,
    /// seccomp.
    pub seccomp: SecurityProfile,
    /// AppArmor.
    pub apparmor: SecurityProfile,
    /// SELinux user, role, type, level; empty: not set.
    pub selinux: [String; 4],
    /// Means nothing any more: see [`Namespaces::user`].
    pub user_namespace: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_of_an_earlier_version_is_what_is_asked_for_again() {
        let name = json!({"name": "p", "uid": "u", "namespace": "n", "attempt": 0});
        let namespaces = json!({"network": "pod", "pid": "container", "ipc": "pod"});
        let old: PodConfig =
            serde_json::from_value(json!({"name": name, "namespaces": namespaces})).expect("a record");
        let again = PodConfig { asked: Asked(r#"{"metadata":{}}"#.to_owned()), ..old.clone() };
        assert_eq!(again, old);
        assert_ne!(PodConfig { hostname: "other".to_owned(), ..again }, old);
        let old: ContainerConfig =
            serde_json::from_value(json!({"name": "c", "attempt": 0, "image": "i"})).expect("a record");
        assert_eq!(ContainerConfig { asked: Asked("{}".to_owned()), ..old.clone() }, old);
    }
}
