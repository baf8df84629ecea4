//! What listeners are told of pods and containers on the real kernel, also by a daemon that was not there when it happened.

mod node;

use std::time::Duration;

use engine::events::Happening::{self, Created, Deleted, Started, Stopped};
use engine::events::{Event, Listener};
use engine::status::{ContainerState, PodState};
use engine::{Engine, Kind};
use node::{Node, eventually, private};

/// The next event, which must come soon.
async fn next(listener: &mut Listener) -> std::sync::Arc<Event> {
    let event = tokio::time::timeout(Duration::from_secs(60), listener.next()).await;
    event.expect("an event within 60 s").expect("the stream goes on")
}

/// Reads until `last` has happened to `id`: everything up to it.
async fn until(listener: &mut Listener, id: &str, last: Happening) -> Vec<(String, Happening)> {
    let mut told = Vec::new();
    loop {
        let event = next(listener).await;
        told.push((event.id.clone(), event.what));
        if event.id == id && event.what == last {
            return told;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_hears_the_whole_life_of_a_pod() {
    if !private("every_listener_hears_the_whole_life_of_a_pod") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let mut listeners = [engine.listen().unwrap(), engine.listen().unwrap(), engine.listen().unwrap()];
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let quick = engine.create_container(pod.as_str(), node.container("quick", "exit 3")).await.unwrap();
    engine.start_container(quick.as_str()).await.unwrap();
    node.ended(&engine, &quick).await;
    let long = engine.create_container(pod.as_str(), node.container("long", "sleep 1000")).await.unwrap();
    engine.start_container(long.as_str()).await.unwrap();
    engine.remove_container(quick.as_str()).await.unwrap();
    engine.remove_pod(pod.as_str()).await.unwrap();
    let (pod, quick, long) = (pod.to_string(), quick.to_string(), long.to_string());
    for listener in &mut listeners {
        let told = until(listener, &pod, Deleted).await;
        let of =
            |id: &str| told.iter().filter(|(one, _)| one == id).map(|(_, what)| *what).collect::<Vec<_>>();
        for id in [&pod, &quick, &long] {
            assert_eq!(of(id), [Created, Started, Stopped, Deleted], "{told:?}");
        }
        assert_eq!(told.len(), 12, "nothing else: {told:?}");
    }
    engine.drain().await;
    for listener in &mut listeners {
        assert_eq!(listener.next().await.unwrap_err().kind, Kind::Unavailable);
    }
    assert_eq!(engine.listen().unwrap_err().kind, Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_shows_the_pod_right_after_it() {
    if !private("an_event_shows_the_pod_right_after_it") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let mut listener = engine.listen().unwrap();
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let made = next(&mut listener).await;
    assert_eq!((made.id.as_str(), made.what, made.pod().state), (pod.as_str(), Created, PodState::Ready));
    let before = engine.pod_snapshot(pod.as_str()).unwrap();
    assert!(before.at > made.at && before.containers.is_empty(), "{before:?}");
    let id = engine.create_container(pod.as_str(), node.container("c", "exit 3")).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    let mut last = made.at;
    let stopped = loop {
        let event = next(&mut listener).await;
        assert!(event.at > last, "times rise: {event:?}");
        last = event.at;
        if event.what == Stopped {
            break event;
        }
    };
    assert!(stopped.at > before.at, "what a snapshot does not show is later than it");
    let status = stopped.containers().next().unwrap();
    assert!(matches!(status.state, ContainerState::Exited { exit_code: 3, .. }), "{status:?}");
    engine.remove_pod(pod.as_str()).await.unwrap();
    until(&mut listener, pod.as_str(), Deleted).await;
    engine.drain().await;
}

async fn reopened(node: &Node, engine: Engine) -> Engine {
    engine.drain().await;
    drop(engine);
    node.open().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_without_a_daemon_is_told_by_the_next() {
    if !private("what_happened_without_a_daemon_is_told_by_the_next") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let script = "while [ ! -e /gate/go ]; do sleep 0.05; done; exit 4";
    let go = node.at("go");
    std::fs::create_dir(&go).unwrap();
    let config = node.container_with(
        "waits",
        serde_json::json!({
            "command": ["/bin/sh", "-c", script],
            "mounts": [{"container_path": "/gate", "host_path": go}],
        }),
    );
    let waits = engine.create_container(pod.as_str(), config).await.unwrap();
    let stays = engine.create_container(pod.as_str(), node.container("stays", "sleep 1000")).await.unwrap();
    for id in [&waits, &stays] {
        engine.start_container(id.as_str()).await.unwrap();
    }
    engine.drain().await;
    drop(engine);
    std::fs::write(go.join("go"), "").unwrap();
    let exits = node.at("run/pods").join(pod.as_str());
    eventually("the monitor has written the exit", || {
        monitor::record::read_exit(&exits, &waits).is_ok_and(|exit| exit.is_some())
    })
    .await;
    let engine = node.open().await;
    // late, as a client is that has to find out that the daemon is there again; and not only the first one
    for _ in 0..2 {
        let mut listener = engine.listen().unwrap();
        let event = next(&mut listener).await;
        assert_eq!((event.id.as_str(), event.what), (waits.as_str(), Stopped));
        assert_eq!(event.containers().count(), 2);
    }
    // and a daemon that finds nothing new tells nothing
    let engine = reopened(&node, engine).await;
    let mut listener = engine.listen().unwrap();
    engine.remove_container(waits.as_str()).await.unwrap();
    let event = next(&mut listener).await;
    assert_eq!((event.id.as_str(), event.what), (waits.as_str(), Deleted));
    engine.remove_pod(pod.as_str()).await.unwrap();
    until(&mut listener, pod.as_str(), Deleted).await;
    engine.drain().await;
}
