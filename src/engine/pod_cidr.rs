//! The pod CIDR that the cluster gives this node (CRI UpdateRuntimeConfig).
//!
//! It concerns the runtime only where the network is the runtime's own: then the configuration that the daemon wrote gets these
//! subnets, and pods made from now on get their addresses there. Pods that run keep theirs. Every other network plugin
//! has its own way to learn of it; nothing is touched then.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::debts::blocking;
use crate::{Engine, Error, Kind, Result};

/// The network that the daemon configures itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltinNetwork {
    /// The file that holds its configuration.
    pub file: PathBuf,
    /// The network's name.
    pub name: String,
    /// The bridge's name.
    pub bridge: String,
    /// Where the plugin keeps who has which address.
    pub data_dir: PathBuf,
}

impl Engine {
    /// Use these subnets for pods; empty: nothing is asked. [`Kind::Invalid`].
    pub async fn set_pod_cidrs(&self, text: &str) -> Result<()> {
        let subnets = parse(text)?;
        let Some(builtin) = self.ctx.settings.builtin_network.clone().filter(|_| !subnets.is_empty()) else {
            tracing::debug!(cidr = text, "the pod CIDR is left to the network plugin");
            return Ok(());
        };
        let context = format!("write {}", builtin.file.display());
        let shown = subnets.join(", ");
        let written = blocking(move || builtin.apply(&subnets)).await;
        match written.map_err(|e| Error::because(Kind::Internal, context, e))? {
            true => tracing::info!(subnets = shown, "new pods get addresses of the cluster's pod CIDR"),
            false => tracing::debug!(cidr = text, "the pod CIDR changes nothing"),
        }
        Ok(())
    }
}

/// One subnet, or one of each family; empty text: none.
fn parse(text: &str) -> Result<Vec<String>> {
    let invalid = |why: &str| Err(Error::new(Kind::Invalid, format!("pod CIDR {text:?}: {why}")));
    let mut families = Vec::new();
    let mut subnets = Vec::new();
    for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let Some((address, prefix)) = one.split_once('/') else {
            return invalid("address/prefix is expected");
        };
        let (Ok(address), Ok(prefix)) = (address.parse::<IpAddr>(), prefix.parse::<u8>()) else {
            return invalid("address/prefix is expected");
        };
        // smaller ones have no room for a gateway and a pod
        let longest = if address.is_ipv6() { 126 } else { 30 };
        if !(1..=longest).contains(&prefix) {
            return invalid("its size is not possible");
        }
        if families.contains(&address.is_ipv6()) {
            return invalid("there is more than one of a family");
        }
        families.push(address.is_ipv6());
        subnets.push(one.to_owned());
    }
    Ok(subnets)
}

impl BuiltinNetwork {
    /// Whether something was changed. Only a configuration that is in effect and ours is.
    fn apply(&self, subnets: &[String]) -> io::Result<bool> {
        let network = network::BridgeNetwork {
            name: &self.name,
            bridge: &self.bridge,
            subnets,
            data_dir: &self.data_dir,
        };
        let text = network::default_conflist(&network);
        if !self.in_effect()? || fs::read_to_string(&self.file)? == text {
            return Ok(false);
        }
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        // hidden, so that readers see the old file or the new one
        let partial = dir.join(format!(".pod-cidr.{}", std::process::id()));
        let written = fs::File::create(&partial)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&partial, &self.file));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written.map(|()| true)
    }

    /// Whether our file is there and no other comes before it.
    fn in_effect(&self) -> io::Result<bool> {
        let Some(dir) = self.file.parent() else { return Ok(false) };
        let mut first: Option<PathBuf> = None;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            let is_config = path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json");
            if !hidden && is_config && first.as_ref().is_none_or(|first| path < *first) {
                first = Some(path);
            }
        }
        Ok(first.as_deref() == Some(self.file.as_path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cidr_is_refused() {
        assert_eq!(parse("").unwrap(), Vec::<String>::new());
        assert_eq!(parse("10.1.0.0/24, fd00:1::/64").unwrap(), ["10.1.0.0/24", "fd00:1::/64"]);
        for text in ["10.1.0.0", "10.1.0.0/33", "10.1.0.0/31", "x/24", "10.1.0.0/24,10.2.0.0/24", "10.1.0.0/"]
        {
            assert_eq!(parse(text).unwrap_err().kind, Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn only_our_own_configuration_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let builtin = BuiltinNetwork {
            file: dir.path().join("99-corten.conflist"),
            name: "corten".into(),
            bridge: "corten0".into(),
            data_dir: "/var/lib/corten/bridge".into(),
        };
        let subnets = ["10.1.0.0/24".to_owned()];
        assert!(!builtin.apply(&subnets).unwrap(), "there is none");
        fs::write(&builtin.file, "{}").unwrap();
        assert!(builtin.apply(&subnets).unwrap());
        let text = fs::read_to_string(&builtin.file).unwrap();
        assert!(text.contains("10.1.0.0/24") && text.contains("corten-bridge"), "{text}");
        assert!(!builtin.apply(&subnets).unwrap(), "it is so already");
        fs::write(dir.path().join("10-other.conflist"), "{}").unwrap();
        assert!(!builtin.apply(&["10.2.0.0/24".to_owned()]).unwrap());
        assert_eq!(fs::read_to_string(&builtin.file).unwrap(), text);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }
}
