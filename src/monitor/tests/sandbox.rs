//! The pod's namespaces, sysctls and reaper; and clients that break the rules.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use monitor::protocol::{Failure, Reply, Request, VERSION};
use monitor::record;
use serde_json::json;
use support::{LIMIT, Pod, is_root, joined, lives, wait_until};

macro_rules! needs_root {
    ($name:literal) => {
        if !is_root() {
            eprintln!("SKIP {}: needs root", $name);
            return;
        }
    };
}

fn namespace(pid: u32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("namespace").to_string_lossy().into_owned()
}

#[test]
fn namespaces_and_sysctls() {
    needs_root!("namespaces_and_sysctls");
    let pod = Pod::with(json!({
        "version": 1, "hostname": "pod-a", "ipc": true, "pid": true,
        "sysctls": { "kernel.shmmax": "123456789", "fs/mqueue/msg_max": "17", "kernel.domainname": "here" },
        "some_later_field": 1,
    }))
    .expect("monitor");
    let (me, monitor) = (std::process::id(), pod.monitor_pid());
    for (name, own) in [("uts", true), ("ipc", true), ("net", false), ("mnt", false), ("pid", false)] {
        assert_eq!(namespace(me, name) != namespace(monitor, name), own, "{name}");
    }
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0;
    assert_ne!(namespace(reaper as u32, "pid"), namespace(monitor, "pid"));
    // containers of the pod see its command line: nothing of the node is in it
    let line = fs::read_to_string(format!("/proc/{reaper}/cmdline")).expect("cmdline");
    assert_eq!(line.trim_end_matches('\0'), "corten-reaper");
    let name = fs::read_to_string(format!("/proc/{monitor}/comm")).expect("comm");
    assert_eq!(name.trim(), "corten-monitor");
    let mut made = pod.bundle(&[
        "/bin/sh", "-c",
        "hostname; cat /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max /proc/sys/kernel/domainname; echo $$; cat /proc/1/comm",
    ]);
    made.bundle.set(
        "linux",
        "namespaces",
        json!([
            { "type": "pid", "path": format!("/proc/{reaper}/ns/pid") },
            { "type": "uts", "path": format!("/proc/{monitor}/ns/uts") },
            { "type": "ipc", "path": format!("/proc/{monitor}/ns/ipc") },
            { "type": "mount" },
        ]),
    );
    pod.start(&made);
    pod.exit(&made.id);
    let text = joined(&made.log, "stdout");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["pod-a", "123456789", "17", "here"]);
    assert_ne!(lines[4], "1");
    assert_eq!(lines[5], "corten-reaper");
    pod.shut_down();
    assert!(!lives(reaper));
}

#[test]
fn a_pod_in_a_user_namespace() {
    needs_root!("a_pod_in_a_user_namespace");
    let range = json!([{ "inside": 0, "outside": 100_000, "length": 65_536 }]);
    let pod = Pod::with(json!({
        "version": 1, "hostname": "pod-u", "ipc": true, "pid": true, "own_network": true,
        "user": { "uids": range, "gids": range },
        "sysctls": { "kernel.shmmax": "123456789", "fs/mqueue/msg_max": "17", "kernel.domainname": "here" },
    }))
    .expect("monitor");
    let (me, monitor) = (std::process::id(), pod.monitor_pid());
    // it stays out itself
    for (name, own) in [("user", false), ("uts", true), ("ipc", true), ("net", false), ("pid", false)] {
        assert_eq!(namespace(me, name) != namespace(monitor, name), own, "{name}");
    }
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0;
    let line = fs::read_to_string(format!("/proc/{reaper}/cmdline")).expect("cmdline");
    assert_eq!(line.trim_end_matches('\0'), "corten-reaper");
    let held = |number: i32| format!("/proc/{monitor}/fd/{number}");
    let mut made = pod.bundle(&[
        "/bin/sh",
        "-c",
        "cat /proc/self/uid_map; hostname; cat /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max; \
         hostname mine && ip addr add 10.9.8.7/8 dev lo && ip -o link show lo up | wc -l; \
         readlink /proc/1/ns/user /proc/self/ns/user | uniq | wc -l; stat -c %u /proc/1",
    ]);
    made.bundle.set(
        "linux",
        "namespaces",
        json!([
            { "type": "user", "path": held(monitor::protocol::USER_NAMESPACE_FD) },
            { "type": "network", "path": held(monitor::protocol::NETWORK_NAMESPACE_FD) },
            { "type": "pid", "path": format!("/proc/{reaper}/ns/pid") },
            { "type": "uts", "path": format!("/proc/{monitor}/ns/uts") },
            { "type": "ipc", "path": format!("/proc/{monitor}/ns/ipc") },
            { "type": "mount" },
        ]),
    );
    let all = json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"]);
    made.bundle.set(
        "process",
        "capabilities",
        json!({ "bounding": all, "effective": all, "permitted": all }),
    );
    pod.start(&made);
    pod.exit(&made.id);
    let text = joined(&made.log, "stdout");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"], "{text}");
    assert_eq!(lines[1..5], ["pod-u", "123456789", "17", "1"], "{text}");
    // the reaper's files in /proc may be nobody's, as those of all that must not be looked into
    assert!(["0", "65534"].contains(lines.last().unwrap()), "{text}");
    pod.shut_down();
    assert!(!lives(reaper));
}

/// What a container that may trace sees of process 1, one `name: text` a line.
const LOOK_AT_ONE: &str = "cd /proc/1; \
    echo root: $(ls -A root/); echo cwd: $(readlink cwd); echo mounts: $(cat mountinfo); echo fds: $(ls fd); \
    echo environ: $(tr -d '\\0' < environ); echo cmdline: $(tr -d '\\0' < cmdline); \
    echo caps: $(grep -h -E '^Cap|^NoNew' status | cut -f2); \
    touch root/x 2>/dev/null && echo written; echo looked: $(readlink ns/mnt | cut -d: -f1)";

/// Run [`LOOK_AT_ONE`] in a container of a pod with these capabilities.
fn look_at_one(pod: &Pod, user: &[serde_json::Value], capabilities: &[&str]) -> String {
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0;
    let mut made = pod.bundle(&["/bin/sh", "-c", LOOK_AT_ONE]);
    let mut namespaces =
        vec![json!({ "type": "pid", "path": format!("/proc/{reaper}/ns/pid") }), json!({ "type": "mount" })];
    namespaces.extend_from_slice(user);
    made.bundle.set("linux", "namespaces", json!(namespaces));
    let all = json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
    made.bundle.set("process", "capabilities", all);
    pod.start(&made);
    pod.exit(&made.id);
    joined(&made.log, "stdout")
}

fn named<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {text}")).trim()
}

/// The one mount of a mountinfo is a root that nothing can be written to.
fn assert_empty_root(mounts: &str) {
    assert!(mounts.matches(" - tmpfs ").count() == 1 && mounts.matches(" - ").count() == 1, "{mounts}");
    assert!(mounts.contains(" / / ro,"), "{mounts}");
}

/// What one that may not trace sees: mountinfo is everybody's.
fn assert_sees_nothing(text: &str) {
    for name in ["looked", "fds", "environ", "root"] {
        assert_eq!(named(text, name), "", "{name} in {text}");
    }
    assert_empty_root(named(text, "mounts"));
}

/// A network namespace, which a thread keeps for as long as this is there.
struct Network {
    path: String,
    work: Option<std::sync::mpsc::Sender<fn() -> String>>,
    results: std::sync::mpsc::Receiver<String>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Network {
    fn new() -> Network {
        let (work, todo) = std::sync::mpsc::channel::<fn() -> String>();
        let (tell, results) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare");
            tell.send(nix::unistd::gettid().to_string()).expect("tell");
            todo.iter().for_each(|work| tell.send(work()).expect("tell"));
        });
        let tid = results.recv().expect("tid");
        let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
        Network { path, work: Some(work), results, thread: Some(thread) }
    }

    /// What this comes to in it.
    fn inside(&self, work: fn() -> String) -> String {
        self.work.as_ref().expect("its thread").send(work).expect("its thread");
        self.results.recv().expect("a result")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.work = None;
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn the_reaper_shows_nothing_of_the_node() {
    needs_root!("the_reaper_shows_nothing_of_the_node");
    let network = Network::new();
    let netns = &network.path;
    let pod = Pod::with(json!({ "version": 1, "ipc": true, "pid": true, "netns": netns })).expect("monitor");
    let text = look_at_one(&pod, &[], &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    // it was really allowed to look
    assert_eq!(named(&text, "looked"), "mnt", "{text}");
    for (name, nothing) in [("root", ""), ("cwd", "/"), ("fds", ""), ("environ", "")] {
        assert_eq!(named(&text, name), nothing, "{name} in {text}");
    }
    assert_eq!(named(&text, "cmdline"), "corten-reaper");
    assert_empty_root(named(&text, "mounts"));
    assert!(!text.contains("written"), "{text}");
    let none = "0000000000000000 ".repeat(5);
    assert_eq!(named(&text, "caps"), format!("{none}1"), "{text}");
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0 as u32;
    assert_eq!(
        namespace(reaper, "net"),
        fs::read_link(netns).expect("netns").to_string_lossy(),
        "its network is the pod's"
    );
    // and one that may not trace sees nothing at all
    let text = look_at_one(&pod, &[], &[]);
    assert_sees_nothing(&text);
    pod.shut_down();
}

#[test]
fn the_reaper_of_a_user_namespace_cannot_be_looked_at() {
    needs_root!("the_reaper_of_a_user_namespace_cannot_be_looked_at");
    let range = json!([{ "inside": 0, "outside": 100_000, "length": 65_536 }]);
    let maps = json!({ "uids": range, "gids": range });
    let pod = Pod::with(json!({ "version": 1, "ipc": true, "pid": true, "own_network": true, "user": maps }))
        .expect("monitor");
    let user = format!("/proc/{}/fd/{}", pod.monitor_pid(), monitor::protocol::USER_NAMESPACE_FD);
    let all = ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"];
    let text = look_at_one(&pod, &[json!({ "type": "user", "path": user })], &all);
    assert_sees_nothing(&text);
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0;
    let mounts = fs::read_to_string(format!("/proc/{reaper}/mountinfo")).expect("mountinfo");
    assert_empty_root(&mounts);
    let held =
        fs::read_link(format!("/proc/{}/fd/{}", pod.monitor_pid(), monitor::protocol::NETWORK_NAMESPACE_FD));
    assert_eq!(namespace(reaper as u32, "net"), held.expect("held").to_string_lossy());
    pod.shut_down();
}

/// The disk of its own log may be the full one that it complains of.
#[test]
fn a_complaint_that_cannot_be_written_is_no_end() {
    needs_root!("a_complaint_that_cannot_be_written_is_no_end");
    let pod = Pod::with(json!({ "version": 1, "pid": true })).expect("monitor");
    let limited =
        Command::new("prlimit").arg(format!("--pid={}", pod.monitor_pid())).arg("--fsize=0").status();
    if !limited.is_ok_and(|status| status.success()) {
        eprintln!("SKIP a_complaint_that_cannot_be_written_is_no_end: needs prlimit(1)");
        return;
    }
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0;
    let pid = nix::unistd::Pid::from_raw(reaper);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    wait_until("the reaper is reaped", || !std::path::Path::new(&format!("/proc/{reaper}")).exists());
    assert!(pod.state().is_empty());
    assert_eq!(pod.complaints(), "");
    pod.shut_down();
}

#[test]
fn bad_sysctls_are_named() {
    needs_root!("bad_sysctls_are_named");
    for (name, value) in [
        ("kernel.shmmax", "many"),
        ("vm.swappiness", "1"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.no_such", "1"),
        ("../../etc/passwd", "x"),
    ] {
        let sandbox = json!({ "version": 1, "ipc": true, "pid": true, "sysctls": { name: value } });
        let error = Pod::with(sandbox).err().expect("refused");
        let told: Failure = serde_json::from_str(&error).expect("a failure");
        assert!(told.message.contains(name), "{name}: {error}");
        assert_eq!(told.kind, "invalid", "{name}: {error}");
    }
}

#[test]
fn net_sysctls_go_to_the_pods_network() {
    needs_root!("net_sysctls_go_to_the_pods_network");
    let network = Network::new();
    let netns = &network.path;
    let sandbox =
        |value: &str| json!({ "version": 1, "netns": netns, "sysctls": { "net.core.somaxconn": value } });
    let pod = Pod::with(sandbox("77")).expect("monitor");
    assert_eq!(namespace(std::process::id(), "net"), namespace(pod.monitor_pid(), "net"));
    let error = Pod::with(sandbox("x")).err().expect("refused");
    let told: Failure = serde_json::from_str(&error).expect("a failure");
    assert!(told.message.contains("net.core.somaxconn"), "{error}");
    assert_eq!(told.kind, "invalid", "{error}");
    pod.shut_down();
    let read = || fs::read_to_string("/proc/sys/net/core/somaxconn").expect("sysctl");
    assert_eq!(network.inside(read).trim(), "77");
}

#[test]
fn the_reaper_dies_with_its_monitor() {
    needs_root!("the_reaper_dies_with_its_monitor");
    let pod = Pod::with(json!({ "version": 1, "pid": true })).expect("monitor");
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0;
    let monitor = nix::unistd::Pid::from_raw(pod.monitor_pid() as i32);
    nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGKILL).expect("kill");
    wait_until("its end", || !lives(reaper));
}

#[test]
fn a_directory_without_sandbox_is_told() {
    let error = Pod::with(json!("nonsense")).err().expect("refused");
    assert!(error.contains("sandbox.json"), "{error}");
}

#[test]
fn hostile_clients_hurt_only_themselves() {
    let pod = Pod::new();
    let socket = pod.dir.join("monitor.sock");
    let connect = || sys::socket::connect(&socket).expect("connect");
    let mut kept: Vec<UnixStream> = Vec::new();
    for bytes in [
        u32::MAX.to_le_bytes().to_vec(),
        b"\x10\0\0\0half".to_vec(),
        b"\x02\0\0\0{}extra".to_vec(),
        b"\x03\0\0\0{{{".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        Vec::new(),
    ] {
        let mut client = connect();
        client.write_all(&bytes).expect("write");
        kept.push(client);
    }
    // A flood of descriptors.
    let client = connect();
    let null = fs::File::open("/dev/null").expect("null");
    let many = [(); 8].map(|()| std::os::fd::AsFd::as_fd(&null));
    sys::socket::send(std::os::fd::AsFd::as_fd(&client), b"\x40\0\0\0", &many).expect("send");
    let Reply::State { version, containers } = pod.call(&Request::State) else { panic!("no state") };
    assert_eq!((version, containers.len()), (VERSION, 0));
    for (at, closed) in [(0, true), (2, true), (4, true), (1, false), (5, false)] {
        kept[at].set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        let read = kept[at].read(&mut [0; 64]);
        let is_closed = matches!(&read, Ok(0))
            || matches!(&read, Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset);
        assert_eq!(is_closed, closed, "{at}: {read:?}");
    }
    pod.shut_down();
}

#[test]
fn requests_of_a_later_version_are_told_apart() {
    let pod = Pod::new();
    let mut client = sys::socket::connect(&pod.dir.join("monitor.sock")).expect("connect");
    let text = br#"{"request":"hibernate","container":"x"}"#;
    client.write_all(&(text.len() as u32).to_le_bytes()).expect("write");
    client.write_all(text).expect("write");
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).expect("read");
    let text = String::from_utf8_lossy(&reply[4..]).into_owned();
    assert!(text.contains("unsupported") && text.contains("hibernate"), "{text}");
}

#[test]
fn a_slow_watcher_blocks_nobody() {
    needs_root!("a_slow_watcher_blocks_nobody");
    let pod = Pod::new();
    let idle: Vec<_> = (0..20).map(|_| pod.watch()).collect();
    let (made, _) = pod.run("exit 3");
    assert_eq!(pod.exit(&made.id).code, 3);
    let deadline = Instant::now() + LIMIT;
    for mut watch in idle {
        let mut told = false;
        while !told {
            told = matches!(watch.receive(deadline).expect("reply"), Reply::Exited { .. });
        }
    }
    pod.shut_down();
}
