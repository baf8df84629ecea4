//! Figures of a pod whose use of everything is known: what the kubelet says in its summary, and as metrics.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ask::{LONG, http_get, wait};
use crate::gates::{own_metric, value};
use crate::kubelet::{Kubelet, READ_ONLY};

const MIB: f64 = 1_048_576.0;

/// What pods/figures.yaml uses and may use.
const WRITTEN: f64 = 8.0 * MIB;
const HELD: f64 = 24.0 * MIB;
const MEMORY_LIMIT: f64 = 48.0 * MIB;
const CPU_LIMIT: f64 = 0.1;
const LOG: f64 = 2000.0 * 30.0;

/// One look at the pod in the summary.
struct Look {
    pod: Value,
    worker: Value,
}

fn look() -> Result<Look> {
    let text = http_get(READ_ONLY, "/stats/summary")?;
    let summary: Value = serde_json::from_str(&text).context("the summary is not JSON")?;
    let named = |list: &Value, path: &str, name: &str| {
        let list = list.as_array().cloned().unwrap_or_default();
        let is =
            |one: &Value| one.pointer(path).and_then(Value::as_str).is_some_and(|own| own.starts_with(name));
        list.into_iter().find(is).with_context(|| format!("{name} is not in the summary"))
    };
    let pod = named(&summary["pods"], "/podRef/name", "figures")?;
    let worker = named(&pod["containers"], "/name", "worker")?;
    named(&pod["containers"], "/name", "ends")?;
    Ok(Look { pod, worker })
}

/// A number of the summary that must lie between two others.
fn between(of: &Value, path: &str, least: f64, most: f64) -> Result<f64> {
    let number = of.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path} in {of}"))?;
    ensure!((least..=most).contains(&number), "{path} is {number}, not between {least} and {most}");
    Ok(number)
}

/// Every figure that the runtime gives is in the summary, and is what the pod uses.
pub(crate) fn summary(kubelet: &mut Kubelet) -> Result<()> {
    wait("figures as the pod uses", LONG, || levels(&look()?).map(|()| true))?;
    rates(kubelet)?;
    // what it does with a runtime that cannot
    let fallback = "CRI implementation must be updated";
    ensure!(!kubelet.log().contains(fallback), "the kubelet took figures of its own");
    Ok(())
}

/// What is there at one moment.
fn levels(look: &Look) -> Result<()> {
    let Look { pod, worker } = look;
    between(worker, "/memory/workingSetBytes", HELD, MEMORY_LIMIT)?;
    between(worker, "/memory/usageBytes", HELD, MEMORY_LIMIT)?;
    between(worker, "/memory/availableBytes", 1.0, MEMORY_LIMIT - HELD)?;
    between(worker, "/memory/rssBytes", 1.0, MEMORY_LIMIT)?;
    between(worker, "/memory/pageFaults", 1.0, f64::MAX)?;
    between(worker, "/rootfs/usedBytes", WRITTEN, 2.0 * WRITTEN)?;
    between(worker, "/rootfs/inodesUsed", 1.0, 100.0)?;
    between(worker, "/rootfs/capacityBytes", WRITTEN, f64::MAX)?;
    between(worker, "/logs/usedBytes", LOG, 4.0 * LOG)?;
    between(worker, "/swap/swapUsageBytes", 0.0, MEMORY_LIMIT)?;
    // the pod has what its containers have, and not much more
    between(pod, "/memory/workingSetBytes", HELD, 2.0 * MEMORY_LIMIT)?;
    between(pod, "/memory/usageBytes", HELD, 2.0 * MEMORY_LIMIT)?;
    between(pod, "/process_stats/process_count", 3.0, 20.0)?;
    between(pod, "/ephemeral-storage/usedBytes", WRITTEN + LOG, 4.0 * WRITTEN)?;
    ensure!(pod["network"]["name"] == "eth0", "the default interface: {}", pod["network"]);
    Ok(())
}

/// What grows: the network by what is sent, processor time at the pace of the limit.
fn rates(kubelet: &Kubelet) -> Result<()> {
    let before = look()?;
    let pod = kubelet.pod("figures")?.context("no such pod")?;
    let address = pod["status"]["podIP"].as_str().context("no address")?.to_owned();
    let sent = http_get(&format!("{address}:8080"), "/written")?.len();
    ensure!(sent as f64 == WRITTEN, "the pod sent {sent} bytes");
    wait("the sent bytes are counted", LONG, || {
        let now = look()?;
        let out = grown(&before.pod, &now.pod, "/network/txBytes")?;
        let back = grown(&before.pod, &now.pod, "/network/rxBytes")?;
        ensure!(out >= WRITTEN && back > 0.0 && back < out, "{out} bytes sent and {back} received");
        Ok(true)
    })?;
    wait("half a second of processor time", LONG, || {
        let now = look()?;
        let worker = grown(&before.worker, &now.worker, "/cpu/usageCoreNanoSeconds")?;
        Ok(worker > 5e8 && grown(&before.pod, &now.pod, "/cpu/usageCoreNanoSeconds")? > 5e8)
    })?;
    let now = look()?;
    // other programs may take from it, and it is read at any moment of a period, but more than twice the limit it never is
    between(&now.worker, "/cpu/usageNanoCores", CPU_LIMIT * 0.05e9, CPU_LIMIT * 2e9)?;
    between(&now.pod, "/cpu/usageNanoCores", CPU_LIMIT * 0.05e9, CPU_LIMIT * 3e9)?;
    Ok(())
}

fn grown(before: &Value, now: &Value, path: &str) -> Result<f64> {
    let number = |of: &Value| of.pointer(path).and_then(Value::as_f64);
    let (before, now) = (number(before), number(now));
    Ok(now.with_context(|| format!("no {path}"))? - before.with_context(|| format!("there was no {path}"))?)
}

/// Metrics that every dashboard reads, and what they must be at least for container worker.
const METRICS: [(&str, f64); 10] = [
    ("container_cpu_usage_seconds_total", 0.1),
    ("container_cpu_cfs_throttled_periods_total", 1.0),
    ("container_memory_usage_bytes", HELD),
    ("container_memory_working_set_bytes", HELD),
    ("container_memory_rss", 1.0),
    ("container_memory_cache", HELD),
    ("container_fs_usage_bytes", WRITTEN),
    ("container_processes", 2.0),
    ("container_spec_memory_limit_bytes", MEMORY_LIMIT),
    ("container_spec_cpu_quota", 10_000.0),
];

/// What is served where cAdvisor's metrics were is what the runtime gave, with cAdvisor's names and labels.
pub(crate) fn metrics(kubelet: &mut Kubelet) -> Result<()> {
    let pod = kubelet.pod("figures")?.context("no such pod")?;
    let name = pod["metadata"]["name"].as_str().context("no name")?.to_owned();
    wait("all metrics of the worker", LONG, || {
        let text = http_get(READ_ONLY, "/metrics/cadvisor")?;
        let of_pod = format!("namespace=\"default\",pod=\"{name}\"");
        let ours: Vec<&str> = text.lines().filter(|line| line.contains(&of_pod)).collect();
        for (metric, least) in METRICS {
            let is = |line: &&&str| {
                line.starts_with(&format!("{metric}{{")) && line.contains("container=\"worker\"")
            };
            let line = ours.iter().find(is).with_context(|| format!("no {metric} of container worker"))?;
            let number = value(line).with_context(|| format!("no number in {line:?}"))?;
            ensure!(number >= least, "{line}: less than {least}");
        }
        let network = |line: &&&str| line.starts_with("container_network_transmit_bytes_total{");
        let sent: f64 = ours.iter().filter(network).filter_map(|line| value(line)).sum();
        ensure!(sent >= WRITTEN, "the pod has sent {sent} bytes");
        Ok(true)
    })?;
    let asked = own_metric("kubelet_runtime_operations_total{operation_type=\"list_podsandbox_metrics\"}")?;
    ensure!(asked >= 1.0, "the kubelet never asked the runtime for metrics");
    Ok(())
}
