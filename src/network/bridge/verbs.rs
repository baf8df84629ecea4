//! The verbs: what each does, in order, and what it undoes when it fails.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::config::{Attachment, Config, check_interface, identifier};
use crate::failure::{Failure, Outcome, code};
use crate::ipam::{self, Addresses};
use crate::link::{Pair, Routes, host_name};
use crate::result::{self, Made};

/// The environment of a verb that is about one pod.
struct Call {
    owner: Attachment,
    /// As given; empty when the namespace is gone.
    netns: String,
    /// The host's end of the pair.
    host: String,
}

impl Call {
    fn read(config: &Config) -> Outcome<Call> {
        let get = |name| std::env::var(name).unwrap_or_default();
        let owner = Attachment { container: get("CNI_CONTAINERID"), ifname: get("CNI_IFNAME") };
        if !identifier(&owner.container) || owner.container.len() > 180 {
            let message =
                format!("CNI_CONTAINERID {:?} is not an id of 1 to 180 characters", owner.container);
            return Err(Failure::plain(code::ENVIRONMENT, message));
        }
        check_interface(&owner.ifname)
            .map_err(|e| Failure::new(code::ENVIRONMENT, "CNI_IFNAME is not usable", e))?;
        let host = host_name(&config.name, &owner);
        Ok(Call { owner, netns: get("CNI_NETNS"), host })
    }

    fn open_netns(&self) -> Outcome<File> {
        if self.netns.is_empty() {
            return Err(Failure::plain(code::ENVIRONMENT, "CNI_NETNS is not set"));
        }
        let failed = |e| Failure::new(code::IO, format!("the pod's network namespace {}", self.netns), e);
        File::open(&self.netns).map_err(failed)
    }
}

/// The network's lock: shared by the verbs of single pods, exclusive for GC.
fn lock_network(config: &Config, how: FlockArg) -> Outcome<Flock<File>> {
    let dir = config.data_dir.join(&config.name);
    let failed = |e: std::io::Error| Failure::new(code::IO, format!("the directory {}", dir.display()), e);
    let handle = match File::open(&dir) {
        Ok(handle) => handle,
        Err(_) => {
            fs::create_dir_all(&dir).map_err(failed)?;
            File::open(&dir).map_err(failed)?
        }
    };
    Flock::lock(handle, how).map_err(|(_, errno)| failed(errno.into()))
}

/// ADD: addresses, bridge, pair, routes.
pub(crate) fn add(input: &[u8]) -> Outcome<Value> {
    let config = Config::parse(input)?;
    let call = Call::read(&config)?;
    let netns = call.open_netns()?;
    let _shared = lock_network(&config, FlockArg::LockShared)?;
    let made = build(&config, &call, &netns);
    if made.is_err() {
        // whatever was made goes again; what cannot be undone now is found by DEL and GC
        let _ = tear_down(&config, &call, false);
    }
    made
}

fn build(config: &Config, call: &Call, netns: &File) -> Outcome<Value> {
    let ips = Addresses::lock(config)?.hold(config, &call.owner)?;
    let Some((first, _)) = ips.first() else {
        return Err(Failure::plain(code::CONFIG, "the network has no subnet"));
    };
    set_forwarding(config)?;
    let mut host = Routes::open()?;
    let bridge = host.ensure_bridge(config)?;
    if ipam::link_exists(&call.host) {
        // of an ADD that was killed: nobody else has this name
        host.remove(&call.host)?;
    }
    let ifname = call.owner.ifname.as_str();
    let pair = Pair { host: &call.host, ifname, netns: netns.as_raw_fd(), ip: *first };
    host.create_pair(config, &bridge, &pair)?;
    let end = host.find(&call.host)?.unwrap_or_default();
    let inside = || Routes::open()?.configure(ifname, &ips, &config.routes);
    let pod = sys::netns::run_in(Path::new(&call.netns), inside)
        .map_err(|e| Failure::new(code::IO, "enter the pod's network namespace", e))??;
    let made = Made {
        bridge: &bridge,
        host: (&call.host, &end.mac),
        ifname,
        pod: &pod,
        sandbox: &call.netns,
        ips: &ips,
    };
    Ok(result::render(config, &made))
}

/// Lets the host forward between pods and the outside.
fn set_forwarding(config: &Config) -> Outcome<()> {
    for pool in &config.pools {
        let path = Path::new(match pool.subnet.address.is_ipv4() {
            true => "/proc/sys/net/ipv4/ip_forward",
            false => "/proc/sys/net/ipv6/conf/all/forwarding",
        });
        let failed = |e| Failure::new(code::IO, format!("set {} to 1", path.display()), e);
        if fs::read_to_string(path).map_err(failed)?.trim() == "0" {
            fs::write(path, "1").map_err(failed)?;
        }
    }
    Ok(())
}

/// DEL: whatever there is of the attachment goes; nothing there is fine.
pub(crate) fn del(input: &[u8]) -> Outcome<()> {
    let config = Config::parse(input)?;
    let call = Call::read(&config)?;
    let _shared = lock_network(&config, FlockArg::LockShared)?;
    tear_down(&config, &call, config.netns_ends)
}

fn tear_down(config: &Config, call: &Call, kernel_removes_link: bool) -> Outcome<()> {
    if !kernel_removes_link && ipam::link_exists(&call.host) {
        Routes::open()?.remove(&call.host)?;
    }
    Addresses::lock(config)?.release(&call.owner, &call.host)
}

/// CHECK.
pub(crate) fn check(input: &[u8]) -> Outcome<()> {
    let _ = Config::parse(input)?;
    Err(Failure::plain(code::CHECK, "CHECK is not built yet"))
}

/// STATUS.
pub(crate) fn status(input: &[u8]) -> Outcome<()> {
    Config::parse(input).map(|_| ())
}

/// GC.
pub(crate) fn gc(input: &[u8]) -> Outcome<()> {
    let _ = Config::parse(input)?;
    Err(Failure::plain(code::CONFIG, "GC is not built yet"))
}
