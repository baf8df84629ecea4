//! How the extractor finds the directory that an entry belongs into, and makes it when the archive does not describe it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use sys::path;

use crate::extract::{DEEPEST, Extractor};
use crate::tar::invalid;

/// How many symbolic links one name may lead through, as in the kernel.
const MOST_LINKS: usize = 40;

/// A directory in which entries are made.
pub(crate) struct Parent {
    pub(crate) fd: OwnedFd,
    /// Resolved path below the layer: no links, no `..`.
    pub(crate) path: Vec<u8>,
    /// New files inherit its group.
    pub(crate) setgid: bool,
}

impl Extractor {
    /// The directory that `components` lead to; with `create` missing ones are made.
    pub(crate) fn parent(&mut self, components: &[&[u8]], create: bool) -> io::Result<Rc<Parent>> {
        let key = components.join(&b'/');
        if key.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((recent, parent)) = &self.recent
            && *recent == key
        {
            return Ok(Rc::clone(parent));
        }
        let direct = components.len() <= DEEPEST;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let opened = direct.then(|| path::open_beneath(self.root.fd.as_fd(), as_path(&key), flags));
        let (fd, path) = match opened {
            Some(Ok(fd)) => (fd, key.clone()),
            _ => self.walk(components, create)?,
        };
        let setgid = Mode::from_bits_truncate(fstat(&fd)?.st_mode).contains(Mode::S_ISGID);
        let parent = Rc::new(Parent { fd, path, setgid });
        self.recent = Some((key, Rc::clone(&parent)));
        Ok(parent)
    }

    /// Resolves `components` one by one, following links inside the layer.
    fn walk(&mut self, components: &[&[u8]], create: bool) -> io::Result<(OwnedFd, Vec<u8>)> {
        let mut todo: VecDeque<Vec<u8>> = components.iter().map(|c| c.to_vec()).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut here = self.root.fd.try_clone()?;
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                done.pop();
                here = self.reopen(&done)?;
                continue;
            }
            let component = OsStr::from_bytes(&name);
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let next = match openat(&here, component, flags, Mode::empty()) {
                Err(Errno::ENOENT) if create => self.implicit_directory(&here, &done, &name)?,
                Err(errno @ (Errno::ENOTDIR | Errno::ELOOP)) => {
                    if let Ok(target) = readlinkat(&here, component) {
                        links += 1;
                        if links > MOST_LINKS {
                            return Err(Errno::ELOOP.into());
                        }
                        if target.as_bytes().starts_with(b"/") {
                            done.clear();
                            here = self.root.fd.try_clone()?;
                        }
                        for part in parts(target.as_bytes()).rev() {
                            todo.push_front(part.to_vec());
                        }
                        continue;
                    }
                    if !create || !self.whiteouts.contains(&joined(&done, &name)) {
                        return Err(errno.into());
                    }
                    self.revived_directory(&here, &done, &name)?
                }
                other => other?,
            };
            done.push(name);
            if done.len() > DEEPEST {
                return Err(invalid(format!("a directory more than {DEEPEST} levels deep")));
            }
            here = next;
        }
        Ok((here, done.join(&b'/')))
    }

    fn reopen(&self, done: &[Vec<u8>]) -> io::Result<OwnedFd> {
        if done.is_empty() {
            return self.root.fd.try_clone();
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Ok(path::open_beneath(self.root.fd.as_fd(), as_path(&done.join(&b'/')), flags)?)
    }

    fn implicit_directory(&mut self, here: &OwnedFd, done: &[Vec<u8>], name: &[u8]) -> io::Result<OwnedFd> {
        let component = OsStr::from_bytes(name);
        let mode = Mode::from_bits_truncate(0o755);
        mkdirat(here, component, mode)?;
        fchownat(
            here,
            component,
            Some(Uid::from_raw(0)),
            Some(Gid::from_raw(0)),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        // the umask may have taken bits; nobody else knows this directory, so the name still means what was just made
        fchmodat(here, component, mode, FchmodatFlags::FollowSymlink)?;
        self.implicit.insert(joined(done, name));
        self.count(0);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(here, component, flags, Mode::empty())?)
    }

    /// A directory where this layer had a whiteout: its content replaces the lower one's.
    fn revived_directory(&mut self, here: &OwnedFd, done: &[Vec<u8>], name: &[u8]) -> io::Result<OwnedFd> {
        unlinkat(here, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir)?;
        self.whiteouts.remove(&joined(done, name));
        let fd = self.implicit_directory(here, done, name)?;
        self.mark_opaque(fd.as_fd())?;
        Ok(fd)
    }
}

/// The components of a name: empty ones and `.` fall away, `..` takes one back but may not climb above the root.
pub(crate) fn clean(name: &[u8]) -> io::Result<Vec<&[u8]>> {
    let mut components = Vec::new();
    for part in parts(name) {
        if part != b".." {
            components.push(part);
        } else if components.pop().is_none() {
            return Err(invalid("a name that climbs above the root"));
        }
    }
    Ok(components)
}

fn parts(name: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    name.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".")
}

pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn joined(done: &[Vec<u8>], name: &[u8]) -> Vec<u8> {
    join(&done.join(&b'/'), name)
}

pub(crate) fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
