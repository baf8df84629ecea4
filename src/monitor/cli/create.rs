//! `create`, `start` and `run`.

use std::fs;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use executor::{Bundle, Create, OnCgroup, Process, Stdio};
use serde::Deserialize;
use sys::cgroup::Cgroup;

use super::args::{Global, Make, Run};
use super::foreground::{Signals, Waiting};
use super::record::{self, Maker, Record, Status};
use super::{Doing, Failed, Result, ending, warn};

/// The few fields of `config.json` that the command line itself needs; the executor checks the whole.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Glance {
    process: GlanceProcess,
    root: GlanceRoot,
    annotations: std::collections::BTreeMap<String, String>,
    /// The whole of it.
    #[serde(skip)]
    text: Vec<u8>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GlanceProcess {
    terminal: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GlanceRoot {
    path: std::path::PathBuf,
}

/// `create`
pub(crate) fn create(global: &Global, make: &Make) -> Result<()> {
    let glance = glance(&make.bundle)?;
    check_console(glance.process.terminal, true, make.console_socket.as_deref())?;
    let (record, mut process) = begin(global, make, &glance, false)?;
    finish(global, make, &record, &mut process)
}

/// `start`: let init pass its gate.
pub(crate) fn start(global: &Global, id: &str) -> Result<()> {
    let mut record = record::load(global, id)?;
    let status = record.status();
    if status != Status::Created {
        return Err(Failed(format!("container {id:?} cannot be started: it is {}", status.name())));
    }
    // First, so that nobody takes a running container for one that waits.
    record.started = true;
    record.save(global)?;
    executor::start(&record::gate(global, id))?;
    after_start(global, &record)
}

/// Its program runs: so do its `poststart` hooks. One that fails stops it.
fn after_start(global: &Global, record: &Record) -> Result<()> {
    let hooks =
        record.with_bundle(global, |bundle| executor::hooks::poststart(&record.id, bundle, record.pid));
    hooks.map_err(|error| {
        if let Err(second) = ending::stop(record) {
            warn(global, &second.to_string());
        }
        error.into()
    })
}

/// `run`
pub(crate) fn run(global: &Global, run: &Run) -> Result<u8> {
    let make = &run.make;
    let glance = glance(&make.bundle)?;
    check_console(glance.process.terminal, run.detach, make.console_socket.as_deref())?;
    if run.detach {
        let (record, mut process) = begin(global, make, &glance, true)?;
        finish(global, make, &record, &mut process)?;
        return release(global, &record, &mut process).map(|()| 0);
    }
    // Before the child exists: none of its signals is missed.
    let signals = Signals::new()?;
    let (record, mut process) = begin(global, make, &glance, true)?;
    let console = process.console.take_if(|_| make.console_socket.is_none());
    finish(global, make, &record, &mut process)?;
    release(global, &record, &mut process)?;
    let code = Waiting { signals, process: &process, console }.wait();
    if !run.keep {
        ending::remove(global, &record)?;
    }
    code
}

/// Let it pass its gate; nothing stays of one whose command cannot run.
fn release(global: &Global, record: &Record, process: &mut Process) -> Result<()> {
    let started = process.start().map_err(Failed::from).and_then(|()| after_start(global, record));
    started.or_else(|error| ending::remove(global, record).and(Err(error)))
}

fn glance(bundle: &Path) -> Result<Glance> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).doing(|| format!("read {}", path.display()))?;
    let mut glance: Glance =
        serde_json::from_slice(&text).map_err(|e| Failed(format!("{}: {e}", path.display())))?;
    glance.text = text;
    Ok(glance)
}

/// Whoever detaches must say where the terminal goes, and only a terminal goes anywhere.
fn check_console(terminal: bool, detached: bool, socket: Option<&Path>) -> Result<()> {
    match (terminal, detached, socket) {
        (true, true, None) => Err(Failed("process.terminal is set: --console-socket is needed".to_owned())),
        (false, _, Some(_)) => {
            Err(Failed("--console-socket is given, but process.terminal is not set".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Make the container, waiting at its gate: when it runs its record is complete. Nothing stays of one that could not
/// be made. `started`: it will pass the gate at once.
fn begin(global: &Global, make: &Make, glance: &Glance, started: bool) -> Result<(Record, Process)> {
    let mut record = Record::new(&make.id, &make.bundle)?;
    let directory = record::directory(global, &make.id);
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    builder.recursive(true).create(&global.root).doing(|| format!("make {}", global.root.display()))?;
    match builder.recursive(false).create(&directory) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(Failed(format!("container {:?} exists already", make.id)));
        }
        other => other.doing(|| format!("make {}", directory.display()))?,
    }
    record.rootfs = make.bundle.join(&glance.root.path);
    record.annotations.clone_from(&glance.annotations);
    record.started = started;
    let config = record::config(global, &make.id);
    let kept = monitor::record::replace(&config, &glance.text, false)
        .doing(|| format!("write {}", config.display()));
    let kept = kept.and_then(|()| record.save(global));
    let made = kept.and_then(|()| execute(global, make, &record)).and_then(|process| {
        record.pid = process.pid;
        record.start_time = process.start_time;
        record.cgroup = process.cgroup.path().to_owned();
        record.save(global).map(|()| process)
    });
    match made {
        Ok(process) => Ok((record, process)),
        Err(error) => {
            ending::remove(global, &record)?;
            Err(error)
        }
    }
}

fn execute(global: &Global, make: &Make, record: &Record) -> Result<Process> {
    let gate = record::gate(global, &make.id);
    // In the builder: a `delete` finds what there is even when this command is killed.
    let note = |cgroup: &Cgroup| {
        let mut record = record.clone();
        record.makers.push(Maker::this()?);
        record.cgroup = cgroup.path().to_owned();
        record.save(global).map_err(|Failed(why)| io::Error::other(why))
    };
    let config = record::config(global, &make.id);
    let pending = executor::create(Create {
        id: &make.id,
        bundle: Bundle { dir: &make.bundle, kept: Some(&config) },
        stdio: own_stdio()?,
        seccomp_cache: &record::seccomp_cache(global),
        gate: Some(&gate),
        preserve_fds: make.preserve_fds,
        on_cgroup: Some(OnCgroup(&note)),
    })?;
    let process = pending.complete()?;
    process.warnings.iter().for_each(|warning| warn(global, warning));
    Ok(process)
}

/// Hand over what the caller asked for; a container whose caller cannot be told is removed.
fn finish(global: &Global, make: &Make, record: &Record, process: &mut Process) -> Result<()> {
    let told = match (process.console.take(), &make.console_socket) {
        (Some(master), Some(socket)) => send_console(socket, &master),
        (console, _) => {
            process.console = console;
            Ok(())
        }
    };
    told.and_then(|()| write_pid_file(make.pid_file.as_deref(), process.pid))
        .or_else(|error| ending::remove(global, record).and(Err(error)))
}

/// Copies of this program's own standard streams.
pub(crate) fn own_stdio() -> Result<Stdio> {
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().doing(|| "copy a standard stream".to_owned());
    Ok(Stdio {
        stdin: copy(std::io::stdin().as_fd())?,
        stdout: copy(std::io::stdout().as_fd())?,
        stderr: copy(std::io::stderr().as_fd())?,
    })
}

/// Send a terminal's master side to who listens there, as runc does.
pub(crate) fn send_console(socket: &Path, master: &OwnedFd) -> Result<()> {
    let what = || format!("send the terminal to {}", socket.display());
    let stream = sys::socket::connect(socket).doing(what)?;
    let name = IoSlice::new(b"/dev/ptmx");
    sys::socket::send(stream.as_fd(), &name, &[master.as_fd()]).doing(what)?;
    Ok(())
}

/// The pid alone, as runc writes it.
pub(crate) fn write_pid_file(path: Option<&Path>, pid: i32) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    monitor::record::replace(path, pid.to_string().as_bytes(), false)
        .doing(|| format!("write pid file {}", path.display()))
}
