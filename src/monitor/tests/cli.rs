//! The OCI command line on real bundles: life cycles, exit codes, signals, terminals.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use support::{Bundle, RUNTIME, is_root, lives, wait_until};

/// A root of containers with one bundle.
struct Node {
    scratch: tempfile::TempDir,
    bundle: Bundle,
}

impl Node {
    /// `None`, said on stderr: this test cannot run.
    fn new(test: &str, args: &[&str]) -> Option<Node> {
        if !is_root() {
            eprintln!("SKIP {test}: needs root");
            return None;
        }
        let scratch = tempfile::tempdir().expect("scratch");
        let dir = scratch.path().join("bundle");
        fs::create_dir(&dir).expect("mkdir");
        Some(Node { bundle: Bundle::new(&dir, args), scratch })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(RUNTIME);
        command.arg("--root").arg(self.path("root")).arg("--log").arg(self.path("log.json"));
        command.args(["--log-format", "json"]).args(args).current_dir(&self.bundle.dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("runs")
    }

    /// As `call`, for a command that leaves a process behind: that one must not hold a pipe of this test.
    fn leave(&self, args: &[&str]) -> (Option<i32>, String) {
        let err = fs::File::create(self.path("err")).expect("err");
        let status = self.command(args).stdout(Stdio::null()).stderr(err).status().expect("runs");
        (status.code(), fs::read_to_string(self.path("err")).expect("err"))
    }

    fn text(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What it says when it fails; exit status 1.
    fn failure(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        let log = fs::read_to_string(self.path("log.json")).expect("log");
        let last: Value = serde_json::from_str(log.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["level"], "error");
        assert_eq!(format!("corten-runtime: {}\n", last["msg"].as_str().expect("msg")), text);
        text
    }

    /// Make the container with its output in a file: it is held as long as it lives.
    fn create(&self, id: &str) {
        let out = fs::File::create(self.path("out")).expect("out");
        let mut command = self.command(&["create", "--pid-file", "pid", id]);
        let status = command.stdout(out).stderr(Stdio::inherit()).status().expect("runs");
        assert!(status.success());
    }

    fn out(&self) -> String {
        fs::read_to_string(self.path("out")).expect("out")
    }

    fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.text(&["state", id])).expect("JSON")
    }

    fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().expect("status").to_owned()
    }

    fn is_clean(&self) -> bool {
        let left = fs::read_dir(self.path("root"))
            .expect("root")
            .filter_map(|e| e.ok()?.file_name().into_string().ok());
        left.filter(|name| name != ".seccomp").count() == 0 && !self.bundle.cgroup.exists().expect("look")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for id in self.call(&["list", "-q"]).stdout.split(|b| *b == b'\n').filter(|id| !id.is_empty()) {
            let _ = self.call(&["delete", "--force", &String::from_utf8_lossy(id)]);
        }
    }
}

macro_rules! node {
    ($test:literal, $script:expr) => {
        match Node::new($test, &["/bin/sh", "-c", $script]) {
            Some(node) => node,
            None => return,
        }
    };
}

#[test]
fn create_start_state_kill_delete() {
    let node = node!("create_start_state_kill_delete", "echo started; exec sleep 600");
    node.create("c1");
    let pid: i32 =
        fs::read_to_string(node.bundle.dir.join("pid")).expect("pid file").parse().expect("a number");
    let state = node.state("c1");
    assert_eq!(
        (&state["status"], &state["pid"], &state["id"]),
        (&json!("created"), &json!(pid), &json!("c1"))
    );
    assert_eq!(state["bundle"], json!(node.bundle.dir));
    assert_eq!(node.out(), "", "it waits for its start");
    assert!(node.failure(&["create", "c1"]).contains("exists already"));
    node.text(&["start", "c1"]);
    wait_until("its text", || node.out() == "started\n");
    assert_eq!(node.status("c1"), "running");
    assert!(node.failure(&["start", "c1"]).contains("running"));
    assert!(node.failure(&["delete", "c1"]).contains("must be stopped"));
    let list: Value = serde_json::from_str(&node.text(&["list", "--format", "json"])).expect("JSON");
    assert_eq!((list[0]["id"].as_str(), list[0]["status"].as_str()), (Some("c1"), Some("running")));
    assert!(node.text(&["list"]).lines().nth(1).expect("a row").starts_with("c1 "));
    assert_eq!(node.text(&["list", "-q"]), "c1\n");
    let pids: Vec<i32> = serde_json::from_str(&node.text(&["ps", "-f", "json", "c1"])).expect("JSON");
    assert_eq!(pids, [pid]);
    node.text(&["kill", "c1", "KILL"]);
    wait_until("its end", || node.status("c1") == "stopped");
    assert_eq!(node.state("c1")["pid"], 0);
    assert!(node.failure(&["kill", "c1"]).contains("not running"));
    node.text(&["delete", "c1"]);
    assert!(node.is_clean());
    assert!(node.failure(&["state", "c1"]).contains("does not exist"));
    assert!(node.failure(&["delete", "c1"]).contains("does not exist"));
    node.text(&["delete", "--force", "c1"]);
}

#[test]
fn run_returns_the_exit_code_and_cleans_up() {
    let node = node!("run_returns_the_exit_code_and_cleans_up", "cat; echo err >&2; exit 42");
    let mut child = node.command(&["run", "c1"]).stdin(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("stdin").write_all(b"through\n").expect("write");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(42));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"through\n"[..], &b"err\n"[..]));
    assert!(node.is_clean());
    node.call(&["run", "--keep", "c2"]);
    assert_eq!(node.status("c2"), "stopped");
    node.text(&["delete", "c2"]);
    assert!(node.is_clean());
}

#[test]
fn hooks_of_the_node_run_after_start_and_end() {
    let test = "hooks_of_the_node_run_after_start_and_end";
    let Some(mut node) = Node::new(test, &["/bin/sleep", "0.2"]) else { return };
    let said = node.path("said");
    let hook = |name: &str| {
        let exit = if name == "poststop" { 1 } else { 0 };
        let script = format!("echo {name} >> {}; exit {exit}", said.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    node.bundle.config["hooks"] = json!({ "poststart": hook("poststart"), "poststop": hook("poststop") });
    node.bundle.write();
    assert!(node.call(&["run", "c1"]).status.success(), "that poststop fails is only reported");
    assert_eq!(fs::read_to_string(&said).expect("said"), "poststart\npoststop\n");
    node.create("c2");
    assert_eq!(fs::read_to_string(&said).expect("said").lines().count(), 2, "not before the start");
    node.text(&["start", "c2"]);
    assert_eq!(fs::read_to_string(&said).expect("said").lines().count(), 3);
    node.text(&["delete", "--force", "c2"]);
    let log = fs::read_to_string(node.path("log.json")).expect("log");
    assert!(log.contains("run poststop hook"), "{log}");
    assert!(node.is_clean());
}

#[test]
fn a_failed_poststart_hook_stops_the_container() {
    let test = "a_failed_poststart_hook_stops_the_container";
    let Some(mut node) = Node::new(test, &["/bin/sleep", "600"]) else { return };
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 3"] }]);
    node.bundle.config["hooks"] = json!({ "poststart": failing });
    node.bundle.write();
    assert!(node.failure(&["run", "c1"]).contains("run poststart hook"));
    assert!(node.is_clean());
    node.create("c2");
    assert!(node.failure(&["start", "c2"]).contains("no luck"));
    assert_eq!(node.status("c2"), "stopped");
    node.text(&["delete", "c2"]);
    assert!(node.is_clean());
}

#[test]
fn the_config_of_the_creation_is_the_one_that_counts() {
    let test = "the_config_of_the_creation_is_the_one_that_counts";
    let Some(mut node) = Node::new(test, &["/bin/sleep", "600"]) else { return };
    let said = node.path("said");
    let hooks = |which: &str| {
        let hook = |name: &str| {
            let script = format!("echo {which} {name} >> {}", said.display());
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
        };
        json!({ "poststart": hook("poststart"), "poststop": hook("poststop") })
    };
    let logs = json!({ "defaultAction": "SCMP_ACT_LOG", "architectures": [], "syscalls": [] });
    node.bundle.config["hooks"] = hooks("old");
    node.bundle.config["process"]["env"] = json!(["PATH=/usr/bin:/bin", "WHICH=old"]);
    node.bundle.config["linux"]["seccomp"] = logs;
    node.bundle.write();
    node.create("c1");
    node.bundle.config["hooks"] = hooks("new");
    node.bundle.config["process"]["env"] = json!(["PATH=/usr/bin:/bin", "WHICH=new"]);
    node.bundle.config["linux"]["seccomp"] = Value::Null;
    node.bundle.write();
    node.text(&["start", "c1"]);
    let script = "echo $WHICH; grep ^Seccomp: /proc/self/status";
    assert_eq!(node.text(&["exec", "c1", "/bin/sh", "-c", script]), "old\nSeccomp:\t2\n");
    // nor does it have to be there
    fs::remove_file(node.bundle.dir.join("config.json")).expect("remove");
    assert_eq!(node.text(&["exec", "c1", "/bin/sh", "-c", "echo $WHICH"]), "old\n");
    node.text(&["delete", "--force", "c1"]);
    assert_eq!(fs::read_to_string(&said).expect("said"), "old poststart\nold poststop\n");
    assert!(node.is_clean());
}

#[test]
fn warnings_are_told_where_no_log_is_named() {
    let Some(mut node) = Node::new("warnings_are_told_where_no_log_is_named", &["/bin/true"]) else { return };
    node.bundle.config["hooks"] = json!({ "poststop": [{ "path": "/bin/false" }] });
    node.bundle.write();
    let mut command = Command::new(RUNTIME);
    command.arg("--root").arg(node.path("root")).args(["run", "c1"]).current_dir(&node.bundle.dir);
    let output = command.stdin(Stdio::null()).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("warning: run poststop hook"), "{text}");
    let (_, quiet) = node.leave(&["run", "c1"]);
    assert_eq!(quiet, "", "it is in the log");
}

/// A container whose `create` is in a hook that takes for ever, and what tells that the hook has begun and still runs.
fn in_a_hook(test: &str) -> Option<(Node, Child, i32)> {
    let mut node = Node::new(test, &["/bin/sleep", "600"])?;
    let pid = node.path("hook");
    let script = format!("echo $$ > {0}.new && mv {0}.new {0} && exec sleep 600", pid.display());
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }]);
    node.bundle.config["hooks"] = json!({ "createRuntime": hook });
    node.bundle.write();
    let create = node.command(&["create", "c1"]).stderr(Stdio::null()).spawn().expect("runs");
    wait_until("the hook", || pid.exists());
    let hook = fs::read_to_string(&pid).expect("pid").trim().parse().expect("a number");
    Some((node, create, hook))
}

#[test]
fn what_is_being_made_is_deleted_by_force_only() {
    let test = "what_is_being_made_is_deleted_by_force_only";
    let Some((node, mut create, hook)) = in_a_hook(test) else { return };
    assert_eq!(node.status("c1"), "creating");
    assert!(node.failure(&["delete", "c1"]).contains("\"c1\" is creating"));
    assert!(lives(hook));
    node.text(&["delete", "--force", "c1"]);
    assert_eq!(create.wait().expect("ends").code(), Some(1));
    assert!(!lives(hook) && node.is_clean());
}

#[test]
fn what_a_killed_create_has_begun_is_found() {
    let Some((node, mut create, hook)) = in_a_hook("what_a_killed_create_has_begun_is_found") else { return };
    create.kill().expect("kill");
    create.wait().expect("ends");
    assert_eq!(node.status("c1"), "creating", "its builder goes on");
    node.text(&["delete", "--force", "c1"]);
    assert!(!lives(hook) && node.is_clean());
}

#[test]
fn what_a_killed_builder_has_left_is_stopped() {
    let Some((node, mut create, hook)) = in_a_hook("what_a_killed_builder_has_left_is_stopped") else {
        return;
    };
    // the hook's parent
    let stat = fs::read_to_string(format!("/proc/{hook}/status")).expect("status");
    let builder = stat.lines().find_map(|l| l.strip_prefix("PPid:")?.trim().parse().ok()).expect("PPid");
    create.kill().expect("kill");
    create.wait().expect("ends");
    let builder = sys::process::pidfd_open(builder).expect("builder");
    sys::process::pidfd_signal(builder.as_fd(), 9).expect("kill");
    wait_until("nobody makes it", || node.status("c1") == "stopped");
    node.text(&["delete", "c1"]);
    assert!(node.is_clean());
    let hook = sys::process::pidfd_open(hook).expect("nobody is left to end it");
    sys::process::pidfd_signal(hook.as_fd(), 9).expect("kill");
}

#[test]
fn what_cannot_run_leaves_nothing() {
    let Some(mut node) = Node::new("what_cannot_run_leaves_nothing", &["/no/such"]) else { return };
    for command in ["run", "create"] {
        // A container that waits for its start may find out only then.
        let (code, text) = node.leave(&[command, "c1"]);
        if code == Some(0) {
            assert!(node.failure(&["start", "c1"]).contains("/no/such"));
            wait_until("its end", || node.status("c1") == "stopped");
            node.text(&["delete", "c1"]);
        } else {
            assert!(text.contains("/no/such") && text.contains("no such file"), "{text}");
        }
        assert!(node.is_clean());
    }
    node.bundle.set("process", "nonsense", json!(1));
    fs::write(node.bundle.dir.join("config.json"), "{").expect("write");
    assert!(node.failure(&["run", "c1"]).contains("config.json"));
    fs::write(node.bundle.dir.join("config.json"), "[]").expect("write");
    assert!(node.failure(&["run", "c1"]).contains("is not a JSON object"));
    fs::remove_file(node.bundle.dir.join("config.json")).expect("remove");
    assert!(node.failure(&["run", "c1"]).contains("no such file"));
    assert!(!node.path("root").exists() || node.is_clean());
}

#[test]
fn what_is_effective_must_be_permitted() {
    let mut node = node!("what_is_effective_must_be_permitted", "true");
    let chown = json!(["CAP_CHOWN"]);
    node.bundle.set(
        "process",
        "capabilities",
        json!({ "bounding": chown, "effective": chown, "permitted": [] }),
    );
    assert!(node.failure(&["run", "c1"]).contains("CAP_CHOWN"));
    assert!(node.is_clean());
}

#[test]
fn a_mount_on_the_other_kind_is_the_config_s_fault() {
    let mut node = node!("a_mount_on_the_other_kind_is_the_config_s_fault", "true");
    let mounts = node.bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(
        json!({ "destination": "/proc/version", "type": "bind", "source": "/usr", "options": ["bind"] }),
    );
    node.bundle.write();
    let text = node.failure(&["run", "c1"]);
    assert!(text.contains("/proc/version") && text.contains("not a directory"), "{text}");
    assert!(node.is_clean());
}

#[test]
fn every_command_has_help() {
    let output = Command::new(RUNTIME).args(["run", "--help"]).output().expect("runs");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Usage:"));
}

#[test]
fn a_created_container_can_be_deleted() {
    let node = node!("a_created_container_can_be_deleted", "echo never");
    node.create("c1");
    let pid = node.state("c1")["pid"].as_i64().expect("pid") as i32;
    node.text(&["delete", "c1"]);
    assert!(!lives(pid) && node.is_clean());
    node.create("c2");
    node.text(&["kill", "c2", "9"]);
    wait_until("its end", || node.status("c2") == "stopped");
    assert!(node.failure(&["start", "c2"]).contains("stopped"));
    node.text(&["delete", "c2"]);
    assert_eq!(node.out(), "");
}

fn started(node: &Node, id: &str) -> Child {
    let out = fs::File::create(node.path("out")).expect("out");
    let child = node.command(&["run", id]).stdout(out).spawn().expect("runs");
    wait_until("its text", || node.out().contains("ready\n"));
    child
}

#[test]
fn run_forwards_signals() {
    let node = node!(
        "run_forwards_signals",
        "trap 'echo got TERM; exit 3' TERM; trap 'echo got USR1' USR1; echo ready; while :; do sleep 0.05; done"
    );
    let mut child = started(&node, "c1");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).expect("kill");
    wait_until("USR1", || node.out().contains("got USR1"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
    assert_eq!(child.wait().expect("ends").code(), Some(3));
    assert!(node.out().contains("got TERM") && node.is_clean());
}

#[test]
fn a_kill_without_a_pid_namespace_ends_all_of_it() {
    let mut node = node!("a_kill_without_a_pid_namespace_ends_all_of_it", "sleep 600 & echo ready; wait");
    let namespaces = node.bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.retain(|namespace| namespace["type"] != "pid");
    node.bundle.write();
    node.create("c1");
    node.text(&["start", "c1"]);
    wait_until("its text", || node.out() == "ready\n");
    node.text(&["kill", "c1", "0"]);
    let cgroup = &node.bundle.cgroup;
    node.text(&["kill", "c1", "TERM"]);
    wait_until("its end", || node.status("c1") == "stopped");
    assert_eq!(cgroup.processes().expect("processes").len(), 1, "another signal is for init alone");
    assert!(node.failure(&["kill", "c1", "0"]).contains("not running"));
    node.text(&["delete", "c1"]);
    assert!(node.is_clean());
    node.create("c1");
    node.text(&["start", "c1"]);
    wait_until("its text", || node.out() == "ready\n");
    node.text(&["kill", "c1", "KILL"]);
    wait_until("the end of all", || cgroup.processes().expect("processes").is_empty());
}

#[test]
fn a_cgroup_that_another_has_taken_over_is_left_alone() {
    let node = node!("a_cgroup_that_another_has_taken_over_is_left_alone", "echo ready; exec sleep 600");
    node.create("old");
    node.text(&["start", "old"]);
    node.text(&["kill", "old", "KILL"]);
    wait_until("its end", || node.status("old") == "stopped");
    node.create("new");
    node.text(&["start", "new"]);
    node.text(&["delete", "old"]);
    assert_eq!(node.status("new"), "running");
    node.text(&["delete", "--force", "new"]);
    assert!(node.is_clean());
}

#[test]
fn a_container_below_the_cgroup_of_an_ended_one_is_not_killed() {
    let test = "a_container_below_the_cgroup_of_an_ended_one_is_not_killed";
    let Some(mut node) = Node::new(test, &["/bin/sleep", "600"]) else { return };
    node.create("above");
    node.text(&["start", "above"]);
    node.text(&["kill", "above", "KILL"]);
    wait_until("its end", || node.status("above") == "stopped");
    node.bundle.set("linux", "cgroupsPath", json!(format!("{}/below", node.bundle.cgroup.path())));
    node.create("below");
    node.text(&["start", "below"]);
    let refusal = node.failure(&["delete", "above"]);
    assert!(refusal.contains("container \"below\" is in a cgroup below its own"), "{refusal}");
    assert_eq!(node.status("below"), "running");
    node.text(&["delete", "--force", "below"]);
    node.text(&["delete", "above"]);
    assert!(node.is_clean());
}

#[test]
fn pause_resume_update_exec() {
    let node = node!("pause_resume_update_exec", "echo ready; while :; do sleep 0.05; done");
    let mut child = started(&node, "c1");
    let output =
        node.call(&["exec", "-e", "A=b", "--cwd", "/usr", "c1", "/bin/sh", "-c", "echo $A; pwd; exit 5"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(5), &b"b\n/usr\n"[..]));
    let output = node.call(&["exec", "c1", "/no/such"]);
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such"));
    let left = node.leave(&["exec", "-d", "--pid-file", "exec.pid", "c1", "sleep", "600"]);
    assert_eq!(left, (Some(0), String::new()));
    let pid: i32 =
        fs::read_to_string(node.bundle.dir.join("exec.pid")).expect("pid file").parse().expect("a number");
    assert!(node.bundle.cgroup.processes().expect("processes").contains(&pid));
    let odd = |name: &str, text: &str| {
        fs::write(node.path(name), text).expect(name);
        node.path(name).to_str().expect("UTF-8").to_owned()
    };
    let output = node.call(&["exec", "-t", "--process", &odd("process.json", "[]"), "c1"]);
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    let resources = odd("resources.json", r#"{"memory": 5}"#);
    assert!(node.failure(&["update", "-r", &resources, "--memory", "64m", "c1"]).contains("memory"));
    node.text(&["update", "--memory", "64m", "c1"]);
    let limit = node.bundle.cgroup.usage().expect("usage").memory_limit;
    assert_eq!(limit, Some(64 << 20));
    node.text(&["pause", "c1"]);
    assert_eq!(node.status("c1"), "paused");
    assert!(node.failure(&["pause", "c1"]).contains("paused"));
    node.text(&["resume", "c1"]);
    assert_eq!(node.status("c1"), "running");
    node.text(&["pause", "c1"]);
    node.text(&["delete", "--force", "c1"]);
    assert!(!lives(pid));
    child.wait().expect("ends");
    assert!(node.is_clean());
}

/// Both sides of a new terminal.
fn terminal() -> (OwnedFd, OwnedFd) {
    let pair = nix::pty::openpty(None, None).expect("openpty");
    (pair.master, pair.slave)
}

fn with_terminal(node: &mut Node) {
    node.bundle.config["mounts"].as_array_mut().expect("mounts").extend([
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] }),
    ]);
    node.bundle.set("process", "terminal", json!(true));
}

#[test]
fn run_relays_a_terminal() {
    let mut node =
        node!("run_relays_a_terminal", "test -t 0 && echo ready; read line; echo \"<$line>\"; exit 6");
    with_terminal(&mut node);
    let (master, slave) = terminal();
    let mut command = node.command(&["run", "c1"]);
    let copy = || Stdio::from(slave.as_fd().try_clone_to_owned().expect("clone"));
    let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().expect("runs");
    drop((command, slave));
    let mut master = fs::File::from(master);
    let mut text = String::new();
    let mut read_to = |master: &mut fs::File, end: &str| {
        let mut part = [0; 256];
        while !text.contains(end) {
            let count = master.read(&mut part).expect("read");
            text.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        text.clone()
    };
    read_to(&mut master, "ready");
    master.write_all(b"typed\r").expect("type");
    let text = read_to(&mut master, "<typed>");
    assert!(!text.contains("corten-runtime:"), "{text}");
    assert_eq!(child.wait().expect("ends").code(), Some(6));
    assert!(node.is_clean());
}

#[test]
fn a_terminal_that_nobody_has_open_for_a_while_goes_on() {
    let mut node = node!(
        "a_terminal_that_nobody_has_open_for_a_while_goes_on",
        "exec </dev/null >/dev/null 2>&1; sleep 1; echo again >/dev/tty; exit 5"
    );
    with_terminal(&mut node);
    let (master, slave) = terminal();
    let mut command = node.command(&["run", "c1"]);
    let copy = || Stdio::from(slave.as_fd().try_clone_to_owned().expect("clone"));
    let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().expect("runs");
    drop((command, slave));
    assert_eq!(child.wait().expect("ends").code(), Some(5));
    let (mut text, mut part) = (Vec::new(), [0; 256]);
    let mut master = fs::File::from(master);
    // the end of a terminal is EIO
    while let Ok(count @ 1..) = master.read(&mut part) {
        text.extend_from_slice(&part[..count]);
    }
    assert!(String::from_utf8_lossy(&text).contains("again"), "{:?}", String::from_utf8_lossy(&text));
}

#[test]
fn create_sends_the_terminal_to_its_socket() {
    let mut node =
        node!("create_sends_the_terminal_to_its_socket", "test -t 1 && echo a terminal; sleep 600");
    with_terminal(&mut node);
    assert!(node.failure(&["create", "c1"]).contains("--console-socket"));
    let socket = node.path("console.sock");
    let listener = sys::socket::listen(&socket).expect("listen");
    let path = socket.to_string_lossy().into_owned();
    assert_eq!(node.leave(&["create", "--console-socket", &path, "c1"]).0, Some(0));
    let (stream, _) = listener.accept().expect("accept");
    let (mut name, mut fds) = ([0; 64], Vec::new());
    sys::socket::receive(stream.as_fd(), &mut name, &mut fds).expect("receive");
    let mut master = fs::File::from(fds.pop().expect("the master side"));
    node.text(&["start", "c1"]);
    let mut text = [0; 64];
    let count = master.read(&mut text).expect("read");
    assert_eq!(&text[..count], b"a terminal\r\n");
    node.text(&["delete", "-f", "c1"]);
    assert!(node.is_clean());
}

#[test]
fn spec_and_features() {
    let Some(node) = Node::new("spec_and_features", &["/bin/true"]) else { return };
    let dir = node.path("new");
    fs::create_dir(&dir).expect("mkdir");
    let path = dir.to_string_lossy().into_owned();
    node.text(&["spec", "--bundle", &path]);
    executor::load(dir.as_path().into()).expect("a spec that this runtime takes");
    assert!(node.failure(&["spec", "--bundle", &path]).contains("file exists"));
    let features: Value = serde_json::from_str(&node.text(&["features"])).expect("JSON");
    for what in ["seccomp", "apparmor", "selinux"] {
        assert_eq!(features["linux"][what]["enabled"], true, "{what}");
    }
}

#[test]
fn a_stderr_that_is_full_does_not_change_the_exit_status() {
    let Some(node) = Node::new("a_stderr_that_is_full_does_not_change_the_exit_status", &["/bin/true"])
    else {
        return;
    };
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let status = node.command(&["state", "nobody"]).stderr(full()).status().expect("runs");
    assert_eq!(status.code(), Some(1));
    assert!(fs::read_to_string(node.path("log.json")).expect("log").contains("nobody"));
    let status = Command::new(RUNTIME).arg("monitor").stderr(full()).status().expect("runs");
    assert_eq!(status.code(), Some(1));
}

/// A container that could write to `/proc/<pid>/exe` would have the node (CVE-2019-5736).
#[test]
fn the_runtime_s_own_file_cannot_be_written_through_a_container() {
    let test = "the_runtime_s_own_file_cannot_be_written_through_a_container";
    let Some(node) = Node::new(test, &["/bin/true"]) else { return };
    node.create("c1");
    let pid = &node.state("c1")["pid"];
    // Its init waits at the gate: its program is still ours. (An open would tell that it runs, ETXTBSY, before all else.)
    let mount = nix::sys::statvfs::statvfs(format!("/proc/{pid}/exe").as_str()).expect("statvfs").flags();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("comm");
    node.text(&["delete", "--force", "c1"]);
    assert!(mount.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{mount:?}");
    assert_eq!(name, "corten-runtime\n");
}
