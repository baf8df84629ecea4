//! The handle through which everybody talks to the engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use oci::{ContainerId, PodId};

use crate::config::{ContainerConfig, PodConfig, Resources, Strings};
use crate::status::{
    ContainerFilter, ContainerStatus, ContainerUsage, ExecOutput, NodeStatus, PodFilter, PodStatus,
};
use crate::{Error, Kind, Result, Settings};

/// Cloneable handle of the engine. Every id may be given as a unique prefix.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    images: image::Store,
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::new(Kind::Unsupported, what))
}

impl Engine {
    /// Adopt what an earlier daemon left, finish or undo what it was doing, and serve.
    pub async fn open(settings: Settings, images: image::Store, network: network::Network) -> Result<Engine> {
        let _ = (settings, network);
        Ok(Engine { shared: Arc::new(Shared { images }) })
    }

    /// Run a pod sandbox. The same [`crate::config::PodName`] again joins the running operation or returns the
    /// ready pod's id when the configuration is equal; with another configuration: [`Kind::Exists`].
    pub async fn run_pod(&self, config: PodConfig) -> Result<PodId> {
        let _ = config;
        unsupported("run_pod")
    }

    /// Stop a pod: kill its containers, release its network. Idempotent; an unknown id is fine.
    pub async fn stop_pod(&self, id: &str) -> Result<()> {
        unsupported(id)
    }

    /// Remove a pod and its containers, running or not. Idempotent; an unknown id is fine.
    pub async fn remove_pod(&self, id: &str) -> Result<()> {
        unsupported(id)
    }

    /// A pod as it stands; [`Kind::NotFound`].
    pub fn pod_status(&self, id: &str) -> Result<PodStatus> {
        unsupported(id)
    }

    /// The pods that match.
    pub fn list_pods(&self, filter: &PodFilter) -> Vec<PodStatus> {
        let _ = filter;
        Vec::new()
    }

    /// Make a container in a ready pod. The same name and attempt again joins, or returns the id, when the
    /// configuration is equal; with another configuration: [`Kind::Exists`].
    pub async fn create_container(&self, pod: &str, config: ContainerConfig) -> Result<ContainerId> {
        let _ = (pod, config);
        unsupported("create_container")
    }

    /// Start a created container. [`Kind::WrongState`] when it has run before.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        unsupported(id)
    }

    /// Stop a container: its stop signal, then SIGKILL to all its processes after `timeout` (zero: at once).
    /// A further call with a shorter timeout takes effect at once. Idempotent; an unknown id is fine.
    pub async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        let _ = timeout;
        unsupported(id)
    }

    /// Remove a container, killing it when it runs. Its log stays. Idempotent; an unknown id is fine.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        unsupported(id)
    }

    /// A container as it stands; [`Kind::NotFound`].
    pub fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        unsupported(id)
    }

    /// The containers that match.
    pub fn list_containers(&self, filter: &ContainerFilter) -> Vec<ContainerStatus> {
        let _ = filter;
        Vec::new()
    }

    /// Run a command in a running container and collect its output. `timeout` zero: none; when it passes, the
    /// command's process group is killed and the answer is [`Kind::Deadline`].
    pub async fn exec_sync(&self, id: &str, args: Vec<String>, timeout: Duration) -> Result<ExecOutput> {
        let _ = (args, timeout);
        unsupported(id)
    }

    /// Open the log file anew by its path, after the kubelet renamed it.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        unsupported(id)
    }

    /// Change the limits of a container: all of them or none.
    pub async fn update_resources(&self, id: &str, resources: Resources, annotations: Strings) -> Result<()> {
        let _ = (resources, annotations);
        unsupported(id)
    }

    /// What a container uses now; [`Kind::NotFound`].
    pub async fn container_usage(&self, id: &str) -> Result<ContainerUsage> {
        unsupported(id)
    }

    /// What the containers that match use now; those that ended meanwhile are left out.
    pub async fn list_usage(&self, filter: &ContainerFilter) -> Vec<(ContainerStatus, ContainerUsage)> {
        let _ = filter;
        Vec::new()
    }

    /// Conditions of the node.
    pub async fn status(&self) -> NodeStatus {
        NodeStatus { runtime: Ok(()), network: Ok(()) }
    }

    /// The image store.
    pub fn images(&self) -> &image::Store {
        &self.shared.images
    }

    /// Finish what runs, with a deadline; workloads go on. Afterwards every call is refused.
    pub async fn drain(&self) {}

    /// More about a pod, for `crictl inspectp`; values are JSON texts.
    pub fn verbose_pod(&self, id: &str) -> Result<BTreeMap<String, String>> {
        unsupported(id)
    }

    /// More about a container, for `crictl inspect`; values are JSON texts.
    pub async fn verbose_container(&self, id: &str) -> Result<BTreeMap<String, String>> {
        unsupported(id)
    }
}
