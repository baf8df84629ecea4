//! Setting a pod up.
//!
//! ```text
//! check ─▶ prepare (record with intent `create`, run directory, files, /dev/shm) ─▶ attach network ┐
//!                                                                   └▶ start monitor ──────────────┴▶ hosts, record
//! ```
//!
//! The network and the monitor are made at the same time (one after the other when there are net.* sysctls, which the monitor
//! sets in the pod's network namespace). In a user namespace the monitor comes first: it makes the network namespace. Each thing acquired is on a stack of debts before it is acquired; when a step
//! fails the whole stack is paid, and what cannot be paid stays owed. The one durable write is the last.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use monitor::protocol::Sandbox;
use network::{Attached, Attachment};
use nix::mount::{MsFlags, mount};

use crate::config::{Dns, NamespaceMode, Namespaces, PodConfig, Protocol};
use crate::context::Context;
use crate::debts::{Debt, blocking};
use crate::process::{self, Monitor};
use crate::record::{self, Outlive, PodIntent, PodRecord};
use crate::step::Step;
use crate::{Error, Kind, Result, Settings, selinux, sysctls};

/// A pod that was set up.
#[derive(Debug)]
pub(crate) struct SetUp {
    pub(crate) record: PodRecord,
    pub(crate) monitor: Monitor,
}

/// Everything that a pod may owe, whatever has come of it.
pub(crate) fn debts(ctx: &Context, record: &PodRecord) -> Vec<Debt> {
    let id = || record.id.clone();
    let mut debts = vec![Debt::Monitor(id()), Debt::Shm(id()), Debt::RunDir(id())];
    if own_network(&record.config) {
        debts.push(Debt::Network(id()));
    }
    if let Some(cgroup) = own_cgroup(ctx, record) {
        debts.push(Debt::Cgroup(cgroup));
    }
    debts
}

/// The pod's cgroup when it is ours: a parent that the client named is the client's.
fn own_cgroup(ctx: &Context, record: &PodRecord) -> Option<String> {
    let ours = default_cgroup(&ctx.settings) + record.id.as_str();
    (record.cgroup == ours).then_some(ours)
}

/// Where pods without a parent of their own get their cgroup: this, and their id. Daemons side by side may have the same root, so
/// each has names of its own in it.
pub(crate) fn default_cgroup(settings: &Settings) -> String {
    let owner = oci::id::owner(&settings.state_dir);
    format!("{}/{owner}-", settings.cgroup_root.trim_end_matches('/'))
}

/// Whether the pod has a network namespace of its own.
pub(crate) fn own_network(config: &PodConfig) -> bool {
    config.namespaces.network != NamespaceMode::Node
}

/// Whether the pod has an IPC namespace (and a /dev/shm) of its own.
pub(crate) fn own_ipc(config: &PodConfig) -> bool {
    config.namespaces.ipc != NamespaceMode::Node
}

/// The cgroup of a pod: what the client names as parent, or `<root>/<owner>-<id>`.
pub(crate) fn cgroup_of(settings: &Settings, config: &PodConfig, id: &str) -> Result<String> {
    let invalid =
        |why: &str| Error::new(Kind::Invalid, format!("cgroup parent {:?} {why}", config.cgroup_parent));
    let parent = config.cgroup_parent.trim_matches('/');
    if parent.is_empty() {
        return Ok(default_cgroup(settings) + id);
    }
    if parent.ends_with(".slice") {
        return Err(invalid("is a systemd slice; this runtime uses the cgroupfs driver"));
    }
    if parent.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(invalid("is not a plain path"));
    }
    Ok(format!("/{parent}"))
}

/// Refuse what a pod cannot be.
pub(crate) fn check(config: &PodConfig, handlers: &[String]) -> Result<()> {
    let security = &config.security;
    let invalid = |text: &str| Err(Error::new(Kind::Invalid, text));
    if config.name.name.is_empty() {
        return invalid("a pod needs a name");
    }
    if !config.runtime_handler.is_empty() && !handlers.contains(&config.runtime_handler) {
        let (asked, all) = (&config.runtime_handler, handlers.join(", "));
        let text = format!("runtime_handler: no handler {asked:?} on this node (there is {all})");
        return Err(Error::new(Kind::Invalid, text));
    }
    if security.run_as_group.is_some()
        && security.run_as_user.is_none()
        && security.run_as_username.is_empty()
    {
        return invalid("run_as_group without run_as_user");
    }
    let space = &config.namespaces;
    check_user_namespace(space)?;
    if matches!(space.network, NamespaceMode::Container | NamespaceMode::Target(_)) {
        return invalid("network namespace mode: a pod has POD or NODE");
    }
    if matches!(space.ipc, NamespaceMode::Container | NamespaceMode::Target(_)) {
        return invalid("ipc namespace mode: a pod has POD or NODE");
    }
    if matches!(space.pid, NamespaceMode::Target(_)) {
        return invalid("pid namespace mode TARGET is for containers");
    }
    sysctls::check(config)
}

/// What is mapped has a root, and no other namespace of the node is shared than the network.
fn check_user_namespace(space: &Namespaces) -> Result<()> {
    let Some(maps) = &space.user else { return Ok(()) };
    let invalid = |text: &str| Err(Error::new(Kind::Invalid, format!("user namespace: {text}")));
    if let Some(why) = maps.problem() {
        return invalid(&why);
    }
    if maps.uid(0).is_none() || maps.gid(0).is_none() {
        return invalid("id 0 of the container is not mapped");
    }
    if space.pid == NamespaceMode::Node || space.ipc == NamespaceMode::Node {
        return invalid("it cannot go with the node's PID or IPC namespace");
    }
    Ok(())
}

/// The user and group of the node that are root in the pod.
pub(crate) fn root_of(config: &PodConfig) -> (u32, u32) {
    let maps = config.namespaces.user.as_ref();
    (maps.and_then(|m| m.uid(0)).unwrap_or(0), maps.and_then(|m| m.gid(0)).unwrap_or(0))
}

/// Set a pod up. On failure its [`debts`] and its directory are what may have been acquired.
pub(crate) async fn set_up(ctx: &Arc<Context>, mut record: PodRecord, step: &Step) -> Result<SetUp> {
    step.enter("prepare the pod's directory");
    prepare_blocking(ctx, &record).await?;
    let (of_network, id) = (ctx.clone(), record.id.clone());
    step.enter_telling("attach the network and start the monitor", move || {
        of_network.network.under_way(Some(&id))
    });
    let (attached, monitor) = if record.config.namespaces.user.is_some() {
        // the network namespace belongs to the user namespace, which the monitor makes
        let monitor = start(ctx, &record, None).await?;
        let attached = attach(ctx, &record, Some(&monitor)).await?;
        if let Some(attached) = attached.as_ref().filter(|_| sysctls::some_of_network(&record.config)) {
            sysctls::set_in_network(&record.config, &attached.netns).await?;
        }
        (attached, monitor)
    } else if sysctls::some_of_network(&record.config) {
        let attached = attach(ctx, &record, None).await?;
        let netns = attached.as_ref().map(|a| a.netns.clone());
        (attached, start(ctx, &record, netns).await?)
    } else {
        // both run to their end, so that an undo never races with one of them
        let (attached, monitor) = tokio::join!(attach(ctx, &record, None), start(ctx, &record, None));
        (attached?, monitor?)
    };
    if let Some(attached) = attached {
        record.ips = attached.ips;
        record.netns = Some(attached.netns);
    }
    record.intent = PodIntent::Run;
    step.enter("write the pod's record");
    let (ctx, kept) = (ctx.clone(), record.clone());
    let write = move || {
        write_hosts(&ctx.paths.run_pod(&kept.id), &kept)?;
        label_files(&ctx, &kept, &["hosts"])?;
        let dir = ctx.paths.pod(&kept.id);
        record::write(&dir, &kept, Outlive::PowerCut).map_err(|e| named("write the record in", &dir, e))
    };
    blocking(write).await.map_err(|e| Error::because(Kind::Internal, "complete the pod's files", e))?;
    Ok(SetUp { record, monitor })
}

async fn prepare_blocking(ctx: &Arc<Context>, record: &PodRecord) -> Result<()> {
    let (ctx, record) = (ctx.clone(), record.clone());
    blocking(move || prepare(&ctx, &record))
        .await
        .map_err(|e| Error::because(Kind::Internal, "prepare the pod's directories", e))
}

/// The record first, then everything that is reachable from it.
fn prepare(ctx: &Context, record: &PodRecord) -> io::Result<()> {
    let state = ctx.paths.pod(&record.id);
    fs::create_dir_all(&state).map_err(|e| named("make", &state, e))?;
    record::write(&state, record, Outlive::Daemon).map_err(|e| named("write the record in", &state, e))?;
    let dir = ctx.paths.run_pod(&record.id);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| named("make", &dir, e))?;
    let config = &record.config;
    write_file(&dir.join("hostname"), format!("{}\n", hostname(config)).as_bytes())?;
    write_file(&dir.join("resolv.conf"), &resolv_conf(config, Path::new("/etc/resolv.conf")))?;
    for name in ["hostname", "resolv.conf"] {
        give_to_root(&dir.join(name), config)?;
    }
    if own_ipc(config) {
        let label = ctx.selinux.pod_files(&record.selinux_level, config);
        mount_shm(&ctx.paths.shm(&record.id), ctx.settings.shm_size, root_of(config), label)?;
    }
    label_files(ctx, record, &["hostname", "resolv.conf"])
}

/// The pod's files are its containers'.
fn label_files(ctx: &Context, record: &PodRecord, names: &[&str]) -> io::Result<()> {
    let Some(label) = ctx.selinux.pod_files(&record.selinux_level, &record.config) else { return Ok(()) };
    let dir = ctx.paths.run_pod(&record.id);
    names.iter().try_for_each(|name| {
        selinux::relabel(&dir.join(name), &label).map_err(|e| io::Error::other(e.chain()))
    })
}

/// A pod's root may edit the pod's files.
fn give_to_root(path: &Path, config: &PodConfig) -> io::Result<()> {
    match root_of(config) {
        (0, 0) => Ok(()),
        (uid, gid) => {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(|e| named("own", path, e))
        }
    }
}

fn named(what: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// Containers bind mount these files, so everybody may read them.
fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o644).open(path);
    file.and_then(|mut file| file.write_all(content)).map_err(|e| named("write", path, e))
}

fn mount_shm(path: &Path, size: u64, (uid, gid): (u32, u32), label: Option<String>) -> io::Result<()> {
    fs::create_dir(path).map_err(|e| named("make", path, e))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mut options = format!("mode=1777,size={size},uid={uid},gid={gid}");
    if let Some(label) = label {
        options += &format!(",context=\"{label}\"");
    }
    mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|e| named("mount a tmpfs on", path, e.into()))
}

/// What the pod calls itself: the node's name when it uses the node's network and names none.
pub(crate) fn hostname(config: &PodConfig) -> String {
    if !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The pod's resolv.conf: the node's when nothing is asked for; the node may have none, then it is empty.
fn resolv_conf(config: &PodConfig, node: &Path) -> Vec<u8> {
    let asked = |dns: &&Dns| !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty());
    let Some(dns) = config.dns.as_ref().filter(asked) else { return fs::read(node).unwrap_or_default() };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text.into_bytes()
}

fn write_hosts(dir: &Path, record: &PodRecord) -> io::Result<()> {
    let text = if own_network(&record.config) {
        hosts(&hostname(&record.config), &record.ips).into_bytes()
    } else {
        fs::read("/etc/hosts").unwrap_or_else(|_| hosts(&hostname(&record.config), &[]).into_bytes())
    };
    write_file(&dir.join("hosts"), &text)?;
    give_to_root(&dir.join("hosts"), &record.config)
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for ip in ips {
        text += &format!("{ip}\t{hostname}\n");
    }
    text
}

async fn start(ctx: &Arc<Context>, record: &PodRecord, netns: Option<std::path::PathBuf>) -> Result<Monitor> {
    let config = &record.config;
    let sandbox = Sandbox {
        version: monitor::protocol::VERSION,
        hostname: own_network(config).then(|| hostname(config)),
        ipc: own_ipc(config),
        pid: config.namespaces.pid == NamespaceMode::Pod,
        netns,
        user: config.namespaces.user.clone(),
        own_network: config.namespaces.user.is_some() && own_network(config),
        sysctls: sysctls::for_monitor(config),
        mount_label: ctx.selinux.pod_files(&record.selinux_level, config),
    };
    let dir = ctx.paths.run_pod(&record.id);
    let text = serde_json::to_vec(&sandbox).map_err(io::Error::from);
    text.and_then(|text| write_file(&dir.join("sandbox.json"), &text))
        .map_err(|e| Error::because(Kind::Internal, "write sandbox.json", e))?;
    process::start(&ctx.program, &dir, &ctx.paths.seccomp(), &ctx.settings).await
}

/// A monitor that is given holds the pod's network namespace.
async fn attach(ctx: &Context, record: &PodRecord, monitor: Option<&Monitor>) -> Result<Option<Attached>> {
    if !own_network(&record.config) {
        return Ok(None);
    }
    let attached = match monitor {
        None => ctx.network.attach(&attachment(record)).await,
        Some(monitor) => {
            let held = monitor::protocol::NETWORK_NAMESPACE_FD;
            let namespace = std::path::PathBuf::from(format!("/proc/{}/fd/{held}", monitor.pid));
            ctx.network.attach_existing(&attachment(record), &namespace).await
        }
    };
    let context = || format!("attach pod {:?} to the network", record.config.name.name);
    let kind = |e: &network::Error| match e.kind {
        network::Kind::Invalid => Kind::Invalid,
        _ => Kind::Unavailable,
    };
    attached.map(Some).map_err(|e| Error::because(kind(&e), context(), e))
}

fn attachment(record: &PodRecord) -> Attachment {
    let config = &record.config;
    let ports = config.port_mappings.iter().filter(|port| port.host_port != 0);
    let ports = ports.map(|port| network::PortMapping {
        protocol: match port.protocol {
            Protocol::Tcp => network::Protocol::Tcp,
            Protocol::Udp => network::Protocol::Udp,
            Protocol::Sctp => network::Protocol::Sctp,
        },
        container_port: port.container_port,
        host_port: port.host_port,
        host_ip: port.host_ip,
    });
    Attachment {
        pod: record.id.clone(),
        name: config.name.name.clone(),
        namespace: config.name.namespace.clone(),
        uid: config.name.uid.clone(),
        ports: ports.collect(),
        cgroup_parent: record.cgroup.clone(),
        annotations: config.annotations.clone(),
        dns: config.dns.as_ref().map(|dns| network::Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PodConfig {
        serde_json::from_value(serde_json::json!({
            "name": {"name": "p", "uid": "u", "namespace": "n", "attempt": 0}
        }))
        .unwrap()
    }

    #[test]
    fn cgroup_parents() {
        let with = |parent: &str| {
            let config = PodConfig { cgroup_parent: parent.to_owned(), ..config() };
            let settings = Settings { state_dir: "/var/lib/corten".into(), ..Settings::default() };
            cgroup_of(&settings, &config, "id").map_err(|e| e.kind)
        };
        let owner = oci::id::owner(std::path::Path::new("/var/lib/corten"));
        assert_eq!(with(""), Ok(format!("/corten/{owner}-id")));
        assert_eq!(with("/kubepods/burstable/podx"), Ok("/kubepods/burstable/podx".to_owned()));
        assert_eq!(with("a/b/"), Ok("/a/b".to_owned()));
        for bad in ["kubepods-burstable.slice", "/a/b.slice", "/a/../b", "a//b", "./a"] {
            assert_eq!(with(bad), Err(Kind::Invalid), "{bad}");
        }
    }

    #[test]
    fn user_namespaces_have_a_root_and_share_the_network_only() {
        let with = |map: &str, edit: fn(&mut PodConfig)| {
            let mut config = config();
            config.namespaces.user = oci::IdMaps::parse(map, map);
            edit(&mut config);
            check(&config, &[]).map_err(|e| e.kind)
        };
        assert_eq!(with("0 1000 10", |_| ()), Ok(()));
        assert_eq!(with("0 1000 10", |c| c.namespaces.network = NamespaceMode::Node), Ok(()));
        for bad in ["", "1 1000 10", "0 1000 0", "0 4294967295 2"] {
            assert_eq!(with(bad, |_| ()), Err(Kind::Invalid), "{bad:?}");
        }
        assert_eq!(with("0 1000 10", |c| c.namespaces.pid = NamespaceMode::Node), Err(Kind::Invalid));
        assert_eq!(with("0 1000 10", |c| c.namespaces.ipc = NamespaceMode::Node), Err(Kind::Invalid));
    }

    #[test]
    fn files() {
        let mut config = config();
        config.dns = Some(Dns {
            servers: vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()],
            searches: vec!["a".to_owned(), "b".to_owned()],
            options: vec!["ndots:5".to_owned()],
        });
        let text = String::from_utf8(resolv_conf(&config, Path::new("/none"))).unwrap();
        assert_eq!(text, "search a b\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5\n");
        let node = tempfile::NamedTempFile::new().unwrap();
        fs::write(node.path(), "nameserver 9.9.9.9\n").unwrap();
        for nothing in [None, Some(Dns::default())] {
            config.dns = nothing;
            assert_eq!(resolv_conf(&config, node.path()), b"nameserver 9.9.9.9\n");
        }
        assert_eq!(resolv_conf(&config, Path::new("/none")), b"");
        assert!(hosts("pod", &["10.1.2.3".parse().unwrap()]).ends_with("10.1.2.3\tpod\n"));
    }

    #[test]
    fn a_group_without_a_user_is_refused() {
        let mut config = config();
        config.security.run_as_group = Some(1);
        assert_eq!(check(&config, &[]).unwrap_err().kind, Kind::Invalid);
        config.security.run_as_user = Some(1);
        check(&config, &[]).unwrap();
        config.runtime_handler = "kata".to_owned();
        assert_eq!(check(&config, &["corten".to_owned()]).unwrap_err().kind, Kind::Invalid);
    }
}
