//! What is kept of a container between two commands, and what can be seen of it: `state`, `list`, `ps`.
//!
//! ```text
//! <root>/<id>/state.json   the record (versioned; replaced by rename)
//! <root>/<id>/config.json  the bundle's, as it was at `create`
//! <root>/<id>/start.sock   the gate, while init waits for `start`
//! <root>/.seccomp/         compiled filters
//! ```
//!
//! The process is named by pid and start time; whether it lives is always looked up, never recorded.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use executor::Bundle;
use serde::{Deserialize, Serialize};
use sys::cgroup::Cgroup;

use super::args::{Global, List, Ps};
use super::{Doing, Failed, Result, print};

/// Version of the record; fields are only added, each with a default.
const VERSION: u32 = 1;

/// The record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) id: String,
    /// Init; 0 while it is being made.
    pub(crate) pid: i32,
    #[serde(default)]
    pub(crate) start_time: u64,
    pub(crate) bundle: PathBuf,
    #[serde(default)]
    pub(crate) rootfs: PathBuf,
    /// RFC 3339.
    #[serde(default)]
    pub(crate) created: String,
    /// Who makes it: the command, then its builder. Looked at until there is an init only.
    #[serde(default)]
    pub(crate) makers: Vec<Maker>,
    /// Path of its cgroup; empty until that is made.
    #[serde(default)]
    pub(crate) cgroup: String,
    /// `start` was called.
    #[serde(default)]
    pub(crate) started: bool,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

/// A process that makes a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Maker {
    pid: i32,
    start_time: u64,
}

impl Maker {
    /// This process.
    pub(crate) fn this() -> std::io::Result<Maker> {
        let pid = std::process::id().cast_signed();
        Ok(Maker { pid, start_time: sys::process::start_time(pid)? })
    }
}

/// Where it is in its life, as OCI and runc name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// Directory of a container.
pub(crate) fn directory(global: &Global, id: &str) -> PathBuf {
    global.root.join(id)
}

/// Where `start` reaches a waiting init.
pub(crate) fn gate(global: &Global, id: &str) -> PathBuf {
    directory(global, id).join("start.sock")
}

/// The config that a container was made with.
pub(crate) fn config(global: &Global, id: &str) -> PathBuf {
    directory(global, id).join("config.json")
}

/// Compiled seccomp filters.
pub(crate) fn seccomp_cache(global: &Global) -> PathBuf {
    global.root.join(".seccomp")
}

/// The record of a container; `None`: there is no such container.
pub(crate) fn find(global: &Global, id: &str) -> Result<Option<Record>> {
    let path = directory(global, id).join("state.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).doing(|| format!("read {}", path.display())),
    };
    let record = serde_json::from_slice(&text).map_err(|e| Failed(format!("{}: {e}", path.display())))?;
    Ok(Some(record))
}

/// The record of a container that must be there.
pub(crate) fn load(global: &Global, id: &str) -> Result<Record> {
    find(global, id)?.ok_or_else(|| Failed(format!("container {id:?} does not exist")))
}

impl Record {
    /// Of a container that is about to be made by this process.
    pub(crate) fn new(id: &str, bundle: &Path) -> Result<Record> {
        let maker = Maker::this().doing(|| "look at this process".to_owned())?;
        Ok(Record {
            makers: vec![maker],
            version: VERSION,
            id: id.to_owned(),
            pid: 0,
            start_time: 0,
            bundle: bundle.to_owned(),
            rootfs: PathBuf::new(),
            created: monitor::lines::timestamp(monitor::lines::now()),
            cgroup: String::new(),
            started: false,
            annotations: Default::default(),
        })
    }

    /// Its bundle, with the config that it was made with.
    pub(crate) fn with_bundle<T>(&self, global: &Global, work: impl FnOnce(Bundle<'_>) -> T) -> T {
        let kept = config(global, &self.id);
        // an earlier version kept none
        work(Bundle { dir: &self.bundle, kept: kept.exists().then_some(kept.as_path()) })
    }

    /// Put it in its place.
    pub(crate) fn save(&self, global: &Global) -> Result<()> {
        let path = directory(global, &self.id).join("state.json");
        let text = serde_json::to_vec(self).map_err(|e| Failed(format!("write {}: {e}", path.display())))?;
        monitor::record::replace(&path, &text, false).doing(|| format!("write {}", path.display()))
    }

    /// A descriptor of init; `None`: it has ended, or was never made.
    pub(crate) fn init(&self) -> Option<OwnedFd> {
        find_process(self.pid, self.start_time)
    }

    /// What can be seen of it now.
    pub(crate) fn status(&self) -> Status {
        if self.pid == 0 {
            let is_made = self.makers.iter().any(|m| find_process(m.pid, m.start_time).is_some());
            return if is_made { Status::Creating } else { Status::Stopped };
        }
        match self.init() {
            None => Status::Stopped,
            Some(_) if !self.started => Status::Created,
            Some(_) if self.is_frozen() => Status::Paused,
            Some(_) => Status::Running,
        }
    }

    pub(crate) fn cgroup(&self) -> Option<Cgroup> {
        (!self.cgroup.is_empty()).then(|| Cgroup::new(self.cgroup.clone()))
    }

    /// Whether the kernel ends all of it with init. Not when it has somebody else's PID namespace.
    pub(crate) fn is_first_in_its_namespace(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        pids.and_then(|pids| pids.split_whitespace().next_back()) == Some("1")
    }

    /// Another container, one that has not ended, in its cgroup or in one below it.
    pub(crate) fn neighbour(&self, global: &Global) -> Option<Record> {
        // one whose record cannot be read must not keep this one from being removed
        let others = names(global).unwrap_or_default().into_iter().filter(|name| *name != self.id);
        let mut others = others.filter_map(|name| find(global, &name).ok()?);
        others.find(|other| {
            Path::new(&other.cgroup).starts_with(&self.cgroup) && other.status() != Status::Stopped
        })
    }

    fn is_frozen(&self) -> bool {
        self.cgroup().is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false))
    }

    fn to_json(&self) -> serde_json::Value {
        let status = self.status();
        let pid = if status == Status::Stopped { 0 } else { self.pid };
        serde_json::json!({
            "ociVersion": super::facts::OCI_VERSION,
            "id": self.id,
            "pid": pid,
            "status": status.name(),
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "created": self.created,
            "annotations": self.annotations,
            "owner": "",
        })
    }
}

/// An object in a JSON object, made when it is not there. What somebody else wrote there instead is an error.
pub(crate) fn object<'a>(
    json: &'a mut serde_json::Value,
    name: &str,
) -> Result<&'a mut serde_json::Map<String, serde_json::Value>> {
    let wrong = || Failed(format!("{name}: it is not a JSON object"));
    let entry = json.as_object_mut().ok_or_else(wrong)?.entry(name);
    let value = entry.or_insert(serde_json::Value::Null);
    if value.is_null() {
        *value = serde_json::json!({});
    }
    value.as_object_mut().ok_or_else(wrong)
}

/// A descriptor of a process that lives; `None`: it has ended.
fn find_process(pid: i32, start_time: u64) -> Option<OwnedFd> {
    if pid <= 0 {
        return None;
    }
    let pidfd = sys::process::pidfd_open(pid).ok()?;
    // Looked at after the descriptor is there: then both are of the same process.
    let same = sys::process::start_time(pid).ok()? == start_time;
    (same && !is_zombie(pid)).then_some(pidfd)
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.iter().rposition(|b| *b == b')').and_then(|end| stat.get(end + 2));
    matches!(state, None | Some(b'Z' | b'X'))
}

/// `state`
pub(crate) fn print_state(global: &Global, id: &str) -> Result<()> {
    let state = load(global, id)?.to_json();
    print(&format!("{state:#}\n"))
}

/// `list`
pub(crate) fn list(global: &Global, list: &List) -> Result<()> {
    let records = all(global)?;
    if list.quiet {
        return print(&records.iter().map(|r| format!("{}\n", r.id)).collect::<String>());
    }
    if list.json {
        let states: Vec<_> = records.iter().map(Record::to_json).collect();
        return print(&format!("{}\n", serde_json::Value::from(states)));
    }
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = records.iter().map(|r| {
        let state = r.to_json();
        let text = |name: &str| state[name].as_str().unwrap_or_default().to_owned();
        let owner = "root".to_owned();
        [r.id.clone(), state["pid"].to_string(), text("status"), text("bundle"), text("created"), owner]
    });
    print(&table(std::iter::once(head).chain(rows).collect()))
}

/// Ids of what is in the root, in their order.
fn names(global: &Global) -> Result<Vec<String>> {
    let entries = match fs::read_dir(&global.root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).doing(|| format!("read {}", global.root.display())),
    };
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn all(global: &Global) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for name in names(global)? {
        // Without a record it is being made or removed at this moment, or not ours.
        records.extend(find(global, &name)?);
    }
    Ok(records)
}

/// Columns as wide as their longest cell.
fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// `ps`
pub(crate) fn ps(global: &Global, ps: &Ps) -> Result<()> {
    let record = load(global, &ps.id)?;
    let cgroup = record.cgroup().ok_or_else(|| Failed(format!("container {:?} has no cgroup", ps.id)))?;
    let pids = cgroup.processes().doing(|| format!("read the processes of {}", cgroup.path()))?;
    if ps.json {
        return print(&format!("{}\n", serde_json::Value::from(pids)));
    }
    let options: &[std::ffi::OsString] = if ps.options.is_empty() { &["-ef".into()] } else { &ps.options };
    let output = std::process::Command::new("ps").args(options).output().doing(|| "run ps".to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| Failed("ps: its output has no column PID".to_owned()))?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    let rows: String = lines.filter(ours).map(|line| format!("{line}\n")).collect();
    print(&format!("{head}\n{rows}"))
}
