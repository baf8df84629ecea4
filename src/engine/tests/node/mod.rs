//! Where the tests take place: mount and network namespaces of their own, scratch roots, a small image out of the
//! machine's own programs, and the real monitor and bridge plugin.
//!
//! A test calls [`private`] first: the test program runs itself again under `unshare` for that one test.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use engine::config::{ContainerConfig, PodConfig};
use engine::status::{ContainerState, ContainerStatus};
use engine::{Engine, Settings};
use oci::ContainerId;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MARK: &str = "CORTEN_TEST_PRIVATE";

/// Runs the test `name` in namespaces of its own. `true`: this is the inner run, go on; `false`: it is over.
pub(crate) fn private(name: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        must(Command::new("ip").args(["link", "set", "lo", "up"]));
        return true;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP {name}: needs root for namespaces");
        return false;
    }
    programs();
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespaces: {status}");
    false
}

pub(crate) fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The directory with `corten-runtime` and `corten-bridge`: named by the environment, else built beside this test.
pub(crate) fn programs() -> PathBuf {
    if let Some(dir) = std::env::var_os("CORTEN_PROGRAMS") {
        return dir.into();
    }
    let exe = std::env::current_exe().unwrap();
    let dir = exe.ancestors().nth(2).unwrap().to_owned();
    if std::env::var_os(MARK).is_none() {
        let target = dir.parent().unwrap();
        must(
            Command::new(env!("CARGO"))
                .args(["build", "-q", "-p", "monitor", "-p", "network", "--target-dir"])
                .arg(target),
        );
    }
    dir
}

/// How long anything may take: a machine that is much slower than this one, with much else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `what` holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A scratch node.
pub(crate) struct Node {
    pub(crate) root: PathBuf,
    owner: bool,
}

pub(crate) const IMAGE: &str = "127.0.0.1:5000/test/tools:1";

impl Node {
    /// A new node in a directory of its own, with the test image.
    pub(crate) async fn new() -> Node {
        let root = tempfile::tempdir().unwrap().keep();
        let node = Node { root, owner: true };
        for dir in ["net.d", "logs"] {
            std::fs::create_dir_all(node.at(dir)).unwrap();
        }
        let subnets = ["10.88.0.0/16".to_owned()];
        let data = node.at("bridge");
        let list =
            network::BridgeNetwork { name: "pods", bridge: "corten0", subnets: &subnets, data_dir: &data };
        std::fs::write(node.at("net.d/10-test.conflist"), network::default_conflist(&list)).unwrap();
        serve_image();
        node.images().await.pull(IMAGE, None).await.unwrap();
        node
    }

    /// The same node seen by another process.
    pub(crate) fn again(root: &Path) -> Node {
        Node { root: root.to_owned(), owner: false }
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn cgroup_root(&self) -> String {
        format!("/corten-test-{}", self.root.file_name().unwrap().to_string_lossy().trim_start_matches('.'))
    }

    pub(crate) async fn images(&self) -> image::Store {
        let began = Instant::now();
        loop {
            let settings = image::Settings { root: self.at("state/images"), ..image::Settings::default() };
            match image::Store::open(settings).await {
                // a task of the engine that was drained may still be about to let go of it
                Err(e) if e.kind == image::Kind::Unavailable && began.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                opened => return opened.unwrap(),
            }
        }
    }

    pub(crate) fn network(&self) -> network::Network {
        network::Network::new(network::Settings {
            config_dir: self.at("net.d"),
            bin_dirs: vec![programs()],
            state_dir: self.at("state/network"),
            netns_dir: self.at("netns"),
            deadline: PATIENCE,
        })
    }

    /// The engine of a daemon that starts here.
    pub(crate) async fn open(&self) -> Engine {
        self.open_with(|_| ()).await
    }

    /// The same with other settings.
    pub(crate) async fn open_with(&self, edit: impl FnOnce(&mut Settings)) -> Engine {
        let mut settings = Settings {
            state_dir: self.at("state"),
            run_dir: self.at("run"),
            runtime: programs().join("corten-runtime"),
            cgroup_root: self.cgroup_root(),
            monitor_deadline: PATIENCE,
            drain_deadline: PATIENCE,
            monitor_patience: PATIENCE,
            ..Settings::default()
        };
        edit(&mut settings);
        Engine::open(settings, self.images().await, self.network()).await.unwrap()
    }

    pub(crate) fn pod(&self, name: &str) -> PodConfig {
        serde_json::from_value(json!({
            "name": {"name": name, "uid": format!("uid-{name}"), "namespace": "test", "attempt": 0},
            "hostname": name,
            "log_directory": self.at("logs").join(name),
        }))
        .unwrap()
    }

    pub(crate) fn container(&self, name: &str, script: &str) -> ContainerConfig {
        self.container_with(name, json!({"command": ["/bin/sh", "-c", script]}))
    }

    pub(crate) fn container_with(&self, name: &str, more: Value) -> ContainerConfig {
        let mut all = json!({"name": name, "attempt": 0, "image": IMAGE, "log_path": format!("{name}.log")});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    /// The text of a container's log, without times and tags.
    pub(crate) fn log(&self, pod: &str, container: &str) -> String {
        let path = self.at("logs").join(pod).join(format!("{container}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
    }

    /// What is left of pods and containers: should be nothing when all are removed.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for dir in ["state/pods", "state/containers", "run/pods", "netns"] {
            for name in names(&self.at(dir)) {
                left.push(format!("{dir}/{name}"));
            }
        }
        // `networks`: what is known of networks that pods were in, for as long as they may have garbage
        for name in names(&self.at("state/network")).iter().filter(|name| *name != "networks") {
            left.push(format!("state/network/{name}"));
        }
        let root = self.root.to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|l| l.contains(&root) && !l.contains("/netns")).map(str::to_owned));
        left.extend(self.cgroups());
        left.extend(self.processes().into_iter().map(|pid| format!("process {pid}")));
        let links = must(Command::new("ip").args(["-o", "link"]));
        // name only: the rest changes by itself
        let name = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
        left.extend(links.lines().filter(|line| line.contains("veth")).filter_map(name));
        left.sort();
        left
    }

    /// Cgroups below our root.
    pub(crate) fn cgroups(&self) -> BTreeSet<String> {
        let cgroup = sys::cgroup::Cgroup::new(self.cgroup_root());
        let mut found = BTreeSet::new();
        for hierarchy in &sys::cgroup::Layout::host().unwrap().hierarchies {
            let dir = cgroup.directory(hierarchy).unwrap();
            found.extend(names(&dir).into_iter().filter(|n| n.len() >= 64).map(|n| format!("cgroup {n}")));
        }
        found
    }

    /// Monitors of this node.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let run = self.at("run").to_string_lossy().into_owned();
        let pids = names(Path::new("/proc"));
        let pids = pids.iter().filter_map(|name| name.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains("monitor --dir") && line.contains(&run)
        })
        .collect()
    }

    pub(crate) fn is_ended(&self, engine: &Engine, id: &ContainerId) -> bool {
        let status = engine.container_status(id.as_str()).unwrap();
        matches!(status.state, ContainerState::Exited { .. })
    }

    pub(crate) async fn ended(&self, engine: &Engine, id: &ContainerId) -> (i32, String) {
        let mut last = None;
        eventually("the container has ended", || {
            last = Some(engine.container_status(id.as_str()).unwrap());
            matches!(last.as_ref().unwrap().state, ContainerState::Exited { .. })
        })
        .await;
        exit_of(&last.unwrap())
    }
}

pub(crate) fn exit_of(status: &ContainerStatus) -> (i32, String) {
    match &status.state {
        ContainerState::Exited { exit_code, reason, .. } => (*exit_code, reason.clone()),
        other => panic!("not ended: {other:?}"),
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.owner {
            return;
        }
        let cgroup = sys::cgroup::Cgroup::new(self.cgroup_root());
        let _ = cgroup.kill();
        for pid in self.processes() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        let began = Instant::now();
        while cgroup.remove().is_err() && began.elapsed() < Duration::from_secs(5) {}
        if !std::thread::panicking() {
            // mounts go with the mount namespace
            let _ = Command::new("umount").arg("-l").arg(self.at("netns")).output();
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A registry with one image of one layer, on loopback.
fn serve_image() {
    let layer = layer();
    let digest = |bytes: &[u8]| format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
        "config": {"Env": ["FROM_IMAGE=yes"], "Cmd": ["/bin/sh"], "Volumes": {"/data": {}}},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(&layer), "size": layer.len()}],
    })
    .to_string()
    .into_bytes();
    let blobs = [(digest(&layer), layer), (digest(&config), config)];
    let listener = TcpListener::bind("127.0.0.1:5000").unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            let line = String::from_utf8_lossy(&request[..count]).into_owned();
            let mut words = line.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let found = match path {
                "/v2/" => Some((b"{}".to_vec(), "application/json".to_owned())),
                _ if path.contains("/manifests/") => {
                    Some((manifest.clone(), "application/vnd.oci.image.manifest.v1+json".to_owned()))
                }
                _ => blobs
                    .iter()
                    .find(|(digest, _)| path.ends_with(digest.as_str()))
                    .map(|(_, body)| (body.clone(), "application/octet-stream".to_owned())),
            };
            let (status, (body, kind)) = match found {
                Some(found) => ("200 OK", found),
                None => ("404 Not Found", (b"{}".to_vec(), "application/json".to_owned())),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\nConnection: close\r\n\r\n",
                body.len(),
                digest(&body),
            );
            let _ = stream.write_all(head.as_bytes());
            if method == "GET" {
                let _ = stream.write_all(&body);
            }
        }
    });
}

/// A layer with some of this machine's programs and the libraries that they need.
fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(true);
    let mut files = BTreeSet::new();
    for program in [
        "sh", "sleep", "cat", "true", "id", "ls", "env", "touch", "head", "hostname", "tail", "stat", "dd",
        "mkdir", "mount", "stty", "seq", "od",
    ] {
        let path = format!("/bin/{program}");
        for word in
            must(Command::new("ldd").arg(&path)).split_whitespace().filter(|word| word.starts_with('/'))
        {
            files.insert(word.to_owned());
        }
        files.insert(path);
    }
    for file in files {
        tar.append_path_with_name(&file, file.trim_start_matches('/')).unwrap();
    }
    let mut text = |name: &str, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    };
    text("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n");
    text("etc/group", "root:x:0:\napp:x:1000:\nextra:x:50000:app\n");
    text("data/seed", "seed\n");
    tar.into_inner().unwrap()
}
