//! SELinux: the labels of processes and files, a level for each pod, and volumes that are given a container's label.
//!
//! ```text
//! label    user : role : type : level
//! process  system_u : system_r : container_t : s0:c1,c2    what a container may do; privileged: spc_t, all of it
//! files    system_u : object_r : container_file_t : s0:c1,c2   its root (context= of the overlay), tmpfs, devpts, volumes
//! ```
//!
//! Two categories, a pair that no other pod has, keep pods apart: the policy lets a process touch files and processes only whose
//! categories it has. The pair is part of the pod's record. What a request asks for wins over what the pod asks for, and
//! that over the defaults, part by part. On a node where SELinux is off all of it means nothing and is passed over.
//!
//! The label of a process is switched to by the kernel at the exec (the executor says which); files of an overlay have theirs by
//! mount option, so no layer is labelled. What is bind mounted keeps its label unless the request asks for another.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::{ContainerConfig, NamespaceMode, PodConfig};
use crate::{Error, Kind, Result};

/// Categories that policies have.
const CATEGORIES: u16 = 1024;

/// Where a file's label is.
const ATTRIBUTE: &str = "security.selinux";

/// Trees of the node that no request may relabel: the node would not run any more.
const NEVER: [&str; 17] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root", "/run",
    "/sbin", "/sys", "/tmp", "/usr", "/var",
];

/// A label: user, role, type, level.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.user, self.role, self.kind, self.level)
    }
}

/// Labels of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    /// Of its processes.
    pub(crate) process: String,
    /// Of its files.
    pub(crate) mount: String,
}

/// The node's SELinux.
#[derive(Debug)]
pub(crate) struct Selinux {
    /// Where selinuxfs is.
    root: PathBuf,
    /// Held while a level is chosen and until its pod is in the index.
    choosing: Mutex<()>,
}

impl Selinux {
    /// This node's.
    pub(crate) fn open() -> Selinux {
        Selinux::at(Path::new("/sys/fs/selinux"))
    }

    /// The SELinux that a selinuxfs tells of.
    pub(crate) fn at(root: &Path) -> Selinux {
        Selinux { root: root.to_owned(), choosing: Mutex::default() }
    }

    /// Whether labels mean anything here.
    pub(crate) fn enabled(&self) -> bool {
        self.root.join("enforce").exists()
    }

    /// Whether containers are confined, for people. `Err`: which label the policy lacks, so that no pod starts.
    pub(crate) fn look(&self) -> std::result::Result<String, String> {
        if !self.enabled() {
            return Ok("SELinux: not active in this kernel; labels are passed over".to_owned());
        }
        let level = "s0:c1,c2";
        let none: [String; 4] = Default::default();
        let confined = process(level, &none, None);
        for label in [&confined, &unbound(&confined), &files(&confined)] {
            self.check(label).map_err(|e| e.chain())?;
        }
        let enforcing = fs::read_to_string(self.root.join("enforce")).is_ok_and(|text| text.trim() == "1");
        let mode = if enforcing { "enforcing" } else { "permissive: what it forbids is only logged" };
        Ok(format!(
            "SELinux: {mode}; the policy has {} (with the reference policy, as on Debian, confined containers need the \
             module corten.cil as well)",
            confined.kind
        ))
    }

    /// For the time in which a level is chosen for a pod and its pod made known.
    pub(crate) fn choosing(&self) -> MutexGuard<'_, ()> {
        self.choosing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A level for a new pod that is not among those of the others; what it asks for, when it does. Empty where SELinux
    /// is off. Fails when a label of the pod's is none.
    pub(crate) fn pod_level(&self, pod: &PodConfig, taken: &HashSet<String>) -> Result<String> {
        if !self.enabled() {
            return Ok(String::new());
        }
        let level = match pod.security.selinux[3].as_str() {
            "" => free_level(taken, rand::random)?,
            asked => asked.to_owned(),
        };
        let label = process(&level, &pod.security.selinux, None);
        self.check(&label)?;
        Ok(level)
    }

    /// Label of the files that a pod's containers share: its /dev/shm, /etc/hosts and the like. `None` where SELinux is off.
    pub(crate) fn pod_files(&self, level: &str, pod: &PodConfig) -> Option<String> {
        self.enabled().then(|| files(&process(level, &pod.security.selinux, None)).to_string())
    }

    /// The labels of a container in a pod of a level. `None` where SELinux is off. Fails when the kernel's policy does not
    /// know one of them.
    pub(crate) fn labels(
        &self,
        level: &str,
        pod: &PodConfig,
        container: &ContainerConfig,
    ) -> Result<Option<Labels>> {
        if !self.enabled() {
            return Ok(None);
        }
        // that of a privileged container is looked at too: a request that makes no sense is refused whoever sends it
        let asked = process(level, &pod.security.selinux, Some(container));
        self.check(&asked)?;
        let process = if is_unbound(container) { unbound(&asked) } else { asked.clone() };
        let mount = files(&asked);
        for label in [&process, &mount] {
            self.known(label)?;
        }
        Ok(Some(Labels { process: process.to_string(), mount: mount.to_string() }))
    }

    fn check(&self, label: &Label) -> Result<()> {
        let invalid = |what: &str, text: &str| {
            Err(Error::new(Kind::Invalid, format!("SELinux label {label}: {text:?} is not a {what}")))
        };
        for (what, text) in [("user", &label.user), ("role", &label.role), ("type", &label.kind)] {
            if !is_name(text) {
                return invalid(what, text);
            }
        }
        if !is_level(&label.level) {
            return invalid("level", &label.level);
        }
        self.known(label)
    }

    /// Ask the policy (selinuxfs, `context`).
    fn known(&self, label: &Label) -> Result<()> {
        match fs::write(self.root.join("context"), label.to_string()) {
            Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => {
                let text = format!("SELinux label {label}: the policy of this node does not know it");
                Err(Error::new(Kind::Invalid, text))
            }
            // one that may not ask finds out when the label is used
            _ => Ok(()),
        }
    }
}

/// A level of two categories that nobody has.
fn free_level(taken: &HashSet<String>, mut random: impl FnMut() -> u32) -> Result<String> {
    let all = u32::from(CATEGORIES) * u32::from(CATEGORIES - 1) / 2;
    let first = random() % all;
    (0..all)
        .map(|step| pair((first + step) % all))
        .find(|level| !taken.contains(level))
        .ok_or_else(|| Error::new(Kind::Unavailable, "every pair of SELinux categories is in use"))
}

/// The n-th pair of categories: (0,1), (0,2), (1,2), (0,3), …
fn pair(number: u32) -> String {
    let high = (1 + 8 * number).isqrt().div_ceil(2);
    let rest = number - high * (high - 1) / 2;
    format!("s0:c{rest},c{high}")
}

/// Process label that a pod, or a container in it, asks for.
fn process(level: &str, pod: &[String; 4], container: Option<&ContainerConfig>) -> Label {
    let part = |index: usize, default: &str| -> String {
        let own = container.map_or("", |container| container.security.selinux[index].as_str());
        let parts = [own, pod[index].as_str(), default];
        parts.into_iter().find(|part| !part.is_empty()).unwrap_or("s0").to_owned()
    };
    Label {
        user: part(0, "system_u"),
        role: part(1, "system_r"),
        kind: part(2, "container_t"),
        // the pod's own level is its request's already, where that has one
        level: match container.map_or("", |container| container.security.selinux[3].as_str()) {
            "" if level.is_empty() => "s0".to_owned(),
            "" => level.to_owned(),
            own => own.to_owned(),
        },
    }
}

/// Label of the files that belong to processes of a label.
fn files(process: &Label) -> Label {
    Label {
        user: process.user.clone(),
        role: "object_r".to_owned(),
        kind: "container_file_t".to_owned(),
        level: process.level.clone(),
    }
}

/// Whether the policy shall not confine a container: privileged, or in a namespace of the node where it meets processes of
/// other labels, unless it asks for a type.
fn is_unbound(container: &ContainerConfig) -> bool {
    let security = &container.security;
    let space = &security.namespaces;
    let shares = space.pid == NamespaceMode::Node || space.ipc == NamespaceMode::Node;
    security.privileged || (shares && security.selinux[2].is_empty())
}

fn unbound(asked: &Label) -> Label {
    Label { kind: "spc_t".to_owned(), role: "system_r".to_owned(), level: "s0".to_owned(), ..asked.clone() }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// `s0`, `s0:c1,c2`, `s0:c0.c1023`, and two of them with a `-` between.
fn is_level(text: &str) -> bool {
    let number = |text: &str, letter: char| {
        let digits = text.strip_prefix(letter)?;
        let plain = !digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit());
        if plain { digits.parse::<u32>().ok() } else { None }
    };
    let category = |text: &str| match text.split_once('.') {
        None => number(text, 'c').is_some(),
        Some((low, high)) => number(low, 'c').zip(number(high, 'c')).is_some_and(|(low, high)| low < high),
    };
    let one = |text: &str| match text.split_once(':') {
        None => number(text, 's').is_some(),
        Some((sensitivity, categories)) => {
            number(sensitivity, 's').is_some() && categories.split(',').all(category)
        }
    };
    text.splitn(2, '-').all(one)
}

/// Give a tree a label: the file or directory at `path` (no link), and all below it. A file system that has no labels is
/// left as it is. Blocks.
pub(crate) fn relabel(path: &Path, label: &str) -> Result<()> {
    if NEVER.iter().any(|never| path == Path::new(never)) {
        let text =
            format!("{} is not relabelled for SELinux: the node itself needs its labels", path.display());
        return Err(Error::new(Kind::Invalid, text));
    }
    let failed =
        |e: io::Error| Error::because(Kind::Internal, format!("relabel {} to {label}", path.display()), e);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let parent = sys::path::open_directory(parent).map_err(|e| failed(e.into()))?;
    tree(parent.as_fd(), name, label).map_err(failed)
}

fn tree(parent: std::os::fd::BorrowedFd<'_>, name: &OsStr, label: &str) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{OFlag, openat};
    match sys::path::set_xattr_at(parent, name, OsStr::new(ATTRIBUTE), label.as_bytes()) {
        // it went meanwhile, or cannot have one
        Err(e) if matches!(e.errno, Errno::ENOENT | Errno::EOPNOTSUPP) => return Ok(()),
        other => other?,
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match openat(parent, name, flags, nix::sys::stat::Mode::empty()) {
        Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let mut entries = nix::dir::Dir::from_fd(directory.try_clone()?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            tree(directory.as_fd(), std::os::unix::ffi::OsStrExt::from_bytes(name), label)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SecurityContext;
    use proptest::prelude::*;

    fn pod(selinux: [&str; 4]) -> PodConfig {
        let mut pod: PodConfig = serde_json::from_value(serde_json::json!({
            "name": {"name": "p", "uid": "u", "namespace": "n", "attempt": 0}
        }))
        .unwrap();
        pod.security.selinux = selinux.map(str::to_owned);
        pod
    }

    fn container(edit: impl FnOnce(&mut SecurityContext)) -> ContainerConfig {
        let mut container: ContainerConfig =
            serde_json::from_value(serde_json::json!({"name": "c", "attempt": 0, "image": "i"})).unwrap();
        edit(&mut container.security);
        container
    }

    /// A selinuxfs that knows every label.
    fn scene() -> (tempfile::TempDir, Selinux) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("enforce"), "1").unwrap();
        let selinux = Selinux::at(dir.path());
        (dir, selinux)
    }

    #[test]
    fn defaults_pod_and_container_in_this_order() {
        let (_dir, selinux) = scene();
        let asked = |pod_asks, asks: [&str; 4]| {
            let container = container(|security| security.selinux = asks.map(str::to_owned));
            let labels = selinux.labels("s0:c1,c2", &pod(pod_asks), &container).unwrap().unwrap();
            (labels.process, labels.mount)
        };
        let own = |process: &str, mount: &str| (process.to_owned(), mount.to_owned());
        assert_eq!(
            asked([""; 4], [""; 4]),
            own("system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2")
        );
        assert_eq!(
            asked(["u", "r", "t", ""], ["", "", "own_t", "s0:c7"]),
            own("u:r:own_t:s0:c7", "u:object_r:container_file_t:s0:c7")
        );
    }

    #[test]
    fn who_is_not_confined() {
        let (_dir, selinux) = scene();
        let process = |edit: fn(&mut SecurityContext)| {
            let labels = selinux.labels("s0:c1,c2", &pod([""; 4]), &container(edit)).unwrap().unwrap();
            assert_eq!(labels.mount, "system_u:object_r:container_file_t:s0:c1,c2");
            labels.process
        };
        let unbound = "system_u:system_r:spc_t:s0";
        assert_eq!(process(|security| security.privileged = true), unbound);
        assert_eq!(process(|security| security.namespaces.pid = NamespaceMode::Node), unbound);
        assert_eq!(process(|security| security.namespaces.ipc = NamespaceMode::Node), unbound);
        let named = process(|security| {
            security.namespaces.pid = NamespaceMode::Node;
            security.selinux[2] = "own_t".to_owned();
        });
        assert_eq!(named, "system_u:system_r:own_t:s0:c1,c2");
        assert_eq!(
            process(|security| security.namespaces.network = NamespaceMode::Node),
            "system_u:system_r:container_t:s0:c1,c2"
        );
    }

    #[test]
    fn what_is_no_label_is_refused_where_selinux_is_on() {
        let (dir, selinux) = scene();
        for (part, bad) in [(0, "a:b"), (1, "a b"), (2, "t,x"), (3, "s0,c4,c5"), (3, "c1"), (3, "s0:c2.c1")] {
            for privileged in [false, true] {
                let wrong = container(|security| {
                    security.privileged = privileged;
                    security.selinux[part] = bad.to_owned();
                });
                let error = selinux.labels("s0:c1,c2", &pod([""; 4]), &wrong).unwrap_err();
                assert!(error.kind == Kind::Invalid && error.context.contains(bad), "{error}");
            }
            let mut wrong = pod([""; 4]);
            wrong.security.selinux[part] = bad.to_owned();
            assert_eq!(selinux.pod_level(&wrong, &HashSet::new()).unwrap_err().kind, Kind::Invalid);
        }
        fs::remove_file(dir.path().join("enforce")).unwrap();
        let wrong = container(|security| security.selinux[3] = "s0,c4".to_owned());
        assert_eq!(selinux.labels("", &pod([""; 4]), &wrong).unwrap(), None);
        assert_eq!(selinux.pod_level(&pod([""; 4]), &HashSet::new()).unwrap(), "");
    }

    #[test]
    fn levels_are_unique() {
        let (_dir, selinux) = scene();
        let mut taken = HashSet::new();
        for _ in 0..500 {
            let level = selinux.pod_level(&pod([""; 4]), &taken).unwrap();
            assert!(is_level(&level) && taken.insert(level));
        }
        assert_eq!(selinux.pod_level(&pod(["", "", "", "s0:c5"]), &taken).unwrap(), "s0:c5");
        let mut all: HashSet<String> = (0..1024 * 1023 / 2).map(pair).collect();
        assert_eq!(all.len(), 1024 * 1023 / 2);
        assert_eq!(free_level(&all, || 7).unwrap_err().kind, Kind::Unavailable);
        all.remove("s0:c3,c900");
        assert_eq!(free_level(&all, || u32::MAX).unwrap(), "s0:c3,c900");
    }

    #[test]
    fn levels() {
        for good in ["s0", "s15:c0.c1023", "s0:c1,c2", "s0:c1.c3,c5", "s0-s0:c0.c1023", "s0:c1-s0:c1,c2"] {
            assert!(is_level(good), "{good}");
        }
        for bad in ["", "s", "0", "s0:", "s0:c", "s0:c1,", "s0,c1", "s0:c3.c3", "s0-", "s0-s0-s0", "s0:c1:c2"]
        {
            assert!(!is_level(bad), "{bad}");
        }
    }

    #[test]
    fn trees_of_the_node_are_never_relabelled() {
        for path in ["/", "/usr", "/etc"] {
            assert_eq!(relabel(Path::new(path), "x").unwrap_err().kind, Kind::Invalid);
        }
    }

    #[test]
    fn a_tree_is_relabelled_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (tree, outside) = (root.join("tree"), root.join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        nix::unistd::mkfifo(&tree.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let label = |path: &Path| {
            let directory = sys::path::open_directory(path).unwrap();
            sys::path::get_xattr(directory.as_fd(), OsStr::new(ATTRIBUTE)).unwrap()
        };
        let before = label(&outside);
        let want = b"system_u:object_r:container_file_t:s0:c1,c2".to_vec();
        let text = String::from_utf8(want.clone()).unwrap();
        if let Err(error) = relabel(&tree, &text) {
            eprintln!("SKIP a_tree_is_relabelled_and_links_are_not_followed: {}", error.chain());
            return;
        }
        if label(&tree).is_none() {
            eprintln!(
                "SKIP a_tree_is_relabelled_and_links_are_not_followed: no labels in {}",
                root.display()
            );
            return;
        }
        for path in [tree.clone(), tree.join("a"), tree.join("a/b")] {
            assert_eq!(label(&path), Some(want.clone()), "{}", path.display());
        }
        assert_eq!(label(&outside), before);
        relabel(&tree.join("a/b/file"), &text).unwrap();
        let file = fs::File::open(tree.join("a/b/file")).unwrap();
        assert_eq!(sys::path::get_xattr(file.as_fd(), OsStr::new(ATTRIBUTE)).unwrap(), Some(want));
    }

    proptest! {
        #[test]
        fn any_text_is_a_level_or_not(text in "[sc0-9:.,-]{0,20}|.{0,20}") {
            let _ = is_level(&text);
        }

        #[test]
        fn every_pair_is_a_level_of_two_categories(number in 0_u32..1024 * 1023 / 2) {
            let level = pair(number);
            let categories: Vec<u16> =
                level.strip_prefix("s0:").unwrap().split(',').map(|c| c[1..].parse().unwrap()).collect();
            prop_assert!(is_level(&level));
            prop_assert!(categories.len() == 2 && categories[0] < categories[1] && categories[1] < CATEGORIES);
        }
    }

    #[test]
    fn what_a_look_tells() {
        let dir = tempfile::tempdir().unwrap();
        let selinux = Selinux::at(dir.path());
        assert!(selinux.look().unwrap().contains("not active"));
        for (text, mode) in [("1", "SELinux: enforcing; "), ("0", "SELinux: permissive")] {
            fs::write(dir.path().join("enforce"), text).unwrap();
            let told = selinux.look().unwrap();
            assert!(told.starts_with(mode) && told.contains("container_t"), "{told}");
        }
    }
}
