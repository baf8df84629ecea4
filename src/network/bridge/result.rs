//! The success object of ADD in the form of each CNI version.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::cidr::Cidr;
use crate::config::{Config, Pool, Route};
use crate::link::{Link, mac_text};

/// The versions of the specification that this plugin speaks.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What ADD made.
pub(crate) struct Made<'a> {
    pub(crate) bridge: &'a Link,
    /// Name and hardware address of the host's end.
    pub(crate) host: (&'a str, &'a [u8]),
    pub(crate) ifname: &'a str,
    pub(crate) pod: &'a Link,
    /// The pod's namespace as the caller named it.
    pub(crate) sandbox: &'a str,
    pub(crate) ips: &'a [(IpAddr, Pool)],
    pub(crate) routes: &'a [Route],
}

/// The object for standard output.
pub(crate) fn render(config: &Config, made: &Made<'_>) -> Value {
    let old = matches!(config.version.as_str(), "0.3.0" | "0.3.1" | "0.4.0");
    let newest = config.version == "1.1.0";
    let ip = |(ip, pool): &(IpAddr, Pool)| {
        let address = Cidr { address: *ip, length: pool.subnet.length }.to_string();
        let mut value = json!({"interface": 2, "address": address, "gateway": pool.gateway});
        if old {
            value["version"] = json!(if ip.is_ipv4() { "4" } else { "6" });
        }
        value
    };
    let route = |route: &Route| {
        let mut value = json!({"dst": route.dst});
        if let Some(gateway) = route.gw {
            value["gw"] = json!(gateway);
        }
        value
    };
    let interface = |name: &str, mac: &[u8], sandbox: &str, mtu: u32| {
        let mut value = json!({"name": name, "mac": mac_text(mac)});
        if !sandbox.is_empty() {
            value["sandbox"] = json!(sandbox);
        }
        if newest {
            value["mtu"] = json!(mtu);
        }
        value
    };
    json!({
        "cniVersion": config.version,
        "interfaces": [
            interface(&config.bridge, &made.bridge.mac, "", made.bridge.mtu),
            interface(made.host.0, made.host.1, "", made.pod.mtu),
            interface(made.ifname, &made.pod.mac, made.sandbox, made.pod.mtu),
        ],
        "ips": made.ips.iter().map(ip).collect::<Vec<_>>(),
        "routes": made.routes.iter().map(route).collect::<Vec<_>>(),
        "dns": config.dns.clone().unwrap_or_else(|| json!({})),
    })
}
