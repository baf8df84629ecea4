//! The node as the tests see it: pods and containers in a line, commands in them, their cgroups.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use cri::proto::runtime::v1::*;
use e2e::client::{self, Node};
use sys::cgroup::{Cgroup, Layout, Version};
use tokio::runtime::Runtime;
use tonic::Status;

/// The image of all containers.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// Longest wait for anything; the slow VM is ten times slower than a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A test: what it shows, and how.
pub(crate) type Test = (&'static str, fn(&Scene) -> Result<()>);

/// Why a test cannot be run here.
#[derive(Debug)]
pub(crate) struct Skipped(String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// End a test that this kernel lacks something for.
pub(crate) fn skip<T>(lacks: impl Into<String>) -> Result<T> {
    Err(anyhow!(Skipped(lacks.into())))
}

/// The node, and a folder for logs.
pub(crate) struct Scene {
    /// whether the kernel is this node's alone
    pub(crate) own_kernel: bool,
    /// for logs and what tests leave
    pub(crate) dir: PathBuf,
    node: Node,
    runtime: Runtime,
    number: Cell<u32>,
}

/// A pod that runs, with what it was made from.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
}

/// What a command has printed.
pub(crate) struct Output {
    pub(crate) bytes: Vec<u8>,
    pub(crate) exit_code: i32,
    pub(crate) stderr: Vec<u8>,
}

impl Output {
    /// As text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}

fn told(what: &'static str) -> impl FnOnce(Status) -> anyhow::Error {
    move |status| anyhow!("{what}: {:?}: {}", status.code(), status.message())
}

impl Scene {
    pub(crate) fn new(own_kernel: bool) -> Result<Scene> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let dir = std::env::temp_dir().join(format!("beyond-{}", std::process::id()));
        std::fs::create_dir_all(&dir).context("a folder for logs")?;
        let node = {
            let _inside = runtime.enter();
            Node::from_env()?
        };
        let scene = Scene { own_kernel, dir, node, runtime, number: Cell::new(0) };
        let image = Some(ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
        let request = PullImageRequest { image, ..Default::default() };
        scene.images(|mut images| async move { images.pull_image(request).await }).map_err(told("pull"))?;
        Ok(scene)
    }

    /// Wait for an answer of the runtime service.
    pub(crate) fn call<T, F>(&self, call: impl FnOnce(Service) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let service = self.node.runtime.clone();
        self.runtime.block_on(call(service)).map(tonic::Response::into_inner)
    }

    fn images<T, F>(&self, call: impl FnOnce(ImageService) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let service = self.node.images.clone();
        self.runtime.block_on(call(service)).map(tonic::Response::into_inner)
    }

    /// A configuration of a pod that nobody else has.
    pub(crate) fn pod_config(&self) -> PodSandboxConfig {
        self.number.set(self.number.get() + 1);
        let name = format!("beyond-{}", self.number.get());
        client::pod(&name, &format!("{name}-{}", std::process::id()), &self.dir)
    }

    /// Run a pod with changes to its configuration.
    pub(crate) fn pod(&self, change: impl FnOnce(&mut PodSandboxConfig)) -> Result<Pod> {
        let mut config = self.pod_config();
        change(&mut config);
        let id = self.try_pod(config.clone()).map_err(told("RunPodSandbox"))?;
        Ok(Pod { id, config })
    }

    pub(crate) fn try_pod(&self, config: PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        Ok(self.call(|mut s| async move { s.run_pod_sandbox(request).await })?.pod_sandbox_id)
    }

    pub(crate) fn pod_status(&self, pod: &Pod) -> Result<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        self.call(|mut s| async move { s.pod_sandbox_status(request).await })
            .map_err(told("PodSandboxStatus"))
    }

    /// Create a container that runs a script.
    pub(crate) fn create(
        &self,
        pod: &Pod,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, Status> {
        self.number.set(self.number.get() + 1);
        let name = format!("c{}", self.number.get());
        let mut config = client::container(&name, BUSYBOX, &["sh", "-c", script]);
        change(&mut config);
        self.create_exactly(pod, config)
    }

    pub(crate) fn create_exactly(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.call(|mut s| async move { s.create_container(request).await })?.container_id)
    }

    pub(crate) fn start(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        self.call(|mut s| async move { s.start_container(request).await }).map(drop)
    }

    /// Create and start one.
    pub(crate) fn run(
        &self,
        pod: &Pod,
        script: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String> {
        let id = self.create(pod, script, change).map_err(told("CreateContainer"))?;
        self.start(&id).map_err(told("StartContainer"))?;
        Ok(id)
    }

    /// One that cannot come into being: what is said of it at its creation or its start.
    pub(crate) fn refused(&self, pod: &Pod, change: impl FnOnce(&mut ContainerConfig)) -> Result<Status> {
        match self.create(pod, "sleep 1000", change) {
            Err(status) => Ok(status),
            Ok(id) => match self.start(&id) {
                Err(status) => Ok(status),
                Ok(()) => bail!("it was not refused"),
            },
        }
    }

    /// Run a command in one to its end.
    pub(crate) fn exec(&self, id: &str, cmd: &[&str]) -> Result<Output> {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 50 };
        let response =
            self.call(|mut s| async move { s.exec_sync(request).await }).map_err(told("ExecSync"))?;
        Ok(Output { bytes: response.stdout, exit_code: response.exit_code, stderr: response.stderr })
    }

    /// Output of a script that runs in one, and succeeds.
    pub(crate) fn sh(&self, id: &str, script: &str) -> Result<String> {
        let output = self.exec(id, &["sh", "-c", script])?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.exit_code == 0, "{script:?} exited with {}: {stderr}", output.exit_code);
        Ok(output.text())
    }

    pub(crate) fn update(&self, id: &str, limits: LinuxContainerResources) -> Result<(), Status> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits),
            ..Default::default()
        };
        self.call(|mut s| async move { s.update_container_resources(request).await }).map(drop)
    }

    pub(crate) fn status(&self, id: &str) -> Result<ContainerStatusResponse> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        self.call(|mut s| async move { s.container_status(request).await }).map_err(told("ContainerStatus"))
    }

    /// The limits that the status shows.
    pub(crate) fn shown(&self, id: &str) -> Result<LinuxContainerResources> {
        let status = self.status(id)?.status.context("no status")?;
        status.resources.and_then(|all| all.linux).context("no limits in the status")
    }

    /// What verbose information tells.
    pub(crate) fn info(&self, id: &str) -> Result<serde_json::Value> {
        let status = self.status(id)?;
        serde_json::from_str(status.info.get("info").context("no info")?).context("info is no JSON")
    }

    /// Wait for its end: exit code and reason.
    pub(crate) fn ended(&self, id: &str) -> Result<(i32, String)> {
        let mut last = None;
        self.wait("the container has ended", || {
            let status = self.status(id)?.status.context("no status")?;
            let ended = status.state() == ContainerState::ContainerExited;
            last = Some((status.exit_code, status.reason));
            Ok(ended)
        })?;
        last.context("no status")
    }

    pub(crate) fn stop(&self, id: &str, timeout: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        self.call(|mut s| async move { s.stop_container(request).await }).map_err(told("StopContainer"))?;
        Ok(())
    }

    /// Its log so far.
    pub(crate) fn log(&self, id: &str) -> Result<String> {
        let status = self.status(id)?.status.context("no status")?;
        Ok(client::log_lines(&std::fs::read_to_string(&status.log_path).unwrap_or_default())?.join("\n"))
    }

    /// Wait until something holds.
    pub(crate) fn wait(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds()? {
            ensure!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
            std::thread::sleep(Duration::from_millis(20)); // a poll with the deadline above
        }
        Ok(())
    }

    /// Its cgroup.
    pub(crate) fn cgroup(&self, id: &str) -> Result<Cgroup> {
        let info = self.info(id)?;
        Ok(Cgroup::new(info["cgroup"].as_str().context("no cgroup in the info")?))
    }

    /// The value of a controller's file, by its name on v1 and on v2.
    pub(crate) fn value(&self, id: &str, controller: &str, (v1, v2): (&str, &str)) -> Result<String> {
        let file = if version(controller) == Some(Version::V1) { v1 } else { v2 };
        let text = self.cgroup(id)?.read(controller, file).with_context(|| format!("read {file}"))?;
        Ok(text.trim().to_owned())
    }

    /// Remove all pods.
    pub(crate) fn clean_up(&self) {
        let listed =
            self.call(|mut s| async move { s.list_pod_sandbox(ListPodSandboxRequest::default()).await });
        for pod in listed.map(|listed| listed.items).unwrap_or_default() {
            let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
            self.call(|mut s| async move { s.remove_pod_sandbox(request).await }).ok();
        }
    }

    /// Leave nothing.
    pub(crate) fn end(self) {
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// The client of the runtime service.
pub(crate) type Service =
    cri::proto::runtime::v1::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>;
type ImageService =
    cri::proto::runtime::v1::image_service_client::ImageServiceClient<tonic::transport::Channel>;

/// Which interface a controller has here.
pub(crate) fn version(controller: &str) -> Option<Version> {
    Layout::host().ok()?.controller(controller).map(|h| h.version)
}

/// Skip what needs a controller that this kernel has not.
pub(crate) fn needs(controller: &str) -> Result<Version> {
    version(controller).map_or_else(|| skip(format!("no {controller} controller")), Ok)
}

/// The limits of a configuration, to be changed.
pub(crate) fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// The security context of a configuration, to be changed.
pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Fail with what was found when it is not what it should be.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<()> {
    ensure!(found == wanted, "{what}: found {found:?}, should be {wanted:?}");
    Ok(())
}
