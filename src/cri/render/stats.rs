//! Figures of containers and pods.
//!
//! What is not there is absent, never zero: figures of a container that does not run, what is left of a limit where there is
//! none, pressure that the kernel does not count.

use engine::figures::{CgroupFigures, ContainerUsage, Interface, PodUsage, Pressure, Stall};
use engine::status::ContainerStatus;

use super::{container, number, pod};
use crate::proto::runtime::v1 as wire;

/// What one container uses.
pub(crate) fn container(status: &ContainerStatus, usage: &ContainerUsage) -> wire::ContainerStats {
    let timestamp = usage.timestamp;
    wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes {
            id: status.id.to_string(),
            metadata: Some(container::metadata(&status.config)),
            labels: status.config.labels.clone(),
            annotations: status.config.annotations.clone(),
        }),
        cpu: usage.cgroup.as_ref().map(|figures| cpu(timestamp, figures)),
        memory: usage.cgroup.as_ref().map(|figures| memory(timestamp, figures)),
        writable_layer: Some(wire::FilesystemUsage {
            timestamp,
            fs_id: Some(wire::FilesystemIdentifier {
                mountpoint: usage.writable_path.to_string_lossy().into_owned(),
            }),
            used_bytes: number(usage.writable_bytes),
            inodes_used: number(usage.writable_inodes),
        }),
        swap: usage.cgroup.as_ref().map(|figures| wire::SwapUsage {
            timestamp,
            swap_available_bytes: figures.swap_available().and_then(number),
            swap_usage_bytes: number(figures.usage.swap),
        }),
        io: usage.cgroup.as_ref().and_then(|figures| io(timestamp, figures)),
    }
}

/// What one pod uses.
pub(crate) fn sandbox(usage: &PodUsage) -> wire::PodSandboxStats {
    let (timestamp, config) = (usage.timestamp, &usage.status.config);
    let linux = wire::LinuxPodSandboxStats {
        cpu: Some(cpu(timestamp, &usage.cgroup)),
        memory: Some(memory(timestamp, &usage.cgroup)),
        network: network(timestamp, &usage.network),
        process: Some(wire::ProcessUsage { timestamp, process_count: number(usage.processes) }),
        containers: usage.containers.iter().map(|(status, usage)| container(status, usage)).collect(),
        io: io(timestamp, &usage.cgroup),
    };
    wire::PodSandboxStats {
        attributes: Some(wire::PodSandboxAttributes {
            id: usage.status.id.to_string(),
            metadata: Some(pod::metadata(&config.name)),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    }
}

fn cpu(timestamp: i64, figures: &CgroupFigures) -> wire::CpuUsage {
    wire::CpuUsage {
        timestamp,
        usage_core_nano_seconds: number(figures.usage.cpu_ns),
        usage_nano_cores: number(figures.nano_cores),
        psi: figures.pressures.cpu.map(pressure),
    }
}

fn memory(timestamp: i64, figures: &CgroupFigures) -> wire::MemoryUsage {
    wire::MemoryUsage {
        timestamp,
        working_set_bytes: number(figures.working_set()),
        available_bytes: figures.memory_available().and_then(number),
        usage_bytes: number(figures.usage.memory),
        rss_bytes: number(figures.usage.anon),
        page_faults: number(figures.usage.page_faults),
        major_page_faults: number(figures.usage.major_page_faults),
        psi: figures.pressures.memory.map(pressure),
    }
}

/// All that this message can carry is pressure.
fn io(timestamp: i64, figures: &CgroupFigures) -> Option<wire::IoUsage> {
    let psi = pressure(figures.pressures.io?);
    Some(wire::IoUsage { timestamp, psi: Some(psi) })
}

fn pressure(from: Pressure) -> wire::PsiStats {
    let data = |stall: Stall| wire::PsiData {
        total: stall.total_ns,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    wire::PsiStats { full: Some(data(from.full)), some: Some(data(from.some)) }
}

fn network(timestamp: i64, interfaces: &[Interface]) -> Option<wire::NetworkUsage> {
    if interfaces.is_empty() {
        return None;
    }
    let usage = |from: &Interface| wire::NetworkInterfaceUsage {
        name: from.name.clone(),
        rx_bytes: number(from.received.bytes),
        rx_errors: number(from.received.errors),
        tx_bytes: number(from.transmitted.bytes),
        tx_errors: number(from.transmitted.errors),
    };
    Some(wire::NetworkUsage {
        timestamp,
        default_interface: interfaces.iter().find(|one| one.default).map(usage),
        interfaces: interfaces.iter().filter(|one| !one.default).map(usage).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::container::tests::container as status;
    use super::*;
    use engine::figures::{Counters, Pressures, Usage};
    use engine::status::ContainerState;

    fn figures() -> CgroupFigures {
        let usage = Usage {
            cpu_ns: 2,
            memory: 4,
            inactive_file: 1,
            anon: 6,
            page_faults: 7,
            major_page_faults: 8,
            swap: 9,
            memory_limit: Some(8),
            swap_limit: Some(19),
            pids: 1,
        };
        let stall = |n: u64| Stall { total_ns: n, avg10: 1.0, avg60: 2.0, avg300: 3.0 };
        let pressure = |n| Some(Pressure { some: stall(n), full: stall(n + 1) });
        let pressures = Pressures { cpu: pressure(20), memory: pressure(30), io: pressure(40) };
        CgroupFigures { usage, nano_cores: 13, pressures }
    }

    fn usage(cgroup: Option<CgroupFigures>) -> ContainerUsage {
        ContainerUsage {
            timestamp: 1,
            cgroup,
            writable_path: "/state/upper".into(),
            writable_bytes: 11,
            writable_inodes: 12,
        }
    }

    #[test]
    fn every_figure_arrives() {
        let got = container(&status(ContainerState::Created), &usage(Some(figures())));
        let attributes = got.attributes.unwrap();
        assert_eq!((attributes.id.len(), attributes.metadata.unwrap().name), (64, "app".to_owned()));
        assert_eq!((attributes.labels["l"].as_str(), attributes.annotations["a"].as_str()), ("1", "2"));
        let cpu = got.cpu.unwrap();
        assert_eq!(
            (cpu.timestamp, cpu.usage_core_nano_seconds, cpu.usage_nano_cores),
            (1, number(2), number(13))
        );
        let data = |total| wire::PsiData { total, avg10: 1.0, avg60: 2.0, avg300: 3.0 };
        assert_eq!(cpu.psi.unwrap(), wire::PsiStats { some: Some(data(20)), full: Some(data(21)) });
        let memory = got.memory.unwrap();
        assert_eq!((memory.working_set_bytes, memory.usage_bytes), (number(3), number(4)));
        assert_eq!((memory.available_bytes, memory.rss_bytes), (number(5), number(6)));
        assert_eq!((memory.page_faults, memory.major_page_faults), (number(7), number(8)));
        assert_eq!(memory.psi.unwrap().some, Some(data(30)));
        let swap = got.swap.unwrap();
        assert_eq!((swap.swap_usage_bytes, swap.swap_available_bytes), (number(9), number(10)));
        assert_eq!(got.io.unwrap().psi.unwrap().full, Some(data(41)));
        let layer = got.writable_layer.unwrap();
        assert_eq!((layer.timestamp, layer.fs_id.unwrap().mountpoint.as_str()), (1, "/state/upper"));
        assert_eq!((layer.used_bytes, layer.inodes_used), (number(11), number(12)));
    }

    #[test]
    fn what_is_not_there_is_absent() {
        let stopped = container(&status(ContainerState::Created), &usage(None));
        assert_eq!((stopped.cpu, stopped.memory, stopped.swap, stopped.io), (None, None, None, None));
        assert_eq!(stopped.writable_layer.unwrap().used_bytes, number(11));
        let bare = container(&status(ContainerState::Created), &usage(Some(CgroupFigures::default())));
        assert_eq!(bare.memory.unwrap().available_bytes, None);
        assert_eq!((bare.cpu.unwrap().psi, bare.io), (None, None));
    }

    #[test]
    fn a_pod_has_its_own_figures_and_its_containers() {
        let (received, transmitted) = (
            Counters { bytes: 1, errors: 2, ..Counters::default() },
            Counters { bytes: 3, errors: 4, ..Counters::default() },
        );
        let interface =
            |name: &str, default| Interface { name: name.to_owned(), default, received, transmitted };
        let from = PodUsage {
            status: crate::render::pod::tests::pod(&[]),
            timestamp: 5,
            cgroup: figures(),
            network: vec![interface("net1", false), interface("eth0", true)],
            processes: 6,
            containers: vec![(status(ContainerState::Created), usage(None))],
        };
        let got = sandbox(&from);
        assert_eq!(got.attributes.unwrap().metadata.unwrap().name, "web");
        let linux = got.linux.unwrap();
        assert_eq!(linux.cpu.unwrap().usage_core_nano_seconds, number(2));
        assert_eq!(linux.process.unwrap().process_count, number(6));
        assert_eq!((linux.containers.len(), linux.io.is_some()), (1, true));
        let network = linux.network.unwrap();
        let default = network.default_interface.unwrap();
        assert_eq!(
            (default.name.as_str(), default.rx_bytes, default.rx_errors),
            ("eth0", number(1), number(2))
        );
        assert_eq!((default.tx_bytes, default.tx_errors), (number(3), number(4)));
        assert_eq!(network.interfaces[0].name, "net1");
        assert_eq!(sandbox(&PodUsage { network: Vec::new(), ..from }).linux.unwrap().network, None);
    }
}
