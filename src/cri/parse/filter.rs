//! Filters of the list calls.

use engine::Result;
use engine::status::{ContainerFilter, ContainerPhase, PodFilter, PodState};

use super::enumeration;
use crate::proto::runtime::v1 as wire;

/// Which pods to list.
pub(crate) fn pods(from: Option<wire::PodSandboxFilter>) -> Result<PodFilter> {
    let from = from.unwrap_or_default();
    let state = match from.state {
        None => None,
        Some(value) => Some(match enumeration(value.state, "filter.state")? {
            wire::PodSandboxState::SandboxReady => PodState::Ready,
            wire::PodSandboxState::SandboxNotready => PodState::NotReady,
        }),
    };
    Ok(PodFilter { id: from.id, state, labels: from.label_selector })
}

/// Whose figures to list, of pods.
pub(crate) fn pod_stats(from: Option<wire::PodSandboxStatsFilter>) -> PodFilter {
    let from = from.unwrap_or_default();
    PodFilter { id: from.id, state: None, labels: from.label_selector }
}

/// Which containers to list.
pub(crate) fn containers(from: Option<wire::ContainerFilter>) -> Result<ContainerFilter> {
    let from = from.unwrap_or_default();
    let phase = match from.state {
        None => None,
        Some(value) => Some(match enumeration(value.state, "filter.state")? {
            wire::ContainerState::ContainerCreated => ContainerPhase::Created,
            wire::ContainerState::ContainerRunning => ContainerPhase::Running,
            wire::ContainerState::ContainerExited => ContainerPhase::Exited,
            wire::ContainerState::ContainerUnknown => ContainerPhase::Unknown,
        }),
    };
    Ok(ContainerFilter { id: from.id, pod: from.pod_sandbox_id, phase, labels: from.label_selector })
}

/// Whose figures to list.
pub(crate) fn stats(from: Option<wire::ContainerStatsFilter>) -> ContainerFilter {
    let from = from.unwrap_or_default();
    ContainerFilter { id: from.id, pod: from.pod_sandbox_id, phase: None, labels: from.label_selector }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asked_for_matches_all() {
        let pods = pods(None).unwrap();
        assert!(pods.id.is_empty() && pods.state.is_none() && pods.labels.is_empty());
        let containers = containers(Some(Default::default())).unwrap();
        assert!(containers.id.is_empty() && containers.pod.is_empty() && containers.phase.is_none());
    }

    #[test]
    fn every_field_arrives() {
        let labels: engine::config::Strings = [("a".to_owned(), "b".to_owned())].into();
        let filter = pods(Some(wire::PodSandboxFilter {
            id: "ab".into(),
            state: Some(wire::PodSandboxStateValue { state: 1 }),
            label_selector: labels.clone(),
        }))
        .unwrap();
        assert_eq!(
            (filter.id.as_str(), filter.state, &filter.labels),
            ("ab", Some(PodState::NotReady), &labels)
        );
        for (state, phase) in [
            (0, ContainerPhase::Created),
            (1, ContainerPhase::Running),
            (2, ContainerPhase::Exited),
            (3, ContainerPhase::Unknown),
        ] {
            let filter = containers(Some(wire::ContainerFilter {
                id: "ab".into(),
                state: Some(wire::ContainerStateValue { state }),
                pod_sandbox_id: "cd".into(),
                label_selector: labels.clone(),
            }))
            .unwrap();
            assert_eq!((filter.id.as_str(), filter.pod.as_str()), ("ab", "cd"));
            assert_eq!((filter.phase, &filter.labels), (Some(phase), &labels));
        }
    }

    #[test]
    fn an_unknown_state_is_refused() {
        let filter = wire::PodSandboxFilter {
            state: Some(wire::PodSandboxStateValue { state: 9 }),
            ..Default::default()
        };
        assert_eq!(pods(Some(filter)).unwrap_err().context, "filter.state: 9 is not one of its values");
    }
}
