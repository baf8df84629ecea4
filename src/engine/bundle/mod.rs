//! From what a client asked for, the image and the pod to an OCI bundle.
//!
//! ```text
//! check      what can be refused without looking at anything
//! make       hold the image, gather, build, write config.json, the record last
//! gather     everything that has to be looked at on the node: users in the image, mount sources, devices, profiles
//! build      facts ─▶ config.json, pure
//! ```
//!
//! The parts: `process` (arguments, environment, user), `mounts`, `images` (volumes that are images), `devices`, `security` (capabilities, seccomp),
//! `resources`. The root is an overlay that the executor mounts in the container's own mount namespace: the first
//! entry of `mounts`, with destination `/`. Namespaces of the pod are named by path: those of its monitor, of its PID
//! reaper, and the pinned network namespace.

mod devices;
mod images;
mod mounts;
mod process;
pub(crate) mod resources;
mod security;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use self::images::Images;
use crate::config::{ContainerConfig, IdMaps, NamespaceMode, PodConfig};
use crate::context::Context;
use crate::record::{self, ContainerRecord, Outlive, PodRecord};
use crate::selinux::Labels;
use crate::step::Step;
use crate::{Error, Kind, Result, sandbox};

/// Version of the runtime specification that the bundles follow.
pub(crate) const OCI_VERSION: &str = "1.2.1";

/// What a container needs to know of its pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) record: PodRecord,
    pub(crate) run_dir: PathBuf,
    /// Pid of its monitor.
    pub(crate) monitor: i32,
    /// Pid of the init whose PID namespace is to be joined, when the container asks for one that runs.
    pub(crate) target: Option<i32>,
}

/// Everything that had to be looked at.
#[derive(Debug)]
struct Facts {
    /// Layers, topmost first.
    lower: Vec<PathBuf>,
    /// The container's directory of state.
    dir: PathBuf,
    /// Whether the overlay may leave out syncing: its content is of no use after a power cut.
    volatile: bool,
    /// Pid of the pod's PID reaper, when its containers share a PID namespace.
    reaper: Option<i32>,
    user: process::User,
    mounts: Vec<mounts::Extra>,
    devices: devices::Devices,
    /// JSON of `linux.seccomp`; `None`: unconfined.
    seccomp: Option<Value>,
    apparmor: Option<String>,
    selinux: Option<Labels>,
}

/// Whole path of a container's log; empty: none.
pub(crate) fn log_path(pod: &PodConfig, container: &ContainerConfig) -> PathBuf {
    match pod.log_directory.as_os_str().is_empty() || container.log_path.as_os_str().is_empty() {
        true => PathBuf::new(),
        false => pod.log_directory.join(&container.log_path),
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(Kind::Invalid, text))
}

/// Refuse what a container cannot be, before anything is made.
pub(crate) fn check(config: &ContainerConfig, pod: &PodConfig) -> Result<()> {
    refuse(config, pod).map_err(|e| e.within(format!("create container {}", config.name)))
}

fn refuse(config: &ContainerConfig, pod: &PodConfig) -> Result<()> {
    let security = &config.security;
    if config.name.is_empty() {
        return invalid("a container needs a name");
    }
    if config.image.is_empty() {
        return invalid("it names no image");
    }
    if security.privileged && !pod.privileged {
        return invalid("a privileged container needs a pod that allows it");
    }
    if security.run_as_group.is_some()
        && security.run_as_user.is_none()
        && security.run_as_username.is_empty()
    {
        return invalid("run_as_group without run_as_user");
    }
    if security.namespaces.user != pod.namespaces.user {
        return invalid("the user namespace of a container is its pod's: both must be asked for alike");
    }
    if !config.cdi_devices.is_empty() {
        let text = format!("CDI devices are not built yet: {}", config.cdi_devices.join(", "));
        return Err(Error::new(Kind::Unsupported, text));
    }
    if config.stop_signal.is_some_and(|signal| !(1..=64).contains(&signal)) {
        return invalid("the stop signal is not a signal");
    }
    resources::to_spec(&config.resources, true)?;
    security::check(config)?;
    mounts::check_in(config, pod.namespaces.user.as_ref())?;
    mounts::check(config)
}

/// Make a container: everything on disk, its record last. The caller undoes it when this fails.
pub(crate) async fn make(
    ctx: &Arc<Context>,
    pod: &Arc<Pod>,
    mut record: ContainerRecord,
    step: &Step,
) -> Result<ContainerRecord> {
    step.enter("hold the image");
    let name = &record.config.image;
    let image = ctx.images.find(name);
    let image = image.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("image {name} is not on this node; pull it first"))
    })?;
    let root = ctx.images.hold(&image.id, &record.id).await;
    let root = root.map_err(|e| Error::from(e).within(format!("hold image {name}")))?;
    record.image_id = root.image.id.clone();
    record.image_ref = images::reference(&root.image);
    record.stop_signal = stop_signal(&record.config, &root.image.config)?;
    let images = Images { root, volumes: images::hold_volumes(&ctx.images, &record).await? };
    record.volume_refs =
        images.volumes.iter().map(|(index, held)| (*index, images::reference(&held.image))).collect();
    step.enter("write the bundle");
    let (ctx, pod) = (ctx.clone(), pod.clone());
    tokio::task::spawn_blocking(move || write(&ctx, &pod, record, &images))
        .await
        .map_err(|e| Error::because(Kind::Internal, "write the bundle", e))?
}

/// The image's stop signal counts when the request names none.
fn stop_signal(config: &ContainerConfig, image: &image::ImageConfig) -> Result<i32> {
    match (config.stop_signal, image.stop_signal.as_str()) {
        (Some(signal), _) => Ok(signal),
        (None, "") => Ok(nix::libc::SIGTERM),
        (None, name) => signal_number(name)
            .map_or_else(|| invalid(format!("the image's stop signal {name:?} is unknown")), Ok),
    }
}

/// A signal by number or name, with or without `SIG`; `RTMIN+n` and `RTMAX-n` as well.
fn signal_number(name: &str) -> Option<i32> {
    let upper = name.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    // as libc counts them: it keeps the first two for itself
    let real_time = |text: &str| text.parse::<i32>().ok().filter(|n| (0..=30).contains(n));
    match short {
        "RTMIN" => return Some(34),
        "RTMAX" => return Some(64),
        _ => {}
    }
    if let Some(n) = short.strip_prefix("RTMIN+").and_then(real_time) {
        return Some(34 + n);
    }
    if let Some(n) = short.strip_prefix("RTMAX-").and_then(real_time) {
        return Some(64 - n);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{short}").parse().ok()?;
    Some(signal as i32)
}

fn write(ctx: &Context, pod: &Pod, mut record: ContainerRecord, images: &Images) -> Result<ContainerRecord> {
    let dir = ctx.paths.container(&record.id);
    let failed = |what: &'static str| move |e: io::Error| Error::because(Kind::Internal, what, e);
    let maps = pod.record.config.namespaces.user.as_ref();
    make_dirs(&dir, images.root.lower.first(), maps).map_err(failed("make the container's directories"))?;
    if let Some(parent) = record.log_path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_log_directory(parent)?;
    }
    let facts = gather((ctx, pod), &record, images, &dir)?;
    if let Some(maps) = maps {
        facts.user.check(maps)?;
    }
    let spec = build(pod, &record, &images.root.image.config, &facts)?;
    record.user = Some((facts.user.uid, facts.user.gid, facts.user.groups.clone()));
    let text =
        serde_json::to_vec(&spec).map_err(|e| Error::because(Kind::Internal, "write config.json", e))?;
    fs::write(ctx.paths.bundle(&record.id).join("config.json"), text).map_err(failed("write config.json"))?;
    record::write(&dir, &record, Outlive::PowerCut).map_err(failed("write the container's record"))?;
    Ok(record)
}

/// Its path is the client's, and so is what is wrong with it.
fn make_log_directory(path: &Path) -> Result<()> {
    use nix::libc::{EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};
    fs::create_dir_all(path).map_err(|e| {
        let kind = match e.raw_os_error() {
            Some(EEXIST | EINVAL | EISDIR | ELOOP | ENAMETOOLONG | ENOENT | ENOTDIR) => Kind::Invalid,
            _ => Kind::Internal,
        };
        Error::because(kind, format!("make the log's directory {path:?}"), e)
    })
}

/// The container's own directories. What an overlay shows as `/` is the upper directory, so that gets the mode and owner of the
/// image's `/`, which are those of the topmost layer.
fn make_dirs(dir: &Path, top: Option<&PathBuf>, maps: Option<&IdMaps>) -> io::Result<()> {
    let mut private = fs::DirBuilder::new();
    private.mode(0o700).create(dir)?;
    private.create(dir.join("bundle"))?;
    for part in ["bundle/rootfs", "upper", "work"] {
        fs::DirBuilder::new().mode(0o755).create(dir.join(part))?;
    }
    let Some(top) = top else { return Ok(()) };
    let (root, upper) = (fs::metadata(top)?, dir.join("upper"));
    own_mapped(&upper, &root, maps)?;
    fs::set_permissions(&upper, root.permissions())
}

/// Give a directory of a container the owner that one of its image has, as the node counts it. An owner that the pod's user namespace
/// does not have stays what nobody in it is.
fn own_mapped(path: &Path, like: &fs::Metadata, maps: Option<&IdMaps>) -> io::Result<()> {
    let uid = maps.map_or(like.uid(), |m| m.uid(like.uid()).unwrap_or(like.uid()));
    let gid = maps.map_or(like.gid(), |m| m.gid(like.gid()).unwrap_or(like.gid()));
    std::os::unix::fs::chown(path, Some(uid), Some(gid))
}

fn gather(
    (ctx, pod): (&Context, &Pod),
    record: &ContainerRecord,
    images: &Images,
    dir: &Path,
) -> Result<Facts> {
    let config = &record.config;
    let privileged = config.security.privileged;
    let capabilities = security::capabilities(&config.security)?;
    let reaper = match config.security.namespaces.pid {
        NamespaceMode::Pod => Some(reaper_pid(&pod.run_dir)?),
        _ => None,
    };
    let shape = &pod.record.config;
    let selinux = ctx.selinux.labels(&pod.record.selinux_level, shape, config)?;
    let label = selinux.as_ref().map(|labels| labels.mount.as_str());
    Ok(Facts {
        lower: lower(&images.root, dir)?,
        dir: dir.to_owned(),
        volatile: kernel_has_volatile(),
        reaper,
        user: process::user(&config.security, &images.root.image.config, &images.root.lower)?,
        mounts: mounts::gather((pod, config), images, dir, label)?,
        devices: devices::gather(
            config,
            privileged,
            ctx.settings.devices_of_user,
            shape.namespaces.user.is_some(),
        )?,
        seccomp: security::seccomp(&config.security, &capabilities)?,
        apparmor: ctx.apparmor.choose(&config.security)?,
        selinux,
    })
}

fn reaper_pid(run_dir: &Path) -> Result<i32> {
    let path = run_dir.join("reaper.pid");
    match monitor::record::read_pid(&path) {
        Ok((pid, _)) => Ok(pid),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            invalid("the pod has no PID namespace that its containers share")
        }
        Err(e) => Err(Error::because(Kind::Internal, format!("read {}", path.display()), e)),
    }
}

/// The layers; an image without any gets an empty one, since an overlay needs one.
fn lower(rootfs: &image::Rootfs, dir: &Path) -> Result<Vec<PathBuf>> {
    if !rootfs.lower.is_empty() {
        return Ok(rootfs.lower.clone());
    }
    Ok(vec![images::empty(dir)?])
}

/// Overlayfs learnt `volatile` in 5.10.
fn kernel_has_volatile() -> bool {
    let release =
        nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 10)
}

/// The config.json.
fn build(pod: &Pod, record: &ContainerRecord, image: &image::ImageConfig, facts: &Facts) -> Result<Value> {
    let config = &record.config;
    let security = &config.security;
    let mut linux = json!({
        "namespaces": namespaces(pod, config, facts)?,
        "cgroupsPath": record.cgroup,
        "resources": resources::with_devices(&config.resources, &facts.devices)?,
        "devices": facts.devices.nodes,
        "maskedPaths": if security.privileged { &[][..] } else { &security.masked_paths },
        "readonlyPaths": if security.privileged { &[][..] } else { &security.readonly_paths },
    });
    if let Some(seccomp) = &facts.seccomp {
        linux["seccomp"] = seccomp.clone();
    }
    let mut process = process::build(config, image, &facts.user, &sandbox::hostname(&pod.record.config))?;
    process["capabilities"] = security::capabilities(security)?;
    process["noNewPrivileges"] = security.no_new_privs.into();
    process["oomScoreAdj"] = config.resources.oom_score_adj.into();
    if let Some(profile) = &facts.apparmor {
        process["apparmorProfile"] = profile.clone().into();
    }
    if let Some(labels) = &facts.selinux {
        process["selinuxLabel"] = labels.process.clone().into();
        linux["mountLabel"] = labels.mount.clone().into();
    }
    Ok(json!({
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": "rootfs", "readonly": security.readonly_rootfs},
        "mounts": mounts::build(config, facts),
        "linux": linux,
    }))
}

/// Each namespace: its own (no path), the pod's (a path), or the node's (left out).
fn namespaces(pod: &Pod, config: &ContainerConfig, facts: &Facts) -> Result<Vec<Value>> {
    let shape = &pod.record.config;
    let mut list = vec![json!({"type": "mount"})];
    let of_monitor = |kind: &str| format!("/proc/{}/ns/{kind}", pod.monitor);
    if shape.namespaces.user.is_some() {
        let held = monitor::protocol::USER_NAMESPACE_FD;
        list.push(json!({"type": "user", "path": format!("/proc/{}/fd/{held}", pod.monitor)}));
    }
    if sandbox::own_ipc(shape) {
        list.push(json!({"type": "ipc", "path": of_monitor("ipc")}));
    }
    if sandbox::own_network(shape) {
        list.push(json!({"type": "uts", "path": of_monitor("uts")}));
        let Some(netns) = &pod.record.netns else { return invalid("the pod has no network namespace") };
        list.push(json!({"type": "network", "path": netns}));
    }
    if !config.security.privileged {
        list.push(json!({"type": "cgroup"}));
    }
    match &config.security.namespaces.pid {
        NamespaceMode::Container => list.push(json!({"type": "pid"})),
        NamespaceMode::Node => {}
        NamespaceMode::Pod => {
            let path = facts.reaper.map(|pid| format!("/proc/{pid}/ns/pid"));
            list.push(json!({"type": "pid", "path": path}));
        }
        NamespaceMode::Target(id) => match pod.target {
            Some(pid) => list.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
            None => {
                let text =
                    format!("container {id}, whose PID namespace is to be joined, does not run in this pod");
                return Err(Error::new(Kind::WrongState, text));
            }
        },
    }
    Ok(list)
}

#[cfg(test)]
mod tests;
