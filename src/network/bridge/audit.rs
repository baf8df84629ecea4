//! The verbs that only look: CHECK (is everything of a pod still there?) and STATUS (would ADD work?).

use std::net::IpAddr;
use std::path::Path;

use crate::config::{Config, Masquerade};
use crate::failure::{Failure, Outcome, code};
use crate::firewall::Rules;
use crate::ipam::Addresses;
use crate::link::Routes;
use crate::verbs::Call;

fn differs(message: String) -> Failure {
    Failure::plain(code::CHECK, message)
}

/// CHECK: links, addresses, routes, rules and ports of an attachment, against the result of ADD.
pub(crate) fn check(input: &[u8]) -> Outcome<()> {
    let config = Config::parse(input)?;
    let call = Call::read(&config)?;
    let expected = expected(&config, &call)?;
    let mut host = Routes::open()?;
    let missing = |name: &str| differs(format!("link {name} of the host is gone"));
    let bridge = host.find(&config.bridge)?.ok_or_else(|| missing(&config.bridge))?;
    let end = host.find(&call.host)?.ok_or_else(|| missing(&call.host))?;
    if end.master != bridge.index {
        return Err(differs(format!("link {} is not on bridge {}", call.host, config.bridge)));
    }
    if !bridge.up || !end.up {
        return Err(differs(format!("bridge {} or link {} is down", config.bridge, call.host)));
    }
    let gateways = host.addresses(bridge.index)?;
    if let Some(pool) = config.pools.iter().find(|pool| !gateways.contains(&pool.gateway)) {
        return Err(differs(format!("bridge {} has lost its address {}", config.bridge, pool.gateway)));
    }
    let held = Addresses::lock(&config)?.of(&call.owner);
    if let Some(ip) = expected.iter().find(|ip| !held.contains(ip)) {
        return Err(differs(format!("address {ip} is not held by container {}", call.owner.container)));
    }
    sys::netns::run_in(Path::new(&call.netns), || check_inside(&config, &call.owner.ifname, &expected))
        .map_err(|e| Failure::new(code::IO, "enter the pod's network namespace", e))??;
    check_rules(&config, &call)
}

/// The pod's addresses as ADD reported them.
fn expected(config: &Config, call: &Call) -> Outcome<Vec<IpAddr>> {
    let previous = config.previous.as_ref();
    let no_result = || Failure::plain(code::CONFIG, "CHECK needs \"prevResult\"");
    let ips = previous.and_then(|p| p["ips"].as_array()).ok_or_else(no_result)?;
    let interfaces = previous.and_then(|p| p["interfaces"].as_array()).ok_or_else(no_result)?;
    let ours = |at: &serde_json::Value| {
        let interface = at.as_u64().and_then(|at| interfaces.get(usize::try_from(at).ok()?));
        interface
            .is_none_or(|i| i["name"] == call.owner.ifname.as_str() && i["sandbox"] == call.netns.as_str())
    };
    let address =
        |entry: &serde_json::Value| entry["address"].as_str()?.split('/').next()?.parse::<IpAddr>().ok();
    let mine = ips.iter().filter(|entry| ours(&entry["interface"]));
    // another plugin of the chain may have added addresses
    Ok(mine.filter_map(address).filter(|ip| config.pool_of(*ip).is_some()).collect())
}

fn check_inside(config: &Config, ifname: &str, expected: &[IpAddr]) -> Outcome<()> {
    let mut routes = Routes::open()?;
    let link = routes.find(ifname)?.ok_or_else(|| differs(format!("link {ifname} of the pod is gone")))?;
    if !link.up {
        return Err(differs(format!("link {ifname} of the pod is down")));
    }
    let there = routes.addresses(link.index)?;
    if let Some(ip) = expected.iter().find(|ip| !there.contains(ip)) {
        return Err(differs(format!("address {ip} is not on link {ifname} of the pod")));
    }
    for route in config.routes.iter().filter(|r| r.dst.length == 0) {
        if !routes.has_default_route(route.dst.address.is_ipv4())? {
            return Err(differs(format!("the pod has no route to {}", route.dst)));
        }
    }
    Ok(())
}

fn check_rules(config: &Config, call: &Call) -> Outcome<()> {
    let Some(rules) = Rules::open_if_needed(config)? else { return Ok(()) };
    if !rules.present()? {
        return Err(differs(format!(
            "firewall rules of network {} are gone or not of its configuration",
            config.name
        )));
    }
    match rules.missing_ports(&call.owner)?.first() {
        None => Ok(()),
        Some(mapping) => {
            Err(differs(format!("{} does not lead to {} any more", mapping.port.describe(), mapping.to)))
        }
    }
}

/// STATUS: the configuration is valid, rules can be written, and addresses are left.
pub(crate) fn status(input: &[u8]) -> Outcome<()> {
    let config = Config::parse(input)?;
    if config.masquerade == Masquerade::Yes {
        Rules::open(&config).map_err(|f| Failure { code: code::UNAVAILABLE, ..f })?;
    }
    if !config.data_dir.join(&config.name).exists() {
        // no pod yet: looking must not make anything
        return Ok(());
    }
    let mut addresses = Addresses::lock(&config)?;
    addresses.forget_gone_links()?;
    for pool in &config.pools {
        if !addresses.has_free(pool) {
            let message = format!("no address is left in {}", pool.subnet);
            return Err(Failure::plain(code::UNAVAILABLE, message));
        }
    }
    Ok(())
}
