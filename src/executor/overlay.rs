//! Overlays of layers: the root of a container, and images as volumes.
//!
//! With the new mount API each layer is a call of its own; a kernel before 6.5 takes them in one page of text, with names
//! relative to the directory that they share. For a user namespace each layer is idmapped by itself, not the overlay.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use sys::mount::{self, FileSystem};

use crate::error::{Context, Error, Result};
use crate::id_maps;
use crate::inside;
use crate::mounts::{Entry, Source};

/// As [`detached_overlay`], of layers whose files are shown with the owners that a user namespace makes of theirs. Each is idmapped
/// by itself, at a place where only this mount namespace sees it, and only until the overlay has it.
pub(crate) fn overlay_of_mapped(
    entry: &Entry,
    label: Option<&str>,
    path: &Path,
    map: &OwnedFd,
) -> Result<OwnedFd> {
    let shelf =
        FileSystem::open("tmpfs").and_then(|fs| fs.mount(0)).step("mount tmpfs at", path.display())?;
    mount::attach(shelf.as_fd(), open_place(path)?.as_fd()).step("mount tmpfs at", path.display())?;
    let mut shown = entry.clone();
    for option in &mut shown.data {
        let Some(layers) = option.strip_prefix("lowerdir=") else { continue };
        let mut places = Vec::new();
        for (number, layer) in split_layers(layers).iter().enumerate() {
            let name = number.to_string();
            let copy = mount::copy_path(Path::new(layer), false).step("show layer", layer)?;
            id_maps::apply(&copy, map, false, Path::new(layer))?;
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o700);
            nix::sys::stat::mkdirat(&shelf, name.as_str(), mode).step("show layer", layer)?;
            let place = inside::find(shelf.as_fd(), Path::new(&name)).step("show layer", layer)?;
            mount::attach(copy.as_fd(), place.as_fd()).step("show layer", layer)?;
            let name = path.join(name).display().to_string();
            places.push(name.replace('\\', "\\\\").replace(':', "\\:"));
        }
        *option = format!("lowerdir={}", places.join(":"));
    }
    let made = detached_overlay(&shown, label, path);
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).step("unmount tmpfs at", path.display())?;
    made
}

/// The overlays of a config that need their place for themselves: their layers are shown at it. In the order of the
/// entries; the root is not one of them.
pub(crate) fn mapped_overlays(
    entries: &[Entry],
    maps: &[Option<OwnedFd>],
    label: Option<&str>,
    place: &Path,
) -> Result<Vec<Option<OwnedFd>>> {
    let make = |(entry, map): (&Entry, &Option<OwnedFd>)| match (&entry.source, map) {
        (Source::FileSystem { kind, .. }, Some(map)) if kind == "overlay" && !entry.is_root() => {
            overlay_of_mapped(entry, label, place, map).map(Some)
        }
        _ => Ok(None),
    };
    entries.iter().zip(maps).map(make).collect()
}

/// An overlay file system of layers, mounted at a path: `lowerdir=a:b` (topmost first), `upperdir=`, `workdir=`, others.
pub(crate) fn overlay(entry: &Entry, label: Option<&str>, path: &Path) -> Result<OwnedFd> {
    let object = entry.data.iter().find_map(|o| o.strip_prefix("upperdir=")).unwrap_or("/");
    let step = "mount the root overlay";
    let Some(fd) = overlay_by_layer(entry, label).map_err(|e| e.at(step, object))? else {
        return overlay_in_one(entry, label, path).step(step, object);
    };
    let place = open_place(path)?;
    mount::attach(fd.as_fd(), place.as_fd()).step("mount the root at", path.display())?;
    Ok(fd)
}

/// As [`overlay`], but mounted nowhere yet. An older kernel has to mount it somewhere first: at `place`, a directory that
/// nobody else looks at.
pub(crate) fn detached_overlay(entry: &Entry, label: Option<&str>, place: &Path) -> Result<OwnedFd> {
    let (step, object) = ("mount overlay at", entry.destination.display());
    if let Some(fd) = overlay_by_layer(entry, label).map_err(|e| e.at(step, &object))? {
        return Ok(fd);
    }
    let there = overlay_in_one(entry, label, place).step(step, &object)?;
    let copy = mount::copy(there.as_fd(), false);
    drop(there);
    nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH).step(step, &object)?;
    copy.step(step, &object)
}

/// An errno and what the file system itself says.
pub(crate) struct Complaint(pub(crate) io::Error, pub(crate) String);

impl Complaint {
    /// As an error of a step.
    pub(crate) fn at(&self, step: &str, object: impl std::fmt::Display) -> Error {
        let Complaint(error, complaint) = self;
        let errno = crate::errno_text(error);
        let cause = if complaint.is_empty() { errno } else { format!("{errno}: {complaint}") };
        Error::new(crate::Kind::Internal, step, object, cause)
    }
}

/// A detached overlay. `None`: this kernel (before 6.5) does not take layers one by one.
fn overlay_by_layer(entry: &Entry, label: Option<&str>) -> std::result::Result<Option<OwnedFd>, Complaint> {
    let fs = FileSystem::open("overlay").map_err(|e| Complaint(e, String::new()))?;
    let made = configure_overlay(&fs, entry, label).and_then(|whole| match whole {
        true => fs.mount(entry.attributes.set).map(Some),
        false => Ok(None),
    });
    made.map_err(|e| Complaint(e, fs.complaint()))
}

/// One call per layer. `false`: this kernel (before 6.5) cannot take them so.
fn configure_overlay(fs: &FileSystem, entry: &Entry, label: Option<&str>) -> io::Result<bool> {
    fs.set("source", "overlay")?;
    for option in &entry.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for (index, layer) in split_layers(layers).iter().enumerate() {
                    match fs.set("lowerdir+", layer) {
                        Err(e) if index == 0 && e.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
                        other => other?,
                    }
                }
            }
            Some((key, value)) => fs.set(key, value)?,
            None => fs.flag(option)?,
        }
    }
    label.map_or(Ok(()), |label| fs.set("context", label))?;
    Ok(true)
}

/// All layers in the one page of text that mount(2) takes: their names relative to the directory that they share.
fn overlay_in_one(entry: &Entry, label: Option<&str>, path: &Path) -> io::Result<OwnedFd> {
    use nix::mount::{MsFlags, mount};
    let mut options = Vec::new();
    let mut start = PathBuf::from("/");
    for option in &entry.data {
        match option.strip_prefix("lowerdir=") {
            Some(layers) => {
                let (shared, names) = relative_layers(&split_layers(layers));
                options.push(format!("lowerdir={}", names.join(":")));
                start = shared;
            }
            None => options.push(option.clone()),
        }
    }
    options.extend(label.map(|label| format!("context=\"{label}\"")));
    std::env::set_current_dir(&start)?;
    let made =
        mount(Some("overlay"), path, Some("overlay"), MsFlags::empty(), Some(options.join(",").as_str()));
    std::env::set_current_dir("/")?;
    made?;
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
    mount::change(fd.as_fd(), entry.attributes, None, false)?;
    Ok(fd)
}

/// The deepest directory that all layers are in, and their names from there, colons escaped.
fn relative_layers(layers: &[String]) -> (PathBuf, Vec<String>) {
    let mut shared = Path::new(layers.first().map_or("/", String::as_str));
    while !layers.iter().all(|l| Path::new(l).strip_prefix(shared).is_ok_and(|r| !r.as_os_str().is_empty())) {
        match shared.parent() {
            Some(parent) => shared = parent,
            None => break,
        }
    }
    let name = |layer: &String| {
        let rest = Path::new(layer).strip_prefix(shared).unwrap_or(Path::new(layer));
        rest.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
    };
    (shared.to_owned(), layers.iter().map(name).collect())
}

pub(crate) fn open_place(path: &Path) -> Result<OwnedFd> {
    sys::path::open_directory(path).map_err(|e| {
        Error::invalid("open the root directory", path.display(), crate::errno_text(&e.errno.into()))
    })
}

/// Layers are separated by colons; `\:` is a colon in a name.
fn split_layers(text: &str) -> Vec<String> {
    let mut layers = Vec::new();
    let (mut layer, mut letters) = (String::new(), text.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => layer.extend(letters.next()),
            ':' => layers.push(std::mem::take(&mut layer)),
            other => layer.push(other),
        }
    }
    layers.push(layer);
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::mount::{Attributes, Propagation};

    #[test]
    fn layers_may_have_colons() {
        assert_eq!(split_layers("/a:/b\\:c:/d"), ["/a", "/b:c", "/d"]);
        let (shared, names) = relative_layers(&["/x/y/a:b".to_owned(), "/x/y/c/d".to_owned()]);
        assert_eq!(
            (shared.as_path(), names),
            (Path::new("/x/y"), vec!["a\\:b".to_owned(), "c/d".to_owned()])
        );
        let (shared, names) = relative_layers(&["/x".to_owned()]);
        assert_eq!((shared.as_path(), names), (Path::new("/"), vec!["x".to_owned()]));
    }

    #[test]
    fn layers_for_an_older_kernel() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP layers_for_an_older_kernel: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let layers: Vec<_> = (0..50).map(|n| path(&format!("{n:a>60}"))).collect();
        layers.iter().chain([&path("place")]).for_each(|l| std::fs::create_dir(l).unwrap());
        std::fs::write(layers[49].join("deepest"), "x").unwrap();
        let lower: Vec<_> = layers.iter().map(|l| l.display().to_string()).collect();
        let entry = Entry {
            destination: "/".into(),
            source: Source::Remount,
            attributes: Attributes { set: mount::NODEV, clear: 0 },
            recursive: Attributes::default(),
            propagation: None,
            data: vec![format!("lowerdir={}", lower.join(":"))],
            copy_up: false,
            id_map: None,
        };
        // a thread with a mount namespace and a working directory of its own
        let test = || {
            sys::namespace::unshare(libc::CLONE_NEWNS).unwrap();
            mount::propagate_all(Propagation::Private).unwrap();
            let fd = overlay_in_one(&entry, None, &path("place")).unwrap();
            inside::find(fd.as_fd(), Path::new("/deepest")).unwrap();
            // a copy of it can be mounted elsewhere when it itself is gone, as detached_overlay does it
            let copy = mount::copy(fd.as_fd(), false).unwrap();
            inside::find(copy.as_fd(), Path::new("/deepest")).unwrap();
            assert!(
                std::fs::read_to_string("/proc/thread-self/mounts")
                    .unwrap()
                    .contains("place overlay ro,nodev")
            );
        };
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }
}
