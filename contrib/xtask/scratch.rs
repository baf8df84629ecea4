//! A directory that is gone when its owner is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A fresh directory below the system's folder for temporary files.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Make one.
    pub(crate) fn new(name: &str) -> Result<Scratch> {
        let template = std::env::temp_dir().join(format!("corten-{name}.XXXXXX"));
        nix::unistd::mkdtemp(&template).map(Scratch).with_context(|| format!("make {}", template.display()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}
