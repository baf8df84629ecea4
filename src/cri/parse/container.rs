//! CreateContainer, ExecSync and StopContainer.

use std::path::PathBuf;
use std::time::Duration;

use engine::Result;
use engine::config::{ContainerConfig, Device, Strings};

use super::{
    absolute, filled, inside, invalid, mount, plain, required, resources, security, signal, unsupported,
};
use crate::proto::runtime::v1 as wire;

/// Annotations by which older kubelets ask for CDI devices.
const CDI_ANNOTATIONS: &str = "cdi.k8s.io/";

/// The pod that a request names and the container that it asks for.
pub(crate) fn create(request: wire::CreateContainerRequest) -> Result<(String, ContainerConfig)> {
    let pod = filled(request.pod_sandbox_id, "pod_sandbox_id")?;
    let pod_namespaces =
        request.sandbox_config.and_then(|config| config.linux?.security_context?.namespace_options);
    Ok((pod, config(required(request.config, "config")?, pod_namespaces)?))
}

/// Container, command and deadline (zero: none) of ExecSync.
pub(crate) fn exec(request: wire::ExecSyncRequest) -> Result<(String, Vec<String>, Duration)> {
    let id = filled(request.container_id, "container_id")?;
    if request.cmd.is_empty() {
        return Err(invalid("cmd", "missing"));
    }
    let seconds = u64::try_from(request.timeout)
        .map_err(|_| invalid("timeout", format_args!("{} s is negative", request.timeout)))?;
    Ok((id, arguments(request.cmd, "cmd")?, Duration::from_secs(seconds)))
}

/// Container and grace period of StopContainer. A negative one means at once: a request to stop is never refused
/// for its wording, because whoever sends it is cleaning up.
pub(crate) fn stop(request: wire::StopContainerRequest) -> Result<(String, Duration)> {
    let id = filled(request.container_id, "container_id")?;
    Ok((id, Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0))))
}

fn config(
    from: wire::ContainerConfig,
    pod_namespaces: Option<wire::NamespaceOption>,
) -> Result<ContainerConfig> {
    later(&from)?;
    let asked = super::asked(&from)?;
    let metadata = required(from.metadata, "config.metadata")?;
    let image = required(from.image, "config.image")?;
    let linux = from.linux.unwrap_or_default();
    let context = "config.linux.security_context";
    Ok(ContainerConfig {
        name: filled(metadata.name, "config.metadata.name")?,
        attempt: metadata.attempt,
        image: filled(image.image, "config.image.image")?,
        user_specified_image: image.user_specified_image,
        command: arguments(from.command, "config.command")?,
        args: arguments(from.args, "config.args")?,
        working_dir: working_dir(from.working_dir)?,
        envs: variables(from.envs)?,
        mounts: from.mounts.into_iter().enumerate().map(mount::mount).collect::<Result<_>>()?,
        devices: from.devices.into_iter().enumerate().map(device).collect::<Result<_>>()?,
        labels: from.labels,
        annotations: from.annotations,
        log_path: log_path(from.log_path)?,
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        tty: from.tty,
        resources: resources::resources(linux.resources, "config.linux.resources")?,
        security: security::container(linux.security_context, pod_namespaces, context)?,
        cdi_devices: Vec::new(),
        stop_signal: signal::stop_signal(from.stop_signal, "config.stop_signal")?,
        asked,
    })
}

/// What the interface has and this version has not.
fn later(from: &wire::ContainerConfig) -> Result<()> {
    if from.windows.is_some() {
        return Err(unsupported("config.windows", "Windows containers are"));
    }
    if let Some(device) = from.cdi_devices.first() {
        return Err(unsupported(format_args!("config.CDI_devices ({})", device.name), "CDI devices are"));
    }
    cdi_annotations(&from.annotations)
}

fn cdi_annotations(annotations: &Strings) -> Result<()> {
    match annotations.keys().find(|key| key.starts_with(CDI_ANNOTATIONS)) {
        Some(key) => Err(unsupported(format_args!("config.annotations[{key}]"), "CDI devices are")),
        None => Ok(()),
    }
}

fn arguments(from: Vec<String>, field: &str) -> Result<Vec<String>> {
    for (at, text) in from.iter().enumerate() {
        plain(text, &format!("{field}[{at}]"))?;
    }
    Ok(from)
}

fn working_dir(from: String) -> Result<String> {
    const FIELD: &str = "config.working_dir";
    if from.is_empty() || from.starts_with('/') {
        plain(&from, FIELD)?;
        return Ok(from);
    }
    Err(invalid(FIELD, format_args!("{from:?} is not an absolute path")))
}

fn variables(from: Vec<wire::KeyValue>) -> Result<Vec<(String, Vec<u8>)>> {
    let one = |(at, from): (usize, wire::KeyValue)| {
        if from.key.is_empty() || from.key.contains(['=', '\0']) {
            return Err(invalid(
                format_args!("config.envs[{at}].key"),
                format_args!("{:?} is not the name of a variable", from.key),
            ));
        }
        if from.value.contains(&0) {
            return Err(invalid(
                format_args!("config.envs[{at}].value"),
                format_args!("the value of {} contains a zero byte", from.key),
            ));
        }
        Ok((from.key, from.value))
    };
    from.into_iter().enumerate().map(one).collect()
}

fn device((at, from): (usize, wire::Device)) -> Result<Device> {
    let field = format!("config.devices[{at}]");
    let known = from.permissions.bytes().all(|letter| b"rwm".contains(&letter));
    if from.permissions.is_empty() || !known {
        return Err(invalid(
            format_args!("{field}.permissions"),
            format_args!("{:?} is not made of the letters r, w, m", from.permissions),
        ));
    }
    Ok(Device {
        container_path: absolute(from.container_path, &format!("{field}.container_path"))?,
        host_path: absolute(from.host_path, &format!("{field}.host_path"))?,
        permissions: from.permissions,
    })
}

/// The longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// It is taken under the pod's log directory and must stay there.
fn log_path(from: String) -> Result<PathBuf> {
    const FIELD: &str = "config.log_path";
    if from.starts_with('/') {
        return Err(invalid(FIELD, format_args!("{from:?} is not relative to the pod's log directory")));
    }
    inside(&from, FIELD)?;
    if let Some(name) = from.split('/').find(|name| name.len() > NAME_MAX) {
        return Err(invalid(FIELD, format_args!("{name:?} is longer than a name may be ({NAME_MAX} bytes)")));
    }
    if !from.is_empty() && matches!(from.rsplit('/').next(), Some("" | ".")) {
        return Err(invalid(FIELD, format_args!("{from:?} is a directory, not a file")));
    }
    Ok(PathBuf::from(from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Kind;

    type C = wire::ContainerConfig;

    fn least() -> C {
        C {
            metadata: Some(wire::ContainerMetadata { name: "app".into(), attempt: 1 }),
            image: Some(wire::ImageSpec { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn parse(config: C) -> Result<ContainerConfig> {
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: "ab".into(),
            config: Some(config),
            sandbox_config: None,
        };
        create(request).map(|(_, config)| config)
    }

    fn with_mount(mount: wire::Mount) -> C {
        C { mounts: vec![mount], ..least() }
    }

    fn bind() -> wire::Mount {
        wire::Mount { container_path: "/data".into(), host_path: "/srv/data".into(), ..Default::default() }
    }

    #[test]
    fn the_least_that_makes_a_container() {
        let container = parse(least()).unwrap();
        assert_eq!((container.name.as_str(), container.attempt), ("app", 1));
        assert_eq!((container.image.as_str(), container.stop_signal), ("busybox", None));
    }

    #[test]
    fn every_field_arrives() {
        let one = |a: &str, b: &str| -> Strings { [(a.to_owned(), b.to_owned())].into() };
        let container = parse(C {
            image: Some(wire::ImageSpec {
                image: "sha256:aa".into(),
                user_specified_image: "busybox:1".into(),
                ..Default::default()
            }),
            command: vec!["sh".into()],
            args: vec!["-c".into(), "true".into()],
            working_dir: "/w".into(),
            envs: vec![wire::KeyValue { key: "K".into(), value: vec![0xff] }],
            mounts: vec![wire::Mount {
                readonly: true,
                selinux_relabel: true,
                recursive_read_only: true,
                image: Some(Default::default()),
                ..bind()
            }],
            devices: vec![wire::Device {
                container_path: "/dev/a".into(),
                host_path: "/dev/null".into(),
                permissions: "mrw".into(),
            }],
            labels: one("l", "1"),
            annotations: one("a", "2"),
            log_path: "app/0.log".into(),
            stdin: true,
            stdin_once: true,
            tty: true,
            stop_signal: wire::Signal::Sigusr1 as i32,
            linux: Some(wire::LinuxContainerConfig {
                resources: Some(wire::LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
                security_context: Some(wire::LinuxContainerSecurityContext {
                    readonly_rootfs: true,
                    ..Default::default()
                }),
            }),
            ..least()
        })
        .unwrap();
        assert_eq!(
            (container.image.as_str(), container.user_specified_image.as_str()),
            ("sha256:aa", "busybox:1")
        );
        assert_eq!(
            (container.command, container.args),
            (vec!["sh".into()], vec!["-c".into(), "true".into()])
        );
        assert_eq!(container.envs, [("K".to_owned(), vec![0xff])]);
        let mount = &container.mounts[0];
        assert!(mount.readonly && mount.selinux_relabel && mount.recursive_read_only);
        assert_eq!((mount.container_path.as_str(), mount.host_path.as_str()), ("/data", "/srv/data"));
        assert_eq!(container.devices[0].permissions, "mrw");
        assert_eq!((container.labels, container.annotations), (one("l", "1"), one("a", "2")));
        assert_eq!((container.working_dir.as_str(), container.log_path), ("/w", PathBuf::from("app/0.log")));
        assert!(container.stdin && container.stdin_once && container.tty);
        assert_eq!((container.stop_signal, container.resources.cpu_shares), (Some(10), 2));
        assert!(container.security.readonly_rootfs);
    }

    #[test]
    fn refusals_name_the_field() {
        let device = |permissions: &str| wire::Device {
            container_path: "/dev/a".into(),
            host_path: "/dev/a".into(),
            permissions: permissions.into(),
        };
        let key = |key: &str| vec![wire::KeyValue { key: key.into(), value: Vec::new() }];
        for (config, expected) in [
            (C { metadata: None, ..least() }, "config.metadata: missing"),
            (C { metadata: Some(Default::default()), ..least() }, "config.metadata.name: missing"),
            (C { image: None, ..least() }, "config.image: missing"),
            (C { image: Some(Default::default()), ..least() }, "config.image.image: missing"),
            (C { args: vec!["a\0".into()], ..least() }, "config.args[0]: \"a\\0\" contains a zero byte"),
            (C { working_dir: "w".into(), ..least() }, "config.working_dir: \"w\" is not an absolute path"),
            (C { envs: key("A=B"), ..least() }, "config.envs[0].key: \"A=B\" is not the name of a variable"),
            (C { log_path: "../x".into(), ..least() }, "config.log_path: \"../x\" contains \"..\""),
            (
                C { log_path: "/x".into(), ..least() },
                "config.log_path: \"/x\" is not relative to the pod's log directory",
            ),
            (C { log_path: ".".into(), ..least() }, "config.log_path: \".\" is a directory, not a file"),
            (C { log_path: "a/".into(), ..least() }, "config.log_path: \"a/\" is a directory, not a file"),
            (
                C { log_path: format!("a/{}", "x".repeat(256)), ..least() },
                format!("config.log_path: {:?} is longer than a name may be (255 bytes)", "x".repeat(256))
                    .as_str(),
            ),
            (
                C { devices: vec![device("rx")], ..least() },
                "config.devices[0].permissions: \"rx\" is not made of the letters r, w, m",
            ),
            (C { stop_signal: 99, ..least() }, "config.stop_signal: 99 is not one of its values"),
            (
                with_mount(wire::Mount { host_path: String::new(), ..bind() }),
                "config.mounts[0].host_path: \"\" is not an absolute path",
            ),
            (
                with_mount(wire::Mount { container_path: "x".into(), ..bind() }),
                "config.mounts[0].container_path: \"x\" is not an absolute path",
            ),
            (
                with_mount(wire::Mount { recursive_read_only: true, ..bind() }),
                "config.mounts[0].recursive_read_only: set without readonly",
            ),
            (
                with_mount(wire::Mount {
                    recursive_read_only: true,
                    readonly: true,
                    propagation: 1,
                    ..bind()
                }),
                "config.mounts[0].recursive_read_only: set although propagation is not PROPAGATION_PRIVATE",
            ),
        ] {
            let error = parse(config).unwrap_err();
            assert_eq!((error.kind, error.context.as_str()), (Kind::Invalid, expected));
        }
        assert_eq!(create(Default::default()).unwrap_err().context, "pod_sandbox_id: missing");
    }

    #[test]
    fn what_is_not_built_yet_is_refused_by_name() {
        let annotation: Strings = [("cdi.k8s.io/dra".to_owned(), "v/c=d".to_owned())].into();
        for (config, start) in [
            (C { windows: Some(Default::default()), ..least() }, "config.windows: Windows containers"),
            (
                C { cdi_devices: vec![wire::CdiDevice { name: "v/c=d".into() }], ..least() },
                "config.CDI_devices (v/c=d): CDI",
            ),
            (C { annotations: annotation, ..least() }, "config.annotations[cdi.k8s.io/dra]: CDI"),
        ] {
            let error = parse(config).unwrap_err();
            assert_eq!(error.kind, Kind::Unsupported);
            assert!(error.context.starts_with(start), "{}", error.context);
        }
    }

    #[test]
    fn exec_and_stop() {
        let request = wire::ExecSyncRequest { container_id: "ab".into(), cmd: vec!["ls".into()], timeout: 3 };
        assert_eq!(exec(request.clone()).unwrap(), ("ab".into(), vec!["ls".into()], Duration::from_secs(3)));
        let none = wire::ExecSyncRequest { cmd: Vec::new(), ..request.clone() };
        assert_eq!(exec(none).unwrap_err().context, "cmd: missing");
        let negative = wire::ExecSyncRequest { timeout: -1, ..request };
        assert_eq!(exec(negative).unwrap_err().context, "timeout: -1 s is negative");
        let request = wire::StopContainerRequest { container_id: "ab".into(), timeout: -5 };
        assert_eq!(stop(request).unwrap(), ("ab".into(), Duration::ZERO));
        assert_eq!(stop(Default::default()).unwrap_err().context, "container_id: missing");
    }

    #[test]
    fn what_was_asked_is_kept_with_the_names_of_the_interface() {
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: "ab".into(),
            config: Some(wire::ContainerConfig {
                metadata: Some(wire::ContainerMetadata { name: "app".into(), attempt: 2 }),
                image: Some(wire::ImageSpec { image: "busybox".into(), ..Default::default() }),
                command: vec!["sh".into()],
                envs: vec![wire::KeyValue { key: "A".into(), value: "b".into() }],
                mounts: vec![wire::Mount {
                    container_path: "/data".into(),
                    host_path: "/srv".into(),
                    propagation: wire::MountPropagation::PropagationBidirectional as i32,
                    ..Default::default()
                }],
                labels: [("l".to_owned(), "1".to_owned())].into(),
                log_path: "app/2.log".into(),
                linux: Some(wire::LinuxContainerConfig {
                    resources: Some(wire::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
                    security_context: Some(wire::LinuxContainerSecurityContext {
                        run_as_user: Some(wire::Int64Value { value: 1000 }),
                        namespace_options: Some(wire::NamespaceOption {
                            pid: wire::NamespaceMode::Container as i32,
                            ..Default::default()
                        }),
                        ..Default::default()
                    }),
                }),
                ..Default::default()
            }),
            sandbox_config: None,
        };
        let (_, config) = create(request).unwrap();
        let asked: serde_json::Value = serde_json::from_str(&config.asked.0).unwrap();
        let expected = serde_json::json!({
            "metadata": {"name": "app", "attempt": 2},
            "image": {"image": "busybox"},
            "command": ["sh"],
            "envs": [{"key": "A", "value": "b"}],
            "mounts": [{"container_path": "/data", "host_path": "/srv", "propagation": 2}],
            "labels": {"l": "1"},
            "log_path": "app/2.log",
            "linux": {
                "resources": {"cpu_shares": 512},
                "security_context": {"run_as_user": {"value": 1000}, "namespace_options": {"pid": 1}},
            },
        });
        assert_eq!(asked, expected);
    }

    #[test]
    fn names_that_are_not_in_snake_case_stay_as_they_are() {
        let map = wire::IdMapping { host_id: 65536, container_id: 0, length: 65536 };
        let mount = wire::Mount { uid_mappings: vec![map], ..Default::default() };
        let json = serde_json::to_value(mount).unwrap();
        assert_eq!(json, serde_json::json!({"uidMappings": [{"host_id": 65536, "length": 65536}]}));
    }
}
