//! Version, Status and RuntimeConfig.

use engine::config::Strings;
use engine::status::NodeStatus;

use crate::Info;
use crate::proto::runtime::v1 as wire;

/// Our name, and the only interface that we speak.
pub(crate) fn version(info: &Info) -> wire::VersionResponse {
    wire::VersionResponse {
        // the version of the kubelet's own runtime API: a constant since that was split from this interface
        version: "0.1.0".into(),
        runtime_name: "corten".into(),
        runtime_version: info.version.clone(),
        runtime_api_version: "v1".into(),
    }
}

/// Conditions of the node and what the runtime can do.
pub(crate) fn status(from: NodeStatus, info: &Info, verbose: bool) -> wire::StatusResponse {
    let conditions = vec![
        condition("RuntimeReady", "RuntimeNotReady", from.runtime),
        condition("NetworkReady", "NetworkPluginNotReady", from.network),
    ];
    // with the node's network as well: the root is made by a process that may mount its sysfs
    let user_namespaces = from.user_namespaces.is_ok();
    let features = wire::RuntimeHandlerFeatures {
        recursive_read_only_mounts: from.recursive_read_only,
        user_namespaces,
    };
    let handler = |name: String| wire::RuntimeHandler { name, features: Some(features) };
    // the empty name is the default handler
    let handlers = std::iter::once(String::new()).chain(from.handlers);
    let told = if verbose { [("config".to_owned(), info.config.clone())].into() } else { Strings::new() };
    wire::StatusResponse {
        status: Some(wire::RuntimeStatus { conditions }),
        info: told,
        runtime_handlers: handlers.map(handler).collect(),
        features: Some(wire::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: user_namespaces,
            mount_options: true,
        }),
    }
}

/// Cgroups are directories that we make.
pub(crate) fn runtime_config() -> wire::RuntimeConfigResponse {
    let cgroup_driver = wire::CgroupDriver::Cgroupfs as i32;
    wire::RuntimeConfigResponse { linux: Some(wire::LinuxRuntimeConfiguration { cgroup_driver }) }
}

fn condition(kind: &str, reason: &str, is: Result<(), String>) -> wire::RuntimeCondition {
    let (status, reason, message) = match is {
        Ok(()) => (true, "", String::new()),
        Err(why) => (false, reason, why),
    };
    wire::RuntimeCondition { r#type: kind.into(), status, reason: reason.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn info(version: &str, config: &str) -> Info {
        let (slow_request, drain_deadline) = (Duration::ZERO, Duration::ZERO);
        Info { version: version.to_owned(), slow_request, drain_deadline, config: config.to_owned() }
    }

    #[test]
    fn conditions_say_why_not() {
        let from = NodeStatus {
            user_namespaces: Ok(()),
            runtime: Ok(()),
            network: Err("no conflist in /etc/cni/net.d".into()),
            handlers: vec!["corten".into()],
            recursive_read_only: true,
        };
        let info = info("0.1.0", "{\"a\":1}");
        let got = status(from.clone(), &info, false);
        let conditions = got.status.unwrap().conditions;
        assert_eq!((conditions[0].r#type.as_str(), conditions[0].status), ("RuntimeReady", true));
        assert_eq!((conditions[1].r#type.as_str(), conditions[1].status), ("NetworkReady", false));
        assert_eq!(conditions[1].reason, "NetworkPluginNotReady");
        assert_eq!(conditions[1].message, "no conflist in /etc/cni/net.d");
        let names: Vec<_> = got.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
        assert_eq!(names, ["", "corten"]);
        let features = got.runtime_handlers.iter().map(|handler| handler.features.unwrap());
        assert!(features.clone().all(|features| features.recursive_read_only_mounts));
        assert!(features.clone().all(|features| features.user_namespaces));
        let of_runtime = got.features.unwrap();
        assert!(of_runtime.mount_options && of_runtime.user_namespaces_host_network);
        let without = NodeStatus { user_namespaces: Err("no idmapped mounts".into()), ..from.clone() };
        let without = status(without, &info, false);
        assert!(!without.runtime_handlers[1].features.unwrap().user_namespaces);
        assert!(!without.features.unwrap().user_namespaces_host_network);
        let old = NodeStatus { recursive_read_only: false, ..from.clone() };
        let old = status(old, &info, false).runtime_handlers[0].features.unwrap();
        assert!(!old.recursive_read_only_mounts);
        assert!(got.info.is_empty());
        assert_eq!(status(from, &info, true).info["config"], "{\"a\":1}");
    }

    #[test]
    fn who_we_are() {
        let info = info("9.9.9", "");
        let got = version(&info);
        assert_eq!((got.runtime_name.as_str(), got.runtime_version.as_str()), ("corten", "9.9.9"));
        assert_eq!((got.version.as_str(), got.runtime_api_version.as_str()), ("0.1.0", "v1"));
        assert_eq!(runtime_config().linux.unwrap().cgroup_driver, wire::CgroupDriver::Cgroupfs as i32);
    }
}
