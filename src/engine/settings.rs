//! Where the engine keeps things and how long it waits: checked values, handed over by `main`.

use std::path::PathBuf;
use std::time::Duration;

use crate::BuiltinNetwork;

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Records, bundles and writable layers; on a disk that lasts.
    pub state_dir: PathBuf,
    /// Monitors, their sockets and exit records; on a tmpfs that a reboot clears.
    pub run_dir: PathBuf,
    /// The `corten-runtime` program. It is copied into a sealed memfd once, at [`crate::Engine::open`].
    pub runtime: PathBuf,
    /// Cgroup under which pods go that name no parent, as in `/corten`.
    pub cgroup_root: String,
    /// Size of a pod's /dev/shm, bytes.
    pub shm_size: u64,
    /// Names of RuntimeClass handlers that mean this runtime, besides the empty one.
    pub handlers: Vec<String>,
    /// The network that the daemon configures itself; `None`: that is somebody else's.
    pub builtin_network: Option<BuiltinNetwork>,
    /// The devices that a container is given belong to the user and group of its security context, as far as it names them by
    /// number, and not to those that they belong to on the node.
    pub devices_of_user: bool,
    /// How long a monitor may take to become ready.
    pub monitor_deadline: Duration,
    /// How long a monitor may say nothing before it is asked whether it lives, and how long it may take to say so. One that says
    /// nothing even then is given up when something is to be ended: it is killed with all that runs in its pod.
    pub monitor_patience: Duration,
    /// How often what belongs to nobody is looked for while the daemon runs: networks of pods that are gone, and
    /// what CNI plugins keep for them.
    pub sweep_every: Duration,
    /// How long [`crate::Engine::drain`] waits for running operations.
    pub drain_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            state_dir: "/var/lib/corten".into(),
            run_dir: "/run/corten".into(),
            runtime: "/usr/local/bin/corten-runtime".into(),
            cgroup_root: "/corten".into(),
            shm_size: 64 << 20,
            handlers: vec!["corten".to_owned()],
            builtin_network: None,
            devices_of_user: false,
            monitor_deadline: Duration::from_secs(10),
            monitor_patience: Duration::from_secs(15),
            sweep_every: Duration::from_secs(300),
            drain_deadline: Duration::from_secs(10),
        }
    }
}
