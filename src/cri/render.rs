//! Values to answers: what the engine and the image store return becomes CRI messages. Pure functions.

pub(crate) mod container;
pub(crate) mod event;
pub(crate) mod exec;
pub(crate) mod image;
mod metric_table;
pub(crate) mod metrics;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod stats;

use engine::config::{IdRange, NamespaceMode, Namespaces, Resources};

use crate::proto::runtime::v1 as wire;

/// Largest portion of a streamed list, bytes as encoded: far below the 16 MiB at which clients give up.
const PORTION: usize = 1 << 20;

/// Cut a list into portions of at least one item and, when items allow, at most [`PORTION`] bytes.
pub(crate) fn portions<T: prost::Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut portions: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let size = item.encoded_len();
        match portions.last_mut() {
            Some(last) if size <= room => {
                room -= size;
                last.push(item);
            }
            _ => {
                room = PORTION.saturating_sub(size);
                portions.push(vec![item]);
            }
        }
    }
    portions
}

fn namespaces(from: &Namespaces) -> wire::NamespaceOption {
    let mode = |mode: &NamespaceMode| match mode {
        NamespaceMode::Pod => wire::NamespaceMode::Pod as i32,
        NamespaceMode::Container => wire::NamespaceMode::Container as i32,
        NamespaceMode::Node => wire::NamespaceMode::Node as i32,
        NamespaceMode::Target(_) => wire::NamespaceMode::Target as i32,
    };
    let target_id = match &from.pid {
        NamespaceMode::Target(id) => id.clone(),
        _ => String::new(),
    };
    wire::NamespaceOption {
        network: mode(&from.network),
        pid: mode(&from.pid),
        ipc: mode(&from.ipc),
        target_id,
        userns_options: from.user.as_ref().map(|maps| wire::UserNamespace {
            mode: wire::NamespaceMode::Pod as i32,
            uids: id_maps(Some(&maps.uids)),
            gids: id_maps(Some(&maps.gids)),
        }),
    }
}

fn id_maps(from: Option<&Vec<IdRange>>) -> Vec<wire::IdMapping> {
    let one = |range: &IdRange| wire::IdMapping {
        host_id: range.outside,
        container_id: range.inside,
        length: range.length,
    };
    from.into_iter().flatten().map(one).collect()
}

fn resources(from: &Resources) -> wire::LinuxContainerResources {
    wire::LinuxContainerResources {
        cpu_period: from.cpu_period,
        cpu_quota: from.cpu_quota,
        cpu_shares: from.cpu_shares,
        memory_limit_in_bytes: from.memory_limit,
        oom_score_adj: from.oom_score_adj,
        cpuset_cpus: from.cpuset_cpus.clone(),
        cpuset_mems: from.cpuset_mems.clone(),
        hugepage_limits: from
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| wire::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: from.unified.clone(),
        memory_swap_limit_in_bytes: from.memory_swap_limit,
    }
}

fn number(value: u64) -> Option<wire::UInt64Value> {
    Some(wire::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_in_exactly_one_portion() {
        let item = |size: usize| wire::KeyValue { key: String::new(), value: vec![0; size] };
        let sizes = [10, PORTION / 2, PORTION / 2, 3 * PORTION, 1, 2];
        let cut = portions(sizes.iter().map(|&size| item(size)).collect());
        let lengths: Vec<Vec<usize>> =
            cut.iter().map(|portion| portion.iter().map(|item| item.value.len()).collect()).collect();
        assert_eq!(lengths, [vec![10, PORTION / 2], vec![PORTION / 2], vec![3 * PORTION], vec![1, 2]]);
        assert!(portions(Vec::<wire::KeyValue>::new()).is_empty());
    }

    #[test]
    fn limits_survive_the_way_in_and_out() {
        let there = Resources {
            cpu_period: 1_000,
            cpu_quota: -1,
            cpu_shares: 2,
            memory_limit: 3,
            oom_score_adj: -4,
            cpuset_cpus: "0".into(),
            cpuset_mems: "1".into(),
            hugepage_limits: vec![("2MB".into(), 5)],
            unified: [("memory.high".to_owned(), "6".to_owned())].into(),
            memory_swap_limit: 7,
        };
        assert_eq!(crate::parse::resources::resources(Some(resources(&there)), "linux").unwrap(), there);
    }
}
