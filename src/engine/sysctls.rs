//! Sysctls of a pod: which it may have, and who sets them.
//!
//! The monitor sets them in the pod's namespaces before anything runs in these. Those of a network namespace that belongs to a
//! user namespace are set by the engine, when the interfaces are there, which is after the monitor was started.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use crate::config::{PodConfig, Strings};
use crate::debts::blocking;
use crate::sandbox::{own_ipc, own_network};
use crate::{Error, Kind, Result};

/// Refuse those that would change the node; [`Kind::Invalid`].
pub(crate) fn check(config: &PodConfig) -> Result<()> {
    config.sysctls.keys().try_for_each(|name| check_one(config, name))
}

/// Only sysctls of namespaces that the pod has of its own: the others would change the node.
fn check_one(config: &PodConfig, name: &str) -> Result<()> {
    // as the kubelet knows them, with dots or slashes; of those that are none the monitor says so
    let path = monitor::sysctl_path(name).unwrap_or_default();
    let ipc = path == "kernel/sem"
        || ["kernel/msg", "kernel/shm", "fs/mqueue/"].iter().any(|prefix| path.starts_with(prefix));
    let (net, uts) = (is_of_network(name), path == "kernel/domainname");
    let refuse = |why: &str| Err(Error::new(Kind::Invalid, format!("sysctl {name}: {why}")));
    match (net, ipc, uts) {
        (true, _, _) if !own_network(config) => refuse("the pod uses the node's network"),
        (true, _, _) => Ok(()),
        (_, true, _) if !own_ipc(config) => refuse("the pod uses the node's IPC namespace"),
        (_, true, _) => Ok(()),
        (_, _, true) if !own_network(config) => refuse("the pod uses the node's UTS namespace"),
        (_, _, true) => Ok(()),
        _ => refuse("it is not namespaced, so it would change the node"),
    }
}

/// Those that the monitor sets.
pub(crate) fn for_monitor(config: &PodConfig) -> Strings {
    let wanted = |name: &str| !is_of_network(name) || config.namespaces.user.is_none();
    config.sysctls.iter().filter(|(name, _)| wanted(name)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Whether some of them belong to the pod's network namespace.
pub(crate) fn some_of_network(config: &PodConfig) -> bool {
    config.sysctls.keys().any(|name| is_of_network(name))
}

/// Whether it belongs to a network namespace.
fn is_of_network(name: &str) -> bool {
    monitor::sysctl_path(name).is_some_and(|path| path.starts_with("net/"))
}

/// Set the sysctls of a network namespace from inside it, when the pod's interfaces are there.
pub(crate) async fn set_in_network(config: &PodConfig, netns: &Path) -> Result<()> {
    let named = config.sysctls.iter().filter(|(name, _)| is_of_network(name));
    let wanted: Vec<(String, String)> = named.map(|(k, v)| (k.clone(), v.clone())).collect();
    let netns = netns.to_owned();
    let all = move || {
        sys::netns::run_in(&netns, || wanted.iter().try_for_each(|(name, value)| set(name, value)))
            .map_err(io::Error::other)?
    };
    blocking(all).await.map_err(|e| Error::because(Kind::Invalid, "set net sysctls", e))
}

fn set(name: &str, value: &str) -> io::Result<()> {
    let path = monitor::sysctl_path(name).ok_or(io::ErrorKind::InvalidInput);
    let file = path.map(|path| Path::new("/proc/sys").join(path));
    file.map_err(io::Error::from)
        .and_then(|file| fs::OpenOptions::new().write(true).open(file))
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|e| io::Error::new(e.kind(), format!("sysctl {name}: write {value:?}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NamespaceMode;

    #[test]
    fn sysctls_that_would_change_the_node_are_refused() {
        let with = |name: &str, edit: fn(&mut PodConfig)| {
            let pod = serde_json::json!({"name": {"name": "p", "uid": "u", "namespace": "n", "attempt": 0}});
            let mut config: PodConfig = serde_json::from_value(pod).unwrap();
            config.sysctls = [(name.to_owned(), "1".to_owned())].into();
            edit(&mut config);
            check(&config).is_ok()
        };
        assert!(with("net.ipv4.ip_forward", |_| ()));
        assert!(with("kernel.shm_rmid_forced", |_| ()));
        assert!(with("fs.mqueue.msg_max", |_| ()));
        assert!(!with("net.ipv4.ip_forward", |c| c.namespaces.network = NamespaceMode::Node));
        assert!(!with("kernel.shm_rmid_forced", |c| c.namespaces.ipc = NamespaceMode::Node));
        assert!(!with("vm.swappiness", |_| ()));
        assert!(!with("kernel.hostname", |_| ()));
    }
}
