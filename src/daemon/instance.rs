//! One daemon per set of directories: locks, the pid file, and the socket.
//!
//! `<run_dir>/corten.pid` and `<state_dir>/corten.lock` are locked (flock) as long as the daemon lives and
//! hold its pid. The kernel drops the locks with the process, so a file left by a crash hinders nobody.
//! The socket is bound under another name, given its mode and group, and then renamed: nobody can
//! connect to it with the wrong permissions, nor while another daemon serves there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Gid;

use crate::config::Server;

/// The locks. Dropping it removes the pid file and lets the directories go.
#[derive(Debug)]
pub(crate) struct Instance {
    pid_file: PathBuf,
    // Held, never read.
    _locks: [Flock<File>; 2],
}

impl Instance {
    /// Makes both directories where they are missing and takes them.
    ///
    /// # Errors
    /// Another daemon has one of them; the message names its pid. Or the directory cannot be written.
    pub(crate) fn take(state_dir: &Path, run_dir: &Path) -> anyhow::Result<Instance> {
        // Others must pass through run_dir to the socket; what is in it protects itself.
        make_directory(run_dir, 0o711)?;
        make_directory(state_dir, 0o700)?;
        let pid_file = run_dir.join("corten.pid");
        let run = lock(&pid_file).with_context(|| format!("run_dir {}", run_dir.display()))?;
        let state = lock(&state_dir.join("corten.lock"));
        if state.is_err() {
            // run_dir was free: nobody shall take the file for a daemon's
            let _ = fs::remove_file(&pid_file);
        }
        let state = state.with_context(|| format!("state_dir {}", state_dir.display()))?;
        Ok(Instance { pid_file, _locks: [run, state] })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Still locked: whoever opened it before looks at the path again once it has the lock.
        let _ = fs::remove_file(&self.pid_file);
    }
}

fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("make directory {}", path.display()))
}

/// How often, and after what pause, a lock that somebody has is asked for again.
const LOOKS: u32 = 5;
const LOOK: std::time::Duration = std::time::Duration::from_millis(20);

/// Locks the file and writes our pid into it.
fn lock(path: &Path) -> anyhow::Result<Flock<File>> {
    // who only looks whether a daemon is there holds it for a moment (`is_taken`)
    let mut looks = 0;
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        let mut locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) if looks < LOOKS => {
                looks += 1;
                std::thread::sleep(LOOK);
                continue;
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => bail!("{}", holder(&mut file)),
            Err((_, errno)) => bail!("lock {}: {}", path.display(), errno.desc()),
        };
        // A daemon that was just ending may have removed the file between our open and our lock.
        let same = fs::metadata(path).is_ok_and(|m| locked.metadata().is_ok_and(|l| l.ino() == m.ino()));
        if same {
            let written = locked.set_len(0).and_then(|()| writeln!(locked, "{}", std::process::id()));
            written.with_context(|| format!("write {}", path.display()))?;
            return Ok(locked);
        }
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("is in use by {} (pid {pid})", if name.is_empty() { "a process" } else { name.trim() })
        }
        _ => "is in use by another process".to_owned(),
    }
}

/// Binds the CRI socket with its mode and group.
///
/// # Errors
/// Somebody serves there, something else is in its place, the group does not exist, or it cannot be made.
pub(crate) fn bind(server: &Server) -> anyhow::Result<UnixListener> {
    let path = &server.socket;
    let group = find_group(&server.socket_group).context("server.socket_group")?;
    if let Some(parent) = path.parent() {
        make_directory(parent, 0o755)?;
    }
    check_socket(path).map_err(anyhow::Error::msg)?;
    if UnixStream::connect(path).is_ok() {
        bail!("socket {}: another process serves there", path.display());
    }
    let hidden = hidden_name(path);
    let _ = fs::remove_file(&hidden);
    let bound = bind_as(&hidden, server.socket_mode, group)
        .and_then(|listener| fs::rename(&hidden, path).map(|()| listener).context("rename"));
    if bound.is_err() {
        let _ = fs::remove_file(&hidden);
    }
    bound.with_context(|| format!("socket {}", path.display()))
}

/// Where it is bound before it has its permissions: a short name, since the kernel bounds a socket's path.
fn hidden_name(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}", std::process::id()))
}

/// Whether the kernel can take the path, and the one that it is bound under first; and whether a socket may take its place.
pub(crate) fn check_socket(path: &Path) -> Result<(), String> {
    /// of `sun_path`, without the byte that ends it (unix(7))
    const LONGEST: usize = 107;
    let length = path.as_os_str().len().max(hidden_name(path).as_os_str().len());
    if length > LONGEST {
        return Err(format!("{} has {length} bytes, the kernel takes {LONGEST} at most", path.display()));
    }
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => Err(format!("{}: a directory is in its place", path.display())),
        Ok(there) if !there.file_type().is_socket() => {
            Err(format!("{}: a file is in its place", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(format!("{}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a daemon has this `run_dir`.
pub(crate) fn is_taken(run_dir: &Path) -> bool {
    let Ok(file) = File::open(run_dir.join("corten.pid")) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, nix::errno::Errno::EWOULDBLOCK)))
}

fn bind_as(path: &Path, mode: u32, group: Option<Gid>) -> anyhow::Result<UnixListener> {
    let listener = UnixListener::bind(path).context("bind")?;
    // Group first: once the mode opens it, it must open it to the right ones.
    if let Some(group) = group {
        nix::unistd::chown(path, None, Some(group)).context("change its group")?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context("change its mode")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A name in /etc/group or a number; `None` when empty. Read by ourselves: a static program has no NSS.
fn find_group(group: &str) -> anyhow::Result<Option<Gid>> {
    if group.is_empty() {
        return Ok(None);
    }
    if let Ok(gid) = group.parse::<u32>() {
        return Ok(Some(Gid::from_raw(gid)));
    }
    let groups = fs::read_to_string("/etc/group").context("read /etc/group")?;
    let gid = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(group);
        fields.nth(1).filter(|_| found)?.parse::<u32>().ok()
    });
    match gid {
        Some(gid) => Ok(Some(Gid::from_raw(gid))),
        None => bail!("no group {group:?} in /etc/group"),
    }
}

/// Whether the group exists.
pub(crate) fn check_group(group: &str) -> Result<(), String> {
    find_group(group).map(drop).map_err(|e| format!("{e:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn server(socket: PathBuf, mode: u32, group: &str) -> Server {
        Server {
            socket,
            socket_mode: mode,
            socket_group: group.to_owned(),
            worker_threads: 1,
            slow_request: Duration::from_secs(1),
            drain_deadline: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_second_one_is_refused_by_pid_until_the_first_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let (state, run) = (dir.path().join("state"), dir.path().join("run"));
        let first = Instance::take(&state, &run).expect("free");
        let pid = std::process::id();
        assert_eq!(fs::read_to_string(run.join("corten.pid")).expect("pid file"), format!("{pid}\n"));
        let other_run = dir.path().join("run2");
        for (state, run, named) in [(&state, &run, "run_dir"), (&state, &other_run, "state_dir")] {
            let error = format!("{:#}", Instance::take(state, run).expect_err("taken"));
            assert!(error.starts_with(named) && error.contains(&format!("(pid {pid})")), "{error}");
        }
        assert!(!other_run.join("corten.pid").exists(), "the refused one's");
        drop(first);
        assert!(!run.join("corten.pid").exists());
        Instance::take(&state, &run).expect("free again");
    }

    #[test]
    fn socket_has_its_mode_and_group_and_replaces_only_a_dead_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/corten.sock");
        let listener = bind(&server(path.clone(), 0o620, "")).expect("bind");
        let there = fs::metadata(&path).expect("socket");
        assert_eq!(there.mode() & 0o777, 0o620);
        let error = format!("{:#}", bind(&server(path.clone(), 0o600, "")).expect_err("in use"));
        assert!(error.ends_with("another process serves there"), "{error}");
        drop(listener);
        let group = if nix::unistd::geteuid().is_root() { "4" } else { "" };
        drop(bind(&server(path.clone(), 0o660, group)).expect("a stale socket is replaced"));
        if !group.is_empty() {
            assert_eq!(fs::metadata(&path).expect("socket").gid(), 4);
        }
        fs::remove_file(&path).expect("remove");
        fs::write(&path, "precious").expect("write");
        let error = format!("{:#}", bind(&server(path.clone(), 0o660, "")).expect_err("a file"));
        assert!(error.ends_with("a file is in its place"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
        assert_eq!(
            fs::read_dir(dir.path().join("sub")).expect("list").count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn the_longest_path_that_is_allowed_can_be_bound() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = |length: usize| dir.path().join("s".repeat(length - dir.path().as_os_str().len() - 1));
        assert_eq!(check_socket(&name(107)), Ok(()));
        bind(&server(name(107), 0o600, "")).expect("bind");
        assert!(check_socket(&name(108)).is_err());
    }

    #[test]
    fn groups_by_name_and_number() {
        assert_eq!(find_group("").expect("none"), None);
        assert_eq!(find_group("1234").expect("a number"), Some(Gid::from_raw(1234)));
        assert_eq!(find_group("root").expect("a name"), Some(Gid::from_raw(0)));
        let error = format!("{:#}", find_group("no-such-group").expect_err("unknown"));
        assert_eq!(error, "no group \"no-such-group\" in /etc/group");
    }
}
