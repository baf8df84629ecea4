//! Mounts of a container: the overlay root, the usual file systems, the pod's files, what the request binds.
//!
//! A later mount may lie in an earlier one, so binds are sorted by depth. One that the request makes itself replaces ours
//! of the same place. Sources are made absolute and links in them followed here, once; a source that is not there becomes a
//! directory, as with the peers. Volumes that are images: see `images`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use serde_json::{Value, json};

use super::images::{self, Images};
use super::{Facts, Pod};
use crate::config::{ContainerConfig, IdMaps, Mount, Propagation};
use crate::{Error, Kind, Result, sandbox, selinux};

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A path of the node.
    Path(PathBuf),
    /// Directories of an image's layers, topmost first.
    Layers(Vec<PathBuf>),
}

/// A mount that this container has besides the usual ones, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extra {
    pub(super) source: Source,
    pub(super) destination: PathBuf,
    pub(super) options: Vec<&'static str>,
}

/// What `mount_options` can ask for.
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(Kind::Invalid, text))
}

/// Refuse what no mount can be.
pub(super) fn check(config: &ContainerConfig) -> Result<()> {
    for mount in &config.mounts {
        let place = &mount.container_path;
        if let Some(what) = &mount.unsupported {
            return Err(Error::new(Kind::Unsupported, format!("mount {place}: {what} is not built yet")));
        }
        if place.is_empty() || (mount.host_path.is_empty() && mount.image.is_none()) {
            return invalid(format!("mount {place:?} from {:?}: both paths are needed", mount.host_path));
        }
        if clean(Path::new(place)).parent().is_none() {
            return invalid("a mount cannot replace the container's root");
        }
        if mount.recursive_read_only && !mount.readonly {
            return invalid(format!("mount {place}: recursive_read_only needs readonly"));
        }
        if mount.recursive_read_only && mount.propagation != Propagation::Private {
            return invalid(format!("mount {place}: recursive_read_only needs private propagation"));
        }
        if mount.recursive_read_only && !sys::mount::can_change_recursively() {
            let text = format!("mount {place}: this kernel cannot make mounts recursively read-only");
            return Err(Error::new(Kind::Unsupported, text));
        }
        if let Some(option) = mount.options.iter().find(|option| !OPTIONS.contains(&option.as_str())) {
            return invalid(format!("mount {place}: {option:?} is none of {}", OPTIONS.join(", ")));
        }
        images::check(mount)?;
    }
    Ok(())
}

/// An absolute path without `.`, `..` and doubled slashes; links are not looked at.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

/// Look at all sources. `label`: what SELinux calls the container's files, where it is on.
pub(super) fn gather(
    (pod, config): (&Pod, &ContainerConfig),
    images: &Images,
    dir: &Path,
    label: Option<&str>,
) -> Result<Vec<Extra>> {
    let table = match config.mounts.iter().any(|mount| mount.propagation != Propagation::Private) {
        true => fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Error::because(Kind::Internal, "read /proc/self/mountinfo", e))?,
        false => String::new(),
    };
    let mut asked = Vec::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        let destination = clean(Path::new(&mount.container_path));
        if let Some(image) = images.volumes.get(&index) {
            let mut volume = images::volume(mount, image, destination, dir)?;
            volume.options.extend(pod.record.config.namespaces.user.as_ref().map(|_| "idmap"));
            asked.push(volume);
            continue;
        }
        let source = source(Path::new(&mount.host_path))?;
        check_propagation(mount, &source, &table)?;
        if let Some(label) = label.filter(|_| mount.selinux_relabel) {
            selinux::relabel(&source, label)
                .map_err(|e| e.within(format!("mount {}", mount.container_path)))?;
        }
        asked.push(Extra { source: Source::Path(source), destination, options: options(mount) });
    }
    let mut ours = of_pod(pod, config);
    let user = pod.record.config.namespaces.user.as_ref();
    ours.extend(volumes(config, &images.root, dir, (user, label))?);
    ours.retain(|mount| !asked.iter().any(|other| other.destination == mount.destination));
    ours.extend(asked);
    ours.sort_by_key(|mount| mount.destination.components().count());
    Ok(ours)
}

/// The source of a bind mount: links followed, a directory made when there is nothing.
fn source(path: &Path) -> Result<PathBuf> {
    let failed = |e: io::Error| Error::because(Kind::Invalid, format!("mount source {}", path.display()), e);
    match fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let end = end_of_links(path).map_err(failed)?;
            fs::DirBuilder::new().recursive(true).mode(0o755).create(end).map_err(failed)?;
            fs::canonicalize(path).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

/// Where a path ends when its last part is a link to a place that is not there.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut end = path.to_owned();
    for _ in 0..40 {
        match fs::read_link(&end) {
            Ok(target) => end = end.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(end),
        }
    }
    Err(nix::errno::Errno::ELOOP.into())
}

/// Words for what `mount_options` asks for.
pub(super) fn asked_options(mount: &Mount) -> impl Iterator<Item = &'static str> {
    OPTIONS.into_iter().filter(|option| mount.options.iter().any(|asked| asked == option))
}

fn options(mount: &Mount) -> Vec<&'static str> {
    let mut options = vec!["rbind"];
    options.push(match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    });
    options.push(if mount.readonly { "ro" } else { "rw" });
    if mount.recursive_read_only {
        options.push("rro");
    }
    options.extend(asked_options(mount));
    // which are the pod's
    options.extend(mount.id_maps.as_ref().map(|_| "idmap"));
    options
}

/// Refuse what a mount cannot be in this pod.
pub(super) fn check_in(config: &ContainerConfig, user: Option<&IdMaps>) -> Result<()> {
    for mount in &config.mounts {
        let place = &mount.container_path;
        if mount.id_maps.is_some() && mount.id_maps.as_ref() != user {
            let text = format!("mount {place}: id mappings other than those of the pod's user namespace");
            return Err(Error::new(Kind::Unsupported, text));
        }
        if user.is_some() && mount.propagation == Propagation::Bidirectional {
            // the kernel makes such a mount a slave
            return invalid(format!("mount {place}: nothing spreads out of a user namespace"));
        }
    }
    Ok(())
}

/// Mounts can only spread where the source's own mount lets them.
fn check_propagation(mount: &Mount, source: &Path, table: &str) -> Result<()> {
    let (shared, slave) = spreads(source, table);
    let refuse = |what: &str| {
        invalid(format!("mount {}: {} is not on a {what} mount", mount.container_path, source.display()))
    };
    match mount.propagation {
        Propagation::Private => Ok(()),
        Propagation::Bidirectional if !shared => refuse("shared"),
        Propagation::HostToContainer if !shared && !slave => refuse("shared or slave"),
        _ => Ok(()),
    }
}

/// Whether the mount that a path is on is shared, and whether it is a slave (proc(5), mountinfo).
fn spreads(path: &Path, table: &str) -> (bool, bool) {
    let mut best = (0, (false, false));
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(point) = fields.get(4) else { continue };
        let point = PathBuf::from(unescape(point));
        let length = point.components().count();
        // the last of several at one place is the one that is seen
        if path.starts_with(&point) && length >= best.0 {
            let optional = || fields.iter().skip(6).take_while(|field| **field != "-");
            let has = |what: &str| optional().any(|field| field.starts_with(what));
            best = (length, (has("shared:"), has("master:")));
        }
    }
    best.1
}

/// mountinfo writes blanks, tabs, newlines and backslashes in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The files and the shared memory of the pod.
fn of_pod(pod: &Pod, config: &ContainerConfig) -> Vec<Extra> {
    let read = if config.security.readonly_rootfs { "ro" } else { "rw" };
    let file = |name: &str| Extra {
        source: Source::Path(pod.run_dir.join(name)),
        destination: Path::new("/etc").join(name),
        options: vec!["rbind", "rprivate", read],
    };
    let shm = match sandbox::own_ipc(&pod.record.config) {
        true => pod.run_dir.join("shm"),
        false => PathBuf::from("/dev/shm"),
    };
    let options = vec!["rbind", "rprivate", "rw"];
    let shm = Extra { source: Source::Path(shm), destination: "/dev/shm".into(), options };
    vec![file("hosts"), file("hostname"), file("resolv.conf"), shm]
}

/// The volumes of an image. What a volume holds lives as long as the container, and so does the container's own writable layer:
/// a volume that the image has as a directory simply stays there, with all its content. Only a volume in a
/// read-only root, or one that the image has not, becomes a directory of its own.
fn volumes(
    config: &ContainerConfig,
    rootfs: &image::Rootfs,
    dir: &Path,
    (user, label): (Option<&IdMaps>, Option<&str>),
) -> Result<Vec<Extra>> {
    let mut binds = Vec::new();
    for (index, volume) in rootfs.image.config.volumes.iter().enumerate() {
        let destination = clean(Path::new(volume));
        if destination.parent().is_none() {
            return invalid(format!("the image's volume {volume:?} is its root"));
        }
        let there = in_layers(&rootfs.lower, &destination);
        if there.is_some() && !config.security.readonly_rootfs {
            continue;
        }
        let source = dir.join("volumes").join(index.to_string());
        let failed = |e: io::Error| Error::because(Kind::Internal, format!("make volume {volume}"), e);
        fs::create_dir_all(&source).map_err(failed)?;
        if let (None, Some(maps)) = (&there, user) {
            std::os::unix::fs::chown(&source, maps.uid(0), maps.gid(0)).map_err(failed)?;
        }
        if let Some(meta) = there {
            super::own_mapped(&source, &meta, user).map_err(failed)?;
            fs::set_permissions(&source, fs::Permissions::from_mode(meta.mode() & 0o7777)).map_err(failed)?;
        }
        if let Some(label) = label {
            selinux::relabel(&source, label)?;
        }
        let options = vec!["rbind", "rprivate", "rw"];
        binds.push(Extra { source: Source::Path(source), destination, options });
    }
    Ok(binds)
}

/// The topmost layer's directory of this name.
fn in_layers(lower: &[PathBuf], path: &Path) -> Option<fs::Metadata> {
    lower.iter().find_map(|layer| {
        let root = sys::path::open_directory(layer).ok()?;
        let found = sys::path::open_in_root(std::os::fd::AsFd::as_fd(&root), path, OFlag::O_PATH).ok()?;
        fs::File::from(found).metadata().ok().filter(fs::Metadata::is_dir)
    })
}

/// The file systems that every container has, and what they are mounted with.
fn usual(privileged: bool) -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let access = if privileged { "rw" } else { "ro" };
    vec![
        ("/proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", vec!["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/mqueue", "mqueue", vec!["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", vec!["nosuid", "noexec", "nodev", access]),
        ("/sys/fs/cgroup", "cgroup", vec!["nosuid", "noexec", "nodev", "relatime", access]),
    ]
}

/// `mounts`: the root first.
pub(super) fn build(config: &ContainerConfig, facts: &Facts) -> Vec<Value> {
    let mut mounts = vec![root(facts, config.security.namespaces.user.is_some())];
    for (place, kind, options) in usual(config.security.privileged) {
        if !facts.mounts.iter().any(|extra| extra.destination == Path::new(place)) {
            mounts.push(json!({"destination": place, "type": kind, "source": kind, "options": options}));
        }
    }
    mounts.extend(facts.mounts.iter().map(extra));
    mounts
}

fn extra(mount: &Extra) -> Value {
    match &mount.source {
        Source::Path(path) => json!({
            "destination": mount.destination,
            "type": "bind",
            "source": path,
            "options": mount.options,
        }),
        Source::Layers(layers) => {
            let options =
                std::iter::once(lowerdir(layers)).chain(mount.options.iter().map(|o| (*o).to_owned()));
            json!({
                "destination": mount.destination,
                "type": "overlay",
                "source": "overlay",
                "options": options.collect::<Vec<_>>(),
            })
        }
    }
}

fn lowerdir(layers: &[PathBuf]) -> String {
    let layers: Vec<String> = layers.iter().map(|layer| escape(layer)).collect();
    format!("lowerdir={}", layers.join(":"))
}

fn root(facts: &Facts, mapped: bool) -> Value {
    let mut options = vec![
        lowerdir(&facts.lower),
        format!("upperdir={}", facts.dir.join("upper").display()),
        format!("workdir={}", facts.dir.join("work").display()),
    ];
    if facts.volatile {
        options.push("volatile".to_owned());
    }
    if mapped {
        options.push("idmap".to_owned());
    }
    json!({"destination": "/", "type": "overlay", "source": "overlay", "options": options})
}

/// Colons part layers, so one in a name is written `\:`.
fn escape(layer: &Path) -> String {
    layer.display().to_string().replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 259:1 / / rw,relatime - ext4 /dev/root rw
22 21 0:5 / /mnt/shared rw shared:1 - tmpfs tmpfs rw
23 21 0:6 / /mnt/slave rw master:1 - tmpfs tmpfs rw
24 22 0:7 / /mnt/shared/private rw - tmpfs tmpfs rw
25 21 0:8 / /mnt/with\\040blank rw shared:2 - tmpfs tmpfs rw
";

    fn mount(propagation: Propagation) -> Mount {
        Mount { container_path: "/data".into(), host_path: "/x".into(), propagation, ..Mount::default() }
    }

    #[test]
    fn a_path_is_on_the_longest_mount() {
        for (path, want) in [
            ("/etc", (false, false)),
            ("/mnt/shared/a", (true, false)),
            ("/mnt/sharedother", (false, false)),
            ("/mnt/shared/private/b", (false, false)),
            ("/mnt/slave", (false, true)),
            ("/mnt/with blank/x", (true, false)),
        ] {
            assert_eq!(spreads(Path::new(path), TABLE), want, "{path}");
        }
    }

    #[test]
    fn propagation_needs_a_mount_that_spreads() {
        let ok = |propagation, source: &str| {
            check_propagation(&mount(propagation), Path::new(source), TABLE).is_ok()
        };
        assert!(ok(Propagation::Private, "/etc"));
        assert!(ok(Propagation::Bidirectional, "/mnt/shared/a"));
        assert!(!ok(Propagation::Bidirectional, "/mnt/slave"));
        assert!(ok(Propagation::HostToContainer, "/mnt/slave"));
        assert!(!ok(Propagation::HostToContainer, "/etc"));
        let error =
            check_propagation(&mount(Propagation::Bidirectional), Path::new("/etc"), TABLE).unwrap_err();
        assert!(error.context.contains("/etc"), "{error}");
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, want) in
            [("/a//b/./c", "/a/b/c"), ("/a/../b", "/b"), ("/../..", "/"), ("relative", "/relative")]
        {
            assert_eq!(clean(Path::new(path)), Path::new(want));
        }
    }

    #[test]
    fn recursive_read_only_has_three_rejections() {
        let mut config: ContainerConfig =
            serde_json::from_value(json!({"name": "c", "attempt": 0, "image": "i"})).unwrap();
        let mut check = |readonly, propagation| {
            let mount = Mount { readonly, recursive_read_only: true, ..mount(propagation) };
            config.mounts = vec![mount];
            super::check(&config).is_ok()
        };
        assert!(check(true, Propagation::Private));
        assert!(!check(false, Propagation::Private));
        assert!(!check(true, Propagation::HostToContainer));
        assert!(!check(true, Propagation::Bidirectional));
    }

    #[test]
    fn mount_options_are_three() {
        let mut config: ContainerConfig =
            serde_json::from_value(json!({"name": "c", "attempt": 0, "image": "i"})).unwrap();
        let mut check = |words: &[&str]| {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            config.mounts = vec![Mount { options: words, ..mount(Propagation::Private) }];
            super::check(&config).map(|()| options(&config.mounts[0]))
        };
        assert_eq!(check(&["nosuid", "noexec"]).unwrap(), ["rbind", "rprivate", "rw", "noexec", "nosuid"]);
        assert_eq!(check(&[]).unwrap(), ["rbind", "rprivate", "rw"]);
        for word in ["suid", "rw", "bind", ""] {
            let error = check(&["nodev", word]).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.context.contains(&format!("{word:?}")), "{error}");
        }
    }

    #[test]
    fn a_source_that_is_absent_becomes_a_directory_where_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        std::os::unix::fs::symlink("b", at("a")).unwrap();
        std::os::unix::fs::symlink(at("x/y"), at("b")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        assert_eq!(source(&at("a")).unwrap(), at("x/y"));
        assert_eq!(source(&at("plain/deep")).unwrap(), at("plain/deep"));
        assert!(at("plain/deep").is_dir() && at("x/y").is_dir());
        fs::write(at("file"), "").unwrap();
        for bad in ["loop", "file/below"] {
            let error = source(&at(bad)).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.context.contains(bad), "{error}");
        }
    }

    #[test]
    fn colons_in_layers_are_escaped() {
        assert_eq!(escape(Path::new("/a:b\\c")), "/a\\:b\\\\c");
    }
}
