//! Bundles to run: a root with the node's /usr in it, a config that can be changed, and what came out.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use executor::{Command, Create, Exec, Pending, Process, Result, Stdio};
use serde_json::{Value, json};

/// A mount namespace of our own from which nothing travels to the node.
pub(crate) fn leave_the_node_alone() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

/// What a process left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) warnings: Vec<String>,
}

impl Outcome {
    /// The output of a process that must have succeeded.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.trim()
    }
}

/// A bundle in a temporary directory.
pub(crate) struct Bundle {
    directory: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) config: Value,
}

/// Both ends of a pipe.
fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap()
}

fn null() -> OwnedFd {
    fs::File::open("/dev/null").unwrap().into()
}

pub(crate) fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|a| (*a).to_owned()).collect()
}

impl Bundle {
    /// A container with namespaces of its own that runs a shell script.
    pub(crate) fn new(script: &str) -> Bundle {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::Builder::new().prefix("corten-test-").tempdir().unwrap();
        let id = format!("corten-test-{}-{number}", std::process::id());
        let bundle = Bundle { directory, config: config(&id, script), id };
        let root = bundle.root();
        fs::create_dir_all(root.join("usr")).unwrap();
        for name in ["bin", "sbin", "lib", "lib64"] {
            if fs::symlink_metadata(Path::new("/").join(name)).is_ok_and(|m| m.is_symlink()) {
                std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).unwrap();
            }
        }
        fs::create_dir(root.join("tmp")).unwrap();
        bundle
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    pub(crate) fn seccomp_cache(&self) -> PathBuf {
        self.path().join("seccomp")
    }

    /// Add a mount entry at the end.
    pub(crate) fn mount(&mut self, entry: Value) {
        self.config["mounts"].as_array_mut().unwrap().push(entry);
    }

    pub(crate) fn begin(&self, stdio: Stdio, gate: Option<&Path>) -> Result<Pending> {
        fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
        executor::create(Create {
            id: &self.id,
            bundle: self.path().into(),
            stdio,
            seccomp_cache: &self.seccomp_cache(),
            gate,
            preserve_fds: 0,
            on_cgroup: None,
        })
    }

    /// Make and start it with output to a pipe.
    pub(crate) fn start(&self) -> Result<(Process, OwnedFd)> {
        let (read, write) = pipe();
        let stdio = Stdio { stdin: null(), stdout: write.try_clone().unwrap(), stderr: write };
        let pending = self.begin(stdio, None)?;
        Ok((pending.complete()?, read))
    }

    /// Run it to its end and remove what is left.
    pub(crate) fn run(&self) -> Result<Outcome> {
        let (process, output) = self.start()?;
        let outcome = finish(&process, output);
        process.cgroup.kill().unwrap();
        process.cgroup.remove().unwrap();
        Ok(outcome)
    }

    /// Run one more process in it to its end.
    pub(crate) fn exec(&self, container: &Process, command: Command<'_>) -> Result<Outcome> {
        let (read, write) = pipe();
        let stdio = Stdio { stdin: null(), stdout: write.try_clone().unwrap(), stderr: write };
        let process = self.begin_exec(container, command, stdio)?.complete()?;
        Ok(finish(&process, read))
    }

    pub(crate) fn exec_args(&self, container: &Process, args: &[&str]) -> Result<Outcome> {
        self.exec(container, Command::Args { args: &words(args), terminal: false })
    }

    pub(crate) fn begin_exec(
        &self,
        container: &Process,
        command: Command<'_>,
        stdio: Stdio,
    ) -> Result<Pending> {
        executor::exec(Exec {
            id: &self.id,
            init: container.pidfd.as_fd(),
            cgroup: &container.cgroup,
            bundle: self.path().into(),
            command,
            stdio,
            seccomp_cache: &self.seccomp_cache(),
            preserve_fds: 0,
        })
    }
}

/// No output.
pub(crate) fn quiet() -> Stdio {
    let sink = || fs::OpenOptions::new().write(true).open("/dev/null").unwrap().into();
    Stdio { stdin: null(), stdout: sink(), stderr: sink() }
}

/// Read all output, then wait for the end.
pub(crate) fn finish(process: &Process, output: OwnedFd) -> Outcome {
    let mut out = Vec::new();
    fs::File::from(output).read_to_end(&mut out).unwrap();
    assert!(
        sys::process::wait_for_end(process.pidfd.as_fd(), Duration::from_secs(60)).unwrap(),
        "it does not end"
    );
    let ended = sys::process::wait(process.pid, true).unwrap().unwrap();
    Outcome {
        code: ended.code(),
        out: String::from_utf8_lossy(&out).into_owned(),
        warnings: process.warnings.clone(),
    }
}

/// Kill a container and remove what is left.
pub(crate) fn end(process: &Process) {
    process.cgroup.kill().unwrap();
    assert!(
        sys::process::wait_for_end(process.pidfd.as_fd(), Duration::from_secs(20)).unwrap(),
        "it does not die"
    );
    let _ = sys::process::wait(process.pid, true);
    process.cgroup.remove().unwrap();
}

/// Wait until something holds; fails after ten seconds.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what} does not become true");
        std::thread::yield_now();
    }
}

fn config(id: &str, script: &str) -> Value {
    let caps =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_MKNOD"];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hostname": "box",
        "process": {
            "args": ["/bin/sh", "-c", script],
            "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro", "rprivate"]},
        ],
        "linux": {
            "cgroupsPath": format!("/corten-test/{id}"),
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "network"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/acpi",
                            "/proc/scsi", "/sys/firmware", "/proc/nowhere"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        }
    })
}
