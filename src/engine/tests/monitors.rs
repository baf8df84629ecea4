//! Monitors that are killed or hang, and what is on disk about an ending that they should have done.

mod node;

use std::time::Duration;

use engine::status::{ContainerState, PodState};
use engine::{Engine, Kind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node::{Node, PATIENCE, eventually, private};
use oci::{ContainerId, PodId};

/// A pod with a container that runs `script`.
async fn pod(node: &Node, engine: &Engine, script: &str) -> (PodId, ContainerId) {
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let id = engine.create_container(pod.as_str(), node.container("c", script)).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    (pod, id)
}

fn signal_monitor(engine: &Engine, pod: &PodId, signal: Signal) {
    let monitor = engine.pod_status(pod.as_str()).unwrap().pid.unwrap();
    kill(Pid::from_raw(monitor), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_monitor_takes_its_pod_along() {
    if !private("a_lost_monitor_takes_its_pod_along") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let id = engine.create_container(pod.as_str(), node.container("c", "sleep 1000")).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    let monitor = engine.pod_status(pod.as_str()).unwrap().pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::SIGKILL).unwrap();
    assert_eq!(node.ended(&engine, &id).await, (255, "ContainerStatusUnknown".to_owned()));
    assert_eq!(engine.pod_status(pod.as_str()).unwrap().state, PodState::NotReady);
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

/// Long enough for a monitor that lives on a slow machine, short enough to wait for.
const SHORT: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_hangs_stops_nobody_from_stopping() {
    if !private("a_monitor_that_hangs_stops_nobody_from_stopping") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open_with(|settings| settings.monitor_patience = SHORT).await;
    let (pod, id) = pod(&node, &engine, "exec sleep 1000").await;
    signal_monitor(&engine, &pod, Signal::SIGSTOP);
    // this and the next one ask for nothing to be ended, so the monitor may come to itself
    let error = engine.reopen_log(id.as_str()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Deadline, "{error}");
    assert_eq!(engine.pod_status(pod.as_str()).unwrap().state, PodState::Ready);
    let stop = engine.stop_container(id.as_str(), Duration::from_millis(100));
    tokio::time::timeout(PATIENCE, stop).await.expect("it does not hang").unwrap();
    assert_eq!(node.ended(&engine, &id).await, (255, "ContainerStatusUnknown".to_owned()));
    engine.stop_pod(pod.as_str()).await.unwrap();
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_monitor_hangs_can_be_removed() {
    if !private("a_pod_whose_monitor_hangs_can_be_removed") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open_with(|settings| settings.monitor_patience = SHORT).await;
    let (pod, _) = pod(&node, &engine, "exec sleep 1000").await;
    let next = engine.create_container(pod.as_str(), node.container("d", "exec sleep 1000")).await.unwrap();
    signal_monitor(&engine, &pod, Signal::SIGSTOP);
    // a start that is under way is in nobody's way either, and comes to its end
    let (starter, at) = (engine.clone(), next.clone());
    let start = tokio::spawn(async move { starter.start_container(at.as_str()).await });
    let remove = engine.remove_pod(pod.as_str());
    tokio::time::timeout(PATIENCE, remove).await.expect("it does not hang").unwrap();
    start.await.unwrap().unwrap_err();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_container_ended_is_known_although_its_monitor_hangs() {
    if !private("how_a_container_ended_is_known_although_its_monitor_hangs") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open_with(|settings| settings.monitor_patience = SHORT).await;
    let (pod, id) = pod(&node, &engine, "exec sleep 1000").await;
    signal_monitor(&engine, &pod, Signal::SIGSTOP);
    // as if the monitor had stopped after it had written this, before it told it
    let record = r#"{"code":3,"at":1,"oom_killed":true,"timed_out":false,"pid":1,"started_at":1}"#;
    std::fs::write(node.at("run/pods").join(pod.as_str()).join(format!("{id}.exit")), record).unwrap();
    engine.stop_pod(pod.as_str()).await.unwrap();
    assert_eq!(node.ended(&engine, &id).await, (3, "OOMKilled".to_owned()));
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_hangs_while_a_daemon_starts_keeps_its_pod() {
    if !private("a_monitor_that_hangs_while_a_daemon_starts_keeps_its_pod") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let (pod, stays) = pod(&node, &engine, "exec sleep 1000").await;
    let ends =
        engine.create_container(pod.as_str(), node.container("ends", "exec sleep 1000")).await.unwrap();
    engine.start_container(ends.as_str()).await.unwrap();
    let before = engine.container_status(stays.as_str()).unwrap().state;
    let ContainerState::Running { pid, .. } = engine.container_status(ends.as_str()).unwrap().state else {
        panic!("it does not run");
    };
    let monitor = Pid::from_raw(engine.pod_status(pod.as_str()).unwrap().pid.unwrap());
    kill(monitor, Signal::SIGSTOP).unwrap();
    // its end is seen when the monitor comes to itself
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    engine.drain().await;
    drop(engine);
    let engine = node.open().await;
    assert_eq!(engine.pod_status(pod.as_str()).unwrap().state, PodState::Ready);
    assert_eq!(engine.container_status(stays.as_str()).unwrap().state, before);
    kill(monitor, Signal::SIGCONT).unwrap();
    assert_eq!(node.ended(&engine, &ends).await, (137, "Error".to_owned()));
    let output = engine.exec_sync(stays.as_str(), vec!["true".to_owned()], PATIENCE).await.unwrap();
    assert_eq!(output.exit_code, 0);
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

/// What is to become of a container, as it is on disk.
fn intent(node: &Node, id: &ContainerId) -> serde_json::Value {
    let path = node.at("state/containers").join(id.as_str()).join("record.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    record["intent"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_end_is_on_disk_before_it_is_told() {
    if !private("what_is_to_end_is_on_disk_before_it_is_told") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let (pod, id) = pod(&node, &engine, "exec sleep 1000").await;
    signal_monitor(&engine, &pod, Signal::SIGSTOP);
    assert_eq!(intent(&node, &id), "keep");
    let (stopper, at) = (engine.clone(), id.clone());
    let stop = tokio::spawn(async move { stopper.stop_container(at.as_str(), Duration::ZERO).await });
    eventually("the stop is on disk", || intent(&node, &id)["stop"].is_object()).await;
    signal_monitor(&engine, &pod, Signal::SIGCONT);
    stop.await.unwrap().unwrap();
    assert_eq!(node.ended(&engine, &id).await.0, 137);
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_keeps_a_deadline_that_was_brought_nearer() {
    if !private("the_next_daemon_keeps_a_deadline_that_was_brought_nearer") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let script = "trap '' TERM; echo up; while true; do sleep 1; done";
    let (pod, id) = pod(&node, &engine, script).await;
    eventually("it is up", || node.log("p", "c") == "up\n").await;
    let mut stops = Vec::new();
    let mut before = i64::MAX;
    for seconds in [100_000, 5] {
        let (stopper, at) = (engine.clone(), id.clone());
        let timeout = Duration::from_secs(seconds);
        stops.push(tokio::spawn(async move { stopper.stop_container(at.as_str(), timeout).await }));
        eventually("the deadline is on disk", || {
            let by = intent(&node, &id)["stop"]["by"].as_i64();
            by.is_some_and(|by| by < before) || node.is_ended(&engine, &id)
        })
        .await;
        before = intent(&node, &id)["stop"]["by"].as_i64().unwrap_or(0);
    }
    engine.drain().await;
    for stop in stops {
        // they hold the engine; on a slow machine the time may have been up
        let _ = stop.await.unwrap();
    }
    drop(engine);
    let engine = node.open().await;
    assert_eq!(node.ended(&engine, &id).await.0, 137);
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

/// A container whose start will hang in a hook, as it would in a file system that nobody serves.
async fn that_hangs(node: &Node, engine: &Engine, pod: &PodId, name: &str) -> ContainerId {
    let id = engine.create_container(pod.as_str(), node.container(name, "true")).await.unwrap();
    let path = node.at("state/containers").join(id.as_str()).join("bundle/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let script = format!("touch {}; exec sleep 600", node.at(name).display());
    config["hooks"] = serde_json::json!({"createRuntime": [
        {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]},
    ]});
    std::fs::write(&path, config.to_string()).unwrap();
    id
}

/// The same, started; returns when it hangs.
async fn hanging(node: &Node, engine: &Engine, pod: &PodId, name: &str) -> ContainerId {
    let id = that_hangs(node, engine, pod, name).await;
    let (starter, at) = (engine.clone(), id.clone());
    tokio::spawn(async move { starter.start_container(at.as_str()).await });
    eventually("it hangs", || node.at(name).exists()).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_hangs_holds_nobody_up() {
    if !private("a_start_that_hangs_holds_nobody_up") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let began = std::time::Instant::now();
    let stopped = hanging(&node, &engine, &pod, "stopped").await;
    engine.stop_container(stopped.as_str(), Duration::from_millis(50)).await.unwrap();
    assert_eq!(node.ended(&engine, &stopped).await, (128, "StartError".to_owned()));
    let removed = hanging(&node, &engine, &pod, "removed").await;
    engine.remove_container(removed.as_str()).await.unwrap();
    assert_eq!(engine.container_status(removed.as_str()).unwrap_err().kind, Kind::NotFound);
    // one that an earlier daemon has told the monitor to start is only made, as far as this one knows
    let earlier = that_hangs(&node, &engine, &pod, "earlier").await;
    let start = serde_json::json!({
        "request": "start",
        "container": earlier.as_str(),
        "bundle": node.at("state/containers").join(earlier.as_str()).join("bundle"),
    });
    let client = monitor::Client::new(&node.at("run/pods").join(pod.as_str()));
    let _start = client.send(&serde_json::from_value(start).unwrap(), &[]).unwrap();
    eventually("it hangs", || node.at("earlier").exists()).await;
    engine.remove_container(earlier.as_str()).await.unwrap();
    hanging(&node, &engine, &pod, "left").await;
    engine.stop_pod(pod.as_str()).await.unwrap();
    assert!(began.elapsed() < PATIENCE, "the hooks were waited for");
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}
