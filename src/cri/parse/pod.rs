//! RunPodSandbox.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use engine::Result;
use engine::config::{Dns, NamespaceMode, PodConfig, PodName, PortMapping, Protocol};

use super::{absolute, enumeration, filled, invalid, required, resources, security, unsupported};
use crate::proto::runtime::v1 as wire;

/// Longest name that the kernel takes as a host name.
const HOSTNAME_MAX: usize = 64;

/// The pod that a request asks for.
pub(crate) fn run(request: wire::RunPodSandboxRequest) -> Result<PodConfig> {
    let from = required(request.config, "config")?;
    if from.windows.is_some() {
        return Err(unsupported("config.windows", "Windows pods are"));
    }
    let asked = super::asked(&from)?;
    let linux = from.linux.unwrap_or_default();
    let (security, namespaces) = security::pod(linux.security_context, "config.linux.security_context")?;
    Ok(PodConfig {
        name: name(from.metadata)?,
        hostname: hostname(from.hostname)?,
        log_directory: log_directory(from.log_directory)?,
        dns: dns(from.dns_config)?,
        port_mappings: port_mappings(from.port_mappings, namespaces.network == NamespaceMode::Node)?,
        labels: from.labels,
        annotations: from.annotations,
        cgroup_parent: cgroup_parent(linux.cgroup_parent)?,
        namespaces,
        sysctls: linux.sysctls,
        privileged: security.privileged,
        security,
        resources: resources::resources(linux.resources, "config.linux.resources")?,
        overhead: resources::resources(linux.overhead, "config.linux.overhead")?,
        runtime_handler: request.runtime_handler,
        asked,
    })
}

fn name(from: Option<wire::PodSandboxMetadata>) -> Result<PodName> {
    let from = required(from, "config.metadata")?;
    Ok(PodName {
        name: filled(from.name, "config.metadata.name")?,
        uid: from.uid,
        namespace: from.namespace,
        attempt: from.attempt,
    })
}

/// It goes into sethostname(2) and /etc/hostname.
fn hostname(from: String) -> Result<String> {
    if from.len() > HOSTNAME_MAX {
        return Err(invalid("config.hostname", format_args!("{from:?} is longer than {HOSTNAME_MAX} bytes")));
    }
    if from.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(invalid("config.hostname", format_args!("{from:?} is not a host name")));
    }
    Ok(from)
}

fn log_directory(from: String) -> Result<PathBuf> {
    if from.is_empty() {
        return Ok(PathBuf::new());
    }
    absolute(from, "config.log_directory").map(PathBuf::from)
}

/// Each value becomes part of a line of resolv.conf, and must not become another line.
fn dns(from: Option<wire::DnsConfig>) -> Result<Option<Dns>> {
    let from = from.unwrap_or_default();
    if from == wire::DnsConfig::default() {
        return Ok(None);
    }
    for (list, name) in [(&from.servers, "servers"), (&from.searches, "searches"), (&from.options, "options")]
    {
        if let Some(at) = list.iter().position(|text| text.contains(char::is_control)) {
            return Err(invalid(
                format_args!("config.dns_config.{name}[{at}]"),
                format_args!("{:?} contains a control character", list[at]),
            ));
        }
    }
    Ok(Some(Dns { servers: from.servers, searches: from.searches, options: from.options }))
}

/// In a pod that uses the node's network there is nothing to map: they only say which ports it uses.
fn port_mappings(from: Vec<wire::PortMapping>, nodes_network: bool) -> Result<Vec<PortMapping>> {
    let one = |(at, from): (usize, wire::PortMapping)| {
        let field = format!("config.port_mappings[{at}]");
        let container_port = port(from.container_port, &format!("{field}.container_port"))?;
        let host_port = port(from.host_port, &format!("{field}.host_port"))?;
        if host_port != 0 && container_port == 0 {
            return Err(invalid(format_args!("{field}.container_port"), "missing"));
        }
        let protocol = match enumeration(from.protocol, &format!("{field}.protocol"))? {
            wire::Protocol::Tcp => Protocol::Tcp,
            wire::Protocol::Udp => Protocol::Udp,
            wire::Protocol::Sctp => Protocol::Sctp,
        };
        Ok(PortMapping {
            protocol,
            container_port,
            host_port,
            host_ip: host_ip(&from.host_ip, &format!("{field}.host_ip"))?,
        })
    };
    let all: Vec<PortMapping> = from.into_iter().enumerate().map(one).collect::<Result<_>>()?;
    if !nodes_network {
        all.iter().enumerate().try_for_each(|(at, port)| can_be_mapped(port, &all[..at], at))?;
    }
    Ok(all)
}

/// What no network could do: one port of the host that leads to two places, or one that is reached through `::1`, from which
/// the kernel does not route.
fn can_be_mapped(port: &PortMapping, before: &[PortMapping], at: usize) -> Result<()> {
    let field = |name: &str| format!("config.port_mappings[{at}].{name}");
    if port.host_port == 0 {
        return Ok(());
    }
    if port.host_ip == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
        let why = "::1 cannot lead to a pod: the kernel does not route from it; 127.0.0.1 works";
        return Err(invalid(field("host_ip"), why));
    }
    let place = |of: &PortMapping| (of.protocol, of.host_port, of.host_ip);
    match before.iter().position(|other| place(other) == place(port)) {
        Some(other) => {
            let why = format!("{} is mapped by port_mappings[{other}] already", port.host_port);
            Err(invalid(field("host_port"), why))
        }
        None => Ok(()),
    }
}

fn port(number: i32, field: &str) -> Result<u16> {
    u16::try_from(number).map_err(|_| invalid(field, format_args!("{number} is not a port (0 to 65535)")))
}

fn host_ip(text: &str, field: &str) -> Result<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse().map_err(|_| invalid(field, format_args!("{text:?} is not an IP address")))?;
    Ok(Some(address))
}

/// We make cgroups as directories, so a parent is a path; systemd's `a-b.slice` alone would be another cgroup.
fn cgroup_parent(from: String) -> Result<String> {
    const FIELD: &str = "config.linux.cgroup_parent";
    if from.contains(char::is_control) {
        return Err(invalid(FIELD, format_args!("{from:?} contains a control character")));
    }
    if from.is_empty() { Ok(from) } else { absolute(from, FIELD) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Kind;
    use engine::config::Resources;

    fn metadata() -> Option<wire::PodSandboxMetadata> {
        Some(wire::PodSandboxMetadata {
            name: "web".into(),
            uid: "u1".into(),
            namespace: "default".into(),
            attempt: 2,
        })
    }

    fn config() -> wire::PodSandboxConfig {
        wire::PodSandboxConfig { metadata: metadata(), ..Default::default() }
    }

    fn parse(config: wire::PodSandboxConfig) -> Result<PodConfig> {
        run(wire::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() })
    }

    fn refusal(config: wire::PodSandboxConfig) -> String {
        let error = parse(config).unwrap_err();
        assert_eq!(error.kind, Kind::Invalid);
        error.context
    }

    #[test]
    fn the_least_that_makes_a_pod() {
        let pod = parse(config()).unwrap();
        assert_eq!((pod.name.name.as_str(), pod.name.attempt), ("web", 2));
        assert_eq!((pod.dns, pod.cgroup_parent.as_str()), (None, ""));
        assert_eq!(pod.resources, Resources::default());
    }

    #[test]
    fn every_field_arrives() {
        let one = |a: &str, b: &str| [(a.to_owned(), b.to_owned())].into();
        let full = wire::PodSandboxConfig {
            metadata: metadata(),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/web".into(),
            dns_config: Some(wire::DnsConfig {
                servers: vec!["10.0.0.10".into()],
                searches: vec!["svc.local".into()],
                options: vec!["ndots:5".into()],
            }),
            port_mappings: vec![wire::PortMapping {
                protocol: wire::Protocol::Udp as i32,
                container_port: 53,
                host_port: 5353,
                host_ip: "::1".into(),
            }],
            labels: one("l", "1"),
            annotations: one("a", "2"),
            linux: Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/podu1".into(),
                security_context: Some(wire::LinuxSandboxSecurityContext {
                    privileged: true,
                    namespace_options: Some(wire::NamespaceOption {
                        network: wire::NamespaceMode::Node as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                sysctls: one("kernel.shm_rmid_forced", "1"),
                overhead: Some(wire::LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
                resources: Some(wire::LinuxContainerResources { cpu_shares: 3, ..Default::default() }),
            }),
            windows: None,
        };
        let pod =
            run(wire::RunPodSandboxRequest { config: Some(full), runtime_handler: "corten".into() }).unwrap();
        assert_eq!((pod.hostname.as_str(), pod.log_directory), ("web-0", PathBuf::from("/var/log/pods/web")));
        assert_eq!(pod.dns.unwrap().options, ["ndots:5"]);
        let port = &pod.port_mappings[0];
        assert_eq!((port.protocol, port.container_port, port.host_port), (Protocol::Udp, 53, 5353));
        assert_eq!(port.host_ip, Some("::1".parse().unwrap()));
        assert_eq!((pod.labels, pod.annotations), (one("l", "1"), one("a", "2")));
        assert_eq!((pod.cgroup_parent.as_str(), pod.privileged), ("/kubepods/podu1", true));
        assert_eq!(
            (pod.namespaces.network, pod.sysctls),
            (NamespaceMode::Node, one("kernel.shm_rmid_forced", "1"))
        );
        assert_eq!((pod.overhead.cpu_shares, pod.resources.cpu_shares), (2, 3));
        assert_eq!(pod.runtime_handler, "corten");
    }

    #[test]
    fn refusals_name_the_field() {
        type C = wire::PodSandboxConfig;
        let port = |container_port, host_port, host_ip: &str| C {
            port_mappings: vec![wire::PortMapping {
                container_port,
                host_port,
                host_ip: host_ip.into(),
                protocol: 0,
            }],
            ..config()
        };
        let parent = |text: &str| C {
            linux: Some(wire::LinuxPodSandboxConfig { cgroup_parent: text.into(), ..Default::default() }),
            ..config()
        };
        for (config, expected) in [
            (C::default(), "config.metadata: missing"),
            (C { metadata: Some(Default::default()), ..config() }, "config.metadata.name: missing"),
            (C { hostname: "a\nb".into(), ..config() }, "config.hostname: \"a\\nb\" is not a host name"),
            (
                C { log_directory: "logs".into(), ..config() },
                "config.log_directory: \"logs\" is not an absolute path",
            ),
            (port(-1, 0, ""), "config.port_mappings[0].container_port: -1 is not a port (0 to 65535)"),
            (port(80, 70_000, ""), "config.port_mappings[0].host_port: 70000 is not a port (0 to 65535)"),
            (port(0, 80, ""), "config.port_mappings[0].container_port: missing"),
            (
                port(80, 80, "localhost"),
                "config.port_mappings[0].host_ip: \"localhost\" is not an IP address",
            ),
            (parent("a.slice"), "config.linux.cgroup_parent: \"a.slice\" is not an absolute path"),
            (parent("/a\nb"), "config.linux.cgroup_parent: \"/a\\nb\" contains a control character"),
            (parent("/a/../b"), "config.linux.cgroup_parent: \"/a/../b\" contains \"..\""),
        ] {
            assert_eq!(refusal(config), expected);
        }
        assert_eq!(run(Default::default()).unwrap_err().context, "config: missing");
    }

    #[test]
    fn a_host_port_leads_to_one_place() {
        let port = |protocol: wire::Protocol, container_port, host_port, host_ip: &str| wire::PortMapping {
            protocol: protocol as i32,
            container_port,
            host_port,
            host_ip: host_ip.into(),
        };
        let (tcp, udp) = (wire::Protocol::Tcp, wire::Protocol::Udp);
        let with = |port_mappings| wire::PodSandboxConfig { port_mappings, ..config() };
        let twice = vec![port(tcp, 80, 8080, ""), port(tcp, 81, 8080, "")];
        assert_eq!(
            refusal(with(twice.clone())),
            "config.port_mappings[1].host_port: 8080 is mapped by port_mappings[0] already"
        );
        let text = refusal(with(vec![port(tcp, 80, 8080, "::1")]));
        assert!(text.starts_with("config.port_mappings[0].host_ip: ::1 cannot lead to a pod"), "{text}");
        // another protocol or address is another port, and 0 is none
        let others = vec![
            port(tcp, 80, 8080, ""),
            port(udp, 80, 8080, ""),
            port(tcp, 80, 8080, "10.0.0.1"),
            port(tcp, 80, 0, "::1"),
            port(tcp, 80, 0, "::1"),
        ];
        assert_eq!(parse(with(others)).unwrap().port_mappings.len(), 5);
        // on the node's network nothing is mapped
        let security_context = Some(wire::LinuxSandboxSecurityContext {
            namespace_options: Some(wire::NamespaceOption {
                network: wire::NamespaceMode::Node as i32,
                ..Default::default()
            }),
            ..Default::default()
        });
        let linux = Some(wire::LinuxPodSandboxConfig { security_context, ..Default::default() });
        parse(wire::PodSandboxConfig { linux, ..with(twice) }).unwrap();
    }

    #[test]
    fn a_name_server_cannot_add_lines_to_resolv_conf() {
        let dns = wire::DnsConfig { servers: vec!["1.1.1.1\noptions debug".into()], ..Default::default() };
        let text = refusal(wire::PodSandboxConfig { dns_config: Some(dns), ..config() });
        assert!(text.starts_with("config.dns_config.servers[0]: "), "{text}");
    }

    #[test]
    fn an_empty_dns_message_is_the_nodes() {
        let pod = parse(wire::PodSandboxConfig { dns_config: Some(Default::default()), ..config() }).unwrap();
        assert_eq!(pod.dns, None);
    }

    #[test]
    fn what_was_asked_is_kept_with_the_names_of_the_interface() {
        let from = wire::PodSandboxConfig {
            metadata: Some(wire::PodSandboxMetadata {
                name: "web".into(),
                uid: "u".into(),
                ..Default::default()
            }),
            port_mappings: vec![wire::PortMapping {
                container_port: 80,
                host_port: 8080,
                ..Default::default()
            }],
            dns_config: Some(wire::DnsConfig { servers: vec!["10.0.0.10".into()], ..Default::default() }),
            linux: Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/x".into(),
                sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let config = run(wire::RunPodSandboxRequest { config: Some(from), ..Default::default() }).unwrap();
        let expected = r#"{"metadata":{"name":"web","uid":"u"},"dns_config":{"servers":["10.0.0.10"]},"port_mappings":[{"container_port":80,"host_port":8080}],"linux":{"cgroup_parent":"/kubepods/x","sysctls":{"net.ipv4.ip_forward":"1"}}}"#;
        assert_eq!(config.asked.0, expected);
    }
}
