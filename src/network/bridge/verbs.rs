//! The verbs that change something: what each does, in order, and what it undoes when it fails.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::config::{Attachment, Config, check_interface, identifier};
use crate::failure::{Failure, Outcome, code};
use crate::firewall::Rules;
use crate::ipam::{self, Addresses};
use crate::link::{Pair, Routes, bridges, counts, enable_ipv6, former_bridges, host_name, made_here};
use crate::ports::Ports;
use crate::program;
use crate::result::{self, Made};

/// The environment of a verb that is about one pod.
pub(crate) struct Call {
    pub(crate) owner: Attachment,
    /// As given; empty when the namespace is gone.
    pub(crate) netns: String,
    /// The host's end of the pair.
    pub(crate) host: String,
}

impl Call {
    pub(crate) fn read(config: &Config) -> Outcome<Call> {
        let get = |name| std::env::var(name).unwrap_or_default();
        let owner = Attachment { container: get("CNI_CONTAINERID"), ifname: get("CNI_IFNAME") };
        if !identifier(&owner.container) || owner.container.len() > 180 {
            let message =
                format!("CNI_CONTAINERID {:?} is not an id of 1 to 180 characters", owner.container);
            return Err(Failure::plain(code::ENVIRONMENT, message));
        }
        check_interface(&owner.ifname)
            .map_err(|e| Failure::new(code::ENVIRONMENT, "CNI_IFNAME is not usable", e))?;
        Ok(Call { host: host_name(&config.name, &owner), netns: get("CNI_NETNS"), owner })
    }

    fn open_netns(&self) -> Outcome<File> {
        if self.netns.is_empty() {
            return Err(Failure::plain(code::ENVIRONMENT, "CNI_NETNS is not set"));
        }
        let failed =
            |e| Failure::new(code::IO, format!("open the pod's network namespace {}", self.netns), e);
        File::open(&self.netns).map_err(failed)
    }
}

/// The network's lock: shared by the verbs of single pods, exclusive for GC.
fn lock_network(config: &Config, how: FlockArg) -> Outcome<Flock<File>> {
    let dir = config.data_dir.join(&config.name);
    let failed =
        |e: std::io::Error| Failure::new(code::IO, format!("lock the directory {}", dir.display()), e);
    loop {
        let handle = match File::open(&dir) {
            Ok(handle) => handle,
            Err(_) => {
                fs::create_dir_all(&dir).map_err(failed)?;
                continue;
            }
        };
        program::inherits(&handle).map_err(|e| failed(e.into()))?;
        let lock = Flock::lock(handle, how).map_err(|(_, errno)| failed(errno.into()))?;
        // a GC that cleaned up completely may have removed it while we waited
        let (ours, there) = (lock.metadata().map_err(failed)?, fs::metadata(&dir));
        if there.is_ok_and(|there| there.ino() == ours.ino() && there.dev() == ours.dev()) {
            return Ok(lock);
        }
    }
}

/// ADD: addresses, bridge, rules, pair, routes, ports.
pub(crate) fn add(input: &[u8]) -> Outcome<Value> {
    let config = Config::parse(input)?;
    let call = Call::read(&config)?;
    let netns = call.open_netns()?;
    let _shared = lock_network(&config, FlockArg::LockShared)?;
    let made = build(&config, &call, &netns);
    if made.is_err() {
        // whatever was made goes again; what cannot be undone now is found by DEL and GC
        let _ = tear_down(&config, &call.owner, false);
    }
    made
}

fn build(config: &Config, call: &Call, netns: &File) -> Outcome<Value> {
    let rules = Rules::open_if_needed(config)?;
    let ips = Addresses::lock(config)?.hold(config, &call.owner)?;
    let Some((first, _)) = ips.first() else {
        return Err(Failure::plain(code::CONFIG, "the network has no subnet"));
    };
    set_forwarding(config)?;
    if !ipam::link_exists(&config.bridge) {
        // one of an earlier name has the same gateway addresses
        remove_former_bridges(config)?;
    }
    let mut host = Routes::open()?;
    let bridge = host.ensure_bridge(config)?;
    if let Some(rules) = &rules {
        rules.ensure()?;
    }
    if ipam::link_exists(&call.host) {
        // of an ADD that was killed: nobody else has this name
        host.remove(&call.host)?;
    }
    let ifname = call.owner.ifname.as_str();
    let pair = Pair { host: &call.host, ifname, netns: netns.as_raw_fd(), ip: *first };
    host.create_pair(config, &bridge, &pair)?;
    let end = host.find(&call.host)?.unwrap_or_default();
    let inside = || {
        // what another pod says about routes does not count; there may be no IPv6 here at all
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{ifname}/accept_ra"), "0");
        if ips.iter().any(|(ip, _)| ip.is_ipv6()) {
            enable_ipv6(ifname);
        }
        Routes::open()?.configure(config, ifname, &ips)
    };
    let (pod, routes) = sys::netns::run_in(Path::new(&call.netns), inside)
        .map_err(|e| Failure::new(code::IO, "enter the pod's network namespace", e))??;
    if let Some(rules) = rules.filter(|_| !config.ports.is_empty()) {
        let bare: Vec<IpAddr> = ips.iter().map(|(ip, _)| *ip).collect();
        rules.map(&call.owner, &bare)?;
    }
    let made = Made {
        bridge: &bridge,
        host: (&call.host, &end.mac),
        ifname,
        pod: &pod,
        sandbox: &call.netns,
        ips: &ips,
        routes: &routes,
    };
    Ok(result::render(config, &made))
}

/// Lets the host forward between pods and the outside.
fn set_forwarding(config: &Config) -> Outcome<()> {
    for pool in &config.pools {
        let v4 = pool.subnet.address.is_ipv4();
        let path =
            if v4 { "/proc/sys/net/ipv4/ip_forward" } else { "/proc/sys/net/ipv6/conf/all/forwarding" };
        let failed = |e| Failure::new(code::IO, format!("set {path} to 1"), e);
        if fs::read_to_string(path).map_err(failed)?.trim() == "1" {
            continue;
        }
        if !v4 {
            keep_router_advertisements();
        }
        fs::write(path, "1").map_err(failed)?;
    }
    Ok(())
}

/// A host that forwards IPv6 stops listening to routers, and would lose its own default route, unless told otherwise.
fn keep_router_advertisements() {
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let path = entry.path().join("accept_ra");
        let pseudo = ["all", "default", "lo"].iter().any(|name| entry.file_name() == *name);
        if !pseudo && fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1") {
            let _ = fs::write(&path, "2");
        }
    }
}

/// DEL: whatever there is of the attachment goes; nothing there is fine, and so is a configuration that ADD refuses.
pub(crate) fn del(input: &[u8]) -> Outcome<()> {
    let Some(config) = Config::salvage(input)? else { return Ok(()) };
    let call = Call::read(&config)?;
    if !config.data_dir.join(&config.name).exists() {
        // no pod has ever come this far, or GC has cleaned up: only the link is left to look at
        return remove_link(&call.host);
    }
    let _shared = lock_network(&config, FlockArg::LockShared)?;
    tear_down(&config, &call.owner, config.netns_ends)
}

/// Ports first, so that nothing is sent to the pod any more; the address last, when the link is gone or going.
fn tear_down(config: &Config, owner: &Attachment, kernel_removes_link: bool) -> Outcome<()> {
    if Ports::of(config).has(owner) {
        Rules::open(config)?.unmap(owner)?;
    }
    let host = host_name(&config.name, owner);
    if !kernel_removes_link {
        remove_link(&host)?;
    }
    Addresses::lock(config)?.release(owner, &host)
}

fn remove_link(name: &str) -> Outcome<()> {
    if ipam::link_exists(name) { Routes::open()?.remove(name) } else { Ok(()) }
}

/// GC: every attachment that the caller does not know goes. When none is left, so does the network. The caller may know
/// pods of other networks too: those have no link by this one's name for it.
pub(crate) fn gc(input: &[u8]) -> Outcome<()> {
    let config = Config::parse(input)?;
    let Some(valid) = &config.valid else {
        return Err(Failure::plain(code::CONFIG, "GC needs \"cni.dev/valid-attachments\""));
    };
    let _alone = lock_network(&config, FlockArg::LockExclusive)?;
    let (known, leaving) = {
        let addresses = Addresses::lock(&config)?;
        (addresses.owners(), addresses.leaving())
    };
    let mut owners: BTreeSet<Attachment> = known.into_iter().collect();
    owners.extend(Ports::of(&config).owners());
    let mut failures: Vec<Failure> = Vec::new();
    for owner in owners.iter().filter(|owner| !valid.contains(owner)) {
        failures.extend(tear_down(&config, owner, false).err());
    }
    // their namespaces should have ended long ago: somebody holds them
    for link in leaving {
        failures.extend(Routes::open()?.remove(&link).err());
    }
    let mut addresses = Addresses::lock(&config)?;
    addresses.forget_gone_links()?;
    let linked = |owner: &Attachment| ipam::link_exists(&host_name(&config.name, owner));
    let unused = addresses.is_empty() && !valid.iter().any(linked);
    drop(addresses);
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    if unused {
        return remove_network(&config);
    }
    if former_bridges(&config).is_empty() {
        return Ok(());
    }
    remove_former_bridges(&config)?;
    // they name the bridges
    Rules::open_if_needed(&config)?.map_or(Ok(()), |rules| rules.ensure())
}

/// Removes rules, bridges and directory of a network without pods. The caller holds the network's lock alone.
fn remove_network(config: &Config) -> Outcome<()> {
    if let Ok(rules) = Rules::open(config) {
        rules.remove()?;
    }
    for bridge in bridges(config) {
        remove_bridge(config, &bridge)?;
    }
    let dir = config.data_dir.join(&config.name);
    let failed = |e| Failure::new(code::IO, format!("remove {}", dir.display()), e);
    fs::remove_dir_all(&dir).map_err(failed)?;
    // stays when it holds another network, or is the machine's
    let _ = fs::remove_dir(&config.data_dir);
    Ok(())
}

/// Removes a bridge that we made and that nothing is on; whether it is gone.
fn remove_bridge(config: &Config, name: &str) -> Outcome<bool> {
    let mut routes = Routes::open()?;
    let bridge = routes.find(name)?.filter(|link| link.kind == "bridge");
    let Some(bridge) = bridge else { return Ok(true) };
    if !counts(&made_here(config, name))? {
        return Ok(true);
    }
    // somebody else's links may be on it
    if routes.ports_of(bridge.index)? != 0 {
        return Ok(false);
    }
    routes.remove(name).map(|()| true)
}

/// Removes the bridges that the network had under earlier names, and what the firewall has of them. One that pods are
/// still on stays until they are gone: then this is called again.
fn remove_former_bridges(config: &Config) -> Outcome<()> {
    for bridge in former_bridges(config) {
        if !remove_bridge(config, &bridge)? {
            eprintln!(
                "corten-bridge: pods of network {} are still on bridge {bridge}; they and those on {} do not reach \
                 each other",
                config.name, config.bridge
            );
            continue;
        }
        if let Ok(rules) = Rules::open(config) {
            rules.forget_bridge(&bridge)?;
        }
        let note = made_here(config, &bridge);
        match fs::remove_file(&note) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::new(code::IO, format!("remove {}", note.display()), e));
            }
            _ => {}
        }
    }
    Ok(())
}
