//! What containers and pods use, read from the real kernel.

mod node;

use std::process::Command;

use engine::config::{NamespaceMode, PodLimits, Resources};
use engine::figures::ContainerUsage;
use engine::status::{ContainerFilter, PodFilter};
use engine::{Engine, Kind};
use node::{Node, PATIENCE, eventually, must, private};

/// A container that uses the CPU until it is stopped.
const BUSY: &str = "while :; do :; done";

/// Waits until what a container uses is as wanted.
async fn used(
    engine: &Engine,
    id: &str,
    what: &str,
    wanted: impl Fn(&ContainerUsage) -> bool,
) -> ContainerUsage {
    let began = std::time::Instant::now();
    loop {
        let (_, usage) = engine.container_usage(id).await.unwrap();
        if wanted(&usage) {
            return usage;
        }
        assert!(began.elapsed().as_secs() < 30, "not within 30 s: {what}: {usage:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_container_uses_what_the_kernel_says() {
    if !private("a_busy_container_uses_what_the_kernel_says") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let mut config = node.container("busy", BUSY);
    config.resources.memory_limit = 64 << 20;
    let busy = engine.create_container(pod.as_str(), config).await.unwrap();
    // it does not run: only its layer counts
    let (_, made) = engine.container_usage(busy.as_str()).await.unwrap();
    assert_eq!(made.cgroup, None);
    assert!(engine.list_usage(&ContainerFilter::default()).await.is_empty());
    engine.start_container(busy.as_str()).await.unwrap();
    // the kernel counts page faults in batches
    let usage = used(&engine, busy.as_str(), "CPU time, memory and page faults", |usage| {
        let figures = usage.cgroup.unwrap();
        let (cpu, memory) = (figures.usage.cpu_ns > 0 && figures.nano_cores > 0, figures.usage.memory > 0);
        cpu && memory && figures.usage.page_faults > 0
    })
    .await;
    let figures = usage.cgroup.unwrap();
    assert_eq!(figures.usage.memory_limit, Some(64 << 20));
    assert!(figures.memory_available().unwrap() < 64 << 20, "{figures:?}");
    assert!(figures.usage.pids >= 1, "{figures:?}");
    assert!(usage.timestamp > 0 && usage.writable_path.is_dir(), "{usage:?}");
    let listed = engine.list_usage(&ContainerFilter::default()).await;
    assert_eq!(listed.iter().map(|(status, _)| status.id.clone()).collect::<Vec<_>>(), [busy]);
    if sys::cgroup::Layout::host().unwrap().unified().is_some()
        && std::path::Path::new("/proc/pressure/cpu").exists()
    {
        assert!(figures.pressures.cpu.is_some() && figures.pressures.io.is_some(), "{figures:?}");
    } else {
        eprintln!(
            "SKIP pressure in a_busy_container_uses_what_the_kernel_says: this kernel does not count it"
        );
    }
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_uses_what_its_containers_and_its_network_use() {
    if !private("a_pod_uses_what_its_containers_and_its_network_use") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let empty = engine.pod_usage(pod.as_str()).await.unwrap();
    assert_eq!((empty.processes, empty.containers.len()), (0, 0));
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let id = engine.create_container(pod.as_str(), node.container(name, "sleep 1000")).await.unwrap();
        engine.start_container(id.as_str()).await.unwrap();
        ids.push(id);
    }
    let usage = engine.pod_usage(pod.as_str()).await.unwrap();
    assert_eq!(usage.containers.len(), 2);
    assert!(usage.processes >= 2 && usage.cgroup.usage.memory > 0, "{usage:?}");
    let names: Vec<_> = usage.network.iter().map(|one| (one.name.as_str(), one.default)).collect();
    assert_eq!(names, [("eth0", true)]);
    // stopped ones are left out
    engine.stop_container(ids[0].as_str(), std::time::Duration::ZERO).await.unwrap();
    let usage = engine.pod_usage(pod.as_str()).await.unwrap();
    assert_eq!(usage.containers.iter().map(|(status, _)| status.id.clone()).collect::<Vec<_>>(), ids[1..]);
    assert_eq!(engine.list_pod_usage(&PodFilter::default()).await.len(), 1);
    let other = PodFilter { labels: [("no".to_owned(), "such".to_owned())].into(), ..PodFilter::default() };
    assert!(engine.list_pod_usage(&other).await.is_empty());
    engine.stop_pod(pod.as_str()).await.unwrap();
    assert_eq!(engine.pod_usage(pod.as_str()).await.unwrap_err().kind, Kind::WrongState);
    assert!(engine.list_pod_usage(&PodFilter::default()).await.is_empty());
    engine.remove_pod(pod.as_str()).await.unwrap();
    assert_eq!(engine.pod_usage(pod.as_str()).await.unwrap_err().kind, Kind::NotFound);
    eventually("nothing is left", || node.leftovers().is_empty()).await;
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_the_nodes_network_has_no_counters_of_its_own() {
    if !private("a_pod_on_the_nodes_network_has_no_counters_of_its_own") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let mut config = node.pod("host");
    config.namespaces.network = NamespaceMode::Node;
    let pod = engine.run_pod(config).await.unwrap();
    assert!(engine.pod_usage(pod.as_str()).await.unwrap().network.is_empty());
    engine.remove_pod(pod.as_str()).await.unwrap();
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_pod_are_kept_with_it() {
    if !private("limits_of_a_pod_are_kept_with_it") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let more = |memory_limit| Some(Resources { memory_limit, ..Resources::default() });
    let limits = PodLimits { resources: more(64 << 20), overhead: None };
    engine.limit_pod(pod.as_str(), limits.clone()).await.unwrap();
    // what is not given stays
    let overhead = PodLimits { overhead: more(1 << 20), resources: None };
    engine.limit_pod(pod.as_str(), overhead.clone()).await.unwrap();
    // the same pod asked for again is still the same pod
    assert_eq!(engine.run_pod(node.pod("p")).await.unwrap(), pod);
    engine.drain().await;
    drop(engine);
    let engine = node.open().await;
    let kept = engine.pod_status(pod.as_str()).unwrap().limits;
    assert_eq!(kept, PodLimits { resources: limits.resources, overhead: overhead.overhead });
    let info = engine.verbose_pod(pod.as_str()).unwrap();
    assert!(info["info"].contains("67108864"), "{info:?}");
    engine.stop_pod(pod.as_str()).await.unwrap();
    assert_eq!(
        engine.limit_pod(pod.as_str(), PodLimits::default()).await.unwrap_err().kind,
        Kind::WrongState
    );
    engine.remove_pod(pod.as_str()).await.unwrap();
    assert_eq!(engine.limit_pod(pod.as_str(), PodLimits::default()).await.unwrap_err().kind, Kind::NotFound);
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writable_layers_on_a_disk_of_their_own_are_counted_there() {
    if !private("writable_layers_on_a_disk_of_their_own_are_counted_there") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let (images, layers) = engine.filesystems().await.unwrap();
    assert_eq!(images, layers, "on one disk they are one");
    engine.drain().await;
    drop(engine);
    let containers = node.at("state/containers");
    must(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&containers));
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let script = "mkdir -p /data; dd if=/dev/zero of=/data/file bs=1024 count=300; sleep 1000";
    let id = engine.create_container(pod.as_str(), node.container("c", script)).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    let began = std::time::Instant::now();
    loop {
        let (images, layers) = engine.filesystems().await.unwrap();
        assert_eq!((&images.path, &layers.path), (&node.at("state/images"), &containers));
        if layers.bytes >= 300 << 10 && layers.inodes >= 2 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{layers:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    engine.remove_pod(pod.as_str()).await.unwrap();
    engine.drain().await;
    must(Command::new("umount").arg(&containers));
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}
