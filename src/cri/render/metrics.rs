//! ListMetricDescriptors and ListPodSandboxMetrics.
//!
//! Every metric has the labels that a kubelet's cAdvisor gives ([`LABELS`]) and then its own; a metric's values are made from the
//! same row of the table as its descriptor, so names and label counts cannot disagree. Values are whole numbers: seconds
//! are cut, as the interface has it.
//!
//! Pods have metrics of their own, with an empty `container` and `image`: the network, which belongs to no container,
//! and what all containers use together.

use engine::config::Resources;
use engine::figures::{
    CgroupFigures, ContainerMetrics, Details, DeviceIo, HugePages, Interface, PodMetrics, Pressure, Stall,
};
use engine::status::ContainerState;

use super::metric_table::TABLE;
use super::{container, number};
use crate::proto::runtime::v1 as wire;

/// Labels of every metric, in the order of their values.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Whether a value only grows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// The values of a metric for one source: each with the values of the metric's own labels.
type Values = Vec<(Vec<String>, u64)>;

/// A row of the table.
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    /// Besides [`LABELS`].
    pub(super) labels: &'static [&'static str],
    pub(super) values: fn(&Source<'_>) -> Values,
}

/// What is measured: a container, or a pod as a whole.
pub(super) struct Source<'a> {
    base: [String; 6],
    pub(super) figures: CgroupFigures,
    details: &'a Details,
    pub(super) processes: u64,
    network: &'a [Interface],
    /// Seconds since the epoch.
    pub(super) timestamp: u64,
    /// Seconds since the epoch.
    pub(super) started: u64,
    /// `None`: it is a pod.
    container: Option<&'a ContainerMetrics>,
}

/// What can be measured.
pub(crate) fn descriptors() -> Vec<wire::MetricDescriptor> {
    let descriptor = |metric: &Metric| wire::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: LABELS.iter().chain(metric.labels).map(|key| (*key).to_owned()).collect(),
    };
    TABLE.iter().map(descriptor).collect()
}

/// What was measured of a pod and its containers.
pub(crate) fn pod(from: &PodMetrics) -> wire::PodSandboxMetrics {
    let of = |one: &ContainerMetrics| wire::ContainerMetrics {
        container_id: one.status.id.to_string(),
        metrics: metrics(&Source::container(from, one), one.usage.timestamp),
    };
    wire::PodSandboxMetrics {
        pod_sandbox_id: from.usage.status.id.to_string(),
        metrics: metrics(&Source::pod(from), from.usage.timestamp),
        container_metrics: from.containers.iter().map(of).collect(),
    }
}

fn metrics(source: &Source<'_>, timestamp: i64) -> Vec<wire::Metric> {
    let mut all = Vec::new();
    for metric in &TABLE {
        for (own, value) in (metric.values)(source) {
            all.push(wire::Metric {
                name: metric.name.to_owned(),
                timestamp,
                metric_type: match metric.kind {
                    Kind::Counter => wire::MetricType::Counter as i32,
                    Kind::Gauge => wire::MetricType::Gauge as i32,
                },
                label_values: source.base.iter().cloned().chain(own).collect(),
                value: number(value),
            });
        }
    }
    all
}

impl<'a> Source<'a> {
    fn pod(from: &'a PodMetrics) -> Source<'a> {
        let status = &from.usage.status;
        let name = &status.config.name;
        let words = ["", &from.cgroup, "", status.id.as_str(), &name.namespace, &name.name];
        Source {
            base: words.map(str::to_owned),
            figures: from.usage.cgroup,
            details: &from.details,
            processes: from.usage.processes,
            network: &from.usage.network,
            timestamp: unix(from.usage.timestamp),
            started: unix(status.created_at),
            container: None,
        }
    }

    fn container(pod: &'a PodMetrics, from: &'a ContainerMetrics) -> Source<'a> {
        let (status, name) = (&from.status, &pod.usage.status.config.name);
        let image = container::image(&status.config).image;
        let words =
            [&status.config.name, &from.cgroup, &image, status.id.as_str(), &name.namespace, &name.name];
        let started = match status.state {
            ContainerState::Running { started_at, .. } => started_at,
            _ => status.created_at,
        };
        Source {
            base: words.map(str::to_owned),
            figures: from.usage.cgroup.unwrap_or_default(),
            details: &from.details,
            processes: from.processes.count,
            network: &[],
            timestamp: unix(from.usage.timestamp),
            started: unix(started),
            container: Some(from),
        }
    }

    /// A value of what the kernel counts.
    pub(super) fn detail(&self, value: fn(&Details) -> u64) -> Values {
        one(value(self.details))
    }

    /// A value that only containers have.
    pub(super) fn own(&self, value: fn(&ContainerMetrics) -> u64) -> Values {
        self.container.map(value).map(one).unwrap_or_default()
    }

    /// A limit, which only containers have here.
    pub(super) fn limits(&self, value: fn(&Resources) -> Option<u64>) -> Values {
        self.container.and_then(|one| value(&one.status.resources)).map(one).unwrap_or_default()
    }
}

/// Whole seconds since the epoch.
fn unix(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / 1_000_000_000
}

/// Whole seconds.
pub(super) fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000_000
}

/// A value without labels of its own.
pub(super) fn one(value: u64) -> Values {
    vec![(Vec::new(), value)]
}

/// A value with labels of its own.
pub(super) fn labelled<const N: usize>(labels: [&str; N], value: u64) -> Values {
    vec![(labels.map(str::to_owned).into(), value)]
}

/// Page faults; a cgroup's own and those of its subtree are one and the same for a container.
pub(super) fn page_faults(s: &Source<'_>) -> Values {
    let scopes: &[&str] = if s.container.is_some() { &["container", "hierarchy"] } else { &["hierarchy"] };
    let kinds = [("pgfault", s.figures.usage.page_faults), ("pgmajfault", s.figures.usage.major_page_faults)];
    let of = |scope: &&str| {
        let scope = (*scope).to_owned();
        kinds.map(|(kind, count)| (vec![kind.to_owned(), scope.clone()], count))
    };
    scopes.iter().flat_map(of).collect()
}

pub(super) fn huge_pages(s: &Source<'_>, value: fn(&HugePages) -> u64) -> Values {
    s.details.huge_pages.iter().map(|pages| (vec![pages.size.clone()], value(pages))).collect()
}

/// The path of a block device's node; a device that udev does not know has its numbers for a name.
fn device(io: &DeviceIo) -> String {
    let numbers = format!("{}:{}", io.major, io.minor);
    let facts = std::fs::read_to_string(format!("/sys/dev/block/{numbers}/uevent")).unwrap_or_default();
    let name = facts.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or(numbers, |name| format!("/dev/{name}"))
}

pub(super) fn devices(s: &Source<'_>, value: fn(&DeviceIo) -> u64) -> Values {
    s.details.io.iter().map(|io| (vec![device(io)], value(io))).collect()
}

pub(super) fn transfers(s: &Source<'_>) -> Values {
    let of = |io: &DeviceIo| {
        let labels = [device(io), io.major.to_string(), io.minor.to_string()];
        let both = [("Read", io.read_bytes), ("Write", io.write_bytes)];
        both.map(|(operation, bytes)| (labels.iter().cloned().chain([operation.to_owned()]).collect(), bytes))
    };
    s.details.io.iter().flat_map(of).collect()
}

pub(super) fn filesystem(s: &Source<'_>, value: fn(&ContainerMetrics) -> u64) -> Values {
    s.container.map(|one| (vec![one.filesystem.device.clone()], value(one))).into_iter().collect()
}

pub(super) fn interfaces(s: &Source<'_>, value: fn(&Interface) -> u64) -> Values {
    s.network.iter().map(|one| (vec![one.name.clone()], value(one))).collect()
}

pub(super) fn open_files(s: &Source<'_>) -> Values {
    let of = |one: &ContainerMetrics| labelled(["max_open_files"], one.open_files_limit.unwrap_or(u64::MAX));
    s.container.map(of).unwrap_or_default()
}

pub(super) fn pressure(of: Option<Pressure>, stall: fn(&Pressure) -> Stall) -> Values {
    of.map(|pressure| seconds(stall(&pressure).total_ns)).map(one).unwrap_or_default()
}

/// Limits as cAdvisor shows them.
pub(super) mod limit {
    use engine::config::Resources;

    /// Not set, or none: 0.
    pub(crate) fn positive(value: i64) -> u64 {
        u64::try_from(value).unwrap_or(0)
    }

    /// The kernel's default when none is set.
    pub(crate) fn cpu_period(limits: &Resources) -> Option<u64> {
        Some(positive(limits.cpu_period)).map(|period| if period == 0 { 100_000 } else { period })
    }

    pub(crate) fn cpu_quota(limits: &Resources) -> Option<u64> {
        u64::try_from(limits.cpu_quota).ok().filter(|quota| *quota > 0)
    }

    /// The kernel's default when none is set.
    pub(crate) fn cpu_shares(limits: &Resources) -> Option<u64> {
        Some(positive(limits.cpu_shares)).map(|shares| if shares == 0 { 1024 } else { shares })
    }

    pub(crate) fn memory(limits: &Resources) -> Option<u64> {
        Some(positive(limits.memory_limit))
    }

    /// What v2's memory.low or memory.min protects; the kubelet sets it so (memory QoS).
    pub(crate) fn reservation(limits: &Resources) -> Option<u64> {
        let value = |file: &str| limits.unified.get(file)?.parse().ok();
        Some(value("memory.low").or(value("memory.min")).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::figures::{ContainerUsage, Counters, Filesystem, PodUsage, Pressures, Processes, Usage};
    use std::collections::{BTreeMap, BTreeSet};

    /// What the newest critest expects every runtime to describe (cri-tools, pkg/validate/pod.go, August 2026).
    const EXPECTED: &str = "
        blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total
        cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total
        file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total
        fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen
        memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file
        memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes
        network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
        network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
        network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total
        pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
        pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total
        pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares
        spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes
        start_time_seconds threads threads_max ulimits_soft";

    #[test]
    fn all_that_is_expected_is_described_and_nothing_else() {
        let expected: BTreeSet<String> =
            EXPECTED.split_ascii_whitespace().map(|name| format!("container_{name}")).collect();
        let described: BTreeSet<String> = descriptors().into_iter().map(|one| one.name).collect();
        assert_eq!((described.len(), TABLE.len()), (56, 56));
        assert_eq!(described, expected);
        assert!(descriptors().iter().all(|one| !one.help.is_empty() && one.label_keys.len() >= LABELS.len()));
    }

    const S: u64 = 1_000_000_000;

    fn details() -> Details {
        Details {
            cpu_user_ns: 3 * S,
            io: vec![DeviceIo { major: 250, minor: 77, read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 }],
            huge_pages: vec![HugePages { size: "2MB".into(), usage: 5, max_usage: 6 }],
            pids_limit: Some(7),
            swap_limit: Some(8),
            ..Details::default()
        }
    }

    fn metered() -> PodMetrics {
        let stall = Stall { total_ns: 8 * S, ..Stall::default() };
        let pressure = Some(Pressure { some: stall, full: stall });
        let figures = CgroupFigures {
            usage: Usage { cpu_ns: 9 * S + 1, memory: 10, ..Usage::default() },
            nano_cores: 1,
            pressures: Pressures { cpu: pressure, memory: pressure, io: pressure },
        };
        let mut status = container::tests::container(ContainerState::Running { started_at: 20, pid: 1 });
        status.resources.cpu_quota = 20_000;
        status.resources.unified = [("memory.low".to_owned(), "99".to_owned())].into();
        let usage =
            ContainerUsage { timestamp: 30 * S as i64, cgroup: Some(figures), ..ContainerUsage::default() };
        let counters = Counters { bytes: 11, packets: 12, errors: 13, dropped: 14 };
        let eth0 =
            Interface { name: "eth0".into(), default: true, received: counters, transmitted: counters };
        PodMetrics {
            cgroup: "/pods/web".into(),
            usage: PodUsage {
                status: crate::render::pod::tests::pod(&[]),
                timestamp: 30 * S as i64,
                cgroup: figures,
                network: vec![eth0],
                processes: 2,
                containers: Vec::new(),
            },
            details: details(),
            containers: vec![ContainerMetrics {
                status,
                cgroup: "/pods/web/app".into(),
                usage,
                details: details(),
                processes: Processes { count: 1, descriptors: 15, sockets: 16 },
                open_files_limit: None,
                filesystem: Filesystem { device: "/dev/sda1".into(), size: 17, inodes: 18, inodes_free: 19 },
            }],
        }
    }

    #[test]
    fn every_metric_has_as_many_values_as_its_descriptor_has_labels() {
        let keys: BTreeMap<String, usize> =
            descriptors().into_iter().map(|one| (one.name, one.label_keys.len())).collect();
        let got = pod(&metered());
        let all = got.metrics.iter().chain(&got.container_metrics[0].metrics);
        let mut seen = BTreeSet::new();
        for metric in all {
            assert_eq!(metric.label_values.len(), keys[&metric.name], "{metric:?}");
            assert_eq!(metric.timestamp, 30_000_000_000);
            seen.insert(metric.name.clone());
        }
        assert_eq!(seen.len(), 56, "each has a value");
    }

    fn find(metrics: &[wire::Metric], name: &str) -> Vec<(Vec<String>, u64)> {
        let own = |one: &wire::Metric| one.label_values[LABELS.len()..].to_vec();
        let named = metrics.iter().filter(|one| one.name == name);
        named.map(|one| (own(one), one.value.unwrap().value)).collect()
    }

    #[test]
    fn values_and_labels_are_those_of_their_container() {
        let got = pod(&metered());
        let own = &got.container_metrics[0];
        let words = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
        let id = own.container_id.as_str();
        let base = words(&["app", "/pods/web/app", "busybox", id, "n", "web"]);
        assert!(own.metrics.iter().all(|one| one.label_values[..6] == base), "{own:?}");
        for (name, want) in [
            ("container_cpu_usage_seconds_total", vec![(words(&["total"]), 9)]),
            ("container_cpu_user_seconds_total", vec![(vec![], 3)]),
            ("container_fs_reads_total", vec![(words(&["250:77"]), 3)]),
            ("container_hugetlb_max_usage_bytes", vec![(words(&["2MB"]), 6)]),
            ("container_fs_limit_bytes", vec![(words(&["/dev/sda1"]), 17)]),
            ("container_ulimits_soft", vec![(words(&["max_open_files"]), u64::MAX)]),
            ("container_pressure_io_waiting_seconds_total", vec![(vec![], 8)]),
            ("container_spec_cpu_quota", vec![(vec![], 20_000)]),
            ("container_spec_cpu_period", vec![(vec![], 100_000)]),
            ("container_spec_memory_reservation_limit_bytes", vec![(vec![], 99)]),
            ("container_spec_memory_swap_limit_bytes", vec![(vec![], 8)]),
            ("container_network_receive_bytes_total", vec![]),
            (
                "container_blkio_device_usage_total",
                vec![
                    (words(&["250:77", "250", "77", "Read"]), 1),
                    (words(&["250:77", "250", "77", "Write"]), 2),
                ],
            ),
        ] {
            assert_eq!(find(&own.metrics, name), want, "{name}");
        }
    }

    #[test]
    fn a_pod_has_its_network_and_no_limits() {
        let got = pod(&metered());
        assert_eq!(
            find(&got.metrics, "container_network_transmit_packets_dropped_total"),
            [(vec!["eth0".to_owned()], 14)]
        );
        assert_eq!(find(&got.metrics, "container_spec_cpu_period"), []);
        assert_eq!(find(&got.metrics, "container_processes"), [(vec![], 2)]);
        assert_eq!(got.metrics[0].label_values[..3], ["", "/pods/web", ""]);
        let mut without = metered();
        without.usage.cgroup.pressures = Pressures::default();
        assert_eq!(find(&pod(&without).metrics, "container_pressure_cpu_waiting_seconds_total"), []);
    }
}
