//! A scratch pod or bundle for the tests: a root that borrows the node's /usr, a monitor, what it leaves.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test program uses a part of it")]

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use monitor::protocol::{Exit, Known, Reply, Request, Start};
use monitor::{Client, Connection};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use oci::ContainerId;
use serde_json::{Value, json};
use sys::cgroup::Cgroup;

/// The program under test.
pub const RUNTIME: &str = env!("CARGO_BIN_EXE_corten-runtime");

/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Wait for a condition; panics with `what` when it does not come.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A number that no other test of this machine uses now.
fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Root may do all that the tests need.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A bundle whose root has the node's /usr, read-only.
pub struct Bundle {
    pub dir: PathBuf,
    pub cgroup: Cgroup,
    pub config: Value,
}

impl Bundle {
    pub fn new(dir: &Path, args: &[&str]) -> Bundle {
        let root = dir.join("rootfs");
        for name in ["usr", "proc", "dev", "tmp", "etc"] {
            fs::create_dir_all(root.join(name)).expect("mkdir");
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            let _ = std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name));
        }
        let path = format!("/corten-monitor-test-{}", unique());
        let config = json!({
            "ociVersion": "1.2.0",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/usr/bin:/bin"],
                "cwd": "/",
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/usr", "type": "bind", "source": "/usr", "options": ["bind", "ro"] },
            ],
            "linux": {
                "cgroupsPath": path,
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
            },
        });
        let bundle = Bundle { dir: dir.to_owned(), cgroup: Cgroup::new(path), config };
        bundle.write();
        bundle
    }

    pub fn write(&self) {
        fs::write(self.dir.join("config.json"), self.config.to_string()).expect("config.json");
    }

    /// Change the config at a JSON pointer's parent.
    pub fn set(&mut self, section: &str, key: &str, value: Value) {
        self.config[section][key] = value;
        self.write();
    }
}

impl Bundle {
    /// Give it a /dev with terminals.
    pub fn add_devpts(&mut self) {
        self.config["mounts"].as_array_mut().expect("mounts").extend([
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] }),
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] }),
        ]);
        self.write();
    }
}

/// A pod with a running monitor.
pub struct Pod {
    pub scratch: tempfile::TempDir,
    pub dir: PathBuf,
    pub client: Client,
    monitor: Child,
}

/// A container of a pod.
pub struct Made {
    pub id: ContainerId,
    pub log: PathBuf,
    pub bundle: Bundle,
}

impl Pod {
    pub fn new() -> Pod {
        Pod::with(json!({ "version": 1 })).expect("monitor starts")
    }

    /// Start a monitor on this `sandbox.json`; `Err` is what it told.
    pub fn with(sandbox: Value) -> Result<Pod, String> {
        Pod::prepare(sandbox, |_| {})
    }

    /// As [`Pod::with`], with something done to the scratch directory before.
    pub fn prepare(sandbox: Value, prepare: impl FnOnce(&Path)) -> Result<Pod, String> {
        let scratch = tempfile::tempdir().expect("scratch");
        prepare(scratch.path());
        let dir = scratch.path().join("pod");
        fs::create_dir(&dir).expect("mkdir");
        fs::write(dir.join("sandbox.json"), sandbox.to_string()).expect("sandbox.json");
        let (mut ready, writer) = std::io::pipe().expect("pipe");
        fcntl(writer.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).expect("inheritable");
        let monitor = Command::new(RUNTIME)
            .args(["monitor", "--ready-fd", &writer.as_raw_fd().to_string(), "--seccomp-cache"])
            .arg(scratch.path().join("seccomp"))
            .arg("--dir")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("monitor.log")).expect("monitor.log"))
            .spawn()
            .expect("monitor");
        drop(writer);
        let mut told = Vec::new();
        let mut byte = [0];
        while ready.read(&mut byte).expect("ready") == 1 && byte != *b"\n" {
            told.push(byte[0]);
        }
        let mut pod = Pod { client: Client::new(&dir), dir, scratch, monitor };
        match String::from_utf8(told).expect("UTF-8") {
            told if told == "ok" => Ok(pod),
            told => {
                pod.monitor.wait().expect("it ends");
                Err(told)
            }
        }
    }

    pub fn monitor_pid(&self) -> u32 {
        self.monitor.id()
    }

    /// What the monitor complained of.
    pub fn complaints(&self) -> String {
        fs::read_to_string(self.dir.join("monitor.log")).unwrap_or_default()
    }

    /// A bundle in this pod, not started.
    pub fn bundle(&self, args: &[&str]) -> Made {
        let mut bytes = [0; 32];
        let name = unique();
        bytes[..name.len().min(32)].copy_from_slice(&name.as_bytes()[..name.len().min(32)]);
        let id = ContainerId::from_random(bytes);
        let dir = self.scratch.path().join(format!("bundle-{}", name));
        fs::create_dir(&dir).expect("mkdir");
        let log = self.scratch.path().join(format!("{name}.log"));
        Made { id, log, bundle: Bundle::new(&dir, args) }
    }

    pub fn start_request(&self, made: &Made) -> Request {
        self.start_with_stdin(made, false, false)
    }

    pub fn start_with_stdin(&self, made: &Made, stdin: bool, stdin_once: bool) -> Request {
        Request::Start(Start {
            container: made.id.clone(),
            bundle: made.bundle.dir.clone(),
            log: Some(made.log.clone()),
            stdin,
            stdin_once,
        })
    }

    pub fn start(&self, made: &Made) -> Known {
        match self.call(&self.start_request(made)) {
            Reply::Started(known) => known,
            other => panic!("start: {other:?}\n{}", self.complaints()),
        }
    }

    /// A container that runs this shell script.
    pub fn run(&self, script: &str) -> (Made, Known) {
        let made = self.bundle(&["/bin/sh", "-c", script]);
        let known = self.start(&made);
        (made, known)
    }

    pub fn call(&self, request: &Request) -> Reply {
        self.client.call(request, LIMIT).unwrap_or_else(|e| panic!("{request:?}: {e}\n{}", self.complaints()))
    }

    pub fn done(&self, request: &Request) {
        let reply = self.call(request);
        assert!(matches!(reply, Reply::Done), "{request:?}: {reply:?}");
    }

    pub fn watch(&self) -> Connection {
        self.client.send(&Request::Watch, &[]).expect("watch")
    }

    pub fn state(&self) -> Vec<Known> {
        match self.call(&Request::State) {
            Reply::State { containers, .. } => containers,
            other => panic!("{other:?}"),
        }
    }

    /// Wait for a container's end.
    pub fn exit(&self, id: &ContainerId) -> Exit {
        let mut watch = self.watch();
        let deadline = Instant::now() + LIMIT;
        loop {
            match watch.receive(deadline).unwrap_or_else(|e| panic!("exit: {e}\n{}", self.complaints())) {
                Reply::State { containers, .. } => {
                    let known =
                        containers.into_iter().find(|k| k.container == *id).expect("a container of this pod");
                    if let Some(exit) = known.exit {
                        return exit;
                    }
                }
                Reply::Exited { container, exit } if container == *id => return exit,
                _ => {}
            }
        }
    }

    pub fn delete(&self, id: &ContainerId) {
        self.done(&Request::Delete { container: id.clone() });
    }

    /// End the monitor as the daemon does, and see it end.
    pub fn shut_down(self) {
        self.done(&Request::Shutdown);
        self.shut_down_already();
    }

    /// See a monitor end that was told to.
    pub fn shut_down_already(mut self) {
        let status = self.monitor.wait().expect("monitor ends");
        assert!(status.success(), "{status}\n{}", self.complaints());
    }
}

impl Drop for Pod {
    /// Also when a test failed: nothing stays.
    fn drop(&mut self) {
        if !matches!(self.monitor.try_wait(), Ok(None)) {
            return;
        }
        let _ = self.client.call(&Request::Shutdown, LIMIT);
        let deadline = Instant::now() + LIMIT;
        while matches!(self.monitor.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

/// Stream, tag and text of each line of a CRI log.
pub fn read_log(path: &Path) -> Vec<(String, char, String)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // What follows the last newline is being written at this moment.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .split('\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let time = parts.next().expect("time");
            assert!(time.len() == 30 && time.ends_with('Z'), "{line}");
            let stream = parts.next().expect("stream").to_owned();
            let tag = parts.next().expect("tag").chars().next().expect("tag");
            (stream, tag, parts.next().expect("text").to_owned())
        })
        .collect()
}

/// What a reader of the log gets of one stream.
pub fn joined(path: &Path, stream: &str) -> String {
    let mut text = String::new();
    for (of, tag, line) in read_log(path) {
        if of == stream {
            text.push_str(&line);
            if tag == 'F' {
                text.push('\n');
            }
        }
    }
    text
}

/// Whether a process is there and no zombie.
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
