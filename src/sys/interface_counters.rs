//! What went through the interfaces of a network namespace: the kernel's own counters, `/proc/net/dev` as seen from inside.
//!
//! The interface that leads out is found in the routing tables, because a pod's need not be called `eth0`.

use std::fs;
use std::io;
use std::path::Path;

use crate::netns;

/// Counters of one interface since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether the default route goes through it.
    pub default: bool,
    /// Received.
    pub received: Counters,
    /// Transmitted.
    pub transmitted: Counters,
}

/// Counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets that were dropped.
    pub dropped: u64,
}

/// The interfaces of the network namespace that is pinned on `path`, without loopback.
pub fn of(path: &Path) -> io::Result<Vec<Interface>> {
    let read = || {
        let table = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        // a kernel without IPv6 has no such table
        Ok(interfaces(&table("dev")?, &table("route")?, &table("ipv6_route").unwrap_or_default()))
    };
    netns::run_in(path, read).map_err(|e| io::Error::new(io::Error::from(e.errno).kind(), e))?
}

fn interfaces(dev: &str, route: &str, ipv6_route: &str) -> Vec<Interface> {
    let mut all: Vec<Interface> = dev.lines().filter_map(interface).filter(|one| one.name != "lo").collect();
    let leads_out = ipv4_default(route).or_else(|| ipv6_default(ipv6_route));
    // without a default route the first one is what there is
    let place = all.iter().position(|one| Some(one.name.as_str()) == leads_out).unwrap_or(0);
    if let Some(one) = all.get_mut(place) {
        one.default = true;
    }
    all
}

/// A line of /proc/net/dev (proc_net_dev(5)): a name and sixteen numbers, eight for each direction.
fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.rsplit_once(':')?;
    let numbers: Vec<u64> =
        numbers.split_ascii_whitespace().map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let direction = |from: usize| {
        let at = |offset: usize| numbers.get(from + offset).copied();
        Some(Counters { bytes: at(0)?, packets: at(1)?, errors: at(2)?, dropped: at(3)? })
    };
    Some(Interface {
        name: name.trim().to_owned(),
        default: false,
        received: direction(0)?,
        transmitted: direction(8)?,
    })
}

/// /proc/net/route: interface, destination, gateway, …, mask; addresses as hexadecimal numbers.
fn ipv4_default(table: &str) -> Option<&str> {
    let routes = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let mut defaults =
        routes.filter(|route| route.get(1) == Some(&"00000000") && route.get(7) == Some(&"00000000"));
    defaults.next().map(|route| route[0])
}

/// /proc/net/ipv6_route: destination, its prefix length, …, interface. The kernel keeps an unreachable default on `lo`.
fn ipv6_default(table: &str) -> Option<&str> {
    let routes = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let zero = "00000000000000000000000000000000";
    let mut defaults = routes
        .filter(|route| route.first() == Some(&zero) && route.get(1) == Some(&"00"))
        .filter_map(|route| route.get(9).copied());
    defaults.find(|name| *name != "lo")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  net1:       7       2    3    4    0     0          0         0        5       6    8    9    0     0       0          0
  eth0:      70      20   30   40    0     0          0         0       50      60   80   90    0     0       0          0
";

    const ROUTE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
net1\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t00000000\t0100580A\t0003\t0\t0\t0\t00000000\t0\t0\t0
";

    #[test]
    fn the_default_route_names_the_first_one() {
        let got = interfaces(DEV, ROUTE, "");
        let names: Vec<_> = got.iter().map(|one| (one.name.as_str(), one.default)).collect();
        assert_eq!(names, [("net1", false), ("eth0", true)]);
        assert_eq!(got[0].received, Counters { bytes: 7, packets: 2, errors: 3, dropped: 4 });
        assert_eq!(got[0].transmitted, Counters { bytes: 5, packets: 6, errors: 8, dropped: 9 });
        let ipv6 =
            format!("{0} 00 {0} 00 {0} 00000400 00000001 00000000 00000003     eth0\n", "0".repeat(32));
        assert!(interfaces(DEV, "", &ipv6)[1].default);
        assert!(interfaces(DEV, "", "")[0].default);
        assert!(interfaces("", ROUTE, "").is_empty());
        assert!(interfaces("eth0: 1 2 3\nnonsense\n", "x", "y").is_empty());
    }
}
