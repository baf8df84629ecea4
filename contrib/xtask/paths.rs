//! Where things are: the repository, the cache outside of it, and the kit of files that a node is made from.
//!
//! ```text
//! $CORTEN_CACHE (default $XDG_CACHE_HOME/corten, ~/.cache/corten)
//!   tools/<module>-<key>/     crictl, critest, kubernetes, CNI plugins; key: hash of the module's go.mod, go.sum and tools.go
//!   go/                       a Go toolchain, only where the machine has none that can build the tools
//!   images/busybox-<version>  built from Debian's source
//!   docker-registry/          Debian's package, unpacked, only where it is not installed
//!   registry-<key>/           storage of docker-registry with the test images; key: hash of their definitions
//!   vm/                       guest images
//!   <part>.lock               held by the one who makes it
//! ```
//!
//! A kit is a folder with a fixed layout: links to the things above on this machine, copies of them in a VM.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::command::{command, quiet};
use crate::{programs, registry};

/// The repository that this program was built from.
pub(crate) fn repository() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.ancestors().nth(2).unwrap_or(xtask).to_owned()
}

/// Where everything is kept that is expensive to make again.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("CORTEN_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("corten")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/corten")))
        .context("none of CORTEN_CACHE, XDG_CACHE_HOME and HOME is set")?;
    std::fs::create_dir_all(&base).with_context(|| format!("make the cache {}", base.display()))?;
    Ok(base)
}

/// Be the only one that makes a part of the cache, for as long as what is returned lives; whoever else wants it waits, and
/// then finds it made.
pub(crate) fn alone(part: &str) -> Result<Flock<File>> {
    let path = cache()?.join(format!("{part}.lock"));
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).or_else(|(file, _)| {
        eprintln!("waiting for another run that gets {part} ready");
        Flock::lock(file, FlockArg::LockExclusive)
    });
    locked.map_err(|(_, error)| error).with_context(|| format!("lock {}", path.display()))
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// Everything a node is made from, by place.
pub(crate) struct Kit {
    /// corten, corten-runtime, corten-bridge
    pub(crate) programs: PathBuf,
    /// crictl, critest
    pub(crate) cri_tools: PathBuf,
    /// the official CNI plugins
    pub(crate) cni: PathBuf,
    /// kubelet, kube-apiserver, etcd, kubectl
    pub(crate) kubernetes: PathBuf,
    /// docker-registry's storage with the test images
    pub(crate) registry: PathBuf,
    /// the programs of the e2e crate
    pub(crate) suites: PathBuf,
}

impl Kit {
    /// Name in a kit, where it is, and what is taken of it (nothing named: all of it).
    fn parts(&self) -> [(&'static str, &Path, &'static [&'static str]); 6] {
        [
            ("programs", &self.programs, &["corten", "corten-runtime", "corten-bridge"]),
            ("cri-tools", &self.cri_tools, &[]),
            ("cni", &self.cni, &[]),
            ("kubernetes", &self.kubernetes, &[]),
            ("registry", &self.registry, &[]),
            ("suites", &self.suites, programs::SUITES),
        ]
    }

    /// A kit as it lies in a folder that [`Kit::link`] or [`Kit::copy`] made.
    pub(crate) fn at(dir: &Path) -> Kit {
        Kit {
            programs: dir.join("programs"),
            cri_tools: dir.join("cri-tools"),
            cni: dir.join("cni"),
            kubernetes: dir.join("kubernetes"),
            registry: dir.join("registry"),
            suites: dir.join("suites"),
        }
    }

    /// Lay the kit out in `dir` by links, with the registry's program beside it.
    pub(crate) fn link(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        symlink(registry::program()?, dir.join("docker-registry")).context("link docker-registry")?;
        for (name, place, files) in self.parts() {
            let part = dir.join(name);
            if files.is_empty() {
                symlink(place, &part).with_context(|| format!("link {}", place.display()))?;
                continue;
            }
            std::fs::create_dir(&part)?;
            // a kit has the suites only where they are asked for
            for file in files.iter().filter(|file| place.join(file).exists()) {
                symlink(place.join(file), part.join(file)).with_context(|| format!("link {file}"))?;
            }
        }
        Ok(())
    }

    /// Lay the kit out in `dir` by copies, with this program beside it, for a VM.
    pub(crate) fn copy(&self, dir: &Path) -> Result<()> {
        let links = dir.with_extension("links");
        self.link(&links)?;
        quiet(command(&["cp", "-aL"]).arg(&links).arg(dir))?;
        std::fs::remove_dir_all(&links)?;
        std::fs::copy(std::env::current_exe()?, dir.join("xtask"))?;
        Ok(())
    }
}
