//! Rules by nftables: one table for the network, made by one transaction; ports are elements of four maps, so that a
//! packet costs a lookup, not a walk over pods.
//!
//! Whether the table is there, and of this version and configuration, is asked over netlink (no process): an empty chain
//! carries the fingerprint of the rules in its name. So rules that somebody flushed are noticed by the next ADD.
//!
//! A verdict of one table does not bind another: where the machine has a `filter FORWARD` chain (iptables makes it, and
//! Docker sets its policy to drop), accepting the pods' packets takes a rule in there. It carries the names of our table
//! and of the bridge as its comment.

use std::fs;
use std::net::IpAddr;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use crate::config::{Config, Masquerade, Pool, Protocol};
use crate::failure::Outcome;
use crate::firewall::answers_are_seen;
use crate::link::bridges;
use crate::netlink::{Body, Message, Socket, attributes};
use crate::ports::Mapping;
use crate::program;

const NFT_MSG_GETCHAIN: u16 = 10 << 8 | 4;
const NFT_MSG_GETRULE: u16 = 10 << 8 | 7;
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_USERDATA: u16 = 7;
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// The network's table.
pub(crate) struct Nftables<'a> {
    config: &'a Config,
    table: String,
}

/// What the kernel has.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Present {
    /// The table with the rules of this configuration.
    pub(crate) table: bool,
    /// Families (`ip`, `ip6`) whose FORWARD chain lacks our rules.
    pub(crate) forward_missing: Vec<&'static str>,
}

/// Whether the machine has the program and the kernel answers for nf_tables.
pub(crate) fn reachable() -> bool {
    let Ok(mut socket) = Socket::open(SockProtocol::NetlinkNetFilter) else { return false };
    chain_exists(&mut socket, INET, "corten", "probe").is_some() && program::find("nft").is_some()
}

/// `None`: the kernel does not know nf_tables.
fn chain_exists(socket: &mut Socket, family: u8, table: &str, chain: &str) -> Option<bool> {
    let body = Body::netfilter(family).text(NFTA_TABLE, table).text(NFTA_CHAIN_NAME, chain);
    match socket.ask(&Message::raw(NFT_MSG_GETCHAIN, 0, body.0, "look up a chain")) {
        Ok(_) => Some(true),
        Err(refused) if refused.errno == Errno::ENOENT => Some(false),
        Err(_) => None,
    }
}

impl Nftables<'_> {
    pub(crate) fn new(config: &Config) -> Nftables<'_> {
        Nftables { config, table: format!("corten-{}", config.name) }
    }

    /// Whether the kernel can have our table. There are kernels that answer for nf_tables and have no family or no
    /// address translation in it: a dry run tells, once per boot.
    pub(crate) fn usable(&self) -> bool {
        if !reachable() {
            return false;
        }
        if self.look().is_ok_and(|present| present.table) {
            return true;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let note = self.config.data_dir.join(&self.config.name).join("no-nftables");
        if !boot.is_empty() && fs::read_to_string(&note).is_ok_and(|text| text == boot) {
            return false;
        }
        // small, because nft looks at everything anew for each line that is refused
        let try_out =
            format!("table inet {} {{ chain try {{ type nat hook output priority 0; }}; }}\n", self.table);
        let usable = program::feed("nft", &["-c", "-f", "-"], &try_out).is_ok();
        if !usable {
            // only saves the next dry run
            let _ = fs::write(&note, boot);
        }
        usable
    }

    /// The table, made anew.
    fn declaration(&self) -> String {
        let (table, rules) = (&self.table, self.rules());
        // declared first, so that the deletion never fails
        let head = format!("table inet {table} {{}}\ndelete table inet {table}\n");
        format!("{head}table inet {table} {{\nchain {} {{}}\n{rules}}}\n", self.mark(&rules))
    }

    fn families(&self) -> impl Iterator<Item = (&'static str, u8)> {
        let family = |pool: &Pool| if pool.subnet.address.is_ipv4() { ("ip", IPV4) } else { ("ip6", IPV6) };
        self.config.pools.iter().map(family)
    }

    /// Looks at the kernel; about 50 µs.
    pub(crate) fn look(&self) -> Outcome<Present> {
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        let mark = self.mark(&self.rules());
        let table = chain_exists(&mut socket, INET, &self.table, &mark) == Some(true);
        let mut forward_missing = Vec::new();
        for (name, family) in self.families() {
            if chain_exists(&mut socket, family, "filter", "FORWARD") == Some(true)
                && self.forward_rules(&mut socket, family)? < 2
            {
                forward_missing.push(name);
            }
        }
        Ok(Present { table, forward_missing })
    }

    /// Whether the table is there, of whatever version and configuration.
    pub(crate) fn exists(&self) -> Outcome<bool> {
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        Ok(chain_exists(&mut socket, INET, &self.table, "ports") == Some(true))
    }

    /// The comment of rules in the machine's FORWARD chain.
    fn comment(&self) -> String {
        format!("{} {}", self.table, self.config.bridge)
    }

    /// How many rules of the machine's FORWARD chain are ours.
    fn forward_rules(&self, socket: &mut Socket, family: u8) -> Outcome<usize> {
        let body = Body::netfilter(family).text(NFTA_TABLE, "filter").text(NFTA_RULE_CHAIN, "FORWARD");
        let rules = socket.dump(&Message::raw(NFT_MSG_GETRULE, 0, body.0, "list the rules of FORWARD"))?;
        let comment = self.comment() + "\0";
        let ours = |rule: &&Vec<u8>| {
            let data =
                attributes(rule.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == NFTA_RULE_USERDATA);
            data.is_some_and(|(_, data)| data.windows(comment.len()).any(|w| w == comment.as_bytes()))
        };
        Ok(rules.iter().filter(ours).count())
    }

    fn mark(&self, rules: &str) -> String {
        format!("rules-{:016x}", crate::link::fnv(rules.as_bytes()))
    }

    /// Makes what is missing, in one transaction.
    pub(crate) fn make(&self, present: &Present, mappings: &[Mapping]) -> Outcome<()> {
        let mut text = String::new();
        if !present.table {
            text += &self.declaration();
            text += &self.elements(mappings);
        }
        for family in &present.forward_missing {
            for side in ["iifname", "oifname"] {
                let (bridge, comment) = (&self.config.bridge, self.comment());
                text += &format!(
                    "insert rule {family} filter FORWARD {side} \"{bridge}\" counter accept comment \"{comment}\"\n"
                );
            }
        }
        if text.is_empty() { Ok(()) } else { program::feed("nft", &["-f", "-"], &text) }
    }

    /// Replaces all port mappings, in one transaction.
    pub(crate) fn set_ports(&self, mappings: &[Mapping]) -> Outcome<()> {
        let maps =
            ["any4", "host4", "any6", "host6"].map(|map| format!("flush map inet {} {map}\n", self.table));
        let sets = ["own4", "own6"].map(|set| format!("flush set inet {} {set}\n", self.table));
        let text = maps.concat() + &sets.concat() + &self.elements(mappings);
        program::feed("nft", &["-f", "-"], &text)
    }

    /// Whether a mapping is in the kernel's maps.
    pub(crate) fn has_port(&self, mapping: &Mapping) -> Outcome<bool> {
        let (map, element) = element(mapping, number);
        let listed = program::output("nft", &["-n", "list", "map", "inet", &self.table, map])?;
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(listed.split(['{', '}', ',', '=']).any(|part| squeeze(part) == element))
    }

    fn elements(&self, mappings: &[Mapping]) -> String {
        let add = |mapping: &Mapping| {
            let (map, element) = element(mapping, name);
            let (set, to, port) = (own(mapping.to), mapping.to, &mapping.port);
            let target = format!("{to} . {} . {}", port.protocol.name(), port.container_port);
            let table = &self.table;
            format!(
                "add element inet {table} {map} {{ {element} }}\nadd element inet {table} {set} {{ {target} }}\n"
            )
        };
        mappings.iter().map(add).collect()
    }

    /// Removes the table and the rules in FORWARD; what is not there is fine.
    pub(crate) fn remove(&self) -> Outcome<()> {
        let text = format!("table inet {0} {{}}\ndelete table inet {0}\n", self.table);
        program::feed("nft", &["-f", "-"], &text)?;
        self.remove_forward(None)
    }

    /// Removes the rules in FORWARD alone, or only those of one bridge.
    pub(crate) fn remove_forward(&self, bridge: Option<&str>) -> Outcome<()> {
        let mut text = String::new();
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        for (name, family) in [("ip", IPV4), ("ip6", IPV6)] {
            if chain_exists(&mut socket, family, "filter", "FORWARD") != Some(true) {
                continue;
            }
            let listed = program::output("nft", &["-a", "list", "chain", name, "filter", "FORWARD"])?;
            // the table's name alone: of an earlier version of this program
            let ours = [format!("comment \"{}\"", self.table), format!("comment \"{} ", self.table)];
            let about = bridge.map(|bridge| format!("ifname \"{bridge}\" ")).unwrap_or_default();
            let ours = |l: &&str| ours.iter().any(|comment| l.contains(comment)) && l.contains(&about);
            for line in listed.lines().filter(ours) {
                if let Some((_, handle)) = line.rsplit_once("# handle ") {
                    text += &format!("delete rule {name} filter FORWARD handle {}\n", handle.trim());
                }
            }
        }
        if text.is_empty() { Ok(()) } else { program::feed("nft", &["-f", "-"], &text) }
    }

    /// The body of the table, without its elements.
    ///
    /// A connection to ::1 is left alone: it would hang. IPv6 has no `route_localnet`; a route `local ::1 dev <bridge>`
    /// does the same, but where bridged packets are filtered (br_netfilter, which Kubernetes asks for) an answer has ::1
    /// put back into it before IPv6 sees it, and is dropped as forged. Refused at once, clients go on to 127.0.0.1.
    fn rules(&self) -> String {
        let bridges: Vec<String> = bridges(self.config).iter().map(|name| format!("\"{name}\"")).collect();
        let bridges = format!("{{ {} }}", bridges.join(", "));
        let mut post = String::new();
        for pool in &self.config.pools {
            let (ip, subnet) = (if pool.subnet.address.is_ipv4() { "ip" } else { "ip6" }, pool.subnet);
            let v4 = subnet.address.is_ipv4();
            let multicast = if v4 { "224.0.0.0/4" } else { "ff00::/8" };
            // a pod that reaches itself or another by a port of the host has to get its answers from the host
            let which = match answers_are_seen(v4) {
                true => format!("{ip} daddr . meta l4proto . th dport @{}", own(subnet.address)),
                false => format!("{ip} daddr {subnet}"),
            };
            post += &format!("{ip} saddr {subnet} {which} ct status dnat masquerade\n");
            if v4 {
                post += &format!("ip saddr 127.0.0.0/8 oifname {bridges} ct status dnat masquerade\n");
            }
            if self.config.masquerade != Masquerade::No {
                post +=
                    &format!("{ip} saddr {subnet} {ip} daddr != {{ {subnet}, {multicast} }} masquerade\n");
            }
        }
        let local = "meta l4proto { tcp, udp, sctp } fib daddr type local jump ports";
        format!(
            "map any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
map host4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
map any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
map host6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
set own4 {{ type ipv4_addr . inet_proto . inet_service; }}
set own6 {{ type ipv6_addr . inet_proto . inet_service; }}
chain ports {{
dnat ip to ip daddr . meta l4proto . th dport map @host4
dnat ip to meta l4proto . th dport map @any4
dnat ip6 to ip6 daddr . meta l4proto . th dport map @host6
dnat ip6 to meta l4proto . th dport map @any6
}}
chain prerouting {{ type nat hook prerouting priority -100; policy accept;
{local}
}}
chain output {{ type nat hook output priority -100; policy accept;
ip6 daddr ::1 return
{local}
}}
chain postrouting {{ type nat hook postrouting priority 100; policy accept;
{post}}}
chain loopback {{ type filter hook prerouting priority -300; policy accept;
iifname {bridges} ip daddr 127.0.0.0/8 drop
}}
"
        )
    }
}

/// The set of the pods' ports that ports of the host lead to.
fn own(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "own4" } else { "own6" }
}

fn name(protocol: Protocol) -> &'static str {
    protocol.name()
}

/// As `nft -n` prints it.
fn number(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "6",
        Protocol::Udp => "17",
        Protocol::Sctp => "132",
    }
}

/// The map that a mapping belongs to, and its element.
fn element(mapping: &Mapping, protocol: fn(Protocol) -> &'static str) -> (&'static str, String) {
    let Mapping { port, to } = mapping;
    let (protocol, from, into) = (protocol(port.protocol), port.host_port, port.container_port);
    match (port.only_on(), to) {
        (Some(ip), IpAddr::V4(_)) => ("host4", format!("{ip} . {protocol} . {from} : {to} . {into}")),
        (Some(ip), IpAddr::V6(_)) => ("host6", format!("{ip} . {protocol} . {from} : {to} . {into}")),
        (None, IpAddr::V4(_)) => ("any4", format!("{protocol} . {from} : {to} . {into}")),
        (None, IpAddr::V6(_)) => ("any6", format!("{protocol} . {from} : {to} . {into}")),
    }
}
