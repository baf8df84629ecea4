//! What crictl shows of figures and of what happens.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::crictl::Crictl;
use crate::steps::{BUSYBOX, start};

/// Number of labels by name of the metric.
fn described(crictl: &Crictl) -> Result<BTreeMap<String, usize>> {
    let all = crictl.json(&["metricdescs", "-o", "json"])?;
    let all = all["descriptors"].as_array().context("no descriptors")?.clone();
    let entry = |one: &Value| {
        let name = one["name"].as_str()?.to_owned();
        Some((name, one["labelKeys"].as_array()?.len()))
    };
    all.iter().map(|one| entry(one).with_context(|| format!("a descriptor: {one}"))).collect()
}

pub(crate) fn metrics(crictl: &mut Crictl) -> Result<()> {
    let described = described(crictl)?;
    ensure!(described.len() == 56, "{} descriptors", described.len());
    let all = crictl.json(&["metricsp", "-o", "json"])?;
    let pods = all["podMetrics"].as_array().context("no metrics")?.clone();
    let pod = pods.iter().find(|pod| pod["podSandboxId"] == crictl.pod.as_str()).context("no such pod")?;
    let of = |value: &Value| value["metrics"].as_array().cloned().unwrap_or_default();
    let container = &pod["containerMetrics"][0];
    ensure!(container["containerId"] == crictl.container.as_str(), "metrics of {}", container["containerId"]);
    let mut seen = BTreeSet::new();
    for metric in of(pod).iter().chain(&of(container)) {
        let name = metric["name"].as_str().context("no name")?;
        let labels = metric["labelValues"].as_array().map_or(0, Vec::len);
        ensure!(described.get(name) == Some(&labels), "{metric} does not fit its descriptor");
        seen.insert(name.to_owned());
    }
    for name in described.keys().filter(|name| !seen.contains(*name)) {
        // what depends on the kernel: pressure, huge pages, and accounting of I/O, which tmpfs has none of
        let depends = ["_pressure_", "_hugetlb_", "_fs_reads_", "_fs_writes_", "_blkio_"];
        ensure!(depends.iter().any(|part| name.contains(part)), "no value for {name}");
    }
    Ok(())
}

pub(crate) fn events(crictl: &mut Crictl) -> Result<()> {
    let listener = crictl.listen(&["events", "-o", "json"])?;
    // the stream has begun when an event is seen; what happened before that is not told
    let mut first = String::new();
    crictl.wait("a first event", || {
        let id = start(crictl, "seen", BUSYBOX, "exit 3")?;
        crictl.run(&["rm", "-f", &id])?;
        first = listener.text();
        Ok(first.contains("CONTAINER_DELETED_EVENT"))
    })?;
    let id = start(crictl, "brief", BUSYBOX, "exit 3")?;
    crictl.wait("the container has ended", || {
        Ok(crictl.json(&["inspect", "-o", "json", &id])?["status"]["state"] == "CONTAINER_EXITED")
    })?;
    crictl.run(&["rm", &id])?;
    let mut told = Vec::new();
    crictl.wait("the container's events", || {
        let text = listener.text();
        let all = serde_json::Deserializer::from_str(&text).into_iter::<Value>().map_while(Result::ok);
        told = all.filter(|event| event["containerId"] == id.as_str()).collect();
        Ok(told.len() >= 4)
    })?;
    let kinds: Vec<&str> = told.iter().filter_map(|event| event["containerEventType"].as_str()).collect();
    let want = ["CREATED", "STARTED", "STOPPED", "DELETED"].map(|kind| format!("CONTAINER_{kind}_EVENT"));
    ensure!(kinds == want, "told: {kinds:?}");
    let stopped = told[2]["containersStatuses"].as_array().cloned().unwrap_or_default();
    let status = stopped.iter().find(|status| status["id"] == id.as_str()).context("no status")?;
    ensure!(status["exitCode"] == 3, "status: {status}");
    ensure!(told[3]["podSandboxStatus"]["id"] == crictl.pod.as_str(), "pod: {}", told[3]["podSandboxStatus"]);
    Ok(())
}
