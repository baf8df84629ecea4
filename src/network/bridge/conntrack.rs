//! Connection tracking entries of UDP, which outlive the rules that they were made by: a client that keeps sending from
//! one port would reach a pod that is gone, or never reach one that is new, for minutes.
//!
//! Best effort: the kernel may be built without this interface, and entries run out by themselves.

use std::collections::HashSet;
use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use crate::config::Port;
use crate::link::Routes;
use crate::netlink::{Body, Message, Socket, attributes};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const UDP: u8 = 17;

/// One side of an entry.
#[derive(Debug, PartialEq)]
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
}

/// Forgets flows to these ports of the host that nobody translated: they began before the ports were mapped.
pub(crate) fn forget_local(ports: &[Port]) {
    if ports.is_empty() {
        return;
    }
    let local: HashSet<IpAddr> = Routes::open().and_then(|mut r| r.all_addresses()).unwrap_or_default();
    forget(ports, |orig, reply| local.contains(&orig.destination) && reply.source == orig.destination);
}

/// Forgets flows to these ports of the host that lead to the pod.
pub(crate) fn forget_pod(ports: &[Port], ips: &[IpAddr]) {
    if !ports.is_empty() {
        forget(ports, |_, reply| ips.contains(&reply.source));
    }
}

fn forget(ports: &[Port], stale: impl Fn(&Tuple, &Tuple) -> bool) {
    for family in [2u8, 10] {
        let Ok(mut socket) = Socket::open(SockProtocol::NetlinkNetFilter) else { return };
        let all = Message::raw(GET, 0, Body::netfilter(family).0, "list conntrack entries");
        let deletions: Vec<Message> = socket
            .dump(&all)
            .unwrap_or_default()
            .iter()
            .filter_map(|entry| deletion(entry, family, ports, &stale))
            .collect();
        // few at a time, so that the answers fit the socket's buffer
        for some in deletions.chunks(64) {
            let _ = socket.batch(some);
        }
    }
}

fn deletion(
    entry: &[u8],
    family: u8,
    ports: &[Port],
    stale: impl Fn(&Tuple, &Tuple) -> bool,
) -> Option<Message> {
    let found: Vec<_> = attributes(entry.get(4..)?).collect();
    let value = |kind| found.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v);
    let (orig_bytes, reply) = (value(TUPLE_ORIG)?, tuple(value(TUPLE_REPLY)?)?);
    let orig = tuple(orig_bytes)?;
    let ours = |p: &Port| p.host_port == orig.port && p.covers(orig.destination);
    if orig.protocol != UDP || !ports.iter().any(ours) || !stale(&orig, &reply) {
        return None;
    }
    let mut body = Body::netfilter(family).put(TUPLE_ORIG | 0x8000, orig_bytes);
    if let Some(zone) = value(ZONE) {
        body = body.put(ZONE, zone);
    }
    Some(Message::raw(DELETE, 0, body.0, "forget a conntrack entry"))
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let part = |kind| attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v);
    let (ip, protocol) = (part(1)?, part(2)?);
    let address = |v4: u16, v6: u16| {
        attributes(ip).find_map(|(kind, value)| match kind {
            k if k == v4 => Some(IpAddr::from(*value.first_chunk::<4>()?)),
            k if k == v6 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
            _ => None,
        })
    };
    let field = |kind| attributes(protocol).find(|(k, _)| *k == kind).map(|(_, v)| v);
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: *field(1)?.first()?,
        port: field(3).and_then(|v| v.first_chunk()).map_or(0, |b| u16::from_be_bytes(*b)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = tuple(&bytes);
            let _ = deletion(&bytes, 2, &[], |_, _| true);
        }
    }

    #[test]
    fn a_tuple_is_read() {
        let ip = Body::default().put(1, &[10, 0, 0, 1]).put(2, &[10, 0, 0, 2]);
        let protocol =
            Body::default().put(1, &[UDP]).put(2, &7u16.to_be_bytes()).put(3, &53u16.to_be_bytes());
        let body = Body::default().put(1 | 0x8000, &ip.0).put(2 | 0x8000, &protocol.0);
        let (source, destination) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        assert_eq!(tuple(&body.0), Some(Tuple { source, destination, protocol: UDP, port: 53 }));
    }
}
