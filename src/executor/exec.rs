//! A further process in a running container.
//!
//! The caller enters the container's PID namespace for its children, clones, and goes back: one fork, nothing is
//! executed but the program. The child reads the bundle on the node's side, moves itself into the cgroup (on v2 it
//! was born there), enters the other namespaces by the pidfd of init, and launches.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use sys::process::{Clone, Side, clone3, exit_now};

use crate::attributes::Proc;
use crate::channel::{Channel, FromInit};
use crate::console;
use crate::create::contained;
use crate::error::{Context, Error, Kind, Result};
use crate::launch::{self, Launch};
use crate::load::{self, Running};
use crate::process::Pending;
use crate::{Command, Exec, apart, credentials, seccomp};

/// All namespaces of a container but the PID namespace, which is entered by birth, and the user namespace.
const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Run one more process in a container. Forks, and returns at once. Kind `wrong_state` when init has ended.
pub fn exec(exec: Exec<'_>) -> Result<Pending> {
    sys::cgroup::Layout::host().step("find the cgroups", "")?;
    let (ours, theirs) = Channel::pair()?;
    let gone = |e: std::io::Error| gone(exec.id, &e);
    let own = fs::File::open("/proc/self/ns/pid").step("open", "/proc/self/ns/pid")?;
    let cgroup = exec.cgroup.unified_directory().map_err(gone)?;
    sys::namespace::enter(exec.init, libc::CLONE_NEWPID).map_err(gone)?;
    let clone = |cgroup: Option<&OwnedFd>| {
        clone3(Clone { namespaces: 0, as_sibling: false, cgroup: cgroup.map(AsFd::as_fd) })
    };
    let side = match clone(cgroup.as_ref()) {
        // The container has made cgroups of its own below, so nobody can be in that one any more: join init's.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            init_cgroup(exec.init).and_then(|c| clone(c.as_ref()))
        }
        other => other,
    };
    if let Ok(Side::Child) = side {
        drop(ours);
        exit_now(contained(|| {
            let error = become_program(&exec, &theirs);
            let _ = theirs.send(&FromInit::Failed(error), &[]);
            exit_now(1);
        }));
    }
    // Our own namespace again, whatever the clone said: later containers must not be born in this one.
    let back = sys::namespace::enter(own.as_fd(), libc::CLONE_NEWPID).step("leave pid namespace of", exec.id);
    match side.map_err(gone)? {
        Side::Parent { pid, pidfd } => {
            let pending = Pending::of_process(ours, (pid, pidfd), exec.cgroup.clone());
            back.map(|()| pending)
        }
        Side::Child => unreachable!("the child has ended above"),
    }
}

/// The kernel's answers when init has ended, and its cgroup is gone.
fn gone(id: &str, error: &std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOMEM | libc::ENOENT | libc::ENODEV) => {
            Error::new(Kind::WrongState, "exec in container", id, "it is not running")
        }
        _ => Error::internal("exec in container", id, error),
    }
}

/// An error of a step when init runs, [`Kind::WrongState`] when it has ended meanwhile: whatever then fails, fails for that.
fn unless_ended(exec: &Exec<'_>, error: Error) -> Error {
    match sys::process::wait_for_end(exec.init, std::time::Duration::ZERO) {
        Ok(true) => Error::new(Kind::WrongState, "exec in container", exec.id, "it is not running"),
        _ => error,
    }
}

fn init_cgroup(init: BorrowedFd<'_>) -> std::io::Result<Option<OwnedFd>> {
    sys::cgroup::Cgroup::of_process(sys::process::pid_of(init)?)?.unified_directory()
}

fn become_program(exec: &Exec<'_>, channel: &Channel) -> Error {
    match run(exec, channel) {
        Ok(never) => match never {},
        Err(error) => unless_ended(exec, error),
    }
}

fn run(exec: &Exec<'_>, channel: &Channel) -> Result<std::convert::Infallible> {
    launch::detach()?;
    let (path, text) = load::read(exec.bundle)?;
    let running: Running<'_> = load::parse(&path, &text)?;
    let filter = running.seccomp().map(|profile| seccomp::load(profile, exec.seccomp_cache)).transpose()?;
    let limited = running.has_user_namespace();
    let process = process(running, &exec.command)?;
    load::checked(&process)?;
    let proc = Proc::open()?;
    let (sets, mut warnings) = credentials::sets(process.capabilities().as_ref(), limited)?;
    exec.cgroup.enter_v1().step("enter cgroup", exec.cgroup.path())?;
    enter_namespaces(exec, &process, &proc, limited.then_some(&mut warnings))?;
    let console = if process.terminal().unwrap_or(false) {
        let root =
            sys::path::open_directory(Path::new("/")).map_err(std::io::Error::from).step("open", "/")?;
        Some(console::open_in_root(root.as_fd(), &process, process.user().uid())?)
    } else {
        None
    };
    let (process, filter, preserve_fds) = (&process, filter.as_ref(), exec.preserve_fds);
    let launch = Launch { process, proc: &proc, sets: &sets, filter, preserve_fds, limited };
    let command = launch.prepare(&exec.stdio, console.as_ref(), &mut warnings)?;
    let fds: Vec<BorrowedFd<'_>> = console.iter().map(|c| c.master.as_fd()).collect();
    channel.send(&FromInit::Ready { warnings }, &fds).step("report", "ready")?;
    drop(console);
    Err(launch.exec(&command))
}

/// A process that has a terminal is told of which type it is.
fn with_terminal_type(mut env: Vec<String>) -> Vec<String> {
    if !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    env
}

/// Enter them all at once. With a user namespace, whose `warnings` are given, what needs rights on the node comes before.
fn enter_namespaces(
    exec: &Exec<'_>,
    process: &Process,
    proc: &Proc,
    warnings: Option<&mut Vec<String>>,
) -> Result<()> {
    let Some(warnings) = warnings else {
        return sys::namespace::enter(exec.init, NAMESPACES).step("enter the namespaces of", exec.id);
    };
    let init = sys::process::pid_of(exec.init).step("find init of", exec.id)?;
    warnings.extend(apart::before_entering(process, proc, init, &exec.stdio)?);
    sys::namespace::enter(exec.init, NAMESPACES | libc::CLONE_NEWUSER)
        .step("enter the namespaces of", exec.id)?;
    sys::user_namespace::become_root().step("become root of", "the user namespace")
}

/// What is run: the bundle's process with another command line, or a process of its own.
fn process(running: Running<'_>, command: &Command<'_>) -> Result<Process> {
    match command {
        Command::Process(process) => Ok((*process).clone()),
        Command::Args { args, terminal } => {
            let mut process = running
                .process
                .ok_or_else(|| Error::invalid("check config.json", "process", "is missing"))?;
            if *terminal {
                process.set_env(Some(with_terminal_type(process.env().clone().unwrap_or_default())));
            }
            process.set_args(Some(args.to_vec())).set_terminal(Some(*terminal));
            Ok(process)
        }
    }
}
