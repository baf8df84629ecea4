//! The builder: the copy of the caller that turns a bundle into a running init and then ends.
//!
//! ```text
//! builder                                      init (the caller's child)
//! read config.json, open namespaces, filter
//! make the v2 cgroup (pure v2: its limits)
//! clone3 ───────────────────────────────────▶  bind sources, root
//! make the v1 cgroup, its limits
//! CgroupMade ───────────────────────────────▶  enter it, mounts, devices, masks
//! hooks of the node's side  ◀── MountsMade
//! Continue ─────────────────────────────────▶  pivot, user, …
//! ◀──────────────────────────────────── Ready  (with a gate the builder is done here)
//! ◀───────────────────────────── end of file   its program runs
//! Made → caller
//! ```
//!
//! A container in a user namespace comes about in another way, see `apart`. When anything fails init is killed, the cgroup is removed, and the caller gets the first error.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use oci::IdMaps;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Spec};
use sys::cgroup::{Cgroup, Layout, Version};
use sys::process::{Clone, Side, clone3, exit_now};

use crate::attributes::Proc;
use crate::channel::{Channel, FromInit, ToCaller, ToInit};
use crate::error::{Context, Error, Kind, Result};
use crate::hooks::{self, State};
use crate::init::{self, Plan, has_node_hooks, namespace_name};
use crate::process::Pending;
use crate::{Bundle, Create, OnCgroup, apart, credentials, id_maps, load, mounts, resources, seccomp};

/// What can be waited for so long ends otherwise.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why a container is not made whose init, or the one who makes its root, has ended without a word.
pub(crate) const KILLED: &str = "its process was killed while it was set up";

/// Make a container. Forks, and returns at once; [`Pending::complete`] tells the outcome.
pub fn create(create: Create<'_>) -> Result<Pending> {
    // Looked up here once for all builders to come.
    Layout::host().step("find the cgroups", "")?;
    let gate = create.gate.map(Path::to_owned);
    let (ours, theirs) = Channel::pair()?;
    match clone3(Clone::default()).step("make a process", "builder")? {
        Side::Parent { pid, pidfd } => Ok(Pending::of_builder(ours, (pid, pidfd), gate)),
        Side::Child => {
            drop(ours);
            exit_now(contained(|| build_and_report(create, &theirs)))
        }
    }
}

/// A panic in a copy of the caller must not unwind into the caller's frames.
pub(crate) fn contained(work: impl FnOnce()) -> i32 {
    i32::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err())
}

fn build_and_report(create: Create<'_>, caller: &Channel) {
    let mut made = None;
    match build(create, &mut made) {
        Ok((init, console, warnings)) => {
            let mut fds = vec![init.pidfd.as_fd()];
            fds.extend(console.iter().map(AsFd::as_fd));
            let (pid, cgroup) = (init.pid, init.cgroup.path().to_owned());
            let start_time = sys::process::start_time(pid).unwrap_or(0);
            let message = ToCaller::Made { pid, start_time, cgroup, warnings };
            if caller.send(&message, &fds).is_err() {
                // Nobody is left to look after it.
                undo(&made);
            }
        }
        Err(error) => {
            undo(&made);
            let pid = made.as_ref().and_then(|m| m.init.as_ref()).map(|i| i.pid);
            let _ = caller.send(&ToCaller::NotMade { error, pid }, &[]);
        }
    }
}

/// What is there to be undone.
#[derive(Debug)]
struct Made {
    cgroup: Cgroup,
    init: Option<Init>,
    gate: Option<PathBuf>,
}

/// The process that will be the container's init.
#[derive(Debug)]
struct Init {
    pid: i32,
    pidfd: Rc<OwnedFd>,
    cgroup: Cgroup,
}

impl std::clone::Clone for Init {
    fn clone(&self) -> Self {
        Init { pid: self.pid, pidfd: self.pidfd.clone(), cgroup: self.cgroup.clone() }
    }
}

fn undo(made: &Option<Made>) {
    let Some(made) = made else { return };
    if let Some(init) = &made.init {
        let _ = sys::process::pidfd_signal(init.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::process::wait_for_end(init.pidfd.as_fd(), Duration::from_secs(2));
    }
    if let Some(gate) = &made.gate {
        let _ = fs::remove_file(gate);
    }
    // Hooks and what init has started.
    let _ = made.cgroup.kill();
    let _ = made.cgroup.remove();
}

type Built = (Init, Option<OwnedFd>, Vec<String>);

fn build(create: Create<'_>, made: &mut Option<Made>) -> Result<Built> {
    let (gate, on_cgroup) = (create.gate.map(Path::to_owned), create.on_cgroup);
    let mut plan = plan(create)?;
    let cgroup = plan.cgroup.clone();
    make_cgroup(&cgroup, Version::V2)?;
    let undoing = made.insert(Made { cgroup: cgroup.clone(), init: None, gate: None });
    if let Some(OnCgroup(note)) = on_cgroup {
        note(&cgroup).step("write down cgroup", cgroup.path())?;
    }
    let limits_first = !Layout::host().step("find the cgroups", "")?.has_v1();
    if limits_first {
        set_limits(&plan)?;
    }
    if let Some(gate) = &gate {
        plan.gate = Some(listen(gate)?);
        undoing.gate = Some(gate.clone());
    }
    let (ours, theirs) = Channel::pair()?;
    let directory = cgroup.unified_directory().step("open cgroup", cgroup.path())?;
    // What a container in a user namespace has is made inside of that, by a process that ends then.
    let namespaces = if plan.user.is_some() { 0 } else { plan.new };
    let how = Clone { namespaces, as_sibling: true, cgroup: directory.as_ref().map(AsFd::as_fd) };
    let mut init = match clone3(how).step("make a process", "init")? {
        Side::Child => {
            drop(ours);
            exit_now(contained(|| {
                let error = match plan.user {
                    Some(_) => apart::open_and_bear(&mut plan, &theirs),
                    None => init::run(&mut plan, &theirs),
                };
                let _ = theirs.send(&FromInit::Failed(error), &[]);
                exit_now(1);
            }))
        }
        Side::Parent { pid, pidfd } => Init { pid, pidfd: pidfd.into(), cgroup: cgroup.clone() },
    };
    drop(theirs);
    undoing.init = Some(init.clone());
    if !limits_first {
        make_cgroup(&cgroup, Version::V1)?;
        set_limits(&plan)?;
    }
    // An init that has failed already says why itself.
    let _ = ours.send(&ToInit::CgroupMade, &[]);
    if plan.user.is_some() {
        (init.pid, init.pidfd) = born(&ours)?;
        undoing.init = Some(init.clone());
        apart::own_pipes(&plan, &apart::owners_of(init.pid)?)?;
        let hooks = |mounter: BorrowedFd<'_>| run_node_hooks(&plan, &init, Some(mounter));
        apart::make_root(&plan, (init.pid, init.pidfd.as_fd()), &ours, hooks)?;
    }
    let (console, warnings) = follow(&plan, &init, &ours)?;
    Ok((init, console, warnings))
}

/// Hear from the opener of a user namespace of the init that it has made.
fn born(opener: &Channel) -> Result<(i32, Rc<OwnedFd>)> {
    match opener.receive::<FromInit>().step("hear from the opener", "")? {
        Some((FromInit::Born { pid }, mut fds)) if fds.len() == 1 => Ok((pid, fds.remove(0).into())),
        Some((FromInit::Failed(error), _)) => Err(error),
        _ => Err(Error::new(Kind::Internal, "hear from the opener", "", "it was killed")),
    }
}

/// Answer init's messages until it waits at its gate or its program runs.
fn follow(plan: &Plan, init: &Init, channel: &Channel) -> Result<(Option<OwnedFd>, Vec<String>)> {
    let mut ready = None;
    loop {
        let message = channel.receive::<FromInit>().step("hear from init", "")?;
        match message {
            Some((FromInit::MountsMade, _)) => {
                run_node_hooks(plan, init, None)?;
                channel.send(&ToInit::Continue, &[]).step("tell init", "to go on")?;
            }
            Some((FromInit::Ready { warnings }, mut fds)) => {
                ready = Some((fds.pop(), warnings));
                if plan.gate.is_some() {
                    break;
                }
            }
            Some((FromInit::Failed(error), _)) => return Err(error),
            // only others say these
            Some((FromInit::Born { .. } | FromInit::RootMade { .. }, _)) => {}
            None => break,
        }
    }
    ready.ok_or_else(|| {
        let (kind, why) = match init.cgroup.oom_kills() {
            Ok(1..) => (Kind::Invalid, "its memory limit is too small to set it up"),
            _ => (Kind::Internal, KILLED),
        };
        Error::new(kind, "make the container", &plan.id, why)
    })
}

/// `mounter`: its line, which closes before init has ended, when both are killed.
fn run_node_hooks(plan: &Plan, init: &Init, mounter: Option<BorrowedFd<'_>>) -> Result<()> {
    let Some(hooks) = plan.spec.hooks().as_ref().filter(|h| has_node_hooks(h)) else { return Ok(()) };
    // With a PID namespace that was joined our children would be born in it, and end with it.
    let own = fs::File::open("/proc/self/ns/pid").step("open", "/proc/self/ns/pid")?;
    sys::namespace::enter(own.as_fd(), libc::CLONE_NEWPID).step("leave pid namespace of", &plan.id)?;
    let state = State { id: &plan.id, status: "creating", pid: init.pid, bundle: &plan.bundle };
    let ends: Vec<BorrowedFd<'_>> = std::iter::once(init.pidfd.as_fd()).chain(mounter).collect();
    for (name, list) in [("prestart", hooks.prestart()), ("createRuntime", hooks.create_runtime())] {
        hooks::run(name, list.as_ref(), &plan.spec, &state, &ends)?;
    }
    Ok(())
}

fn make_cgroup(cgroup: &Cgroup, version: Version) -> Result<()> {
    cgroup.create(version).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => Error::invalid("make cgroup", cgroup.path(), "processes are in it already"),
        _ => Error::internal("make cgroup", cgroup.path(), &e),
    })
}

fn set_limits(plan: &Plan) -> Result<()> {
    resources::set_first(&plan.cgroup, plan.spec.linux().as_ref().and_then(|l| l.resources().as_ref()))
}

fn listen(gate: &Path) -> Result<UnixListener> {
    sys::socket::listen(gate).step("make the gate", gate.display())
}

/// Work out everything that can be before there is a process.
fn plan(create: Create<'_>) -> Result<Plan> {
    let dir = create.bundle.dir;
    let bundle = fs::canonicalize(dir)
        .map_err(|e| Error::invalid("open bundle", dir.display(), crate::errno_text(&e)))?;
    let spec = load(create.bundle)?;
    let entries =
        spec.mounts().iter().flatten().map(|m| mounts::parse(m, &bundle)).collect::<Result<Vec<_>>>()?;
    let linux = spec.linux().as_ref();
    let profile = linux.and_then(|l| l.seccomp().as_ref()).map(serde_json::to_string).transpose();
    let profile = profile.map_err(|e| Error::invalid("check config.json", "linux.seccomp", e))?;
    let filter = profile.map(|text| seccomp::load(&text, create.seccomp_cache)).transpose()?;
    let user = user_namespace(&spec)?;
    let id_maps = id_maps::namespaces(&entries, user.as_ref())?;
    let wanted = spec.process().as_ref().and_then(|p| p.capabilities().as_ref());
    let (sets, warnings) = credentials::sets(wanted, user.is_some())?;
    let namespaces = namespaces(&spec, user.is_some())?;
    Ok(Plan {
        id: create.id.to_owned(),
        cgroup: Cgroup::new(cgroup_path(&spec, create.id)),
        entries,
        id_maps,
        user,
        new: namespaces.new & !libc::CLONE_NEWCGROUP,
        new_cgroup_namespace: namespaces.new & libc::CLONE_NEWCGROUP != 0,
        join: namespaces.join,
        filter,
        sets,
        warnings,
        proc: Proc::open()?,
        stdio: create.stdio,
        gate: None,
        preserve_fds: create.preserve_fds,
        bundle,
        spec,
    })
}

/// End the making of a container that its builder is at, wherever that is: SIGKILL for its init and what hooks have started in the
/// container. [`Pending`] tells the rest. Nothing happens before there is an init.
pub fn abort(bundle: Bundle<'_>, id: &str) -> Result<()> {
    let cgroup = Cgroup::new(cgroup_path(&load(bundle)?, id));
    cgroup.kill().step("kill what is in cgroup", cgroup.path())
}

/// A relative path starts at the root as well; without one the container's id is it.
fn cgroup_path(spec: &Spec, id: &str) -> String {
    let wanted = spec.linux().as_ref().and_then(|l| l.cgroups_path().as_ref());
    let path = wanted.map_or(PathBuf::from(id), PathBuf::clone);
    Path::new("/").join(path).to_string_lossy().into_owned()
}

struct Namespaces {
    new: i32,
    join: Vec<(OwnedFd, i32)>,
}

fn listed(spec: &Spec) -> impl Iterator<Item = &LinuxNamespace> {
    spec.linux().as_ref().and_then(|l| l.namespaces().as_ref()).into_iter().flatten()
}

fn path_of(namespace: &LinuxNamespace) -> Option<&PathBuf> {
    namespace.path().as_ref().filter(|p| !p.as_os_str().is_empty())
}

fn open(path: &Path, flag: i32) -> Result<fs::File> {
    fs::File::open(path).map_err(|e| {
        let step = format!("open {} namespace", namespace_name(flag));
        Error::invalid(&step, path.display(), crate::errno_text(&e))
    })
}

/// The user namespace of the container, made or opened; `None`: it is in this process's.
fn user_namespace(spec: &Spec) -> Result<Option<OwnedFd>> {
    let Some(namespace) = listed(spec).find(|n| n.typ() == LinuxNamespaceType::User) else { return Ok(None) };
    let Some(path) = path_of(namespace) else {
        let linux = spec.linux().as_ref();
        let list = |list: Option<&Option<Vec<LinuxIdMapping>>>| list.cloned().flatten().unwrap_or_default();
        let uids = list(linux.map(|l| l.uid_mappings()));
        let gids = list(linux.map(|l| l.gid_mappings()));
        return id_maps::make(&IdMaps::from_spec(&uids, &gids)).map(Some);
    };
    let joined = open(path, libc::CLONE_NEWUSER)?.into();
    if apart::is_own(&joined) {
        return Err(Error::invalid("enter user namespace", path.display(), "it is the runtime's own"));
    }
    Ok(Some(joined))
}

/// Open the namespaces that are joined. A PID namespace is entered here, so that the next clone is born in it; not when
/// there is a user namespace, whose opener enters it.
fn namespaces(spec: &Spec, apart: bool) -> Result<Namespaces> {
    let mut found = Namespaces { new: 0, join: Vec::new() };
    for namespace in listed(spec).filter(|n| n.typ() != LinuxNamespaceType::User) {
        let flag = flag(namespace.typ())?;
        let Some(path) = path_of(namespace) else {
            found.new |= flag;
            continue;
        };
        let file = open(path, flag)?;
        if flag == libc::CLONE_NEWPID && !apart {
            sys::namespace::enter(file.as_fd(), flag).step("enter pid namespace", path.display())?;
        } else {
            found.join.push((file.into(), flag));
        }
    }
    Ok(found)
}

fn flag(kind: LinuxNamespaceType) -> Result<i32> {
    Ok(match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Time => {
            return Err(Error::unsupported(
                "make namespace",
                kind,
                io::Error::from(io::ErrorKind::Unsupported),
            ));
        }
    })
}
