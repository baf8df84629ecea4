//! Lists: how long one of a thousand containers takes, and what a kubelet's polling costs a node on which nothing happens.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cri::proto::runtime::v1::*;
use e2e::client::{container, pod};
use prost::Message as _;

use crate::Runtime;
use crate::daemon::{cpu_seconds, daemon_pid};
use crate::raw;
use crate::table::Table;

/// Pods, each with one container that runs and [`MORE`] that never do.
const PODS: usize = 100;

/// With those that run: a thousand.
const MORE: usize = 9;

/// How often each list is timed.
const LISTS: usize = 30;

/// For how long the kubelet-like poll goes on.
const POLLED: u32 = 30;

/// All of it, one runtime after the other.
pub(crate) async fn run(runtimes: &[Runtime], image: &str, table: &mut Table) -> Result<()> {
    let logs = std::env::temp_dir().join(format!("bench-lists-{}", std::process::id()));
    std::fs::create_dir_all(&logs).context("log directory")?;
    for runtime in runtimes {
        let mut pods = Vec::new();
        let outcome = one(runtime, image, &logs, &mut pods, table).await;
        for pod_sandbox_id in pods {
            let mut client = runtime.node.runtime.clone();
            client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
            client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
        }
        outcome.with_context(|| runtime.name.clone())?;
    }
    std::fs::remove_dir_all(&logs).context("remove the logs")
}

async fn one(
    runtime: &Runtime,
    image: &str,
    logs: &Path,
    pods: &mut Vec<String>,
    table: &mut Table,
) -> Result<()> {
    for number in 0..PODS {
        start(runtime, image, number, logs, pods).await?;
    }
    polled(runtime, table).await?;
    for (number, pod_sandbox_id) in pods.iter().enumerate() {
        let config = pod(&format!("lists-{number}"), &format!("uid-lists-{number}"), logs);
        for more in 0..MORE {
            create(runtime, image, &format!("more{more}"), pod_sandbox_id, &config).await?;
        }
    }
    for _ in 0..LISTS {
        let begun = Instant::now();
        let listed = raw::list_containers(&runtime.node.channel).await?;
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        let listed = ListContainersResponse::decode(listed).context("a list of containers")?;
        anyhow::ensure!(listed.containers.len() == PODS * (MORE + 1), "{} listed", listed.containers.len());
        table.add("ListContainers of 1000", "ms", &runtime.name, ms);
    }
    Ok(())
}

async fn start(
    runtime: &Runtime,
    image: &str,
    number: usize,
    logs: &Path,
    pods: &mut Vec<String>,
) -> Result<()> {
    let mut client = runtime.node.runtime.clone();
    let config = pod(&format!("lists-{number}"), &format!("uid-lists-{number}"), logs);
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let pod_sandbox_id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    pods.push(pod_sandbox_id.clone());
    let container_id = create(runtime, image, "main", &pod_sandbox_id, &config).await?;
    client.start_container(StartContainerRequest { container_id }).await?;
    Ok(())
}

async fn create(
    runtime: &Runtime,
    image: &str,
    name: &str,
    pod_sandbox_id: &str,
    config: &PodSandboxConfig,
) -> Result<String> {
    let request = CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.to_owned(),
        config: Some(container(name, image, &["sleep", "1000"])),
        sandbox_config: Some(config.clone()),
    };
    Ok(runtime.node.runtime.clone().create_container(request).await?.into_inner().container_id)
}

/// What the kubelet's relist asks for, once a second: the daemon's CPU time, in percent of one core.
async fn polled(runtime: &Runtime, table: &mut Table) -> Result<()> {
    let daemon = daemon_pid(&runtime.socket)?;
    let mut client = runtime.node.runtime.clone();
    // what the making of the pods left to do
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (begun, before) = (Instant::now(), cpu_seconds(daemon)?);
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..POLLED {
        beat.tick().await;
        client.list_pod_sandbox(ListPodSandboxRequest::default()).await?;
        client.list_containers(ListContainersRequest::default()).await?;
    }
    beat.tick().await;
    let percent = (cpu_seconds(daemon)? - before) / begun.elapsed().as_secs_f64() * 100.0;
    table.add("CPU with 100 pods, listed each second", "%", &runtime.name, percent);
    Ok(())
}
