//! What verbose answers tell beyond the status, under the keys that scripts know from other runtimes: `pid`, `sandboxID`,
//! `config` (the request's own message), `runtimeSpec`.
//!
//! What must never happen: credentials in it. They are no part of these messages.

use serde_json::{Value, json};

use crate::admission::Stage;
use crate::bundle::OCI_VERSION;
use crate::pod::PodView;
use crate::sandbox;
use crate::status::{ContainerState, PodStatus};
use crate::view::ContainerView;

/// About a pod.
pub(crate) fn pod(view: &PodView) -> Value {
    let status = &view.status;
    json!({
        "pid": status.pid,
        "netns": status.netns,
        "netNamespaceClosed": sandbox::own_network(&status.config) && status.netns.is_none(),
        "cgroup": view.cgroup,
        "stage": format!("{:?}", view.stage),
        "runtimeHandler": status.config.runtime_handler,
        "config": asked(&status.config.asked.0, || json!(*status.config)),
        "overhead": status.limits.overhead.as_ref().unwrap_or(&status.config.overhead),
        "resources": status.limits.resources.as_ref().unwrap_or(&status.config.resources),
        "runtimeSpec": pod_spec(status, &view.cgroup),
    })
}

/// About a container, with its config.json.
pub(crate) fn container(view: &ContainerView, spec: Value) -> Value {
    let status = &view.status;
    let pid = match status.state {
        ContainerState::Running { pid, .. } => pid,
        _ => 0,
    };
    json!({
        "pid": pid,
        "sandboxID": status.pod.as_str(),
        "cgroup": view.cgroup,
        "stage": format!("{:?}", view.stage),
        "removing": view.stage == Stage::Removing,
        "privileged": status.config.security.privileged,
        "config": asked(&status.config.asked.0, || json!(*status.config)),
        "runtimeSpec": legible(spec),
    })
}

/// Variables whose values are bytes have a form of our own in config.json ([`oci::environment`]); people see them as text.
fn legible(mut spec: Value) -> Value {
    for entry in spec.pointer_mut("/process/env").and_then(Value::as_array_mut).into_iter().flatten() {
        let bytes = entry.as_str().and_then(oci::environment::bytes);
        if let Some(text) = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) {
            *entry = text.into();
        }
    }
    spec
}

/// The message as it came; of a record that is older, ours.
fn asked(text: &str, ours: impl FnOnce() -> Value) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| ours())
}

/// A pod has no process that a specification was made for. This is what there is of one: scripts look up the network namespace here.
fn pod_spec(status: &PodStatus, cgroup: &str) -> Value {
    let config = &status.config;
    let of_monitor =
        |kind: &str| json!({"type": kind, "path": status.pid.map(|pid| format!("/proc/{pid}/ns/{kind}"))});
    let mut namespaces = Vec::new();
    if config.namespaces.user.is_some() {
        namespaces.push(of_monitor("user"));
    }
    if sandbox::own_ipc(config) {
        namespaces.push(of_monitor("ipc"));
    }
    if sandbox::own_network(config) {
        namespaces.push(of_monitor("uts"));
        namespaces.push(json!({"type": "network", "path": status.netns}));
    }
    json!({
        "ociVersion": OCI_VERSION,
        "hostname": sandbox::hostname(config),
        "annotations": config.annotations,
        "linux": {"namespaces": namespaces, "cgroupsPath": cgroup, "sysctl": config.sysctls},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_shown_as_text() {
        let env = [oci::environment::entry("A", b"\xffx"), oci::environment::entry("B", "ö=".as_bytes())];
        let shown = legible(json!({"process": {"env": env, "cwd": "/"}}));
        assert_eq!(shown, json!({"process": {"env": ["A=\u{fffd}x", "B=ö="], "cwd": "/"}}));
        // of a container that has no config.json any more
        assert_eq!(legible(Value::Null), Value::Null);
    }
}
