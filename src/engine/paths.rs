//! Where the engine's files are. Nothing else in this crate joins a path with an id.
//!
//! ```text
//! <state>/pods/<pod id>/record.json
//! <state>/containers/<container id>/{record.json, bundle/{config.json, rootfs/}, upper/, work/, volumes/}
//! <run>/pods/<pod id>/{sandbox.json, monitor.sock, resolv.conf, hostname, hosts, shm/, <container id>.exit, …}
//! <run>/seccomp/
//! ```

use std::path::{Path, PathBuf};

use oci::{ContainerId, PodId};

/// The engine's two roots.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    state: PathBuf,
    run: PathBuf,
}

impl Paths {
    pub(crate) fn new(state: &Path, run: &Path) -> Paths {
        Paths { state: state.to_owned(), run: run.to_owned() }
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    pub(crate) fn pod(&self, id: &PodId) -> PathBuf {
        self.pods().join(id.as_str())
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }

    pub(crate) fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    pub(crate) fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("bundle")
    }

    pub(crate) fn upper(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("upper")
    }

    pub(crate) fn run_pods(&self) -> PathBuf {
        self.run.join("pods")
    }

    pub(crate) fn run_pod(&self, id: &PodId) -> PathBuf {
        self.run_pods().join(id.as_str())
    }

    pub(crate) fn shm(&self, id: &PodId) -> PathBuf {
        self.run_pod(id).join("shm")
    }

    pub(crate) fn seccomp(&self) -> PathBuf {
        self.run.join("seccomp")
    }
}
