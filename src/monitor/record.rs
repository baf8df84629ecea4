//! Small files that outlive a moment: exit records and pid files.
//!
//! ```text
//! <pod dir>/<container id>.exit   {"code":…,"at":…,"oom_killed":…,"timed_out":…,"pid":…,"started_at":…}
//! <pod dir>/<container id>.pid    <pid> <start time>
//! ```
//!
//! A record is whole or absent: it is written beside its place, synced, and renamed. Nobody is told of an exit whose record is
//! not there yet.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci::ContainerId;
use serde::{Deserialize, Serialize};

use crate::protocol::{Exit, Known};

/// What an exit record holds: [`Exit`] and when the process had started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// How it ended.
    #[serde(flatten)]
    pub exit: Exit,
    /// Init's pid in the node's namespace.
    #[serde(default)]
    pub pid: i32,
    /// Nanoseconds since the epoch.
    #[serde(default)]
    pub started_at: i64,
}

/// Where a container's exit record is.
pub fn exit_path(dir: &Path, container: &ContainerId) -> PathBuf {
    dir.join(format!("{container}.exit"))
}

/// Where a container's pid file is.
pub fn pid_path(dir: &Path, container: &ContainerId) -> PathBuf {
    dir.join(format!("{container}.pid"))
}

/// Write the exit record of a container, durably.
pub fn write_exit(dir: &Path, known: &Known, exit: &Exit) -> io::Result<()> {
    let record = ExitRecord { exit: exit.clone(), pid: known.pid, started_at: known.started_at };
    let text = serde_json::to_vec(&record)?;
    replace(&exit_path(dir, &known.container), &text, true)?;
    File::open(dir)?.sync_all()
}

/// Read the exit record of a container; `None`: it has not ended, or never started.
pub fn read_exit(dir: &Path, container: &ContainerId) -> io::Result<Option<ExitRecord>> {
    match fs::read(exit_path(dir, container)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Write a pid file: `<pid> <start time>`.
pub fn write_pid(path: &Path, pid: i32, start_time: u64) -> io::Result<()> {
    replace(path, format!("{pid} {start_time}\n").as_bytes(), false)
}

/// Read a pid file.
pub fn read_pid(path: &Path) -> io::Result<(i32, u64)> {
    let text = fs::read_to_string(path)?;
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|w| w.parse().ok());
    let start = words.next().and_then(|w| w.parse().ok());
    pid.zip(start)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no pid file")))
}

/// Remove a file that may be gone already.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Put a file in its place at once; with `durable` its content is on disk before its name is.
pub fn replace(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(content)?;
        if durable { file.sync_all() } else { Ok(()) }
    });
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}
