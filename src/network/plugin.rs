//! One call of one plugin: a program of its own process group, JSON in, JSON out, and a deadline.
//!
//! A plugin is foreign code: it may hang, print garbage, print without end, leave children that hold its output open, or
//! not read its input. None of that costs more than the deadline. When it is over, by itself or not, its whole process
//! group is killed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::error::{Error, Kind, Result};

/// More output than any plugin has.
const MAX_OUTPUT: u64 = 1 << 20;
/// How long output may come after the plugin itself has ended: only from children that it left.
const STRAGGLERS: Duration = Duration::from_millis(200);
/// How long a killed plugin may take to end.
const KILLED: Duration = Duration::from_secs(2);

/// A verb of CNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

impl Verb {
    /// As `CNI_COMMAND` has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
        }
    }
}

/// The calls under way, for those who wait: pod (empty: it is about none) and description. Shared by clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnderWay(Arc<Mutex<Vec<(String, String)>>>);

impl UnderWay {
    fn list(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, call: &Call, described: &str) -> Entry {
        let container = call.environment.iter().find(|(name, _)| *name == "CNI_CONTAINERID");
        let entry = (container.map_or_else(String::new, |(_, id)| id.clone()), described.to_owned());
        self.list().push(entry.clone());
        Entry { all: self.clone(), entry }
    }

    /// What runs for a pod, or for none.
    pub(crate) fn of(&self, pod: &str) -> Option<String> {
        let all = self.list();
        let of_pod: Vec<&str> =
            all.iter().filter(|(of, _)| of == pod).map(|(_, what)| what.as_str()).collect();
        (!of_pod.is_empty()).then(|| of_pod.join(", "))
    }
}

/// A call is under way until this is dropped.
struct Entry {
    all: UnderWay,
    entry: (String, String),
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut all = self.all.list();
        if let Some(at) = all.iter().position(|other| *other == self.entry) {
            all.swap_remove(at);
        }
    }
}

/// What a call needs besides its input.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// `CNI_CONTAINERID`, `CNI_NETNS`, `CNI_IFNAME` and `CNI_ARGS`, as far as the verb has them.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) deadline: Duration,
    pub(crate) under_way: UnderWay,
}

/// The error object of the specification, section 5.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorObject {
    code: u32,
    msg: String,
    details: String,
}

/// Finds a plugin's program in the directories, in order.
pub(crate) fn find(name: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let executable =
        |p: &PathBuf| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    dirs.iter().map(|dir| dir.join(name)).find(executable).ok_or_else(|| {
        let dirs = dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
        Error::new(Kind::Unavailable, format!("CNI plugin {name:?} is in none of {dirs}"))
    })
}

/// A plugin's program under way.
pub(crate) struct Running {
    child: Child,
    /// Kills what is left of it.
    group: Group,
    began: Instant,
    deadline: Duration,
    /// Name, program and verb, for messages.
    described: String,
    entry: Entry,
}

/// Starts a plugin. After an error nothing of it has run.
pub(crate) fn start(name: &str, dirs: &[PathBuf], call: &Call) -> Result<Running> {
    let program = find(name, dirs)?;
    let described = format!("CNI plugin {name} ({}) {}", program.display(), call.verb.as_str());
    let child = spawn(&program, dirs, call)
        .map_err(|e| Error::new(Kind::Internal, format!("{described}: cannot be started: {e}")))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let (began, entry) = (Instant::now(), call.under_way.enter(call, &described));
    Ok(Running { child, group: Group(group), began, deadline: call.deadline, described, entry })
}

impl Running {
    /// Gives it its input and waits for its end. `None` when it succeeded without an output.
    pub(crate) async fn finish(self, input: &Value) -> Result<Option<Value>> {
        let Running { mut child, group, began, deadline, described, entry: _entry } = self;
        let talked = tokio::time::timeout(deadline, talk(&mut child, input.to_string())).await;
        // killed before it is looked at, so that nothing of a plugin outlives its call
        drop(group);
        let said = match talked {
            Ok(said) => said.map_err(|e| Error::new(Kind::Internal, format!("{described}: {e}")))?,
            Err(_) => {
                // one that hangs in the kernel cannot be waited for: it is reaped whenever it ends
                let gone = tokio::time::timeout(KILLED, child.wait()).await.is_ok();
                let rest = if gone { "" } else { ", and does not end" };
                let ran = began.elapsed();
                let message =
                    format!("{described}: killed at its deadline of {deadline:?} (ran {ran:.1?}){rest}");
                return Err(Error::new(Kind::Deadline, message));
            }
        };
        tracing::debug!(took = ?began.elapsed(), "{described} ended");
        judge(&described, &said)
    }
}

/// Runs a plugin from its start to its end.
pub(crate) async fn run(name: &str, dirs: &[PathBuf], call: &Call, input: &Value) -> Result<Option<Value>> {
    start(name, dirs, call)?.finish(input).await
}

/// Kills a process group when dropped: at the call's end, its deadline, or when the caller has gone away.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // nobody left is the usual case
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Kills every plugin that still runs for a container: an earlier daemon started it and was killed. Waits until they
/// are gone.
pub(crate) fn end_orphans(container: &str) -> Result<()> {
    let began = Instant::now();
    let mark = format!("CNI_CONTAINERID={container}");
    loop {
        let running: Vec<Pid> = std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes())
            })
            .map(Pid::from_raw)
            .filter(|pid| *pid != nix::unistd::getpid())
            .collect();
        if running.is_empty() {
            return Ok(());
        }
        for pid in &running {
            tracing::warn!(%pid, container, "a CNI plugin of an earlier daemon still ran and is killed");
            let _ = nix::sys::signal::kill(*pid, Signal::SIGKILL);
        }
        if began.elapsed() > Duration::from_secs(5) {
            let message = format!("CNI plugins of container {container} cannot be killed: pids {running:?}");
            return Err(Error::new(Kind::Internal, message));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn spawn(program: &Path, dirs: &[PathBuf], call: &Call) -> std::io::Result<Child> {
    let path = std::env::join_paths(dirs).unwrap_or_default();
    Command::new(program)
        .env("CNI_COMMAND", call.verb.as_str())
        .env("CNI_PATH", path)
        .envs(call.environment.iter().map(|(key, value)| (*key, value.as_str())))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// What a plugin that ended by itself left.
struct Said {
    status: std::process::ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

async fn talk(child: &mut Child, input: String) -> std::io::Result<Said> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async move {
        if let Some(mut stdin) = stdin {
            // a plugin need not read its input
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = {
        let read = async { tokio::join!(read_all(stdout, &mut out), read_all(stderr, &mut err), write) };
        tokio::pin!(read);
        tokio::select! {
            _ = &mut read => child.wait().await?,
            status = child.wait() => {
                let status = status?;
                let _ = tokio::time::timeout(STRAGGLERS, &mut read).await;
                status
            }
        }
    };
    Ok(Said { status, stdout: out, stderr: err })
}

/// Reads to the end, keeping at most [`MAX_OUTPUT`]; what follows is thrown away so that the writer does not block.
async fn read_all(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 8192];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let room = (MAX_OUTPUT as usize).saturating_sub(into.len());
        into.extend_from_slice(&buffer[..length.min(room)]);
    }
}

fn judge(described: &str, said: &Said) -> Result<Option<Value>> {
    if !said.stderr.iter().all(u8::is_ascii_whitespace) {
        // where plugins have their logs; some say something at every call
        tracing::info!("{described} says: {}", shorten(&said.stderr));
    }
    if said.status.success() {
        if said.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        return serde_json::from_slice(&said.stdout).map(Some).map_err(|e| {
            let message = format!("{described}: its output is not JSON ({e}): {}", shorten(&said.stdout));
            Error::new(Kind::Plugin, message)
        });
    }
    let object = serde_json::from_slice::<ErrorObject>(&said.stdout).ok().filter(|o| !o.msg.is_empty());
    let message = match &object {
        Some(ErrorObject { code, msg, details }) if details.is_empty() => {
            format!("{described}: {msg} (code {code})")
        }
        Some(ErrorObject { code, msg, details }) => format!("{described}: {msg}: {details} (code {code})"),
        None => {
            let output = [said.stdout.as_slice(), said.stderr.as_slice()].concat();
            format!("{described}: {}, and no error object: {}", said.status, shorten(&output))
        }
    };
    Err(Error { kind: Kind::Plugin, message, code: object.map(|o| o.code) })
}

fn shorten(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(2048)]).trim().to_owned();
    if text.is_empty() { "no output".to_owned() } else { format!("{text:?}") }
}
