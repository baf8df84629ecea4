//! What a pod shows of itself: a snapshot that its owner task replaces whole, and that anybody reads without waiting.

use std::collections::BTreeMap;
use std::sync::Arc;

use oci::ContainerId;

use crate::admission::{PodStage, Stage, phase_of};
use crate::container::Farewell;
use crate::record::PodRecord;
use crate::status::{ContainerFilter, ContainerStatus, PodFilter, PodStatus};

/// A container's snapshot.
#[derive(Clone, Debug)]
pub(crate) struct ContainerView {
    pub(crate) stage: Stage,
    pub(crate) status: ContainerStatus,
    /// Its cgroup.
    pub(crate) cgroup: String,
    /// Why it ends, when that is its removal.
    pub(crate) farewell: Farewell,
}

/// A pod's snapshot.
#[derive(Clone, Debug)]
pub(crate) struct PodView {
    pub(crate) stage: PodStage,
    /// Clients may know it.
    pub(crate) listed: bool,
    pub(crate) status: PodStatus,
    /// Its cgroup.
    pub(crate) cgroup: String,
    pub(crate) containers: BTreeMap<ContainerId, ContainerView>,
}

/// The pod's part of a snapshot.
pub(crate) fn pod_status(record: &PodRecord, stage: PodStage, pid: Option<i32>) -> PodStatus {
    let ready = stage == PodStage::Ready;
    PodStatus {
        id: record.id.clone(),
        config: record.config.clone(),
        state: stage.state(),
        created_at: record.created_at,
        ips: if ready { record.ips.clone() } else { Vec::new() },
        limits: record.limits.clone(),
        pid,
        netns: record.netns.clone().filter(|_| ready),
        selinux_level: record.selinux_level.clone(),
    }
}

/// The first snapshot of a pod.
pub(crate) fn first(record: &PodRecord, stage: PodStage) -> Arc<PodView> {
    Arc::new(PodView {
        stage,
        listed: false,
        status: pod_status(record, stage, None),
        cgroup: record.cgroup.clone(),
        containers: BTreeMap::new(),
    })
}

impl PodView {
    /// Whether a filter wants this pod. The id in it may be a prefix.
    pub(crate) fn matches(&self, filter: &PodFilter) -> bool {
        self.listed
            && self.status.id.as_str().starts_with(&filter.id)
            && filter.state.is_none_or(|state| state == self.status.state)
            && contains(&self.status.config.labels, &filter.labels)
    }
}

impl ContainerView {
    /// Whether a filter wants this container. The ids in it may be prefixes.
    pub(crate) fn matches(&self, filter: &ContainerFilter) -> bool {
        self.status.id.as_str().starts_with(&filter.id)
            && self.status.pod.as_str().starts_with(&filter.pod)
            && filter.phase.is_none_or(|phase| phase == phase_of(&self.status.state))
            && contains(&self.status.config.labels, &filter.labels)
    }
}

fn contains(labels: &crate::config::Strings, wanted: &crate::config::Strings) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
