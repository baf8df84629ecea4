//! Looks things up in a stack of layers as overlayfs would show them, without mounting it.
//!
//! Layers are foreign: every component is opened by itself, relative to its directory's descriptor, and symbolic links are
//! followed by this code, inside the stack.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use sys::path;

const MOST_LINKS: usize = 40;

/// Layers, topmost first.
pub(crate) struct View {
    roots: Vec<Directory>,
}

/// A directory of one layer.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    /// Its place on the host; no part below the layer's root is a link.
    pub(crate) path: PathBuf,
}

impl Directory {
    fn try_clone(&self) -> io::Result<Directory> {
        Ok(Directory { fd: self.fd.try_clone()?, path: self.path.clone() })
    }
}

/// What a path leads to, links followed.
#[derive(Debug)]
pub(crate) enum Resolved {
    Nothing,
    /// Something on the way is no directory.
    Blocked,
    /// The directories that are merged, topmost first.
    Directory(Vec<Directory>),
    Other {
        fd: OwnedFd,
        stat: FileStat,
        /// As in [`Directory`].
        path: PathBuf,
    },
}

/// What stands at one name in one layer.
pub(crate) enum Found {
    Nothing,
    /// Hidden here and below.
    Whiteout,
    /// Shows the lower ones' content as well, unless opaque.
    Directory {
        fd: OwnedFd,
        opaque: bool,
    },
    /// A file, link or device.
    Other {
        fd: OwnedFd,
        stat: FileStat,
    },
}

/// What stands at a name in the stack.
enum Seen {
    Nothing,
    /// The directories that are merged, topmost first.
    Directory(Vec<Directory>),
    Other {
        fd: OwnedFd,
        stat: FileStat,
        path: PathBuf,
    },
}

/// Whether this directory of a layer hides those of lower layers.
pub(crate) fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        if path::get_xattr(directory.as_fd(), OsStr::new(name))?.is_some_and(|value| value == b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Whether this is a whiteout: the character device 0/0.
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// What `directory` of one layer has at `name`.
pub(crate) fn find(directory: &OwnedFd, name: &OsStr) -> io::Result<Found> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(Found::Nothing),
        other => other?,
    };
    let stat = fstat(&fd)?;
    if is_whiteout(&stat) {
        return Ok(Found::Whiteout);
    }
    if kind(&stat) != SFlag::S_IFDIR {
        return Ok(Found::Other { fd, stat });
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(directory, name, flags, Mode::empty())?;
    Ok(Found::Directory { opaque: is_opaque(&fd)?, fd })
}

fn look(directories: &[Directory], name: &OsStr) -> io::Result<Seen> {
    let mut merged = Vec::new();
    for directory in directories {
        let path = || directory.path.join(name);
        match find(&directory.fd, name)? {
            Found::Nothing => {}
            Found::Whiteout => break,
            Found::Directory { fd, opaque } => {
                merged.push(Directory { fd, path: path() });
                if opaque {
                    break;
                }
            }
            Found::Other { fd, stat } if merged.is_empty() => {
                return Ok(Seen::Other { fd, stat, path: path() });
            }
            Found::Other { .. } => break,
        }
    }
    Ok(if merged.is_empty() { Seen::Nothing } else { Seen::Directory(merged) })
}

fn copies(directories: &[Directory]) -> io::Result<Vec<Directory>> {
    directories.iter().map(Directory::try_clone).collect()
}

impl View {
    /// A view of these layers, topmost first.
    pub(crate) fn new(layers: &[PathBuf]) -> io::Result<Self> {
        let open = |layer: &PathBuf| -> io::Result<Directory> {
            Ok(Directory { fd: path::open_directory(layer)?, path: layer.clone() })
        };
        Ok(View { roots: layers.iter().map(open).collect::<io::Result<_>>()? })
    }

    /// The content of a regular file, at most `limit` bytes; `None` when there is none of that name.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let (fd, stat) = match self.resolve(path)? {
            Resolved::Nothing | Resolved::Blocked => return Ok(None),
            Resolved::Directory(_) => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Resolved::Other { fd, stat, .. } => (fd, stat),
        };
        if kind(&stat) != SFlag::S_IFREG {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        // an O_PATH descriptor is opened anew through its name in /proc
        let mut bytes = Vec::new();
        let file = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)))?;
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes")));
        }
        Ok(Some(bytes))
    }

    /// What `path` leads to, links followed.
    pub(crate) fn resolve(&self, path: &Path) -> io::Result<Resolved> {
        let parts = |bytes: &[u8]| -> Vec<Vec<u8>> {
            let parts = bytes.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
            parts.rev().map(<[u8]>::to_vec).collect()
        };
        let mut todo = parts(path.as_os_str().as_bytes());
        // the merged directories from the root down to where we are
        let mut way = vec![copies(&self.roots)?];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let here = way.last().map(Vec::as_slice).unwrap_or_default();
            match look(here, OsStr::from_bytes(&name))? {
                Seen::Nothing => return Ok(Resolved::Nothing),
                Seen::Directory(merged) => way.push(merged),
                Seen::Other { fd, stat, .. } if kind(&stat) == SFlag::S_IFLNK => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    let target = readlinkat(&fd, c"")?;
                    if target.as_bytes().starts_with(b"/") {
                        way.truncate(1);
                    }
                    todo.extend(parts(target.as_bytes()));
                }
                Seen::Other { fd, stat, path } if todo.is_empty() => {
                    return Ok(Resolved::Other { fd, stat, path });
                }
                Seen::Other { .. } => return Ok(Resolved::Blocked),
            }
        }
        Ok(Resolved::Directory(way.pop().unwrap_or_default()))
    }
}
