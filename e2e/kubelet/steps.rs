//! What is asked of a kubelet on the runtime, step by step.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::node::{Kubelet, http_get, no_pods_in_the_runtime};

/// A test: its name and what it does.
type Step = (&'static str, fn(&mut Kubelet) -> Result<()>);

/// All steps in their order.
pub(crate) const ALL: [Step; 10] = [
    ("a pod with probes, volumes, host port and limits becomes ready", ready),
    ("logs come through the kubelet's API", logs),
    ("environment, hostPath and memory limit are as asked", contents),
    ("the host port leads to the pod", host_port),
    ("a crashing container is restarted with back-off", crash),
    ("a container at its memory limit is OOMKilled", oom),
    ("pods live through a restart of the kubelet", kubelet_restart),
    ("pods live through a SIGKILL of the daemon", daemon_kill),
    ("statistics come through the kubelet's summary", summary),
    ("a pod goes when its manifest goes", removal),
];

/// Enough for a pull, two starts and the first probes on a slow machine.
const LONG: Duration = Duration::from_secs(120);

fn is_ready(kubelet: &Kubelet, pod: &str) -> Result<bool> {
    let Some(pod) = kubelet.pod(pod)? else { return Ok(false) };
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    ensure!(ready, "status is {}", pod["status"]);
    Ok(true)
}

fn ready(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.add_pod("web")?;
    kubelet.wait("pod web is ready", LONG, |kubelet| is_ready(kubelet, "web"))
}

fn logs(kubelet: &mut Kubelet) -> Result<()> {
    let log = kubelet.logs("web", "writer")?;
    ensure!(log.contains("greeting is"), "the log is {log:?}");
    Ok(())
}

fn contents(kubelet: &mut Kubelet) -> Result<()> {
    let log = kubelet.logs("web", "writer")?;
    for expected in
        ["greeting is hello from corten, pod is web", "memory limit 67108864", "from the node: hello"]
    {
        ensure!(log.contains(expected), "{expected:?} is not in {log:?}");
    }
    Ok(())
}

fn host_port(_: &mut Kubelet) -> Result<()> {
    http_get("127.0.0.1:18080", "/").map(|_| ())
}

fn crash(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.add_pod("crash")?;
    kubelet.wait("two restarts, then back-off", LONG, |kubelet| {
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
    kubelet.add_pod("oom")?;
    kubelet.wait("the reason OOMKilled", LONG, |kubelet| {
        let status = kubelet.container("oom", "oom")?.context("no status yet")?;
        let reason = |state: &str| status[state]["terminated"]["reason"].clone();
        ensure!(reason("state") == "OOMKilled" || reason("lastState") == "OOMKilled", "{status}");
        Ok(true)
    })
}

/// Ids and restart counts of the containers of pod web.
fn identities(kubelet: &Kubelet) -> Result<Vec<(String, u64)>> {
    let of = |name: &str| -> Result<(String, u64)> {
        let status = kubelet.container("web", name)?.context("no status")?;
        let id = status["containerID"].as_str().context("no container id")?.to_owned();
        Ok((id, status["restartCount"].as_u64().unwrap_or(0)))
    };
    Ok(vec![of("server")?, of("writer")?])
}

/// The same containers as before run, and are ready.
fn unchanged(kubelet: &Kubelet, before: &[(String, u64)]) -> Result<()> {
    kubelet.wait("pod web is ready", LONG, |kubelet| is_ready(kubelet, "web"))?;
    let after = identities(kubelet)?;
    ensure!(after == before, "containers were {before:?} and are {after:?}");
    Ok(())
}

fn kubelet_restart(kubelet: &mut Kubelet) -> Result<()> {
    let before = identities(kubelet)?;
    kubelet.restart()?;
    unchanged(kubelet, &before)
}

fn daemon_kill(kubelet: &mut Kubelet) -> Result<()> {
    let before = identities(kubelet)?;
    let pidfile = std::env::var("CORTEN_PIDFILE").context("CORTEN_PIDFILE is not set")?;
    let read = || std::fs::read_to_string(&pidfile).unwrap_or_default();
    let old = read();
    let pid: i32 = old.split_whitespace().next().context("pid file")?.parse().context("pid file")?;
    let daemon = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).context("kill the daemon")?;
    kubelet.wait("the daemon answers again", LONG, |_| {
        let answers = Command::new("crictl").arg("version").output().context("crictl")?.status.success();
        Ok(answers && read() != old)
    })?;
    http_get("127.0.0.1:18080", "/").context("the pod behind the host port")?;
    unchanged(kubelet, &before)
}

fn summary(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.wait("memory and cpu of pod web", LONG, |_| {
        let text = http_get("127.0.0.1:10255", "/stats/summary")?;
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
    kubelet.wait("the pods are gone", LONG, |kubelet| {
        let gone = |name: &str| kubelet.pod(name).map(|pod| pod.is_none());
        Ok(gone("web")? && gone("crash")? && gone("oom")? && no_pods_in_the_runtime()?)
    })
}
