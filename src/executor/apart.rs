//! A container in a user namespace: its init has no rights on the node from its first moment on, so others do for it what needs
//! them.
//!
//! ```text
//! builder                    opener                          init                      mounter
//! clone3 ─────────────────▶  what needs rights on the node
//! CgroupMade ─────────────▶  cgroup, limits, namespaces
//!                            the user namespace, as its root
//!                            clone3(CLONE_PARENT) ────────▶  waits
//!          ◀─── Born, pidfd  ends
//! clone3, in init's PID namespace ─────────────────────────────────────────────────▶  namespaces of init, the root
//! hooks of the node's side ◀────────────────────────────────────────── MountsMade
//!                                                                      pivot, user namespace, copy of the mount namespace
//!          ◀────────────────────────────────────────── RootMade, mount namespace, console
//! EnterRoot ─────────────────────────────────────────────▶  enters it, …               ends
//! ```
//!
//! The root is built by a process with the node's rights, in a mount namespace of the node's: so layers and volumes can be
//! idmapped, and /proc and /sys need not be visible where this runtime runs. The container then gets a *copy* of that
//! mount namespace, made inside its user namespace. In such a copy the kernel locks all mounts together: nobody in the
//! container can take a mask away or make a read-only volume writable, with all capabilities of its user namespace.
//!
//! `createContainer` hooks are run by the mounter, in the container's namespaces except for the user namespace: the mount
//! namespace that they are to mount in is the node's until its copy is made, and in the copy, where the node's files are gone,
//! there is nothing left of what they are run from. So they have the node's rights, as the other hooks before the start have:
//! who writes a config can name any of these.
//!
//! What must never happen: a process that has entered the user namespace and holds a descriptor of a directory of the node
//! that it could walk from (init holds none that is not the container's, apart from the node's procfs); a device that
//! belongs to somebody in the container when the config does not say so by an owner.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci::IdMaps;
use sys::mount;
use sys::process::{Clone, Side, clone3, exit_now};
use sys::user_namespace;

use crate::attributes;
use crate::channel::{Channel, FromInit, ToInit};
use crate::console::Console;
use crate::create::{FOREVER, KILLED, contained};
use crate::error::{Context, Error, Kind, Result};
use crate::id_maps::Owners;
use crate::init::{self, Plan, Rooted};
use crate::launch;

/// Namespaces that the opener makes inside the user namespace. The mount namespace comes later, the PID namespace by birth.
const MADE_BY_OPENER: i32 = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;

// ---- the opener

/// Run as the opener: returns only when a step has failed; as init the copy of it does the same.
pub(crate) fn open_and_bear(plan: &mut Plan, channel: &Channel) -> Error {
    match bear(plan, channel) {
        Err(error) => error,
        Ok(Side::Parent { pid, pidfd }) => {
            let _ = channel.send(&FromInit::Born { pid }, &[pidfd.as_fd()]);
            exit_now(0)
        }
        Ok(Side::Child) => exit_now(contained(|| {
            let error = init::run(plan, channel);
            let _ = channel.send(&FromInit::Failed(error), &[]);
            exit_now(1);
        })),
    }
}

fn bear(plan: &mut Plan, channel: &Channel) -> Result<Side> {
    launch::detach()?;
    init::wait_for(channel, |m| matches!(m, ToInit::CgroupMade))?;
    plan.cgroup.enter_v1().step("enter cgroup", plan.cgroup.path())?;
    let process = plan.process()?;
    let score = process.oom_score_adj();
    let clamped = score.map(|score| attributes::set_oom_score(&plan.proc, score)).transpose()?.flatten();
    attributes::set_rlimits(process)?;
    for (fd, flag) in &plan.join {
        sys::namespace::enter(fd.as_fd(), *flag).step("enter namespace", init::namespace_name(*flag))?;
    }
    let user = plan.user.as_ref().ok_or_else(|| Error::invalid("enter namespace", "user", "is missing"))?;
    user_namespace::enter(user.as_fd()).step("enter namespace", "user")?;
    user_namespace::become_root().step("become root of", "the user namespace")?;
    let cgroup = if plan.new_cgroup_namespace { libc::CLONE_NEWCGROUP } else { 0 };
    sys::namespace::unshare(plan.new & MADE_BY_OPENER | cgroup).step("make namespaces", "")?;
    plan.warnings.extend(clamped);
    let namespaces = plan.new & libc::CLONE_NEWPID;
    clone3(Clone { namespaces, as_sibling: true, cgroup: None }).step("make a process", "init")
}

// ---- the builder's part

/// What the mappings of the namespace that a process is in make of ids.
pub(crate) fn owners_of(pid: i32) -> Result<Owners> {
    let (uids, gids) = user_namespace::maps_of(pid).step("read the user namespace of", pid)?;
    let maps = IdMaps::parse(&uids, &gids);
    maps.map(Owners::of).ok_or_else(|| Error::new(Kind::Internal, "read the user namespace of", pid, uids))
}

/// Let a mounter make the root for an init that waits, and show init to it. `hooks` runs the ones of the node's side, as long as
/// the mounter's line that it is given is open.
pub(crate) fn make_root(
    plan: &Plan,
    (init, pidfd): (i32, BorrowedFd<'_>),
    channel: &Channel,
    hooks: impl Fn(BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    let own = std::fs::File::open("/proc/self/ns/pid").step("open", "/proc/self/ns/pid")?;
    let (ours, theirs) = Channel::pair()?;
    // a procfs shows the PID namespace of the one who mounts it
    sys::namespace::enter(pidfd, libc::CLONE_NEWPID).step("enter pid namespace of", &plan.id)?;
    let side = clone3(Clone::default()).step("make a process", "mounter")?;
    let Side::Parent { pid: mounter, pidfd: mounter_fd } = side else {
        drop(ours);
        exit_now(contained(|| {
            if let Err(error) = mount_all(plan, (init, pidfd), &theirs) {
                let _ = theirs.send(&FromInit::Failed(error), &[]);
            }
        }))
    };
    drop(theirs);
    let back =
        sys::namespace::enter(own.as_fd(), libc::CLONE_NEWPID).step("leave pid namespace of", &plan.id);
    let made = back.and_then(|()| follow_mounter(&ours, channel, pidfd, hooks));
    drop(ours);
    if made.is_err() {
        // it may hang in a file system
        let _ = sys::process::pidfd_signal(mounter_fd.as_fd(), libc::SIGKILL);
    }
    // it has ended, or is about to: nobody answers it any more
    let _ = sys::process::wait(mounter, true);
    made
}

fn follow_mounter(
    mounter: &Channel,
    init: &Channel,
    init_fd: BorrowedFd<'_>,
    hooks: impl Fn(BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    loop {
        let first = sys::process::wait_for_first(&[mounter.as_fd(), init_fd], FOREVER);
        if first.step("wait for the mounter", "")? == Some(1) {
            return Err(Error::new(Kind::Internal, "make the root", "", KILLED));
        }
        match mounter.receive::<FromInit>().step("hear from the mounter", "")? {
            Some((FromInit::MountsMade, _)) => {
                hooks(mounter.as_fd())?;
                mounter.send(&ToInit::Continue, &[]).step("tell the mounter", "to go on")?;
            }
            Some((FromInit::RootMade { sysctls_left }, fds)) => {
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                // an init that has ended already says why itself
                let _ = init.send(&ToInit::EnterRoot { sysctls_left }, &fds);
                return Ok(());
            }
            Some((FromInit::Failed(error), _)) => return Err(error),
            _ => return Err(Error::new(Kind::Internal, "make the root", "", "the mounter was killed")),
        }
    }
}

// ---- the mounter

/// All of init's namespaces that mounts, names, sysctls and hooks look at.
const OF_INIT: i32 = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;

fn mount_all(plan: &Plan, (pid, init): (i32, BorrowedFd<'_>), channel: &Channel) -> Result<()> {
    launch::detach()?;
    sys::namespace::enter(init, OF_INIT).step("enter the namespaces of", &plan.id)?;
    sys::namespace::unshare(libc::CLONE_NEWNS).step("make namespace", "mount")?;
    let rooted = init::build_root(plan, channel, owners_of(pid)?, Some(pid))?;
    let sysctls_left = attributes::set_sysctls(&plan.proc, plan.sysctls()?, attributes::Refused::Left)?;
    let Some(user) = &plan.user else { return Ok(()) };
    user_namespace::enter(user.as_fd()).step("enter namespace", "user")?;
    sys::namespace::unshare(libc::CLONE_NEWNS).step("make namespace", "mount")?;
    if let Some((propagation, recursive)) = rooted.propagation {
        // what was shared came over as slave
        let root =
            sys::path::open_directory(Path::new("/")).map_err(std::io::Error::from).step("open", "/")?;
        let none = mount::Attributes::default();
        mount::change(root.as_fd(), none, Some(propagation), recursive).step("set propagation of", "/")?;
    }
    let namespace = plan.proc.open_namespace("mnt").step("open namespace", "mount")?;
    let mut fds = vec![namespace.as_fd()];
    fds.extend(rooted.console.iter().flat_map(|c| [c.master.as_fd(), c.terminal.as_fd()]));
    channel.send(&FromInit::RootMade { sysctls_left }, &fds).step("report", "root made")
}

// ---- init's part

/// Wait for the root and enter it; what is left to do in it.
pub(crate) fn enter_root(channel: &Channel) -> Result<Rooted> {
    let (message, fds) = init::wait_for(channel, |m| matches!(m, ToInit::EnterRoot { .. }))?;
    let ToInit::EnterRoot { sysctls_left } = message else { unreachable!("it was waited for") };
    let mut fds = fds.into_iter();
    let missing = || Error::new(Kind::Internal, "enter the root", "", "its mount namespace was not sent");
    let namespace = fds.next().ok_or_else(missing)?;
    sys::namespace::enter(namespace.as_fd(), libc::CLONE_NEWNS).step("enter namespace", "mount")?;
    let console = match (fds.next(), fds.next()) {
        (Some(master), Some(terminal)) => Some(Console { master, terminal }),
        _ => None,
    };
    Ok(Rooted { console, propagation: None, sysctls_left: Some(sysctls_left) })
}

/// Pipes that the process is to own: only the node's root can give them to it.
pub(crate) fn own_pipes(plan: &Plan, owners: &Owners) -> Result<()> {
    launch::own_pipes(&plan.stdio, owners.user(plan.process()?.user().uid())?)
}

/// What an exec does before it enters a container's user namespace.
pub(crate) fn before_entering(
    process: &oci_spec::runtime::Process,
    proc: &attributes::Proc,
    init: i32,
    stdio: &crate::process::Stdio,
) -> Result<Option<String>> {
    let clamped = match process.oom_score_adj() {
        Some(score) => attributes::set_oom_score(proc, score)?,
        None => None,
    };
    attributes::set_rlimits(process)?;
    launch::own_pipes(stdio, owners_of(init)?.user(process.user().uid())?)?;
    Ok(clamped)
}

/// Whether a descriptor leads to the user namespace that this process is in.
pub(crate) fn is_own(namespace: &OwnedFd) -> bool {
    let link = |path: String| std::fs::read_link(path).ok();
    let theirs = link(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
    theirs.is_some() && theirs == link("/proc/self/ns/user".to_owned())
}
