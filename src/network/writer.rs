//! The conflist that `corten` writes where there is none: one network with our own bridge plugin.

use std::path::Path;

use serde_json::json;

/// What a network by `corten-bridge` is made of.
#[derive(Clone, Debug)]
pub struct BridgeNetwork<'a> {
    /// The network's name.
    pub name: &'a str,
    /// The bridge's name, at most 15 characters.
    pub bridge: &'a str,
    /// Subnets of the pods, such as `10.88.0.0/16` and `fd00:88::/64`; at most one of each family.
    pub subnets: &'a [String],
    /// Where the plugin keeps who has which address. Daemons side by side need directories of their own.
    pub data_dir: &'a Path,
}

/// The text of a conflist.
pub fn default_conflist(network: &BridgeNetwork<'_>) -> String {
    let subnets: Vec<_> = network.subnets.iter().map(|s| json!({"subnet": s})).collect();
    let value = json!({
        "cniVersion": "1.1.0",
        "name": network.name,
        "plugins": [{
            "type": "corten-bridge",
            "bridge": network.bridge,
            "subnets": subnets,
            "ipMasq": true,
            "dataDir": network.data_dir,
            "capabilities": {"portMappings": true, "ips": true, "io.corten.netns-ends": true},
        }],
    });
    format!("{value:#}\n")
}
