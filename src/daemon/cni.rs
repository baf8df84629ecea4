//! The CNI configuration that `corten` writes.
//!
//! Nothing is written over: our file is for a directory without any, and its name sorts behind those of
//! network plugins that come later, so that theirs wins.

use std::fs;
use std::io::Write;
use std::net::{Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Config;
use crate::config_values::is_ipv6_subnet;

/// Name of the file that we write.
const FILE: &str = "99-corten.conflist";

/// The text that [`init`] writes. Daemons side by side have different state directories, and need different
/// bridges and subnets as well.
pub(crate) fn conflist(config: &Config) -> String {
    let ipv6 = has_ipv6();
    let usable = |subnet: &&String| ipv6 || is_ipv6_subnet(subnet) == Some(false);
    let subnets: Vec<String> = config.network.subnets.iter().filter(usable).cloned().collect();
    network::default_conflist(&network::BridgeNetwork {
        name: &network_name(&config.network.bridge),
        bridge: &config.network.bridge,
        subnets: &subnets,
        data_dir: &config.state_dir.join("bridge"),
    })
}

/// Whether this node has IPv6. Asking by a socket makes the kernel load it where it is a module that nobody has needed yet.
fn has_ipv6() -> bool {
    let known = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    let off = || fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    known && off().is_ok_and(|value| value.trim() == "0")
}

/// The network of our own, whose subnets the cluster may choose.
pub(crate) fn builtin(config: &Config) -> engine::BuiltinNetwork {
    engine::BuiltinNetwork {
        file: config.network.config_dir.join(FILE),
        name: network_name(&config.network.bridge),
        bridge: config.network.bridge.clone(),
        data_dir: config.state_dir.join("bridge"),
    }
}

/// The packet filter's tables are called after the network: two daemons with bridges of their own would replace each
/// other's rules if both networks had one name.
fn network_name(bridge: &str) -> String {
    if bridge == "corten0" { "corten".to_owned() } else { format!("corten-{bridge}") }
}

/// Writes our configuration unless the directory has one. Answers what was done, for people.
///
/// # Errors
/// The directory cannot be read or written.
pub(crate) fn init(config: &Config) -> anyhow::Result<String> {
    let directory = &config.network.config_dir;
    if let Some(file) = first_config(directory)? {
        return Ok(format!("{} is there already; nothing was written\n", file.display()));
    }
    fs::create_dir_all(directory).with_context(|| format!("make directory {}", directory.display()))?;
    let path = directory.join(FILE);
    // Readers look for *.conflist: they see the whole file or none.
    let partial = directory.join(format!(".{FILE}.{}", std::process::id()));
    let written = fs::File::create(&partial)
        .and_then(|mut file| file.write_all(conflist(config).as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&partial, &path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written.with_context(|| format!("write {}", path.display()))?;
    Ok(format!("wrote {}\n", path.display()))
}

/// The configuration that is in effect: the first by name, as every CRI runtime takes it.
///
/// # Errors
/// The directory is there but cannot be read.
pub(crate) fn first_config(directory: &Path) -> anyhow::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", directory.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json") {
            found.push(path);
        }
    }
    Ok(found.into_iter().min())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn ours_is_written_once_and_never_over_another() {
        let dir = tempfile::tempdir().expect("a directory");
        let cni = dir.path().join("net.d");
        let file = dir.path().join("c.toml");
        fs::write(&file, format!("[network]\nconfig_dir = {cni:?}\n")).expect("write");
        let config = load(&Sources { file: Some(file), ..Sources::default() }).expect("loads").config();
        let path = cni.join(FILE);
        assert_eq!(init(&config).expect("written"), format!("wrote {}\n", path.display()));
        assert_eq!(first_config(&cni).expect("readable"), Some(path.clone()));
        let written = network::configured(&cni).0.expect("a conflist");
        assert!(written.types.contains(&"corten-bridge".to_owned()), "{written:?}");
        let said = init(&config).expect("fine");
        assert!(said.ends_with("is there already; nothing was written\n"), "{said}");
        fs::write(cni.join("10-other.conf"), r#"{"type": "other"}"#).expect("write");
        assert_eq!(first_config(&cni).expect("readable"), Some(cni.join("10-other.conf")));
        assert_eq!(fs::read_dir(&cni).expect("list").count(), 2);
    }

    #[test]
    fn networks_of_two_bridges_have_two_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = |bridge: &str| {
            let file = dir.path().join("c.toml");
            fs::write(&file, format!("[network]\nbridge = {bridge:?}\n")).expect("write");
            let config = load(&Sources { file: Some(file), ..Sources::default() }).expect("loads").config();
            let value: Value = serde_json::from_str(&conflist(&config)).expect("JSON");
            value["name"].as_str().expect("a name").to_owned()
        };
        assert_eq!(name("corten0"), "corten");
        assert_eq!(name("br2"), "corten-br2");
    }

    #[test]
    fn no_directory_is_no_configuration() {
        assert_eq!(first_config(Path::new("/nowhere/net.d")).expect("none"), None);
    }
}
