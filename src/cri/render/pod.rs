//! PodSandboxStatus and ListPodSandbox.

use engine::config::{PodName, Strings};
use engine::status::{PodSnapshot, PodState, PodStatus};

use super::{container, namespaces};
use crate::proto::runtime::v1 as wire;

/// One pod with its containers, with `info` when it was asked for.
pub(crate) fn status(from: &PodSnapshot, info: Strings) -> wire::PodSandboxStatusResponse {
    let statuses = from.containers.iter().filter_map(|one| container::status(one, Strings::new()).status);
    wire::PodSandboxStatusResponse {
        status: Some(of(&from.pod)),
        info,
        containers_statuses: statuses.collect(),
        timestamp: from.at,
    }
}

/// One pod.
pub(crate) fn of(from: &PodStatus) -> wire::PodSandboxStatus {
    let mut ips = from.ips.iter().map(ToString::to_string);
    let network = wire::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| wire::PodIp { ip }).collect(),
    };
    let options = Some(namespaces(&from.config.namespaces));
    wire::PodSandboxStatus {
        id: from.id.to_string(),
        metadata: Some(metadata(&from.config.name)),
        state: state(from.state),
        created_at: from.created_at,
        network: Some(network),
        linux: Some(wire::LinuxPodSandboxStatus { namespaces: Some(wire::Namespace { options }) }),
        labels: from.config.labels.clone(),
        annotations: from.config.annotations.clone(),
        runtime_handler: from.config.runtime_handler.clone(),
    }
}

/// One pod in a list.
pub(crate) fn item(from: &PodStatus) -> wire::PodSandbox {
    wire::PodSandbox {
        id: from.id.to_string(),
        metadata: Some(metadata(&from.config.name)),
        state: state(from.state),
        created_at: from.created_at,
        labels: from.config.labels.clone(),
        annotations: from.config.annotations.clone(),
        runtime_handler: from.config.runtime_handler.clone(),
    }
}

pub(super) fn metadata(from: &PodName) -> wire::PodSandboxMetadata {
    wire::PodSandboxMetadata {
        name: from.name.clone(),
        uid: from.uid.clone(),
        namespace: from.namespace.clone(),
        attempt: from.attempt,
    }
}

fn state(from: PodState) -> i32 {
    match from {
        PodState::Ready => wire::PodSandboxState::SandboxReady as i32,
        PodState::NotReady => wire::PodSandboxState::SandboxNotready as i32,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use engine::config::PodConfig;
    use engine::status::ContainerState;
    use oci::PodId;

    /// Pod n/web, attempt 3, id 0707…, made at 42, not ready.
    pub(crate) fn pod(ips: &[&str]) -> PodStatus {
        let config = crate::parse::pod::run(wire::RunPodSandboxRequest {
            config: Some(wire::PodSandboxConfig {
                metadata: Some(wire::PodSandboxMetadata {
                    name: "web".into(),
                    uid: "u".into(),
                    namespace: "n".into(),
                    attempt: 3,
                }),
                labels: [("l".to_owned(), "1".to_owned())].into(),
                annotations: [("a".to_owned(), "2".to_owned())].into(),
                ..Default::default()
            }),
            runtime_handler: "corten".into(),
        });
        let config: PodConfig = config.unwrap();
        PodStatus {
            id: PodId::from_random([7; 32]),
            config: config.into(),
            state: PodState::NotReady,
            created_at: 42,
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            limits: Default::default(),
            pid: None,
            selinux_level: String::new(),
            netns: None,
        }
    }

    #[test]
    fn what_was_asked_for_comes_back() {
        let from = PodSnapshot {
            at: 7,
            pod: pod(&["10.0.0.2", "fd00::2"]),
            containers: vec![super::container::tests::container(ContainerState::Created)],
        };
        let answer = status(&from, [("pid".to_owned(), "1".to_owned())].into());
        assert_eq!((answer.info["pid"].as_str(), answer.timestamp), ("1", 7));
        assert_eq!(answer.containers_statuses[0].metadata.as_ref().unwrap().name, "app");
        let status = answer.status.unwrap();
        assert_eq!((status.id.len(), status.created_at, status.state), (64, 42, 1));
        let metadata = status.metadata.unwrap();
        assert_eq!((metadata.name.as_str(), metadata.attempt), ("web", 3));
        assert_eq!((status.labels["l"].as_str(), status.annotations["a"].as_str()), ("1", "2"));
        assert_eq!(status.runtime_handler, "corten");
        let network = status.network.unwrap();
        assert_eq!((network.ip.as_str(), network.additional_ips[0].ip.as_str()), ("10.0.0.2", "fd00::2"));
    }

    #[test]
    fn a_pod_on_the_nodes_network_has_no_address() {
        let network = of(&pod(&[])).network.unwrap();
        assert_eq!((network.ip.as_str(), network.additional_ips.len()), ("", 0));
    }

    #[test]
    fn a_list_says_the_same_as_the_status() {
        let pod = pod(&[]);
        let (item, status) = (item(&pod), of(&pod));
        assert_eq!((item.id, item.metadata, item.state), (status.id, status.metadata, status.state));
        assert_eq!((item.labels, item.annotations), (status.labels, status.annotations));
        assert_eq!((item.created_at, item.runtime_handler), (status.created_at, status.runtime_handler));
    }
}
