//! The kubelet process: its scratch folders, configuration, cgroup root, and what it says of pods.
//!
//! It gets a cgroup root of its own under the node's hierarchies, so that what it makes can be taken away again.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Static pods that come with the project, by name.
const PODS: [(&str, &str); 3] = [
    ("web", include_str!("../../manifests/static-pods/web.yaml")),
    ("crash", include_str!("../../manifests/static-pods/crash.yaml")),
    ("oom", include_str!("../../manifests/static-pods/oom.yaml")),
];

/// A running kubelet.
pub(crate) struct Kubelet {
    program: PathBuf,
    /// Everything that it writes.
    pub(crate) scratch: PathBuf,
    cgroup_root: String,
    node_ip: String,
    process: Child,
}

impl Kubelet {
    /// Start it and wait until it answers.
    pub(crate) fn start(program: &Path) -> Result<Kubelet> {
        let scratch = PathBuf::from(format!("/tmp/kubelet-{}", std::process::id()));
        for dir in ["pods", "root", "certs", "host"] {
            fs::create_dir_all(scratch.join(dir)).context("scratch folder")?;
        }
        fs::write(scratch.join("host/hello"), "hello\n").context("scratch folder")?;
        give_the_processor_a_speed(&scratch)?;
        let cgroup_root = format!("/kubelet-{}", std::process::id());
        for hierarchy in hierarchies()? {
            make_cgroup(&hierarchy, &cgroup_root)?;
        }
        let node_ip = node_ip()?;
        let process = launch(program, &scratch, &cgroup_root, &node_ip)?;
        let kubelet = Kubelet { program: program.to_owned(), scratch, cgroup_root, node_ip, process };
        kubelet.wait("kubelet answers", Duration::from_secs(60), |kubelet| {
            kubelet.get("/healthz").map(|body| body.contains("ok"))
        })?;
        Ok(kubelet)
    }

    /// Put a static pod into its folder.
    pub(crate) fn add_pod(&self, name: &str) -> Result<()> {
        let (_, text) = PODS.iter().find(|(pod, _)| *pod == name).context("unknown pod")?;
        let text = text.replace("${HOST_DIR}", &self.scratch.join("host").display().to_string());
        // written elsewhere and renamed, so that the kubelet never reads half of it
        let temporary = self.scratch.join("pod.tmp");
        fs::write(&temporary, text).context("static pod")?;
        fs::rename(&temporary, self.manifest(name)).context("static pod")
    }

    /// Take a static pod away.
    pub(crate) fn remove_pod(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifest(name)).context("static pod")
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.scratch.join("pods").join(format!("{name}.yaml"))
    }

    /// What the kubelet says of a pod; `None`: it knows none of that name.
    pub(crate) fn pod(&self, name: &str) -> Result<Option<Value>> {
        let list: Value = serde_json::from_str(&self.get("/pods")?).context("/pods is not JSON")?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let starts =
            |pod: &Value| pod["metadata"]["name"].as_str().is_some_and(|full| full.starts_with(name));
        Ok(items.into_iter().find(starts))
    }

    /// The status of a pod's container.
    pub(crate) fn container(&self, pod: &str, name: &str) -> Result<Option<Value>> {
        let Some(pod) = self.pod(pod)? else { return Ok(None) };
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|status| status["name"] == name))
    }

    /// The log of a container, by the kubelet's own API with TLS.
    pub(crate) fn logs(&self, pod: &str, container: &str) -> Result<String> {
        let pod = self.pod(pod)?.context("no such pod")?;
        let full = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let url = format!("https://127.0.0.1:10250/containerLogs/default/{full}/{container}");
        let output =
            Command::new("curl").args(["-sSk", "--fail-with-body", &url]).output().context("curl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{url}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    fn get(&self, path: &str) -> Result<String> {
        http_get("127.0.0.1:10255", path)
    }

    /// Poll until `done` says so; an error of it counts as not yet, and is in the message at the end.
    pub(crate) fn wait(
        &self,
        what: &str,
        limit: Duration,
        done: impl Fn(&Kubelet) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let last = done(self);
            if matches!(last, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let why = last.err().map(|error| format!(": {error:#}")).unwrap_or_default();
                bail!("waited {} s for: {what}{why}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200)); // a poll with the deadline above
        }
    }

    /// Kill it and start it again on the same folders.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.process = launch(&self.program, &self.scratch, &self.cgroup_root, &self.node_ip)?;
        self.wait("kubelet answers again", Duration::from_secs(60), |kubelet| {
            kubelet.get("/healthz").map(|body| body.contains("ok"))
        })
    }

    fn stop(&mut self) -> Result<()> {
        self.process.kill().context("kill the kubelet")?;
        self.process.wait().context("wait for the kubelet")?;
        Ok(())
    }

    /// The last lines of its log.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.scratch.join("kubelet.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Take all pods away, stop it, remove what it made.
    pub(crate) fn end(mut self) -> Result<()> {
        for (name, _) in PODS {
            fs::remove_file(self.manifest(name)).ok();
        }
        let gone = self.wait("all pods are gone", Duration::from_secs(60), |kubelet| {
            let none = |name: &str| kubelet.pod(name).map(|pod| pod.is_none());
            Ok(none("web")? && none("crash")? && none("oom")? && no_pods_in_the_runtime()?)
        });
        self.stop()?;
        for hierarchy in hierarchies()? {
            remove_cgroups(&hierarchy.join(self.cgroup_root.trim_start_matches('/')));
        }
        unmount_below(&self.scratch);
        // only there where the processor was given a speed
        nix::mount::umount("/proc/cpuinfo").ok();
        fs::remove_dir_all(&self.scratch).context("remove the scratch folder")?;
        gone
    }
}

/// Whether crictl lists no pod at all.
pub(crate) fn no_pods_in_the_runtime() -> Result<bool> {
    let output = Command::new("crictl").args(["pods", "-q"]).output().context("crictl")?;
    Ok(output.status.success() && output.stdout.iter().all(u8::is_ascii_whitespace))
}

/// The body of an HTTP answer with status 200.
pub(crate) fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).context("timeout")?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("answer of {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200"), "{address}{path}: {status}");
    Ok(body.to_owned())
}

fn launch(program: &Path, scratch: &Path, cgroup_root: &str, node_ip: &str) -> Result<Child> {
    let endpoint =
        std::env::var("CONTAINER_RUNTIME_ENDPOINT").context("CONTAINER_RUNTIME_ENDPOINT is not set")?;
    let config = scratch.join("config.yaml");
    let scratch_text = scratch.display();
    let text = format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: {scratch_text}/pods
containerRuntimeEndpoint: "{endpoint}"
cgroupDriver: cgroupfs
cgroupRoot: {cgroup_root}
failCgroupV1: false
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
address: 127.0.0.1
readOnlyPort: 10255
fileCheckFrequency: 1s
syncFrequency: 10s
makeIPTablesUtilChains: false
podLogsDir: {scratch_text}/logs
authentication: {{ anonymous: {{ enabled: true }}, webhook: {{ enabled: false }} }}
authorization: {{ mode: AlwaysAllow }}
evictionHard: {{ memory.available: 10Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0% }}
"#
    );
    fs::write(&config, text).context("kubelet configuration")?;
    let log = fs::OpenOptions::new().create(true).append(true).open(scratch.join("kubelet.log"));
    let log = log.context("kubelet log")?;
    Command::new(program)
        .arg("--config")
        .arg(config)
        .arg("--root-dir")
        .arg(scratch.join("root"))
        .arg("--cert-dir")
        .arg(scratch.join("certs"))
        .args(["--node-ip", node_ip, "--hostname-override", "node", "-v=2"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("kubelet log")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

/// The node's own IPv4 address: without it the kubelet looks up its own name and waits.
fn node_ip() -> Result<String> {
    let output =
        Command::new("ip").args(["-j", "-4", "route", "show", "default"]).output().context("ip route")?;
    let routes: Value = serde_json::from_slice(&output.stdout).context("ip -j route")?;
    let device = routes[0]["dev"].as_str().context("the node has no default route")?.to_owned();
    let output =
        Command::new("ip").args(["-j", "-4", "addr", "show", "dev", &device]).output().context("ip addr")?;
    let links: Value = serde_json::from_slice(&output.stdout).context("ip -j addr")?;
    let address = links[0]["addr_info"][0]["local"].as_str();
    address.map(str::to_owned).with_context(|| format!("{device} has no IPv4 address"))
}

/// Mount points of all cgroup hierarchies.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let cgroups = fields.filter(|line| matches!(line.get(2), Some(&"cgroup" | &"cgroup2")));
    Ok(cgroups.map(|line| PathBuf::from(line[1])).collect())
}

fn make_cgroup(hierarchy: &Path, name: &str) -> Result<()> {
    let dir = hierarchy.join(name.trim_start_matches('/'));
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        // a new v1 cpuset is empty until its CPUs and memory nodes are set; on v2 empty means the parent's
        if hierarchy.join("cpuset.sched_load_balance").exists() {
            let value = fs::read_to_string(hierarchy.join(file)).context("cpuset of the root")?;
            fs::write(dir.join(file), value.trim()).with_context(|| dir.join(file).display().to_string())?;
        }
    }
    Ok(())
}

/// Remove a cgroup with all below it; one that is in use stays, and the leak check names it.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    fs::remove_dir(dir).ok();
}

/// Volumes that a killed kubelet left mounted.
fn unmount_below(scratch: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for point in points.filter(|point| point.starts_with(scratch)).collect::<Vec<_>>().into_iter().rev() {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

/// The kubelet refuses a processor without a clock speed, as user-mode Linux shows it: give it one, in this mount
/// namespace only.
fn give_the_processor_a_speed(scratch: &Path) -> Result<()> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    if cpuinfo.contains("cpu MHz") {
        return Ok(());
    }
    let file = scratch.join("cpuinfo");
    let patched: String = cpuinfo
        .lines()
        .map(|line| match line.starts_with("processor") {
            true => format!("{line}\ncpu MHz\t\t: 2000.000\n"),
            false => format!("{line}\n"),
        })
        .collect();
    fs::write(&file, patched).context("cpuinfo")?;
    let none: Option<&str> = None;
    nix::mount::mount(Some(&file), "/proc/cpuinfo", none, nix::mount::MsFlags::MS_BIND, none)
        .context("mount over /proc/cpuinfo")
}
