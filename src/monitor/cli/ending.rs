//! `kill` and `delete`.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use sys::cgroup::Cgroup;

use super::args::{Global, Kill};
use super::record::{self, Record, Status};
use super::{Doing, Failed, Result, warn};

/// How long a killed container may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// A signal by number or name, with or without SIG, also SIGRTMIN+3. 0 is none: whether it could be sent.
pub(crate) fn parse_signal(text: &str) -> std::result::Result<i32, String> {
    let bad = || format!("{text:?} is not a signal");
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let realtime = |base: i32, rest: &str| {
        let offset = if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
        offset.map(|n| base + n).filter(|n| (34..=64).contains(n)).ok_or_else(bad)
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return realtime(34, rest);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return realtime(64, rest);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().map_err(|_| bad())?;
    Ok(signal as i32)
}

/// `kill`
pub(crate) fn kill(global: &Global, kill: &Kill) -> Result<()> {
    let record = record::load(global, &kill.id)?;
    let what = || format!("send signal {} to container {:?}", kill.signal, kill.id);
    if kill.all
        && let Some(cgroup) = record.cgroup()
    {
        return cgroup.signal(kill.signal).doing(what);
    }
    let init = record.init().ok_or_else(|| Failed(format!("{}: container not running", what())))?;
    // Looked at while it lives: the end of a PID namespace's first process is that of all in it.
    let alone = kill.signal == libc::SIGKILL && !record.is_first_in_its_namespace();
    sys::process::pidfd_signal(init.as_fd(), kill.signal).doing(what)?;
    match record.cgroup().filter(|_| alone) {
        Some(cgroup) => cgroup.kill().doing(what),
        None => Ok(()),
    }
}

/// `delete`: a container that runs or is being made is refused, or with `force` killed first. One that waits for its start
/// is killed.
pub(crate) fn delete(global: &Global, id: &str, force: bool) -> Result<()> {
    let Some(record) = record::find(global, id)? else {
        return if force {
            clear(global, id)
        } else {
            Err(Failed(format!("container {id:?} does not exist")))
        };
    };
    let status = record.status();
    if matches!(status, Status::Creating | Status::Running | Status::Paused) && !force {
        return Err(Failed(format!(
            "container {id:?} is {}: it must be stopped first (or use --force)",
            status.name()
        )));
    }
    if status == Status::Creating { abort(global, id) } else { remove(global, &record) }
}

/// End the making of a container. Who makes it undoes it; what is left when that was killed is removed here.
fn abort(global: &Global, id: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Everything may have happened meanwhile.
        let Some(record) = record::find(global, id)? else { return Ok(()) };
        if record.status() != Status::Creating {
            return remove(global, &record);
        }
        if Instant::now() >= deadline {
            return Err(Failed(format!("container {id:?} is still being made")));
        }
        if let Some(cgroup) = record.cgroup() {
            cgroup.kill().doing(|| format!("kill what is in cgroup {}", cgroup.path()))?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory without a record: what a killed `create` left.
fn clear(global: &Global, id: &str) -> Result<()> {
    remove_directory(global, id)
}

/// Kill everything in a container; it stays, stopped.
pub(crate) fn stop(record: &Record) -> Result<()> {
    let what = || format!("stop container {:?}", record.id);
    if let Some(cgroup) = record.cgroup() {
        cgroup.kill().doing(what)?;
    }
    record.init().map_or(Ok(()), |init| wait_for(&init, Instant::now() + PATIENCE, &record.id))
}

/// Kill what is left of a container and remove all of it.
pub(crate) fn remove(global: &Global, record: &Record) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let init = record.init();
    if let Some(init) = &init {
        let _ = sys::process::pidfd_signal(init.as_fd(), libc::SIGKILL);
    }
    let neighbour = if init.is_none() { record.neighbour(global) } else { None };
    if let Some(other) = neighbour.as_ref().filter(|other| other.cgroup != record.cgroup) {
        let (id, other, cgroup) = (&record.id, &other.id, &other.cgroup);
        return Err(Failed(format!(
            "container {id:?} cannot be deleted: container {other:?} is in a cgroup below its own ({cgroup})"
        )));
    }
    // Another one could be made in this very cgroup, so nothing of the ended container is left there: it is the other's.
    if let Some(cgroup) = record.cgroup().filter(|_| neighbour.is_none()) {
        empty(&cgroup, deadline)
            .doing(|| format!("remove cgroup {} of container {:?}", cgroup.path(), record.id))?;
    }
    if let Some(init) = init {
        wait_for(&init, deadline, &record.id)?;
    }
    if let Err(error) = record.with_bundle(global, |bundle| executor::hooks::poststop(&record.id, bundle)) {
        warn(global, &error.to_string());
    }
    remove_directory(global, &record.id)
}

fn wait_for(init: &OwnedFd, deadline: Instant, id: &str) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let ended =
        sys::process::wait_for_end(init.as_fd(), left).doing(|| format!("wait for container {id:?}"))?;
    if ended { Ok(()) } else { Err(Failed(format!("container {id:?} does not end although it was killed"))) }
}

/// Kill, thaw and remove until it works.
fn empty(cgroup: &Cgroup, deadline: Instant) -> std::io::Result<()> {
    let mut pause = Duration::from_micros(500);
    loop {
        let left = cgroup.processes().unwrap_or_default();
        if !left.is_empty() {
            cgroup.kill()?;
            // Something frozen must thaw to die.
            let _ = cgroup.thaw();
        }
        match cgroup.remove() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

fn remove_directory(global: &Global, id: &str) -> Result<()> {
    let path = record::directory(global, id);
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).doing(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_signal;

    #[test]
    fn signals() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigint", 2), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        assert_eq!(parse_signal("0"), Ok(0));
        for bad in ["65", "-9", "", "SIG", "NOPE", "RTMIN+99", "RTMIN+x"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
