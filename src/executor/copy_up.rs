//! The content of a directory of the root, copied into the new tmpfs that will cover it (`tmpcopyup`).
//!
//! Runs where the root is made, before its program. Both trees are walked by descriptors, name by name, and no link is
//! followed: the copy can be walked by name below its top, since nobody else sees it yet. Directories, files, links, pipes,
//! sockets and device nodes come over with their owners, modes and times, names of one file as names of one copy. Extended
//! attributes do not.
//!
//! What must never happen: something outside of the directory, or of what is mounted below it in the container, is read; a device
//! or a pipe is opened.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use crate::attributes::Proc;
use crate::error::{Context, Error, Result};

/// Each level holds three descriptors.
const DEEPEST: usize = 200;

/// Copy what is in `from` (`O_PATH` is enough) into `top`, the root of a file system that is empty and will be mounted at
/// `place`.
pub(crate) fn copy(from: BorrowedFd<'_>, top: BorrowedFd<'_>, proc: &Proc, place: &Path) -> Result<()> {
    let step = format!("copy into the tmpfs at {}", place.display());
    CopyUp { step, top, proc, links: HashMap::new() }.directory(from, top, Path::new(""))
}

struct CopyUp<'a> {
    /// For errors.
    step: String,
    top: BorrowedFd<'a>,
    proc: &'a Proc,
    /// Files with more than one name, by device and number: where below the top the copy is.
    links: HashMap<(u64, u64), PathBuf>,
}

/// A thing to be copied.
struct Found<'a> {
    fd: OwnedFd,
    stat: FileStat,
    /// Its name in both directories.
    name: &'a OsStr,
    /// Below the top.
    path: &'a Path,
}

impl CopyUp<'_> {
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<()> {
        if path.components().count() >= DEEPEST {
            let why = format!("directories are nested deeper than {DEEPEST}");
            return Err(Error::unsupported(&self.step, path.display(), why));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let list = openat(from, ".", flags, Mode::empty()).and_then(nix::dir::Dir::from_fd);
        for entry in list.step(&self.step, path.display())?.iter() {
            let entry = entry.step(&self.step, path.display())?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                self.entry(from, to, (name, &path.join(name)))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: (&OsStr, &Path)) -> Result<()> {
        let (name, path) = at;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let looked = openat(from, name, flags, Mode::empty()).and_then(|fd| Ok((fstat(&fd)?, fd)));
        let (stat, fd) = match looked {
            // gone meanwhile
            Err(nix::errno::Errno::ENOENT) => return Ok(()),
            other => other.step(&self.step, path.display())?,
        };
        let found = Found { fd, stat, name, path };
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFDIR {
            let made = new_directory(to, name).step(&self.step, path.display())?;
            self.directory(found.fd.as_fd(), made.as_fd(), path)?;
        } else if self.is_linked(&found, to).step(&self.step, path.display())? {
            return Ok(());
        } else {
            self.thing(&found, to, kind).step(&self.step, path.display())?;
        }
        dress(&found, to, kind).step(&self.step, path.display())
    }

    /// Make what is no directory.
    fn thing(&self, found: &Found<'_>, to: BorrowedFd<'_>, kind: SFlag) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(0o600);
        match kind {
            SFlag::S_IFREG => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let made = openat(to, found.name, flags, mode)?;
                io::copy(&mut self.proc.open_to_read(found.fd.as_fd())?, &mut File::from(made))?;
            }
            SFlag::S_IFLNK => symlinkat(readlinkat(&found.fd, "")?.as_os_str(), to, found.name)?,
            _ => mknodat(to, found.name, kind, mode, found.stat.st_rdev)?,
        }
        Ok(())
    }

    /// Give the copy of a file one more name, when there is one.
    fn is_linked(&mut self, found: &Found<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
        if found.stat.st_nlink < 2 {
            return Ok(false);
        }
        let key = (found.stat.st_dev, found.stat.st_ino);
        if let Some(first) = self.links.get(&key) {
            linkat(self.top, first, to, found.name, AtFlags::empty())?;
            return Ok(true);
        }
        self.links.insert(key, found.path.to_owned());
        Ok(false)
    }
}

fn new_directory(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_bits_truncate(0o700))?;
    openat(parent, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Owner, mode and times of the original; the owner first, a change of it takes set-user-id bits away.
fn dress(found: &Found<'_>, to: BorrowedFd<'_>, kind: SFlag) -> nix::Result<()> {
    let (stat, name) = (&found.stat, found.name);
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind != SFlag::S_IFLNK {
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        fchmodat(to, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let read = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let written = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(to, name, &read, &written, UtimensatFlags::NoFollowSymlink)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_deep_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = |levels| from.path().join(vec!["d"; levels].join("/"));
        let open = |path: &Path| sys::path::open_directory(path).unwrap();
        let copy_all = || {
            let proc = Proc::open().unwrap();
            copy(open(from.path()).as_fd(), open(to.path()).as_fd(), &proc, Path::new("/x"))
        };
        std::fs::create_dir_all(deep(DEEPEST - 1)).unwrap();
        copy_all().unwrap();
        assert!(to.path().join(deep(DEEPEST - 1).strip_prefix(from.path()).unwrap()).is_dir());
        std::fs::remove_dir_all(to.path().join("d")).unwrap();
        std::fs::create_dir_all(deep(DEEPEST)).unwrap();
        assert_eq!(copy_all().unwrap_err().kind, crate::Kind::Unsupported);
    }
}
