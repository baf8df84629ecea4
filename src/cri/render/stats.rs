//! ContainerStats and ListContainerStats.

use engine::status::{ContainerStatus, ContainerUsage};

use super::container::metadata;
use super::number;
use crate::proto::runtime::v1 as wire;

/// What one container uses.
pub(crate) fn container(status: &ContainerStatus, usage: &ContainerUsage) -> wire::ContainerStats {
    let timestamp = usage.timestamp;
    wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes {
            id: status.id.to_string(),
            metadata: Some(metadata(&status.config)),
            labels: status.config.labels.clone(),
            annotations: status.config.annotations.clone(),
        }),
        cpu: Some(wire::CpuUsage {
            timestamp,
            usage_core_nano_seconds: number(usage.cpu_usage_ns),
            ..Default::default()
        }),
        memory: Some(wire::MemoryUsage {
            timestamp,
            working_set_bytes: number(usage.memory_working_set),
            // zero says that there is no limit, and then nothing can be said about the rest of it
            available_bytes: number(usage.memory_available).filter(|rest| rest.value != 0),
            usage_bytes: number(usage.memory_usage),
            rss_bytes: number(usage.memory_rss),
            page_faults: number(usage.page_faults),
            major_page_faults: number(usage.major_page_faults),
            psi: None,
        }),
        writable_layer: Some(wire::FilesystemUsage {
            timestamp,
            fs_id: Some(wire::FilesystemIdentifier {
                mountpoint: usage.writable_path.to_string_lossy().into_owned(),
            }),
            used_bytes: number(usage.writable_bytes),
            inodes_used: number(usage.writable_inodes),
        }),
        swap: usage.swap_usage.map(|used| wire::SwapUsage {
            timestamp,
            swap_available_bytes: usage.swap_available.and_then(number),
            swap_usage_bytes: number(used),
        }),
        io: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::container::tests::container as status;
    use super::*;
    use engine::status::ContainerState;

    #[test]
    fn every_figure_arrives() {
        let usage = ContainerUsage {
            timestamp: 1,
            cpu_usage_ns: 2,
            memory_working_set: 3,
            memory_usage: 4,
            memory_available: 5,
            memory_rss: 6,
            page_faults: 7,
            major_page_faults: 8,
            swap_usage: Some(9),
            swap_available: Some(10),
            writable_path: "/state/upper".into(),
            writable_bytes: 11,
            writable_inodes: 12,
        };
        let got = container(&status(ContainerState::Created), &usage);
        let attributes = got.attributes.unwrap();
        assert_eq!((attributes.id.len(), attributes.metadata.unwrap().name), (64, "app".to_owned()));
        assert_eq!((attributes.labels["l"].as_str(), attributes.annotations["a"].as_str()), ("1", "2"));
        let cpu = got.cpu.unwrap();
        assert_eq!((cpu.timestamp, cpu.usage_core_nano_seconds), (1, number(2)));
        let memory = got.memory.unwrap();
        assert_eq!((memory.working_set_bytes, memory.usage_bytes), (number(3), number(4)));
        assert_eq!((memory.available_bytes, memory.rss_bytes), (number(5), number(6)));
        assert_eq!((memory.page_faults, memory.major_page_faults), (number(7), number(8)));
        let swap = got.swap.unwrap();
        assert_eq!((swap.swap_usage_bytes, swap.swap_available_bytes), (number(9), number(10)));
        let layer = got.writable_layer.unwrap();
        assert_eq!((layer.timestamp, layer.fs_id.unwrap().mountpoint.as_str()), (1, "/state/upper"));
        assert_eq!((layer.used_bytes, layer.inodes_used), (number(11), number(12)));
    }

    #[test]
    fn no_limit_is_not_a_limit_that_is_reached() {
        let got = container(&status(ContainerState::Created), &ContainerUsage::default());
        assert_eq!(got.memory.unwrap().available_bytes, None);
        assert_eq!(got.swap, None);
    }
}
