//! Whose a bridge is. A network that shared one with another would hand out the same addresses, or put a second gateway
//! on it that nobody removes: it is refused, by the names and subnets of both.
//!
//! A bridge is ours when `<dataDir>/<network>/made-<bridge>` is there and of this boot, written before the bridge is made. One that
//! somebody else made is taken as long as it has no addresses but our gateways, and no pods but ours.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;

use crate::cidr::Cidr;
use crate::config::Config;
use crate::failure::{Failure, Outcome, code};
use crate::ipam::Addresses;
use crate::link::{Link, Routes, counts, host_name, is_host_name, made_here, note, this_boot};

/// Claims the bridge that is about to be made, so that whoever cleans up knows whose it is.
pub(crate) fn take(config: &Config) -> Outcome<()> {
    let path = made_here(config, &config.bridge);
    let failed = |e| Failure::new(code::IO, format!("write {}", path.display()), e);
    fs::write(&path, this_boot()?).map_err(failed)?;
    // two at once: each sees the other's claim
    let Some(other) = owner(config)? else { return Ok(()) };
    let _ = fs::remove_file(&path);
    Err(refused(config, &format!("is that of network {other:?}"), &[]))
}

/// Refuses a bridge that is another network's.
pub(crate) fn check(config: &Config, routes: &mut Routes, bridge: &Link) -> Outcome<()> {
    if bridge.kind != "bridge" || counts(&made_here(config, &config.bridge))? {
        return Ok(());
    }
    let has = routes.cidrs(bridge.index)?;
    if let Some(other) = owner(config)? {
        return Err(refused(config, &format!("is that of network {other:?}"), &has));
    }
    let foreign = |ip: IpAddr| {
        let of_family = config.pools.iter().filter(|pool| pool.gateway.is_ipv4() == ip.is_ipv4());
        of_family.clone().count() > 0 && of_family.into_iter().all(|pool| pool.gateway != ip)
    };
    if has.iter().any(|cidr| foreign(cidr.address)) {
        return Err(refused(config, "was made by somebody else and has addresses already", &has));
    }
    let addresses = Addresses::lock(config)?;
    let mut ours = addresses.leaving();
    ours.extend(addresses.owners().iter().map(|owner| host_name(&config.name, owner)));
    let ports = routes.port_names(bridge.index)?;
    match ports.iter().find(|port| is_host_name(port) && !ours.contains(port)) {
        Some(port) => {
            let whose = format!("has a pod on it (link {port}) that another network or daemon put there");
            Err(refused(config, &whose, &has))
        }
        None => Ok(()),
    }
}

/// Another network of this directory that made the bridge, and has not cleaned up yet.
fn owner(config: &Config) -> Outcome<Option<String>> {
    let failed = |e| Failure::new(code::IO, format!("read {}", config.data_dir.display()), e);
    let entries = match fs::read_dir(&config.data_dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // beside the networks' directories there are files
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && name != config.name && counts(&entry.path().join(note(&config.bridge)))? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn refused(config: &Config, whose: &str, has: &[Cidr]) -> Failure {
    let list = |cidrs: &mut dyn Iterator<Item = String>| cidrs.collect::<Vec<_>>().join(", ");
    let wanted = list(&mut config.pools.iter().map(|pool| pool.subnet.to_string()));
    let has = match has {
        [] => String::new(),
        has => format!(" ({})", list(&mut has.iter().map(Cidr::to_string))),
    };
    let message = format!(
        "bridge {} {whose}{has}; network {:?} ({wanted}) needs one of its own: give it another \"bridge\", or remove \
         what is on this one",
        config.bridge, config.name
    );
    Failure::plain(code::CONFIG, message)
}
