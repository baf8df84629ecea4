//! A node with more pods and containers than any has: records are read, listed and filtered in a time that nobody notices.

mod node;

use std::process::Command;
use std::time::{Duration, Instant};

use engine::status::{ContainerFilter, ContainerPhase, PodFilter};
use node::{Node, eventually, must, private};
use oci::{ContainerId, PodId};
use serde_json::json;

const PODS: usize = 250;
const EACH: usize = 20;

fn write(node: &Node, dir: &str, id: &str, record: &serde_json::Value) {
    let dir = node.at("state").join(dir).join(id);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("record.json"), record.to_string()).unwrap();
}

/// Stopped pods of containers that have ended, as an earlier daemon would have left them.
fn fill(node: &Node) -> Vec<PodId> {
    let mut pods = Vec::new();
    for n in 0..PODS {
        let pod = PodId::from_random(rand::random());
        let name =
            json!({"name": format!("p{n}"), "uid": format!("u{n}"), "namespace": "many", "attempt": 0});
        let record = json!({
            "version": 1, "id": pod, "config": {"name": name}, "created_at": 1, "intent": "stop",
        });
        write(node, "pods", pod.as_str(), &record);
        for c in 0..EACH {
            let id = ContainerId::from_random(rand::random());
            let labels = json!({"io.kubernetes.container.name": format!("c{c}"), "n": n.to_string()});
            let annotations = json!({"a": "x".repeat(1000)});
            let record = json!({
                "version": 1, "id": id, "pod": pod, "created_at": 1, "image_id": "i", "image_ref": "i", "stop_signal": 15,
                "config": {"name": format!("c{c}"), "attempt": 0, "image": "i", "labels": labels, "annotations": annotations},
                "progress": {"state": "exited", "started_at": 1, "finished_at": 2, "exit_code": 0, "reason": "Completed"},
            });
            write(node, "containers", id.as_str(), &record);
        }
        pods.push(pod);
    }
    pods
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_containers_are_listed() {
    if !private("five_thousand_containers_are_listed") {
        return;
    }
    let node = Node::new().await;
    // five thousand directories on a disk are another measurement
    let places = ["state/pods", "state/containers"].map(|place| node.at(place));
    for place in &places {
        std::fs::create_dir_all(place).unwrap();
        must(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(place));
    }
    let pods = fill(&node);
    let begun = Instant::now();
    let engine = node.open().await;
    let opened = begun.elapsed();
    let list = |filter: ContainerFilter| engine.list_containers(&filter).len();
    let begun = Instant::now();
    assert_eq!(list(ContainerFilter::default()), PODS * EACH);
    let listed = begun.elapsed();
    assert_eq!(list(ContainerFilter { pod: pods[7].to_string(), ..Default::default() }), EACH);
    let labels = [("n".to_owned(), "7".to_owned())].into();
    assert_eq!(list(ContainerFilter { labels, ..Default::default() }), EACH);
    let phase = Some(ContainerPhase::Exited);
    assert_eq!(list(ContainerFilter { phase, ..Default::default() }), PODS * EACH);
    assert_eq!(engine.list_pods(&PodFilter::default()).len(), PODS);
    eprintln!("opened in {opened:?}, all listed in {listed:?}");
    // what a hundredth of a second is here may be a second elsewhere, but nothing is counted twice
    assert!(listed < Duration::from_secs(10), "{listed:?}");
    for pod in &pods[..5] {
        engine.remove_pod(pod.as_str()).await.unwrap();
    }
    assert_eq!(list(ContainerFilter::default()), (PODS - 5) * EACH);
    let gone = |pod: &PodId| !node.at("state/pods").join(pod.as_str()).exists();
    eventually("the records of removed pods are gone", || pods[..5].iter().all(gone)).await;
    engine.drain().await;
    for place in &places {
        must(Command::new("umount").arg("-l").arg(place));
    }
}
