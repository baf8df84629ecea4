//! Pods and containers on the real kernel, with the real monitor and the bridge plugin.

mod node;

use std::time::{Duration, Instant};

use engine::Kind;
use engine::config::{NamespaceMode, Resources};
use engine::status::{ContainerFilter, ContainerState, PodFilter, PodState};
use node::{Node, eventually, private};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_from_its_birth_to_its_end() {
    if !private("a_pod_from_its_birth_to_its_end") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("web")).await.unwrap();
    let status = engine.pod_status(pod.short()).unwrap();
    assert_eq!(status.state, PodState::Ready);
    assert_eq!(status.ips.len(), 1, "{status:?}");
    let id = engine
        .create_container(
            pod.as_str(),
            node.container("main", "echo hello; cat /data/seed; hostname; id -u; exec sleep 1000"),
        )
        .await
        .unwrap();
    assert_eq!(engine.container_status(id.as_str()).unwrap().state, ContainerState::Created);
    engine.start_container(id.as_str()).await.unwrap();
    eventually("the log is there", || node.log("web", "main").lines().count() == 4).await;
    assert_eq!(node.log("web", "main"), "hello\nseed\nweb\n0\n");
    let out = engine.exec_sync(id.as_str(), vec!["/bin/env".into()], Duration::ZERO).await.unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("FROM_IMAGE=yes"), "{out:?}");
    assert_eq!(engine.list_containers(&ContainerFilter::default()).len(), 1);
    assert_eq!(engine.list_pods(&PodFilter { state: Some(PodState::Ready), ..Default::default() }).len(), 1);
    let (_, usage) = engine.container_usage(id.as_str()).await.unwrap();
    assert!(usage.cgroup.unwrap().usage.memory > 0, "{usage:?}");
    engine.stop_container(id.as_str(), Duration::ZERO).await.unwrap();
    assert_eq!(node.ended(&engine, &id).await, (137, "Error".to_owned()));
    engine.stop_pod(pod.as_str()).await.unwrap();
    assert_eq!(engine.pod_status(pod.as_str()).unwrap().state, PodState::NotReady);
    engine.stop_pod(pod.as_str()).await.unwrap();
    engine.remove_pod(pod.as_str()).await.unwrap();
    engine.remove_pod(pod.as_str()).await.unwrap();
    engine.remove_container(id.as_str()).await.unwrap();
    assert_eq!(engine.pod_status(pod.as_str()).unwrap_err().kind, Kind::NotFound);
    eventually("nothing is left", || node.leftovers().is_empty()).await;
    assert!(node.log("web", "main").starts_with("hello"), "the log stays");
    engine.drain().await;
}

/// Layers with the owners that they have, whatever the pod's users are outside; a network that is the pod's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_a_user_namespace() {
    if !private("a_pod_in_a_user_namespace") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    if let Err(why) = engine.status().await.user_namespaces {
        eprintln!("SKIP a_pod_in_a_user_namespace: {why}");
        return;
    }
    let maps = engine::config::IdMaps::parse("0 100000 65536", "0 100000 65536");
    let mut config = node.pod("p");
    config.namespaces.user = maps.clone();
    config.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into();
    let pod = engine.run_pod(config).await.unwrap();
    let volume = node.at("volume");
    std::fs::create_dir(&volume).unwrap();
    let script = "cat /proc/self/uid_map; stat -c '%u %n' / /bin/sh /dev/shm /etc/hosts /volume; echo x > /made; \
        echo x > /volume/made; echo x >> /etc/hosts; echo x > /dev/shm/x; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ip -o addr show | wc -l; exec sleep 1000";
    let mut wanted = node.container("main", script);
    wanted.security.namespaces.user = maps.clone();
    wanted.mounts = vec![engine::config::Mount {
        container_path: "/volume".into(),
        host_path: volume.display().to_string(),
        id_maps: maps.clone(),
        ..Default::default()
    }];
    let id = engine.create_container(pod.as_str(), wanted).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    eventually("it has said all", || node.log("p", "main").lines().count() >= 8).await;
    let text = node.log("p", "main");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_eq!(lines[1..7], ["0 /", "0 /bin/sh", "0 /dev/shm", "0 /etc/hosts", "0 /volume", "80"], "{text}");
    let owner =
        |path: std::path::PathBuf| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap());
    assert_eq!(owner(volume.join("made")), 0);
    assert_eq!(owner(node.at("state/containers").join(id.as_str()).join("upper/made")), 100_000);
    let look = vec!["/bin/cat".to_owned(), "/proc/self/uid_map".to_owned()];
    let out = engine.exec_sync(id.as_str(), look, Duration::ZERO).await.unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("100000"), "{out:?}");
    let outside = node.container("outside", "true");
    assert_eq!(engine.create_container(pod.as_str(), outside).await.unwrap_err().kind, Kind::Invalid);
    let mut beyond = node.container("beyond", "true");
    beyond.security.namespaces.user = maps.clone();
    beyond.security.run_as_user = Some(70_000);
    assert_eq!(engine.create_container(pod.as_str(), beyond).await.unwrap_err().kind, Kind::Invalid);
    // the next daemon knows it as well
    engine.drain().await;
    drop(engine);
    let engine = node.open().await;
    let mut second = node.container("second", "cat /proc/self/uid_map");
    second.security.namespaces.user = maps;
    let id = engine.create_container(pod.as_str(), second).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    assert_eq!(node.ended(&engine, &id).await.0, 0);
    assert!(node.log("p", "second").contains("100000"));
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_a_user_namespace_with_the_nodes_network() {
    if !private("a_pod_in_a_user_namespace_with_the_nodes_network") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    if let Err(why) = engine.status().await.user_namespaces {
        eprintln!("SKIP a_pod_in_a_user_namespace_with_the_nodes_network: {why}");
        return;
    }
    let maps = engine::config::IdMaps::parse("0 100000 65536", "0 100000 65536");
    let mut config = node.pod("p");
    config.namespaces.user = maps.clone();
    config.namespaces.network = NamespaceMode::Node;
    let pod = engine.run_pod(config).await.unwrap();
    let mut wanted =
        node.container("main", "cat /proc/self/uid_map; ls -l /proc/self/ns/net; ls /sys/class/net");
    wanted.security.namespaces.user = maps;
    wanted.security.namespaces.network = NamespaceMode::Node;
    let id = engine.create_container(pod.as_str(), wanted).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    assert_eq!(node.ended(&engine, &id).await.0, 0);
    let own = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let text = node.log("p", "main");
    assert!(text.contains("100000") && text.contains(&own) && text.contains("lo"), "{text}");
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_have_codes_and_reasons() {
    if !private("exits_have_codes_and_reasons") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    for (name, script, want) in [("ok", "true", (0, "Completed")), ("bad", "exit 7", (7, "Error"))] {
        let id = engine.create_container(pod.as_str(), node.container(name, script)).await.unwrap();
        engine.start_container(id.as_str()).await.unwrap();
        let (code, reason) = node.ended(&engine, &id).await;
        assert_eq!((code, reason.as_str()), want, "{name}");
        let again = engine.start_container(id.as_str()).await.unwrap_err();
        assert_eq!(again.kind, Kind::WrongState, "{again}");
    }
    let nope = node.container_with("nope", json!({"command": ["/no/such/program"]}));
    let id = engine.create_container(pod.as_str(), nope).await.unwrap();
    let error = engine.start_container(id.as_str()).await.unwrap_err();
    assert!(error.chain().contains("/no/such/program"), "{}", error.chain());
    assert_eq!(node.ended(&engine, &id).await, (128, "StartError".to_owned()));
    let mut hungry = node.container("hungry", "tail /dev/zero");
    hungry.resources.memory_limit = 32 << 20;
    let id = engine.create_container(pod.as_str(), hungry).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    assert_eq!(node.ended(&engine, &id).await.1, "OOMKilled");
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_requests_join_or_find_what_is_there() {
    if !private("repeated_requests_join_or_find_what_is_there") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    // a kubelet's repetition differs in what it stamps
    let mut stamped = node.pod("p");
    stamped.annotations.insert("seen".to_owned(), "later".to_owned());
    let (a, b) = tokio::join!(engine.run_pod(node.pod("p")), engine.run_pod(stamped));
    let pod = a.unwrap();
    assert_eq!(b.unwrap(), pod);
    assert!(engine.pod_snapshot(pod.as_str()).unwrap().pod.config.annotations.is_empty());
    let mut other = node.pod("p");
    other.hostname = "else".to_owned();
    let taken = engine.run_pod(other.clone()).await.unwrap_err();
    assert_eq!(taken.kind, Kind::Exists);
    assert!(taken.context.contains(pod.as_str()), "{taken}");
    let config = || node.container("c", "sleep 1000");
    let mut stamped = config();
    stamped.annotations.insert("seen".to_owned(), "later".to_owned());
    let (a, b) = tokio::join!(
        engine.create_container(pod.as_str(), config()),
        engine.create_container(pod.as_str(), stamped)
    );
    let id = a.unwrap();
    assert_eq!(b.unwrap(), id);
    assert_eq!(engine.create_container(pod.as_str(), config()).await.unwrap(), id);
    let taken = engine.create_container(pod.as_str(), node.container("c", "true")).await.unwrap_err();
    assert_eq!(taken.kind, Kind::Exists);
    let (a, b) = tokio::join!(engine.start_container(id.as_str()), engine.start_container(id.as_str()));
    a.unwrap();
    b.unwrap();
    // a caller that goes away does not end the work
    let gone = tokio::time::timeout(Duration::from_micros(1), engine.run_pod(node.pod("q"))).await;
    assert!(gone.is_err());
    let q = engine.run_pod(node.pod("q")).await.unwrap();
    assert_eq!(engine.list_pods(&PodFilter::default()).len(), 2);
    // the identity is free when the pod is removed
    engine.remove_pod(pod.as_str()).await.unwrap();
    let next = engine.run_pod(other).await.unwrap();
    assert_ne!(next, pod);
    for id in [next, q] {
        engine.remove_pod(id.as_str()).await.unwrap();
    }
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_can_be_tightened_and_blocks_nothing() {
    if !private("a_stop_can_be_tightened_and_blocks_nothing") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let stubborn = node.container("c", "trap '' TERM; echo up; while true; do sleep 1; done");
    let id = engine.create_container(pod.as_str(), stubborn).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    eventually("it is up", || node.log("p", "c") == "up\n").await;
    let (stopper, at) = (engine.clone(), id.clone());
    let begun = Instant::now();
    let stop =
        tokio::spawn(async move { stopper.stop_container(at.as_str(), Duration::from_secs(600)).await });
    tokio::task::yield_now().await;
    let out = engine.exec_sync(id.as_str(), vec!["/bin/true".into()], Duration::ZERO).await.unwrap();
    assert_eq!(out.exit_code, 0);
    engine.reopen_log(id.as_str()).await.unwrap();
    assert!(matches!(engine.container_status(id.as_str()).unwrap().state, ContainerState::Running { .. }));
    engine.stop_container(id.as_str(), Duration::from_millis(100)).await.unwrap();
    stop.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(300));
    assert_eq!(node.ended(&engine, &id).await.0, 137);
    let gentle = node.container("g", "trap 'exit 3' TERM; echo up; while true; do sleep 0.05; done");
    let id = engine.create_container(pod.as_str(), gentle).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    eventually("it is up", || node.log("p", "g") == "up\n").await;
    engine.stop_container(id.as_str(), Duration::from_secs(600)).await.unwrap();
    assert_eq!(node.ended(&engine, &id).await.0, 3);
    // removing a running container kills it
    let id = engine.create_container(pod.as_str(), node.container("r", "sleep 1000")).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    engine.remove_container(id.as_str()).await.unwrap();
    assert_eq!(engine.container_status(id.as_str()).unwrap_err().kind, Kind::NotFound);
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_sync_has_its_limits() {
    if !private("exec_sync_has_its_limits") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let id = engine.create_container(pod.as_str(), node.container("c", "sleep 1000")).await.unwrap();
    let early = engine.exec_sync(id.as_str(), vec!["/bin/true".into()], Duration::ZERO).await.unwrap_err();
    assert_eq!(early.kind, Kind::WrongState);
    engine.start_container(id.as_str()).await.unwrap();
    let sh = |script: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let out =
        engine.exec_sync(id.as_str(), sh("echo out; echo err >&2; exit 5"), Duration::ZERO).await.unwrap();
    assert_eq!((&out.stdout[..], &out.stderr[..], out.exit_code), (&b"out\n"[..], &b"err\n"[..], 5));
    let begun = Instant::now();
    let out = engine.exec_sync(id.as_str(), sh("sleep 1000 & echo done"), Duration::ZERO).await.unwrap();
    assert_eq!(out.stdout, b"done\n");
    let late = engine.exec_sync(id.as_str(), sh("sleep 1000"), Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(late.kind, Kind::Deadline, "{late}");
    let out = engine.exec_sync(id.as_str(), sh("head -c 17000000 /dev/zero"), Duration::ZERO).await.unwrap();
    assert_eq!(out.stdout.len(), 16 << 20);
    assert!(begun.elapsed() < Duration::from_secs(300));
    let nope = engine.exec_sync(id.as_str(), vec!["/nope".into()], Duration::ZERO).await.unwrap_err();
    assert!(nope.chain().contains("/nope"), "{}", nope.chain());
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_daemon_adopts() {
    if !private("another_daemon_adopts") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let ips = engine.pod_status(pod.as_str()).unwrap().ips;
    let stays = engine.create_container(pod.as_str(), node.container("stays", "sleep 1000")).await.unwrap();
    let ends = node.container("ends", "while ! test -e /tmp/go; do sleep 0.02; done; exit 9");
    let ends = engine.create_container(pod.as_str(), ends).await.unwrap();
    let new = engine.create_container(pod.as_str(), node.container("new", "true")).await.unwrap();
    let stopped = engine.run_pod(node.pod("stopped")).await.unwrap();
    engine.stop_pod(stopped.as_str()).await.unwrap();
    for id in [&stays, &ends] {
        engine.start_container(id.as_str()).await.unwrap();
    }
    let go = vec!["/bin/sh".to_owned(), "-c".to_owned(), "mkdir -p /tmp; touch /tmp/go".to_owned()];
    let engine = reopen(&node, engine, || async {}).await;
    engine.exec_sync(ends.as_str(), go, Duration::ZERO).await.unwrap();
    // it may end before the daemon goes, or while there is none
    let exit = node.at("run/pods").join(pod.as_str()).join(format!("{ends}.exit"));
    let ended = async || eventually("its monitor has seen its end", || exit.exists()).await;
    let engine = reopen(&node, engine, ended).await;
    assert_eq!(node.ended(&engine, &ends).await, (9, "Error".to_owned()));
    let status = engine.pod_status(pod.as_str()).unwrap();
    assert_eq!((status.state, status.ips), (PodState::Ready, ips));
    assert_eq!(engine.pod_status(stopped.as_str()).unwrap().state, PodState::NotReady);
    assert!(matches!(engine.container_status(stays.as_str()).unwrap().state, ContainerState::Running { .. }));
    assert_eq!(engine.container_status(new.as_str()).unwrap().state, ContainerState::Created);
    // a start whose answer may have been lost may be repeated once
    engine.start_container(ends.as_str()).await.unwrap();
    assert_eq!(engine.start_container(ends.as_str()).await.unwrap_err().kind, Kind::WrongState);
    // a client that went away before its answer may ask again
    let script = "exit 3";
    let lost = engine.create_container(pod.as_str(), node.container("lost", script)).await.unwrap();
    engine.begin_container(lost.as_str()).await.unwrap();
    node.ended(&engine, &lost).await;
    engine.begin_container(lost.as_str()).await.unwrap();
    engine.start_container(lost.as_str()).await.unwrap();
    assert_eq!(engine.start_container(lost.as_str()).await.unwrap_err().kind, Kind::WrongState);
    assert_eq!(node.ended(&engine, &lost).await, (3, "Error".to_owned()));
    engine.remove_container(lost.as_str()).await.unwrap();
    engine.start_container(new.as_str()).await.unwrap();
    assert_eq!(node.ended(&engine, &new).await.0, 0);
    assert_eq!(engine.run_pod(node.pod("p")).await.unwrap(), pod);
    for id in [pod, stopped] {
        engine.remove_pod(id.as_str()).await.unwrap();
    }
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_goes_on_under_the_next_daemon() {
    if !private("a_stop_goes_on_under_the_next_daemon") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let stubborn = node.container("c", "trap '' TERM; echo up; while true; do sleep 1; done");
    let id = engine.create_container(pod.as_str(), stubborn).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    eventually("it is up", || node.log("p", "c") == "up\n").await;
    let (stopper, at) = (engine.clone(), id.clone());
    let stop = tokio::spawn(async move { stopper.stop_container(at.as_str(), Duration::from_secs(2)).await });
    let mut stage = String::new();
    while !stage.contains("Stopping") && !stage.contains("Exited") {
        stage = engine.verbose_container(id.as_str()).await.unwrap().remove("info").unwrap();
    }
    // it holds the engine, and with it the image store that the next one opens; on a slow machine its time may be up
    // before the daemon goes
    let refused = async || {
        if let Err(error) = stop.await.unwrap() {
            assert_eq!(error.kind, Kind::Unavailable, "{error}");
        }
    };
    let engine = reopen(&node, engine, refused).await;
    assert_eq!(node.ended(&engine, &id).await, (137, "Error".to_owned()));
    engine.stop_container(id.as_str(), Duration::from_secs(2)).await.unwrap();
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

async fn reopen<F: Future<Output = ()>>(
    node: &Node,
    engine: engine::Engine,
    between: impl FnOnce() -> F,
) -> engine::Engine {
    engine.drain().await;
    drop(engine);
    between().await;
    node.open().await
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_and_limits() {
    if !private("namespaces_and_limits") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let mut host = node.pod("host");
    host.namespaces.network = NamespaceMode::Node;
    host.namespaces.ipc = NamespaceMode::Node;
    let host = engine.run_pod(host).await.unwrap();
    assert!(engine.pod_status(host.as_str()).unwrap().ips.is_empty());
    let mut shared = node.pod("shared");
    shared.namespaces.pid = NamespaceMode::Pod;
    shared.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "7".to_owned())].into();
    let shared = engine.run_pod(shared).await.unwrap();
    let mut config = node.container(
        "c",
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; touch /dev/shm/x; exec sleep 1000",
    );
    config.security.namespaces.pid = NamespaceMode::Pod;
    config.security.run_as_username = "app".to_owned();
    config.resources.memory_limit = 64 << 20;
    let a = engine.create_container(shared.as_str(), config.clone()).await.unwrap();
    config.name = "d".to_owned();
    // beside its own, or the line is twice in one log
    config.log_path = "d.log".into();
    let b = engine.create_container(shared.as_str(), config).await.unwrap();
    for id in [&a, &b] {
        engine.start_container(id.as_str()).await.unwrap();
    }
    eventually("it is up", || node.log("shared", "c") == "7\n").await;
    let sh = |script: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let out = engine.exec_sync(
        a.as_str(),
        sh("id -G; ls /dev/shm; test $$ -gt 3 && ls -d /proc/[0-9]*"),
        Duration::ZERO,
    );
    let out = String::from_utf8(out.await.unwrap().stdout).unwrap();
    assert!(out.starts_with("1000 50000\nx\n"), "{out}");
    assert!(out.matches("/proc/").count() >= 4, "both containers and the reaper are seen: {out}");
    let status = engine.container_status(a.as_str()).unwrap();
    assert_eq!(status.user, Some((1000, 1000, vec![1000, 50000])));
    let more = Resources { memory_limit: 128 << 20, ..Resources::default() };
    engine.update_resources(a.as_str(), more, Default::default()).await.unwrap();
    assert_eq!(engine.container_status(a.as_str()).unwrap().resources.memory_limit, 128 << 20);
    let (_, usage) = engine.container_usage(a.as_str()).await.unwrap();
    assert!(usage.cgroup.unwrap().memory_available() > Some(100 << 20), "{usage:?}");
    for id in [host, shared] {
        engine.remove_pod(id.as_str()).await.unwrap();
    }
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

/// Rewrite the records of a node.
fn rewrite(node: &Node, edit: impl Fn(&str) -> String) {
    for dir in ["state/pods", "state/containers"] {
        for entry in std::fs::read_dir(node.at(dir)).unwrap() {
            let path = entry.unwrap().path().join("record.json");
            let text = edit(&std::fs::read_to_string(&path).unwrap());
            std::fs::write(path, text).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_later_version_wrote_is_left_alone() {
    if !private("what_a_later_version_wrote_is_left_alone") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let id = engine.create_container(pod.as_str(), node.container("c", "exec sleep 1000")).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    let before = node.leftovers();
    assert!(before.len() > 5, "{before:?}");
    // a downgrade, and what comes of it
    let later = || async { rewrite(&node, |text| text.replace(r#""version":1"#, r#""version":2"#)) };
    let engine = reopen(&node, engine, later).await;
    assert!(engine.list_pods(&PodFilter::default()).is_empty());
    assert!(engine.list_containers(&ContainerFilter::default()).is_empty());
    let other = engine.run_pod(node.pod("other")).await.unwrap();
    engine.remove_pod(other.as_str()).await.unwrap();
    eventually("only the other pod's things are gone", || node.leftovers() == before).await;
    let back = || async { rewrite(&node, |text| text.replace(r#""version":2"#, r#""version":1"#)) };
    let engine = reopen(&node, engine, back).await;
    let out = engine.exec_sync(id.as_str(), vec!["/bin/true".into()], Duration::ZERO).await.unwrap();
    assert_eq!(out.exit_code, 0);
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_nobody_are_released_while_pods_come_and_go() {
    if !private("networks_of_nobody_are_released_while_pods_come_and_go") {
        return;
    }
    let node = Node::new().await;
    let stray = network::Attachment {
        pod: oci::PodId::from_random([9; 32]),
        name: "stray".to_owned(),
        namespace: "test".to_owned(),
        uid: "uid".to_owned(),
        ports: Vec::new(),
        cgroup_parent: String::new(),
        annotations: Default::default(),
        dns: None,
    };
    // made, hidden from the start of the daemon, and put back when it runs
    node.network().attach(&stray).await.unwrap();
    let files = [format!("{}.result.json", stray.pod), format!("{}.json", stray.pod)];
    for file in &files {
        std::fs::rename(node.at("state/network").join(file), node.at(file)).unwrap();
    }
    let engine = node.open_with(|settings| settings.sweep_every = Duration::from_millis(10)).await;
    for file in &files {
        std::fs::rename(node.at(file), node.at("state/network").join(file)).unwrap();
    }
    let mut pods = Vec::new();
    for n in 0..6 {
        let name = format!("p{n}");
        let pod = engine.run_pod(node.pod(&name)).await.unwrap();
        if n % 2 == 0 {
            pods.push(pod);
        } else {
            engine.remove_pod(pod.as_str()).await.unwrap();
        }
    }
    eventually("the stray one is released", || !node.network().owed().contains(&stray.pod)).await;
    let mut owed = node.network().owed();
    owed.sort();
    pods.sort();
    assert_eq!(owed, pods, "the others keep theirs");
    for pod in &pods {
        let netns = engine.pod_status(pod.as_str()).unwrap().netns.unwrap();
        assert!(sys::netns::is_pinned(&netns), "{}", netns.display());
        engine.remove_pod(pod.as_str()).await.unwrap();
    }
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}
