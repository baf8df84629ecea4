//! Churn under kills: pods come and go, containers print and exit, and the daemon is killed all the time.
//!
//! Runs inside `cargo xtask node`, which starts a killed daemon again as systemd would. Four workers run one pod after the
//! other: a container prints numbered lines and exits with a known code. Beside them two pods log 2 000 lines a second without
//! end. Every few seconds the daemon gets SIGKILL at a random moment; a request whose connection broke is repeated as the kubelet
//! repeats it.
//!
//! What must never happen: a wrong exit code, a line lost or doubled, a repeated request that is refused, a workload that
//! stops, a pod that stays. What stays on the node besides is the leak check of `cargo xtask node`.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cri::proto::runtime::v1::*;
use e2e::client::{Node, container, log_lines, pod};
use rand::Rng;
use tokio::task::JoinSet;

/// How long a request may be repeated before the daemon counts as gone.
const PATIENCE: Duration = Duration::from_secs(60);
const WORKERS: usize = 4;
const LOGGERS: usize = 2;

/// What all tasks share.
struct Churn {
    node: Node,
    image: String,
    logs: PathBuf,
    over: AtomicBool,
    kills: AtomicU32,
    pods: AtomicU32,
    repeats: AtomicU32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let image = args.next().context("usage: churn IMAGE [SECONDS]")?;
    let seconds: u64 = args.next().map_or(Ok(120), |text| text.parse()).context("SECONDS")?;
    let logs = std::env::temp_dir().join(format!("churn-{}", std::process::id()));
    let churn = Arc::new(Churn {
        node: Node::from_env()?,
        image,
        logs: logs.clone(),
        over: AtomicBool::new(false),
        kills: AtomicU32::new(0),
        pods: AtomicU32::new(0),
        repeats: AtomicU32::new(0),
    });
    let outcome = churn.clone().run(Duration::from_secs(seconds)).await;
    std::fs::remove_dir_all(&logs).ok();
    println!(
        "churn: {} kills, {} pods, {} requests repeated",
        churn.kills.load(Ordering::Relaxed),
        churn.pods.load(Ordering::Relaxed),
        churn.repeats.load(Ordering::Relaxed)
    );
    let failures = outcome?;
    for failure in &failures {
        println!("FAIL {failure}");
    }
    ensure!(failures.is_empty(), "{} failures under churn", failures.len());
    // or it has shown nothing: one comes every two to five seconds, and a slow machine makes a pod in that time
    let (kills, pods) = (churn.kills.load(Ordering::Relaxed), churn.pods.load(Ordering::Relaxed));
    let least = u32::try_from(seconds / 10).unwrap_or(u32::MAX);
    ensure!(kills >= least, "only {kills} kills in {seconds} s: is {PIDFILE} the daemon's?");
    ensure!(pods >= least, "only {pods} pods in {seconds} s");
    println!("1 passed, 0 failed");
    Ok(())
}

/// Names the file with the daemon's pid.
const PIDFILE: &str = "CORTEN_PIDFILE";

impl Churn {
    /// Everything at once for `time`; what went wrong.
    async fn run(self: Arc<Self>, time: Duration) -> Result<Vec<String>> {
        self.call("PullImage", |mut node| {
            let image = Some(ImageSpec { image: self.image.clone(), ..Default::default() });
            async move { node.images.pull_image(PullImageRequest { image, ..Default::default() }).await }
        })
        .await?;
        let mut loggers = Vec::new();
        for number in 0..LOGGERS {
            loggers.push(self.start_logger(number).await?);
        }
        let mut tasks = JoinSet::new();
        for worker in 0..WORKERS {
            let churn = self.clone();
            tasks.spawn(async move { churn.work(worker).await });
        }
        let killer = tokio::spawn(self.clone().kill_now_and_then());
        tokio::time::sleep(time).await;
        self.over.store(true, Ordering::Relaxed);
        let mut failures: Vec<String> = Vec::new();
        while let Some(done) = tasks.join_next().await {
            failures.extend(done.context("a worker panicked")?);
        }
        killer.await.context("the killer panicked")??;
        for logger in loggers {
            failures.extend(self.end_logger(&logger, time).await.err().map(|error| format!("{error:#}")));
        }
        let left = self.call("ListPodSandbox", |mut node| async move {
            node.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await
        });
        failures.extend(left.await?.items.iter().map(|pod| format!("pod {} is still there", pod.id)));
        Ok(failures)
    }

    /// A request, repeated while its connection breaks.
    async fn call<T, F, C>(&self, what: &str, call: C) -> Result<T>
    where
        C: Fn(Node) -> F,
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let (response, repeats) = self.node.again(what, PATIENCE, call).await?;
        self.repeats.fetch_add(repeats, Ordering::Relaxed);
        Ok(response.into_inner())
    }

    /// SIGKILL to the daemon that the pid file names, every two to five seconds.
    async fn kill_now_and_then(self: Arc<Self>) -> Result<()> {
        let pidfile = std::env::var(PIDFILE).with_context(|| format!("{PIDFILE} is not set"))?;
        while !self.over.load(Ordering::Relaxed) {
            let pause = rand::rng().random_range(2000..5000);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let Ok(text) = std::fs::read_to_string(&pidfile) else { continue };
            let Some(pid) = text.split_whitespace().next().and_then(|word| word.parse::<i32>().ok()) else {
                continue;
            };
            let daemon = nix::unistd::Pid::from_raw(pid);
            if nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).is_ok() {
                self.kills.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// One pod after the other until the time is over; what went wrong, one line a pod.
    async fn work(self: Arc<Self>, worker: usize) -> Vec<String> {
        let mut failures = Vec::new();
        for round in 0.. {
            if self.over.load(Ordering::Relaxed) || failures.len() > 20 {
                break;
            }
            let name = format!("churn-{worker}-{round}");
            let code = 1 + (round * 7 + worker as i32) % 120;
            let lines = 1 + (round as u64 * 97) % 700;
            if let Err(error) = self.one_pod(&name, code, lines).await {
                failures.push(format!("{name}: {error:#}"));
            }
            self.pods.fetch_add(1, Ordering::Relaxed);
        }
        failures
    }

    /// The life of a pod: made, a container run to its end, checked, removed.
    async fn one_pod(&self, name: &str, code: i32, lines: u64) -> Result<()> {
        let logs = self.logs.join(name);
        std::fs::create_dir_all(&logs).context("log directory")?;
        let script =
            format!("i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo \"line $i\"; done; exit {code}");
        let (pod_id, id) = self.start(name, &logs, &script).await?;
        let outcome = self.check_exit(&id, &logs, code, lines).await;
        self.remove(&pod_id).await?;
        outcome
    }

    /// RunPodSandbox, CreateContainer, StartContainer; the ids.
    async fn start(&self, name: &str, logs: &Path, script: &str) -> Result<(String, String)> {
        let config = pod(name, &format!("uid-{name}"), logs);
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let run = self.call("RunPodSandbox", |mut node| {
            let request = request.clone();
            async move { node.runtime.run_pod_sandbox(request).await }
        });
        let pod_sandbox_id = run.await?.pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
            config: Some(container("main", &self.image, &["sh", "-c", script])),
            sandbox_config: Some(config),
        };
        let create = self.call("CreateContainer", |mut node| {
            let request = request.clone();
            async move { node.runtime.create_container(request).await }
        });
        let container_id = create.await?.container_id;
        let request = StartContainerRequest { container_id: container_id.clone() };
        let start = self.call("StartContainer", |mut node| {
            let request = request.clone();
            async move { node.runtime.start_container(request).await }
        });
        start.await?;
        Ok((pod_sandbox_id, container_id))
    }

    /// Wait for the end; the exit code and every line must be right.
    async fn check_exit(&self, id: &str, logs: &Path, code: i32, lines: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            let status = self.status(id).await?;
            if status.state() == ContainerState::ContainerExited {
                break status;
            }
            ensure!(Instant::now() < deadline, "{id} does not exit: {:?}", status.state());
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        ensure!(
            status.exit_code == code,
            "exit code {} instead of {code} ({})",
            status.exit_code,
            status.reason
        );
        let log = std::fs::read_to_string(logs.join("main.log")).context("log")?;
        let count = numbered(&log)?;
        ensure!(count == lines, "{count} lines instead of {lines}");
        Ok(())
    }

    async fn status(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.call("ContainerStatus", |mut node| {
            let request = request.clone();
            async move { node.runtime.container_status(request).await }
        });
        status.await?.status.context("ContainerStatus without a status")
    }

    async fn remove(&self, pod_id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod_id.to_owned() };
        let stop = self.call("StopPodSandbox", |mut node| {
            let request = request.clone();
            async move { node.runtime.stop_pod_sandbox(request).await }
        });
        stop.await?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod_id.to_owned() };
        let remove = self.call("RemovePodSandbox", |mut node| {
            let request = request.clone();
            async move { node.runtime.remove_pod_sandbox(request).await }
        });
        remove.await.map(|_| ())
    }

    /// A pod that logs 2 000 lines a second for ever.
    async fn start_logger(&self, number: usize) -> Result<Logger> {
        let name = format!("logger-{number}");
        let logs = self.logs.join(&name);
        std::fs::create_dir_all(&logs).context("log directory")?;
        let script = "i=0; while :; do j=0; while [ $j -lt 100 ]; do i=$((i+1)); j=$((j+1)); echo \"line $i\"; \
                      done; usleep 45000; done";
        let (pod_id, id) = self.start(&name, &logs, script).await?;
        Ok(Logger { name, pod_id, id, logs })
    }

    /// It must run still, and have logged without a gap.
    async fn end_logger(&self, logger: &Logger, time: Duration) -> Result<()> {
        let status = self.status(&logger.id).await?;
        let running = status.state() == ContainerState::ContainerRunning;
        self.remove(&logger.pod_id).await?;
        let log = std::fs::read_to_string(logger.logs.join("main.log")).context("log")?;
        let count = numbered(&log).with_context(|| logger.name.clone())?;
        println!("churn: {} logged {count} lines without a gap", logger.name);
        ensure!(running, "{} has stopped: exit code {}", logger.name, status.exit_code);
        ensure!(count > time.as_secs() * 500, "{} logged {count} lines only", logger.name);
        Ok(())
    }
}

struct Logger {
    name: String,
    pod_id: String,
    id: String,
    logs: PathBuf,
}

/// How many lines `line 1`, `line 2`, … a log holds; an error at the first that is missing or comes twice.
fn numbered(log: &str) -> Result<u64> {
    let mut count = 0;
    for line in log_lines(log)? {
        count += 1;
        if line != format!("line {count}") {
            bail!("{line:?} where line {count} should be");
        }
    }
    Ok(count)
}
