//! Records of attachments on disk: versioned JSON, replaced whole. Fields are only ever added.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use oci::id::PodId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conflist::Conflist;
use crate::error::{Error, Result};

/// The newest version of [`Record`].
const VERSION: u32 = 1;

/// What ADD was called with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) pod: PodId,
    pub(crate) netns: PathBuf,
    pub(crate) network: Conflist,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// What plugins get as `runtimeConfig`.
    pub(crate) capabilities: Map<String, Value>,
    /// How ADD failed; absent: it succeeded, or was interrupted, or has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<Progress>,
}

/// How far an ADD came that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// How many plugins of the chain were started, the one that failed among them. The others have nothing to undo.
    pub(crate) started: usize,
    /// The error code of the last of them, if it gave one.
    #[serde(default)]
    pub(crate) code: Option<u32>,
}

impl Record {
    pub(crate) fn new(pod: PodId, netns: PathBuf, network: Conflist) -> Record {
        let (args, capabilities) = (String::new(), Map::new());
        Record { version: VERSION, pod, netns, network, args, capabilities, failed: None }
    }
}

/// The directory of records.
#[derive(Clone, Debug)]
pub(crate) struct Records(PathBuf);

impl Records {
    pub(crate) fn new(dir: PathBuf) -> Records {
        Records(dir)
    }

    /// Where a pod's record is.
    pub(crate) fn path(&self, pod: &PodId) -> PathBuf {
        self.0.join(format!("{pod}.json"))
    }

    fn result(&self, pod: &PodId) -> PathBuf {
        self.0.join(format!("{pod}.result.json"))
    }

    /// Writes a record; when this returns, it survives a power cut.
    pub(crate) fn save(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.pod);
        replace(&path, &to_json(record, &path)?, true)
    }

    /// Writes the result of ADD; survives a kill.
    pub(crate) fn save_result(&self, pod: &PodId, result: &Value) -> Result<()> {
        replace(&self.result(pod), result.to_string().as_bytes(), false)
    }

    /// The record, if there is one.
    pub(crate) fn load(&self, pod: &PodId) -> Result<Option<Record>> {
        let path = self.path(pod);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::io("understand", &path, e))
    }

    /// The result of ADD, if it had one. What a power cut left of one counts as none.
    pub(crate) fn load_result(&self, pod: &PodId) -> Option<Value> {
        fs::read(self.result(pod)).ok().and_then(|text| serde_json::from_slice(&text).ok())
    }

    /// Nothing is owed any more.
    pub(crate) fn remove(&self, pod: &PodId) -> Result<()> {
        // the record last: while it exists, DEL is owed
        for path in [self.result(pod), self.path(pod)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All pods with a record.
    pub(crate) fn pods(&self) -> Vec<PodId> {
        let names = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let pod = |name: std::ffi::OsString| name.to_str()?.strip_suffix(".json")?.parse().ok();
        names.filter_map(|entry| pod(entry.file_name())).collect()
    }

    /// Removes what no record belongs to: results of removed records and files that were never finished. Nothing may be
    /// written meanwhile.
    pub(crate) fn sweep(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let orphan = |pod: &str| !self.0.join(format!("{pod}.json")).exists();
            if name.ends_with(".new") || name.strip_suffix(".result.json").is_some_and(orphan) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The networks that pods were attached to, each until its plugins have collected the garbage of the last pod:
/// `<state_dir>/networks/<name>-<hash>.json`. A network that is configured no more would else keep its bridge and rules.
#[derive(Clone, Debug)]
pub(crate) struct Used(PathBuf);

impl Used {
    pub(crate) fn new(state_dir: &Path) -> Used {
        Used(state_dir.join("networks"))
    }

    fn path(&self, network: &Conflist) -> Result<(PathBuf, Vec<u8>)> {
        let text = serde_json::to_vec_pretty(network).map_err(|e| Error::io("write into", &self.0, e))?;
        let name = format!("{}-{:016x}.json", network.name, fnv(&text));
        Ok((self.0.join(name), text))
    }

    /// Remembers a network.
    pub(crate) fn remember(&self, network: &Conflist) -> Result<()> {
        let (path, text) = self.path(network)?;
        if path.exists() { Ok(()) } else { replace(&path, &text, false) }
    }

    /// All that are remembered; what a power cut tore is left out.
    pub(crate) fn all(&self) -> Vec<Conflist> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.sort();
        files.retain(|file| file.extension().is_some_and(|e| e == "json"));
        files.iter().filter_map(|file| serde_json::from_slice(&fs::read(file).ok()?).ok()).collect()
    }

    /// Nothing of the network is left.
    pub(crate) fn forget(&self, network: &Conflist) -> Result<()> {
        let (path, _) = self.path(network)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => {
                // stays while it holds others
                let _ = fs::remove_dir(&self.0);
                Ok(())
            }
        }
    }
}

/// FNV-1a: the standard library's hash may change between versions.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn to_json(record: &Record, path: &Path) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(record).map_err(|e| Error::io("write", path, e))
}

/// Replaces a file as a whole; durably if asked to.
fn replace(path: &Path, content: &[u8], durable: bool) -> Result<()> {
    let failed = |e| Error::io("write", path, e);
    let temporary = path.with_extension("new");
    let dir = path.parent().unwrap_or(Path::new("/"));
    let open = || OpenOptions::new().write(true).create(true).truncate(true).open(&temporary);
    let mut file = match open() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).map_err(failed)?;
            open().map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    file.write_all(content).map_err(failed)?;
    if durable {
        file.sync_data().map_err(failed)?;
    }
    fs::rename(&temporary, path).map_err(failed)?;
    if durable {
        File::open(dir).and_then(|d| d.sync_all()).map_err(failed)?;
    }
    Ok(())
}
