//! GetContainerEvents.

use engine::config::Strings;
use engine::events::{Event, Happening};

use super::{container, pod};
use crate::proto::runtime::v1 as wire;

/// One event, with the pod and its containers right after it.
pub(crate) fn event(from: &Event) -> wire::ContainerEventResponse {
    let statuses = from.containers().filter_map(|one| container::status(one, Strings::new()).status);
    wire::ContainerEventResponse {
        container_id: from.id.clone(),
        container_event_type: kind(from.what) as i32,
        created_at: from.at,
        pod_sandbox_status: Some(pod::of(from.pod())),
        containers_statuses: statuses.collect(),
    }
}

fn kind(from: Happening) -> wire::ContainerEventType {
    match from {
        Happening::Created => wire::ContainerEventType::ContainerCreatedEvent,
        Happening::Started => wire::ContainerEventType::ContainerStartedEvent,
        Happening::Stopped => wire::ContainerEventType::ContainerStoppedEvent,
        Happening::Deleted => wire::ContainerEventType::ContainerDeletedEvent,
    }
}
