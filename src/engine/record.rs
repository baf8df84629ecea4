//! What is kept on disk about a pod and a container.
//!
//! A record is a versioned JSON file that is replaced whole (temporary file, fsync where it must outlive a power cut,
//! rename). It holds what was asked for, what is known, and the *intent*: what was asked for but is not done yet. The
//! intent is written before the first side effect, so the next daemon finishes or undoes what this one began.
//! Fields are only ever added, each with a default. A record that is whole but says what this build does not know is a later
//! version's: neither it nor anything that belongs to it is touched.
//!
//! A container's record is written last when it is made: a container directory without one is swept. That it
//! started is not written before the start, because its monitor knows it; see `recovery`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use oci::{ContainerId, PodId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{ContainerConfig, PodConfig, PodLimits, Resources};

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
    /// What took the place of the configuration's limits.
    #[serde(default)]
    pub(crate) limits: PodLimits,
    /// SELinux level of its containers; empty: SELinux was off when it was made.
    #[serde(default)]
    pub(crate) selinux_level: String,
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
    /// Of image volumes: what they show, by their place in the config's list of mounts.
    #[serde(default)]
    pub(crate) volume_refs: BTreeMap<usize, String>,
    /// Empty: no log.
    #[serde(default)]
    pub(crate) log_path: PathBuf,
    pub(crate) stop_signal: i32,
    /// UID, GID, supplemental groups.
    #[serde(default)]
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    /// Pid of the init whose PID namespace it joins, as it was when the bundle was made.
    #[serde(default)]
    pub(crate) target: Option<i32>,
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
    /// Records of another version of this program: nothing of them is touched.
    pub(crate) foreign: Vec<Foreign<I>>,
}

/// A record that this build does not understand and that is not damaged.
#[derive(Debug)]
pub(crate) struct Foreign<I> {
    pub(crate) id: I,
    /// Of a container, when it could be made out.
    pub(crate) pod: Option<PodId>,
    /// Why it is not understood.
    pub(crate) why: String,
}

/// What every version of a record has.
#[derive(Deserialize)]
struct Head {
    version: u64,
    #[serde(default)]
    pod: serde_json::Value,
}

/// Read all records below `root` (absent: none). Names that are no ids are left alone. A record that cannot be read is an error:
/// it may be as good as ever when the disk is.
pub(crate) fn read_all<I, T>(root: &Path) -> io::Result<Found<I, T>>
where
    I: FromStr,
    T: DeserializeOwned,
{
    let mut found = Found { records: Vec::new(), broken: Vec::new(), foreign: Vec::new() };
    for name in names(root).map_err(|e| at(root, &e))? {
        let Ok(id) = name.parse::<I>() else { continue };
        let path = root.join(&name).join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            // the directory is without one, or is none
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                found.broken.push((id, format!("{}: {e}", path.display())));
                continue;
            }
            Err(e) => return Err(at(&path, &e)),
        };
        match serde_json::from_slice::<Head>(&text) {
            Err(e) => found.broken.push((id, format!("{}: {e}", path.display()))),
            Ok(head) => match understand(&head, &text) {
                Ok(record) => found.records.push(record),
                Err(why) => {
                    let pod = head.pod.as_str().and_then(|pod| pod.parse().ok());
                    found.foreign.push(Foreign { id, pod, why: format!("{}: {why}", path.display()) });
                }
            },
        }
    }
    Ok(found)
}

/// A record that is whole; the error says why it is not understood.
fn understand<T: DeserializeOwned>(head: &Head, text: &[u8]) -> Result<T, String> {
    if head.version > u64::from(VERSION) {
        return Err(format!("it has version {}, this program knows {VERSION}", head.version));
    }
    serde_json::from_slice(text).map_err(|e| e.to_string())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("read {}: {error}", path.display()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn with(
        records: &[(&str, &str)],
    ) -> (tempfile::TempDir, io::Result<Found<ContainerId, ContainerRecord>>) {
        let root = tempfile::tempdir().unwrap();
        for (id, text) in records {
            let dir = root.path().join(id);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(FILE), text).unwrap();
        }
        let found = read_all(root.path());
        (root, found)
    }

    #[test]
    fn only_what_is_absent_or_no_json_is_broken() {
        let record = fake::container(1, &fake::pod(1));
        let good = serde_json::to_value(&record).unwrap();
        let edited = |edit: fn(&mut serde_json::Value)| {
            let mut value = good.clone();
            edit(&mut value);
            value.to_string()
        };
        let id = |c: char| c.to_string().repeat(64);
        let (root, found) = with(&[
            (&id('1'), &good.to_string()),
            (&id('2'), &good.to_string()[..20]),
            (&id('3'), ""),
            (&id('4'), "{}"),
            (&id('5'), &edited(|v| v["version"] = 2.into())),
            // an intent of a later version that did not count its version up
            (&id('6'), &edited(|v| v["intent"] = "freeze".into())),
            (&id('7'), r#"{"version":7,"all":"new"}"#),
            ("lost+found", "x"),
        ]);
        let _ = root;
        let found = found.unwrap();
        assert_eq!(found.records, std::slice::from_ref(&record));
        let first = |id: &ContainerId| id.as_str().chars().next().unwrap();
        let mut broken: Vec<char> = found.broken.iter().map(|(id, _)| first(id)).collect();
        broken.sort_unstable();
        assert_eq!(broken, ['2', '3', '4']);
        let mut foreign: Vec<_> = found.foreign.iter().map(|f| (first(&f.id), f.pod.clone())).collect();
        foreign.sort();
        assert_eq!(foreign, [('5', Some(record.pod.clone())), ('6', Some(record.pod)), ('7', None)]);
        assert!(found.foreign.iter().all(|f| f.why.contains(FILE)), "{:?}", found.foreign);
    }

    #[test]
    fn a_directory_without_a_record_is_broken_and_a_record_that_cannot_be_read_is_an_error() {
        let id = "1".repeat(64);
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(&id)).unwrap();
        let found = read_all::<ContainerId, ContainerRecord>(root.path()).unwrap();
        assert_eq!((found.records.len(), found.broken.len()), (0, 1));
        // what root can read always: something that is no file
        fs::create_dir(root.path().join(&id).join(FILE)).unwrap();
        let error = read_all::<ContainerId, ContainerRecord>(root.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("{id}/{FILE}")), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
