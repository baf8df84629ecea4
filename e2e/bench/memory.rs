//! Memory: PSS (proportional set size) of a runtime's processes.
//!
//! What a pod costs is what came besides its workload: growth of the daemon, and every process that appeared with
//! the pods (monitors, shims, pause processes) except the workload itself, told by its command name.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use cri::proto::runtime::v1::*;
use e2e::client::{container, pod};

use crate::Runtime;
use crate::daemon::daemon_pid;
use crate::table::Table;

const PODS: usize = 20;

/// The daemon as it stands before anything was asked of it.
pub(crate) async fn idle(runtimes: &[Runtime], table: &mut Table) -> Result<()> {
    for runtime in runtimes {
        let pss = pss_kib(daemon_pid(&runtime.socket)?)?;
        table.add("idle daemon PSS", "MB", &runtime.name, pss / 1e3);
    }
    Ok(())
}

/// Twenty pods with one sleeping container each, one runtime after the other.
pub(crate) async fn per_pod(runtimes: &[Runtime], image: &str, table: &mut Table) -> Result<()> {
    let logs = std::env::temp_dir().join(format!("bench-memory-{}", std::process::id()));
    std::fs::create_dir_all(&logs).context("log directory")?;
    for runtime in runtimes {
        let daemon = daemon_pid(&runtime.socket)?;
        let before = processes()?;
        let daemon_before = pss_kib(daemon)?;
        let mut pods = Vec::new();
        for number in 0..PODS {
            pods.push(start(runtime, image, number, &logs).await?);
        }
        let helpers = settled(&before).await?;
        let daemon_growth = pss_kib(daemon)? - daemon_before;
        table.add("processes beside the workload, a pod", "MB", &runtime.name, helpers / 1e3 / PODS as f64);
        let all = (helpers + daemon_growth.max(0.0)) / 1e3 / PODS as f64;
        table.add("all beside the workload, a pod", "MB", &runtime.name, all);
        for pod_sandbox_id in pods {
            let mut client = runtime.node.runtime.clone();
            client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
            client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
        }
    }
    std::fs::remove_dir_all(&logs).context("remove the logs")
}

async fn start(runtime: &Runtime, image: &str, number: usize, logs: &Path) -> Result<String> {
    let mut client = runtime.node.runtime.clone();
    let config = pod(&format!("memory-{number}"), &format!("uid-memory-{number}"), logs);
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let pod_sandbox_id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let request = CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        config: Some(container(&format!("c{number}"), image, &["sleep", "1000"])),
        sandbox_config: Some(config),
    };
    let container_id = client.create_container(request).await?.into_inner().container_id;
    client.start_container(StartContainerRequest { container_id }).await?;
    Ok(pod_sandbox_id)
}

/// The same once it has stayed the same for a while: what a pod costs is what it costs when it just runs, and runtimes give memory
/// back some time after they were busy.
async fn settled(before: &HashSet<i32>) -> Result<f64> {
    let mut last = helpers_since(before)?;
    let mut same = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = helpers_since(before)?;
        same = if (now - last).abs() <= last / 100.0 { same + 1 } else { 0 };
        last = now;
        if same == 5 {
            break;
        }
    }
    Ok(last)
}

/// PSS of the processes of this node that came since `before`, without the workload, KiB.
fn helpers_since(before: &HashSet<i32>) -> Result<f64> {
    let mut sum = 0.0;
    for pid in processes()?.difference(before) {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim() != "sleep" && is_of_this_node(*pid) {
            sum += pss_kib(*pid).unwrap_or(0.0);
        }
    }
    Ok(sum)
}

/// Processes in the network namespace of pid 1 belong to the machine, when this node has a namespace of its own.
fn is_of_this_node(pid: i32) -> bool {
    let netns = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let machine = netns("1");
    netns("self") == machine || netns(&pid.to_string()) != machine
}

fn processes() -> Result<HashSet<i32>> {
    let entries = std::fs::read_dir("/proc").context("/proc")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// PSS of a process, KiB.
fn pss_kib(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).with_context(|| path.clone())?;
    line.trim().trim_end_matches(" kB").parse().with_context(|| path)
}
