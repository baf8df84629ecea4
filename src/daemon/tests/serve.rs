//! `corten serve` as a process, on scratch directories and in mount and network namespaces of its own.
//! Readiness is waited for as systemd does: by the datagram.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

const PATIENCE: Duration = Duration::from_secs(30);

/// A gid that no user of a Debian machine has by default.
const GROUP: u32 = 4242;

struct Node {
    dir: tempfile::TempDir,
    notify: UnixDatagram,
}

impl Node {
    fn new(settings: &str) -> Node {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let mut config = format!("state_dir = {:?}\nrun_dir = {:?}\n", path("state"), path("run"));
        // Nothing is run in these tests; the engine only copies the program.
        // written by another process: a descriptor that a concurrent fork keeps open would make it "text busy"
        let script = "printf '#!/bin/sh\necho corten-runtime\n' > runtime && chmod 755 runtime";
        let written = Command::new("sh").args(["-c", script]).current_dir(dir.path()).status().expect("sh");
        assert!(written.success());
        config.push_str(&format!("runtime = {:?}\n", path("runtime")));
        config.push_str(settings);
        config.push_str(&format!(
            "[network]\nconfig_dir = {:?}\nnetns_dir = {:?}\nbuiltin = \"auto\"\n",
            path("net.d"),
            path("netns")
        ));
        fs::write(path("config.toml"), config).expect("write");
        let notify = UnixDatagram::bind(path("notify")).expect("bind");
        notify.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Node { dir, notify }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn corten(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--", env!("CARGO_BIN_EXE_corten"), "--config"]);
        command.arg(self.path("config.toml")).args(arguments).env_remove("NOTIFY_SOCKET");
        command
    }

    fn start(&self) -> Daemon {
        let log = fs::File::create(self.path("log")).expect("log");
        let child = self.corten(&["serve"]).env("NOTIFY_SOCKET", self.path("notify")).stderr(log).spawn();
        let daemon = Daemon(Some(child.expect("unshare")));
        assert_eq!(self.notified(), "READY=1", "{}", self.log());
        daemon
    }

    fn notified(&self) -> String {
        let mut buffer = [0; 64];
        let length = self.notify.recv(&mut buffer).unwrap_or_else(|e| panic!("{e}: {}", self.log()));
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.corten(arguments).output().expect("unshare");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

/// Killed when the test ends early.
struct Daemon(Option<Child>);

impl Daemon {
    fn pid(&self) -> u32 {
        self.0.as_ref().expect("runs").id()
    }

    /// Sends the signal and waits for the end.
    fn end(mut self, signal: Signal) -> Output {
        let child = self.0.take().expect("runs");
        kill(pid_of(&child), signal).expect("signal");
        finish(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid"))
}

/// Waits with a deadline; kills what does not end.
fn finish(child: Child) -> Output {
    let pid = pid_of(&child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    receiver.recv_timeout(PATIENCE).map(|o| o.expect("wait")).unwrap_or_else(|_| {
        let _ = kill(pid, Signal::SIGKILL);
        panic!("{pid} did not end")
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn root(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("SKIP {test}: needs root");
    }
    root
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").mode() & 0o777
}

#[test]
fn serves_until_sigterm() {
    if !root("serves_until_sigterm") {
        return;
    }
    let node = Node::new(&format!("[server]\nsocket_mode = \"0620\"\nsocket_group = \"{GROUP}\"\n"));
    let daemon = node.start();
    let socket = node.path("run/corten.sock");
    let meta = fs::metadata(&socket).expect("socket");
    assert!(meta.file_type().is_socket());
    assert_eq!((mode(&socket), meta.gid()), (0o620, GROUP));
    let pid_file = fs::read_to_string(node.path("run/corten.pid")).expect("pid file");
    assert_eq!(pid_file, format!("{}\n", daemon.pid()));

    let status = node.says(&["status"]);
    assert!(
        status.starts_with(&format!("corten {} on {}", env!("CARGO_PKG_VERSION"), socket.display())),
        "{status}"
    );
    assert!(status.contains("RuntimeReady  yes\n"), "{status}");
    assert!(status.contains("pods          0 ready, 0 not ready\n"), "{status}");
    assert_eq!(node.says(&["image", "list"]), "");
    let output = node.corten(&["image", "remove", "nothing:1"]).output().expect("unshare");
    assert!(!output.status.success());
    assert_eq!(text(&output.stderr), "corten: no image nothing:1\n");
    assert!(node.path("net.d/99-corten.conflist").is_file(), "network.builtin = auto");

    let output = daemon.end(Signal::SIGTERM);
    assert_eq!(output.status.code(), Some(0), "{}", node.log());
    assert_eq!(node.notified(), "STOPPING=1");
    assert!(!socket.exists() && !node.path("run/corten.pid").exists(), "both are gone");
    let output = node.corten(&["status"]).output().expect("unshare");
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("is `corten serve` running?"), "{}", text(&output.stderr));
}

#[test]
fn a_second_daemon_is_refused_by_pid_and_the_first_serves_on() {
    if !root("a_second_daemon_is_refused_by_pid_and_the_first_serves_on") {
        return;
    }
    let node = Node::new("");
    let first = node.start();
    for overrides in [vec!["serve"], vec!["--run-dir", "OTHER", "serve"]] {
        let other = node.path("other").display().to_string();
        let overrides: Vec<&str> =
            overrides.iter().map(|o| if *o == "OTHER" { other.as_str() } else { o }).collect();
        let child = node.corten(&overrides).stderr(Stdio::piped()).spawn().expect("unshare");
        let output = finish(child);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("is in use by corten (pid {})", first.pid())), "{said}");
    }
    node.says(&["status"]);
    assert_eq!(first.end(Signal::SIGINT).status.code(), Some(0), "{}", node.log());
}

#[test]
fn what_a_killed_daemon_leaves_hinders_nobody() {
    if !root("what_a_killed_daemon_leaves_hinders_nobody") {
        return;
    }
    let node = Node::new("[log]\nformat = \"json\"\n");
    node.start().end(Signal::SIGKILL);
    assert!(node.path("run/corten.sock").exists() && node.path("run/corten.pid").exists());
    let second = node.start();
    node.says(&["status"]);
    assert_eq!(second.end(Signal::SIGTERM).status.code(), Some(0), "{}", node.log());
    let log = node.log();
    assert!(log.lines().count() >= 2, "{log}");
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(entry["level"].is_string(), "{line}");
    }
}

#[test]
fn mistakes_are_told_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    fs::write(&file, "rum_dir = \"/x\"\n[server]\nworker_threads = 0\n").expect("write");
    let expected = format!(
        "{file}:1: unknown key \"rum_dir\"; did you mean \"run_dir\"?\n\
         {file}:3: server.worker_threads must be a whole number from 1 to 64, found 0\n\
         --set runtime: runtime: /etc/passwd is not executable\n",
        file = file.display()
    );
    for command in ["serve", "check", "config"] {
        let mut corten = Command::new(env!("CARGO_BIN_EXE_corten"));
        corten.arg("--config").arg(&file).args(["--set", "runtime=/etc/passwd", command]);
        let output = corten.output().expect("corten");
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(text(&output.stderr), expected, "{command}");
    }
}

#[test]
fn directories_that_cannot_be_written_are_told_together() {
    if !root("directories_that_cannot_be_written_are_told_together") {
        return;
    }
    let node = Node::new("");
    let disk = node.path("disk");
    fs::create_dir(&disk).expect("mkdir");
    let script = format!(
        "mount -t tmpfs -o ro none {disk} && exec {corten} --config {file} --root {disk}/s --run-dir {disk}/r serve",
        disk = disk.display(),
        corten = env!("CARGO_BIN_EXE_corten"),
        file = node.path("config.toml").display()
    );
    let output =
        Command::new("unshare").args(["--mount", "--", "sh", "-c", &script]).output().expect("unshare");
    let problem = format!("{} cannot be written: Read-only file system (os error 30)", disk.display());
    let expected = format!("--run-dir: run_dir: {problem}\n--root: state_dir: {problem}\n");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), expected));
}

#[test]
fn the_example_file_is_printed_even_with_a_broken_configuration() {
    let corten = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_corten")).args(arguments).output();
    let output = corten(&["--config", "/nowhere", "config", "--default"]).expect("corten");
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), include_str!("../../../contrib/config.toml"));
}

#[test]
fn what_cannot_be_written_is_a_failure() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("config.toml"), "").expect("write");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let mut command = Command::new(env!("CARGO_BIN_EXE_corten"));
    command.arg("--config").arg(dir.path().join("config.toml")).arg("config").stdout(full);
    let output = command.output().expect("corten");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("No space left on device"), "{}", text(&output.stderr));
}
