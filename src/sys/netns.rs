//! Network namespaces: made and pinned on a path, entered for the length of a closure.
//!
//! A namespace lives as long as something refers to it: a task in it, an open descriptor, or a mount of its nsfs file.
//! [`pin`] makes one and leaves only such a mount behind (`/run/netns/<name>`, where `ip netns` and CNI plugins look).
//! Everything here happens on a thread of its own that ends before the call returns, so the calling thread never
//! changes its namespace, whatever fails.
//!
//! What must never happen: a path that looks like a pinned namespace and is an ordinary file. So [`is_pinned`] asks the
//! file system's type, never the name; a crash between making the file and the mount leaves a file that
//! [`pin`] uses again and [`unpin`] removes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

/// What failed, on which object, and why.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}: {errno}", object.display())]
pub struct Error {
    /// The operation, as a reader would say it.
    pub op: &'static str,
    /// The path or interface it was done to.
    pub object: PathBuf,
    /// The kernel's answer.
    pub errno: Errno,
}

type Result<T> = std::result::Result<T, Error>;

fn failed(op: &'static str, object: &Path) -> impl Fn(Errno) -> Error {
    let object = object.to_owned();
    move |errno| Error { op, object: object.clone(), errno }
}

fn io_errno(e: &std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

/// Runs `f` on a thread of its own and gives back what it returns.
fn on_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send, object: &Path) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, f)
            .map_err(|e| failed("start a thread for", object)(io_errno(&e)))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Makes a network namespace with its loopback up and pins it on `path`, which is created when missing.
///
/// The directory must exist. A path that holds a namespace already is refused with EEXIST.
pub fn pin(path: &Path) -> Result<()> {
    make_place(path)?;
    let made = on_thread(
        || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .map_err(failed("make a network namespace for", path))?;
            bring_up_loopback().map_err(failed("bring up the loopback of", path))?;
            bind(Path::new("/proc/thread-self/ns/net"), path)
        },
        path,
    );
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Pins a network namespace that is there already, known by a path in /proc, as [`pin`] does its own.
pub fn pin_existing(path: &Path, namespace: &Path) -> Result<()> {
    make_place(path)?;
    let made = bind(namespace, path);
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made
}

fn make_place(path: &Path) -> Result<()> {
    if is_pinned(path) {
        return Err(failed("pin a network namespace on", path)(Errno::EEXIST));
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o444)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| failed("create", path)(io_errno(&e)))?;
    Ok(())
}

fn bind(namespace: &Path, path: &Path) -> Result<()> {
    nix::mount::mount(Some(namespace), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(failed("pin a network namespace on", path))
}

/// Removes the pin: the namespace goes with its last user. A path that is not there is fine.
pub fn unpin(path: &Path) -> Result<()> {
    // twice mounted (two crashed attempts) is possible, so until nothing is left
    loop {
        match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(failed("unmount", path)(errno)),
        }
    }
    match nix::unistd::unlink(path) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed("remove", path)(errno)),
    }
}

/// Whether a namespace file of the kernel is mounted on `path`.
pub fn is_pinned(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Runs `f` on a thread inside the network namespace at `path`.
///
/// Sockets that `f` returns stay in that namespace; `/proc/sys/net` is that namespace's while `f` runs.
pub fn run_in<T: Send>(path: &Path, f: impl FnOnce() -> T + Send) -> Result<T> {
    let ns = File::open(path).map_err(|e| failed("open the network namespace", path)(io_errno(&e)))?;
    on_thread(
        || {
            nix::sched::setns(ns.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(failed("enter the network namespace", path))?;
            Ok(f())
        },
        path,
    )
}

mod request {
    nix::ioctl_read_bad!(/** Reads the flags of an interface. */ get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(/** Sets the flags of an interface. */ set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// Sets the loopback of the calling thread's namespace up; the kernel adds 127.0.0.1 and ::1 by itself.
pub fn bring_up_loopback() -> nix::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain old data of the kernel's ABI; all zeroes is a valid value of every union member.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: `ifreq` is a whole ifreq that outlives the call, which is what the request code stands for.
    unsafe { request::get_flags(socket.as_raw_fd(), &mut ifreq) }?;
    // SAFETY: SIOCGIFFLAGS has just filled `ifru_flags`.
    unsafe { ifreq.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: as above; the kernel only reads it.
    unsafe { request::set_flags(socket.as_raw_fd(), &ifreq) }?;
    Ok(())
}

/// Prepares the directory for pins as `ip netns` does: created, and on a mount that is shared, so that pins and their
/// removal reach the mount namespaces made later. Only the directory itself is ever mounted (bound onto itself) or
/// changed; the propagation of the mount it lies on is left alone. Several programs may do this at once.
pub fn prepare_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| failed("create", dir)(io_errno(&e)))?;
    let dir = dir.canonicalize().map_err(|e| failed("resolve", dir)(io_errno(&e)))?;
    let handle = File::open(&dir).map_err(|e| failed("open", &dir)(io_errno(&e)))?;
    let _lock = Flock::lock(handle, FlockArg::LockExclusive).map_err(|(_, e)| failed("lock", &dir)(e))?;
    match mount_of(&dir)? {
        Mounted { shared: true, .. } => return Ok(()),
        Mounted { at_dir: true, .. } => {}
        Mounted { .. } => {
            nix::mount::mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(failed("bind onto itself", &dir))?;
        }
    }
    nix::mount::mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
        .map_err(failed("make shared", &dir))
}

/// Undoes [`prepare_dir`] when the directory holds nothing: its bind mount goes, the directory stays.
pub fn release_dir(dir: &Path) -> Result<()> {
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let handle = File::open(&dir).map_err(|e| failed("open", &dir)(io_errno(&e)))?;
    let _lock = Flock::lock(handle, FlockArg::LockExclusive).map_err(|(_, e)| failed("lock", &dir)(e))?;
    let empty = std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
    let found = mount_of(&dir)?;
    if !(empty && found.at_dir && found.of_itself) {
        return Ok(());
    }
    nix::mount::umount2(&dir, MntFlags::MNT_DETACH).map_err(failed("unmount", &dir))
}

/// The mount a directory lies on.
struct Mounted {
    at_dir: bool,
    /// The mount's root is the same directory of its file system: a directory bound onto itself, not a file system of
    /// its own that somebody mounted there.
    of_itself: bool,
    shared: bool,
}

fn mount_of(dir: &Path) -> Result<Mounted> {
    let table = "/proc/thread-self/mountinfo";
    let file = File::open(table).map_err(|e| failed("open", Path::new(table))(io_errno(&e)))?;
    let mut best: Option<(usize, Mounted)> = None;
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| failed("read", Path::new(table))(io_errno(&e)))?;
        let mut fields = line.split(|b| *b == b' ');
        let (Some(root), Some(point)) = (fields.nth(3), fields.next()) else { continue };
        let point = unescape(point);
        let point = Path::new(std::ffi::OsStr::from_bytes(&point));
        if !dir.starts_with(point) {
            continue;
        }
        let depth = point.as_os_str().len();
        // a later line covers an earlier one of the same place
        if best.as_ref().is_none_or(|(d, _)| depth >= *d) {
            let shared = fields.skip(1).take_while(|f| *f != b"-").any(|f| f.starts_with(b"shared:"));
            let at_dir = point == dir;
            best = Some((depth, Mounted { at_dir, of_itself: at_dir && root != b"/", shared }));
        }
    }
    best.map(|(_, mounted)| mounted).ok_or_else(|| failed("find the mount of", dir)(Errno::ENOENT))
}

/// Undoes the octal escapes of mountinfo (`\040` for a space).
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c\12"), b"/a b\\c\\12");
    }
}
