//! The server on a real socket, with a real (empty) engine behind it, spoken to by the generated client.

#[path = "serve/lists.rs"]
mod lists;
#[path = "serve/requests.rs"]
mod requests;

use std::future::pending;
use std::path::Path;
use std::time::Duration;

use cri::client::Channel;
use cri::proto::runtime::v1::image_service_client::ImageServiceClient;
use cri::proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use cri::proto::runtime::v1::*;
use engine::{Engine, Settings, image, network};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

const LONG: Duration = Duration::from_secs(20);

struct Node {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
    engine: Engine,
    dir: TempDir,
}

async fn engine(dir: &Path) -> Engine {
    let images = image::Settings { root: dir.join("images"), ..Default::default() };
    let network = network::Settings {
        config_dir: dir.join("net.d"),
        bin_dirs: vec![dir.join("bin")],
        state_dir: dir.join("network"),
        netns_dir: dir.join("netns"),
        deadline: LONG,
    };
    let settings = Settings {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        // never started here; only copied
        runtime: "/bin/true".into(),
        ..Default::default()
    };
    let images = image::Store::open(images).await.expect("an image store");
    Engine::open(settings, images, network::Network::new(network)).await.expect("an engine")
}

async fn node() -> Node {
    node_in(tempfile::tempdir().expect("a scratch directory")).await
}

/// A node of what is in a directory.
async fn node_in(dir: TempDir) -> Node {
    let engine = engine(dir.path()).await;
    let socket = dir.path().join("corten.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let (stop, stopped) = oneshot::channel();
    let info = cri::Info {
        version: "1.2.3".into(),
        slow_request: LONG,
        drain_deadline: Duration::from_millis(300),
        config: "{}".into(),
    };
    let served = engine.clone();
    let sessions = cri::Sessions::new(engine.clone());
    let streaming = streaming::Server::bind(Default::default(), sessions).await.expect("a port");
    let server = tokio::spawn(async move {
        let shutdown = async {
            if stopped.await.is_err() {
                // the test is over without having stopped the server: the runtime's end ends it
                pending::<()>().await;
            }
        };
        cri::serve(listener, served, streaming, info, shutdown).await.expect("serve");
    });
    let channel = cri::client::connect(&socket).await.expect("connect");
    let runtime = RuntimeServiceClient::new(channel.clone());
    Node { runtime, images: ImageServiceClient::new(channel), stop, server, engine, dir }
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn it_says_who_it_is() {
    let mut node = node().await;
    let version = node.runtime.version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_version.as_str()), ("corten", "1.2.3"));
    assert_eq!(version.runtime_api_version, "v1");
    let config = node.runtime.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver(), CgroupDriver::Cgroupfs);
    let status = node.runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let names: Vec<_> = conditions.iter().map(|condition| condition.r#type.as_str()).collect();
    assert_eq!(names, ["RuntimeReady", "NetworkReady"]);
    assert!(status.info.contains_key("config"));
}

#[tokio::test]
async fn an_empty_node_answers_with_nothing() {
    let mut node = node().await;
    assert!(
        node.runtime
            .list_pod_sandbox(ListPodSandboxRequest::default())
            .await
            .unwrap()
            .into_inner()
            .items
            .is_empty()
    );
    let listed = node.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner();
    assert!(listed.containers.is_empty());
    let stats =
        node.runtime.list_container_stats(ListContainerStatsRequest::default()).await.unwrap().into_inner();
    assert!(stats.stats.is_empty());
    let pod_stats = node
        .runtime
        .list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(pod_stats.stats.is_empty());
    assert!(
        node.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images.is_empty()
    );
    let image = Some(ImageSpec { image: "busybox".into(), ..Default::default() });
    let status = ImageStatusRequest { image: image.clone(), verbose: true };
    assert_eq!(node.images.image_status(status).await.unwrap().into_inner(), ImageStatusResponse::default());
    node.images
        .remove_image(RemoveImageRequest { image })
        .await
        .expect("removal of an unknown image is fine");
    let fs = node.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(fs.image_filesystems[0].timestamp > 0);
    assert!(
        fs.image_filesystems[0]
            .fs_id
            .as_ref()
            .unwrap()
            .mountpoint
            .starts_with(node.dir.path().to_str().unwrap())
    );
}

#[tokio::test]
async fn streams_of_nothing_end_without_a_message() {
    let mut node = node().await;
    let mut pods =
        node.runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default()).await.unwrap().into_inner();
    assert_eq!(pods.message().await.unwrap(), None);
    let mut images = node.images.stream_images(StreamImagesRequest::default()).await.unwrap().into_inner();
    assert_eq!(images.message().await.unwrap(), None);
}

#[tokio::test]
async fn what_is_unknown_is_not_found_and_its_removal_is_fine() {
    let mut node = node().await;
    let id = || "f".repeat(64);
    let status = PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    assert_eq!(refusal(node.runtime.pod_sandbox_status(status).await).0, Code::NotFound);
    let status = ContainerStatusRequest { container_id: id(), verbose: true };
    assert_eq!(refusal(node.runtime.container_status(status).await).0, Code::NotFound);
    let stats = ContainerStatsRequest { container_id: id() };
    assert_eq!(refusal(node.runtime.container_stats(stats).await).0, Code::NotFound);
    let stats = PodSandboxStatsRequest { pod_sandbox_id: id() };
    assert_eq!(refusal(node.runtime.pod_sandbox_stats(stats).await).0, Code::NotFound);
    let start = StartContainerRequest { container_id: id() };
    assert_eq!(refusal(node.runtime.start_container(start).await).0, Code::NotFound);
    let exec = ExecSyncRequest { container_id: id(), cmd: vec!["true".into()], timeout: 1 };
    assert_eq!(refusal(node.runtime.exec_sync(exec).await).0, Code::NotFound);
    let exec =
        ExecRequest { container_id: id(), cmd: vec!["true".into()], stdout: true, ..Default::default() };
    assert_eq!(refusal(node.runtime.exec(exec).await).0, Code::NotFound);
    let attach = AttachRequest { container_id: id(), stdout: true, ..Default::default() };
    assert_eq!(refusal(node.runtime.attach(attach).await).0, Code::NotFound);
    let forward = PortForwardRequest { pod_sandbox_id: id(), port: vec![80] };
    assert_eq!(refusal(node.runtime.port_forward(forward).await).0, Code::NotFound);

    let fine = "an unknown id is fine";
    node.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id() }).await.expect(fine);
    node.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await.expect(fine);
    node.runtime.stop_container(StopContainerRequest { container_id: id(), timeout: 0 }).await.expect(fine);
    node.runtime.remove_container(RemoveContainerRequest { container_id: id() }).await.expect(fine);
}

#[tokio::test]
async fn an_empty_id_is_nobodys_prefix() {
    let mut node = node().await;
    let refused = |field: &str| (Code::InvalidArgument, format!("{field}: missing"));
    let (pod, container) = (refused("pod_sandbox_id"), refused("container_id"));
    assert_eq!(refusal(node.runtime.stop_pod_sandbox(StopPodSandboxRequest::default()).await), pod);
    assert_eq!(refusal(node.runtime.remove_pod_sandbox(RemovePodSandboxRequest::default()).await), pod);
    assert_eq!(refusal(node.runtime.pod_sandbox_status(PodSandboxStatusRequest::default()).await), pod);
    assert_eq!(refusal(node.runtime.pod_sandbox_stats(PodSandboxStatsRequest::default()).await), pod);
    assert_eq!(refusal(node.runtime.create_container(CreateContainerRequest::default()).await), pod);
    assert_eq!(refusal(node.runtime.start_container(StartContainerRequest::default()).await), container);
    assert_eq!(refusal(node.runtime.stop_container(StopContainerRequest::default()).await), container);
    assert_eq!(refusal(node.runtime.remove_container(RemoveContainerRequest::default()).await), container);
    assert_eq!(refusal(node.runtime.container_status(ContainerStatusRequest::default()).await), container);
    assert_eq!(refusal(node.runtime.container_stats(ContainerStatsRequest::default()).await), container);
    assert_eq!(refusal(node.runtime.exec_sync(ExecSyncRequest::default()).await), container);
    assert_eq!(refusal(node.runtime.exec(ExecRequest::default()).await), container);
    assert_eq!(refusal(node.runtime.attach(AttachRequest::default()).await), container);
    assert_eq!(refusal(node.runtime.port_forward(PortForwardRequest::default()).await), pod);
    assert_eq!(
        refusal(node.runtime.reopen_container_log(ReopenContainerLogRequest::default()).await),
        container
    );
    let update = UpdateContainerResourcesRequest::default();
    assert_eq!(refusal(node.runtime.update_container_resources(update).await), container);
}

#[tokio::test]
async fn what_comes_later_is_refused_by_name() {
    let mut node = node().await;
    let r = &mut node.runtime;
    for (rpc, got) in [
        ("CheckpointContainer", refusal(r.checkpoint_container(CheckpointContainerRequest::default()).await)),
        ("CheckpointPod", refusal(r.checkpoint_pod(CheckpointPodRequest::default()).await)),
        ("RestorePod", refusal(r.restore_pod(RestorePodRequest::default()).await)),
    ] {
        assert_eq!(got, (Code::Unimplemented, format!("{rpc}: not supported yet")));
    }
}

#[tokio::test]
async fn what_the_cluster_tells_of_the_network_is_taken_or_refused() {
    let mut node = node().await;
    let told = |cidr: &str| {
        let network_config = Some(NetworkConfig { pod_cidr: cidr.to_owned() });
        UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) }
    };
    let fine = "nothing of ours depends on it";
    node.runtime.update_runtime_config(UpdateRuntimeConfigRequest::default()).await.expect(fine);
    node.runtime.update_runtime_config(told("10.1.0.0/24,fd00:1::/64")).await.expect(fine);
    let (code, text) = refusal(node.runtime.update_runtime_config(told("10.1.0.0")).await);
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(text, "pod CIDR \"10.1.0.0\": address/prefix is expected");
    let limits = UpdatePodSandboxResourcesRequest { pod_sandbox_id: "f".repeat(64), ..Default::default() };
    assert_eq!(refusal(node.runtime.update_pod_sandbox_resources(limits).await).0, Code::NotFound);
    let nobody = UpdatePodSandboxResourcesRequest::default();
    let (code, text) = refusal(node.runtime.update_pod_sandbox_resources(nobody).await);
    assert_eq!((code, text.as_str()), (Code::InvalidArgument, "pod_sandbox_id: missing"));
}

#[tokio::test]
async fn a_stream_of_events_begins_before_anything_happens_and_ends_with_the_daemon() {
    let node = node().await;
    let (mut first, mut second) = (node.runtime.clone(), node.runtime.clone());
    let mut streams = [
        first.get_container_events(GetEventsRequest {}).await.expect("a stream").into_inner(),
        second.get_container_events(GetEventsRequest {}).await.expect("another stream").into_inner(),
    ];
    node.engine.drain().await;
    for stream in &mut streams {
        let end = tokio::time::timeout(LONG, stream.message()).await.expect("the stream ends");
        assert_eq!(end.expect_err("with a reason").code(), Code::Unavailable);
    }
    let refused = refusal(first.get_container_events(GetEventsRequest {}).await);
    assert_eq!(refused.0, Code::Unavailable);
}

#[tokio::test]
async fn metrics_are_described_before_there_are_any() {
    let mut node = node().await;
    let described = node.runtime.list_metric_descriptors(ListMetricDescriptorsRequest {}).await.unwrap();
    assert_eq!(described.into_inner().descriptors.len(), 56);
    let metrics = node.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
    assert!(metrics.into_inner().pod_metrics.is_empty());
}

fn with_annotation(bytes: usize) -> RunPodSandboxRequest {
    let annotations = [("a".to_owned(), "x".repeat(bytes))].into();
    let config = PodSandboxConfig { annotations, ..Default::default() };
    RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() }
}

#[tokio::test]
async fn large_requests_are_read_and_enormous_ones_are_not() {
    let mut node = node().await;
    let large = refusal(node.runtime.run_pod_sandbox(with_annotation(15 << 20)).await);
    assert_eq!(large, (Code::InvalidArgument, "config.metadata: missing".to_owned()));
    let enormous = refusal(node.runtime.run_pod_sandbox(with_annotation(17 << 20)).await);
    assert_eq!(enormous.0, Code::OutOfRange);
}

#[tokio::test]
async fn it_ends_when_it_is_told_to() {
    let mut node = node().await;
    node.runtime.version(VersionRequest::default()).await.unwrap();
    node.stop.send(()).expect("the server listens for its end");
    tokio::time::timeout(LONG, node.server).await.expect("the server ends").expect("without a panic");
}

/// A network whose plugin takes for ever to say how it is.
fn hanging_network(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for name in ["bin", "net.d"] {
        std::fs::create_dir(dir.join(name)).expect("a directory");
    }
    let list = r#"{"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "hangs"}]}"#;
    std::fs::write(dir.join("net.d/10-n.conflist"), list).expect("a conflist");
    let script = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = STATUS ] || exit 0\ntouch {}\nexec sleep 60\n",
        dir.join("begun").display()
    );
    std::fs::write(dir.join("bin/hangs"), script).expect("a plugin");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.join("bin/hangs"), executable).expect("a program");
}

#[tokio::test]
async fn calls_that_run_are_waited_for_as_long_as_was_configured() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    hanging_network(dir.path());
    let mut node = node_in(dir).await;
    let begun = node.dir.path().join("begun");
    let call = tokio::spawn(async move { node.runtime.status(StatusRequest::default()).await });
    let plugin = async {
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, plugin).await.expect("the plugin begins");
    let at = std::time::Instant::now();
    node.stop.send(()).expect("the server listens for its end");
    // the plugin has until its own deadline
    tokio::time::timeout(LONG / 4, node.server).await.expect("the server ends").expect("without a panic");
    let waited = at.elapsed();
    assert!(waited >= Duration::from_millis(300), "waited for {waited:?}: {:?}", call.await);
    call.abort();
}

#[tokio::test]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let node = node().await;
    let silent = tokio::net::UnixStream::connect(node.dir.path().join("corten.sock")).await.expect("connect");
    // half of the time that a running call would get
    let soon = Duration::from_secs(5);
    node.stop.send(()).expect("the server listens for its end");
    tokio::time::timeout(soon, node.server).await.expect("the server ends soon").expect("without a panic");
    drop(silent);
}
