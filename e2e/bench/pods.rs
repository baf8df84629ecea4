//! The life of pods and containers: each call timed by the client.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cri::proto::runtime::v1::*;
use e2e::client::{container, pod};
use tokio::task::JoinSet;

use crate::Runtime;
use crate::table::Table;

/// How the calls come.
#[derive(Clone, Copy)]
enum Pace {
    /// One after the other, as fast as they are answered.
    One,
    /// Four pods at the same time.
    Four,
    /// One at a time with 200 ms of quiet before each call, as probes come.
    Paused,
}

impl Pace {
    fn name(self) -> &'static str {
        match self {
            Pace::One => "1",
            Pace::Four => "4",
            Pace::Paused => "paused",
        }
    }
}

/// One timed call: what it was, and milliseconds.
type Sample = (&'static str, f64);

/// All paces, `rounds` pods each (a third of it with pauses).
pub(crate) async fn run(runtimes: &[Runtime], image: &str, rounds: usize, table: &mut Table) -> Result<()> {
    let logs = std::env::temp_dir().join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&logs).context("log directory")?;
    let outcome = all_paces(runtimes, image, rounds, &logs, table).await;
    std::fs::remove_dir_all(&logs).ok();
    outcome
}

async fn all_paces(
    runtimes: &[Runtime],
    image: &str,
    rounds: usize,
    logs: &Path,
    table: &mut Table,
) -> Result<()> {
    for (pace, rounds) in [(Pace::One, rounds), (Pace::Four, rounds / 4), (Pace::Paused, rounds / 3)] {
        for round in 0..rounds.max(1) {
            for runtime in runtimes {
                let samples = one_round(runtime, image, logs, pace, round).await;
                for (call, ms) in samples.with_context(|| runtime.name.clone())? {
                    table.add(&format!("{call} ({})", pace.name()), "ms", &runtime.name, ms);
                }
            }
        }
    }
    Ok(())
}

async fn one_round(
    runtime: &Runtime,
    image: &str,
    logs: &Path,
    pace: Pace,
    round: usize,
) -> Result<Vec<Sample>> {
    let pods = if matches!(pace, Pace::Four) { 4 } else { 1 };
    let mut tasks = JoinSet::new();
    for number in 0..pods {
        let name = format!("bench-{}-{round}-{number}", pace.name());
        let life = Life {
            runtime: runtime.clone(),
            image: image.to_owned(),
            logs: logs.join(&name),
            name,
            pause: if matches!(pace, Pace::Paused) { Duration::from_millis(200) } else { Duration::ZERO },
            samples: Vec::new(),
        };
        tasks.spawn(life.live());
    }
    let mut samples = Vec::new();
    while let Some(done) = tasks.join_next().await {
        samples.extend(done.context("a task panicked")??);
    }
    Ok(samples)
}

/// A pod with one container, from its making to its end.
struct Life {
    runtime: Runtime,
    image: String,
    logs: PathBuf,
    name: String,
    pause: Duration,
    samples: Vec<Sample>,
}

impl Life {
    async fn live(mut self) -> Result<Vec<Sample>> {
        std::fs::create_dir_all(&self.logs).context("log directory")?;
        let config = pod(&self.name, &format!("uid-{}", self.name), &self.logs);
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let mut client = self.runtime.node.runtime.clone();
        let reply = self.timed("RunPodSandbox", client.run_pod_sandbox(request)).await?;
        let pod_id = reply.into_inner().pod_sandbox_id;
        let id = self.start(&pod_id, config).await?;
        for _ in 0..3 {
            self.calls(&id).await?;
        }
        let request = StopContainerRequest { container_id: id, timeout: 0 };
        self.timed("StopContainer", client.stop_container(request)).await?;
        let request = StopPodSandboxRequest { pod_sandbox_id: pod_id.clone() };
        self.timed("StopPodSandbox", client.stop_pod_sandbox(request)).await?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod_id };
        self.timed("RemovePodSandbox", client.remove_pod_sandbox(request)).await?;
        Ok(self.samples)
    }

    async fn start(&mut self, pod_id: &str, config: PodSandboxConfig) -> Result<String> {
        let mut client = self.runtime.node.runtime.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(container("main", &self.image, &["sleep", "1000"])),
            sandbox_config: Some(config),
        };
        let both = async move {
            let container_id = client.create_container(request).await?.into_inner().container_id;
            client.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
            Ok::<_, tonic::Status>(container_id)
        };
        self.timed("Create+StartContainer", both).await
    }

    /// The calls that a kubelet makes all the time.
    async fn calls(&mut self, id: &str) -> Result<()> {
        let mut client = self.runtime.node.runtime.clone();
        let request =
            ExecSyncRequest { container_id: id.to_owned(), cmd: vec!["true".to_owned()], timeout: 10 };
        self.timed("ExecSync", client.exec_sync(request)).await?;
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.timed("ContainerStatus", client.container_status(request)).await?;
        self.timed("ListContainers", client.list_containers(ListContainersRequest::default())).await?;
        self.timed("ListPodSandbox", client.list_pod_sandbox(ListPodSandboxRequest::default())).await?;
        Ok(())
    }

    async fn timed<T>(
        &mut self,
        call: &'static str,
        request: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T> {
        tokio::time::sleep(self.pause).await;
        let start = Instant::now();
        let reply = request.await;
        let took = start.elapsed();
        let reply = reply.map_err(|status| anyhow::anyhow!("{call}: {}", status.message()))?;
        self.samples.push((call, took.as_secs_f64() * 1e3));
        Ok(reply)
    }
}
