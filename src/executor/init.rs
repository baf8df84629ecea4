//! The container's init, from its birth to its program: a list of steps in its own namespaces.
//!
//! It was cloned by the builder and has the parsed config in its memory. The node's root is still in view until
//! [`Init::enter_root`]; paths of the node are used before it, paths of the container only by descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, Linux, Process, Spec};
use sys::cgroup::Cgroup;
use sys::mount::{self, Propagation};

use crate::apart;
use crate::attributes::{self, Proc, Refused};
use crate::channel::{Channel, FromInit, ToInit};
use crate::console::{self, Console};
use crate::credentials::Sets;
use crate::devices;
use crate::error::{Context, Error, Kind, Result};
use crate::hooks::{self, State};
use crate::id_maps::Owners;
use crate::inside::{self, Make};
use crate::launch::{self, Launch};
use crate::masks;
use crate::mounts::{self, Entry, Source};
use crate::overlay;
use crate::process::Stdio;
use crate::root::{self, Root};
use crate::seccomp::Filter;

/// Everything that was worked out before the clone.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) spec: Spec,
    pub(crate) entries: Vec<Entry>,
    /// For each entry the user namespace that its files are mapped by.
    pub(crate) id_maps: Vec<Option<OwnedFd>>,
    /// The user namespace that the container is in; `None`: this process's.
    pub(crate) user: Option<OwnedFd>,
    /// Namespaces that the clone makes (`CLONE_NEW*`).
    pub(crate) new: i32,
    /// Namespaces to enter, with their flag; no PID namespace (that is entered by birth).
    pub(crate) join: Vec<(OwnedFd, i32)>,
    /// A cgroup namespace of its own is made when the cgroup has been entered.
    pub(crate) new_cgroup_namespace: bool,
    pub(crate) cgroup: Cgroup,
    pub(crate) filter: Option<Filter>,
    pub(crate) sets: Sets,
    pub(crate) warnings: Vec<String>,
    pub(crate) proc: Proc,
    pub(crate) stdio: Stdio,
    pub(crate) gate: Option<UnixListener>,
    pub(crate) preserve_fds: u32,
}

impl Plan {
    /// The process of the config.
    pub(crate) fn process(&self) -> Result<&Process> {
        self.spec
            .process()
            .as_ref()
            .ok_or_else(|| Error::invalid("check config.json", "process", "is missing"))
    }

    fn linux(&self) -> Result<&Linux> {
        self.spec.linux().as_ref().ok_or_else(|| Error::invalid("check config.json", "linux", "is missing"))
    }

    /// The sysctls of the config.
    pub(crate) fn sysctls(&self) -> Result<impl Iterator<Item = (&String, &String)>> {
        Ok(self.linux()?.sysctl().iter().flatten())
    }

    fn hooks(&self, list: fn(&Hooks) -> &Option<Vec<Hook>>) -> Option<&Vec<Hook>> {
        self.spec.hooks().as_ref().and_then(|h| list(h).as_ref())
    }
}

/// Run as the container's init; returns only when a step has failed, with the connection that wants to know.
pub(crate) fn run(plan: &mut Plan, channel: &Channel) -> Error {
    let mut warnings = std::mem::take(&mut plan.warnings);
    let init = Init { plan, channel, owners: Owners::default(), pid: None };
    match init.become_program(&mut warnings) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

struct Init<'a> {
    plan: &'a Plan,
    channel: &'a Channel,
    /// Who the root belongs to.
    owners: Owners,
    /// The container's init, when that is another process.
    pid: Option<i32>,
}

/// What comes of making the root.
#[derive(Debug)]
pub(crate) struct Rooted {
    pub(crate) console: Option<Console>,
    /// That of the root, and whether it goes to the mounts below.
    pub(crate) propagation: Option<(Propagation, bool)>,
    /// Sysctls that could not be set yet; `None`: none was tried.
    pub(crate) sysctls_left: Option<Vec<String>>,
}

/// Make the root of another process and enter it: the mounter of a container in a user namespace (module `apart`).
pub(crate) fn build_root(plan: &Plan, channel: &Channel, owners: Owners, pid: Option<i32>) -> Result<Rooted> {
    Init { plan, channel, owners, pid }.build_root()
}

/// Wait for a message of the builder.
pub(crate) fn wait_for(channel: &Channel, expected: fn(&ToInit) -> bool) -> Result<(ToInit, Vec<OwnedFd>)> {
    match channel.receive::<ToInit>().step("wait for the builder", "")? {
        Some((message, fds)) if expected(&message) => Ok((message, fds)),
        _ => Err(Error::new(Kind::Internal, "wait for the builder", "", "it has ended")),
    }
}

impl Init<'_> {
    fn become_program(&self, warnings: &mut Vec<String>) -> Result<std::convert::Infallible> {
        let (plan, process) = (self.plan, self.plan.process()?);
        launch::detach()?;
        let rooted = match &plan.user {
            Some(_) => apart::enter_root(self.channel)?,
            None => {
                self.join_namespaces()?;
                self.build_root()?
            }
        };
        let left = |name: &String| rooted.sysctls_left.as_ref().is_none_or(|left| left.contains(name));
        attributes::set_sysctls(&plan.proc, plan.sysctls()?.filter(|(name, _)| left(name)), Refused::Told)?;
        let (sets, filter, console) = (&plan.sets, plan.filter.as_ref(), rooted.console);
        let (preserve_fds, limited) = (plan.preserve_fds, plan.user.is_some());
        let launch = Launch { process, proc: &plan.proc, sets, filter, preserve_fds, limited };
        let command = launch.prepare(&plan.stdio, console.as_ref(), warnings)?;
        self.report_ready(console.as_ref(), std::mem::take(warnings))?;
        drop(console);
        let Some(gate) = &plan.gate else {
            self.start_hooks()?;
            return Err(launch.exec(&command));
        };
        let (starter, _) = gate.accept().step("wait at the gate", "")?;
        let starter = Channel::from_socket(starter.into());
        let error = self.start_hooks().err().unwrap_or_else(|| launch.exec(&command));
        // The builder is gone: the one who opened the gate is told.
        let _ = starter.send(&FromInit::Failed(error.clone()), &[]);
        Err(error)
    }

    /// Everything from the node's view to the container's.
    fn build_root(&self) -> Result<Rooted> {
        let plan = self.plan;
        self.prepare_network()?;
        self.name_host()?;
        let mut copies = root::copy_sources(&plan.entries, &plan.id_maps)?;
        self.cut_off()?;
        let (place, label) = (self.place(), self.label()?);
        let overlays = overlay::mapped_overlays(&plan.entries, &plan.id_maps, label.as_deref(), &place)?;
        copies.iter_mut().zip(overlays).for_each(|(copy, overlay)| *copy = copy.take().or(overlay));
        let mut root = self.make_root(label)?;
        self.owners.assume()?;
        root.belong_to(self.owners.clone());
        self.make_mounts(&mut root, copies)?;
        let console = self.make_devices(&root)?;
        self.restrict_paths(&mut root)?;
        self.run_hooks()?;
        self.enter_root(&root)?;
        Ok(Rooted { console, propagation: self.root_propagation()?, sysctls_left: None })
    }

    fn join_namespaces(&self) -> Result<()> {
        for (fd, flag) in &self.plan.join {
            if *flag != libc::CLONE_NEWCGROUP {
                sys::namespace::enter(fd.as_fd(), *flag).step("enter namespace", namespace_name(*flag))?;
            }
        }
        Ok(())
    }

    fn prepare_network(&self) -> Result<()> {
        if self.plan.new & libc::CLONE_NEWNET != 0 {
            sys::netns::bring_up_loopback().step("set up loopback", "lo")?;
        }
        Ok(())
    }

    fn name_host(&self) -> Result<()> {
        if let Some(name) = self.plan.spec.hostname() {
            nix::unistd::sethostname(name).step("set hostname", name)?;
        }
        if let Some(name) = self.plan.spec.domainname() {
            self.plan.proc.write("sys/kernel/domainname", name).step("set domainname", name)?;
        }
        Ok(())
    }

    /// What the container's root propagates; the default is nothing to the node.
    fn propagation(&self) -> Result<Option<(Propagation, bool)>> {
        Ok(self.plan.linux()?.rootfs_propagation().as_deref().and_then(mounts::propagation))
    }

    /// As [`Init::propagation`]; without it what the entry of the root says. That word is for the root mount alone, which
    /// had nothing below it when it was made.
    fn root_propagation(&self) -> Result<Option<(Propagation, bool)>> {
        let root = self.plan.entries.first().filter(|e| e.is_root());
        let own = root.and_then(|e| e.propagation).map(|(kind, _)| (kind, false));
        Ok(self.propagation()?.or(own))
    }

    /// Nothing that is mounted from here on travels to the node.
    fn cut_off(&self) -> Result<()> {
        // Shared is for what is mounted in the new root: the node's tree must not see how it is put together.
        let apart = match self.propagation()? {
            Some((Propagation::Private | Propagation::Unbindable, _)) => Propagation::Private,
            _ => Propagation::Slave,
        };
        mount::propagate_all(apart).step("set propagation of", "/")
    }

    /// Directory of the node that the root is mounted on.
    fn place(&self) -> PathBuf {
        let config = self.plan.spec.root().as_ref();
        config.map_or(self.plan.bundle.clone(), |r| self.plan.bundle.join(r.path()))
    }

    /// For new file systems.
    fn label(&self) -> Result<Option<String>> {
        let label = self.plan.linux()?.mount_label().clone().filter(|l| !l.is_empty());
        if let Some(label) = &label {
            attributes::demand_selinux(&self.plan.proc, "set SELinux label of mounts", label)?;
        }
        Ok(label)
    }

    fn make_root(&self, label: Option<String>) -> Result<Root> {
        let map = self.plan.id_maps.first().and_then(Option::as_ref);
        Root::make(&self.place(), self.plan.entries.first(), map, label)
    }

    fn make_mounts(&self, root: &mut Root, copies: Vec<Option<OwnedFd>>) -> Result<()> {
        let mut in_cgroup = false;
        for (entry, copy) in self.plan.entries.iter().zip(copies) {
            if entry.source == Source::Cgroup && !in_cgroup {
                self.enter_cgroup()?;
                in_cgroup = true;
            }
            if !entry.is_root() {
                root.add(entry, copy, &self.plan.cgroup, &self.plan.proc)?;
            }
        }
        if in_cgroup { Ok(()) } else { self.enter_cgroup() }
    }

    /// The builder has made the cgroup meanwhile. On v2 we were born in it.
    fn enter_cgroup(&self) -> Result<()> {
        if self.plan.user.is_some() {
            // init has done it
            return Ok(());
        }
        wait_for(self.channel, |m| matches!(m, ToInit::CgroupMade))?;
        let cgroup = &self.plan.cgroup;
        cgroup.enter_v1().step("enter cgroup", cgroup.path())?;
        if self.plan.new_cgroup_namespace {
            sys::namespace::unshare(libc::CLONE_NEWCGROUP).step("make namespace", "cgroup")?;
        }
        match self.plan.join.iter().find(|(_, flag)| *flag == libc::CLONE_NEWCGROUP) {
            Some((fd, flag)) => sys::namespace::enter(fd.as_fd(), *flag).step("enter namespace", "cgroup"),
            None => Ok(()),
        }
    }

    fn make_devices(&self, root: &Root) -> Result<Option<Console>> {
        let listed = self.plan.linux()?.devices().as_deref().unwrap_or_default();
        let dev = self.plan.entries.iter().rfind(|e| e.destination == Path::new("/dev"));
        // A /dev that is bound is somebody else's, often the node's own: what is to be in it has to be there already.
        let bound = dev.is_some_and(|e| matches!(e.source, Source::Bind { .. }));
        let wanted = if bound { devices::listed } else { devices::nodes };
        for node in wanted(listed, &self.owners)? {
            if bound && node.path.starts_with("/dev") {
                devices::demand(root.as_fd(), &node)?;
            } else {
                devices::make(root.as_fd(), &node, &self.plan.proc)?;
            }
        }
        if !bound {
            devices::links(root.as_fd(), root.devpts.is_some())?;
        }
        let process = self.plan.process()?;
        if !process.terminal().unwrap_or(false) {
            return Ok(None);
        }
        let owner = self.owners.user(process.user().uid())?;
        let made = match &root.devpts {
            Some(devpts) => console::open(devpts.as_fd(), process, owner)?,
            None => console::open_in_root(root.as_fd(), process, owner)?,
        };
        console::show(root.as_fd(), &made)?;
        Ok(Some(made))
    }

    fn restrict_paths(&self, root: &mut Root) -> Result<()> {
        let linux = self.plan.linux()?;
        root.finish_mounts()?;
        masks::make_read_only(root.as_fd(), linux.readonly_paths().as_deref().unwrap_or_default())?;
        masks::cover(root.as_fd(), linux.masked_paths().as_deref().unwrap_or_default())?;
        inside::find_or_make(root.as_fd(), self.plan.process()?.cwd(), Make::Directory).map(|_| ())
    }

    fn run_hooks(&self) -> Result<()> {
        let Some(hooks) = self.plan.spec.hooks() else { return Ok(()) };
        if has_node_hooks(hooks) {
            self.channel.send(&FromInit::MountsMade, &[]).step("report", "mounts made")?;
            wait_for(self.channel, |m| matches!(m, ToInit::Continue))?;
        }
        let state = State {
            id: &self.plan.id,
            status: "creating",
            pid: match self.pid {
                Some(pid) => pid,
                None => self.plan.proc.own_pid().step("read", "/proc/self")?,
            },
            bundle: &self.plan.bundle,
        };
        hooks::run("createContainer", hooks.create_container().as_ref(), &self.plan.spec, &state, &[])
    }

    fn enter_root(&self, root: &Root) -> Result<()> {
        let config = self.plan.spec.root().as_ref();
        root.make_read_only(config.is_some_and(|r| r.readonly() == Some(true)))?;
        root.pivot(self.root_propagation()?)
    }

    fn report_ready(&self, console: Option<&Console>, warnings: Vec<String>) -> Result<()> {
        let fds: Vec<BorrowedFd<'_>> = console.iter().map(|c| c.master.as_fd()).collect();
        self.channel.send(&FromInit::Ready { warnings }, &fds).step("report", "ready")
    }

    fn start_hooks(&self) -> Result<()> {
        let Some(list) = self.plan.hooks(Hooks::start_container) else { return Ok(()) };
        let pid = nix::unistd::getpid().as_raw();
        let state = State { id: &self.plan.id, status: "created", pid, bundle: &self.plan.bundle };
        hooks::run("startContainer", Some(list), &self.plan.spec, &state, &[])
    }
}

/// Whether hooks run on the node's side before the root is entered.
pub(crate) fn has_node_hooks(hooks: &Hooks) -> bool {
    let filled = |list: &Option<Vec<Hook>>| list.as_ref().is_some_and(|l| !l.is_empty());
    filled(hooks.prestart()) || filled(hooks.create_runtime())
}

/// The name of a namespace in configs.
pub(crate) fn namespace_name(flag: i32) -> &'static str {
    match flag {
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWNET => "network",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWCGROUP => "cgroup",
        libc::CLONE_NEWUSER => "user",
        _ => "unknown",
    }
}
