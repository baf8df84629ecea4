//! In-place resize: the `resize` subresource is patched, the kubelet asks the runtime, and nothing is started anew.
//!
//! What counts is what the kernel has: the cgroup's own files are read, besides what the status says.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::ask::{LONG, wait};
use crate::cluster::Cluster;
use crate::host;

const RESIZED: &str = include_str!("pods/resized.yaml");
const TOGETHER: &str = include_str!("pods/together.yaml");
const MIB: u64 = 1 << 20;

/// What a cgroup allows: memory in bytes, and processor time in microseconds of each 100 ms.
#[derive(Debug, PartialEq)]
struct Limits {
    memory: u64,
    quota: u64,
}

/// Read them from the first place where a cgroup has them, on v1 or v2; `place` is its path below each hierarchy.
fn limits_at(place: &str) -> Result<Limits> {
    let mut values = (None, None);
    for hierarchy in host::hierarchies()? {
        let dir = hierarchy.join(place.trim_start_matches('/'));
        let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
        let number = |text: String| text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        values.0 = values.0.or(read("memory.max").or_else(|| read("memory.limit_in_bytes")).and_then(number));
        values.1 = values.1.or(read("cpu.max").or_else(|| read("cpu.cfs_quota_us")).and_then(number));
    }
    let memory = values.0.with_context(|| format!("no memory limit in {place}"))?;
    Ok(Limits { memory, quota: values.1.with_context(|| format!("no cpu limit in {place}"))? })
}

/// The cgroup of the first process of a container, by what the runtime says of it.
fn cgroup_of(status: &Value) -> Result<String> {
    let id =
        status["containerID"].as_str().and_then(|id| id.split("://").nth(1)).context("no container id")?;
    let text = crate::ask::output(std::process::Command::new("crictl").args(["inspect", "-o", "json", id]))?;
    let info: Value = serde_json::from_str(&text).context("crictl inspect")?;
    let path = info.pointer("/info/runtimeSpec/linux/cgroupsPath").and_then(Value::as_str);
    path.map(str::to_owned).with_context(|| format!("no cgroup path in {info}"))
}

fn status(cluster: &Cluster, pod: &str) -> Result<Value> {
    let pod = cluster.pod(pod)?;
    Ok(pod["status"]["containerStatuses"][0].clone())
}

/// Patch the limits and requests of the pod's container.
fn patch(cluster: &Cluster, pod: &str, spec: &Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    cluster.run(&["patch", "pod", pod, "--subresource=resize", "--type=strategic", "-p", &patch]).map(|_| ())
}

fn of_main(resources: &Value) -> Value {
    json!({ "containers": [{ "name": "main", "resources": resources }] })
}

/// Wait until status and cgroup of pod `resized` have these limits, in the same container as before.
fn settles(cluster: &Cluster, before: &Value, limits: &Limits, memory: &str, cpu: &str) -> Result<()> {
    wait("the limits in status and cgroup", LONG, || {
        let now = status(cluster, "resized")?;
        let told = &now["resources"]["limits"];
        ensure!(told["memory"] == memory && told["cpu"] == cpu, "the status has {told}");
        let is = limits_at(&cgroup_of(&now)?)?;
        ensure!(is == *limits, "the cgroup has {is:?}");
        same_container(before, &now)?;
        Ok(true)
    })
}

fn same_container(before: &Value, now: &Value) -> Result<()> {
    for field in ["containerID", "restartCount"] {
        ensure!(before[field] == now[field], "{field} was {} and is {}", before[field], now[field]);
    }
    ensure!(now["state"]["running"].is_object(), "it does not run: {}", now["state"]);
    Ok(())
}

/// The message of the pod's condition of a resize that goes on, if there is one.
fn resize_condition(pod: &Value) -> Option<&Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == "PodResizeInProgress")
}

pub(crate) fn grow(cluster: &mut Cluster) -> Result<()> {
    cluster.add_pod("resized", RESIZED)?;
    let before = status(cluster, "resized")?;
    let is = limits_at(&cgroup_of(&before)?)?;
    ensure!(is == Limits { memory: 64 * MIB, quota: 20_000 }, "before the resize the cgroup has {is:?}");
    let resources = json!({ "requests": { "cpu": "150m" }, "limits": { "cpu": "300m", "memory": "96Mi" } });
    patch(cluster, "resized", &of_main(&resources))?;
    settles(cluster, &before, &Limits { memory: 96 * MIB, quota: 30_000 }, "96Mi", "300m")?;
    wait("no resize goes on", LONG, || {
        let pod = cluster.pod("resized")?;
        ensure!(resize_condition(&pod).is_none(), "{:?}", resize_condition(&pod));
        Ok(true)
    })
}

pub(crate) fn refused(cluster: &mut Cluster) -> Result<()> {
    let before = status(cluster, "resized")?;
    let resources = json!({ "limits": { "memory": "20Mi" } });
    patch(cluster, "resized", &of_main(&resources))?;
    wait("the refusal, with its reason", LONG, || {
        let pod = cluster.pod("resized")?;
        let condition = resize_condition(&pod).context("no condition PodResizeInProgress")?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(condition["reason"] == "Error" && message.contains("below current usage"), "{condition}");
        Ok(true)
    })?;
    let now = status(cluster, "resized")?;
    same_container(&before, &now)?;
    ensure!(now["resources"] == before["resources"], "the status has {}", now["resources"]);
    let is = limits_at(&cgroup_of(&now)?)?;
    ensure!(is == Limits { memory: 96 * MIB, quota: 30_000 }, "after the refusal the cgroup has {is:?}");
    Ok(())
}

pub(crate) fn shrink(cluster: &mut Cluster) -> Result<()> {
    let before = status(cluster, "resized")?;
    cluster.run(&["exec", "resized", "--", "rm", "/dev/shm/held"])?;
    settles(cluster, &before, &Limits { memory: 20 * MIB, quota: 30_000 }, "20Mi", "300m")
}

/// The pod's own cgroup is the kubelet's; its containers have no limits, and the runtime is told of the pod's.
pub(crate) fn pod_level(cluster: &mut Cluster) -> Result<()> {
    cluster.add_pod("together", TOGETHER)?;
    let before = cluster.pod("together")?;
    let of_pod = || -> Result<Limits> {
        let container = cgroup_of(&status(cluster, "together")?)?;
        let pod = Path::new(&container).parent().context("a container's cgroup has no parent")?;
        limits_at(&pod.display().to_string())
    };
    let is = of_pod()?;
    ensure!(
        is == Limits { memory: 64 * MIB, quota: 20_000 },
        "before the resize the pod's cgroup has {is:?}"
    );
    patch(cluster, "together", &json!({ "resources": { "limits": { "cpu": "300m", "memory": "96Mi" } } }))?;
    wait("the pod's limits in status and cgroup", LONG, || {
        let pod = cluster.pod("together")?;
        let told = &pod["status"]["resources"]["limits"];
        ensure!(told["memory"] == "96Mi" && told["cpu"] == "300m", "the status has {told}");
        let is = of_pod()?;
        ensure!(is == Limits { memory: 96 * MIB, quota: 30_000 }, "the pod's cgroup has {is:?}");
        for (was, now) in (0..2)
            .map(|n| (&before["status"]["containerStatuses"][n], &pod["status"]["containerStatuses"][n]))
        {
            same_container(was, now)?;
        }
        Ok(true)
    })?;
    Ok(())
}
