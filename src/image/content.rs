//! A part of an image to be shown in a container as a volume: the root, a directory, or one file.
//!
//! What is answered are places in the layers' directories, found without mounting anything. Links on the way are
//! followed inside the image, so no path leads out of it.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;

use crate::error::{Error, Kind, Result};
use crate::store::Rootfs;
use crate::view::{Resolved, View, kind};

/// Where a part of an image lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Directories to stack, topmost first, read-only.
    Directory(Vec<PathBuf>),
    /// A regular file.
    File(PathBuf),
}

impl Rootfs {
    /// What is at `path` of the image (empty: its root). Blocks. Kind `NotFound` when there is nothing, `Invalid` when it can
    /// be no volume: neither directory nor regular file.
    pub fn content(&self, path: &Path) -> Result<Content> {
        let name = || format!("{} of image {}", path.display(), self.image.id);
        let refused = |why: &str| Error::invalid(format!("{} {why}", name()));
        let found = View::new(&self.lower).and_then(|view| view.resolve(path));
        match found {
            Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => {
                Err(refused("has too many symbolic links on the way"))
            }
            Err(e) => Err(Error::io(format!("look for {}", name()), e)),
            Ok(Resolved::Nothing) => Err(Error::new(Kind::NotFound, format!("there is no {}", name()))),
            Ok(Resolved::Blocked) => {
                let why = io::Error::from(io::ErrorKind::NotADirectory);
                Err(Error::new(Kind::NotFound, format!("there is no {}: {why}", name())))
            }
            Ok(Resolved::Directory(merged)) => {
                Ok(Content::Directory(merged.into_iter().map(|directory| directory.path).collect()))
            }
            Ok(Resolved::Other { stat, path, .. }) if kind(&stat) == SFlag::S_IFREG => {
                Ok(Content::File(path))
            }
            Ok(Resolved::Other { .. }) => Err(refused("is neither a directory nor a regular file")),
        }
    }
}
