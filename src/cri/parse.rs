//! Requests to values: what a client sent becomes [`engine::config`] and [`engine::status`] types, or is refused.
//!
//! Pure functions, one module per message family. A refusal names the field by its path in the request and says
//! what was there and what would be right (`config.linux.security_context.run_as_group: set without run_as_user`).
//! Two kinds: `Invalid` for what contradicts itself or the interface, `Unsupported` for what the interface has and
//! this version does not. Nothing that changes how a workload runs is dropped silently. What clients send when they
//! ask for nothing (zeros, empty strings, empty messages) is always accepted.

pub(crate) mod container;
pub(crate) mod filter;
pub(crate) mod image;
mod mount;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod security;
pub(crate) mod sessions;
pub(crate) mod signal;

use std::fmt::Display;

use engine::config::Asked;
use engine::{Error, Kind, Result};

/// A field that contradicts itself or the interface.
pub(crate) fn invalid(field: impl Display, problem: impl Display) -> Error {
    Error::new(Kind::Invalid, format!("{field}: {problem}"))
}

/// A field that asks for something which is not built yet.
pub(crate) fn unsupported(field: impl Display, what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{field}: {what} not supported yet"))
}

/// A configuration as JSON, to be given back by verbose answers.
fn asked(message: &impl serde::Serialize) -> Result<Asked> {
    let text = serde_json::to_string(message);
    text.map(Asked).map_err(|e| Error::because(Kind::Internal, "keep what was asked for", e))
}

/// A message or string that must be there.
pub(crate) fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| invalid(field, "missing"))
}

/// An id or name that must not be empty. (An empty id would be a prefix of every id.)
pub(crate) fn filled(text: String, field: &str) -> Result<String> {
    if text.is_empty() { Err(invalid(field, "missing")) } else { Ok(text) }
}

/// A value of a protobuf enumeration, which arrives as a number.
pub(crate) fn enumeration<E: TryFrom<i32>>(number: i32, field: &str) -> Result<E> {
    E::try_from(number).map_err(|_| invalid(field, format_args!("{number} is not one of its values")))
}

/// An absolute path without `..`.
pub(crate) fn absolute(path: String, field: &str) -> Result<String> {
    if !path.starts_with('/') {
        return Err(invalid(field, format_args!("{path:?} is not an absolute path")));
    }
    inside(&path, field)?;
    Ok(path)
}

/// A path that does not climb out of where it is taken, and that the kernel can be given.
pub(crate) fn inside(path: &str, field: &str) -> Result<()> {
    if path.split('/').any(|part| part == "..") {
        return Err(invalid(field, format_args!("{path:?} contains \"..\"")));
    }
    plain(path, field)
}

/// Text without a zero byte, which no path, argument or variable can hold.
pub(crate) fn plain(text: &str, field: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(invalid(field, format_args!("{text:?} contains a zero byte")));
    }
    Ok(())
}

#[cfg(test)]
mod properties {
    //! Whatever bytes a client sends, a parser answers with a value or a refusal by field, and what it accepts can
    //! be handed to the kernel.

    use proptest::prelude::*;
    use prost::Message;

    use crate::proto::runtime::v1 as wire;

    /// A request with all fields set, so that changed bytes land in all of them.
    fn full_pod() -> wire::RunPodSandboxRequest {
        let pairs = || [("kernel.msgmax".to_owned(), "9".to_owned())].into();
        let profile = |path: &str| wire::SecurityProfile { profile_type: 2, localhost_ref: path.into() };
        wire::RunPodSandboxRequest {
            config: Some(wire::PodSandboxConfig {
                metadata: Some(wire::PodSandboxMetadata {
                    name: "web".into(),
                    uid: "u".into(),
                    namespace: "n".into(),
                    attempt: 1,
                }),
                hostname: "web-0".into(),
                log_directory: "/var/log/pods/web".into(),
                dns_config: Some(wire::DnsConfig {
                    servers: vec!["10.0.0.10".into()],
                    searches: vec!["a.b".into()],
                    options: vec!["ndots:5".into()],
                }),
                port_mappings: vec![wire::PortMapping {
                    protocol: 1,
                    container_port: 80,
                    host_port: 8080,
                    host_ip: "127.0.0.1".into(),
                }],
                labels: pairs(),
                annotations: pairs(),
                linux: Some(wire::LinuxPodSandboxConfig {
                    cgroup_parent: "/kubepods/u".into(),
                    security_context: Some(wire::LinuxSandboxSecurityContext {
                        namespace_options: Some(wire::NamespaceOption { pid: 1, ..Default::default() }),
                        run_as_user: Some(wire::Int64Value { value: 5 }),
                        run_as_group: Some(wire::Int64Value { value: 6 }),
                        supplemental_groups: vec![7],
                        seccomp: Some(profile("/a.json")),
                        apparmor: Some(profile("a")),
                        ..Default::default()
                    }),
                    sysctls: pairs(),
                    overhead: None,
                    resources: Some(wire::LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
                }),
                windows: None,
            }),
            runtime_handler: "corten".into(),
        }
    }

    fn full_container() -> wire::CreateContainerRequest {
        wire::CreateContainerRequest {
            pod_sandbox_id: "ab".into(),
            config: Some(wire::ContainerConfig {
                metadata: Some(wire::ContainerMetadata { name: "app".into(), attempt: 1 }),
                image: Some(wire::ImageSpec { image: "busybox".into(), ..Default::default() }),
                command: vec!["sh".into()],
                args: vec!["-c".into()],
                working_dir: "/w".into(),
                envs: vec![wire::KeyValue { key: "K".into(), value: b"v".to_vec() }],
                mounts: vec![wire::Mount {
                    container_path: "/data".into(),
                    host_path: "/srv".into(),
                    readonly: true,
                    propagation: 1,
                    ..Default::default()
                }],
                devices: vec![wire::Device {
                    container_path: "/dev/a".into(),
                    host_path: "/dev/null".into(),
                    permissions: "rw".into(),
                }],
                log_path: "app/0.log".into(),
                linux: Some(wire::LinuxContainerConfig {
                    resources: Some(wire::LinuxContainerResources {
                        cpu_period: 100_000,
                        cpuset_cpus: "0-1".into(),
                        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
                        ..Default::default()
                    }),
                    security_context: Some(wire::LinuxContainerSecurityContext {
                        run_as_user: Some(wire::Int64Value { value: 5 }),
                        masked_paths: vec!["/proc/kcore".into()],
                        ..Default::default()
                    }),
                }),
                stop_signal: 23,
                ..Default::default()
            }),
            sandbox_config: None,
        }
    }

    /// Overwrite some bytes of an encoded message.
    fn changed(mut bytes: Vec<u8>, changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        bytes
    }

    fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
    }

    #[test]
    fn the_starting_points_are_accepted() {
        super::pod::run(full_pod()).unwrap();
        super::container::create(full_container()).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_pod(changes in changes()) {
            let bytes = changed(full_pod().encode_to_vec(), &changes);
            let Ok(request) = wire::RunPodSandboxRequest::decode(&bytes[..]) else { return Ok(()) };
            match super::pod::run(request) {
                Ok(pod) => {
                    prop_assert!(!pod.name.name.is_empty());
                    prop_assert!(pod.cgroup_parent.is_empty() || pod.cgroup_parent.starts_with('/'));
                    prop_assert!(!pod.cgroup_parent.split('/').any(|part| part == ".."));
                    let dns = pod.dns.unwrap_or_default();
                    for line in dns.servers.iter().chain(&dns.searches).chain(&dns.options) {
                        prop_assert!(!line.contains('\n'));
                    }
                }
                Err(refusal) => prop_assert!(refusal.context.contains(": "), "{}", refusal.context),
            }
        }

        #[test]
        fn any_container(changes in changes()) {
            let bytes = changed(full_container().encode_to_vec(), &changes);
            let Ok(request) = wire::CreateContainerRequest::decode(&bytes[..]) else { return Ok(()) };
            match super::container::create(request) {
                Ok((pod, container)) => {
                    prop_assert!(!pod.is_empty() && !container.name.is_empty() && !container.image.is_empty());
                    prop_assert!(container.log_path.is_relative());
                    prop_assert!(!container.log_path.components().any(|c| c.as_os_str() == ".."));
                    for (name, value) in &container.envs {
                        prop_assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains(&0));
                    }
                    for mount in &container.mounts {
                        prop_assert!(mount.host_path.starts_with('/') && mount.container_path.starts_with('/'));
                    }
                    if let Some(uid) = container.security.run_as_user {
                        prop_assert!(u32::try_from(uid).is_ok());
                    }
                }
                Err(refusal) => prop_assert!(refusal.context.contains(": "), "{}", refusal.context),
            }
        }
    }
}
