//! Device nodes of a container, and what its cgroup lets it do with them.
//!
//! The default nodes and the rules for them are the executor's. A request names nodes of the node, or a directory
//! that stands for all nodes below it. A privileged container gets every node there is.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::config::ContainerConfig;
use crate::{Error, Kind, Result};

/// For the config.json.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Devices {
    /// `linux.devices`.
    pub(super) nodes: Vec<Value>,
    /// `linux.resources.devices`.
    pub(super) rules: Vec<Value>,
}

/// Entries of /dev that are mounts of the container's own, or links into /proc.
const NOT_DEVICES: [&str; 7] = ["pts", "shm", "mqueue", "fd", "hugepages", "console", "ptmx"];

/// Look at the devices that a container is to have. `owned`: those that the request names belong to the user and the group of its
/// security context, where that names them by number. In a user namespace (`mapped`) the owner that a device has on the
/// node is nobody: it is left out, and the node's root owns what the container gets.
pub(super) fn gather(
    config: &ContainerConfig,
    privileged: bool,
    owned: bool,
    mapped: bool,
) -> Result<Devices> {
    let security = &config.security;
    let owner = [("uid", security.run_as_user), ("gid", security.run_as_group)];
    let deny = json!({"allow": false, "access": "rwm"});
    let mut devices = Devices { nodes: Vec::new(), rules: vec![deny] };
    if privileged {
        devices.rules = vec![json!({"allow": true, "access": "rwm"})];
        // What a volume at /dev shows, often the node's own, is for the one who put it there to say.
        let covered = config.mounts.iter().any(|m| Path::new(&m.container_path) == Path::new("/dev"));
        let all = if covered { Ok(Vec::new()) } else { walk(Path::new("/dev"), true) };
        for path in all.map_err(|e| Error::because(Kind::Internal, "list /dev", e))? {
            // one that vanishes meanwhile is none
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            devices.nodes.extend(node(&path, &meta, mapped));
        }
    }
    for wanted in &config.devices {
        let permissions = permissions(&wanted.permissions)?;
        for (host, inside) in expand(Path::new(&wanted.host_path), Path::new(&wanted.container_path))? {
            let failed = |e| Error::because(Kind::Invalid, format!("device {}", host.display()), e);
            let meta = fs::metadata(&host).map_err(failed)?;
            let Some(mut node) = node(&inside, &meta, mapped) else {
                return Err(Error::new(Kind::Invalid, format!("{} is not a device", host.display())));
            };
            for (field, id) in owner.into_iter().filter(|_| owned) {
                if let Some(id) = id {
                    node[field] = id.into();
                }
            }
            devices.rules.push(json!({
                "allow": true,
                "type": node["type"],
                "major": node["major"],
                "minor": node["minor"],
                "access": permissions,
            }));
            devices.nodes.retain(|other| other["path"] != node["path"]);
            devices.nodes.push(node);
        }
    }
    Ok(devices)
}

/// `r`, `w`, `m`; empty means all.
fn permissions(text: &str) -> Result<String> {
    match text {
        "" => Ok("rwm".to_owned()),
        _ if text.chars().all(|letter| "rwm".contains(letter)) => Ok(text.to_owned()),
        _ => Err(Error::new(
            Kind::Invalid,
            format!("device permissions {text:?} are not of the letters r, w, m"),
        )),
    }
}

/// The nodes that a path stands for, each with its path in the container.
fn expand(host: &Path, inside: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let failed = |e: io::Error| Error::because(Kind::Invalid, format!("device {}", host.display()), e);
    if !inside.is_absolute() {
        return Err(Error::new(
            Kind::Invalid,
            format!("device path {inside:?} in the container is not absolute"),
        ));
    }
    if !fs::metadata(host).map_err(failed)?.is_dir() {
        return Ok(vec![(host.to_owned(), inside.to_owned())]);
    }
    let mut found = Vec::new();
    for path in walk(host, false).map_err(failed)? {
        let below = path.strip_prefix(host).unwrap_or(&path).to_owned();
        found.push((path, inside.join(below)));
    }
    Ok(found)
}

/// Device nodes below a directory, links not followed, in a fixed order.
fn walk(root: &Path, skip: bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let skipped = skip && dir == root && NOT_DEVICES.iter().any(|name| entry.file_name() == *name);
            if kind.is_dir() && !skipped {
                waiting.push(entry.path());
            } else if (kind.is_char_device() || kind.is_block_device()) && !skipped {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A node as config.json has it; `None`: it is not a device.
fn node(path: &Path, meta: &fs::Metadata, mapped: bool) -> Option<Value> {
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    let mut node = json!({
        "path": path,
        "type": kind,
        "major": major(meta.rdev()),
        "minor": minor(meta.rdev()),
        "fileMode": meta.mode() & 0o777,
    });
    if !mapped {
        (node["uid"], node["gid"]) = (meta.uid().into(), meta.gid().into());
    }
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Device;

    fn config(host: &str, inside: &str, permissions: &str) -> ContainerConfig {
        let mut config: ContainerConfig =
            serde_json::from_value(json!({"name": "c", "attempt": 0, "image": "i"})).unwrap();
        config.devices = vec![Device {
            container_path: inside.to_owned(),
            host_path: host.to_owned(),
            permissions: permissions.to_owned(),
        }];
        config
    }

    #[test]
    fn one_node() {
        let devices = gather(&config("/dev/null", "/dev/nothing", "r"), false, false, false).unwrap();
        assert_eq!(devices.nodes[0]["path"], "/dev/nothing");
        assert_eq!((&devices.nodes[0]["major"], &devices.nodes[0]["minor"]), (&json!(1), &json!(3)));
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"});
        assert_eq!(devices.rules[1], rule);
        assert_eq!(devices.rules[0]["allow"], false);
    }

    #[test]
    fn a_node_belongs_to_the_user_of_the_container_when_that_is_wanted() {
        let mut config = config("/dev/null", "/dev/nothing", "r");
        (config.security.run_as_user, config.security.run_as_group) = (Some(1000), Some(2000));
        let owner = |config: &ContainerConfig, owned| {
            let devices = gather(config, false, owned, false).unwrap();
            (devices.nodes[0]["uid"].clone(), devices.nodes[0]["gid"].clone())
        };
        assert_eq!(owner(&config, false), (json!(0), json!(0)));
        assert_eq!(owner(&config, true), (json!(1000), json!(2000)));
        config.security.run_as_group = None;
        assert_eq!(owner(&config, true), (json!(1000), json!(0)));
    }

    #[test]
    fn in_a_user_namespace_a_node_has_no_owner_of_the_node() {
        let mut config = config("/dev/null", "/dev/nothing", "r");
        (config.security.run_as_user, config.security.run_as_group) = (Some(1000), Some(2000));
        let node = |owned| gather(&config, true, owned, true).unwrap().nodes.pop().unwrap();
        assert_eq!((node(false).get("uid"), node(false).get("gid")), (None, None));
        // these are ids of the container
        assert_eq!((&node(true)["uid"], &node(true)["gid"]), (&json!(1000), &json!(2000)));
    }

    #[test]
    fn a_volume_at_dev_stands_for_itself() {
        let mut config = config("/dev/null", "/dev/nothing", "r");
        assert!(gather(&config, true, false, false).unwrap().nodes.len() > 2);
        config.mounts =
            serde_json::from_value(json!([{"container_path": "/dev/", "host_path": "/dev"}])).unwrap();
        let devices = gather(&config, true, false, false).unwrap();
        assert_eq!(devices.nodes.len(), 1, "the one that the request names");
        assert_eq!(devices.rules[0]["allow"], true);
    }

    #[test]
    fn a_directory_stands_for_its_nodes() {
        let devices = gather(&config("/dev", "/devs", "rw"), false, false, false).unwrap();
        assert!(devices.nodes.iter().any(|node| node["path"] == "/devs/null"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (host, inside, permissions) in [
            ("/etc/passwd", "/dev/x", "r"),
            ("/nowhere", "/dev/x", "r"),
            ("/dev/null", "x", "r"),
            ("/dev/null", "/x", "q"),
        ] {
            let error = gather(&config(host, inside, permissions), false, false, false).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid, "{host}");
        }
    }
}
