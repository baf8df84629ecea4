//! Links and addresses: the bridge with its gateway addresses, and the pair of a pod.
//!
//! The pair is made by one request: the host's end on the bridge and up, the pod's end in its namespace under its final
//! name. Addresses, routes and the setting up of the pod's end are one batch in that namespace. Nothing here waits for
//! duplicate address detection: addresses are handed out by us alone, so they are added without it.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use crate::cidr::{Cidr, number};
use crate::claim;
use crate::config::{Attachment, Config, Pool, Route, check_interface};
use crate::failure::{Failure, Outcome, code};
use crate::netlink::{CREATE, EXCLUSIVE, Message, Socket, attributes};
use crate::route::Way;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// The length of the fixed part of a link message, and of an address message.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// A link as the kernel describes it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) kind: String,
    /// The index of the bridge that it is a port of.
    pub(crate) master: u32,
}

/// `aa:bb:…`.
pub(crate) fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

/// The hardware address that goes with an address. It follows from the address so that a neighbour that remembers the
/// pod that had it before is right about the one that has it now.
fn mac_for(ip: IpAddr) -> Vec<u8> {
    let low = (number(ip) as u32).to_be_bytes();
    [&[0x0a, 0x58], &low[..]].concat()
}

/// FNV-1a: a hash that stays the same over versions of this program, which the standard library's does not promise.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The name of the host's end for an attachment: always the same, so that DEL and GC need no record of it.
pub(crate) fn host_name(network: &str, owner: &Attachment) -> String {
    let key =
        [network.as_bytes(), b"\0", owner.container.as_bytes(), b"\0", owner.ifname.as_bytes()].concat();
    format!("cb{:013x}", fnv(&key) >> 12)
}

/// Whether a link can be the host's end of a pod, by its name.
pub(crate) fn is_host_name(name: &str) -> bool {
    name.strip_prefix("cb")
        .is_some_and(|hash| hash.len() == 13 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

fn promiscuous(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Promisc;
    message.header.change_mask |= LinkFlags::Promisc;
    message
}

/// A route socket in the namespace of the caller.
pub(crate) struct Routes(pub(crate) Socket);

impl Routes {
    /// Opens the socket.
    pub(crate) fn open() -> Outcome<Routes> {
        Ok(Routes(Socket::open(SockProtocol::NetlinkRoute)?))
    }

    /// The link of this name, if there is one.
    pub(crate) fn find(&mut self, name: &str) -> Outcome<Option<Link>> {
        let body = link_message(0, vec![LinkAttribute::IfName(name.to_owned())]);
        match self.0.ask(&Message::new(RTM_GETLINK, 0, &body, format!("look up link {name}"))) {
            Ok(answer) => Ok(parse_link(&answer)),
            Err(refused) if refused.errno == Errno::ENODEV => Ok(None),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Removes a link; one that is not there is fine.
    pub(crate) fn remove(&mut self, name: &str) -> Outcome<()> {
        let body = link_message(0, vec![LinkAttribute::IfName(name.to_owned())]);
        let message = Message::new(RTM_DELLINK, 0, &body, format!("remove link {name}")).or(Errno::ENODEV);
        Ok(self.0.batch(&[message])?)
    }

    /// All addresses of a link.
    pub(crate) fn addresses(&mut self, index: u32) -> Outcome<Vec<IpAddr>> {
        let body = AddressMessage::default();
        let found = self.0.dump(&Message::new(RTM_GETADDR, 0, &body, "list addresses"))?;
        let on_link = |(at, ip)| if at == index { Some(ip) } else { None };
        Ok(found.iter().filter_map(|answer| parse_address(answer).and_then(on_link)).collect())
    }

    /// The addresses of a link that are good beyond it, with their prefixes.
    pub(crate) fn cidrs(&mut self, index: u32) -> Outcome<Vec<Cidr>> {
        let found =
            self.0.dump(&Message::new(RTM_GETADDR, 0, &AddressMessage::default(), "list addresses"))?;
        let local = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let cidr = |answer: &Vec<u8>| match parse_address(answer)? {
            (at, address) if at == index && !local(address) => {
                Some(Cidr { address, length: *answer.get(1)? })
            }
            _ => None,
        };
        Ok(found.iter().filter_map(cidr).collect())
    }

    /// All addresses of the namespace.
    pub(crate) fn all_addresses(&mut self) -> Outcome<HashSet<IpAddr>> {
        let found =
            self.0.dump(&Message::new(RTM_GETADDR, 0, &AddressMessage::default(), "list addresses"))?;
        Ok(found.iter().filter_map(|answer| parse_address(answer).map(|(_, ip)| ip)).collect())
    }

    /// How many links are ports of a bridge.
    pub(crate) fn ports_of(&mut self, bridge: u32) -> Outcome<usize> {
        let body = LinkMessage::default();
        let found = self.0.dump(&Message::new(RTM_GETLINK, 0, &body, "list links"))?;
        Ok(found.iter().filter_map(|b| parse_link(b)).filter(|link| link.master == bridge).count())
    }

    /// The names of the links that are ports of a bridge.
    pub(crate) fn port_names(&mut self, bridge: u32) -> Outcome<Vec<String>> {
        let found = self.0.dump(&Message::new(RTM_GETLINK, 0, &LinkMessage::default(), "list links"))?;
        let of_bridge =
            found.iter().filter(|body| parse_link(body).is_some_and(|link| link.master == bridge));
        let name = |body: &Vec<u8>| {
            let (_, name) = attributes(body.get(LINK_HEADER..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?;
            Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
        };
        Ok(of_bridge.filter_map(name).collect())
    }

    /// The bridge, made if it is not there, up and with its gateway addresses.
    pub(crate) fn ensure_bridge(&mut self, config: &Config) -> Outcome<Link> {
        let name = &config.bridge;
        let found = match self.find(name)? {
            Some(link) => {
                claim::check(config, self, &link)?;
                link
            }
            None => {
                claim::take(config)?;
                self.create_bridge(config)?;
                let gone =
                    || Failure::plain(code::NETLINK, format!("bridge {name} vanished while it was made"));
                self.find(name)?.ok_or_else(gone)?
            }
        };
        if found.kind != "bridge" {
            let message = format!("link {name} exists and is no bridge but of kind {:?}", found.kind);
            return Err(Failure::plain(code::CONFIG, message));
        }
        if config.pools.iter().any(|pool| pool.gateway.is_ipv6()) {
            enable_ipv6(name);
        }
        let mut batch: Vec<Message> = Vec::new();
        for pool in &config.pools {
            let cidr = Cidr { address: pool.gateway, length: pool.subnet.length };
            batch.push(add_address(found.index, cidr, name).or(Errno::EEXIST));
        }
        if !found.up {
            batch.push(Message::new(
                RTM_NEWLINK,
                0,
                &up(link_message(found.index, vec![])),
                format!("set {name} up"),
            ));
        }
        self.0.batch(&batch)?;
        Ok(found)
    }

    fn create_bridge(&mut self, config: &Config) -> Outcome<()> {
        let name = &config.bridge;
        let mac = config.pools.first().map_or_else(|| mac_for(IpAddr::from([0; 4])), |p| mac_for(p.gateway));
        let mut attributes = vec![
            LinkAttribute::IfName(name.clone()),
            // a bridge without an address of its own takes its lowest port's, which changes as pods come and go
            LinkAttribute::Address(mac),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        if config.mtu != 0 {
            attributes.push(LinkAttribute::Mtu(config.mtu));
        }
        let mut message = link_message(0, attributes);
        if config.promiscuous {
            message = promiscuous(message);
        }
        // two first pods at once: the second finds the bridge there
        let create = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &message, format!("create bridge {name}"));
        self.0.batch(&[create.or(Errno::EEXIST)])?;
        // a router advertisement from a pod must not give the host a route
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
        Ok(())
    }

    /// The pair of a pod: the host's end up on the bridge, the pod's end in the namespace `netns`, still down.
    pub(crate) fn create_pair(&mut self, config: &Config, bridge: &Link, pair: &Pair<'_>) -> Outcome<()> {
        let mtu = LinkAttribute::Mtu(if config.mtu != 0 { config.mtu } else { bridge.mtu });
        let peer = link_message(
            0,
            vec![
                LinkAttribute::IfName(pair.ifname.to_owned()),
                LinkAttribute::Address(mac_for(pair.ip)),
                LinkAttribute::NetNsFd(pair.netns),
                mtu.clone(),
            ],
        );
        let veth = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
        let message = up(link_message(
            0,
            vec![
                LinkAttribute::IfName(pair.host.to_owned()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), veth]),
                LinkAttribute::Controller(bridge.index),
                mtu,
            ],
        ));
        let what = format!("create {} and its peer {} in the pod", pair.host, pair.ifname);
        let mut batch = vec![Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &message, what)];
        if config.hairpin {
            batch.push(hairpin(pair.host));
        }
        Ok(self.0.batch(&batch)?)
    }

    /// Gives the pod's end its addresses and routes and sets it up. The socket is one of the pod's namespace. Of the routes it
    /// returns those that were made: where there was one to the same network, that one stays.
    pub(crate) fn configure(
        &mut self,
        config: &Config,
        ifname: &str,
        ips: &[(IpAddr, Pool)],
    ) -> Outcome<(Link, Vec<Route>)> {
        let gone = || Failure::plain(code::NETLINK, format!("link {ifname} is not in the pod"));
        let link = self.find(ifname)?.ok_or_else(gone)?;
        let mut batch: Vec<Message> = ips
            .iter()
            .map(|(ip, pool)| {
                add_address(link.index, Cidr { address: *ip, length: pool.subnet.length }, ifname)
            })
            .collect();
        batch.push(Message::new(
            RTM_NEWLINK,
            0,
            &up(link_message(link.index, vec![])),
            format!("set {ifname} up"),
        ));
        let before = batch.len();
        let routes: Vec<(&Route, Way)> =
            config.routes.iter().filter_map(|route| Some((route, config.way(route)?))).collect();
        batch.extend(routes.iter().map(|(_, way)| way.add(link.index)));
        let done = self.0.batch_each(&batch)?;
        let made = routes.into_iter().zip(&done[before..]).filter(|(_, done)| **done);
        let made = made.map(|((route, _), _)| route.clone()).collect();
        Ok((link, made))
    }
}

/// Hosts that want no IPv6 on their own links switch it off for all; a pod network with IPv6 needs it on these.
pub(crate) fn enable_ipv6(link: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
    if fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1") {
        // adding the address tells if it did not work
        let _ = fs::write(&path, "0");
    }
}

/// The file that says that a bridge is of our making; [`counts`] says whether it still is.
pub(crate) fn made_here(config: &Config, bridge: &str) -> PathBuf {
    config.data_dir.join(&config.name).join(note(bridge))
}

/// What the file holds: the boot of the node that the bridge was made in, and does not outlive.
pub(crate) fn this_boot() -> Outcome<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    fs::read_to_string(path).map_err(|e| Failure::new(code::IO, format!("read {path}"), e))
}

/// Whether the file is there, and of this boot. An earlier version left it empty.
pub(crate) fn counts(note: &Path) -> Outcome<bool> {
    match fs::read_to_string(note) {
        Ok(boot) => Ok(boot.is_empty() || boot == this_boot()?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Failure::new(code::IO, format!("read {}", note.display()), e)),
    }
}

/// Its name in a network's directory.
pub(crate) fn note(bridge: &str) -> String {
    format!("{MADE}{bridge}")
}

const MADE: &str = "made-";

/// The bridges that we made for this network when it was configured with other names, in the order of their names.
pub(crate) fn former_bridges(config: &Config) -> Vec<String> {
    let entries = fs::read_dir(config.data_dir.join(&config.name)).into_iter().flatten().flatten();
    let bridge = |name: std::ffi::OsString| Some(name.to_str()?.strip_prefix(MADE)?.to_owned());
    let mut found: Vec<String> = entries.filter_map(|entry| bridge(entry.file_name())).collect();
    found.retain(|name| *name != config.bridge && check_interface(name).is_ok());
    found.sort();
    found
}

/// All bridges that pods of this network may be on: the configured one first.
pub(crate) fn bridges(config: &Config) -> Vec<String> {
    std::iter::once(config.bridge.clone()).chain(former_bridges(config)).collect()
}

/// What makes the pair of one pod.
pub(crate) struct Pair<'a> {
    /// Name of the host's end.
    pub(crate) host: &'a str,
    /// Name of the pod's end.
    pub(crate) ifname: &'a str,
    /// The pod's namespace.
    pub(crate) netns: RawFd,
    /// Its first address.
    pub(crate) ip: IpAddr,
}

/// Lets frames leave by the port they came from: a pod that reaches itself through its own host port, on hosts where
/// netfilter sees bridged frames.
fn hairpin(host: &str) -> Message {
    let data = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
    let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)];
    let body = link_message(0, vec![LinkAttribute::IfName(host.to_owned()), LinkAttribute::LinkInfo(info)]);
    Message::new(RTM_NEWLINK, 0, &body, format!("set hairpin mode of {host}"))
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn add_address(index: u32, cidr: Cidr, link: &str) -> Message {
    let mut message = AddressMessage::default();
    message.header.family = family(cidr.address);
    message.header.prefix_len = cidr.length;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(cidr.address), AddressAttribute::Address(cidr.address)];
    if cidr.address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    } else if let IpAddr::V4(broadcast) = cidr.last() {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    Message::new(RTM_NEWADDR, CREATE | EXCLUSIVE, &message, format!("add address {cidr} to {link}"))
}

pub(crate) fn u32_of(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b))
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let index = u32_of(body.get(4..8)?);
    let up = u32_of(body.get(8..12)?) & 1 != 0;
    let mut link = Link { index, up, ..Link::default() };
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.to_vec(),
            IFLA_MTU => link.mtu = u32_of(value),
            IFLA_MASTER => link.master = u32_of(value),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(k, _)| *k == IFLA_INFO_KIND).map(|(_, v)| v);
                link.kind =
                    String::from_utf8_lossy(kind.unwrap_or_default()).trim_end_matches('\0').to_owned();
            }
            _ => {}
        }
    }
    Some(link)
}

/// The index of the link, and the address.
fn parse_address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let index = u32_of(body.get(4..8)?);
    let found: Vec<_> = attributes(body.get(ADDRESS_HEADER..)?).collect();
    let value = |kind| found.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v);
    let bytes = value(IFA_LOCAL).or(value(IFA_ADDRESS))?;
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some((index, IpAddr::from(v4)));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| (index, IpAddr::from(v6)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_names_of_host_ends_fit_and_differ() {
        let owner = |c: &str| Attachment { container: c.to_owned(), ifname: "eth0".to_owned() };
        let name = host_name("net", &owner("a"));
        assert_eq!(name.len(), 15);
        assert_ne!(name, host_name("net", &owner("b")));
        assert_ne!(name, host_name("other", &owner("a")));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_link(&bytes);
            let _ = parse_address(&bytes);
            let _ = attributes(&bytes).count();
        }
    }
}
