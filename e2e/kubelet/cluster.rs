//! The least that is a cluster: etcd, an API server, one node. No scheduler and no controllers, so pods name their node.
//!
//! All of it listens in the node's own network namespace. One token may do everything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ask::{LONG, output, remove_ended_pods, wait};
use crate::kubelet::{Kubelet, Settings};
use crate::parts::{Step, World};
use crate::{debugging, host, resize, streams};

const TOKEN: &str = "of-this-test-only";

/// All steps in their order.
pub(crate) const STEPS: &[Step<Cluster>] = &[
    ("a pod of the API server becomes ready", streams::ready),
    ("kubectl exec passes streams apart and the exit code", streams::exec),
    ("kubectl exec -it is typed to, interrupted, and told of a resize", streams::terminal),
    ("kubectl exec takes and gives large data whole", streams::large),
    ("kubectl cp in and out keeps every byte", streams::copy),
    ("kubectl attach -it to a shell, again after a client went away", streams::attach),
    ("kubectl logs -f follows", streams::follow),
    ("kubectl debug --target sees the target's processes", debugging::target),
    ("cpu and memory limits change in place", resize::grow),
    ("a memory limit below what is in use is refused, with the reason", resize::refused),
    ("the refused limit is set when the memory is free again", resize::shrink),
    ("limits of the pod change in place", resize::pod_level),
    ("kubectl port-forward carries large data both ways", streams::forward),
    ("kubectl delete ends what runs", streams::delete),
];

/// A running cluster. Dropping it ends all of its processes, the kubelet first.
pub(crate) struct Cluster {
    kubelet: Kubelet,
    control: ControlPlane,
}

/// etcd and the API server.
struct ControlPlane {
    scratch: PathBuf,
    processes: Vec<Child>,
}

impl Cluster {
    /// Start it and wait until its node is ready.
    pub(crate) fn start() -> Result<Cluster> {
        let mut control = ControlPlane {
            scratch: PathBuf::from(format!("/tmp/cluster-{}", std::process::id())),
            processes: Vec::new(),
        };
        control.start()?;
        let kubeconfig = control.kubeconfig();
        let kubelet =
            Kubelet::start(&Settings { name: "cluster", gates: &[], kubeconfig: Some(&kubeconfig) })?;
        let cluster = Cluster { kubelet, control };
        wait("the node is ready", LONG, || {
            let node = cluster.get("/api/v1/nodes/node")?;
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
            ensure!(ready, "{conditions:?}");
            Ok(true)
        })?;
        Ok(cluster)
    }

    /// kubectl with these words.
    pub(crate) fn kubectl(&self, words: &[&str]) -> Command {
        self.control.kubectl(words)
    }

    /// What kubectl prints.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        output(&mut self.kubectl(words)).with_context(|| words.join(" "))
    }

    /// What is at a path of the API.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.run(&["get", "--raw", path])?)
            .with_context(|| format!("{path} is not JSON"))
    }

    /// A pod, as the API server has it.
    pub(crate) fn pod(&self, name: &str) -> Result<Value> {
        self.get(&format!("/api/v1/namespaces/default/pods/{name}"))
    }

    /// Make a pod from its manifest, and wait until it is ready.
    pub(crate) fn add_pod(&self, name: &str, manifest: &str) -> Result<()> {
        let file = self.control.scratch.join(format!("{name}.yaml"));
        fs::write(&file, manifest).context("manifest")?;
        self.run(&["create", "--validate=false", "-f", &file.display().to_string()])?;
        wait(&format!("pod {name} is ready"), LONG, || self.kubelet.is_ready(name))
    }

    /// A file for a step, removed with the cluster.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.control.scratch.join(name)
    }
}

impl World for Cluster {
    fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    fn end(self) -> Result<()> {
        self.run(&["delete", "pods", "--all", "--grace-period=1", "--wait=false"])?;
        wait("all pods are gone", Duration::from_secs(60), || Ok(self.kubelet.pods()?.is_empty()))?;
        remove_ended_pods()
    }
}

impl ControlPlane {
    fn start(&mut self) -> Result<()> {
        let at = |name: &str| self.scratch.join(name).display().to_string();
        fs::create_dir_all(&self.scratch).context("scratch folder")?;
        fs::write(self.scratch.join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n"))?;
        fs::write(self.kubeconfig(), kubeconfig())?;
        let etcd = [
            format!("--data-dir={}", at("etcd")),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ];
        let key = format!("{}/apiserver.key", at("certs"));
        let api_server = [
            "--etcd-servers=http://127.0.0.1:2379".into(),
            // it signs its own certificate on the first start
            format!("--cert-dir={}", at("certs")),
            "--bind-address=127.0.0.1".into(),
            format!("--advertise-address={}", host::node_ip()?),
            "--service-cluster-ip-range=10.223.0.0/24".into(),
            "--authorization-mode=AlwaysAllow".into(),
            format!("--token-auth-file={}", at("tokens.csv")),
            // pods get no tokens, but it does not start without a key for them
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--disable-admission-plugins=ServiceAccount".into(),
            // there is no DNS
            "--kubelet-preferred-address-types=InternalIP".into(),
            "--endpoint-reconciler-type=none".into(),
        ];
        self.launch("etcd", &etcd)?;
        self.launch("kube-apiserver", &api_server)?;
        wait("the API server is ready", LONG, || {
            let ready = output(&mut self.kubectl(&["get", "--raw", "/readyz"]))?;
            output(&mut self.kubectl(&["get", "namespace", "default"]))?;
            Ok(ready == "ok")
        })
        .with_context(|| fs::read_to_string(self.scratch.join("kube-apiserver.log")).unwrap_or_default())
    }

    fn launch(&mut self, program: &str, flags: &[String]) -> Result<()> {
        let log = fs::File::create(self.scratch.join(format!("{program}.log"))).context("log")?;
        let mut command = Command::new(program);
        command.args(flags).stdin(Stdio::null()).stdout(log.try_clone().context("log")?).stderr(log);
        self.processes.push(command.spawn().with_context(|| format!("start {program}"))?);
        Ok(())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.scratch.join("kubeconfig")
    }

    fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command.arg("--cache-dir").arg(self.scratch.join("cache")).args(words);
        command
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            process.kill().ok();
            process.wait().ok();
        }
        if let Some(out) = std::env::var_os("OUT") {
            let log = "kube-apiserver.log";
            fs::copy(self.scratch.join(log), Path::new(&out).join(log)).ok();
        }
        fs::remove_dir_all(&self.scratch).ok();
    }
}

fn kubeconfig() -> String {
    format!(
        r"apiVersion: v1
kind: Config
clusters:
  - {{ name: here, cluster: {{ server: 'https://127.0.0.1:6443', insecure-skip-tls-verify: true }} }}
users:
  - {{ name: admin, user: {{ token: {TOKEN} }} }}
contexts:
  - {{ name: here, context: {{ cluster: here, user: admin }} }}
current-context: here
"
    )
}
