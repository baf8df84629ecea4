//! Paths below a directory that somebody else filled: resolved by the kernel relative to a directory descriptor, so that
//! no name, `..` or symbolic link in there leads outside (openat2(2)), and what belongs to it: extended attributes.
//!
//! Used by the layer unpacker, by look-ups inside image layers, and by whoever opens a path inside a container's root.
//! Callers hold a descriptor of the root and never join strings.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

/// A path operation that failed: which, on what, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
#[error("{op} {object}: {errno}")]
pub struct Error {
    /// The operation, `openat2`.
    pub op: &'static str,
    /// The path or attribute it was about.
    pub object: String,
    /// The reason.
    pub errno: Errno,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::new(io::Error::from(error.errno).kind(), error)
    }
}

fn failed(op: &'static str, object: &OsStr) -> impl FnOnce(Errno) -> Error {
    let object = object.to_string_lossy().into_owned();
    move |errno| Error { op, object, errno }
}

/// Opens `path` with `root` as its root directory: absolute paths and symbolic links, and `..`, all stay inside.
/// Magic links (`/proc/*/fd/…`) are refused with ELOOP.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, Error> {
    open_how(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Opens `path` below `root`; a symbolic link anywhere in it fails with ELOOP, a way out with EXDEV.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, Error> {
    open_how(root, path, flags, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

fn open_how(root: BorrowedFd<'_>, path: &Path, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, Error> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(Mode::empty()).resolve(resolve);
    // EAGAIN: something on the way was renamed meanwhile and the kernel could not prove that it stayed inside
    for _ in 0..64 {
        match nix::fcntl::openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other.map_err(failed("open", path.as_os_str())),
        }
    }
    Err(failed("open", path.as_os_str())(Errno::EAGAIN))
}

/// Opens a directory of the host for use as a root.
pub fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    nix::fcntl::open(path, OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed("open", path.as_os_str()))
}

fn text(name: &OsStr) -> Result<CString, Error> {
    CString::new(name.as_bytes()).map_err(|_| failed("use", name)(Errno::EINVAL))
}

/// Sets the extended attribute `name` of an open file (fsetxattr(2)).
pub fn set_xattr(file: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> Result<(), Error> {
    let c_name = text(name)?;
    // SAFETY: `c_name` is NUL-terminated and `value` is readable for its length; both outlive the call.
    let done =
        unsafe { libc::fsetxattr(file.as_raw_fd(), c_name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop).map_err(failed("set attribute", name))
}

/// Sets the extended attribute `name` of the entry `entry` of `directory`, which may be a symbolic link or a device and
/// is not opened. `entry` must be a single component.
pub fn set_xattr_at(
    directory: BorrowedFd<'_>,
    entry: &OsStr,
    name: &OsStr,
    value: &[u8],
) -> Result<(), Error> {
    let c_name = text(name)?;
    let path = entry_path(directory, entry)?;
    // SAFETY: both strings are NUL-terminated and `value` is readable for its length; all outlive the call.
    let done =
        unsafe { libc::lsetxattr(path.as_ptr(), c_name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop).map_err(failed("set attribute", name))
}

/// setxattrat(2) is younger than the kernels we support: the descriptor's entry in /proc names the directory.
fn entry_path(directory: BorrowedFd<'_>, entry: &OsStr) -> Result<CString, Error> {
    if entry.is_empty() || entry.as_bytes().contains(&b'/') || entry == ".." {
        return Err(failed("use", entry)(Errno::EINVAL));
    }
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(entry.as_bytes());
    text(OsStr::from_bytes(&path))
}

/// The value of an extended attribute of an open file; `None` when it has none of that name or the file system has no
/// attributes of that kind.
pub fn get_xattr(file: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Vec<u8>>, Error> {
    let c_name = text(name)?;
    let fd = file.as_raw_fd();
    read_growing(|buffer| {
        // SAFETY: `c_name` is NUL-terminated; the kernel writes at most `buffer.len()` bytes into `buffer`.
        unsafe { libc::fgetxattr(fd, c_name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
    .map_err(failed("read attribute", name))
}

/// The names of all extended attributes of an open file.
pub fn list_xattrs(file: BorrowedFd<'_>) -> Result<Vec<CString>, Error> {
    let fd = file.as_raw_fd();
    let list = read_growing(|buffer| {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
        unsafe { libc::flistxattr(fd, buffer.as_mut_ptr().cast(), buffer.len()) }
    })
    .map_err(failed("list", OsStr::new("attributes")))?
    .unwrap_or_default();
    Ok(list.split(|b| *b == 0).filter(|n| !n.is_empty()).filter_map(|n| CString::new(n).ok()).collect())
}

/// Calls `read` with growing buffers until the value fits.
fn read_growing(mut read: impl FnMut(&mut [u8]) -> isize) -> nix::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0u8; 256];
    loop {
        match Errno::result(read(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(usize::try_from(length).unwrap_or(0));
                return Ok(Some(buffer));
            }
            Err(Errno::ERANGE) if buffer.len() < 1 << 17 => {
                let length = buffer.len() * 4;
                buffer.resize(length, 0);
            }
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

/// Writes everything that the file system of `file` holds in memory to its device (syncfs(2)). Errors that earlier
/// write-back met are reported as well.
pub fn sync_file_system(file: impl AsFd) -> Result<(), Error> {
    nix::unistd::syncfs(file).map_err(failed("syncfs", OsStr::new("of the store")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(root.join("secret"), "inside").unwrap();
        symlink("/secret", root.join("absolute")).unwrap();
        symlink("../../secret", root.join("sub/relative")).unwrap();
        let fd = open_directory(&root).unwrap();
        for path in ["secret", "/secret", "absolute", "sub/relative", "../secret", "sub/../../../secret"] {
            let file = open_in_root(fd.as_fd(), Path::new(path), OFlag::O_RDONLY).unwrap();
            assert_eq!(io::read_to_string(std::fs::File::from(file)).unwrap(), "inside", "{path}");
        }
        for (path, errno) in
            [("absolute", Errno::ELOOP), ("../secret", Errno::EXDEV), ("none", Errno::ENOENT)]
        {
            let error = open_beneath(fd.as_fd(), Path::new(path), OFlag::O_RDONLY).unwrap_err();
            assert_eq!(error.errno, errno, "{path}");
        }
    }

    #[test]
    fn attributes() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        let fd = open_directory(dir.path()).unwrap();
        let value = vec![7u8; 1000];
        match set_xattr(file.as_fd(), OsStr::new("user.x"), &value) {
            Err(e) if e.errno == Errno::EOPNOTSUPP => {
                eprintln!("SKIP attributes: no user attributes on {}", dir.path().display());
                return;
            }
            other => other.unwrap(),
        }
        set_xattr_at(fd.as_fd(), OsStr::new("f"), OsStr::new("user.y"), b"1").unwrap();
        assert_eq!(get_xattr(file.as_fd(), OsStr::new("user.x")).unwrap(), Some(value));
        assert_eq!(get_xattr(file.as_fd(), OsStr::new("user.none")).unwrap(), None);
        let mut names = list_xattrs(file.as_fd()).unwrap();
        names.sort();
        assert!(names.contains(&c"user.x".to_owned()) && names.contains(&c"user.y".to_owned()));
        assert!(set_xattr_at(fd.as_fd(), OsStr::new(".."), OsStr::new("user.y"), b"1").is_err());
    }
}
