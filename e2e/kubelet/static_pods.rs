//! A kubelet as it comes, with the static pods that the project has as examples.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ask::{LONG, http_get, kill_the_daemon, no_pods_in_the_runtime, output, wait};
use crate::kubelet::{Kubelet, READ_ONLY, Settings};
use crate::parts::Step;

const WEB: &str = include_str!("../../manifests/static-pods/web.yaml");
const CRASH: &str = include_str!("../../manifests/static-pods/crash.yaml");
const OOM: &str = include_str!("../../manifests/static-pods/oom.yaml");

/// All steps in their order.
pub(crate) const STEPS: &[Step<Kubelet>] = &[
    ("a pod with probes, volumes, host port and limits becomes ready", ready),
    ("logs come through the kubelet's API", logs),
    ("environment, hostPath and limits are as asked", contents),
    ("the host port leads to the pod", host_port),
    ("a crashing container is restarted with back-off", crash),
    ("a container at its memory limit is OOMKilled", oom),
    ("pods live through a restart of the kubelet", kubelet_restart),
    ("pods live through a SIGKILL of the daemon", daemon_kill),
    ("statistics come through the kubelet's summary", summary),
    ("a pod goes when its manifest goes", removal),
];

/// Start the kubelet.
pub(crate) fn start() -> Result<Kubelet> {
    Kubelet::start(&Settings { name: "static-pods", gates: &[], kubeconfig: None })
}

fn ready(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.add_pod("web", WEB)?;
    wait("pod web is ready", LONG, || kubelet.is_ready("web"))
}

/// The log of a container, by the kubelet's own API with TLS.
fn log_of(kubelet: &Kubelet, pod: &str, container: &str) -> Result<String> {
    let pod = kubelet.pod(pod)?.context("no such pod")?;
    let full = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let url = format!("https://127.0.0.1:10250/containerLogs/default/{full}/{container}");
    output(Command::new("curl").args(["-sSk", "--fail-with-body", &url])).context(url)
}

fn logs(kubelet: &mut Kubelet) -> Result<()> {
    let log = log_of(kubelet, "web", "writer")?;
    ensure!(log.contains("greeting is"), "the log is {log:?}");
    Ok(())
}

fn contents(kubelet: &mut Kubelet) -> Result<()> {
    let log = log_of(kubelet, "web", "writer")?;
    for expected in [
        "greeting is hello from corten, pod is web",
        "memory limit 67108864",
        "cpu quota 20000",
        "from the node: hello",
    ] {
        ensure!(log.contains(expected), "{expected:?} is not in {log:?}");
    }
    Ok(())
}

fn host_port(_: &mut Kubelet) -> Result<()> {
    http_get("127.0.0.1:18080", "/").map(|_| ())
}

fn crash(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.add_pod("crash", CRASH)?;
    wait("two restarts, then back-off", LONG, || {
        let status = kubelet.container("crash", "crash")?.context("no status yet")?;
        let restarts = status["restartCount"].as_u64().unwrap_or(0);
        let last = &status["lastState"]["terminated"];
        let waiting = &status["state"]["waiting"]["reason"];
        ensure!(restarts >= 2 && waiting == "CrashLoopBackOff", "{status}");
        ensure!(last["exitCode"] == 3 && last["reason"] == "Error", "{status}");
        Ok(true)
    })
}

fn oom(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.add_pod("oom", OOM)?;
    wait("the reason OOMKilled", LONG, || {
        let status = kubelet.container("oom", "oom")?.context("no status yet")?;
        let reason = |state: &str| status[state]["terminated"]["reason"].clone();
        ensure!(reason("state") == "OOMKilled" || reason("lastState") == "OOMKilled", "{status}");
        Ok(true)
    })
}

/// The same containers as before run, and are ready.
fn unchanged(kubelet: &Kubelet, before: &[(String, u64)]) -> Result<()> {
    wait("pod web is ready", LONG, || kubelet.is_ready("web"))?;
    let after = kubelet.identities("web")?;
    ensure!(after == before, "containers were {before:?} and are {after:?}");
    Ok(())
}

fn kubelet_restart(kubelet: &mut Kubelet) -> Result<()> {
    let before = kubelet.identities("web")?;
    kubelet.restart()?;
    unchanged(kubelet, &before)
}

fn daemon_kill(kubelet: &mut Kubelet) -> Result<()> {
    let before = kubelet.identities("web")?;
    kill_the_daemon()?;
    http_get("127.0.0.1:18080", "/").context("the pod behind the host port")?;
    unchanged(kubelet, &before)
}

fn summary(_: &mut Kubelet) -> Result<()> {
    wait("memory and cpu of pod web", LONG, || {
        let text = http_get(READ_ONLY, "/stats/summary")?;
        let summary: Value = serde_json::from_str(&text).context("summary is not JSON")?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let is_web =
            |pod: &&Value| pod["podRef"]["name"].as_str().is_some_and(|name| name.starts_with("web"));
        let pod = pods.iter().find(is_web).context("pod web is not in the summary")?;
        let containers = pod["containers"].as_array().cloned().unwrap_or_default();
        ensure!(containers.len() == 2, "{} containers in the summary", containers.len());
        ensure!(
            containers
                .iter()
                .all(|one| one["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0)),
            "no memory in {containers:?}"
        );
        Ok(true)
    })
}

fn removal(kubelet: &mut Kubelet) -> Result<()> {
    for pod in ["web", "crash", "oom"] {
        kubelet.remove_pod(pod)?;
    }
    wait("the pods are gone", LONG, || Ok(kubelet.pods()?.is_empty() && no_pods_in_the_runtime()?))
}
