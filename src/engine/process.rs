//! The monitor process of a pod: starting it, watching it, ending it.
//!
//! The daemon starts it but does not own its fate: it runs in its own session and goes on when the daemon ends. A later
//! daemon finds it by `<pod run dir>/monitor.pid` (pid and start time). Its end is seen on a pidfd, whoever its
//! parent is; the one who is the parent reaps it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use monitor::protocol::{Reply, Request};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::time::{sleep, timeout};

use crate::link::{Link, Replies, watched};
use crate::{Error, Kind, Result};

/// How long a monitor that was told to end may take.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Pause before a watch that broke is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// A living monitor, watched.
#[derive(Debug)]
pub(crate) struct Monitor {
    pub(crate) link: Link,
    pub(crate) pid: i32,
    /// `None`: it broke and is to be opened again.
    watch: Option<Replies>,
    alive: Alive,
}

/// What a monitor tells by itself.
#[derive(Debug)]
pub(crate) enum Event {
    /// A reply on the watch: `State` first, then `Exited`.
    Told(Reply),
    /// The process has ended.
    Lost,
}

impl Monitor {
    /// Watch a living monitor; for `patience` see [`crate::Settings::monitor_patience`].
    pub(crate) fn attach(dir: &Path, alive: Alive, patience: Duration) -> Monitor {
        let link = Link::new(dir, patience);
        let watch = link.open(&Request::Watch, &[]).ok();
        Monitor { link, pid: alive.pid, watch, alive }
    }

    /// What it tells next. Cancel safe.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            let Some(watch) = &mut self.watch else {
                tokio::select! {
                    () = self.alive.ended() => return Event::Lost,
                    () = self.link.given_up() => return self.kill().await,
                    () = sleep(REOPEN_PAUSE) => self.watch = self.link.open(&Request::Watch, &[]).ok(),
                }
                continue;
            };
            // what it said before it ended is heard first
            tokio::select! {
                biased;
                reply = watch.next() => match reply {
                    Ok(Some(reply)) => return Event::Told(reply),
                    Ok(None) => self.watch = None,
                    Err(error) => {
                        tracing::warn!(monitor = self.pid, error = error.chain(), "watch broke; opening it again");
                        self.watch = None;
                    }
                },
                () = self.alive.ended() => return Event::Lost,
                () = self.link.given_up() => return self.kill().await,
            }
        }
    }

    /// End a monitor that says nothing. One that the kernel does not let die is owed by the pod (`Debt::Monitor`).
    async fn kill(&self) -> Event {
        tracing::error!(monitor = self.pid, "the pod's monitor does not answer; killing it");
        self.alive.kill();
        let _ = timeout(END_DEADLINE, self.alive.ended()).await;
        Event::Lost
    }
}

/// A process that was alive when it was looked at, held by a pidfd.
#[derive(Debug)]
pub(crate) struct Alive {
    pub(crate) pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Alive {
    fn hold(pid: i32) -> io::Result<Alive> {
        let pidfd = sys::process::pidfd_open(pid)?;
        Ok(Alive { pid, pidfd: watched(pidfd)? })
    }

    /// The process in a pidfile, when it is the same one and not a zombie.
    pub(crate) fn find(pidfile: &Path) -> Option<Alive> {
        let (pid, start_time) = monitor::record::read_pid(pidfile).ok()?;
        let alive = Alive::hold(pid).ok()?;
        // the pidfd was opened before this look: when the start time matches, it is that process
        if sys::process::start_time(pid).ok()? != start_time {
            return None;
        }
        let ended = sys::process::wait_for_end(alive.pidfd.as_fd(), Duration::ZERO).unwrap_or(true);
        (!ended).then_some(alive)
    }

    /// Wait for its end, and reap it when it is our child.
    async fn ended(&self) {
        // an error means that the reactor is gone: the runtime shuts down
        if self.pidfd.readable().await.is_ok() {
            let _ = sys::process::wait(self.pid, false);
        }
    }

    /// SIGKILL.
    fn kill(&self) {
        let _ = sys::process::pidfd_signal(self.pidfd.as_fd(), nix::libc::SIGKILL);
    }
}

/// Start a monitor and wait until it is ready.
pub(crate) async fn start(
    program: &sys::memfd::Program,
    dir: &Path,
    seccomp: &Path,
    settings: &crate::Settings,
) -> Result<Monitor> {
    let deadline = settings.monitor_deadline;
    let failed = |e: io::Error| Error::because(Kind::Internal, "start the pod's monitor", e);
    let (mut ready, write) = ready_pipe().map_err(failed)?;
    let args = arguments(dir, seccomp).map_err(failed)?;
    // vfork semantics: well under a millisecond
    let pid = program
        .spawn(&args, &dir.join("monitor.log"), write.as_fd())
        .map_err(|e| Error::because(Kind::Internal, "start the pod's monitor", e))?;
    drop(write);
    let alive = Alive::hold(pid).map_err(failed)?;
    let mut text = String::new();
    let (kind, problem) = match timeout(deadline, ready.read_to_string(&mut text)).await {
        Ok(Ok(_)) if text == "ok\n" => return Ok(Monitor::attach(dir, alive, settings.monitor_patience)),
        Ok(Ok(_)) if text.is_empty() => (Kind::Internal, "it ended before it was ready".to_owned()),
        Ok(Ok(_)) => refusal(text.trim()),
        Ok(Err(error)) => (Kind::Internal, error.to_string()),
        Err(_) => (Kind::Deadline, format!("not ready after {deadline:?}")),
    };
    alive.kill();
    let _ = timeout(END_DEADLINE, alive.ended()).await;
    Err(Error::new(kind, format!("the pod's monitor: {problem}")))
}

/// What a monitor says instead of being ready: a failure, of which only its kind is not for people.
fn refusal(line: &str) -> (Kind, String) {
    match serde_json::from_str(line).map(crate::link::refused) {
        Ok(error) => (error.kind, error.context),
        Err(_) => (Kind::Internal, line.to_owned()),
    }
}

/// Ask the kernel whether pods can have user namespaces, with layers in this directory.
pub(crate) async fn probe_user_namespaces(
    program: &sys::memfd::Program,
    dir: &Path,
    deadline: Duration,
) -> std::result::Result<(), String> {
    let failed = |e: io::Error| format!("probe: {e}");
    let (mut ready, write) = ready_pipe().map_err(failed)?;
    let words = [c"probe".to_owned(), c"--dir".to_owned(), text_of(dir)?, c"--ready-fd".to_owned()];
    let number = CString::new(sys::memfd::READY_FD.to_string()).map_err(|e| failed(e.into()))?;
    let args: Vec<CString> = words.into_iter().chain([number]).collect();
    let pid = program.spawn(&args, Path::new("/dev/null"), write.as_fd()).map_err(|e| e.to_string())?;
    drop(write);
    let alive = Alive::hold(pid).map_err(failed)?;
    let mut text = String::new();
    let heard = timeout(deadline, ready.read_to_string(&mut text)).await;
    alive.kill();
    let _ = timeout(END_DEADLINE, alive.ended()).await;
    match heard {
        Ok(Ok(_)) if text == "ok\n" => Ok(()),
        Ok(Ok(_)) if text.is_empty() => Err("the probe ended before it answered".to_owned()),
        Ok(Ok(_)) => Err(text.trim().to_owned()),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(format!("no answer of the probe after {deadline:?}")),
    }
}

fn text_of(path: &Path) -> std::result::Result<CString, String> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())
}

fn ready_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(read.into())?, write.into()))
}

fn arguments(dir: &Path, seccomp: &Path) -> io::Result<Vec<CString>> {
    let ready = sys::memfd::READY_FD.to_string();
    let words: [&[u8]; 7] = [
        b"monitor",
        b"--dir",
        dir.as_os_str().as_bytes(),
        b"--ready-fd",
        ready.as_bytes(),
        b"--seccomp-cache",
        seccomp.as_os_str().as_bytes(),
    ];
    words.iter().map(|word| CString::new(*word).map_err(io::Error::from)).collect()
}

/// End the monitor of a run directory with everything it holds. None there: success.
pub(crate) async fn end(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let Some(alive) = Alive::find(&dir.join("monitor.pid")).or_else(|| scan(dir)) else { return Ok(()) };
    let asked = timeout(END_DEADLINE, Link::new(dir, END_DEADLINE).call(&Request::Shutdown)).await;
    let polite = matches!(asked, Ok(Ok(_)));
    if polite && timeout(END_DEADLINE, alive.ended()).await.is_ok() {
        return Ok(());
    }
    tracing::warn!(monitor = alive.pid, ?asked, "monitor did not end when asked; killing it");
    alive.kill();
    match timeout(END_DEADLINE, alive.ended()).await {
        Ok(()) => Ok(()),
        Err(_) => {
            Err(Error::new(Kind::Deadline, format!("monitor {} does not end after SIGKILL", alive.pid)))
        }
    }
}

/// A monitor of this directory by its command line: it may not have written its pidfile when its daemon was killed.
fn scan(dir: &Path) -> Option<Alive> {
    all(|words| words.get(3).is_some_and(|word| *word == dir.as_os_str().as_bytes())).into_iter().next()
}

/// All monitors whose directory is below `root`.
pub(crate) fn below(root: &Path) -> Vec<std::path::PathBuf> {
    let mut dirs = Vec::new();
    let mut prefix = root.as_os_str().as_bytes().to_vec();
    prefix.push(b'/');
    all(|words| {
        if let Some(dir) = words.get(3).filter(|dir| dir.starts_with(&prefix)) {
            dirs.push(std::ffi::OsStr::from_bytes(dir).into());
        }
        false
    });
    dirs
}

fn all(mut wanted: impl FnMut(&[&[u8]]) -> bool) -> Vec<Alive> {
    let names = crate::record::names(Path::new("/proc")).unwrap_or_default();
    let pids = names.iter().filter_map(|name| name.parse::<i32>().ok());
    let mut found = Vec::new();
    for pid in pids {
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        if words.get(1) == Some(&&b"monitor"[..]) && words.get(2) == Some(&&b"--dir"[..]) && wanted(&words) {
            found.extend(Alive::hold(pid));
        }
    }
    found
}
