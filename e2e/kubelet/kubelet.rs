//! The kubelet process: its scratch folder, its configuration, and what it says of pods.
//!
//! Everything that it makes is below its scratch folder and its cgroup root, so that dropping it takes all of it away. Its
//! pods are not: [`Kubelet::end`] sees to them first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ask::{http_get, remove_ended_pods, wait};
use crate::host;

/// Where it tells without being asked who asks.
pub(crate) const READ_ONLY: &str = "127.0.0.1:10255";

/// How a kubelet shall be.
pub(crate) struct Settings<'a> {
    /// what its folders and its log are called by
    pub(crate) name: &'static str,
    /// features that are not on by default
    pub(crate) gates: &'a [&'static str],
    /// the API server that it is a node of; nothing: it runs static pods alone
    pub(crate) kubeconfig: Option<&'a Path>,
}

/// A running kubelet.
pub(crate) struct Kubelet {
    /// Everything that it writes.
    pub(crate) scratch: PathBuf,
    /// What it is known by on the network.
    pub(crate) node_ip: String,
    /// Below which its pods' cgroups are, as a path in each hierarchy.
    pub(crate) cgroup_root: String,
    name: &'static str,
    kubeconfig: Option<PathBuf>,
    process: Option<Child>,
}

impl Kubelet {
    /// Start it and wait until it answers.
    pub(crate) fn start(settings: &Settings<'_>) -> Result<Kubelet> {
        let name = format!("kubelet-{}-{}", settings.name, std::process::id());
        let mut kubelet = Kubelet {
            scratch: Path::new("/tmp").join(&name),
            node_ip: host::node_ip()?,
            cgroup_root: format!("/{name}"),
            name: settings.name,
            kubeconfig: settings.kubeconfig.map(Path::to_owned),
            process: None,
        };
        for dir in ["pods", "root", "certs", "host"] {
            fs::create_dir_all(kubelet.scratch.join(dir)).context("scratch folder")?;
        }
        fs::write(kubelet.scratch.join("host/hello"), "hello\n").context("scratch folder")?;
        host::give_the_processor_a_speed(&kubelet.scratch)?;
        host::make_cgroups(&kubelet.cgroup_root)?;
        kubelet.configure(settings.gates)?;
        kubelet.launch()?;
        Ok(kubelet)
    }

    fn configure(&self, gates: &[&str]) -> Result<()> {
        let endpoint =
            std::env::var("CONTAINER_RUNTIME_ENDPOINT").context("CONTAINER_RUNTIME_ENDPOINT is not set")?;
        let gates: Vec<String> = gates.iter().map(|gate| format!("{gate}: true")).collect();
        let text = format!(
            r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: {scratch}/pods
containerRuntimeEndpoint: "{endpoint}"
cgroupDriver: cgroupfs
cgroupRoot: {cgroup_root}
failCgroupV1: false
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
address: 0.0.0.0
readOnlyPort: 10255
fileCheckFrequency: 1s
syncFrequency: 10s
makeIPTablesUtilChains: false
podLogsDir: {scratch}/logs
authentication: {{ anonymous: {{ enabled: true }}, webhook: {{ enabled: false }} }}
authorization: {{ mode: AlwaysAllow }}
evictionHard: {{ memory.available: 10Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0% }}
featureGates: {{ {gates} }}
"#,
            scratch = self.scratch.display(),
            cgroup_root = self.cgroup_root,
            gates = gates.join(", "),
        );
        fs::write(self.scratch.join("config.yaml"), text).context("kubelet configuration")
    }

    fn launch(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.context("kubelet log")?;
        let mut command = Command::new("kubelet");
        command.arg("--config").arg(self.scratch.join("config.yaml"));
        command.arg("--root-dir").arg(self.scratch.join("root"));
        command.arg("--cert-dir").arg(self.scratch.join("certs"));
        command.args(["--node-ip", &self.node_ip, "--hostname-override", "node", "-v=5"]);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().context("kubelet log")?).stderr(log);
        self.process = Some(command.spawn().context("start the kubelet")?);
        wait("the kubelet answers", Duration::from_secs(60), || {
            http_get(READ_ONLY, "/healthz").map(|body| body.contains("ok"))
        })
    }

    /// Put a static pod into its folder; `${HOST_DIR}` in it is a folder of the node.
    pub(crate) fn add_pod(&self, name: &str, text: &str) -> Result<()> {
        let text = text.replace("${HOST_DIR}", &self.scratch.join("host").display().to_string());
        // written elsewhere and renamed, so that the kubelet never reads half of it
        let temporary = self.scratch.join("pod.tmp");
        fs::write(&temporary, text).context("static pod")?;
        fs::rename(&temporary, self.manifest(name)).context("static pod")
    }

    /// Take a static pod away.
    pub(crate) fn remove_pod(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifest(name)).context("static pod")
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.scratch.join("pods").join(format!("{name}.yaml"))
    }

    /// What the kubelet says of its pods.
    pub(crate) fn pods(&self) -> Result<Vec<Value>> {
        let mut list: Value =
            serde_json::from_str(&http_get(READ_ONLY, "/pods")?).context("/pods is not JSON")?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// What it says of one pod; `None`: it knows none of that name.
    pub(crate) fn pod(&self, name: &str) -> Result<Option<Value>> {
        let starts =
            |pod: &Value| pod["metadata"]["name"].as_str().is_some_and(|full| full.starts_with(name));
        Ok(self.pods()?.into_iter().find(starts))
    }

    /// The status of a pod's container.
    pub(crate) fn container(&self, pod: &str, name: &str) -> Result<Option<Value>> {
        let Some(pod) = self.pod(pod)? else { return Ok(None) };
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|status| status["name"] == name))
    }

    /// Whether a pod is ready; the error says how it is instead.
    pub(crate) fn is_ready(&self, pod: &str) -> Result<bool> {
        let Some(pod) = self.pod(pod)? else { return Ok(false) };
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
        ensure!(ready, "status is {}", pod["status"]);
        Ok(true)
    }

    /// Ids and restart counts of a pod's containers.
    pub(crate) fn identities(&self, pod: &str) -> Result<Vec<(String, u64)>> {
        let pod = self.pod(pod)?.context("no such pod")?;
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let identity = |status: &Value| -> Result<(String, u64)> {
            let id = status["containerID"].as_str().context("no container id")?.to_owned();
            Ok((id, status["restartCount"].as_u64().unwrap_or(0)))
        };
        all.iter().map(identity).collect()
    }

    /// Kill it and start it again on the same folders.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.stop();
        self.launch()
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.join("kubelet.log")
    }

    /// All that it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Take all static pods away, and wait until there is none of any kind.
    pub(crate) fn end(self) -> Result<()> {
        for entry in fs::read_dir(self.scratch.join("pods")).context("static pods")? {
            fs::remove_file(entry.context("static pods")?.path()).context("static pod")?;
        }
        wait("all pods are gone", Duration::from_secs(60), || Ok(self.pods()?.is_empty()))?;
        remove_ended_pods()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop();
        if let Some(out) = std::env::var_os("OUT") {
            fs::copy(self.log_file(), Path::new(&out).join(format!("kubelet-{}.log", self.name))).ok();
        }
        host::remove_cgroups(&self.cgroup_root);
        host::unmount_below(&self.scratch);
        host::take_the_speed_away();
        fs::remove_dir_all(&self.scratch).ok();
    }
}
