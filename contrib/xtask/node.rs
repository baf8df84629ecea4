//! `cargo xtask node`: a throw-away node, seen from outside.
//!
//! This side gets everything ready that a node is made from, makes its folder, starts [`crate::inside`] (this same program,
//! in namespaces of its own) or the VM in which that runs, and afterwards checks that this machine is as before.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::install::{self, Need};
use crate::paths::{Kit, cache};
use crate::programs::{self, Profile};
use crate::scratch::Scratch;
use crate::world::{self, Scope};
use crate::{cgroup, images, tools, vm, watch};

/// In a node's folder: its cgroups, one a line.
const PLACES: &str = "cgroups";

/// What a node shall be like.
#[derive(Clone)]
pub(crate) struct Options {
    /// further daemon configuration, read in this order
    pub(crate) config: Vec<PathBuf>,
    /// the official CNI plugins instead of our bridge
    pub(crate) official_cni: bool,
    /// in a VM of this kind (`uml`, `qemu`)
    pub(crate) vm: Option<String>,
    /// the security module of the VM (`apparmor`, `selinux`, `none`); nothing: the script's own choice
    pub(crate) lsm: Option<String>,
    /// folders that are there under their own path in the VM too
    pub(crate) shares: Vec<PathBuf>,
    /// where what the command leaves in $OUT arrives
    pub(crate) out: Option<PathBuf>,
    /// keep the daemon's state on a tmpfs
    pub(crate) tmpfs: bool,
    /// Other daemons work outside of the node meanwhile: what they leave on this machine is theirs.
    pub(crate) peers: bool,
    /// how the programs are built
    pub(crate) profile: Profile,
    /// where its output goes; nothing: this terminal
    pub(crate) log: Option<PathBuf>,
    /// what is run in it; nothing: a shell
    pub(crate) command: Vec<OsString>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            config: Vec::new(),
            official_cni: false,
            vm: None,
            lsm: None,
            shares: Vec::new(),
            out: None,
            tmpfs: false,
            peers: false,
            profile: Profile::Release,
            log: None,
            command: Vec::new(),
        }
    }
}

/// Make what a node with these options is made from, as far as it is not there yet: a suite, the cluster's programs and
/// the official plugins only where they are asked for, since they take long.
pub(crate) fn kit_for(options: &Options) -> Result<Kit> {
    let mut kit = programs_and_crictl(options.profile)?;
    if options.official_cni {
        kit.cni = tools::ensure(&tools::CNI)?;
    }
    if names(&options.command, programs::SUITES) {
        kit.suites = programs::build_suites()?;
    }
    if names(&options.command, &["kubelet-suite", "kubelet", "kube-apiserver", "kubectl", "etcd"]) {
        kit.kubernetes = tools::ensure(&tools::KUBERNETES)?;
    }
    Ok(kit)
}

/// Whether a command has one of the programs among its words, or in a script that is one of them.
fn names(command: &[OsString], programs: &[&str]) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    command.iter().any(|word| word.to_string_lossy().split(|c| !part(c)).any(|word| programs.contains(&word)))
}

/// Make everything that any node is made from.
pub(crate) fn kit(profile: Profile) -> Result<Kit> {
    Ok(Kit {
        cni: tools::ensure(&tools::CNI)?,
        kubernetes: tools::ensure(&tools::KUBERNETES)?,
        suites: programs::build_suites()?,
        ..programs_and_crictl(profile)?
    })
}

/// The same without what only tests need: an empty folder takes its place.
pub(crate) fn programs_and_crictl(profile: Profile) -> Result<Kit> {
    install::ensure(&[Need::Programs, Need::Tools, Need::Images, Need::Node])?;
    let nothing = cache()?.join("nothing");
    std::fs::create_dir_all(&nothing)?;
    Ok(Kit {
        programs: programs::build(profile)?,
        cri_tools: tools::ensure(&tools::CRI_TOOLS)?,
        cni: nothing.clone(),
        kubernetes: nothing.clone(),
        registry: images::ensure()?,
        suites: nothing,
    })
}

/// Run the command in a node of its own; its exit code.
pub(crate) fn run(kit: &Kit, options: &Options) -> Result<i32> {
    if options.vm.is_some() {
        return vm::run(kit, options);
    }
    sweep();
    let scratch = Scratch::new("node")?;
    kit.link(&scratch.path().join("kit"))?;
    let name = scratch.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let scope = Scope { netns: vec!["/run/netns".into()], ..Scope::default() };
    let before = world::look(&scope);
    let places = cgroup::places(&name)?;
    // for a sweep from another cgroup
    let list: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    std::fs::write(scratch.path().join(PLACES), list.join("\n"))?;
    nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("inside").arg(scratch.path()).args(flags(options)?).arg("--").args(&options.command);
    redirect(&mut command, options)?;
    let code = watch::run(&mut command)?;
    let mut left =
        if options.peers { Vec::new() } else { world::left_behind(&before, &scope, Duration::from_secs(5)) };
    if !cgroup::remove(&places) {
        left.push(format!("a cgroup named {name}"));
    }
    left.iter().for_each(|what| eprintln!("node: left on this machine: {what}"));
    Ok(if code == 0 && !left.is_empty() { 1 } else { code })
}

/// Remove what nodes have left whose processes were killed.
fn sweep() {
    for left in Scratch::left(&std::env::temp_dir(), "corten-node") {
        let name = left.path().file_name().unwrap_or_default().to_owned();
        let list = std::fs::read_to_string(left.path().join(PLACES)).unwrap_or_default();
        // a node has cgroups of its own name only
        let places: Vec<PathBuf> =
            list.lines().map(PathBuf::from).filter(|place| place.file_name() == Some(&name)).collect();
        if !cgroup::remove(&places) {
            eprintln!("node: an earlier node's cgroup cannot be removed: {}", name.display());
        }
    }
}

/// Send a command's output to the log, if there is one.
pub(crate) fn redirect(command: &mut Command, options: &Options) -> Result<()> {
    if let Some(log) = &options.log {
        let file = std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(std::process::Stdio::null()).stdout(file.try_clone()?).stderr(file);
    }
    Ok(())
}

/// The options that matter inside, as flags.
pub(crate) fn flags(options: &Options) -> Result<Vec<OsString>> {
    let mut flags: Vec<OsString> = Vec::new();
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
    for config in &options.config {
        flags.extend(["--config".into(), absolute(config)?.into()]);
    }
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
        flags.extend(["--out".into(), absolute(out)?.into()]);
    }
    if options.official_cni {
        flags.extend(["--cni".into(), "official".into()]);
    }
    if options.tmpfs {
        flags.push("--tmpfs".into());
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_asked_for_by_name() {
        let asks = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            names(&words, programs::SUITES)
        };
        assert!(asks(&["critest-suite", "--parallel", "4"]));
        assert!(asks(&["timeout", "60", "beyond-suite"]));
        assert!(asks(&["sh", "-c", "cd /; churn;true"]));
        assert!(!asks(&["crictl", "pods"]));
        assert!(!asks(&["sh", "-c", "echo my-churn"]));
        assert!(!asks(&[]));
    }
}
