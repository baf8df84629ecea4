//! Paths inside a container's root, which somebody else has filled: found and made by descriptor, never by
//! joining strings.
//!
//! The kernel resolves with the root as `/` (`RESOLVE_IN_ROOT`), so a symbolic link can lead anywhere in the root and
//! nowhere else. What is missing is made component by component below a descriptor, with `O_NOFOLLOW`. A link that leads
//! to a missing place (`/var/run -> /run` in an image without `/run`) is followed by hand, again inside.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};

use crate::error::{Error, Result};

/// A place to be: what it is made as when it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

const MAX_LINKS: usize = 40;

/// A descriptor (`O_PATH`) of what is at a path in the root; links are followed inside.
pub(crate) fn find(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    sys::path::open_in_root(root, path, OFlag::O_PATH)
        .map_err(|e| io::Error::from_raw_os_error(e.errno as i32))
}

/// As [`find`], but a path with a link in it is refused (ELOOP): for places that must be what they are called.
pub(crate) fn find_plain(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    sys::path::open_beneath(root, relative, OFlag::O_PATH)
        .map_err(|e| io::Error::from_raw_os_error(e.errno as i32))
}

/// Whether a descriptor is of a directory.
pub(crate) fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR
}

/// What is at a path in the root, made when it is missing: directories are 0755, files empty and 0644.
/// An error when it is there as the other kind.
pub(crate) fn find_or_make(root: BorrowedFd<'_>, path: &Path, make: Make) -> Result<OwnedFd> {
    let failed = |e: io::Error| Error::internal("make in the container's root", path.display(), &e);
    let found = match find(root, path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make_at(root, path, make).map_err(failed)?,
        other => other.map_err(failed)?,
    };
    let stat = fstat(&found).map_err(|e| failed(e.into()))?;
    match (make, is_directory(&stat)) {
        (Make::Directory, false) => Err(other_kind(path, "it is not a directory there")),
        (Make::File, true) => Err(other_kind(path, "it is a directory there")),
        _ => Ok(found),
    }
}

fn other_kind(path: &Path, why: &str) -> Error {
    Error::invalid("make in the container's root", path.display(), why)
}

/// The plain components of a path: `.` dropped, `..` taken back.
fn components(path: &Path) -> Vec<&OsStr> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name),
            Component::ParentDir => {
                parts.pop();
            }
            _ => {}
        }
    }
    parts
}

/// A step downwards either arrives, or meets a link and starts again with another path.
enum Step {
    Into(OwnedFd),
    Elsewhere(PathBuf),
}

fn make_at(root: BorrowedFd<'_>, path: &Path, make: Make) -> io::Result<OwnedFd> {
    let mut wanted = path.to_owned();
    for _ in 0..MAX_LINKS {
        match walk(root, &wanted, make)? {
            Step::Into(found) => return Ok(found),
            Step::Elsewhere(path) => wanted = path,
        }
    }
    Err(Errno::ELOOP.into())
}

fn walk(root: BorrowedFd<'_>, path: &Path, make: Make) -> io::Result<Step> {
    let parts = components(path);
    let mut here = find(root, Path::new("/"))?;
    for (index, name) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let step =
            match openat(&here, *name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
                Ok(found) => found,
                Err(Errno::ENOENT) if last && make == Make::File => make_file(here.as_fd(), name)?,
                Err(Errno::ENOENT) => make_directory(here.as_fd(), name)?,
                Err(errno) => return Err(errno.into()),
            };
        let kind = SFlag::from_bits_truncate(fstat(&step)?.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFLNK {
            let target = PathBuf::from(readlinkat(&here, *name)?);
            let mut next: PathBuf = Path::new("/").join(parts[..index].iter().collect::<PathBuf>());
            next.push(target); // an absolute target replaces all of it
            next.extend(&parts[index + 1..]);
            return Ok(Step::Elsewhere(next));
        }
        here = step;
    }
    Ok(Step::Into(here))
}

fn make_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn make_file(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
    drop(openat(parent, name, flags, Mode::from_bits_truncate(0o644))?);
    Ok(openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Remove a file or link at a name below a directory; missing is fine.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match nix::unistd::unlinkat(parent, name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let fd = sys::path::open_directory(directory.path()).unwrap();
        (directory, fd)
    }

    #[test]
    fn links_stay_inside() {
        let (directory, root) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), directory.path().join("way-out")).unwrap();
        symlink("../../../../../..", directory.path().join("up")).unwrap();
        find_or_make(root.as_fd(), Path::new("/way-out/a/b"), Make::Directory).unwrap();
        find_or_make(root.as_fd(), Path::new("/up/c/file"), Make::File).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(directory.path().join("c/file").is_file());
        let inside = directory.path().join(outside.path().strip_prefix("/").unwrap());
        assert!(inside.join("a/b").is_dir());
    }

    #[test]
    fn a_dangling_link_is_made_where_it_leads() {
        let (directory, root) = root();
        std::fs::create_dir(directory.path().join("var")).unwrap();
        symlink("/run", directory.path().join("var/run")).unwrap();
        find_or_make(root.as_fd(), Path::new("/var/run/secrets/token"), Make::Directory).unwrap();
        assert!(directory.path().join("run/secrets/token").is_dir());
        symlink("loop", directory.path().join("loop")).unwrap();
        assert!(find_or_make(root.as_fd(), Path::new("/loop/x"), Make::Directory).is_err());
    }

    #[test]
    fn kinds_are_checked_and_plain_places_have_no_links() {
        let (directory, root) = root();
        std::fs::write(directory.path().join("file"), "").unwrap();
        symlink("file", directory.path().join("proc")).unwrap();
        let error = find_or_make(root.as_fd(), Path::new("/file"), Make::Directory).unwrap_err();
        assert!(error.to_string().ends_with("not a directory there"), "{error}");
        assert_eq!(
            find_plain(root.as_fd(), Path::new("/proc")).unwrap_err().raw_os_error(),
            Some(libc::ELOOP)
        );
    }
}
