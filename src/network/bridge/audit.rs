//! The verbs that only look: CHECK (is everything of a pod still there?) and STATUS (would ADD work?).

use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use crate::cidr::Cidr;
use crate::config::{Config, Masquerade, Route};
use crate::failure::{Failure, Outcome, code};
use crate::firewall::Rules;
use crate::ipam::Addresses;
use crate::link::Routes;
use crate::route::Way;
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
    if let Some(ip) = expected.ips.iter().find(|ip| !held.contains(ip)) {
        return Err(differs(format!("address {ip} is not held by container {}", call.owner.container)));
    }
    sys::netns::run_in(Path::new(&call.netns), || check_inside(&call.owner.ifname, &expected))
        .map_err(|e| Failure::new(code::IO, "enter the pod's network namespace", e))??;
    check_rules(&config, &call)
}

/// What of the result of ADD is this plugin's.
struct Expected {
    /// At least one.
    ips: Vec<IpAddr>,
    /// Those of the configuration that the result still lists as they were made: a later plugin of the chain may have
    /// taken some away, or have led them elsewhere.
    ways: Vec<Way>,
}

fn expected(config: &Config, call: &Call) -> Outcome<Expected> {
    let no_result = || Failure::plain(code::CONFIG, "CHECK needs \"prevResult\"");
    let previous = config.previous.as_ref().filter(|p| p.is_object()).ok_or_else(no_result)?;
    let ifname = &call.owner.ifname;
    let ours = |i: &Value| i["name"] == ifname.as_str() && i["sandbox"] == call.netns.as_str();
    let interfaces = list(previous, "interfaces")?;
    if !interfaces.iter().any(ours) {
        return Err(bad(format!("no interface {ifname} in sandbox {}", call.netns)));
    }
    let mut ips = Vec::new();
    for entry in list(previous, "ips")? {
        let interface = match (&entry["interface"], entry["interface"].as_u64()) {
            (Value::Null, _) => None,
            (_, Some(at)) if at < interfaces.len() as u64 => Some(&interfaces[at as usize]),
            (at, _) => return Err(bad(format!("an address of interface {at}, of {}", interfaces.len()))),
        };
        let text = entry["address"].as_str().unwrap_or_default();
        let cidr: Cidr = text.parse().map_err(|e| bad(format!("an address that is none: {e}")))?;
        // another plugin of the chain may have added addresses
        if interface.is_none_or(ours) && config.pool_of(cidr.address).is_some() {
            ips.push(cidr.address);
        }
    }
    if ips.is_empty() {
        let subnets: Vec<String> = config.pools.iter().map(|pool| pool.subnet.to_string()).collect();
        return Err(bad(format!("no address of {ifname} in {}", subnets.join(" or "))));
    }
    let listed = list(previous, "routes")?.iter().filter_map(|entry| listed_way(config, entry).transpose());
    let listed = listed.collect::<Outcome<Vec<Way>>>()?;
    let ways = config.routes.iter().filter_map(|route| config.way(route));
    Ok(Expected { ips, ways: ways.filter(|way| listed.contains(way)).collect() })
}

fn bad(what: String) -> Failure {
    Failure::plain(code::CONFIG, format!("\"prevResult\" is not what ADD answered: it has {what}"))
}

/// A list of the result; none is an empty one.
fn list<'a>(previous: &'a Value, key: &str) -> Outcome<&'a [Value]> {
    match &previous[key] {
        Value::Null => Ok(&[]),
        Value::Array(list) => Ok(list),
        other => Err(bad(format!("{other} as {key:?}, which is not a list"))),
    }
}

/// A route of the result; `None` for one of a family that the network does not have.
fn listed_way(config: &Config, entry: &Value) -> Outcome<Option<Way>> {
    let text = |key: &str| entry[key].as_str().unwrap_or_default();
    let dst = text("dst").parse().map_err(|e| bad(format!("a route to nowhere: {e}")))?;
    let gw = match &entry["gw"] {
        Value::Null => None,
        gw => Some(text("gw").parse().map_err(|_| bad(format!("a route by {gw}, which is no gateway")))?),
    };
    Ok(config.way(&Route { dst, gw }))
}

fn check_inside(ifname: &str, expected: &Expected) -> Outcome<()> {
    let mut routes = Routes::open()?;
    let link = routes.find(ifname)?.ok_or_else(|| differs(format!("link {ifname} of the pod is gone")))?;
    if !link.up {
        return Err(differs(format!("link {ifname} of the pod is down")));
    }
    let there = routes.addresses(link.index)?;
    if let Some(ip) = expected.ips.iter().find(|ip| !there.contains(ip)) {
        return Err(differs(format!("address {ip} is not on link {ifname} of the pod")));
    }
    for way in &expected.ways {
        if !routes.ways(link.index, way.gateway)?.contains(way) {
            let Way { dst, gateway } = way;
            return Err(differs(format!("the pod has no route to {dst} by {gateway} on link {ifname}")));
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
