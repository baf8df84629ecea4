//! Where the store keeps what.
//!
//! ```text
//! lock                          held by the daemon that owns the store
//! manifests/sha256/<hex>        documents as they came
//! configs/sha256/<hex>
//! layers/<diff id's hex>/       layer.json, fs/
//! skeletons/<image id's hex>/   fs/ (only where an image needs one, see `skeleton`)
//! records/<image id's hex>.json an image; written last
//! holds/<container>.json        layers that a container uses
//! tmp/                          whatever is not complete; emptied at start
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{Flock, FlockArg};
use oci::{Algorithm, ContainerId, Digest};

use crate::error::{Error, Kind, Result};

/// The paths of a store.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    next: AtomicU64,
    /// Keeps other daemons out.
    _lock: Flock<File>,
}

/// Something below `tmp/` that is removed when this is dropped (which blocks).
#[derive(Debug)]
pub(crate) struct Scratch {
    path: Option<PathBuf>,
}

/// The part of a file name that stands for a digest: a colon would divide overlay's options.
fn name(digest: &Digest) -> String {
    match digest.algorithm() {
        Algorithm::Sha256 => digest.hex().to_owned(),
        Algorithm::Sha512 => format!("sha512-{}", digest.hex()),
    }
}

impl Layout {
    /// Makes what is missing of the directories and takes the lock.
    pub(crate) fn open(root: &Path) -> Result<Layout> {
        let failed =
            |what: &str, path: &Path, e: io::Error| Error::io(format!("{what} {}", path.display()), e);
        for folder in ["", "manifests", "configs", "layers", "skeletons", "records", "holds", "tmp"] {
            let path = root.join(folder);
            // layers hold setuid programs: nobody else may walk in
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|e| failed("make", &path, e))?;
        }
        let path = root.join("lock");
        let file = File::create(&path).map_err(|e| failed("make", &path, e))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            let text = format!("the image store {} is in use by another daemon: {errno}", root.display());
            Error::new(Kind::Unavailable, text)
        })?;
        Ok(Layout { root: root.to_owned(), next: AtomicU64::new(0), _lock: lock })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A directory of the store, by its name.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn manifest(&self, digest: &Digest) -> PathBuf {
        self.blob("manifests", digest)
    }

    pub(crate) fn config(&self, digest: &Digest) -> PathBuf {
        self.blob("configs", digest)
    }

    fn blob(&self, folder: &str, digest: &Digest) -> PathBuf {
        self.root.join(folder).join(digest.algorithm().name()).join(digest.hex())
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(name(diff_id))
    }

    pub(crate) fn skeleton(&self, image: &Digest) -> PathBuf {
        self.root.join("skeletons").join(name(image))
    }

    pub(crate) fn record(&self, image: &Digest) -> PathBuf {
        self.root.join("records").join(format!("{}.json", name(image)))
    }

    pub(crate) fn hold(&self, container: &ContainerId) -> PathBuf {
        self.root.join("holds").join(format!("{container}.json"))
    }

    /// A name below `tmp/` that nothing has yet.
    pub(crate) fn scratch(&self) -> Scratch {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join("tmp").join(n.to_string());
            // what an earlier daemon left may still be there
            if path.symlink_metadata().is_err() {
                return Scratch { path: Some(path) };
            }
        }
    }

    /// A new directory below `tmp/`, with an empty directory `fs` in it.
    pub(crate) fn scratch_tree(&self) -> Result<Scratch> {
        let scratch = self.scratch();
        let tree = scratch.path().join("fs");
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&tree);
        // the umask may have taken bits from what becomes the root of a container
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        made.and_then(|()| std::fs::set_permissions(&tree, mode))
            .map_err(|e| Error::io(format!("make {}", tree.display()), e))?;
        Ok(scratch)
    }

    /// Moves `path` away, to be removed when the answer is dropped.
    pub(crate) fn discard(&self, path: &Path) -> io::Result<Scratch> {
        let scratch = self.scratch();
        std::fs::rename(path, scratch.path())?;
        Ok(scratch)
    }
}

impl Scratch {
    /// Takes over something that lies below `tmp/` already.
    pub(crate) fn existing(path: PathBuf) -> Self {
        Scratch { path: Some(path) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Renames it to where it belongs.
    pub(crate) fn publish(mut self, target: &Path) -> io::Result<()> {
        std::fs::rename(self.path(), target)?;
        self.path = None;
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let removed = match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("remove {}: {e}; the next start tries again", path.display());
            }
            _ => {}
        }
    }
}
