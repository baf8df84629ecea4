//! A CNI configuration for the official plugins; ours the daemon writes itself.

use std::path::Path;

use serde_json::json;

/// bridge with host-local addresses (of both families with `ipv6`), port mappings, firewall, tuning. Addresses in use are kept in `state`.
pub(crate) fn official(state: &Path, ipv6: bool) -> String {
    let families = if ipv6 { 2 } else { 1 };
    let ranges = [json!([{"subnet": "10.222.0.0/16"}]), json!([{"subnet": "fd00:222::/64"}])];
    let routes = [json!({"dst": "0.0.0.0/0"}), json!({"dst": "::/0"})];
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "promiscMode": false,
        "ipam": {
            "type": "host-local", "dataDir": state,
            "ranges": ranges[..families], "routes": routes[..families],
        },
    });
    let list = json!({
        "cniVersion": "1.0.0", "name": "official",
        "plugins": [
            bridge,
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "firewall", "backend": "iptables"},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
        ],
    });
    format!("{list:#}\n")
}
