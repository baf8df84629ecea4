//! Where the tests take place: network and mount namespaces of their own, with tmpfs for everything that is written.
//!
//! A test calls [`private`] first. The test program then runs itself again under `unshare` for that one test; what it
//! makes (links, rules, mounts, pins) goes with the namespaces, whatever the test does.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use network::{Attachment, BridgeNetwork, Network, Settings, default_conflist};

const MARK: &str = "CORTEN_TEST_PRIVATE";

/// Runs the test `name` in namespaces of its own. `true`: this is the inner run, go on; `false`: it is over.
pub(crate) fn private(name: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        let run = |program: &str, args: &[&str]| must(Command::new(program).args(args));
        run("ip", &["link", "set", "lo", "up"]);
        std::fs::create_dir_all("/run/netns").unwrap();
        run("mount", &["-t", "tmpfs", "none", "/run/netns"]);
        return true;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP {name}: needs root for namespaces");
        return false;
    }
    let exe = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(exe)
        .args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespaces: {status}");
    false
}

/// Runs a command that has to succeed; its standard output.
pub(crate) fn must(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{out}{err}");
    out.into_owned()
}

/// `ip` with these arguments.
pub(crate) fn ip(args: &str) -> String {
    must(Command::new("ip").args(args.split_whitespace()))
}

/// Waits until `what` holds, at most a minute: the machine may be slow.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A scratch node: directories, our bridge network, and a handle.
pub(crate) struct Node {
    pub(crate) root: tempfile::TempDir,
    pub(crate) settings: Settings,
    pub(crate) network: Network,
}

pub(crate) fn bridge_program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_corten-bridge"))
}

impl Node {
    /// A node without a network configuration.
    pub(crate) fn bare() -> Node {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let settings = Settings {
            config_dir: at("net.d"),
            bin_dirs: vec![at("bin"), bridge_program().parent().unwrap().to_owned()],
            state_dir: at("state"),
            netns_dir: PathBuf::from("/run/netns"),
            deadline: Duration::from_secs(60),
        };
        std::fs::create_dir_all(&settings.config_dir).unwrap();
        std::fs::create_dir_all(at("bin")).unwrap();
        Node { network: Network::new(settings.clone()), settings, root }
    }

    /// A node with our bridge network.
    pub(crate) fn bridged() -> Node {
        Node::with_firewall("auto")
    }

    /// The same, with rules by one certain program.
    pub(crate) fn with_firewall(firewall: &str) -> Node {
        let node = Node::bare();
        let subnets = ["10.88.0.0/16".to_owned(), "fd00:88::/64".to_owned()];
        let data = node.data_dir();
        let list = BridgeNetwork { name: "pods", bridge: "corten0", subnets: &subnets, data_dir: &data };
        let text = default_conflist(&list);
        let chosen = format!("\"firewall\": {firewall:?}, \"ipMasq\": true");
        node.configure("10-corten.conflist", &text.replace("\"ipMasq\": true", &chosen));
        node
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.path().join("bridge")
    }

    pub(crate) fn configure(&self, name: &str, text: &str) {
        std::fs::write(self.settings.config_dir.join(name), text).unwrap();
    }

    /// Changes the text of our bridge network's configuration.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let path = self.settings.config_dir.join("10-corten.conflist");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
    }

    /// A plugin that is a shell script.
    pub(crate) fn script(&self, name: &str, body: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.root.path().join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A fresh handle, as a restarted daemon has.
    pub(crate) fn restarted(&self) -> Network {
        Network::new(self.settings.clone())
    }
}

/// A pod without wishes. Its id is of this process: plugins are found by it, and other tests run beside this one.
pub(crate) fn pod(number: u8) -> Attachment {
    let mut bytes = [number; 32];
    bytes[..4].copy_from_slice(&std::process::id().to_be_bytes());
    Attachment {
        pod: oci::PodId::from_random(bytes),
        name: format!("pod-{number}"),
        namespace: "default".to_owned(),
        uid: format!("uid-{number}"),
        ports: Vec::new(),
        cgroup_parent: String::new(),
        annotations: BTreeMap::new(),
        dns: None,
    }
}

/// A runtime like the daemon's.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Whether the kernel has IPv6.
pub(crate) fn ipv6() -> bool {
    // loads it where it is a module
    std::net::UdpSocket::bind("[::]:0").is_ok()
}

/// [`private`] for tests that look at nftables' rules and at IPv6 addresses.
pub(crate) fn private_nft(name: &str) -> bool {
    if !ipv6()
        || !Command::new("nft")
            .args(["-c", "add table inet corten"])
            .output()
            .is_ok_and(|o| o.status.success())
    {
        eprintln!("SKIP {name}: no nftables or no IPv6 here");
        return false;
    }
    private(name)
}

/// A namespace beside the node, as a machine on its network: 192.0.2.2 and 2001:db8::2, the node being .1 and ::1. It
/// knows no way to the pods.
pub(crate) fn outside() -> PathBuf {
    let path = PathBuf::from("/run/netns/outside");
    sys::netns::pin(&path).unwrap();
    ip("link add wan type veth peer name wan netns outside");
    for (prefix, host) in [("", 1), ("-n outside ", 2)] {
        ip(&format!("{prefix}addr add 192.0.2.{host}/24 dev wan"));
        if ipv6() {
            ip(&format!("{prefix}-6 addr add 2001:db8::{host}/64 dev wan nodad"));
        }
        ip(&format!("{prefix}link set wan up"));
    }
    path
}

/// Our plugin as a runtime calls it.
pub(crate) struct Plugin {
    pub(crate) config: Value,
}

impl Plugin {
    /// The answer of a verb: the object it printed, and whether it succeeded.
    pub(crate) fn call(&self, verb: &str, container: &str, netns: &Path) -> Result<Value, Value> {
        let child = self.start(verb, container, netns);
        let output = child.wait_with_output().unwrap();
        let value = match output.stdout.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&output.stdout).unwrap(),
        };
        if output.status.success() { Ok(value) } else { Err(value) }
    }

    /// Starts a verb.
    pub(crate) fn start(&self, verb: &str, container: &str, netns: &Path) -> Child {
        self.start_with(&mut Command::new(bridge_program()), verb, container, netns)
    }

    /// Starts a verb by a prepared command.
    pub(crate) fn start_with(
        &self,
        command: &mut Command,
        verb: &str,
        container: &str,
        netns: &Path,
    ) -> Child {
        let mut child = command
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", container), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", netns)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(self.config.to_string().as_bytes());
        child
    }

    /// With one key of the configuration replaced.
    pub(crate) fn with(&self, key: &str, value: Value) -> Plugin {
        let mut config = self.config.clone();
        config[key] = value;
        Plugin { config }
    }
}

/// A fresh namespace `/run/netns/<name>`.
pub(crate) fn netns(name: &str) -> PathBuf {
    let path = Path::new("/run/netns").join(name);
    sys::netns::pin(&path).unwrap();
    path
}

/// Runs `f` in the namespace at `path`.
pub(crate) fn inside<T: Send>(netns: &Path, f: impl FnOnce() -> T + Send) -> T {
    sys::netns::run_in(netns, f).unwrap()
}
