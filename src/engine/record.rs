//! What is kept on disk about a pod and a container.
//!
//! A record is a versioned JSON file that is replaced whole (temporary file, fsync where it must outlive a power cut,
//! rename). It holds what was asked for, what is known, and the *intent*: what was asked for but is not done yet. The
//! intent is written before the first side effect, so the next daemon finishes or undoes what this one began.
//! Fields are only ever added, each with a default.
//!
//! A container's record is written last when it is made: a container directory without one is swept. That it
//! started is not written before the start, because its monitor knows it; see `recovery`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use oci::{ContainerId, PodId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{ContainerConfig, PodConfig, Resources};

/// Version that this build writes.
pub(crate) const VERSION: u32 = 1;

/// Name of a record in its directory.
const FILE: &str = "record.json";

/// What was asked for and is not done yet, for a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PodIntent {
    /// It is being set up and nobody has been told its id: undo it.
    Create,
    /// It runs.
    #[default]
    Run,
    /// It is being stopped, or was stopped.
    Stop,
    /// It is being removed.
    Remove,
}

/// A pod on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) version: u32,
    pub(crate) id: PodId,
    #[serde(with = "shared")]
    pub(crate) config: Arc<PodConfig>,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    #[serde(default)]
    pub(crate) intent: PodIntent,
    #[serde(default)]
    pub(crate) ips: Vec<IpAddr>,
    /// `None`: the node's network.
    #[serde(default)]
    pub(crate) netns: Option<PathBuf>,
    /// Its cgroup; those of its containers are made below it.
    #[serde(default)]
    pub(crate) cgroup: String,
}

/// What was asked for and is not done yet, for a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContainerIntent {
    /// Nothing.
    #[default]
    Keep,
    /// To end at this time at the latest, nanoseconds since the epoch.
    Stop {
        /// When everything in it is killed.
        by: i64,
    },
    /// To be gone.
    Remove,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Nanoseconds since the epoch; 0: it never started.
    #[serde(default)]
    pub(crate) started_at: i64,
    /// Nanoseconds since the epoch.
    pub(crate) finished_at: i64,
    /// Exit status, or 128 + signal.
    pub(crate) exit_code: i32,
    /// One word for the kubelet.
    pub(crate) reason: String,
    /// For people.
    #[serde(default)]
    pub(crate) message: String,
}

/// How far a container is known to have come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Progress {
    /// Made. Perhaps started as well: the monitor knows.
    Created,
    /// Started.
    Started {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Ended.
    Exited(Ended),
}

/// A container on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) id: ContainerId,
    pub(crate) pod: PodId,
    #[serde(with = "shared")]
    pub(crate) config: Arc<ContainerConfig>,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    pub(crate) image_id: String,
    pub(crate) image_ref: String,
    /// Empty: no log.
    #[serde(default)]
    pub(crate) log_path: PathBuf,
    pub(crate) stop_signal: i32,
    /// UID, GID, supplemental groups.
    #[serde(default)]
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    /// Limits in force.
    #[serde(default)]
    pub(crate) resources: Resources,
    /// Its cgroup.
    #[serde(default)]
    pub(crate) cgroup: String,
    pub(crate) progress: Progress,
    #[serde(default)]
    pub(crate) intent: ContainerIntent,
}

/// Serde for a value behind an `Arc` (without serde's `rc` feature, which would be on for the whole workspace).
mod shared {
    use super::{Arc, Deserialize, Serialize};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, s: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, s)
    }

    pub(super) fn deserialize<'d, T: Deserialize<'d>, D: Deserializer<'d>>(d: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(d).map(Arc::new)
    }
}

/// How much a write must outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlive {
    /// The end of the daemon at any instruction.
    Daemon,
    /// A power cut as well (one fsync, 0.8 ms on ext4).
    PowerCut,
}

/// Replace the record in a directory.
pub(crate) fn write<T: Serialize>(dir: &Path, record: &T, outlive: Outlive) -> io::Result<()> {
    let text = serde_json::to_vec(record)?;
    monitor::record::replace(&dir.join(FILE), &text, outlive == Outlive::PowerCut)
}

/// What a directory of records held: one entry per name that is an id, in no order.
#[derive(Debug)]
pub(crate) struct Found<I, T> {
    /// Readable records.
    pub(crate) records: Vec<T>,
    /// Directories whose record is absent or damaged: they are swept. With the reason.
    pub(crate) broken: Vec<(I, String)>,
}

/// Read all records below `root` (absent: none). Names that are no ids are left alone.
pub(crate) fn read_all<I, T>(root: &Path) -> io::Result<Found<I, T>>
where
    I: FromStr,
    T: DeserializeOwned,
{
    let mut found = Found { records: Vec::new(), broken: Vec::new() };
    for name in names(root)? {
        let Ok(id) = name.parse::<I>() else { continue };
        let path = root.join(&name).join(FILE);
        match fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<T>(&text)?)) {
            Ok(record) => found.records.push(record),
            Err(error) => found.broken.push((id, format!("{}: {error}", path.display()))),
        }
    }
    Ok(found)
}

/// Names in a directory (absent: none).
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Remove a tree; gone already is success. A record in it goes last, so that what is left after an interruption is
/// still reachable from it.
pub(crate) fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == FILE {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    monitor::record::remove(&dir.join(FILE))?;
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
