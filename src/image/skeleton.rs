//! Right modes and owners for directories that a layer has only because it has something in them.
//!
//! A layer is unpacked once, without the layers below it, and shared by images that may have different ones below. A parent
//! directory that its archive does not describe is therefore made with root's 0755. In an overlay the topmost layer that has
//! a directory decides how it looks, so `/tmp` of a base image (1777) would show as 0755 as soon as a layer above adds
//! `/tmp/x` alone. The layer cannot be corrected: it is shared.
//!
//! So an image that needs it gets one more layer on top, made of directories only, each with mode, owner, times and
//! attributes of the topmost layer that *describes* it. An image needs it when the topmost directory at some path is an
//! undescribed one and the described one below differs. Layers that builders write describe their parents, so this is rare.
//! The skeleton lies in `skeletons/<image id>/fs` and goes with the image.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use sys::path;

use crate::view::{Found, find};

/// One layer: its directory and the directories that it does not describe.
pub(crate) struct Layer {
    pub(crate) root: OwnedFd,
    pub(crate) implicit: BTreeSet<Vec<u8>>,
}

/// A directory whose look is right.
struct Model {
    fd: OwnedFd,
    stat: FileStat,
    /// A layer above has the directory without describing it.
    covered: bool,
}

/// Builds the skeleton of `layers` (topmost first, cut below an opaque root) into the existing, empty directory `target`.
/// Answers whether anything is in it.
pub(crate) fn build(layers: &[Layer], target: &Path) -> io::Result<bool> {
    let mut wanted: BTreeSet<Vec<u8>> = BTreeSet::new();
    let candidates: BTreeSet<&Vec<u8>> = layers.iter().flat_map(|layer| &layer.implicit).collect();
    let mut needed = false;
    for path in candidates.into_iter().filter(|path| is_described(layers, path)) {
        if model(layers, path)?.is_some_and(|model| model.covered && !is_plain(&model)) {
            needed = true;
            wanted.extend(ancestors(path));
        }
    }
    if !needed {
        return Ok(false);
    }
    wanted.insert(Vec::new());
    let mut made = Vec::new();
    // ascending: parents come first
    for path in &wanted {
        let Some(model) = model(layers, path)? else { continue };
        made.push((directory(target, path)?, model));
    }
    for (fd, model) in made.iter().rev() {
        imitate(fd, model)?;
    }
    Ok(true)
}

/// Whether any layer describes this directory. Mostly none does, and one call per layer tells.
fn is_described(layers: &[Layer], path: &[u8]) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let name = if path.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(path)) };
    let has = |layer: &Layer| path::open_beneath(layer.root.as_fd(), name, flags).is_ok();
    layers.iter().any(|layer| !layer.implicit.contains(path) && has(layer))
}

/// `a`, `a/b`, `a/b/c` of `a/b/c`.
fn ancestors(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| path[..end].to_vec())
}

/// The topmost directory at `path` that its layer describes.
fn model(layers: &[Layer], path: &[u8]) -> io::Result<Option<Model>> {
    let mut covered = false;
    for layer in layers {
        let (found, ends) = locate(layer, path)?;
        if let Some(fd) = found {
            if !layer.implicit.contains(path) {
                return Ok(Some(Model { stat: fstat(&fd)?, fd, covered }));
            }
            covered = true;
        }
        if ends {
            break;
        }
    }
    Ok(None)
}

/// The directory at `path` in one layer, and whether this layer hides what lower ones have there.
fn locate(layer: &Layer, path: &[u8]) -> io::Result<(Option<OwnedFd>, bool)> {
    let mut here = layer.root.try_clone()?;
    let mut ends = false;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        match find(&here, OsStr::from_bytes(name))? {
            Found::Nothing => return Ok((None, ends)),
            Found::Whiteout | Found::Other { .. } => return Ok((None, true)),
            Found::Directory { fd, opaque } => {
                ends |= opaque;
                here = fd;
            }
        }
    }
    Ok((Some(here), ends))
}

/// Whether it looks as an undescribed directory does anyway.
fn is_plain(model: &Model) -> bool {
    let stat = &model.stat;
    stat.st_mode & 0o7777 == 0o755 && stat.st_uid == 0 && stat.st_gid == 0 && attributes(model).is_empty()
}

/// The attributes to copy.
fn attributes(model: &Model) -> Vec<std::ffi::CString> {
    let mut names = path::list_xattrs(model.fd.as_fd()).unwrap_or_default();
    names.retain(|name| {
        let name = name.as_bytes();
        !name.starts_with(b"trusted.overlay.")
            && !name.starts_with(b"user.overlay.")
            && name != b"security.selinux"
    });
    names
}

fn directory(target: &Path, path: &[u8]) -> io::Result<OwnedFd> {
    let root = path::open_directory(target)?;
    if path.is_empty() {
        return Ok(root);
    }
    let relative = Path::new(OsStr::from_bytes(path));
    mkdirat(&root, relative, Mode::from_bits_truncate(0o755))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(&root, relative, flags, Mode::empty())?)
}

fn imitate(fd: &OwnedFd, model: &Model) -> io::Result<()> {
    let stat = &model.stat;
    fchown(fd, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(fd, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    for name in attributes(model) {
        let name = OsStr::from_bytes(name.as_bytes());
        if let Some(value) = path::get_xattr(model.fd.as_fd(), name)? {
            path::set_xattr(fd.as_fd(), name, &value)?;
        }
    }
    let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    Ok(futimens(fd, &time, &time)?)
}
