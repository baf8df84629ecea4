//! `xtask inside`: a throw-away node, seen from inside. It is the whole life of one: namespaces, network, registry,
//! daemon, command, and the way back.
//!
//! ```text
//! DIR/cgroups              its cgroups, for a sweep (crate::node)
//! DIR/kit/                 what it is made from (crate::paths::Kit)
//! DIR/state/  DIR/run/     the daemon's roots; run is a tmpfs, with the socket, the pid file and netns/ in it
//! DIR/config/              daemon configuration, certs.d with the registry as everyone's mirror, CNI configuration
//! OUT/                     daemon.log, leaks.txt, and what the command leaves
//! ```
//!
//! The command sees CONTAINER_RUNTIME_ENDPOINT, IMAGE_SERVICE_ENDPOINT, OUT, CORTEN_PIDFILE, CORTEN_NODE (DIR), and finds
//! crictl, the project's programs and the suites in PATH. One process, single-threaded: it is everyone's subreaper, starts a daemon that died
//! again as systemd would, and takes the signals.
//!
//! Must never happen: that it returns while something of the node still runs, or that something is left without being named.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

use crate::command::{command, last_lines, own_environment, quiet};
use crate::daemon::Daemon;
use crate::paths::Kit;
use crate::registry::{self, NODE_PORT};
use crate::watch::{self, Ended};
use crate::world::{self, Scope};
use crate::{cgroup, cni, scratch};

/// How the node is to be, from the flags of `xtask inside`.
pub(crate) struct Inside {
    /// DIR
    pub(crate) dir: PathBuf,
    /// further daemon configuration
    pub(crate) config: Vec<PathBuf>,
    /// the official CNI plugins
    pub(crate) official_cni: bool,
    /// state on a tmpfs
    pub(crate) tmpfs: bool,
    /// OUT
    pub(crate) out: PathBuf,
    /// what to run; nothing: a shell
    pub(crate) command: Vec<OsString>,
}

/// Live through a node; the command's exit code, or 1 when it succeeded but something was left behind.
pub(crate) fn run(inside: &Inside) -> Result<i32> {
    watch::take_signals()?;
    // whoever started this is gone: take everything down
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
        .context("ask to be told of a parent's end")?;
    nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    // nor is it swept before that is done
    let _held = scratch::hold(&inside.dir)?;
    enter_namespaces(inside)?;
    bring_up_network()?;
    for (program, what) in world::unseen() {
        eprintln!(
            "node: the check of what is left behind sees no {what}, since there is no program {program}"
        );
    }
    let kit = Kit::at(&inside.dir.join("kit"));
    let docker_registry = inside.dir.join("kit/docker-registry");
    let (registry, _) = registry::start(&docker_registry, &kit.registry, &inside.dir, NODE_PORT)?;
    let registry = Pid::from_raw(i32::try_from(registry.id())?);
    configure(inside, &kit)?;
    let mut daemon = Daemon::start(&kit.programs, &inside.dir, &inside.out)?;
    if let Err(error) = daemon.wait_until_it_answers().and_then(|()| warm_up(inside, &kit)) {
        eprintln!("node: {error:#}\n{}", as_given(&last_lines(&daemon.log(), 60), inside));
        daemon.stop();
        watch::end(registry);
        return Ok(1);
    }
    let mut scope = scope(inside, registry)?;
    scope.known.push(daemon.pid().as_raw());
    let before = world::look(&scope);
    let code = run_command(inside, &kit, &mut daemon)?;
    let left = take_down(&kit, inside, &mut daemon, (&before, &mut scope));
    watch::end(registry);
    left.iter().for_each(|what| eprintln!("node: left behind: {what}"));
    fs::write(inside.out.join("leaks.txt"), left.iter().map(|what| format!("{what}\n")).collect::<String>())?;
    let log = as_given(&daemon.log(), inside);
    if !left.is_empty() {
        eprintln!("node: the daemon's log ends so:\n{}", last_lines(&log, 30));
    } else if code != 0 {
        // the command has said itself what is wrong
        let warnings: String =
            log.lines().filter(|line| is_warning(line)).map(|line| format!("{line}\n")).collect();
        if !warnings.is_empty() {
            eprintln!("node: the daemon has warned meanwhile:\n{}", last_lines(&warnings, 30));
        }
    }
    Ok(if code == 0 && !left.is_empty() { 1 } else { code })
}

fn is_warning(line: &str) -> bool {
    line.split_whitespace().nth(1).is_some_and(|level| matches!(level, "WARN" | "ERROR"))
}

/// Cgroup, mounts and network of its own. /sys is mounted anew, since it shows the network and the cgroups of the one who
/// mounts it. All mounts are shared, as on a node with systemd.
fn enter_namespaces(inside: &Inside) -> Result<()> {
    let name = inside.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    cgroup::enter(&name)?;
    let hierarchies = cgroup::hierarchies()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWCGROUP)
        .context("unshare: a node needs root")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("make mounts shared")?;
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    umount2("/sys", MntFlags::MNT_DETACH).context("unmount /sys")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, none).context("mount /sys")?;
    for (kind, dir) in [("securityfs", "/sys/kernel/security"), ("selinuxfs", "/sys/fs/selinux")] {
        if mounts.contains(&format!(" {dir} {kind} ")) {
            mount(Some(kind), dir, Some(kind), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, none)
                .with_context(|| format!("mount {dir}"))?;
        }
    }
    if !hierarchies.iter().any(|hierarchy| hierarchy.mount == Path::new("/sys/fs/cgroup")) {
        mount(Some("tmpfs"), "/sys/fs/cgroup", Some("tmpfs"), flags, Some("mode=755"))
            .context("mount /sys/fs/cgroup")?;
    }
    for hierarchy in &hierarchies {
        fs::create_dir_all(&hierarchy.mount)?;
        let data = Some(hierarchy.data.as_str()).filter(|data| !data.is_empty());
        mount(Some("cgroup"), &hierarchy.mount, Some(hierarchy.kind.as_str()), flags, data)
            .with_context(|| format!("mount {} ({})", hierarchy.mount.display(), hierarchy.data))?;
    }
    cgroup::delegate()?;
    for (dir, tmpfs) in [("run", true), ("state", inside.tmpfs)] {
        let dir = inside.dir.join(dir);
        fs::create_dir_all(&dir)?;
        if tmpfs {
            mount(
                Some("tmpfs"),
                &dir,
                Some("tmpfs"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
                Some("mode=755"),
            )
            .with_context(|| format!("mount {}", dir.display()))?;
        }
    }
    if Path::new("/sys/fs/selinux/enforce").exists() {
        // as Debian's policy labels /var/lib/containerd
        let label = "system_u:object_r:container_var_lib_t:s0";
        quiet(command(&["chcon", "-R", label]).arg(inside.dir.join("state")))?;
    }
    Ok(())
}

/// Loopback, and a link that a default route can go to, so that the node has an address to be known by.
fn bring_up_network() -> Result<()> {
    let steps = [
        "link set lo up",
        "link add node0 type veth peer name node0-far",
        "addr add 192.168.250.1/24 dev node0",
        "-6 addr add fd00:250::1/64 dev node0 nodad",
        "link set node0 up",
        "link set node0-far up",
        "route add default via 192.168.250.254 dev node0",
        "-6 route add default via fd00:250::fe dev node0",
    ];
    for step in steps.iter().filter(|step| has_ipv6() || !step.starts_with("-6")) {
        quiet(command(&["ip"]).args(step.split(' ')))?;
    }
    Ok(())
}

/// Whether this kernel has IPv6. Asking by a socket makes it load the module, where it is one.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind("[::]:0").is_ok()
}

/// Write the daemon's configuration. What the caller adds comes after ours and wins.
fn configure(inside: &Inside, kit: &Kit) -> Result<()> {
    let dir = inside.dir.join("config");
    let (certs, networks) = (dir.join("certs.d"), dir.join("net.d"));
    let drop_ins = dir.join("config.d");
    for dir in [&certs, &networks, &drop_ins] {
        fs::create_dir_all(dir)?;
    }
    registry::write_mirrors(&certs)?;
    let at = |path: &str| inside.dir.join(path).display().to_string();
    let mut text = format!(
        "state_dir = \"{}\"\nrun_dir = \"{}\"\n\n[image]\ncerts_dirs = [\"{}\"]\n\n[network]\nconfig_dir = \"{}\"\nnetns_dir = \"{}\"\n",
        at("state"),
        at("run"),
        certs.display(),
        networks.display(),
        at("run/netns"),
    );
    if inside.official_cni {
        text += &format!("bin_dirs = [\"{}\"]\n", kit.cni.display());
        fs::write(
            networks.join("10-official.conflist"),
            cni::official(&inside.dir.join("run/cni"), has_ipv6()),
        )?;
    } else {
        text += "bin_dirs = []\nbuiltin = \"auto\"\n";
    }
    fs::write(dir.join("config.toml"), text)?;
    let endpoint = format!("unix://{}", at("run/corten.sock"));
    let crictl = format!("runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 30\n");
    fs::write(dir.join("crictl.yaml"), crictl)?;
    for (number, file) in inside.config.iter().enumerate() {
        fs::copy(file, drop_in(inside, number)).with_context(|| format!("copy {}", file.display()))?;
    }
    Ok(())
}

/// Where a file of the caller's configuration is read from.
fn drop_in(inside: &Inside, number: usize) -> PathBuf {
    inside.dir.join(format!("config/config.d/{number:02}.toml"))
}

/// A text of the daemon's with the caller's names of its configuration files.
fn as_given(text: &str, inside: &Inside) -> String {
    inside.config.iter().enumerate().fold(text.to_owned(), |text, (number, file)| {
        let copy = drop_in(inside, number);
        text.replace(&*copy.to_string_lossy(), &file.to_string_lossy())
    })
}

/// One pod comes and goes, so that what a network sets up once (the bridge, tables, chains) is there before the comparison
/// begins.
fn warm_up(inside: &Inside, kit: &Kit) -> Result<()> {
    let config = inside.dir.join("warm-up.json");
    let text = r#"{"metadata": {"name": "warm-up", "namespace": "node", "uid": "warm-up", "attempt": 0}, "linux": {},
        "port_mappings": [{"protocol": 0, "container_port": 9, "host_port": 11999}]}"#;
    fs::write(&config, text)?;
    let pod = quiet(crictl(inside, kit).arg("runp").arg(&config)).context("the first pod")?;
    quiet(crictl(inside, kit).args(["rmp", "-f", pod.trim()])).context("remove the first pod").map(drop)
}

fn crictl(inside: &Inside, kit: &Kit) -> std::process::Command {
    let mut command = command(&[kit.cri_tools.join("crictl")]);
    command.env("CRI_CONFIG_FILE", inside.dir.join("config/crictl.yaml")).args(["--timeout", "60s"]);
    command
}

fn scope(inside: &Inside, registry: Pid) -> Result<Scope> {
    let in_dir = |path: &str| inside.dir.join(path);
    let files = ["state/pods", "state/containers", "state/network", "run/pods"];
    let cgroups: Vec<PathBuf> = cgroup::hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount).collect();
    Ok(Scope {
        files: files.iter().map(|path| in_dir(path)).collect(),
        netns: vec![in_dir("run/netns")],
        parents: cgroups.iter().map(|dir| dir.join("corten")).collect(),
        cgroups,
        known: vec![registry.as_raw(), Pid::this().as_raw()],
    })
}

/// Run the command to its end; meanwhile a daemon that dies is started again.
fn run_command(inside: &Inside, kit: &Kit, daemon: &mut Daemon) -> Result<i32> {
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    if inside.command.is_empty() {
        println!(
            "A throw-away node: crictl, corten and corten-runtime are in PATH, test images at 127.0.0.1:{NODE_PORT}. exit ends it."
        );
    }
    let words = if inside.command.is_empty() { vec![shell] } else { inside.command.clone() };
    let mut command = command(&words);
    own_environment(&mut command);
    let endpoint = format!("unix://{}", inside.dir.join("run/corten.sock").display());
    let mut path = std::env::join_paths([&kit.cri_tools, &kit.programs, &kit.suites, &kit.kubernetes])?;
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    command.env("CONTAINER_RUNTIME_ENDPOINT", &endpoint).env("IMAGE_SERVICE_ENDPOINT", &endpoint);
    command.env("PATH", path).env("OUT", &inside.out).env("CORTEN_NODE", &inside.dir);
    command
        .env("CORTEN_PIDFILE", daemon.pidfile())
        .env("CRI_CONFIG_FILE", inside.dir.join("config/crictl.yaml"));
    let child = watch::spawn(&mut command)?;
    loop {
        match watch::next(child, watch::NOT_FROM_TERMINAL)? {
            Ended::Process(pid, code) if pid == child => return Ok(code),
            Ended::Process(pid, code) if pid == daemon.pid() => {
                if !daemon.restart(code)? {
                    eprintln!("node: the daemon does not stay up");
                    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGTERM).ok();
                }
            }
            Ended::Process(..) => {}
        }
    }
}

/// Remove all pods, by a daemon that the command may have killed as the last thing it did.
fn remove_pods(kit: &Kit, inside: &Inside, daemon: &mut Daemon) -> Result<()> {
    let mut tries = 5;
    daemon.revive()?;
    loop {
        let done = daemon
            .wait_until_it_answers()
            .and_then(|()| quiet(crictl(inside, kit).args(["rmp", "-f", "-a"])).map(drop));
        tries -= 1;
        // its death may show only now
        if done.is_ok() || tries == 0 || !daemon.revive()? {
            return done;
        }
    }
}

/// Remove all pods, stop the daemon, and name what is left.
fn take_down(
    kit: &Kit,
    inside: &Inside,
    daemon: &mut Daemon,
    (before, scope): (&BTreeSet<String>, &mut Scope),
) -> Vec<String> {
    let mut left = daemon.failures();
    if let Err(error) = remove_pods(kit, inside, daemon) {
        left.push(format!("pods that cannot be removed: {error:#}"));
    }
    left.extend(daemon.stop());
    // the daemon that ran before the command may have been replaced meanwhile
    scope.known.push(daemon.pid().as_raw());
    left.extend(world::left_behind(before, scope, Duration::from_secs(5)));
    for pid in scope.cgroups.iter().flat_map(|dir| cgroup::processes(dir)).collect::<BTreeSet<_>>() {
        if !scope.known.contains(&pid) {
            watch::end(Pid::from_raw(pid));
        }
    }
    left
}
