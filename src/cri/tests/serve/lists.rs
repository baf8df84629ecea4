//! Lists of more containers than any node has, by the plain calls and by those that answer in portions: both tell the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use cri::proto::runtime::v1::*;
use serde_json::json;

use super::{Node, node_in};

const PODS: usize = 250;
const EACH: usize = 20;

/// A different id for each number.
fn bytes(kind: u8, number: usize) -> [u8; 32] {
    let mut bytes = [kind; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}

/// Stopped pods of containers that have ended, as an earlier daemon would have left them. Each container has a kilobyte of
/// annotations, so that all of them are more than one message of gRPC's usual size.
fn fill(state: &Path) {
    let write = |dir: &str, id: &str, record: serde_json::Value| {
        let dir = state.join(dir).join(id);
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join("record.json"), record.to_string()).expect("a record");
    };
    for n in 0..PODS {
        let pod = oci::PodId::from_random(bytes(1, n));
        let name =
            json!({"name": format!("p{n}"), "uid": format!("u{n}"), "namespace": "many", "attempt": 0});
        let network = json!({"network": "node", "pid": "container", "ipc": "node"});
        let config = json!({"name": name, "namespaces": network});
        let record = json!({"version": 1, "id": pod, "config": config, "created_at": 1, "intent": "stop"});
        write("pods", pod.as_str(), record);
        for c in 0..EACH {
            let id = oci::ContainerId::from_random(bytes(2, n * EACH + c));
            let config = json!({
                "name": format!("c{c}"), "attempt": 0, "image": "i", "labels": {"n": n.to_string()},
                "annotations": {"a": "x".repeat(1000)},
            });
            let progress = json!({
                "state": "exited", "started_at": 1, "finished_at": 2, "exit_code": 0, "reason": "Completed",
            });
            let record = json!({
                "version": 1, "id": id, "pod": pod, "created_at": 1, "image_id": "i", "image_ref": "i",
                "stop_signal": 15, "config": config, "progress": progress,
            });
            write("containers", id.as_str(), record);
        }
    }
}

/// All that come in portions, and how many portions.
async fn streamed(node: &Node, filter: Option<ContainerFilter>) -> (Vec<Container>, usize) {
    let request = StreamContainersRequest { filter };
    let mut stream = node.runtime.clone().stream_containers(request).await.expect("a stream").into_inner();
    let (mut all, mut portions) = (Vec::new(), 0);
    while let Some(part) = stream.message().await.expect("a portion") {
        all.extend(part.containers);
        portions += 1;
    }
    (all, portions)
}

async fn plain(node: &Node, filter: Option<ContainerFilter>) -> Vec<Container> {
    let mut client = node.runtime.clone().max_decoding_message_size(64 << 20);
    let answer = client.list_containers(ListContainersRequest { filter }).await.expect("a list");
    answer.into_inner().containers
}

fn ids(list: &[Container]) -> BTreeSet<String> {
    list.iter().map(|container| container.id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_containers_by_both_calls() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    fill(&dir.path().join("state"));
    let node = node_in(dir).await;
    let begun = Instant::now();
    let all = plain(&node, None).await;
    assert_eq!((all.len(), ids(&all).len()), (PODS * EACH, PODS * EACH));
    let (parts, portions) = streamed(&node, None).await;
    assert_eq!((parts.len(), ids(&parts)), (PODS * EACH, ids(&all)));
    // a client of the streaming calls has the usual limit of a message
    assert!(portions > 1, "all of it in one message");
    let label_selector = [("n".to_owned(), "7".to_owned())].into();
    let filter = Some(ContainerFilter { label_selector, ..Default::default() });
    assert_eq!(plain(&node, filter.clone()).await.len(), EACH);
    assert_eq!(streamed(&node, filter).await.0.len(), EACH);
    let listed =
        node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await.expect("a list");
    assert_eq!(listed.into_inner().items.len(), PODS);
    let request = StreamPodSandboxesRequest::default();
    let mut stream = node.runtime.clone().stream_pod_sandboxes(request).await.expect("a stream").into_inner();
    let mut pods = 0;
    while let Some(part) = stream.message().await.expect("a portion") {
        pods += part.pod_sandboxes.len();
    }
    assert_eq!(pods, PODS);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
