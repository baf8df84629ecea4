//! The plugin's part of a conflist: the file's own form ([`Raw`], unknown keys refused) and the checked [`Config`].
//!
//! ```json
//! { "type": "corten-bridge", "bridge": "corten0", "mtu": 0, "ipMasq": true, "hairpinMode": true, "promiscMode": false,
//!   "subnets": [ { "subnet": "10.88.0.0/16", "rangeStart": "10.88.0.10", "rangeEnd": "10.88.255.250",
//!                  "gateway": "10.88.0.1" }, { "subnet": "fd00:88::/64" } ],
//!   "routes": [ { "dst": "0.0.0.0/0" } ], "dataDir": "/var/lib/corten/network/bridge", "firewall": "auto",
//!   "capabilities": { "portMappings": true, "ips": true, "io.corten.netns-ends": true } }
//! ```
//!
//! `ipMasq` is `true` (needs a firewall program, or ADD fails), `"optional"` (a machine without one gets pods that only
//! the host and other pods reach; a warning on stderr) or `false`. At most one subnet of each family. `routes` replaces
//! the default routes. A subnet of IPv6 is left out on a kernel without IPv6, if one of IPv4 remains: the same file is
//! good for both.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cidr::{self, Cidr};
use crate::failure::{Failure, Outcome, code};
use crate::route::Way;

/// What stands on standard input.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    cni_version: String,
    name: String,
    bridge: Option<String>,
    mtu: u32,
    ip_masq: Masquerade,
    hairpin_mode: Option<bool>,
    promisc_mode: bool,
    subnets: Vec<Subnet>,
    routes: Option<Vec<Route>>,
    data_dir: Option<PathBuf>,
    firewall: Firewall,
    dns: Option<Value>,
    runtime_config: RuntimeConfig,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// Keys of the specification that mean nothing to this plugin.
const ELSEWHERE: [&str; 8] =
    ["type", "capabilities", "args", "disableCheck", "disableGC", "cniVersions", "plugins", "ipam"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Subnet {
    subnet: Cidr,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// A route in the pod. Without `gw` it goes by the bridge.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Route {
    pub(crate) dst: Cidr,
    pub(crate) gw: Option<IpAddr>,
}

/// What the runtime adds per pod, by capability.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Vec<RawPort>,
    ips: Vec<String>,
    #[serde(rename = "io.corten.netns-ends")]
    netns_ends: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    #[serde(default)]
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

/// Whether connections to the outside get the host's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) enum Masquerade {
    No,
    /// When a firewall program is there.
    Optional,
    #[default]
    Yes,
}

impl TryFrom<Value> for Masquerade {
    type Error = String;
    fn try_from(value: Value) -> Result<Masquerade, String> {
        match value {
            Value::Bool(true) => Ok(Masquerade::Yes),
            Value::Bool(false) => Ok(Masquerade::No),
            Value::String(s) if s == "optional" => Ok(Masquerade::Optional),
            other => Err(format!("ipMasq is {other}; true, false and \"optional\" are possible")),
        }
    }
}

/// Which program writes the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Firewall {
    /// nftables where the kernel and the machine have it, else iptables.
    #[default]
    Auto,
    Nftables,
    Iptables,
    /// The iptables that does not use nf_tables, even if it is not the machine's default.
    IptablesLegacy,
}

/// A container and the name of its interface: the key of all that the plugin keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub(crate) struct Attachment {
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    pub(crate) ifname: String,
}

/// A transport protocol that ports belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As firewall programs write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to one of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    /// Only on this address of the host, `0.0.0.0` and `::` standing for all of their family; all of both without.
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
}

impl Port {
    /// The one address of the host that it is on, unless it is on many.
    pub(crate) fn only_on(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether it is on addresses of the family of `ip`.
    pub(crate) fn of_family(&self, ip: IpAddr) -> bool {
        self.host_ip.is_none_or(|on| on.is_ipv4() == ip.is_ipv4())
    }

    /// Whether a packet to this address of the host is for it.
    pub(crate) fn covers(&self, ip: IpAddr) -> bool {
        self.of_family(ip) && self.only_on().is_none_or(|on| on == ip)
    }

    /// Whether one pod has both for the same: a port on one address goes before the same port on all.
    pub(crate) fn doubles(&self, other: &Port) -> bool {
        let places = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => a == b,
            _ => self.only_on() == other.only_on(),
        };
        self.protocol == other.protocol && self.host_port == other.host_port && places
    }

    /// As people write it.
    pub(crate) fn describe(&self) -> String {
        let on = self.host_ip.map(|ip| format!(" on {ip}")).unwrap_or_default();
        format!("host port {}/{}{on}", self.host_port, self.protocol.name())
    }
}

/// The addresses of one family.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pool {
    /// The network, host bits zero.
    pub(crate) subnet: Cidr,
    /// The bridge's address, never given to a pod.
    pub(crate) gateway: IpAddr,
    pub(crate) first: IpAddr,
    pub(crate) last: IpAddr,
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// The CNI version that the answer has to have.
    pub(crate) version: String,
    /// The network's name.
    pub(crate) name: String,
    pub(crate) bridge: String,
    /// 0: the kernel's default.
    pub(crate) mtu: u32,
    pub(crate) masquerade: Masquerade,
    pub(crate) hairpin: bool,
    pub(crate) promiscuous: bool,
    pub(crate) pools: Vec<Pool>,
    pub(crate) routes: Vec<Route>,
    pub(crate) data_dir: PathBuf,
    pub(crate) firewall: Firewall,
    pub(crate) dns: Option<Value>,
    pub(crate) ports: Vec<Port>,
    /// Addresses that the pod has to get.
    pub(crate) wanted: Vec<IpAddr>,
    /// The caller lets go of the namespace right after DEL, so the kernel removes the links in it.
    pub(crate) netns_ends: bool,
    pub(crate) previous: Option<Value>,
    /// GC: what is still in use.
    pub(crate) valid: Option<Vec<Attachment>>,
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::plain(code::CONFIG, message)
}

impl Config {
    /// Parses and checks standard input.
    pub(crate) fn parse(input: &[u8]) -> Outcome<Config> {
        let raw: Raw = serde_json::from_slice(input)
            .map_err(|e| Failure::new(code::DECODE, "the network configuration cannot be read", e))?;
        if !crate::result::VERSIONS.contains(&raw.cni_version.as_str()) {
            let message = format!("CNI version {:?} is not supported", raw.cni_version);
            return Err(Failure::new(code::VERSION, message, crate::result::VERSIONS.join(", ")));
        }
        if raw.other.contains_key("ipam") {
            return Err(invalid("\"ipam\": this plugin keeps addresses itself; list \"subnets\" instead"));
        }
        if let Some(key) =
            raw.other.keys().find(|k| !k.contains(['/', '.']) && !ELSEWHERE.contains(&k.as_str()))
        {
            return Err(invalid(format!("unknown key {key:?} in the configuration of corten-bridge")));
        }
        if !identifier(&raw.name) || raw.name.len() > 64 {
            return Err(invalid(format!("{:?} is not a network name", raw.name)));
        }
        if let Some(bridge) = &raw.bridge {
            check_interface(bridge).map_err(invalid)?;
        }
        let pools = raw.subnets.iter().map(pool).collect::<Outcome<Vec<Pool>>>()?;
        check_families(&pools)?;
        Config::build(raw, of_this_kernel(pools))
    }

    /// As much of standard input as can be understood, for DEL: what [`parse`](Config::parse) refuses here, another
    /// version of this plugin may have taken at ADD. `None`: it names no network, so nothing was ever made with it.
    ///
    /// # Errors
    /// Standard input is no JSON object.
    pub(crate) fn salvage(input: &[u8]) -> Outcome<Option<Config>> {
        if let Ok(config) = Config::parse(input) {
            return Ok(Some(config));
        }
        let mut object: Map<String, Value> = serde_json::from_slice(input)
            .map_err(|e| Failure::new(code::DECODE, "the network configuration cannot be read", e))?;
        if let Some(Value::Array(subnets)) = object.get_mut("subnets") {
            subnets.retain(|s| Subnet::deserialize(s).is_ok_and(|s| pool(&s).is_ok()));
        }
        let fits = |(key, value): (String, Value)| {
            let alone = Map::from_iter([(key, value)]);
            Raw::deserialize(Value::Object(alone.clone())).is_ok().then_some(alone)
        };
        let object: Map<String, Value> = object.into_iter().filter_map(fits).flatten().collect();
        let Ok(mut raw) = Raw::deserialize(Value::Object(object)) else { return Ok(None) };
        if !identifier(&raw.name) || raw.name.len() > 64 {
            return Ok(None);
        }
        raw.bridge = raw.bridge.filter(|name| check_interface(name).is_ok());
        let pools = raw.subnets.iter().filter_map(|s| pool(s).ok()).collect();
        // DEL needs none of it
        raw.runtime_config = RuntimeConfig::default();
        Config::build(raw, pools).map(Some)
    }

    fn build(raw: Raw, pools: Vec<Pool>) -> Outcome<Config> {
        let ports: Vec<Port> =
            raw.runtime_config.port_mappings.into_iter().filter_map(port).collect::<Outcome<_>>()?;
        let mut routes = raw.routes.unwrap_or_else(|| pools.iter().map(default_route).collect());
        let reachable =
            |r: &Route| pools.iter().any(|p| p.subnet.address.is_ipv4() == r.dst.address.is_ipv4());
        routes.retain(reachable);
        Ok(Config {
            version: raw.cni_version,
            name: raw.name,
            bridge: raw.bridge.unwrap_or_else(|| "corten0".to_owned()),
            mtu: raw.mtu,
            masquerade: raw.ip_masq,
            hairpin: raw.hairpin_mode.unwrap_or(true),
            promiscuous: raw.promisc_mode,
            wanted: wanted(&raw.runtime_config.ips, &pools)?,
            pools,
            routes,
            data_dir: raw.data_dir.unwrap_or_else(|| PathBuf::from("/var/lib/corten/network/bridge")),
            firewall: raw.firewall,
            dns: raw.dns,
            ports,
            netns_ends: raw.runtime_config.netns_ends,
            previous: raw.prev_result,
            valid: raw.valid,
        })
    }

    /// The pool that an address belongs to.
    pub(crate) fn pool_of(&self, ip: IpAddr) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.subnet.contains(ip))
    }

    /// Where a route leads: without a gateway of its own by the bridge.
    pub(crate) fn way(&self, route: &Route) -> Option<Way> {
        let of_family = |pool: &&Pool| pool.subnet.address.is_ipv4() == route.dst.address.is_ipv4();
        let gateway = route.gw.or_else(|| self.pools.iter().find(of_family).map(|pool| pool.gateway))?;
        Some(Way { dst: route.dst.network(), gateway })
    }
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`: what the specification allows in names and ids.
pub(crate) fn identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// What Linux takes as the name of an interface.
pub(crate) fn check_interface(name: &str) -> Result<(), String> {
    let fine = !name.is_empty()
        && name.len() < 16
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && !b"/:\"\\".contains(&b));
    if fine { Ok(()) } else { Err(format!("{name:?} cannot be the name of an interface")) }
}

fn pool(raw: &Subnet) -> Outcome<Pool> {
    let subnet = raw.subnet.network();
    let v4 = subnet.address.is_ipv4();
    let longest = if v4 { 30 } else { 126 };
    if subnet.length > longest {
        let message = format!(
            "subnet {subnet} has no room for a gateway and a pod: the prefix is /{longest} at the longest"
        );
        return Err(invalid(message));
    }
    let low = cidr::number(subnet.address);
    let high = cidr::number(subnet.last()) - u128::from(v4);
    let gateway = raw.gateway.unwrap_or_else(|| cidr::address(low + 1, subnet.address));
    let pool = Pool {
        subnet,
        gateway,
        first: raw.range_start.unwrap_or_else(|| cidr::address(low + 1, subnet.address)),
        last: raw.range_end.unwrap_or_else(|| cidr::address(high, subnet.address)),
    };
    for (what, ip) in [("gateway", gateway), ("rangeStart", pool.first), ("rangeEnd", pool.last)] {
        let usable = low < cidr::number(ip) && cidr::number(ip) <= high;
        if !subnet.contains(ip) || !usable {
            return Err(invalid(format!("{what} {ip} is not a usable address of {subnet}")));
        }
    }
    if cidr::number(pool.first) > cidr::number(pool.last) {
        return Err(invalid(format!("rangeStart {} comes after rangeEnd {}", pool.first, pool.last)));
    }
    Ok(pool)
}

fn check_families(pools: &[Pool]) -> Outcome<()> {
    let of = |v4: bool| pools.iter().filter(|p| p.subnet.address.is_ipv4() == v4).count();
    match (of(true), of(false)) {
        (0, 0) => Err(invalid("\"subnets\" is empty: a pod needs at least one IPv4 or IPv6 network")),
        (0..=1, 0..=1) => Ok(()),
        _ => Err(invalid("\"subnets\" has more than one network of a family")),
    }
}

fn of_this_kernel(mut pools: Vec<Pool>) -> Vec<Pool> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    // asking by a socket makes the kernel load IPv6 where it is a module that nobody has needed yet
    let ipv6 = || socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).is_ok();
    if pools.len() > 1 && !ipv6() {
        pools.retain(|pool| pool.subnet.address.is_ipv4());
    }
    pools
}

fn default_route(pool: &Pool) -> Route {
    Route { dst: Cidr { address: cidr::address(0, pool.subnet.address), length: 0 }, gw: None }
}

fn wanted(texts: &[String], pools: &[Pool]) -> Outcome<Vec<IpAddr>> {
    let parse = |text: &String| {
        let bare = text.split('/').next().unwrap_or_default();
        let ip: IpAddr = bare.parse().map_err(|_| invalid(format!("requested address {text:?} is none")))?;
        let usable = pools.iter().any(|p| {
            p.subnet.contains(ip) && ip != p.gateway && ip != p.subnet.address && ip != p.subnet.last()
        });
        if usable {
            Ok(ip)
        } else {
            Err(invalid(format!("requested address {ip} is not one of the subnets'")))
        }
    };
    texts.iter().map(parse).collect()
}

/// `None` for a port that has no port of the host: such mappings only document the container.
fn port(raw: RawPort) -> Option<Outcome<Port>> {
    if raw.host_port == 0 {
        return None;
    }
    let protocol = match raw.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            return Some(Err(invalid(format!("port mapping protocol {other:?} is not tcp, udp or sctp"))));
        }
    };
    if raw.container_port == 0 {
        return Some(Err(invalid(format!("port mapping of host port {} leads to port 0", raw.host_port))));
    }
    let host_ip = match raw.host_ip.as_str() {
        "" => None,
        text => match text.parse::<IpAddr>() {
            Ok(ip) => Some(ip.to_canonical()),
            Err(_) => return Some(Err(invalid(format!("port mapping hostIP {text:?} is not an address")))),
        },
    };
    let port = Port { protocol, host_ip, host_port: raw.host_port, container_port: raw.container_port };
    if host_ip == Some(Ipv6Addr::LOCALHOST.into()) {
        let message =
            format!("{}: the kernel does not route from ::1 to pods; 127.0.0.1 works", port.describe());
        return Some(Err(invalid(message)));
    }
    Some(Ok(port))
}
