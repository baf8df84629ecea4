//! Streamed execs: how long one of `true` takes from the RPC to its status, and how fast bytes go through one each way.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cri::proto::runtime::v1::*;
use e2e::client::{container, pod};

use crate::Runtime;
use crate::daemon::{cpu_seconds, daemon_pid, network};
use crate::session::{self, Done, Protocol};
use crate::table::Table;

/// How often `true` is run.
const RUNS: usize = 40;

/// How often bytes are sent each way.
const SENDS: usize = 4;

/// What is sent each way: 500 MiB.
const BYTES: u64 = 500 << 20;

/// A pod with its container, as it is measured.
struct Place<'a> {
    runtime: &'a Runtime,
    pod: String,
    container: String,
    /// Where the daemon's URLs lead.
    network: Option<File>,
}

/// All of it in a pod of each runtime, in turn.
pub(crate) async fn run(runtimes: &[Runtime], image: &str, table: &mut Table) -> Result<()> {
    let logs = std::env::temp_dir().join(format!("bench-streams-{}", std::process::id()));
    std::fs::create_dir_all(&logs).context("log directory")?;
    let mut places = Vec::new();
    for runtime in runtimes {
        places.push(Place::make(runtime, image, &logs).await.with_context(|| runtime.name.clone())?);
    }
    let outcome = measure(&places, table).await;
    for place in places {
        place.remove().await?;
    }
    std::fs::remove_dir_all(&logs).context("remove the logs")?;
    outcome
}

async fn measure(places: &[Place<'_>], table: &mut Table) -> Result<()> {
    for protocol in [Protocol::Spdy, Protocol::WebSocket] {
        let mut able = Vec::new();
        for place in places {
            match place.exec(&["true"], protocol, None).await {
                Ok(_) => able.push(place),
                Err(error) => println!("{} does no {}: {error:#}", place.runtime.name, protocol.name()),
            }
        }
        for _ in 0..RUNS {
            for place in &able {
                let begun = Instant::now();
                place.exec(&["true"], protocol, None).await?;
                let ms = begun.elapsed().as_secs_f64() * 1e3;
                table.add(
                    &format!("streamed exec of true, {}", protocol.name()),
                    "ms",
                    &place.runtime.name,
                    ms,
                );
            }
        }
        for _ in 0..SENDS {
            for place in &able {
                place.bytes_out(protocol, table).await.with_context(|| place.runtime.name.clone())?;
                place.bytes_in(protocol, table).await.with_context(|| place.runtime.name.clone())?;
            }
        }
    }
    Ok(())
}

impl Place<'_> {
    async fn make<'a>(runtime: &'a Runtime, image: &str, logs: &Path) -> Result<Place<'a>> {
        let mut client = runtime.node.runtime.clone();
        let config = pod("streams", "uid-streams", logs);
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let pod = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container("main", image, &["sleep", "1000"])),
            sandbox_config: Some(config),
        };
        let container = client.create_container(request).await?.into_inner().container_id;
        client.start_container(StartContainerRequest { container_id: container.clone() }).await?;
        Ok(Place { runtime, pod, container, network: network(&runtime.socket)? })
    }

    async fn remove(self) -> Result<()> {
        let (mut client, pod_sandbox_id) = (self.runtime.node.runtime.clone(), self.pod);
        client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
        client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
        Ok(())
    }

    /// From the RPC to the status of a command that succeeds.
    async fn exec(&self, command: &[&str], protocol: Protocol, input: Option<u64>) -> Result<Done> {
        let request = ExecRequest {
            container_id: self.container.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            stdin: input.is_some(),
            stdout: true,
            ..Default::default()
        };
        let url = self.runtime.node.runtime.clone().exec(request).await?.into_inner().url;
        // nothing else goes on in this process
        session::run(&url, self.network.as_ref(), protocol, input)
    }

    async fn bytes_out(&self, protocol: Protocol, table: &mut Table) -> Result<()> {
        let count = format!("count={}", BYTES >> 20);
        let sent =
            self.timed(&["dd", "if=/dev/zero", "bs=1M", &count], (protocol, None), "out of", table).await?;
        ensure!(sent.bytes == BYTES, "{} bytes came out of {BYTES}", sent.bytes);
        Ok(())
    }

    async fn bytes_in(&self, protocol: Protocol, table: &mut Table) -> Result<()> {
        // it says how many whole blocks it has read
        let command = ["sh", "-c", "exec dd of=/dev/null bs=1M iflag=fullblock 2>&1"];
        let read = self.timed(&command, (protocol, Some(BYTES)), "into", table).await?;
        let text = String::from_utf8_lossy(&read.text).into_owned();
        let whole = format!("{}+0 records in", BYTES >> 20);
        ensure!(text.starts_with(&whole), "{BYTES} bytes were sent, and the command said {text:?}");
        Ok(())
    }

    async fn timed(
        &self,
        command: &[&str],
        (protocol, input): (Protocol, Option<u64>),
        way: &str,
        table: &mut Table,
    ) -> Result<Done> {
        let daemon = daemon_pid(&self.runtime.socket)?;
        let (begun, before) = (Instant::now(), cpu_seconds(daemon)?);
        let done = self.exec(command, protocol, input).await?;
        let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds(daemon)? - before);
        let measure = format!("500 MiB {way} an exec, {}", protocol.name());
        table.add(&measure, "MB/s", &self.runtime.name, BYTES as f64 / 1e6 / wall);
        table.add(&format!("{measure}, CPU of the daemon"), "s", &self.runtime.name, cpu);
        Ok(done)
    }
}
