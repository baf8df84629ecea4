//! Routes in a pod: what ADD adds, and CHECK looks for. They stand in the main table and go by a gateway over the pod's
//! own link.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use nix::errno::Errno;

use crate::cidr::{Cidr, address};
use crate::failure::Outcome;
use crate::link::{Routes, u32_of};
use crate::netlink::{CREATE, EXCLUSIVE, Message, attributes};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
/// `RT_TABLE_MAIN`.
const MAIN: u8 = 254;
/// `RTN_UNICAST`.
const UNICAST: u8 = 1;
/// The length of the fixed part of a route message.
const HEADER: usize = 12;

/// Where a route goes, and by which gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Way {
    /// Host bits zero.
    pub(crate) dst: Cidr,
    pub(crate) gateway: IpAddr,
}

impl Way {
    /// The request that adds it over the link of this index. Answered with EEXIST where there is a route to the same
    /// network already, which stays.
    pub(crate) fn add(&self, index: u32) -> Message {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.gateway);
        message.header.destination_prefix_length = self.dst.length;
        message.header.table = MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::from(self.gateway)), RouteAttribute::Oif(index)];
        if self.dst.length > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::from(self.dst.address)));
        }
        let what = format!("add route to {} by {}", self.dst, self.gateway);
        Message::new(RTM_NEWROUTE, CREATE | EXCLUSIVE, &message, what).or(Errno::EEXIST)
    }
}

impl Routes {
    /// The routes of one family that go by a gateway over a link.
    pub(crate) fn ways(&mut self, index: u32, like: IpAddr) -> Outcome<Vec<Way>> {
        let mut body = RouteMessage::default();
        body.header.address_family = family(like);
        let found = self.0.dump(&Message::new(RTM_GETROUTE, 0, &body, "list routes"))?;
        let over_link = |(at, way)| if at == index { Some(way) } else { None };
        Ok(found.iter().filter_map(|answer| parse(answer, like).and_then(over_link)).collect())
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The index of the link, and the way; `None` for other kinds of routes.
fn parse(body: &[u8], like: IpAddr) -> Option<(u32, Way)> {
    let &[_, length, _, _, MAIN, _, _, UNICAST, ..] = body else { return None };
    let found: Vec<_> = attributes(body.get(HEADER..)?).collect();
    let value = |kind| found.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v);
    let ip = |bytes: &[u8]| match like {
        IpAddr::V4(_) => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        IpAddr::V6(_) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    // a default route names no destination
    let to = value(RTA_DST).map_or(Some(address(0, like)), ip)?;
    let way = Way { dst: Cidr { address: to, length }, gateway: ip(value(RTA_GATEWAY)?)? };
    Some((u32_of(value(RTA_OIF)?), way))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), v4: bool) {
            let like = if v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            let _ = parse(&bytes, like);
            let _ = parse(&[&[2, 24, 0, 0, MAIN, 3, 0, UNICAST], &bytes[..]].concat(), like);
        }
    }
}
