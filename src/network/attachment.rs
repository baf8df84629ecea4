//! What a pod asks of its network, what it got, and how both look in CNI's words.
//!
//! Names and forms are those that containerd and CRI-O use: `CNI_ARGS` with `K8S_POD_*`, and the capabilities
//! `portMappings`, `bandwidth`, `dns`, `cgroupPath` and `io.kubernetes.cri.pod-annotations`, each for the plugins whose
//! configuration asks for it. The CRI has nothing that `ips`, `mac`, `infinibandGUID`, `ipRanges` or `aliases` could be
//! filled from, so nobody gets them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use oci::id::PodId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result};

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the host that leads to one of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port that the pod listens on.
    pub container_port: u16,
    /// The host's port; 0 only documents the container's, nothing is mapped.
    pub host_port: u16,
    /// Only on this address of the host; all without.
    pub host_ip: Option<IpAddr>,
}

/// The resolver configuration of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// What a pod asks of its network.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The pod.
    pub pod: PodId,
    /// Its Kubernetes name.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its Kubernetes uid.
    pub uid: String,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortMapping>,
    /// The pod's cgroup, for plugins with the `cgroupPath` capability. May be empty.
    pub cgroup_parent: String,
    /// The pod's annotations; `kubernetes.io/ingress-bandwidth` and `…/egress-bandwidth` limit its traffic.
    pub annotations: BTreeMap<String, String>,
    /// Its resolver configuration, for plugins with the `dns` capability.
    pub dns: Option<Dns>,
}

/// What a pod got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The pinned namespace.
    pub netns: PathBuf,
    /// The pod's addresses, in the order of the result.
    pub ips: Vec<IpAddr>,
}

/// The largest burst that the bandwidth plugin takes, in bits.
const BURST: u64 = i32::MAX as u64;

impl Attachment {
    /// `CNI_ARGS`, by the names that Kubernetes' plugins know.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when a value would change the list's structure.
    pub(crate) fn args(&self) -> Result<String> {
        let pairs = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", self.namespace.as_str()),
            ("K8S_POD_NAME", self.name.as_str()),
            ("K8S_POD_INFRA_CONTAINER_ID", self.pod.as_str()),
            ("K8S_POD_UID", self.uid.as_str()),
        ];
        for (key, value) in pairs {
            if let Some(bad) = value.chars().find(|c| matches!(c, ';' | '=' | '\0' | '\n')) {
                let message = format!("{key} {value:?} cannot be passed to CNI plugins: it contains {bad:?}");
                return Err(Error::new(Kind::Invalid, message));
            }
        }
        Ok(pairs.map(|(key, value)| format!("{key}={value}")).join(";"))
    }

    /// Everything that a plugin may get as `runtimeConfig`, by capability.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when a bandwidth annotation is no quantity.
    pub(crate) fn capabilities(&self) -> Result<Map<String, Value>> {
        let mut all = Map::new();
        let ports: Vec<Value> = self.ports.iter().filter(|p| p.host_port != 0).map(port).collect();
        if !ports.is_empty() {
            all.insert("portMappings".to_owned(), json!(ports));
        }
        if let Some(bandwidth) = self.bandwidth()? {
            all.insert("bandwidth".to_owned(), bandwidth);
        }
        if let Some(dns) = &self.dns {
            let value = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
            all.insert("dns".to_owned(), value);
        }
        if !self.cgroup_parent.is_empty() {
            all.insert("cgroupPath".to_owned(), json!(self.cgroup_parent));
        }
        if !self.annotations.is_empty() {
            all.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(self.annotations));
        }
        // our namespaces go right after DEL; see corten-bridge
        all.insert("io.corten.netns-ends".to_owned(), json!(true));
        Ok(all)
    }

    fn bandwidth(&self) -> Result<Option<Value>> {
        let mut value = Map::new();
        for direction in ["ingress", "egress"] {
            let key = format!("kubernetes.io/{direction}-bandwidth");
            let Some(text) = self.annotations.get(&key) else { continue };
            let rate = quantity(text)
                .filter(|rate| (1_000..=1_000_000_000_000_000).contains(rate))
                .ok_or_else(|| {
                    let message =
                        format!("annotation {key}: {text:?} is no rate between 1k and 1P bits per second");
                    Error::new(Kind::Invalid, message)
                })?;
            value.insert(format!("{direction}Rate"), json!(rate));
            value.insert(format!("{direction}Burst"), json!(BURST));
        }
        Ok(if value.is_empty() { None } else { Some(Value::Object(value)) })
    }
}

fn port(mapping: &PortMapping) -> Value {
    let mut value = json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol,
    });
    if let Some(ip) = mapping.host_ip {
        value["hostIP"] = json!(ip);
    }
    value
}

/// A Kubernetes quantity as a whole number: `10M`, `1.5Gi`, `1e6`, `500k`.
pub(crate) fn quantity(text: &str) -> Option<u64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E').unwrap_or(text.len());
    // a trailing E is the suffix exa, an e with digits after it an exponent
    let at = if text.ends_with(['E', 'e']) { text.len() - 1 } else { at };
    let (number, suffix) = text.split_at(at);
    let scale: f64 = match suffix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "m" => 1e-3,
        _ => return None,
    };
    let plain = |c: char| c.is_ascii_digit() || ".+-eE".contains(c);
    if number.is_empty() || !number.chars().all(plain) {
        return None;
    }
    let value = (number.parse::<f64>().ok()? * scale).ceil();
    if (0.0..1.8e19).contains(&value) { Some(value as u64) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities() {
        for (text, value) in [
            ("10M", 10_000_000),
            ("1Ki", 1024),
            ("1.5k", 1500),
            ("1e6", 1_000_000),
            ("1E", 10u64.pow(18)),
            ("7", 7),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for text in ["", "M", "10X", "ten", "-5M", "inf", "NaN", "1 M"] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn what_would_change_the_list_is_named() {
        for (name, found) in [("a;b", "';'"), ("a=b", "'='"), ("a\0b", "'\\0'"), ("a\nb", "'\\n'")] {
            let pod = Attachment {
                pod: PodId::from_random([1; 32]),
                name: name.to_owned(),
                namespace: "n".to_owned(),
                uid: "u".to_owned(),
                ports: Vec::new(),
                cgroup_parent: String::new(),
                annotations: BTreeMap::new(),
                dns: None,
            };
            let error = pod.args().unwrap_err();
            assert_eq!(error.kind, Kind::Invalid);
            let text = error.to_string();
            assert!(
                text.ends_with(&format!(
                    "K8S_POD_NAME {name:?} cannot be passed to CNI plugins: it contains {found}"
                )),
                "{text}"
            );
            assert!(!text.contains(char::is_control), "{text}");
        }
    }

    proptest! {
        #[test]
        fn foreign_quantities_never_panic(text in ".{0,20}") {
            let _ = quantity(&text);
        }
    }
}
